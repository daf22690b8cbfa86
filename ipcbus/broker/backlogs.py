"""The queue of what waits for credit: of one lane, or of a group, whose members take from it (L-7).

A `Backlog` is a record and knows its order; when something is lost or somebody is held is decided by `flow`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .peers import Peer, Piece

if TYPE_CHECKING:
    from .holding import Hold, Holding
    from .lanes import Group, Lane

#: Small pieces that wait are gathered up to this size, so that a backlog of tiny messages is not mostly Python objects.
GATHER_BYTES = 32_768

#: Lost and not told yet: why, and how many messages and bytes.
Gap = dict[str, list[int]]


def pins(piece: Piece) -> bool:
    """Whether a piece keeps a read alive that is over twice its size."""
    return isinstance(piece, memoryview) and len(piece) * 2 < len(piece.obj)  # type: ignore[arg-type]  # the object is always bytes-like


class Waiting:
    """Whole frames that stand in a backlog together."""

    __slots__ = ("count", "deadline", "gap", "hold", "piece", "topic")

    def __init__(self, piece: Piece, count: int, deadline: float | None, hold: Hold | None, topic: bytes | None = None) -> None:
        self.piece = piece
        self.count = count  #: of frames
        self.deadline = deadline  #: L-11
        self.hold = hold  #: under which its publisher parked it; None: the backlog's payer is charged
        self.topic = topic  #: where the policy is latest: it is in the index
        self.gap: Gap | None = None  #: what was lost before it, and after what stands before it


class Backlog:
    """Messages that wait for credit, in order, and what became of them. It lives from the first message that waits until none does."""

    __slots__ = (
        "by_topic",
        "bytes",
        "count",
        "dropping",
        "gap",
        "group",
        "hard",
        "holding",
        "lagging",
        "lane",
        "last_gap",
        "last_strange",
        "lost",
        "parked",
        "payer",
        "pieces",
        "policy",
        "seconds",
        "soft",
        "strangers",
    )

    def __init__(self, lane: Lane | None, group: Group | None, payer: Peer, terms: tuple[str, int, int, float]) -> None:
        self.lane = lane
        self.group = group
        self.payer = payer  #: the peer that is charged for what waits: the lane's, or that of the group's first member
        self.policy, self.soft, self.hard, self.seconds = terms
        self.pieces: deque[Waiting] = deque()
        self.by_topic: dict[bytes, Waiting] | None = {} if self.policy == "latest" else None
        self.bytes = 0
        self.count = 0
        self.parked = 0  #: the bytes of these for which held publishers are charged
        self.holding: Holding | None = None  #: block: its publishers, while they are held
        self.lagging = False  #: an episode: it was over its soft limit and has not caught up since
        self.dropping = False  #: for too long: it loses messages at the soft limit until it has caught up
        self.lost = 0  #: messages, in this episode
        self.strangers: set[Peer] | None = None  #: who joined while something waited: not told yet of those who had sent it (I-1)
        self.last_strange: Waiting | None = None  #: the last entry that waited when one of them joined
        self.gap: Gap = {}  #: what was lost before the first message that waits
        self.last_gap: Gap | None = None  #: and after the last

    def __str__(self) -> str:
        if self.group is not None:
            return f"group {self.group.name!r} on {self.group.pattern!r}"
        assert self.lane is not None
        return f"lane {self.lane.number} ({self.lane.pattern!r}) of {self.lane.peer}"

    @property
    def pattern(self) -> str:
        """What it waits for."""
        where = self.lane or self.group
        assert where is not None
        return where.pattern

    def members(self) -> list[Lane]:
        """The lanes that take from it."""
        return list(self.group.members) if self.group is not None else [self.lane] if self.lane is not None else []

    def is_of(self, peer: Peer) -> bool:
        """Whether *peer* is one of those that take from it: they are never held by it."""
        if self.group is None:
            return self.payer is peer
        return peer.grouped is not None and self.group.has(peer)

    def add(self, piece: Piece, size: int, count: int, deadline: float | None, hold: Hold | None) -> None:
        """Add frames at the end, which the caller charges for. What would pin a read many times its size is copied; small ones are
        gathered, where they wait equally long and are charged alike."""
        self.count += count
        pieces = self.pieces
        if size < GATHER_BYTES // 8:
            if pieces and self.last_gap is None:
                last = pieces[-1]
                tail = last.piece
                if isinstance(tail, bytearray) and len(tail) + size <= GATHER_BYTES and last.deadline == deadline and last.hold is hold:
                    tail += piece
                    last.count += count
                    return
            entry = Waiting(bytearray(piece), count, deadline, hold)
        else:
            entry = Waiting(bytes(piece) if piece.__class__ is memoryview and pins(piece) else piece, count, deadline, hold)
        if self.last_gap is not None:
            entry.gap, self.last_gap = self.last_gap, None
        pieces.append(entry)

    def reach(self, first: Waiting) -> None:
        """What was lost before the *first* entry was lost after nothing that waits any more."""
        if first.gap is not None:
            self._merge(first.gap)
            first.gap = None

    def close_gaps(self) -> None:
        """Nothing waits any more: what was lost after the last is now lost before whatever comes."""
        if self.last_gap is not None:
            self._merge(self.last_gap)
            self.last_gap = None

    def _merge(self, gap: Gap) -> None:
        for why, (count, size) in gap.items():
            note(self.gap, why, count, size)

    def untold(self) -> int:
        """Messages that were lost and not told yet."""
        gaps = [self.gap, self.last_gap, *(entry.gap for entry in self.pieces)]
        return sum(count for gap in gaps if gap is not None for count, _ in gap.values())


def note(gap: Gap, why: str, count: int, size: int) -> None:
    """Add to what was lost at one place."""
    loss = gap.setdefault(why, [0, 0])
    loss[0] += count
    loss[1] += size
