"""The real broker, seen at the border of what it does: which frames it has worked off, and whom it sends away, in its own order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ipcbus.broker import Broker, Peer
from ipcbus.broker.backlogs import Backlog
from ipcbus.broker.deadlines import Deadlines
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.framing import Run, Scanner
from ipcbus.protocol.messages import Frame


class WatchedBroker(Broker):
    """Says whom it expelled, and why."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._expelled: list[tuple[Peer, Code]] = []
        self.late = self._delivery.late = WatchedDeadlines()

    def _expel(self, peer: Peer, error: ProtocolError) -> None:
        if not peer.closing:
            self._expelled.append((peer, error.code))
        super()._expel(peer, error)

    def take_expelled(self) -> list[tuple[Peer, Code]]:
        """Those who were expelled since the last call."""
        expelled, self._expelled = self._expelled, []
        return expelled


class WatchedDeadlines(Deadlines[Backlog]):
    """Knows which queues were at half their soft limit when their time was stopped: it may be no more so when all is looked at."""

    __slots__ = ("low",)

    def __init__(self) -> None:
        super().__init__()
        self.low: set[Backlog] = set()

    def stop(self, item: Backlog) -> None:
        """Forget *item*."""
        if item.bytes <= item.soft // 2:
            self.low.add(item)
        super().stop(item)


class Tap:
    """Stands before the scanner of one connection, and counts what the broker takes out of it."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self.taken = 0  #: bytes of all frames that the broker has worked off, or works at
        self.failed = False  #: what came next was no frame
        self.ends: set[int] = set()  #: where, counted like that, a run or a single frame ended

    def scan(self, data: bytes) -> Iterable[Run | Frame]:
        """As the scanner does."""
        try:
            events = self._scanner.scan(data)
        except ProtocolError:
            self.failed = True
            raise
        return self._counted(events)

    def _counted(self, events: Iterable[Run | Frame]) -> Iterator[Run | Frame]:
        try:
            for event in events:
                self.taken += len(event.raw) if isinstance(event, Frame) else event[3] - event[2]
                self.ends.add(self.taken)
                yield event
        except ProtocolError:
            self.failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scanner, name)
