"""``monitor()`` of a blocking `Bus`. The same names in the same order as _aio_monitor.py; what a copy says is in _seen.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _names
from ._blocking_streams import Subscription
from ._lanes import Lane
from ._policies import Limits, check_policy
from ._seen import Seen, check_kinds, seen

if TYPE_CHECKING:
    from ._blocking_messages import BusMessages


class Monitor:
    """What others send, as Seen objects: ``for seen in monitor``, or get(). Ends when it or the bus is closed. Thread-safe; several
    threads share what comes.
    """

    def __init__(self, bus: BusMessages, lane: Lane) -> None:
        self._lane = lane
        self._stream = Subscription(bus, lane, None)

    def __iter__(self) -> Iterator[Seen]:
        for item in self._stream:
            yield seen(item)

    def get(self, timeout: float | None = None) -> Seen:
        """The next frame. Raises Timeout after *timeout* seconds (None: never), Closed or what ended the monitor when there is nothing
        more to come. With notices also a Lost, a Reconnected, a Lagging or a CaughtUp, as iteration has them.
        """
        shown: Seen = seen(self._stream.get(timeout))
        return shown

    def close(self) -> None:
        """End it. What was received already can still be taken. Idempotent."""
        self._stream.close()

    @property
    def pattern(self) -> str:
        """The pattern of topics and names that it looks at."""
        return self._lane.pattern

    @property
    def lost(self) -> int:
        """Frames that were not shown, because they were too many, or this program was too slow."""
        return self._lane.lost

    @property
    def gaps(self) -> int:
        """Reconnections since it was made; at each one frames may have been missed, which nobody could count."""
        return self._lane.gaps

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._lane.closed

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Monitor {self._lane.pattern!r}>"


def monitor(
    bus: BusMessages,
    pattern: str,
    kinds: Iterable[str] | None,
    payloads: bool,
    notices: bool,
    window_bytes: int,
    limits: Limits | Mapping[str, Any] | None,
) -> Monitor:
    """Bus.monitor()."""
    _names.check_pattern(pattern, "monitor")
    _names.check_window(window_bytes)
    wanted, said = check_kinds(kinds), check_policy(None, limits, None)
    with bus._lock:
        bus._session.check_open()
        lane = Lane(bus._session.new_id(), pattern, window_bytes=window_bytes, notices=notices, limits=said)
        made = Monitor(bus, lane)
        bus._declared(bus._session.declarations.monitor(lane, wanted, payloads), "subscribe", lane.number)
    return made
