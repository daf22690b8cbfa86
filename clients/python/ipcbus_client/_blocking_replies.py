"""What a blocking `Bus` hands out for a request that is answered in parts. The same names in the same order as _aio_replies.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._errors import Closed, Expired, Timeout
from ._names import GRACE_S, check_request, check_timeout, check_window, patience
from ._parts import Parted
from ._waiter import Waiter

if TYPE_CHECKING:
    from ._blocking_base import BusBase


class ReplyStream:
    """The values of a generator that answers a request: ``for value in stream``, or get(). Thread-safe; several threads share the values.

    At most the window and one value wait here; the service makes no more until they are taken. What ended it otherwise than well (the
    errors of request(); ConnectionLost when the connection ends: a stream does not go on over a reconnect) is raised after the values that
    came before. Leaving an iteration early, close(), and forgetting the stream tell the service to stop.
    """

    def __init__(self, bus: BusBase, call: Parted, deadline: float) -> None:
        self._bus = bus
        self._call = call
        self._deadline = deadline
        self._closed = False
        self._waiters: list[Waiter] = []
        call.notify = call.lane.notify = partial(_wake, self._waiters)  # not a method: what the session holds must not keep us alive

    def __iter__(self) -> Iterator[Any]:
        end = self.close
        try:
            while True:
                if (part := self._call.next_part()) is not None:
                    yield self._call.value_of(part)
                elif not self._more(None):
                    return
        except GeneratorExit:  # it was left, or collected
            end = self._forget
            raise
        finally:
            end()

    def get(self, timeout: float | None = None) -> Any:
        """The next value. Raises Timeout after *timeout* seconds (None: the stream's own), which ends nothing; Closed when there are no
        more; what ended the stream; PayloadError where this value cannot be decoded.
        """
        check_timeout(timeout)
        deadline = None if timeout is None else self._bus._now() + timeout
        while True:
            if (part := self._call.next_part()) is not None:
                return self._call.value_of(part)
            if not self._more(deadline):
                if self._call.done:
                    raise Closed(f"{self!r} has ended", who=self._call.to, what="get")
                raise Timeout(f"no value from {self._call.to} in time", who=self._call.to, what="get")

    def close(self) -> None:
        """End it: the service is told to stop, and what was not taken is dropped. Idempotent; nothing happens where it has ended."""
        bus = self._bus
        with bus._lock:
            if not self._call.done or self._call.lane.messages:
                self._closed = True
                bus._session.streams.close(self._call)
                bus._wire.push()

    @property
    def result(self) -> Any:
        """What the generator returned, after the end. Before it: RuntimeError. Raises what ended the stream otherwise."""
        if not self._call.done or self._call.lane.messages:
            raise RuntimeError(f"{self!r} has not ended: take its values first")
        return self._call.result()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ReplyStream from {self._call.to}>"

    # --- inside ---

    def __del__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """close(), from where the garbage collector may be: under the lock of another bus, perhaps, so that this must not wait for one."""
        call = self._call
        if (not call.done or call.lane.messages) and not sys.is_finalizing():  # (then there is no other thread)
            self._closed = True
            call.lane.messages.clear()
            if not call.done:
                self._bus._wire.keeper.forget(call)

    def _more(self, deadline: float | None) -> bool:
        """Wait for a value; False at the deadline or the end, which raises where it is an error."""
        call, bus = self._call, self._bus
        with bus._lock:
            bus._session.streams.grant(call)
            if not call.lane.messages and not call.done:
                waiter = Waiter()
                self._waiters.append(waiter)
                try:
                    due = min(self._deadline, inf if deadline is None else deadline)
                    bus._wire.wait(lambda: call.lane.messages or call.done, waiter, None if due == inf else due)
                finally:
                    self._waiters.remove(waiter)
            if call.lane.messages:
                return True
            if not call.done and bus._now() >= self._deadline:
                bus._session.streams.close(call)
                bus._wire.push()
                call.error = Expired(24, "no end in time, not even from the bus", call.to)
            if call.error is not None and not self._closed:
                raise call.error.again(who=call.to, what="stream")
            return False

def open_stream(
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
    started = bus._now()
    with bus._lock:
        if not wire.wait_connected(started + timeout):
            raise bus._not_connected(to, timeout)
        left = max(started + timeout - bus._now(), 0.001)
        call = session.streams.open(to, data, headers, left, window_bytes, convert)
        stream = ReplyStream(bus, call, started + timeout + GRACE_S)
        wire.push()
    return stream


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()
