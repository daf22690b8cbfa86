"""Deadlines of items that wait differently long: a heap (`timeouts` is for those that all wait equally long)."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

#: Entries of what was stopped may stay in the heap until they are more than the others, and more than this.
_STALE_MIN = 64


class Deadlines(Generic[Item]):
    """At most one deadline for each item."""

    __slots__ = ("_deadlines", "_heap", "_sequence", "earliest")

    def __init__(self) -> None:
        self._deadlines: dict[Item, tuple[float, int]] = {}  #: and a number, so that each is unlike any other
        self._heap: list[tuple[float, int, Item]] = []
        self._sequence = 0
        self.earliest: float | None = None  #: when the first item is due

    def __contains__(self, item: Item) -> bool:
        return item in self._deadlines

    def start(self, item: Item, deadline: float) -> None:
        """Let *item* wait until *deadline*, whatever it waited for before."""
        self._sequence += 1
        self._deadlines[item] = deadline, self._sequence
        heapq.heappush(self._heap, (deadline, self._sequence, item))
        self._look()

    def hasten(self, item: Item, deadline: float) -> None:
        """Let *item*, which waits, wait no longer than until *deadline*."""
        if deadline < self._deadlines[item][0]:
            self.start(item, deadline)

    def stop(self, item: Item) -> None:
        """Forget *item*. Idempotent."""
        if self._deadlines.pop(item, None) is not None:
            self._look()

    def due(self, now: float, most: int | None = None) -> list[Item]:
        """Take out the items whose time has come, up to *most* of them, the longest due first."""
        items: list[Item] = []
        while self.earliest is not None and self.earliest <= now and len(items) != most:
            item = self._heap[0][2]
            del self._deadlines[item]
            items.append(item)
            self._look()
        return items

    def _look(self) -> None:
        heap, deadlines = self._heap, self._deadlines
        if len(heap) > 2 * len(deadlines) + _STALE_MIN:
            self._heap = heap = [(*when, item) for item, when in deadlines.items()]
            heapq.heapify(heap)
        while heap and deadlines.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        self.earliest = heap[0][0] if heap else None
