"""The records of lanes and groups: subscriptions and their credit (section 6).

`delivery` moves messages between them. A message that a lane has credit for goes straight to its peer's output. What has to wait stands
in a `backlogs.Backlog`, the only queue there is: of one lane, or of a group, whose members take from it.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from ..protocol.limits import READ_BYTES
from ..protocol.messages import Kind, encode
from .peers import Peer
from .terms import NO_TERMS, Terms

if TYPE_CHECKING:
    from .backlogs import Backlog

#: Above this much waiting output a peer gets no further publications, whatever credit its lanes have: its kernel buffer is full, so
#: nothing is gained.
OUTPUT_HIGH_BYTES = 16 * READ_BYTES


class Lane:
    """One subscription of one peer (L-1)."""

    __slots__ = (
        "announcement", "backlog", "credit", "group", "joined", "load", "messages", "number", "pattern", "peer", "rank", "terms", "turn",
    )  # fmt: skip
    watches = False  #: it is a monitor (section 14), not a subscription

    def __init__(self, peer: Peer, number: int, pattern: str, credit: int, terms: Terms = NO_TERMS) -> None:
        self.peer = peer
        self.number = number
        self.pattern = pattern
        self.credit = credit  #: bytes that may be sent; below 0 is debt (L-5)
        self.terms = terms  #: in a group the group's hold
        self.group: Group | None = None
        self.messages = 0  #: in a group: messages that may be sent (L-6)
        self.load = 0  #: in a group: messages sent and not handled
        self.turn = 0  #: in a group: when it got its last message, so that equal loads take turns
        self.joined = 0  #: in a group: as which of all that ever were
        self.rank: Rank | None = None  #: in a group: its entry in the group's heap, while it may get messages as far as is known
        self.backlog: Backlog | None = None
        self.announcement = encode(Kind.LANE, 0, number)


#: What members are compared by: load, turn, and who joined first.
Rank = tuple[int, int, int, Lane]

#: Entries of members that rank otherwise now may stay in the heap until they are more than the members, and more than this.
_STALE_MIN = 64


class Group:
    """Lanes of one pattern that share its messages: each goes to the member with the smallest load (L-6).

    Those that may get one stand in a heap, so that a message costs little however many they are. Who is found there and may not is taken
    out, until `ready` says that something changed for it.
    """

    __slots__ = ("_ranks", "backlog", "joined", "members", "name", "pattern", "terms", "turns")

    def __init__(self, pattern: str, name: str, terms: Terms) -> None:
        self.pattern = pattern
        self.name = name
        self.terms = terms  #: those of the member that opened it
        self.members: dict[Lane, None] = {}
        self.backlog: Backlog | None = None
        self.turns = 0
        self.joined = 0  #: members, in all
        self._ranks: list[Rank] = []

    def add(self, lane: Lane) -> None:
        """One more member."""
        self.joined += 1
        lane.joined = self.joined
        lane.group = self
        self.members[lane] = None
        self.ready(lane)

    def remove(self, lane: Lane) -> None:
        """A member leaves. It still says which group it was in."""
        del self.members[lane]
        lane.rank = None
        self._tidy()

    def has(self, peer: Peer) -> bool:
        """Whether one of the members is *peer*'s."""
        return any(lane.group is self for lane in peer.grouped or ())

    def ready(self, lane: Lane) -> None:
        """A member has credit, room in its output, or less load than before."""
        rank = lane.rank
        if rank is None or rank[0] != lane.load:
            lane.rank = rank = lane.load, lane.turn, lane.joined, lane
            heapq.heappush(self._ranks, rank)
            self._tidy()

    def gave(self, lane: Lane) -> None:
        """The member that `next_member` returned got a message."""
        self.turns += 1
        lane.turn = self.turns
        lane.messages -= 1
        lane.load += 1
        lane.rank = rank = lane.load, lane.turn, lane.joined, lane
        heapq.heapreplace(self._ranks, rank)

    def _tidy(self) -> None:
        if len(self._ranks) > 2 * len(self.members) + _STALE_MIN:
            self._ranks = [rank for rank in self._ranks if rank[3].rank is rank]
            heapq.heapify(self._ranks)

    def next_member(self) -> Lane | None:
        """The least loaded member that may get a message now."""
        ranks = self._ranks
        while ranks:
            rank = ranks[0]
            lane = rank[3]
            if lane.rank is rank:
                if lane.messages > 0 and lane.credit > 0 and lane.peer.out_bytes < OUTPUT_HIGH_BYTES:
                    return lane
                lane.rank = None
            heapq.heappop(ranks)
        return None
