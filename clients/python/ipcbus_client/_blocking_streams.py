"""What a blocking `Bus` hands out for what comes in: subscriptions, the inbox. Same names in the same order as _aio_streams.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._calls import Call
from ._errors import Timeout
from ._lanes import GRANT_S, Lane
from ._log import log_exception
from ._message import Message
from ._names import check_timeout
from ._state import State
from ._turns import Key, Turns
from ._waiter import Waiter
from ._worker import Line

if TYPE_CHECKING:
    from ._blocking_base import BusBase
    from ._calls import Call

#: Callbacks of one subscription that run before the worker looks at what else there is.
_TURN = 100


class Subscription:
    """A subscription's messages: ``for message in subscription``, or get(). Ends when it or the bus is closed. Thread-safe; several
    threads share the messages.

    Where a signal handler raises, get() and a member of a group lose no message. Iteration without a group may lose the one that is being
    handed over, as a ``for`` loop over any queue does.
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
        self._line: Line | None = None
        self._waiters: list[Waiter] = []
        self._scheduled = False
        self._granted_at = 0.0
        self._grouped = lane.group is not None
        self._given = False  #: group: get() handed out a message that counts as handled at the next
        # (what is iterated must not hold the bus object, which shall be closed when nobody else has it; a callback is a use of it)
        if callback is None:
            lane.notify = partial(_wake, self._waiters)
        else:
            if concurrency > 1:
                self._line = Line(Turns(lane.messages, concurrency, key, lane), self._call, self)
            lane.notify = self._schedule if self._line is None else self._look
            bus._worker.start()
            bus._callers.add(self)

    def __iter__(self) -> Iterator[Message]:
        messages = self._lane.messages
        popleft = messages.popleft
        if self._grouped:
            while self._more(None):
                message = self._take_next()
                if message is not None:
                    try:
                        yield message
                    finally:
                        self._handled()
            return
        while True:
            try:
                while True:
                    yield popleft()
            except IndexError:
                pass  # (what is raised while waiting has nothing to do with it)
            if not self._more(None):
                return

    def get(self, timeout: float | None = None) -> Message:
        """The next message. Raises Timeout after *timeout* seconds (None: never), Closed or what ended the subscription when there is
        nothing more to come. With notices also a Lost or a Reconnected, as iteration and callbacks have them.
        """
        deadline = None
        if timeout is not None:
            check_timeout(timeout)
            deadline = self._bus._now() + timeout
        if self._given:
            self._handled(given=True)
        while True:
            message = self._take_next()
            if message is not None:
                self._given = self._grouped
                return message
            if not self._more(deadline):
                if self._lane.closed:
                    raise self._lane.ended()
                raise Timeout(f"no message on {self._lane.pattern!r} in time", who=self._lane.pattern, what="get")

    def close(self) -> None:
        """End it: unsubscribe. What was received already can still be taken. Idempotent.

        Raises Timeout where the bus does not answer within the connect timeout; it has ended all the same. A ``with`` that an exception
        leaves does not wait for the answer.
        """
        bus = self._bus
        with bus._lock:
            call = self._leave()
            if bus._session.state is State.CONNECTED:
                bus._settled(call)

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

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._leave()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._lane.pattern!r}>"

    # --- inside ---

    def _leave(self) -> Call | None:
        """End it; the answer of the bus, where it has to be told, is nothing that must be waited for."""
        bus = self._bus
        with bus._lock:
            call = bus._session.declarations.withdraw("subscribe", self._lane.number)
            self._lane.close()
            bus._wire.push()
            return call

    def _take_next(self) -> Message | None:
        """The next message, where one is here."""
        messages = self._lane.messages
        message = None
        try:
            with self._bus._lock:
                if messages:
                    message = messages[0]  # no call until it is out: a signal handler would run after that
                    del messages[0]
            return message
        except BaseException:  # of a signal handler
            if message is not None:
                messages.appendleft(message)
            raise

    def _more(self, deadline: float | None) -> bool:
        """Wait for messages; False at the deadline or the end, which raises where the program did not want it."""
        lane, bus = self._lane, self._bus
        with bus._lock:
            if self._given:
                self._handled(given=True)
            bus._session.grant(lane, idle=not lane.messages)
            if not lane.messages and not lane.closed:
                waiter = Waiter()
                self._waiters.append(waiter)
                try:
                    bus._wire.wait(lambda: lane.messages or lane.closed, waiter, deadline)
                finally:
                    self._waiters.remove(waiter)
            if lane.messages:
                return True
            if lane.closed and lane.error is not None:
                raise lane.ended()
            return False

    def _handled(self, *, given: bool = False) -> None:
        """Group: one message was handled; with *given* the one that get() handed out, as the next is asked for."""
        bus = self._bus
        with bus._lock:
            self._lane.handled()
            if given:
                self._given = False  # (no call in between: a signal handler would run after that)
            now = bus._now()
            if bus._session.grant(self._lane, idle=now - self._granted_at > GRANT_S):
                self._granted_at = now
                bus._wire.push()

    def _schedule(self) -> None:
        if not self._scheduled and self._lane.messages:
            self._scheduled = True
            self._bus._worker.add(self._call_back)

    def _call_back(self) -> None:
        """On the worker: some callbacks, then let others have a turn."""
        callback, group = self._callback, self._lane.group
        assert callback is not None
        messages = self._lane.messages
        popleft = messages.popleft
        try:
            for _ in range(_TURN):
                message = popleft()
                try:
                    callback(message)
                except BaseException as error:  # noqa: BLE001  # the border to user code: one message's trouble is not the next one's
                    self._failed(error)
                if group is not None:
                    self._handled()
        except IndexError:
            pass  # no more are here
        with self._bus._lock:
            self._scheduled = False
            self._schedule()
            self._bus._session.grant(self._lane, idle=not messages)

    def _look(self) -> None:
        assert self._line is not None
        self._bus._worker.look(self._line)

    def _call(self, message: Message, failure: BaseException | None) -> None:
        """On a hand: one message of what has a concurrency."""
        bus, lane = self._bus, self._lane
        assert self._callback is not None
        try:
            if failure is not None:
                raise failure
            self._callback(message)
        except BaseException as error:  # noqa: BLE001  # the border to user code
            self._failed(error)
        if lane.group is not None:
            self._handled()
        elif not lane.messages or lane.held_bytes * 2 >= lane.window_bytes:
            with bus._lock:
                if bus._session.grant(lane, idle=not lane.messages):
                    bus._wire.push()

    def _drop(self) -> int:
        """Nothing more begins; returns how many messages that leaves."""
        if self._line is not None:
            return self._line.turns.clear()
        count = len(self._lane.messages)
        self._lane.messages.clear()
        return count

    def _failed(self, error: BaseException) -> None:
        session = self._bus._session
        session.counters["handler_errors"] += 1
        log_exception(f"callback of {self!r} raised {type(error).__name__}", error)
        if self._raises:
            with self._bus._lock:
                session.user_raised(error)


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()


class Inbox(Subscription):
    """The direct messages to this program, used as a subscription is. ``lost`` counts what came while it was full."""

    def close(self) -> None:
        """End it: direct messages are counted and dropped from now on. Idempotent."""
        with self._bus._lock:
            self._lane.close()
