"""What the kernel lets this process have: file descriptors, one for each connection, and the memory that it uses.

Owns the process's limits. Must not know who needs what.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource

from .limits import DESCRIPTORS_SPARE, DESCRIPTORS_USED

log = logging.getLogger("ipcbus.daemon")

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the kernel gives without asking anybody: the soft limit is meant for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("cannot have more than %d file descriptors: %s", soft, error)
    log.info("file descriptors: %d (one for each connection; ulimit -Hn, LimitNOFILE= raise it)", max_descriptors())


def keep_memory_out_of_core_dumps() -> None:
    """Have the kernel write none of this process's memory to disk when it crashes: there is a secret in it, and messages of others.

    Unlike the process being not dumpable at all (prctl), it can look at itself in /proc still.
    """
    try:
        with open("/proc/self/coredump_filter", "w") as file:
            file.write("0")
    except OSError as error:
        why = "a core dump of this process would show its secrets: no other than root may read it, or have none (ulimit -c 0, LimitCORE=0)"
        log.warning("cannot keep memory out of core dumps (/proc/self/coredump_filter: %s): %s", error.strerror, why)


def max_descriptors() -> int:
    """How many file descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def room_for_connections() -> int:
    """How many connections this process has file descriptors for, beside those that it has open and a few to work with."""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        used = DESCRIPTORS_USED
    return max(max_descriptors() - used - DESCRIPTORS_SPARE, 1)


class Gauges:
    """For `stats`: what this process may have, and what it has. The file stays open, for there may be no descriptor to open it later."""

    __slots__ = ("_statm",)

    def __init__(self) -> None:
        try:
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._statm = None  # no /proc

    def __call__(self) -> dict[str, int]:
        found = {"max_fds": max_descriptors()}
        if self._statm is not None:
            with contextlib.suppress(OSError):
                found["memory_bytes"] = int(os.pread(self._statm, 200, 0).split()[1]) * _PAGE_BYTES
        return found

    def close(self) -> None:
        """Idempotent."""
        statm, self._statm = self._statm, None
        if statm is not None:
            with contextlib.suppress(OSError):
                os.close(statm)
