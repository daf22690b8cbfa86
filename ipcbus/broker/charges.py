"""The bytes that wait for peers, charged to their accounts (Q-3).

What waits for a peer (its output, the queues that it pays for, the part of a frame that came) is one figure, looked at where it changed by
much: after a read, at the end of a round, after a write. `settle` brings the charge to it, so there is nothing that could be forgotten;
`forget` takes it back whole. Up to BYTES_FREE come with the connection.

More than its share is allowed for as long as every level has room and the peer moves; one that stands still for quota_grace_s loses what
waits in its queues, and is closed where that is not enough. Where a level is full, whoever has most there goes at once, and not who came
last: a burst to somebody who reads does not cost that one its connection.
"""

from __future__ import annotations

from collections.abc import Callable

from ..protocol.limits import Limits
from .accounts import Accounts
from .peers import BYTES_FREE, Peer
from .quotas import BYTES, OverQuota
from .timeouts import Timeouts


class Charges:
    """Charges for what waits. *shed* takes so many bytes from a peer's queues, for a reason in words; *expel* ends a connection."""

    def __init__(
        self, limits: Limits, accounts: Accounts, *, shed: Callable[[Peer, int, str], None], expel: Callable[[Peer, OverQuota], None]
    ) -> None:
        self.beyond: Timeouts[Peer] = Timeouts(limits.quota_grace_s)  #: peers of programs that have more than their share
        self._moved: dict[Peer, int] = {}  #: of these: how far they were when their time began
        self._charged: dict[Peer, None] = {}  #: peers for which something is charged
        self._leaving: dict[Peer, int] = {}  #: those that were closed for it: what is still charged for them
        self.free_bytes = BYTES_FREE
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
            if self._accounts.is_full(peer.account, BYTES):
                self._make_room(peer)
            elif peer not in self._moved and not self._accounts.is_fair(peer.account, BYTES):
                self._start(peer, now)

    def due(self, now: float) -> None:
        """Look at those whose time beyond their share is over."""
        for peer in self.beyond.due(now):
            before = self._moved.pop(peer)
            if peer.closing or self._accounts.is_fair(peer.account, BYTES):
                continue
            if before != _progress(peer):
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
            self._charged.pop(peer, None)
        elif peer.charged == more:
            self._charged[peer] = None
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
        while (excess := accounts.overdraft(peer.account)) > 0:
            there = [one for one in self._charged if not one.closing and accounts.share_a_full_level(one.account, peer.account)]
            if not there:
                break  # all of them are being closed
            worst = max(there, key=_most)
            error = accounts.refusal(worst.account, BYTES)
            self._cut(worst, excess, error)
            if accounts.overdraft(peer.account) > 0 and not worst.closing:
                self._close(worst, error)

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


def _most(peer: Peer) -> tuple[int, int, int]:
    """What is compared where a level is full."""
    program = peer.account
    user = program.user
    return user.used[BYTES] - user.leaving, program.used[BYTES] - program.leaving, peer.charged


def _progress(peer: Peer) -> int:
    """What grows while the peer moves: what it reads, and where nothing waits for it, what it writes."""
    return peer.written_bytes if peer.queued_bytes else peer.in_bytes
