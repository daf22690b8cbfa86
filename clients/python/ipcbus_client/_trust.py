"""What this program believes: its environment, files that others may have made, and who listens on a Unix socket.

A program that runs with rights which whoever started it does not have (set-user-ID, set-group-ID, file capabilities) believes nothing of
its environment: it would ask for a bus that another one chose for it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping

from ipcbus.protocol.addresses import SYSTEM_RUNTIME_DIR

_AUXILIARY = struct.Struct("@LL")  # of elf.h: type, value
_AT_SECURE = 23


def environment() -> Mapping[str, str]:
    """The environment, as far as it is believed."""
    return {} if is_privileged() else os.environ


def is_privileged() -> bool:
    """Whether this process has rights that whoever started it may not have."""
    return os.geteuid() != os.getuid() or os.getegid() != os.getgid() or started_with_more("/proc/self/auxv")


def started_with_more(path: str) -> bool:
    """Whether the kernel gave this program more rights when it was started (AT_SECURE of the auxiliary vector in *path*), also where it
    has given them up since. Where that cannot be known it is so.
    """
    try:
        with open(path, "rb") as file:
            vector = file.read()
        return bool(dict(_AUXILIARY.iter_unpack(vector)).get(_AT_SECURE, 0))
    except OSError:
        return _libc_says_more()  # without /proc, or of a process that was root's and became another user's: that shows it to root only
    except struct.error:
        return True


def _libc_says_more() -> bool:
    try:
        import ctypes  # here: it takes longer than all of a short program's connection

        return bool(ctypes.CDLL(None).getauxval(ctypes.c_ulong(_AT_SECURE)))
    except (ImportError, OSError, AttributeError):
        return True


def trusted_uids(path: str) -> frozenset[int]:
    """Who may listen on the Unix socket at *path*: we, root, the user that $IPCBUS_BUS_UID names, and on the system bus's the user to whom
    root gave its directory.
    """
    named = environment().get("IPCBUS_BUS_UID", "")
    trusted = {0, os.geteuid()}
    if named.isdecimal() and named.isascii():
        trusted.add(int(named))
    if os.path.dirname(path) == SYSTEM_RUNTIME_DIR and (owner := given_by_root(SYSTEM_RUNTIME_DIR)) is not None:
        trusted.add(owner)
    return frozenset(trusted)


def given_by_root(directory: str) -> int | None:
    """The owner of *directory* where only root can have chosen it: what it lies in is root's, and others write to neither. Else None."""
    try:
        above, here = os.lstat(os.path.dirname(directory)), os.lstat(directory)
    except OSError:
        return None
    closed = all(stat.S_ISDIR(each.st_mode) and not each.st_mode & 0o022 for each in (above, here))
    return here.st_uid if closed and above.st_uid == 0 else None
