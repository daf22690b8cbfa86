"""What the bus counts: one set of counters for all, and one counter per topic for the topics that are named (B-3, B-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .peers import Peer

OTHER = "(all others)"  #: the topics beyond the ones counted by name; with a space it is no topic itself
#: How a message ends that was offered (B-4), but that it still waits.
ENDS = ("delivered", "dropped", "replaced", "expired_messages", "evicted", "over_quota", "unknown")
TURN_S = 60.0  #: how often a full table of topics makes room at most: each time all routes are found again


class Counters:
    """The counters of B-4. They only grow. What is counted for each message is counted at the peer; here is what peers that have gone
    leave behind.

    A message ends once for each lane and group that it was for: ``offered`` is counted when it comes, everything else when it ends, so
    that the books can be checked (`State.books`)."""

    __slots__ = (
        "cancelled",
        "delivered",
        "delivered_bytes",
        "denied",
        "dropped",
        "evicted",
        "expired",
        "expired_messages",
        "in_bytes",
        "in_messages",
        "late_replies",
        "no_subscriber",
        "not_kept",
        "offered",
        "over_quota",
        "protocol_errors",
        "refused",
        "replaced",
        "unknown",
    )

    def __init__(self) -> None:
        self.in_messages = 0  #: frames that peers sent: publications, sends, requests, replies
        self.in_bytes = 0  #: bytes read
        self.offered = 0  #: publications and sends, one count per lane or group that they were for
        self.delivered = 0  #: of those: given to the kernel whole
        self.delivered_bytes = 0
        self.dropped = 0  #: lost because their lane or group was too slow
        self.replaced = 0  #: lost because a newer one of the same topic took their place (policy latest)
        self.expired_messages = 0  #: waited past their time to live (L-11)
        self.evicted = 0  #: waited when their lane or group ended
        self.over_quota = 0  #: waited, or were to wait, where an account had no room
        self.unknown = 0  #: were in the output of a connection when it went: whether they arrived is not known
        self.no_subscriber = 0  #: publications that nobody wanted (L-10)
        self.refused = 0  #: messages answered with an error of the bus
        self.denied = 0  #: of those: because the policy does not allow them
        self.not_kept = 0  #: retained messages that were delivered but are not kept, for want of room (L-8)
        self.expired = 0  #: requests
        self.cancelled = 0  #: requests
        self.late_replies = 0  #: replies to what had settled (R-4)
        self.protocol_errors = 0  #: connections ended by a fatal error

    @property
    def lost(self) -> int:
        """Messages that a lane or group was to get, and that the bus took away."""
        return self.dropped + self.replaced + self.evicted + self.over_quota

    def add(self, peer: Peer) -> None:
        """Take over the counts of a peer that goes."""
        self.in_messages += peer.in_messages
        self.in_bytes += peer.in_bytes
        self.delivered += peer.delivered
        self.delivered_bytes += peer.delivered_bytes

    def totals(self, peers: Iterable[Peer]) -> dict[str, int]:
        """All counters by name, those of the present *peers* included."""
        total = {name: getattr(self, name) for name in self.__slots__}
        total["lost"] = self.lost
        for peer in peers:
            total["in_messages"] += peer.in_messages
            total["in_bytes"] += peer.in_bytes
            total["delivered"] += peer.delivered
            total["delivered_bytes"] += peer.delivered_bytes
        return total


class TopicCounter:
    """What became of the messages of one topic."""

    __slots__ = ("bytes", "expired", "lost", "messages", "no_subscriber", "not_kept", "retired", "turn", "unwanted_at")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.no_subscriber = 0  #: of the messages: nobody wanted them (L-10)
        self.unwanted_at = 0.0  #: when that was last
        self.lost = 0  #: one count per lane or group that was to get it
        self.expired = 0
        self.not_kept = 0
        self.turn = 0  #: messages when the table was looked through last
        self.retired = False  #: its counts are in the shared counter: ask for another

    def add(self, other: TopicCounter) -> None:
        """Take over what *other* counted."""
        for name in ("messages", "bytes", "no_subscriber", "lost", "expired", "not_kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unwanted_at = max(self.unwanted_at, other.unwanted_at)

    def __bool__(self) -> bool:
        return bool(self.messages or self.lost or self.expired or self.not_kept)


class TopicCounters:
    """A counter for each of *limit* topics; the rest share one. Where the table is full the quieter half makes room, now and then."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._by_topic: dict[str, TopicCounter] = {}
        self._look_at = 0.0  #: the table is not looked through before; set when it is full
        self.retiring: Callable[[], None] = lambda: None  #: called where counters retire: who keeps some has to ask for others
        self.other = TopicCounter()

    def of(self, topic: str) -> TopicCounter:
        """The counter of *topic*, or the shared one when the table is full."""
        counter = self._by_topic.get(topic)
        if counter is None:
            if len(self._by_topic) >= self._limit and not self._make_room():
                return self.other
            counter = self._by_topic[topic] = TopicCounter()
        return counter

    def find(self, topic: str) -> TopicCounter:
        """The same, but no counter is made: what is counted for is old."""
        return self._by_topic.get(topic, self.other)

    def _make_room(self) -> bool:
        """Retire the half of the counters that counted least since the last look, at most once in TURN_S: a thousand topics that were
        used once must not hide the busy ones for ever, and names that change without end must not cost a look for each."""
        now = self._clock()
        if not self._look_at:
            self._look_at = now + TURN_S
        if now < self._look_at or self._limit < 2:
            return False
        self._look_at = now + TURN_S
        quiet = sorted(self._by_topic, key=lambda topic: self._by_topic[topic].messages - self._by_topic[topic].turn)
        for topic in quiet[: self._limit // 2]:
            counter = self._by_topic.pop(topic)
            counter.retired = True
            self.other.add(counter)
        for counter in self._by_topic.values():
            counter.turn = counter.messages
        self.retiring()
        return True

    def items(self) -> list[tuple[str, TopicCounter]]:
        """The named topics in order, then ``(all others)`` if it has any."""
        named = sorted(self._by_topic.items())
        return [*named, (OTHER, self.other)] if self.other else named
