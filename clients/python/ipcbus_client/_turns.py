"""Whose turn it is: what waits for the user code of one subscription or responder that has a ``concurrency``, and in what order it begins.

At most ``concurrency`` are at work; with a ``key`` one at a time for each key, in the order in which they came. Knows no threads, tasks or
locks: a shell calls it under the lock of its bus, takes what may begin, runs it, and says when it ended.

An item stays in ``source`` until there is room for it; taken from there too early, because only its key says that it must wait for
another one, it is parked here. What is parked is charged to its lane (``parked_bytes``), so the lane's window bounds both together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from ._lanes import Lane
from ._notices import Notice

Key = Callable[[Any], Hashable]
#: The most that may be at work at once for one subscription or responder: with the blocking shell each is a thread.
CONCURRENCY_MAX = 1000
_OVERHEAD_BYTES = 32  #: of a message on the wire besides its topic and payload, about


class Turns:
    """The items of one subscription or responder. A turn is one of them at work; its token goes to end()."""

    __slots__ = ("_by_key", "_next", "_ready", "at_work", "concurrency", "key", "lane", "parked", "pulling", "source")

    def __init__(self, source: deque[Any], concurrency: int, key: Key | None, lane: Lane | None = None) -> None:
        self.source = source  #: what came, in order
        self.concurrency = concurrency
        self.key = key
        self.lane = lane  #: of a subscription
        self.at_work = 0
        self.parked = 0
        self.pulling = False  #: somebody asks ``key`` about an item: the next one must not overtake it
        self._by_key: dict[Hashable, deque[Any]] = {}  #: a key that is at work, or ready, and what is parked for it
        self._ready: deque[Hashable] = deque()  #: keys of which one may begin
        self._next = 0

    @property
    def can_pull(self) -> bool:
        """Whether an item of ``source`` should be taken, and given to park()."""
        return self.at_work < self.concurrency and not self._ready and not self.pulling and bool(self.source)

    @property
    def can_begin(self) -> bool:
        """Whether begin() or a pull would get somewhere."""
        return self.at_work < self.concurrency and (bool(self._ready) or (not self.pulling and bool(self.source)))

    @property
    def idle(self) -> bool:
        """Whether nothing is at work and nothing waits."""
        return not (self.at_work or self.parked or self.source or self.pulling)

    def asks(self, item: Any) -> bool:
        """Whether ``key`` is to be asked about *item*: not about a notice, which is no message."""
        return self.key is not None and not isinstance(item, Notice)

    def park(self, item: Any, key: Hashable = None) -> None:
        """*item* was taken from ``source``; *key* is what ``key`` said of it. Raises TypeError where that cannot be hashed."""
        token: Hashable = (key,)
        if not self.asks(item):
            token = self._next = self._next + 1  # each its own
        line = self._by_key.get(token)
        if line is None:
            self._by_key[token] = deque((item,))
            self._ready.append(token)
        else:
            line.append(item)
        self.parked += 1
        if self.lane is not None:
            self.lane.parked_bytes += _size(item)

    def begin(self) -> tuple[Hashable, Any] | None:
        """The token and the item of a turn that begins, or None where there is no room or nothing is ready."""
        if not self._ready or self.at_work >= self.concurrency:
            return None
        token = self._ready.popleft()
        item = self._by_key[token].popleft()
        self.parked -= 1
        self.at_work += 1
        if self.lane is not None:
            self.lane.parked_bytes -= _size(item)
        return token, item

    def end(self, token: Hashable) -> None:
        """The turn with this *token* is over."""
        self.at_work -= 1
        if self._by_key[token]:
            self._ready.append(token)
        else:
            del self._by_key[token]

    def clear(self) -> int:
        """Forget what has not begun; returns how many those were."""
        count = self.parked + len(self.source)
        self.source.clear()
        for token in self._ready:
            del self._by_key[token]
        self._ready.clear()
        for line in self._by_key.values():
            line.clear()
        self.parked = 0
        if self.lane is not None:
            self.lane.parked_bytes = 0
        return count


def _size(message: Any) -> int:
    if isinstance(message, Notice):
        return 0
    return len(message[4]) + len(message[2]) + _OVERHEAD_BYTES
