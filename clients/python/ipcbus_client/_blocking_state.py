"""``bus.state`` of a blocking `Bus`. The same names in the same order as _aio_state.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._errors import Timeout
from ._log import log_exception
from ._names import check_callback, check_timeout
from ._state import State, StateFeed, StateView, wanted_states
from ._waiter import Waiter

if TYPE_CHECKING:
    from ._blocking_base import BusBase


class BusState(StateView):
    """Where the bus object stands: ``connecting``, ``connected``, ``reconnecting`` or ``closed``. It is equal to that str. Thread-safe."""

    def wait_for(self, value: str | Iterable[str], timeout: float | None = None) -> str:
        """Wait until the state is *value*, or one of several; returns which. One that it has now counts, and one that it had only for a
        moment.

        Raises Timeout after *timeout* seconds (None: never), ValueError for what is no state, and, when the bus is closed and that was
        not waited for, what ended it, or Closed.
        """
        wanted = wanted_states(value)
        check_timeout(timeout)
        deadline = None if timeout is None else self._bus._now() + timeout
        with self.changes() as changes:
            while True:
                state = changes._take(deadline)
                if state is None:
                    text = f"the bus was not {' or '.join(sorted(wanted))} within {timeout:g} s; it is {self.value}"
                    raise Timeout(text, who=self._bus._address, what="wait_for")
                if state in wanted:
                    return state
                if state == State.CLOSED.value:
                    self._bus._session.check_open()

    def on_change(self, callback: Callable[[str], Any]) -> StateHandle:
        """Have ``callback(value)`` called for every change from now on, in order, on the bus's worker thread. What it raises is logged.
        One that hangs misses the oldest of more than 1000 changes.
        """
        return StateHandle(self._bus, callback)

    def changes(self) -> StateChanges:
        """An iterator over the state now and then every change, in order; it ends after ``closed``. Of more than 1000 changes that were
        not looked at the oldest are dropped.
        """
        return StateChanges(self._bus)


class StateHandle:
    """A callback of on_change(). close() ends it."""

    def __init__(self, bus: BusBase, callback: Callable[[str], Any]) -> None:
        check_callback(callback, "callback of on_change()")
        self._bus = bus
        self._callback = callback
        with bus._lock:
            bus._session.check_open()
            bus._worker.start()
            self._feed = bus._session.watch_state(StateFeed())
            self._feed.notify = self._schedule
            bus._state_handles.add(self)

    def close(self) -> None:
        """No more calls; one that runs goes on to its end. Idempotent."""
        with self._bus._lock:
            self._feed.close()
            self._bus._state_handles.discard(self)

    def _schedule(self) -> None:
        if self._feed.changes:
            self._bus._worker.add(self._call_back)

    def _call_back(self) -> None:
        """On the worker: one change."""
        with self._bus._lock:
            value = self._feed.changes.popleft() if self._feed.changes else None
        if value is not None:
            try:
                self._callback(value)
            except BaseException as error:  # noqa: BLE001  # the border to user code: one change's trouble is not the next one's
                self._bus._session.counters["handler_errors"] += 1
                log_exception(f"callback of {BusState(self._bus)!r} raised {type(error).__name__}", error)


class StateChanges:
    """The iterator of changes()."""

    def __init__(self, bus: BusBase) -> None:
        self._bus = bus
        self._waiters: list[Waiter] = []
        with bus._lock:
            self._feed = bus._session.watch_state(StateFeed(bus._session.state))
            self._feed.notify = self._notify

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        value = self._take(None)
        if value is None:
            raise StopIteration
        return value

    def close(self) -> None:
        """End it, also for who waits in it. Idempotent."""
        with self._bus._lock:
            self._feed.close()

    def __enter__(self) -> StateChanges:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, deadline: float | None) -> str | None:
        """The next value; None at the end or the deadline."""
        feed = self._feed
        with self._bus._lock:
            if not feed.changes and not feed.ended:
                waiter = Waiter()
                self._waiters.append(waiter)
                try:
                    self._bus._wire.wait(lambda: feed.changes or feed.ended, waiter, deadline)
                finally:
                    self._waiters.remove(waiter)
            return feed.changes.popleft() if feed.changes else None

    def _notify(self) -> None:
        for waiter in self._waiters:
            waiter.wake()
