"""Who connected to a Unix socket, from the kernel (I-2): pid, uid and gid, supplementary groups, and the systemd unit.

All of it is asked once, when a connection is accepted, and nothing is kept by pid: a pid that is free again is somebody else's. What the
kernel says of a socket is what held when the other end connected. Only the unit has to be read from /proc, so a pidfd pins the process
meanwhile: it is opened first, and after the read it must say that the process still lives. It is closed again then: one descriptor for each
connection would be half of those that the bus may have. A unit that cannot be known for sure is empty, and no rule that allows something to
a unit is for it.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct

from ..broker import Credentials
from ..protocol.limits import IDENTITY_GROUPS

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77  #: since Linux 6.5
_UCRED = struct.Struct("iII")
_GID_BYTES = 4
_GROUPS_BYTES = 1024  #: as much as socket.getsockopt takes: 256 groups

_CGROUP_BYTES = 65_536  #: a dozen hierarchies of v1, with a path of at most 4096 bytes each
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")
_NO_UNIT = "", ""
_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  #: it is the bus that lacks something


class KernelError(Exception):
    """This kernel does not say all that has to be known of a peer; the text says what, and which one does."""


def credentials_of(sock: socket.socket) -> Credentials:
    """Who is at the other end of *sock*. Raises OSError where the bus has no descriptor or memory left to find out, KernelError where
    nobody can find out."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    unit, user_unit = _units_of(sock, pid, uid) if pid > 0 else _NO_UNIT  # 0: of another pid namespace
    return Credentials(pid, uid, gid, _groups_of(sock), unit, user_unit)


def own_units() -> tuple[str, str]:
    """The unit and the user unit of this process."""
    return units_in(_read(os.getpid(), "cgroup"))


# --- groups ---------------------------------------------------------------------------------------


def _groups_of(sock: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the process that connected; of very many the lowest, in which order the kernel has them."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            text = "this kernel does not say in which groups a peer is (SO_PEERGROUPS), so the bus lets nobody in; Linux 4.13 and later do"
            raise KernelError(text) from error
        if error.errno != errno.ERANGE:
            raise
        raw = _many_groups(sock)
    return tuple(sorted(struct.unpack_from(f"{min(len(raw) // _GID_BYTES, IDENTITY_GROUPS)}I", raw)))


def _many_groups(sock: socket.socket) -> bytes:
    """The same where they are more than socket.getsockopt takes: the kernel says how much room it needs."""
    import ctypes

    getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
    size = ctypes.c_uint32(0)
    getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, None, ctypes.byref(size))
    room = ctypes.create_string_buffer(size.value)
    if getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, room, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room.raw[: size.value]


# --- unit -----------------------------------------------------------------------------------------


def _units_of(sock: socket.socket, pid: int, uid: int) -> tuple[str, str]:
    """The unit and the user unit of the process that connected."""
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)  # an int, in one step: nothing can fail before it is known
    except OSError as error:
        if error.errno in _WANT:
            raise
        return _units_unpinned(pid, uid) if error.errno == errno.ENOPROTOOPT else _NO_UNIT  # it has gone
    try:
        text = _read(pid, "cgroup")
        return units_in(text) if not _has_ended(pidfd) else _NO_UNIT
    finally:
        os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _units_unpinned(pid: int, uid: int) -> tuple[str, str]:
    """The same for a kernel that gives no pidfd: what was read is believed where the process was the same before and after it, and has the
    uid that connected. A process of that uid which got the pid of one that has gone since could be taken for it."""
    before = _start_time(pid)
    text, status = _read(pid, "cgroup"), _read(pid, "status")
    if before is None or before != _start_time(pid):
        return _NO_UNIT
    uids = next((line.split()[1:] for line in status.split(b"\n") if line.startswith(b"Uid:")), [])  # a name's newlines are escaped
    return units_in(text) if uids[1:2] == [b"%d" % uid] else _NO_UNIT


def _start_time(pid: int) -> bytes | None:
    """When a process began; None where there is none."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()  # its name may have anything in it
    return fields[19] if len(fields) > 19 else None


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty where it is not to be seen."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _CGROUP_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _WANT:
            raise
        return b""


def units_in(text: bytes) -> tuple[str, str]:
    """The unit and the user unit that a /proc/PID/cgroup tells of; empty where it tells of none.

    With cgroups of version 2 its line is the one without a controller; where that says nothing, systemd keeps its units in a hierarchy of
    version 1. Slices are only folders. What is below a unit is its own doing, and none of systemd's: only of a user's manager it is looked
    at, and only that user's word.
    """
    paths = {}
    for line in text.decode("ascii", "replace").split("\n"):  # splitlines() would take characters for ends that may be in a path
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path:
            paths[controllers] = path
    path = paths.get("", "/")
    parts = (paths.get("name=systemd", "/") if path == "/" else path).split("/")[1:]
    if ".." in parts:  # outside of the bus's cgroup namespace
        return _NO_UNIT
    unit, below = _first_unit(parts)
    return unit, _first_unit(below)[0] if _USER_MANAGER.fullmatch(unit) else ""


def _first_unit(parts: list[str]) -> tuple[str, list[str]]:
    """The service or scope that only slices are above, and what is below it."""
    for at, part in enumerate(parts):
        name = part.removeprefix("_")  # systemd puts it before names that could be taken for files of the cgroup
        if name.endswith((".service", ".scope")) and _UNIT.fullmatch(name):
            return name, parts[at + 1 :]
        if not name.endswith(".slice"):
            break
    return _NO_UNIT[0], []
