"""``bus.state`` of an asyncio `Bus`. The same names in the same order as _blocking_state.py."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._errors import Timeout
from ._log import log_exception
from ._loop_wire import Waiters, wake
from ._names import check_callback, check_timeout
from ._state import State, StateFeed, StateView, wanted_states

if TYPE_CHECKING:
    from ._aio_base import BusBase


class BusState(StateView):
    """Where the bus object stands: ``connecting``, ``connected``, ``reconnecting`` or ``closed``. It is equal to that str."""

    async def wait_for(self, value: str | Iterable[str], timeout: float | None = None) -> str:
        """Wait until the state is *value*, or one of several; returns which. One that it has now counts, and one that it had only for a
        moment.

        Raises Timeout after *timeout* seconds (None: never), ValueError for what is no state, and, when the bus is closed and that was
        not waited for, what ended it, or Closed.
        """
        wanted = wanted_states(value)
        check_timeout(timeout)
        deadline = None if timeout is None else self._bus._loop.time() + timeout
        async with self.changes() as changes:
            while True:
                state = await changes._take(deadline)
                if state is None:
                    text = f"the bus was not {' or '.join(sorted(wanted))} within {timeout:g} s; it is {self.value}"
                    raise Timeout(text, who=self._bus._address, what="wait_for")
                if state in wanted:
                    return state
                if state == State.CLOSED.value:
                    self._bus._session.check_open()

    def on_change(self, callback: Callable[[str], Any]) -> StateHandle:
        """Have ``callback(value)``, a plain function, called for every change from now on, in order, by the event loop. What it raises is
        logged. Raises TypeError for a coroutine function: for that there is changes().
        """
        return StateHandle(self._bus, callback)

    def changes(self) -> StateChanges:
        """An asynchronous iterator over the state now and then every change, in order; it ends after ``closed``. Of more than 1000 changes
        that were not looked at the oldest are dropped. Cancelling loses none.
        """
        return StateChanges(self._bus)


class StateHandle:
    """A callback of on_change(). close() ends it."""

    def __init__(self, bus: BusBase, callback: Callable[[str], Any]) -> None:
        if inspect.iscoroutinefunction(callback):
            raise TypeError("on_change() takes a plain function; a coroutine can iterate over changes()")
        check_callback(callback, "callback of on_change()")
        self._bus = bus
        self._callback = callback
        bus._session.check_open()
        self._feed = bus._session.watch_state(StateFeed())
        self._feed.notify = self._schedule
        bus._state_handles.add(self)

    def close(self) -> None:
        """No more calls. Idempotent."""
        self._feed.close()
        self._bus._state_handles.discard(self)

    def _schedule(self) -> None:
        if self._feed.changes and not self._bus._loop.is_closed():
            self._bus._loop.call_soon(self._call_back)

    def _call_back(self) -> None:
        """From the loop: one change."""
        value = self._feed.changes.popleft() if self._feed.changes else None
        if value is not None:
            try:
                self._callback(value)
            except Exception as error:  # noqa: BLE001  # the border to user code: one change's trouble is not the next one's
                self._bus._session.counters["handler_errors"] += 1
                log_exception(f"callback of {BusState(self._bus)!r} raised {type(error).__name__}", error)


class StateChanges:
    """The iterator of changes()."""

    def __init__(self, bus: BusBase) -> None:
        self._bus = bus
        self._waiters: Waiters = []
        self._feed = bus._session.watch_state(StateFeed(bus._session.state))
        self._feed.notify = self._notify

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        value = await self._take(None)
        if value is None:
            raise StopAsyncIteration
        return value

    async def close(self) -> None:
        """End it, also for who waits in it. Idempotent."""
        self._feed.close()

    async def __aenter__(self) -> StateChanges:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _take(self, deadline: float | None) -> str | None:
        """The next value; None at the end or the deadline."""
        feed = self._feed
        while not feed.changes and not feed.ended:
            if not await self._bus._wire.wait(lambda: feed.changes or feed.ended, self._waiters, deadline):
                return None
        return feed.changes.popleft() if feed.changes else None

    def _notify(self) -> None:
        wake(self._waiters)
