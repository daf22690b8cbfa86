"""Gives memory back to the kernel when what waited for slow readers has gone.

Owns the question whether that is worth it. What waits is in blocks of all sizes among others that live on, so when it is freed most of it
stays with the process, as holes: after a hundred megabytes of a crowd that did not read, for as long as the daemon runs. glibc can give
the holes back, but has to walk over them, so it is asked only after something waited, and rarely. Elsewhere nothing happens.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from .limits import RECLAIM_AFTER_S, RECLAIM_BYTES

log = logging.getLogger("ipcbus.daemon")


class Reclaim:
    """Told when something waits, or has gone, it looks a while later, and again while anything waits."""

    __slots__ = ("_at", "_floor_bytes", "_pending", "_waiting_bytes")

    def __init__(self, at: Callable[[float, Callable[[float], None]], None], waiting_bytes: Callable[[], int]) -> None:
        self._at = at  #: the loop's timers
        self._waiting_bytes = waiting_bytes  #: how much waits for all peers
        self._pending = False
        self._floor_bytes = resident_bytes()  #: what the process needs when nothing waits, as of the last time

    def look_later(self, now: float) -> None:
        """Where something began to wait for a reader, or a peer has gone. Cheap."""
        if not self._pending:
            self._pending = True
            self._at(now + RECLAIM_AFTER_S, self._look)

    def _look(self, now: float) -> None:
        self._pending = False
        waiting = self._waiting_bytes()
        if waiting:
            self.look_later(now)
        before = resident_bytes()
        if before - waiting - self._floor_bytes < RECLAIM_BYTES:
            return
        trim_heap()
        after = resident_bytes()
        self._floor_bytes = max(after - waiting, 0)
        log.debug("gave %d KiB of memory back, %d KiB are left", (before - after) // 1024, after // 1024)


def resident_bytes() -> int:
    """The memory that this process has in RAM; 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim_heap() -> None:
    """malloc_trim(3), where the C library has it."""
    import ctypes  # here: most daemons never need it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
