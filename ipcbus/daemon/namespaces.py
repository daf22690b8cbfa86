"""Whether what the kernel tells us of others is true of this machine: not in a user namespace that maps only some uids, and not of units
where /proc hides the processes of others.

In such a namespace the kernel says 65534 of everybody whom it has no number for, so a rule about a uid could mean anybody. Where /proc
hides others nobody is in a unit, so a rule that denies something to one would let it through.
"""

from __future__ import annotations

import os

UNKNOWN_UID = 65534  #: what everybody is whom a namespace has no number for (/proc/sys/kernel/overflowuid)

_IDS = 2**32 - 1  #: uids and gids are 0 to 4294967294; 4294967295 is nobody's


def covers_all(id_map: str) -> bool:
    """Whether *id_map*, as /proc/PID/uid_map has it (first id inside, first outside, how many), has every id."""
    known = 0
    for first, count in sorted((int(line.split()[0]), int(line.split()[2])) for line in id_map.splitlines()):
        if first > known:
            return False
        known = max(known, first + count)
    return known >= _IDS


def maps_some_only() -> str | None:
    """Which ids this process knows only in part: "uids", "gids", "uids and gids"; None where it knows all, or nobody can tell."""
    partly = [f"{what}s" for what in ("uid", "gid") if not _covers_all_of(f"/proc/self/{what}_map")]
    return " and ".join(partly) or None


def _covers_all_of(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return covers_all(file.read())
    except OSError:  # no /proc, or a kernel without user namespaces
        return True


def hides_others(proc: str = "/proc") -> bool:
    """Whether /proc does not show this process what it shows of others otherwise (hidepid=, systemd's ProtectProc=)."""
    if not os.path.exists(f"{proc}/self/cgroup"):
        return False  # no /proc, or a kernel without cgroups, and so without units
    try:
        with open(f"{proc}/1/cgroup", "rb"):
            return False
    except OSError:
        return True
