"""Requests in flight: from the read of the REQUEST until it settles in exactly one way (R-2)."""

from __future__ import annotations

import heapq

from ..protocol.errors import Code, ProtocolError
from .accounts import Accounts, Program
from .peers import CALLS_FREE, Peer
from .quotas import REQUESTS, may_add

#: Settled requests may stay in the heap of deadlines until they are more than the ones in flight, and more than this.
_STALE_MIN = 1_000
#: How many requests in flight are charged at once, so that a request costs no charge of its own.
_CALLS_STEP = 64
#: From so many requests at a callee on they are counted by program, until they are half as many.
CALLERS_COUNTED = 64


class Pending:
    """One request in flight."""

    __slots__ = ("callee", "credit", "deadline", "id", "names", "requester", "sequence", "settled", "to")

    names: tuple[str, ...]  #: by which its answers are shown to monitors; only where somebody monitored when it came

    def __init__(self, requester: Peer, callee: Peer, request: int, to: str, deadline: float) -> None:
        self.requester = requester
        self.callee = callee
        self.id = request
        self.to = to
        self.deadline = deadline
        self.settled = False
        self.credit = 0  #: R-6: bytes of PARTs that the callee may send; below 0 by what the last one overdrew
        self.sequence = 0  #: R-6: of the next PART


class Requests:
    """The table of requests in flight; the peers' records index it by requester (``calls``) and callee (``serving``)."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._heap: list[tuple[float, int, Pending]] = []
        self._sequence = 0
        self._open = 0
        self.earliest: float | None = None  #: no request in flight expires before it; it may be early, for one that has settled

    def __len__(self) -> int:
        return self._open

    def open(self, pending: Pending) -> None:
        """Add a request whose id its requester does not use yet."""
        requester, callee = pending.requester, pending.callee
        if requester.calls is None:
            requester.calls = {}
        if callee.serving is None:
            callee.serving = {}
        requester.calls[pending.id] = pending
        callee.serving[requester.id, pending.id] = pending
        if callee.callers is not None:
            callee.callers[requester.account] = callee.callers.get(requester.account, 0) + 1
        self._open += 1
        self._sequence += 1
        heapq.heappush(self._heap, (pending.deadline, self._sequence, pending))
        if self.earliest is None or pending.deadline < self.earliest:
            self.earliest = pending.deadline

    def settle(self, pending: Pending) -> None:
        """Take a request out; it must be in flight."""
        pending.settled = True
        requester = pending.requester
        assert requester.calls is not None
        del requester.calls[pending.id]
        if requester.calls_room > CALLS_FREE:
            self._less_room(requester, len(requester.calls))
        self.let_go(pending)

    def orphan(self, requester: Peer) -> list[Pending]:
        """All requests of a peer that goes: they are settled, and `let_go` is still to be called for each."""
        orphans = list((requester.calls or {}).values())
        requester.calls = None
        for pending in orphans:
            pending.settled = True
        if requester.calls_room > CALLS_FREE:
            self._less_room(requester, 0)
        return orphans

    def let_go(self, pending: Pending) -> None:
        """A settled request is its callee's no more."""
        requester, callee = pending.requester, pending.callee
        assert callee.serving is not None
        del callee.serving[requester.id, pending.id]
        if callee.callers is not None:
            _one_less(callee, requester.account)
        self._open -= 1
        if not self._open:
            self._heap.clear()
            self.earliest = None
        elif len(self._heap) > 2 * self._open + _STALE_MIN:
            self._heap = [entry for entry in self._heap if not entry[2].settled]
            heapq.heapify(self._heap)
            self.earliest = self._heap[0][0]

    # --- accounts -------------------------------------------------------------------------------------------------------------------

    def more_room(self, requester: Peer) -> None:
        """Charge for further requests of a peer that has as many in flight as it is charged for; `settle` gives them back as they become
        few, and `orphan` does. Raises ``over_limit``."""
        step = _CALLS_STEP if self._accounts.admits(requester.account, REQUESTS, _CALLS_STEP) else 1  # the last ones one by one
        self._accounts.charge(requester.account, REQUESTS, step)
        requester.calls_room += step

    def _less_room(self, requester: Peer, calls: int) -> None:
        if calls and calls + 2 * _CALLS_STEP > requester.calls_room:
            return
        room = max(calls + _CALLS_STEP, CALLS_FREE) if calls else CALLS_FREE
        self._accounts.release(requester.account, REQUESTS, requester.calls_room - room)
        requester.calls_room = room

    def check_callee(self, requester: Peer, callee: Peer, target: str, limit: int) -> None:
        """Raise ``overloaded`` where *callee*, which has at least CALLERS_COUNTED requests in flight, has as many of the requester's
        program as its share of *limit* (Q-6)."""
        assert callee.serving is not None
        if callee.callers is None:
            callee.callers = {}
            for requester_id, request in callee.serving:
                other = callee.serving[requester_id, request].requester.account
                callee.callers[other] = callee.callers.get(other, 0) + 1
        account = requester.account
        if account is callee.account:
            return
        share = callee.callers.get(account, 0)
        users = len(callee.callers) + (not share)
        if not may_add(limit, len(callee.serving), users, share, 1):
            raise ProtocolError(
                Code.OVERLOADED,
                f"{target!r} has {len(callee.serving)} requests in flight, {share} of them of {account}, which is its share of {limit}"
                " (limits.max_callee_requests)",
            )

    def due(self, now: float, most: int) -> list[Pending]:
        """The requests in flight that expired, up to *most* of them, still in the table."""
        expired: list[Pending] = []
        heap = self._heap
        while heap and len(expired) < most and (heap[0][0] <= now or heap[0][2].settled):
            pending = heapq.heappop(heap)[2]
            if not pending.settled:
                expired.append(pending)
        self.earliest = heap[0][0] if heap else None
        return expired


def _one_less(callee: Peer, account: Program) -> None:
    callers = callee.callers
    assert callers is not None
    assert callee.serving is not None
    if len(callee.serving) < CALLERS_COUNTED // 2:
        callee.callers = None
    elif callers[account] > 1:
        callers[account] -= 1
    else:
        del callers[account]
