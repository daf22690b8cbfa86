"""The record of one connection: who it is, what waits to be written to it, and what it has declared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..protocol.connection import Connection
from ..protocol.limits import CHECKPOINT_BYTES
from .origins import Origin

if TYPE_CHECKING:
    from ..policy import Rights
    from .accounts import Program
    from .holding import Hold, Holding
    from .inflow import Inflow
    from .lanes import Lane
    from .names import Claim
    from .requests import Pending

Piece = bytes | bytearray | memoryview  #: bytes on their way to a peer
Session = tuple[int | str, str, str]  #: user, TCP identity, and what HELLO said (H-13)


#: So many requests in flight, and so many bytes that wait, come with a connection: they are not charged.
CALLS_FREE = 8
BYTES_FREE = 65_536


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int  #: 0: in another pid namespace
    uid: int
    gid: int
    groups: tuple[int, ...] = ()  #: supplementary ones, sorted
    unit: str = ""  #: the systemd service or scope of the system; "": none, or not known
    user_unit: str = ""  #: the same of the user's own service manager


class Peer:
    """One connection. The daemon reads ``out``, ``out_bytes``, ``held``, ``closing`` and ``closed`` and writes none of them."""

    __slots__ = (
        "_origin",
        "account",
        "backlog_bytes",
        "bound",
        "callers",
        "calls",
        "calls_room",
        "charged",
        "claims",
        "closed",
        "closing",
        "connected_at",
        "connection",
        "credentials",
        "delivered",
        "delivered_bytes",
        "denied",
        "ending",
        "forwarded",
        "given",
        "given_bytes",
        "grouped",
        "half_closed",
        "held",
        "holds",
        "id",
        "identity",
        "in_bytes",
        "in_messages",
        "inflow",
        "introduced",
        "lane",
        "lanes",
        "link",
        "logged",
        "lost",
        "marks",
        "may_call",
        "out",
        "out_bytes",
        "parked_at",
        "parked_bytes",
        "refused",
        "rights",
        "serving",
        "touched",
        "transport",
        "unintroduced",
        "unread",
        "unread_bytes",
        "waiting",
        "wills",
        "written_bytes",
    )

    def __init__(
        self, connection: Connection, transport: str, credentials: Credentials | None, now: float, account: Program
    ) -> None:
        self.connection = connection
        self.account = account  #: who is charged for it (Q-1)
        self.transport = transport  #: "unix" or "tcp"
        self.credentials = credentials
        self.identity = ""  #: TCP: the name of the secret that its proof was made with; "" until then, and on a Unix socket
        self.rights: Rights | None = None  #: what it may do; None: everything, and nobody asks
        self.may_call: set[str] | None = None  #: calls that its rights were asked about, and allow
        self.connected_at = now
        self.id = 0  #: H-7; 0 until WELCOME
        self._origin: Origin | None = None
        self.introduced: dict[int, None] | None = None  #: the senders that it was told of, in this order (I-3); None: it does not ask
        self.unintroduced: dict[int, Origin] | None = None  #: senders that it is told of when less waits for it
        self.link: Any = None  #: the daemon's own record of the socket; the broker never looks at it

        self.out: list[Piece] = []
        self.out_bytes = 0
        self.backlog_bytes = 0  #: what waits in the backlogs of its lanes, and of the groups that it pays for
        self.charged = 0  #: how much of all that waits for it is charged to its account (Q-3)
        self.inflow: Inflow | None = None  #: direct messages that wait for it, while much does (Q-5)
        self.touched = False  #: is in the broker's list of peers to look at
        self.held = 0  #: above 0: it has parked too much (L-12), do not read from it
        self.holds: dict[Holding, Hold] | None = None  #: by which queues this publisher is held
        self.parked_bytes = 0  #: what waits in these queues at its expense
        self.parked_at = 0  #: ``in_bytes`` when that began: until it changes it is one read's
        self.ending = ""  #: why it is to be closed as ``slow_reader`` at the end of the round
        self.closing = False  #: write `out`, then close
        self.closed = False  #: gone; nothing refers to it any more
        self.half_closed = False  #: H-11
        self.unread: Iterator[Any] | None = None  #: the rest of a read, when its slice was used up; it is read no more until then
        self.unread_bytes = 0  #: the size of that read, all of which it keeps

        self.lane: Lane | None = None  #: the lane that was announced last (L-3)
        self.lanes: dict[int, Lane] | None = None
        self.waiting: dict[Lane, None] | None = None  #: lanes with a backlog
        self.grouped: dict[Lane, None] | None = None  #: its lanes that are in a group
        self.claims: dict[str, Claim] | None = None  #: names owned or waited for
        self.wills: dict[str, bytes] | None = None  #: by topic: the frame to publish when it goes without BYE (W-1)
        self.bound: dict[str, None] | None = None  #: topics whose kept message goes with it (W-2)
        self.calls: dict[int, Pending] | None = None  #: requests it made
        self.calls_room = CALLS_FREE  #: how many requests it may have in flight before its account is asked again
        self.callers: dict[Program, int] | None = None  #: requests it answers by the program that made them, while they are many (Q-6)
        self.serving: dict[tuple[int, int], Pending] | None = None  #: requests it answers, by requester and id

        self.in_messages = 0
        self.in_bytes = 0
        self.given = 0  #: publications and sends put into its output, one count per lane
        self.given_bytes = 0
        self.delivered = 0  #: of those: known to be with the kernel whole
        self.delivered_bytes = 0
        self.marks: deque[tuple[int, int, int]] | None = None  #: ``written_bytes`` at which some were given: how many, and their bytes
        self.lost: dict[str, int] | None = None  #: messages of its lanes, and groups that it pays for, by the counters of B-4
        self.refused = 0  #: messages that the bus answered with an error
        self.denied = 0  #: of those: because its rights do not allow them
        self.forwarded = 0  #: requests and answers given to it
        self.written_bytes = 0
        self.logged: set[int] | None = None  #: codes of refusals that were logged

    @property
    def program(self) -> str:
        """What the client calls itself; untrusted."""
        return self.connection.info.get("program", "")

    @property
    def session(self) -> Session | None:
        """Whose connections end when this one begins (H-13): only those of the same user, for others may know what its HELLO says."""
        said = self.connection.info.get("session")
        return (self.account.user.uid, self.identity, said) if said else None

    @property
    def origin(self) -> Origin:
        """What stays of it with its messages. It was given WELCOME."""
        if self._origin is None:
            self._origin = Origin(self.id, self.account, self.transport, self.program, self.credentials, self.identity)
        return self._origin

    def mark(self) -> None:
        """Note what its output holds now, so that more is known than nothing where the connection goes before it is empty (B-4)."""
        end = self.written_bytes + self.out_bytes
        if self.marks is None:
            self.marks = deque()
        if not self.marks or end - self.marks[-1][0] >= CHECKPOINT_BYTES:
            self.marks.append((end, self.given, self.given_bytes))

    def pass_marks(self) -> None:
        """Its output became shorter, and not empty: what stood before a mark that was passed is delivered."""
        marks = self.marks
        while marks and marks[0][0] <= self.written_bytes:
            _, self.delivered, self.delivered_bytes = marks.popleft()

    @property
    def queued_bytes(self) -> int:
        """All that waits for this peer: output, and the backlogs that it pays for."""
        return self.out_bytes + self.backlog_bytes

    def too_much(self) -> str:
        """Why it is closed where more waits for it than may (E-2)."""
        return f"{self.queued_bytes} bytes wait for this peer: it does not read, or gives no credit (limits.max_output_bytes)"

    @property
    def waiting_bytes(self) -> int:
        """What its account is charged for (Q-3): that, what it has parked, and what it has sent that is not worked off."""
        return self.out_bytes + self.backlog_bytes + self.parked_bytes + self.unread_bytes + self.connection.scanner.held_bytes

    def __str__(self) -> str:
        who = f"pid {self.credentials.pid} uid {self.credentials.uid}" if self.credentials else self.transport
        return f"peer {self.id} ({self.program!r}, {who})"
