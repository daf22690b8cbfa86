"""Direct messages that wait at a receiver: how much of its room each sender has taken, at its connection, its program and its user (Q-5).

Looked at only while more than DIRECT_FREE_BYTES wait, so a receiver that reads costs nothing. The receiver owns its room: its own program
(at its user's level: its own user) may use what is left, a stranger its share. An output goes in order, so what has left it is known by its
place: messages are noted in marks of about MARK_BYTES, each with the offset in the peer's output at which it ends.
"""

from __future__ import annotations

from collections import deque

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits
from .accounts import Accounts, Program, User
from .peers import Peer
from .quotas import BYTES, may_add

DIRECT_FREE_BYTES = 65_536
MARK_BYTES = 16_384


class Inflow:
    """What waits at one receiver, by sender."""

    __slots__ = ("direct", "marks")

    def __init__(self) -> None:
        self.direct: dict[Program | User, int] = {}  #: by the sender's program
        self.marks: deque[Mark] = deque()


class Mark:
    """Some of it: how much, of whom, and the offset in the peer's output at which it ends."""

    __slots__ = ("by", "end", "size")

    def __init__(self) -> None:
        self.by: dict[Program, int] = {}
        self.size = 0
        self.end = 0


class Inflows:
    """Admits direct messages to receivers with much waiting, and takes them off the books when they are gone."""

    def __init__(self, limits: Limits, accounts: Accounts) -> None:
        self.limits = limits
        self._accounts = accounts

    def check(self, sender: Peer, receiver: Peer, to: str, size: int) -> None:
        """Raise ``overloaded`` where *size* bytes more of *sender* are more than its share of the room of *receiver*, which has over
        DIRECT_FREE_BYTES waiting."""
        limit = self.limits.max_output_bytes
        actor, owner = sender.account, receiver.account
        if receiver.out_bytes + size > limit:
            raise no_room(receiver, to, size)
        if actor is owner:
            return
        inflow = receiver.inflow
        _admit(inflow.direct if inflow else {}, actor, limit, receiver.out_bytes, size, to, actor, "limits.max_output_bytes")
        cap = self._accounts.caps[BYTES]
        _admit(owner.direct, actor, cap.program, owner.used[BYTES], size, to, actor, cap.program_option)
        if actor.user is not owner.user:
            _admit(owner.user.direct, actor.user, cap.user, owner.user.used[BYTES], size, to, actor, cap.user_option)

    @staticmethod
    def note(sender: Peer, receiver: Peer, size: int) -> None:
        """*size* bytes of *sender* have just been put into the output of *receiver*; `written` and `forget` take them off the books."""
        inflow = receiver.inflow
        if inflow is None:
            inflow = receiver.inflow = Inflow()
        actor = sender.account
        if not inflow.marks or inflow.marks[-1].size >= MARK_BYTES:
            inflow.marks.append(Mark())
        mark = inflow.marks[-1]
        mark.end = receiver.written_bytes + receiver.out_bytes
        mark.size += size
        mark.by[actor] = mark.by.get(actor, 0) + size
        owner = receiver.account
        for books, key in _books(inflow, owner, actor):
            books[key] = books.get(key, 0) + size

    @staticmethod
    def written(receiver: Peer) -> None:
        """The output of *receiver*, which has an inflow, became shorter."""
        inflow = receiver.inflow
        assert inflow is not None
        while inflow.marks and inflow.marks[0].end <= receiver.written_bytes:
            _take_off(inflow, receiver, inflow.marks.popleft().by)
        if not inflow.marks:
            receiver.inflow = None

    @staticmethod
    def forget(receiver: Peer) -> None:
        """The connection has gone, with what waited for it. Idempotent."""
        inflow, receiver.inflow = receiver.inflow, None
        if inflow is not None:
            for mark in inflow.marks:
                _take_off(inflow, receiver, mark.by)


def _books(inflow: Inflow, owner: Program, actor: Program) -> tuple[tuple[dict[Program | User, int], Program | User], ...]:
    """Where a message of *actor* to a peer of *owner* is written down."""
    return (inflow.direct, actor), (owner.direct, actor), (owner.user.direct, actor.user)


def _take_off(inflow: Inflow, receiver: Peer, by: dict[Program, int]) -> None:
    owner = receiver.account
    for actor, size in by.items():
        for books, key in _books(inflow, owner, actor):
            left = books[key] - size
            if left:
                books[key] = left
            else:
                del books[key]


def _admit(
    books: dict[Program | User, int], key: Program | User, limit: int, used: int, size: int, to: str, actor: Program, option: str
) -> None:
    share = books.get(key, 0)
    users = len(books) + (not share)
    if not may_add(limit, used, users, share, size):
        raise ProtocolError(
            Code.OVERLOADED,
            f"{used} bytes wait for {to!r} or with it, {min(share, used)} of them of {key}, which is as much as its share of {limit}"
            f" allows: {size} more of {actor} are not admitted ({option})",
        )


def no_room(peer: Peer, to: str, size: int) -> ProtocolError:
    """*peer* does not read (N-3, R-2, R-6)."""
    return ProtocolError(
        Code.OVERLOADED, f"{peer.out_bytes} bytes wait for {to!r}, which leaves no room for {size} more (limits.max_output_bytes)"
    )
