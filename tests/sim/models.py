"""The oracle's records: what it remembers of each peer, lane, group and request. Plain state; `oracle.py` judges."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ipcbus.protocol import topics
from ipcbus.protocol.messages import decode


class ViolationError(AssertionError):
    """The bus broke a promise."""


def frames_in(buffer: bytearray) -> list[bytes]:
    """Take the whole frames out of *buffer*."""
    if len(buffer) < 5:
        return []
    data = bytes(buffer)
    found, at = [], 0
    while at + 5 <= len(data) and data[at] == 0xCE:
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        found.append(data[at:end])
        at = end
    del buffer[:at]
    return found


#: A frame goes by several times: into the bus, out of it to each receiver, into the program. Nobody changes one.
frame_of = lru_cache(4096)(decode)
matches = lru_cache(4096)(topics.matches)


@dataclass(eq=False, slots=True)
class GroupModel:
    """L-6: each message of the pattern goes to one member."""

    outstanding: dict[bytes, list[int]] = field(default_factory=dict)  #: frame → its places in the total order (removals look the same)
    members: set[LaneModel] = field(default_factory=set)
    lost: int = 0  #: told to some member
    member_left: bool = False  #: what was on its way to that member is unknown


@dataclass(eq=False, slots=True)
class LaneModel:
    """L-1: what one subscription must still receive."""

    pattern: str
    group: GroupModel | None
    granted_bytes: int
    granted_messages: int
    expected: deque[bytes] = field(default_factory=deque)
    sent_bytes: int = 0
    sent_messages: int = 0
    losses: Counter[str] = field(default_factory=Counter)  #: said to be lost, since the last message: how many for which reason
    lost_bytes: int = 0
    last_place: int = -1  #: in a group: of the last message
    open: bool = True


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

    def __init__(self, label: str, opened_at: float) -> None:
        self.label = label
        self.opened_at = opened_at
        self.id = 0
        self.ready = False
        self.done_sending = False  #: end of file or BYE was processed
        self.gone = False  #: nothing is expected of it any more
        self.buffer_in = bytearray()
        self.buffer_out = bytearray()
        self.lanes: dict[int, LaneModel] = {}  #: the closed ones too: their frames may still be on the way
        self.session = ""  #: H-13
        self.lane: LaneModel | None = None  #: L-3
        self.requests: dict[int, RequestModel] = {}
        self.calls: dict[int, RequestModel] = {}  #: of these, what is in flight
        self.serving: dict[tuple[int, int], RequestModel] = {}
        self.direct: deque[bytes] = deque()  #: SENDs, REQUESTs and ALLOWs on their way to it
        self.refusals: Counter[int] = Counter()  #: errors with id 0 that it must still be told, by code
        self.pings: deque[int] = deque()
        self.notices: list[tuple[str, str]] = []
        self.wills: dict[str, bytes] = {}  #: by topic: the frame (W-1)
        self.bound: dict[str, None] = {}  #: topics (W-2)
        self.said_bye: int | None = None

    def __repr__(self) -> str:
        return self.label
