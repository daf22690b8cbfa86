"""The oracle's records: what it remembers of each peer and request. Plain state; `oracle.py` judges."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from .queues_model import LaneModel
from .shares_model import ProgramModel

ANSWER_BYTES = 2_000  #: of the bus: more than any
IDENTITY_BYTES = 300  #: of a NOTICE identity: more than any


@dataclass(eq=False, slots=True)
class RequestModel:
    """R-2: a request and the one way in which it settles: ("frame", raw), ("code", Code), ("value", …), or ("nothing",) after CANCEL."""

    requester: PeerModel
    callee: PeerModel | None
    to: str
    id: int
    deadline: float
    opened: int = 0  #: the order of those that were in flight
    outcome: tuple[Any, ...] | None = None
    told: bool = False
    credit: int = 0  #: R-6
    parts: deque[bytes] = field(default_factory=deque)  #: PARTs on their way to the requester
    sequence: int = 0  #: of the next PART


class PeerModel:
    """One connection, from outside."""

    def __init__(self, label: str, program: ProgramModel, opened_at: float) -> None:
        self.label = label
        self.program = program
        self.opened_at = opened_at
        self.id = 0
        self.ready = False
        self.done_sending = False  #: end of file or BYE was processed
        self.gone = False  #: nothing is expected of it any more
        self.came_bytes = 0  #: of all frames of it that were processed
        self.buffer_in = bytearray()
        self.buffer_out = bytearray()
        self.unread_bytes = 0  #: Q-1: of a read of it that is not worked off, until all of it is
        self.lanes: dict[int, LaneModel] = {}  #: the closed ones too: their frames may still be on the way
        self.session = ""  #: H-13
        self.calls_itself = ""
        self.asks_identity = False  #: H-3
        self.introduced: set[int] = set()  #: I-1
        self.lane: LaneModel | None = None  #: L-3
        self.requests: dict[int, RequestModel] = {}
        self.calls: dict[int, RequestModel] = {}  #: of these, what is in flight
        self.serving: dict[tuple[int, int], RequestModel] = {}
        self.direct: deque[bytes] = deque()  #: SENDs, REQUESTs and ALLOWs on their way to it
        self.refusals: Counter[int] = Counter()  #: errors with id 0 that it must still be told, by code
        self.pings: deque[int] = deque()
        self.notices: list[tuple[str, str]] = []
        self.published: set[str] = set()  #: topics
        self.holds: dict[int, str] = {}  #: L-12: patterns by the hold's id
        self.wills: dict[str, bytes] = {}  #: by topic: the frame (W-1)
        self.bound: dict[str, None] = {}  #: topics (W-2)
        self.said_bye: int | None = None

    def __repr__(self) -> str:
        return self.label

    def waiting_bytes(self) -> int:
        """As much as may wait for it, and of what it sends."""
        lanes = self.lanes.values()  # what a closed one was given may still wait in the output
        groups = {lane.group for lane in lanes if lane.group is not None}
        waits = [*(raw for lane in lanes for raw in lane.expected), *self.direct, *(raw for group in groups for raw in group.outstanding)]
        answers = [request.outcome for request in self.requests.values() if request.outcome is not None and not request.told]
        size = sum(map(len, waits)) + sum(ANSWER_BYTES + sum(len(part) for part in one if isinstance(part, bytes)) for one in answers)
        parts = sum(len(part) for request in self.requests.values() for part in request.parts)
        few = ANSWER_BYTES * (self.refusals.total() + len(self.notices) + len(self.pings) + len(self.lanes))
        return size + parts + few + len(self.buffer_in) + self.unread_bytes + len(self.buffer_out)
