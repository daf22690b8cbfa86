"""The records of lanes and groups: subscriptions, their credit, and what waits for it (section 6).

`delivery` moves messages between them. A message that a lane has credit for goes straight to its peer's output. What has to wait stands
in a `Backlog`, the only queue there is:
of one lane, or of a
group, whose members take from it. A backlog above its limit holds its publishers; one that holds them too long loses its oldest messages
(L-7).
"""

from __future__ import annotations

from collections import deque

from ..protocol.limits import READ_BYTES
from ..protocol.messages import Kind, encode
from .peers import Peer, Piece

#: Above this much waiting output a peer gets no further publications, whatever credit its lanes have: its kernel buffer is full, so
#: nothing is gained.
OUTPUT_HIGH_BYTES = 16 * READ_BYTES
#: Small pieces that wait are gathered up to this size, so that a backlog of tiny messages is not mostly Python objects.
GATHER_BYTES = 32_768


def pins(piece: Piece) -> bool:
    """Whether a piece keeps a read alive that is over twice its size."""
    return isinstance(piece, memoryview) and len(piece) * 2 < len(piece.obj)  # type: ignore[arg-type]  # the object is always bytes-like


class Backlog:
    """Messages that wait for credit, in order, and what became of them."""

    __slots__ = ("bytes", "count", "dropping", "group", "holding", "lane", "logged", "losses", "payer", "pieces", "written_bytes")

    def __init__(self, lane: Lane | None, group: Group | None, payer: Peer) -> None:
        self.lane = lane
        self.group = group
        self.payer = payer  #: the peer that is charged for what waits: the lane's, or that of the group's first member
        self.pieces: deque[tuple[Piece, int, float | None]] = deque()  #: bytes of whole frames, how many frames, until when (L-11)
        self.bytes = 0
        self.count = 0
        self.holding: set[Peer] = set()
        self.written_bytes = 0  #: the payer's, when it began to hold
        self.dropping = False  #: held publishers for too long: drops its oldest until it has caught up
        self.logged = False  #: a loss was logged in this episode
        self.losses: dict[str, list[int]] = {}  #: lost and not told yet: why, and how many messages and bytes

    def __str__(self) -> str:
        if self.group is not None:
            return f"group {self.group.name!r} on {self.group.pattern!r}"
        assert self.lane is not None
        return f"lane {self.lane.number} ({self.lane.pattern!r}) of {self.lane.peer}"


class Lane:
    """One subscription of one peer (L-1)."""

    __slots__ = ("announcement", "backlog", "credit", "group", "load", "messages", "number", "pattern", "peer", "turn")

    def __init__(self, peer: Peer, number: int, pattern: str, credit: int) -> None:
        self.peer = peer
        self.number = number
        self.pattern = pattern
        self.credit = credit  #: bytes that may be sent; below 0 is debt (L-5)
        self.group: Group | None = None
        self.messages = 0  #: in a group: messages that may be sent (L-6)
        self.load = 0  #: in a group: messages sent and not handled
        self.turn = 0  #: in a group: when it got its last message, so that equal loads take turns
        self.backlog: Backlog | None = None
        self.announcement = encode(Kind.LANE, 0, number)


class Group:
    """Lanes of one pattern that share its messages: each goes to the member with the smallest load (L-6)."""

    __slots__ = ("backlog", "members", "name", "pattern", "turns")

    def __init__(self, pattern: str, name: str) -> None:
        self.pattern = pattern
        self.name = name
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
