"""The bytes that wait for peers, charged to their accounts (Q-3).

What waits for a peer (its output, the queues that it pays for, the part of a frame that came) is one figure, looked at where it changed by
much: after a read, at the end of a round, after a write. `settle` brings the charge to it, so there is nothing that could be forgotten;
`forget` takes it back whole. Up to BYTES_FREE come with the connection.

More than its share is allowed for as long as every level has room and the peer moves; one that stands still for quota_grace_s loses what
waits in its queues, and is closed where that is not enough. Where a level is full, whoever has most there goes at once, and not who came
last: a burst to somebody who reads does not cost that one its connection.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ..protocol.limits import Limits
from .accounts import Accounts, Level
from .peers import BYTES_FREE, Peer
from .quotas import BYTES, OverQuota
from .timeouts import Timeouts

#: What is compared where a level is full: what its user, its program and the peer have (below 0, for a heap), and a number, for order.
Rank = tuple[int, int, int, int, Peer]


class Charges:
    """Charges for what waits. *shed* takes so many bytes from a peer's queues, for a reason in words; *expel* ends a connection, or where
    it is ending takes away what waits for it."""

    def __init__(
        self, limits: Limits, accounts: Accounts, *, shed: Callable[[Peer, int, str], None], expel: Callable[[Peer, OverQuota], None]
    ) -> None:
        self.beyond: Timeouts[Peer] = Timeouts(limits.quota_grace_s)  #: peers of programs that have more than their share
        self._moved: dict[Peer, int] = {}  #: of these: how far they were when their time began
        self._leaving: dict[Peer, int] = {}  #: those that were closed for it: what is still charged for them
        self.free_bytes = BYTES_FREE
        self._ranks: dict[Level, list[Rank]] = {}  #: in this round, for each full level: who has most (a heap)
        self._ranked = 0
        self._accounts = accounts
        self._shed = shed
        self._expel = expel

    def settle(self, peer: Peer, now: float) -> None:
        """Bring what is charged for *peer* to what waits, and see to it that it may be so much."""
        waits = peer.waiting_bytes
        if waits <= self.free_bytes:
            waits = 0
        more = waits - peer.charged
        if not more:
            return
        self._charge(peer, more)
        if more < 0:
            if peer in self._moved and self._accounts.is_fair(peer.account, BYTES):
                self._stop(peer)
        elif not peer.closing:
            for level in (self._accounts, peer.account.user, peer.account) if self._ranks else ():
                if level in self._ranks:
                    heapq.heappush(self._ranks[level], self._rank(peer))
            self._judge(peer, now)

    def _judge(self, peer: Peer, now: float) -> None:
        """What is charged for *peer* has grown, or may be less than before."""
        if self._accounts.is_full(peer.account, BYTES):
            self._make_room(peer)
        elif peer not in self._moved and not self._accounts.is_fair(peer.account, BYTES):
            for one in peer.account.waiting:  # it is not for the one that came last that the program has too much
                if one not in self._moved and not one.closing:
                    self._start(one, now)

    def round_over(self) -> None:
        """Who has most is looked for anew where that is asked again."""
        if self._ranks:
            self._ranks = {}

    def reconfigure(self, limits: Limits, now: float) -> None:
        """Other limits, which hold for what waits, too."""
        self.beyond.set_delay(limits.quota_grace_s, now)
        for program in [program for user in self._accounts.users.values() for program in user.programs.values()]:
            for peer in tuple(program.waiting):
                if not peer.closing:
                    self._judge(peer, now)
        self.round_over()

    def due(self, now: float) -> None:
        """Look at those whose time beyond their share is over, those for whom most waits first."""
        for peer in sorted(self.beyond.due(now), key=lambda peer: -peer.charged):
            before = self._moved.pop(peer)
            if peer.closing or self._accounts.is_fair(peer.account, BYTES):
                continue
            if before != _progress(peer) or peer.unread is not None:  # the bus itself has not worked off what it sent
                self._start(peer, now)
            else:
                error = self._accounts.refusal(peer.account, BYTES)
                self._cut(peer, self._accounts.excess(peer.account, BYTES), error)
                if not peer.closing and not self._accounts.is_fair(peer.account, BYTES):
                    self._close(peer, error)

    def forget(self, peer: Peer) -> None:
        """The connection has gone, with all that waited for it. Idempotent."""
        self._charge(peer, -peer.charged)
        self._leaving.pop(peer, None)
        if peer in self._moved:
            self._stop(peer)

    # --- charges ----------------------------------------------------------------------------------

    def _charge(self, peer: Peer, more: int) -> None:
        peer.charged += more
        if not peer.charged:
            peer.account.waiting.pop(peer, None)
        elif peer.charged == more:
            peer.account.waiting[peer] = None
        if more > 0:
            self._accounts.add(peer.account, BYTES, more)
        elif more:
            self._accounts.release(peer.account, BYTES, -more)
        if peer in self._leaving:
            self._leaving[peer] += more
            self._accounts.leave_soon(peer.account, more)

    def _start(self, peer: Peer, now: float) -> None:
        self._moved[peer] = _progress(peer)
        self.beyond.start(peer, now)

    def _stop(self, peer: Peer) -> None:
        del self._moved[peer]
        self.beyond.stop(peer)

    # --- what is too much -------------------------------------------------------------------------

    def _make_room(self, peer: Peer) -> None:
        """A level that *peer* belongs to is full: the peer with most of the program with most, of the user with most there, loses it."""
        accounts = self._accounts
        while (level := accounts.full_level(peer.account)) is not None and (worst := self._worst(level)) is not None:
            error = accounts.refusal(worst.account, BYTES)
            self._cut(worst, accounts.overdraft(peer.account), error)
            if accounts.overdraft(peer.account) > 0:
                self._close(worst, error)

    def _worst(self, level: Level) -> Peer | None:
        """Who has most at *level*, of those who are not leaving. Looks at all once a round, and then at those that changed."""
        ranks = self._ranks.get(level)
        if ranks is None:
            ranks = self._ranks[level] = [self._rank(peer) for program in level.under() for peer in program.waiting]
            heapq.heapify(ranks)
        while ranks:
            peer = ranks[0][-1]
            if peer in self._leaving or not peer.charged:
                heapq.heappop(ranks)
                continue
            rank = self._rank(peer)
            if rank[:3] == ranks[0][:3]:
                return peer
            heapq.heapreplace(ranks, rank)
        return None

    def _rank(self, peer: Peer) -> Rank:
        program = peer.account
        user = program.user
        self._ranked += 1
        return user.leaving - user.used[BYTES], program.leaving - program.used[BYTES], -peer.charged, self._ranked, peer

    def _cut(self, peer: Peer, size: int, error: OverQuota) -> None:
        """Take *size* bytes from a peer's queues, as far as they have so much."""
        before = peer.backlog_bytes
        self._shed(peer, size, error.text)
        if peer.backlog_bytes < before:
            self._accounts.log_loss(peer.account, f"messages for {peer} are lost: {error.text}")
        self._charge(peer, min(peer.waiting_bytes - peer.charged, 0))

    def _close(self, peer: Peer, error: OverQuota) -> None:
        if peer in self._moved:
            self._stop(peer)
        self._expel(peer, error)
        self._charge(peer, min(peer.waiting_bytes - peer.charged, 0))
        if peer.charged:
            self._leaving[peer] = peer.charged
            self._accounts.leave_soon(peer.account, peer.charged)


def _progress(peer: Peer) -> int:
    """What grows while the peer moves: what it reads, and where nothing waits for it, what it writes."""
    return peer.written_bytes if peer.queued_bytes else peer.in_bytes
