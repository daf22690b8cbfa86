"""What an asyncio `Bus` hands out for what comes in: subscriptions, the inbox. Same names in the same order as _blocking_streams.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._aio_border import is_ours, pull
from ._calls import Call
from ._current import enter
from ._errors import Closed, Timeout
from ._lanes import GRANT_S, Lane
from ._log import log_exception
from ._loop_wire import Waiters, wake
from ._message import Message
from ._names import check_timeout
from ._state import State
from ._turns import Key, Turns

if TYPE_CHECKING:
    from ._aio_base import BusBase

#: Callbacks of one subscription that run before other tasks get a turn.
_TURN = 100


class Subscription:
    """A subscription's messages: ``async for message in subscription``, or get(). Ends when it or the bus is closed. Several tasks share
    the messages.
    """

    def __init__(
        self,
        bus: BusBase,
        lane: Lane,
        callback: Callable[[Message], Any] | None,
        *,
        concurrency: int = 1,
        key: Key | None = None,
        errors: str = "log",
    ) -> None:
        self._bus = bus
        self._lane = lane
        self._callback = callback
        self._raises = errors == "raise"
        self._turns: Turns | None = None
        self._waiters: Waiters = []
        self._popleft = lane.messages.popleft
        self._grouped = lane.group is not None
        self._calling = False
        self._granted_at = 0.0
        self._given = 0  #: group: messages handed out; the oldest counts as handled when the next is asked for
        # (what is iterated must not hold the bus object, which shall be closed when nobody else has it; a callback is a use of it)
        if callback is None:
            lane.notify = partial(wake, self._waiters)
        else:
            if concurrency > 1:
                self._turns = Turns(lane.messages, concurrency, key, lane)
            lane.notify = self._schedule if self._turns is None else self._look
            bus._callers.add(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Message:
        if not self._grouped:
            try:
                return self._popleft()
            except IndexError:
                pass
        try:
            return await self._next(None)
        except Closed:
            if self._lane.error is None:
                raise StopAsyncIteration from None
            raise

    async def get(self, timeout: float | None = None) -> Message:
        """The next message. Raises Timeout after *timeout* seconds (None: never), Closed or what ended the subscription when there is
        nothing more to come. With notices also a Lost or a Reconnected, as iteration and callbacks have them.
        """
        if timeout is None:
            return await self._next(None)
        check_timeout(timeout)
        return await self._next(self._bus._loop.time() + timeout)

    async def close(self) -> None:
        """End it: unsubscribe. What was received already can still be taken. Idempotent.

        Raises Timeout where the bus does not answer within the connect timeout; it has ended all the same. An ``async with`` that
        an exception leaves does not wait for the answer.
        """
        bus, call = self._bus, self._leave()
        if bus._session.state is State.CONNECTED:
            await bus._settled(call)

    @property
    def pattern(self) -> str:
        """The pattern subscribed to."""
        return self._lane.pattern

    @property
    def group(self) -> str | None:
        """The group it is a member of."""
        return self._lane.group

    @property
    def lost(self) -> int:
        """Messages that were dropped because this program was too slow, as far as they could be counted."""
        return self._lane.lost

    @property
    def gaps(self) -> int:
        """Reconnections since it was made; at each one messages may have been missed, which nobody could count."""
        return self._lane.gaps

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._lane.closed

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._leave()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._lane.pattern!r}>"

    # --- inside ---

    def _leave(self) -> Call | None:
        """End it; the answer of the bus, where it has to be told, is nothing that must be waited for."""
        bus = self._bus
        call = bus._session.declarations.withdraw("subscribe", self._lane.number)
        self._lane.close()
        bus._wire.push()
        return call

    async def _next(self, deadline: float | None) -> Message:
        lane, bus = self._lane, self._bus
        if self._given:
            self._given -= 1
            lane.handled()
        self._grant()
        if not lane.messages and not await bus._wire.wait(lambda: lane.messages or lane.closed, self._waiters, deadline):
            raise Timeout(f"no message on {lane.pattern!r} in time", who=lane.pattern, what="get")
        if not lane.messages:
            raise lane.ended()
        self._given += self._grouped
        return self._popleft()

    def _grant(self) -> None:
        """Renew the credit where it is worth a frame, and send that."""
        bus, lane = self._bus, self._lane
        now = bus._loop.time()
        if bus._session.grant(lane, idle=not lane.messages or now - self._granted_at > GRANT_S):
            self._granted_at = now
            bus._wire.push()

    def _schedule(self) -> None:
        if not self._calling and self._lane.messages:
            self._calling = True
            self._bus._spawn(self._call_back(), f"callback of {self!r}")

    async def _call_back(self) -> None:
        """A task while there are messages: callbacks, one after the other, with turns for others."""
        lane, callback = self._lane, self._callback
        assert callback is not None
        enter(None)
        count = 0
        try:
            while lane.messages:
                message = self._popleft()
                try:
                    result = callback(message)
                    if result is not None and hasattr(result, "__await__"):
                        await result
                except BaseException as error:  # the border to user code: one message's trouble is not the next one's
                    if is_ours(error):
                        self._bus._loop.call_soon(self._schedule)  # who cancelled this task meant this message, not those after it
                        raise
                    self._failed(error)
                    if isinstance(error, KeyboardInterrupt):  # it is the program's; where that goes on, so does this
                        self._bus._loop.call_soon(self._schedule)
                        raise
                if self._grouped:
                    lane.handled()
                    self._grant()
                count += 1
                if count % _TURN == 0:
                    self._grant()
                    await asyncio.sleep(0)
        finally:
            self._calling = False
        self._grant()

    def _look(self) -> None:
        """Something came for what has a concurrency, or there is room again."""
        if not self._calling:
            self._calling = True
            self._bus._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Begin what may."""
        turns = self._turns
        assert turns is not None
        self._calling = False
        while turns.can_begin and not self._bus._ended:
            if turns.can_pull and (error := pull(turns)) is not None:
                self._failed(error)
                self._handled()
                if isinstance(error, KeyboardInterrupt):
                    self._look()
                    raise error
            turn = turns.begin()
            if turn is not None:
                token, message = turn
                task = self._bus._spawn(self._call(message), f"callback of {self!r}")
                task.add_done_callback(partial(self._end, token))

    async def _call(self, message: Message) -> None:
        """The task of one message."""
        enter(None)
        assert self._callback is not None
        try:
            result = self._callback(message)
            if result is not None and hasattr(result, "__await__"):
                await result
        except BaseException as error:  # the border to user code
            if is_ours(error):
                raise
            self._failed(error)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            self._handled()

    def _end(self, token: Any, task: object) -> None:
        assert self._turns is not None
        self._turns.end(token)
        self._begin()

    def _handled(self) -> None:
        if self._grouped:
            self._lane.handled()
        self._grant()

    def _drop(self) -> int:
        """Nothing more begins; returns how many messages that leaves."""
        if self._turns is not None:
            return self._turns.clear()
        count = len(self._lane.messages)
        self._lane.messages.clear()
        return count

    def _failed(self, error: BaseException) -> None:
        session = self._bus._session
        session.counters["handler_errors"] += 1
        log_exception(f"callback of {self!r} raised {type(error).__name__}", error)
        if self._raises:
            session.user_raised(error)


class Inbox(Subscription):
    """The direct messages to this program, used as a subscription is. ``lost`` counts what came while it was full."""

    async def close(self) -> None:
        """End it: direct messages are counted and dropped from now on. Idempotent."""
        self._lane.close()
