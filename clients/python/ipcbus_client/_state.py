"""Where a bus object stands, and how those who watch that learn of each change, in order. Part of the session: same lock, no I/O."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

#: Changes that wait for one who watches; of who does not look for so many the oldest are dropped.
CHANGES_MAX = 1000


class State(enum.Enum):
    """Where the bus object stands; the value is what ``bus.state.value`` says."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class StateFeed:
    """The changes that one watcher has not seen yet. The session keeps it no longer than the watcher does."""

    __slots__ = ("__weakref__", "changes", "ended", "notify")

    def __init__(self, *present: State) -> None:
        self.changes: deque[str] = deque((state.value for state in present), CHANGES_MAX)
        self.ended = State.CLOSED in present  #: no more will come
        self.notify: Callable[[], None] | None = None  #: told of each change, and of the end

    def put(self, state: State) -> None:
        """The state is *state* now."""
        if not self.ended:
            self.changes.append(state.value)
            self.ended = state is State.CLOSED
            if self.notify is not None:
                self.notify()

    def close(self) -> None:
        """The watcher wants no more, not even what is here."""
        self.changes.clear()
        self.ended = True
        if self.notify is not None:
            self.notify()


class StateView:
    """The part of ``bus.state`` that waits for nothing."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus

    @property
    def value(self) -> str:
        """The state now."""
        state: State = self._bus._session.state
        return state.value

    def __eq__(self, other: object) -> bool:
        """A str is compared with the value, so that ``bus.state == "connected"`` is what it looks like."""
        if isinstance(other, str):
            return self.value == other
        return self._bus is other._bus if isinstance(other, StateView) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # what it is equal to changes

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"<BusState {self.value}>"


def wanted_states(value: str | Iterable[str]) -> frozenset[str]:
    """The states that wait_for() shall end at. Raises ValueError for what is none."""
    wanted = frozenset((value,) if isinstance(value, str) else value)
    known = {state.value for state in State}
    if not wanted or wanted - known:
        raise ValueError(f"wait_for {sorted(wanted)}: the states of a bus are {', '.join(sorted(known))}")
    return wanted
