"""The records of lanes and groups: subscriptions and their credit (section 6).

`delivery` moves messages between them. A message that a lane has credit for goes straight to its peer's output. What has to wait stands
in a `backlogs.Backlog`, the only queue there is: of one lane, or of a group, whose members take from it.
"""

from __future__ import annotations

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

    __slots__ = ("announcement", "backlog", "credit", "group", "load", "messages", "number", "pattern", "peer", "terms", "turn")

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
        self.backlog: Backlog | None = None
        self.announcement = encode(Kind.LANE, 0, number)


class Group:
    """Lanes of one pattern that share its messages: each goes to the member with the smallest load (L-6)."""

    __slots__ = ("backlog", "members", "name", "pattern", "terms", "turns")

    def __init__(self, pattern: str, name: str, terms: Terms) -> None:
        self.pattern = pattern
        self.name = name
        self.terms = terms  #: those of the member that opened it
        self.members: dict[Lane, None] = {}
        self.backlog: Backlog | None = None
        self.turns = 0

    def has(self, peer: Peer) -> bool:
        """Whether one of the members is *peer*'s."""
        return any(lane.peer is peer for lane in self.members)

    def next_member(self) -> Lane | None:
        """The least loaded member that may get a message now."""
        best: Lane | None = None
        for lane in self.members:
            if lane.messages <= 0 or lane.credit <= 0 or lane.peer.out_bytes >= OUTPUT_HIGH_BYTES:
                continue
            if best is None or (lane.load, lane.turn) < (best.load, best.turn):
                best = lane
        return best
