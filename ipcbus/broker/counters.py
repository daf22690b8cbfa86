"""What the bus counts: one set of counters for all, and one counter per topic for the topics that are named (B-3, B-4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .peers import Peer

OTHER = "(all others)"  #: the topics beyond the ones counted by name; with a space it is no topic itself


class Counters:
    """The counters of B-4. They only grow. What is counted for each message is counted at the peer; here is what peers that have gone
    leave behind."""

    __slots__ = (
        "cancelled",
        "delivered",
        "delivered_bytes",
        "expired",
        "expired_messages",
        "in_bytes",
        "in_messages",
        "late_replies",
        "lost",
        "no_subscriber",
        "protocol_errors",
        "refused",
    )

    def __init__(self) -> None:
        self.in_messages = 0  #: frames that peers sent: publications, sends, requests, replies
        self.in_bytes = 0  #: bytes read
        self.delivered = 0  #: publications and sends given to receivers, one count per lane
        self.delivered_bytes = 0
        self.no_subscriber = 0  #: publications that nobody wanted (L-10)
        self.lost = 0  #: messages taken from a lane's or group's backlog unseen
        self.refused = 0  #: messages answered with an error of the bus
        self.expired = 0  #: requests
        self.expired_messages = 0  #: messages that waited in a lane's or group's backlog past their time to live (L-11)
        self.cancelled = 0  #: requests
        self.late_replies = 0  #: replies to what had settled (R-4)
        self.protocol_errors = 0  #: connections ended by a fatal error

    def add(self, peer: Peer) -> None:
        """Take over the counts of a peer that goes."""
        self.in_messages += peer.in_messages
        self.in_bytes += peer.in_bytes
        self.delivered += peer.delivered
        self.delivered_bytes += peer.delivered_bytes

    def totals(self, peers: Iterable[Peer]) -> dict[str, int]:
        """All counters by name, those of the present *peers* included."""
        total = {name: getattr(self, name) for name in self.__slots__}
        for peer in peers:
            total["in_messages"] += peer.in_messages
            total["in_bytes"] += peer.in_bytes
            total["delivered"] += peer.delivered
            total["delivered_bytes"] += peer.delivered_bytes
        return total


class TopicCounter:
    """Messages and bytes published to one topic."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


class TopicCounters:
    """A counter for each of the first *limit* topics; the rest share one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_topic: dict[str, TopicCounter] = {}
        self.other = TopicCounter()

    def of(self, topic: str) -> TopicCounter:
        """The counter of *topic*, or the shared one when the table is full."""
        counter = self._by_topic.get(topic)
        if counter is None:
            if len(self._by_topic) >= self._limit:
                return self.other
            counter = self._by_topic[topic] = TopicCounter()
        return counter

    def items(self) -> list[tuple[str, TopicCounter]]:
        """The named topics in order, then ``(all others)`` if it has any."""
        named = sorted(self._by_topic.items())
        return named + [(OTHER, self.other)] if self.other.messages else named
