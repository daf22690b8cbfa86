"""Whether the bus still lives, where its connection does not say (a daemon that is stopped, or hangs). Part of the session: same lock, no
I/O, time comes in.

The client asks, so that an idle bus wakes nobody: when something is awaited of the bus and nothing came from it for BUSY_S, or after
IDLE_S without a word, a PING. Without any sign of life for BUSY_S after that the connection is given up as dead. Whatever comes counts: the
session's counter of frames is compared at each tick, and reading costs nothing more. The PONG also confirms what was published before.

Who was away itself (stopped by a signal, asleep with the machine, in a loop of its own) has no right to judge: when a tick comes much later
than it was asked for, everything starts over. And what waits in the socket, unread, is a sign of life too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._session import Session

#: Silence before a PING where something is awaited, and after a PING before the end: far above what a busy machine makes of a moment.
BUSY_S = 10.0
#: The same where nothing is awaited: of 100 idle clients the daemon hears less than once a second.
IDLE_S = 120.0
#: The least that may be asked for: below it is a busy loop.
LEAST_S = 0.05
#: A tick that is late by this part of the interval is of a program that was away.
_LATE = 0.5


class Heartbeat:
    """The heartbeat of one session, over all its connections. *interval_s*: None is BUSY_S and IDLE_S, 0 is none, else it is for both."""

    def __init__(self, session: Session, interval_s: float | None) -> None:
        self._session = session
        self._busy_s = BUSY_S if interval_s is None else interval_s
        self._idle_s = IDLE_S if interval_s is None else interval_s
        self.begin()

    def begin(self) -> None:
        """A new connection."""
        self._due: float | None = None  #: the next look; None: not begun
        self._asked = False  #: a PING is out, and nothing came since
        self._seen = -1  #: frames that had come at the last sign of life
        self._seen_at = 0.0  #: when that was noticed

    def tick(self, now: float, unread: Callable[[], bool]) -> float | None:
        """Look, and return when to look again (None: never). May put a PING into the outbox, or set the session's ``hangup``. *unread* says
        whether bytes wait in the socket.
        """
        session = self._session
        if not self._busy_s:
            return None
        if self._due is not None and now < self._due:
            return self._due
        received = session.counters["received"]
        late = self._due is not None and now - self._due > self._busy_s * _LATE
        if self._due is None or late or received != self._seen or (self._asked and unread()):
            self._seen, self._seen_at, self._asked = received, now, False
        elif self._asked:
            session.hangup = f"no sign of life from the bus for {now - self._seen_at:.3g} s; is it stopped?"
            return None
        elif now - self._seen_at >= self._idle_s or session.awaits():
            session.ping()
            self._asked = True
        self._due = now + self._busy_s
        return self._due
