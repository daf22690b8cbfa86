"""The outbox without a connection: what was published or sent meanwhile, bounded in bytes and messages, and what becomes of what does not
fit. With one, what was published to topics that are held (_holds.py).

Everything here waits as values, for a frame carries the id of a connection that does not exist yet. Part of the session: same lock, no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ipcbus.protocol.messages import Kind

from ._errors import OutboxFull

#: connect()'s defaults: some seconds of a busy program, and what a small machine has to spare.
OUTBOX_BYTES = 8 * 1024 * 1024
OUTBOX_MESSAGES = 100_000
POLICIES = ("block", "drop_oldest", "drop_newest", "raise")
#: What a message that waits costs besides its topic, headers and payload, about.
_OVERHEAD_BYTES = 64

_NEVER = float("inf")

#: kind, topic or receiver, meta, payload; of a POST also its deadline, and whether it is retained
Item = tuple[Any, ...]


class Undelivered(NamedTuple):
    """Messages that did not certainly arrive; false when there are none.

    ``unsent`` never left this program: they wait, or were dropped from the outbox. ``unknown`` were given to the kernel, and nothing that
    came back says that the bus had them.
    """

    unsent: int
    unknown: int

    def __bool__(self) -> bool:
        return bool(self.unsent or self.unknown)


class Waiting:
    """The messages that wait for a connection, oldest first."""

    __slots__ = (
        "bytes", "clock", "discarded", "dropped", "episode", "expired", "expires", "items", "max_bytes", "max_messages", "on_drop",
        "policy",
    )  # fmt: skip

    def __init__(self, policy: str = "block", max_bytes: int = OUTBOX_BYTES, max_messages: int = OUTBOX_MESSAGES) -> None:
        if policy not in POLICIES:
            raise ValueError(f"outbox={policy!r}: allowed are {', '.join(POLICIES)}")
        for option, limit in (("outbox_bytes", max_bytes), ("outbox_messages", max_messages)):
            if not isinstance(limit, int) or isinstance(limit, bool):
                raise TypeError(f"{option}={limit!r}: it is a whole number")
            if limit < 0:
                raise ValueError(f"{option}={limit}: it must be at least 0")
        self.policy = policy
        self.max_bytes = max_bytes
        self.max_messages = max_messages
        self.items: deque[Item] = deque()
        self.bytes = 0
        self.dropped = 0  #: by the policy, ever
        self.discarded = 0  #: too large for the bus that came, or left when the bus was closed, ever
        self.on_drop: Callable[[str], None] | None = None  #: told at the first drop of an episode, for the log
        self.episode = 0  #: dropped since everything that waited was sent
        self.expired = 0  #: dropped because their time to live had passed, ever
        self.clock: Callable[[], float] = float  #: the shell's
        self.expires = _NEVER  #: no message that waits is too old before

    def __len__(self) -> int:
        return len(self.items)

    def another(self) -> Waiting:
        """An empty one with the same policy and limits."""
        return Waiting(self.policy, self.max_bytes, self.max_messages)

    def add(self, item: Item) -> None:
        """Have *item* wait, or do with it as the policy says. Raises OutboxFull."""
        size = size_of(item)
        if self.expires < _NEVER and not self._fits(size):
            self.drop_expired()
        if self.policy == "drop_oldest" and size <= self.max_bytes and self.max_messages:
            while not self._fits(size):
                self._drop(self.items.popleft())
        if self._fits(size):
            self.items.append(item)
            self.bytes += size
            if item[0] is Kind.POST:
                self.expires = min(self.expires, item[4])
        elif self.policy in ("drop_oldest", "drop_newest"):
            self._count()
        else:
            raise OutboxFull(
                f"the outbox is full: {len(self.items)} messages of {self.bytes} bytes wait for a connection to the bus, and one of {size} "
                f"bytes more does not fit (outbox_messages={self.max_messages}, outbox_bytes={self.max_bytes})",
                who=item[1],
                what="send" if item[0] is Kind.SEND else "publish",
            )

    def measure(self, items: Iterable[Item]) -> tuple[int, float]:
        """How many bytes *items* take here, and when the first of them and of what waits is too old."""
        size, expires = weigh(list(items))
        return size, min(self.expires, expires)

    def trim(self) -> None:
        """What a lost connection had not handed to the kernel was put before all that waits: have the policy do with it what it says.

        With ``block`` and ``raise`` it is kept over the limits, for it was accepted: so they bound what waits to themselves and one
        connection's unwritten buffer. The other policies drop what they drop.
        """
        if self.policy in ("drop_oldest", "drop_newest"):
            take = self.items.popleft if self.policy == "drop_oldest" else self.items.pop
            while self.items and not self._fits(0):
                self._drop(take())

    def clear(self) -> None:
        """Forget all that waits: whoever put it in was told that it is not taken."""
        self.items, self.bytes, self.expires = deque(), 0, _NEVER

    def discard(self) -> int:
        """Give up all that waits: there never will be a connection for it. Returns how many messages."""
        self.drop_expired()
        items, count = deque[Item](), len(self.items)
        self.items, self.bytes, self.expires = items, 0, _NEVER  # no call from here on, as in Outbox.opened()
        self.discarded += count
        return count

    def retained_topics(self) -> set[str]:
        """The topics of retained messages that wait."""
        return {item[1] for item in self.items if item[0] is Kind.RETAIN or (item[0] is Kind.POST and item[5])}

    def drop_expired(self) -> None:
        """Drop and count what is past its time to live."""
        now = self.clock()
        if self.expires > now:
            return
        kept = deque(item for item in self.items if item[0] is not Kind.POST or item[4] > now)
        size, expires = weigh(kept)
        expired = len(self.items) - len(kept)
        self.items, self.bytes, self.expires = kept, size, expires
        self.expired += expired

    def end_episode(self) -> int:
        """What waited is sent; returns how many were dropped since the first of it waited."""
        count, self.episode = self.episode, 0
        return count

    def _fits(self, size: int) -> bool:
        more = 1 if size else 0
        return self.bytes + size <= self.max_bytes and len(self.items) + more <= self.max_messages

    def _drop(self, item: Item) -> None:
        self.bytes -= size_of(item)
        self._count()

    def _count(self) -> None:
        self.dropped += 1
        self.episode += 1
        if self.episode == 1 and self.on_drop is not None:
            which = "oldest" if self.policy == "drop_oldest" else "newest"
            self.on_drop(
                f"the outbox is full while there is no connection to the bus, or topics are held: the {which} messages are dropped and "
                f"counted (outbox={self.policy!r}); outbox_messages={self.max_messages} and outbox_bytes={self.max_bytes} of connect() "
                f"are its limits"
            )


def weigh(items: Collection[Item]) -> tuple[int, float]:
    """How many bytes *items* take here, and when the first of them is too old."""
    return sum(map(size_of, items)), min((item[4] for item in items if item[0] is Kind.POST), default=_NEVER)


def size_of(item: Item) -> int:
    """About what *item* takes in memory; never 0."""
    _, to, meta, payload, *_ = item
    headers = 0
    if type(meta) is dict:
        headers = sum(len(key) + 16 + (len(value) if isinstance(value, (str, bytes)) else 8) for key, value in meta.items())
    return len(payload) + len(to) + headers + _OVERHEAD_BYTES
