"""The outbox without a connection: what was published or sent meanwhile, bounded in bytes and messages, and what becomes of what does not
fit.

Everything here waits as values, for a frame carries the id of a connection that does not exist yet. Part of the session: same lock, no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
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

    __slots__ = ("_episode", "_expires", "bytes", "clock", "dropped", "expired", "items", "max_bytes", "max_messages", "on_drop", "policy")

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
        self.on_drop: Callable[[str], None] | None = None  #: told at the first drop of an episode, for the log
        self._episode = 0  #: dropped since there was a connection
        self.expired = 0  #: dropped because their time to live had passed, ever
        self.clock: Callable[[], float] = float  #: the shell's
        self._expires = _NEVER  #: no message that waits is too old before

    def __len__(self) -> int:
        return len(self.items)

    def another(self) -> Waiting:
        """An empty one with the same policy and limits."""
        return Waiting(self.policy, self.max_bytes, self.max_messages)

    def add(self, item: Item) -> None:
        """Have *item* wait, or do with it as the policy says. Raises OutboxFull."""
        size = _size(item)
        if self._expires < _NEVER and not self._fits(size):
            self._drop_expired()
        if self.policy == "drop_oldest" and size <= self.max_bytes and self.max_messages:
            while not self._fits(size):
                self._drop(self.items.popleft())
        if self._fits(size):
            self.items.append(item)
            self.bytes += size
            if item[0] is Kind.POST:
                self._expires = min(self._expires, item[4])
        elif self.policy in ("drop_oldest", "drop_newest"):
            self._count()
        else:
            raise OutboxFull(
                f"the outbox is full: {len(self.items)} messages of {self.bytes} bytes wait for a connection to the bus, and one of {size} "
                f"bytes more does not fit (outbox_messages={self.max_messages}, outbox_bytes={self.max_bytes})",
                who=item[1],
                what="send" if item[0] is Kind.SEND else "publish",
            )

    def take_back(self, items: Iterable[Item]) -> None:
        """What a lost connection had not handed to the kernel, older than all that waits here.

        With ``block`` and ``raise`` it is kept over the limits, for it was accepted: so they bound what waits to themselves and one
        connection's unwritten buffer. The other policies drop what they drop.
        """
        taken = list(items)
        self.items.extendleft(reversed(taken))
        self.bytes += sum(map(_size, taken))
        self._expires = min([self._expires, *(item[4] for item in taken if item[0] is Kind.POST)])
        if self.policy in ("drop_oldest", "drop_newest"):
            take = self.items.popleft if self.policy == "drop_oldest" else self.items.pop
            while self.items and not self._fits(0):
                self._drop(take())

    def take_all(self) -> deque[Item]:
        """All that waits and is not too old, out of here: there is a connection, or never will be one."""
        self._drop_expired()
        taken, self.items, self.bytes, self._expires = self.items, deque(), 0, _NEVER
        return taken

    def retained_topics(self) -> set[str]:
        """The topics of retained messages that wait."""
        return {item[1] for item in self.items if item[0] is Kind.RETAIN or (item[0] is Kind.POST and item[5])}

    def _drop_expired(self) -> None:
        """Drop and count what is past its time to live."""
        now = self.clock()
        if self._expires > now:
            return
        kept = deque(item for item in self.items if item[0] is not Kind.POST or item[4] > now)
        self.expired += len(self.items) - len(kept)
        self.items = kept
        self.bytes = sum(map(_size, kept))
        self._expires = min((item[4] for item in kept if item[0] is Kind.POST), default=_NEVER)

    def end_episode(self) -> int:
        """There is a connection; returns how many were dropped since there was none."""
        count, self._episode = self._episode, 0
        return count

    def _fits(self, size: int) -> bool:
        more = 1 if size else 0
        return self.bytes + size <= self.max_bytes and len(self.items) + more <= self.max_messages

    def _drop(self, item: Item) -> None:
        self.bytes -= _size(item)
        self._count()

    def _count(self) -> None:
        self.dropped += 1
        self._episode += 1
        if self._episode == 1 and self.on_drop is not None:
            which = "oldest" if self.policy == "drop_oldest" else "newest"
            self.on_drop(
                f"the outbox is full while there is no connection to the bus: the {which} messages are dropped and counted (outbox="
                f"{self.policy!r}); outbox_messages={self.max_messages} and outbox_bytes={self.max_bytes} of connect() are its limits"
            )


def _size(item: Item) -> int:
    """About what *item* takes in memory; never 0."""
    _, to, meta, payload, *_ = item
    headers = 0
    if type(meta) is dict:
        headers = sum(len(key) + 16 + (len(value) if isinstance(value, (str, bytes)) else 8) for key, value in meta.items())
    return len(payload) + len(to) + headers + _OVERHEAD_BYTES
