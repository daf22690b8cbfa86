"""The unit that a cgroup tells of: every layout of systemd, and what somebody could make to be taken for another."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from ipcbus.broker import Credentials
from ipcbus.daemon import admission as admission_module
from ipcbus.daemon import kernel_identity
from ipcbus.daemon.admission import Admission
from ipcbus.daemon.kernel_identity import credentials_of, units_in
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import IDENTITY_GROUPS
from ipcbus.protocol.messages import Kind

from .test_loop import HELLO, Bench, bench, frames

__all__ = ["bench"]

V1 = b"4:memory:/elsewhere\n3:cpu,cpuacct:/system.slice/wrong.service\n1:name=systemd:%s\n"
NO_OPTION = 9_999  #: that no kernel knows


@pytest.mark.parametrize(
    ("path", "unit", "user_unit"),
    [
        (b"/system.slice/lights.service", "lights.service", ""),
        (b"/system.slice/system-lights.slice/lights@kitchen.service", "lights@kitchen.service", ""),
        (rb"/system.slice/system-a\x2db.slice/a\x2db@1.service", r"a\x2db@1.service", ""),
        (b"/system.slice/lights.service/worker/3", "lights.service", ""),
        (b"/init.scope", "init.scope", ""),
        (b"/system.slice/_cpu.service", "cpu.service", ""),
        (b"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
        (b"/user.slice/user-1000.slice/user@1000.service/app.slice/panel.service", "user@1000.service", "panel.service"),
        (b"/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service", "init.scope"),
        (b"/user.slice/user-1000.slice/user@1000.service/app.slice/a.slice/b.scope/c.service", "user@1000.service", "b.scope"),
        (b"/user.slice/user-1000.slice/user@1000.service", "user@1000.service", ""),
        (b"/user.slice/user-1000.slice/user@1000.service/folder/panel.service", "user@1000.service", ""),
        (b"/system.slice/docker-0f.scope/system.slice/sshd.service", "docker-0f.scope", ""),
        (b"/system.slice/user@me.service/panel.service", "user@me.service", ""),
        (b"/", "", ""),
        (b"/system.slice", "", ""),
        (b"/docker/0f/system.slice/sshd.service", "", ""),
        (b"/../system.slice/sshd.service", "", ""),
        (b"/system.slice/../sshd.service", "", ""),
        (b"/system.slice/sshd.service (deleted)", "", ""),
        (b"/system.slice/sshd .service", "", ""),
        (b"/system.slice/ssh\x1b[2Jd.service", "", ""),
        (b"/system.slice/ssh\xc3\xa4d.service", "", ""),
        (b"/system.slice/.service", ".service", ""),
        (b"/system.slice/" + b"a" * 246 + b".service", "a" * 246 + ".service", ""),
        (b"/system.slice/" + b"a" * 247 + b".service", "a" * 247 + ".service", ""),
        (b"/system.slice/" + b"a" * 248 + b".service", "", ""),
    ],
)
def test_the_unit_of_a_cgroup(path: bytes, unit: str, user_unit: str) -> None:
    assert units_in(b"0::%s\n" % path) == (unit, user_unit)
    assert units_in(V1 % path + b"0::/\n") == (unit, user_unit)
    assert units_in(V1 % path) == (unit, user_unit)
    assert units_in(V1 % b"/system.slice/wrong.service" + b"0::%s\n" % path) == (
        (unit, user_unit) if path != b"/" else ("wrong.service", "")
    )


@pytest.mark.parametrize("end", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85", "\u2028".encode()])
def test_a_line_ends_where_the_kernel_says(end: bytes) -> None:
    """Whose own cgroup is below its user's manager may name it as it likes, but for a newline."""
    path = b"/user.slice/user-1000.slice/user@1000.service/x%s0::/system.slice/trusted.service" % end
    assert units_in(b"0::%s\n" % path) == ("user@1000.service", "")


@pytest.mark.parametrize("text", [b"", b"\n", b"0::", b"nonsense", b"0:", b"::::", b"1:cpu:/system.slice/wrong.service\n"])
def test_what_tells_of_no_unit(text: bytes) -> None:
    assert units_in(text) == ("", "")


# --- the kernel's word ----------------------------------------------------------------------------


def gives_pidfds() -> bool:
    """Whether this kernel gives a pidfd of a socket's other end (Linux 6.5)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, kernel_identity._SO_PEERPIDFD))
        except OSError:
            return False
    return True


@pytest.fixture(params=["pinned", "unpinned"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a pidfd of the socket, where the kernel has it, and without; any process that is read is in a unit."""
    monkeypatch.setattr(kernel_identity, "units_in", lambda text: ("x.service" if text else "nothing was read", ""))
    if request.param == "pinned" and not gives_pidfds():
        pytest.skip("this kernel gives no pidfd of a socket's other end")
    if request.param == "unpinned":
        monkeypatch.setattr(kernel_identity, "_SO_PEERPIDFD", NO_OPTION)
    return str(request.param)


def test_of_this_process() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = credentials_of(ours)
    assert (found.pid, found.uid, found.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert found.groups == tuple(sorted(os.getgroups()))
    assert (found.unit, found.user_unit) == units_in(Path("/proc/self/cgroup").read_bytes())


def test_a_process_that_lives_is_in_its_unit(way: str) -> None:
    before = os.listdir("/proc/self/fd")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials_of(ours).unit == "x.service"
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_has_ended_is_in_none(way: str, reaped: bool) -> None:
    """Its number may be another's by now."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0ipcbus-test-{os.getpid()}-{way}-{reaped}")
        listener.listen()
        pid = os.fork()
        if not pid:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(listener.getsockname())
                os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        accepted, _ = listener.accept()
        with accepted:
            found = credentials_of(accepted)
        if not reaped:
            os.waitpid(pid, 0)
    assert (found.pid, found.uid) == (pid, os.getuid())
    if reaped or way == "pinned":
        assert (found.unit, found.user_unit) == ("", "")


def test_without_a_pidfd_another_start_or_uid_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_identity, "units_in", lambda text: ("x.service", ""))
    pid, uid = os.getpid(), os.getuid()
    assert kernel_identity._units_unpinned(pid, uid) == ("x.service", "")
    assert kernel_identity._units_unpinned(pid, uid + 1) == ("", "")
    starts = iter([b"100", b"101"])
    monkeypatch.setattr(kernel_identity, "_start_time", lambda pid: next(starts))
    assert kernel_identity._units_unpinned(pid, uid) == ("", "")


def test_the_start_time_is_read_behind_a_name_with_parentheses(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = b"7 (a) b (c) S " + b" ".join(b"%d" % number for number in range(4, 53))
    monkeypatch.setattr(kernel_identity, "_read", lambda pid, name: stat)
    assert kernel_identity._start_time(7) == b"22"


class Socket:
    """The options of a socket whose other end is as one likes."""

    def __init__(self, ucred: tuple[int, int, int], pidfd: int = errno.ENOPROTOOPT) -> None:
        self.ucred = ucred
        self.pidfd = pidfd
        self.asked: list[int] = []

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        self.asked.append(option)
        if option == socket.SO_PEERCRED:
            return struct.pack("iII", *self.ucred)
        if option == kernel_identity._SO_PEERGROUPS:
            return struct.pack("3I", 9, 4_000_000_000, 7)
        raise OSError(self.pidfd, os.strerror(self.pidfd))


@pytest.mark.parametrize("count", [0, 256, IDENTITY_GROUPS - 1, IDENTITY_GROUPS, IDENTITY_GROUPS + 1, 65_536])
def test_of_very_many_groups_the_lowest_count(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(level: int, option: int, size: int) -> bytes:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))

    sock: Any = Socket((0, 0, 0))
    ucred, sock.getsockopt = sock.getsockopt, lambda *option: (ucred if option[1] == socket.SO_PEERCRED else too_many)(*option)
    monkeypatch.setattr(kernel_identity, "_many_groups", lambda sock: struct.pack(f"{count}I", *range(count)))
    assert credentials_of(sock).groups == tuple(range(min(count, IDENTITY_GROUPS)))


def test_who_is_in_another_pid_namespace_is_in_no_unit(way: str) -> None:
    sock: Any = Socket((0, 65534, 4_294_967_294))
    found = credentials_of(sock)
    assert (found.pid, found.uid, found.gid, found.unit) == (0, 65534, 4_294_967_294, "")
    assert found.groups == (7, 9, 4_000_000_000)
    assert kernel_identity._SO_PEERPIDFD not in sock.asked


@pytest.mark.parametrize("gone", [errno.ESRCH, errno.EINVAL, errno.ENODATA])
def test_who_has_gone_already_is_in_no_unit(gone: int, way: str) -> None:
    sock: Any = Socket((os.getpid(), os.getuid(), 0), gone)
    assert credentials_of(sock).unit == ""


@pytest.mark.parametrize("want", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_who_cannot_be_looked_at_for_want_of_something_is_nobody(want: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a peer in no unit: that could be what somebody wants who is denied something by his unit."""
    sock: Any = Socket((os.getpid(), os.getuid(), 0), want)
    with pytest.raises(OSError, match=os.strerror(want)):
        credentials_of(sock)

    def fail(*arguments: Any) -> int:
        raise OSError(want, os.strerror(want))

    sock = Socket((os.getpid(), os.getuid(), 0))
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match=os.strerror(want)):
        credentials_of(sock)


def test_proc_that_hides_others_tells_of_no_unit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_identity, "units_in", units_in)

    def hidden(*arguments: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", hidden)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials_of(ours).unit == ""


class Accepting:
    """A listener at which *sock* waits."""

    transport, address = "unix", "unix:/somewhere"

    def __init__(self, *waiting: socket.socket) -> None:
        self.sock = self
        self.waiting = [*waiting]

    def accept(self) -> tuple[socket.socket, str]:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(0), ""


def test_who_cannot_be_looked_at_is_told_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them; who comes when there is a descriptor again is let in."""
    real = admission_module.credentials_of
    failures = [1, 1]

    def fail_twice(sock: socket.socket) -> Credentials:
        if failures:
            failures.pop()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(sock)

    monkeypatch.setattr(admission_module, "credentials_of", fail_twice)
    pairs = [socket.socketpair() for _ in range(3)]
    bench.ours += [ours for ours, _ in pairs]
    listener: Any = Accepting(*(theirs for _, theirs in pairs))
    admission = Admission(bench.broker, bench.loop)
    admission.accept(listener, time.monotonic())
    for ours, _ in pairs[:2]:
        (bye,) = frames(ours)
        assert (bye.kind, bye.elements[2]) == (Kind.BYE, Code.TOO_MANY_PEERS)
        assert "find out who this is" in bye.elements[3]
        assert "LimitNOFILE" in bye.elements[3]
    assert frames(pairs[2][0]) == []
    pairs[2][0].sendall(HELLO)
    bench.run()
    assert [frame.kind for frame in frames(pairs[2][0])] == [Kind.WELCOME]
    admission.close()


def test_a_kernel_that_tells_no_groups_lets_nobody_in_and_the_bus_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log once, for who waits each time: before Linux 4.13 there is no connection."""
    monkeypatch.setattr(kernel_identity, "_SO_PEERGROUPS", NO_OPTION)
    pairs = [socket.socketpair() for _ in range(2)]
    bench.ours += [ours for ours, _ in pairs]
    listener: Any = Accepting(*(theirs for _, theirs in pairs))
    admission = Admission(bench.broker, bench.loop)
    admission.accept(listener, time.monotonic())
    for ours, _ in pairs:
        (bye,) = frames(ours)
        assert (bye.kind, bye.elements[2]) == (Kind.BYE, Code.INTERNAL)
        assert "Linux 4.13" in bye.elements[3]
    (line,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "Linux 4.13" in line.getMessage()
    admission.close()
