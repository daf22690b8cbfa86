"""Requests in flight: from the read of the REQUEST until it settles in exactly one way (R-2)."""

from __future__ import annotations

import heapq

from .peers import Peer

#: Settled requests may stay in the heap of deadlines until they are more than the ones in flight, and more than this.
_STALE_MIN = 1_000


class Pending:
    """One request in flight."""

    __slots__ = ("callee", "credit", "deadline", "id", "requester", "sequence", "settled", "to")

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

    def __init__(self) -> None:
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
        self._open += 1
        self._sequence += 1
        heapq.heappush(self._heap, (pending.deadline, self._sequence, pending))
        if self.earliest is None or pending.deadline < self.earliest:
            self.earliest = pending.deadline

    def settle(self, pending: Pending) -> None:
        """Take a request out; it must be in flight."""
        pending.settled = True
        requester, callee = pending.requester, pending.callee
        assert requester.calls is not None
        assert callee.serving is not None
        del requester.calls[pending.id]
        del callee.serving[requester.id, pending.id]
        self._open -= 1
        if not self._open:
            self._heap.clear()
            self.earliest = None
        elif len(self._heap) > 2 * self._open + _STALE_MIN:
            self._heap = [entry for entry in self._heap if not entry[2].settled]
            heapq.heapify(self._heap)
            self.earliest = self._heap[0][0]

    def due(self, now: float) -> list[Pending]:
        """The requests in flight that expired, still in the table."""
        expired: list[Pending] = []
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][2].settled):
            pending = heapq.heappop(heap)[2]
            if not pending.settled:
                expired.append(pending)
        self.earliest = heap[0][0] if heap else None
        return expired
