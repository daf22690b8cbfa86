"""What an asyncio `Bus` hands out for a request that is answered in parts. The same names in the same order as _blocking_replies.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._errors import Closed, Expired, Timeout
from ._loop_wire import Waiters, wake
from ._names import GRACE_S, check_request, check_timeout, check_window, patience
from ._parts import Parted

if TYPE_CHECKING:
    from ._aio_base import BusBase


class ReplyStream:
    """The values of a generator that answers a request: ``async for value in stream``, or get(). Several tasks share the values.

    At most the window and one value wait here; the service makes no more until they are taken. What ended it otherwise than well (the
    errors of request(); ConnectionLost when the connection ends: a stream does not go on over a reconnect) is raised after the values that
    came before. Leaving an iteration early, close(), and forgetting the stream tell the service to stop; cancelling a wait does not.
    """

    def __init__(self, bus: BusBase, call: Parted, deadline: float) -> None:
        self._bus = bus
        self._call = call
        self._deadline = deadline
        self._closed = False
        self._waiters: Waiters = []
        call.notify = call.lane.notify = partial(wake, self._waiters)  # not a method: what the session holds must not keep us alive

    def __aiter__(self) -> _Values:
        return _Values(self)

    async def get(self, timeout: float | None = None) -> Any:
        """The next value. Raises Timeout after *timeout* seconds (None: the stream's own), which ends nothing; Closed when there are no
        more; what ended the stream; PayloadError where this value cannot be decoded.
        """
        check_timeout(timeout)
        deadline = None if timeout is None else self._bus._loop.time() + timeout
        while True:
            if (part := self._call.next_part()) is not None:
                return self._call.value_of(part)
            if not await self._more(deadline):
                if self._call.done:
                    raise Closed(f"{self!r} has ended", who=self._call.to, what="get")
                raise Timeout(f"no value from {self._call.to} in time", who=self._call.to, what="get")

    async def close(self) -> None:
        """End it: the service is told to stop, and what was not taken is dropped. Idempotent; nothing happens where it has ended."""
        self._stop()

    @property
    def result(self) -> Any:
        """What the generator returned, after the end. Before it: RuntimeError. Raises what ended the stream otherwise."""
        if not self._call.done or self._call.lane.messages:
            raise RuntimeError(f"{self!r} has not ended: take its values first")
        return self._call.result()

    async def __aenter__(self) -> ReplyStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def __repr__(self) -> str:
        return f"<ReplyStream from {self._call.to}>"

    # --- inside ---

    def __del__(self) -> None:
        if not self._call.done:
            _forget(self._bus, self._call)

    async def _more(self, deadline: float | None) -> bool:
        """Wait for a value; False at the deadline or the end, which raises where it is an error."""
        call, bus = self._call, self._bus
        bus._session.streams.grant(call)
        if not call.lane.messages and not call.done:
            due = min(self._deadline, inf if deadline is None else deadline)
            await bus._wire.wait(lambda: call.lane.messages or call.done, self._waiters, None if due == inf else due)
        if call.lane.messages:
            return True
        if not call.done and bus._loop.time() >= self._deadline:
            bus._session.streams.close(call)
            bus._wire.push()
            call.error = Expired(24, "no end in time, not even from the bus", call.to)
        if call.error is not None and not self._closed:
            raise call.error.again(who=call.to, what="stream")
        return False

    def _stop(self) -> None:
        if not self._call.done or self._call.lane.messages:
            self._closed = True
            self._bus._session.streams.close(self._call)
            self._bus._wire.push()


async def open_stream(
    bus: BusBase,
    to: str,
    data: Any,
    timeout: float | None,
    headers: Mapping[str, Any] | None,
    window_bytes: int,
    convert: Callable[[Any], Any] | None,
) -> ReplyStream:
    """Bus.stream()."""
    timeout = patience(timeout)
    check_request(to)
    check_window(window_bytes)
    wire, session = bus._wire, bus._session
    started = bus._loop.time()
    if not await wire.wait_connected(started + timeout):
        raise bus._not_connected(to, timeout)
    left = max(started + timeout - bus._loop.time(), 0.001)
    call = session.streams.open(to, data, headers, left, window_bytes, convert)
    stream = ReplyStream(bus, call, started + timeout + GRACE_S)
    wire.push_soon()
    return stream


class _Values:
    """One iteration; leaving it early is the end of the stream."""

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream

    def __aiter__(self) -> _Values:
        return self

    async def __anext__(self) -> Any:
        stream = self._stream
        while True:
            if (part := stream._call.next_part()) is not None:
                return stream._call.value_of(part)
            if not await stream._more(None):
                raise StopAsyncIteration

    def __del__(self) -> None:
        stream = self._stream
        if not stream._call.done or stream._call.lane.messages:
            stream._closed = True
            _forget(stream._bus, stream._call)


def _forget(bus: BusBase, call: Parted) -> None:
    """close(), from where the garbage collector may be: perhaps on another thread, perhaps after the loop."""
    try:
        bus._loop.call_soon_threadsafe(_close, bus, call)
    except RuntimeError:
        pass  # the loop is closed, and with it the bus


def _close(bus: BusBase, call: Parted) -> None:
    bus._session.streams.close(call)
    bus._wire.push()
