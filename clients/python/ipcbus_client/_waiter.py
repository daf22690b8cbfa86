"""One thread that waits, seen from those who wake it."""

from __future__ import annotations

import _thread
import os
import threading

IDLE, LEADING, FOLLOWING = range(3)


class Waiter:
    """A thread's wait: it leads (is in poll() with the socket), follows (sleeps on a lock of its own), or runs. ``wake`` is what it gives
    to what it waits for.

    Everything but sleep() happens under the lock of the bus.
    """

    __slots__ = ("_gate", "fd", "state", "thread")

    def __init__(self) -> None:
        self.state = IDLE
        self.thread = 0  #: who leads
        self.fd = -1  #: an eventfd in the poll() of the leader
        self._gate: _thread.LockType | None = None

    def wake(self) -> None:
        """Have it look again."""
        if self.state == LEADING:
            os.eventfd_write(self.fd, 1)
        elif self.state == FOLLOWING and self._gate is not None:
            self.state = IDLE
            self._gate.release()

    def follow(self) -> None:
        """It is about to sleep()."""
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self.state = FOLLOWING

    def sleep(self, timeout: float | None) -> None:
        """Sleep until woken or *timeout* seconds passed; not under the lock."""
        assert self._gate is not None
        self._gate.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
