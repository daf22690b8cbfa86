"""Deadlines of items that all wait equally long: they stand in the order in which they came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Timeouts(Generic[Item]):
    """Items that each wait *delay_s* seconds: the oldest is always the next."""

    __slots__ = ("_deadlines", "delay_s", "earliest")

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self._deadlines: OrderedDict[Item, float] = OrderedDict()  #: its first is found at once, however many before it have gone
        self.earliest: float | None = None  #: when the first item is due

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, item: object) -> bool:
        return item in self._deadlines

    def __iter__(self) -> Iterator[Item]:
        return iter(self._deadlines)

    def start(self, item: Item, now: float) -> None:
        """Let *item* wait from now on; it must not wait already."""
        self._deadlines[item] = now + self.delay_s
        self._look()

    def stop(self, item: Item) -> None:
        """Forget *item*. Idempotent."""
        self._deadlines.pop(item, None)
        self._look()

    def set_delay(self, delay_s: float, now: float) -> None:
        """Another delay: what waits already waits no longer than that from now on."""
        self.delay_s = delay_s
        for item, deadline in self._deadlines.items():
            self._deadlines[item] = min(deadline, now + delay_s)
        self._look()

    def _look(self) -> None:
        self.earliest = next(iter(self._deadlines.values()), None)

    def due(self, now: float, most: int | None = None) -> list[Item]:
        """Take out the items whose time has come, up to *most* of them."""
        items: list[Item] = []
        for item, deadline in self._deadlines.items():
            if deadline > now or len(items) == most:
                break
            items.append(item)
        for item in items:
            del self._deadlines[item]
        self._look()
        return items
