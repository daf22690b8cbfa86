"""``--exit-idle``: a bus that nobody uses ends itself.

Owns when. Must not know how (the lifecycle stops). A busy bus looks once per period and not at each connection; the time counts from when
the last one was closed, or from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Clockwork(Protocol):
    """What of the loop matters here."""

    @property
    def empty_since(self) -> float | None:
        """When the last connection was closed, or the loop was made; None while there are some."""

    def at(self, when: float, callback: Callable[[float], None]) -> None:
        """Call *callback* with the time, once, after *when*."""


class IdleExit:
    """Calls *leave* with the time when nobody was connected for the period that was set."""

    def __init__(self, loop: Clockwork, leave: Callable[[float], None]) -> None:
        self._loop = loop
        self._leave = leave
        self._idle_s: float | None = None
        self._round = 0  #: a look of an earlier setting is not one of ours

    def set(self, idle_s: float | None, now: float) -> None:
        """Leave after *idle_s* seconds; None: never."""
        self._idle_s = idle_s
        self._round += 1
        self._look(now, self._round)

    def _look(self, now: float, number: int) -> None:
        idle_s, since = self._idle_s, self._loop.empty_since
        if idle_s is None or number != self._round:
            return
        due = (now if since is None else since) + idle_s
        if since is not None and now >= due:
            self._leave(now)
        else:
            self._loop.at(due, lambda when: self._look(when, number))
