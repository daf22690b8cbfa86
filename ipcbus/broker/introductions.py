"""Who is told of whom: before the first message of a sender a receiver that asked for it gets NOTICE ``identity`` (I-1 to I-4).

For publications that costs nothing for each message. A route is found for one publisher, and again whenever its receivers may have
changed: then all of them are introduced that were not (`introduce_all`). What waits in a queue goes out later, so the order holds; only
who joins a group while something waits there gets messages whose route was found without it (`introduce_number`). Whatever else is given
to a peer for another one looks itself: `introduce`, or the same test written out where it is hot.
"""

from __future__ import annotations

from ..protocol.limits import MAX_INTRODUCED
from .effort import INTRODUCED, Effort
from .lanes import OUTPUT_HIGH_BYTES, Group, Lane
from .origins import Origin, forgotten, identity_notice
from .outputs import Outputs
from .peers import Peer

#: So many introductions are remembered in all; then a receiver who is told of one more forgets two, down to the fewest. That costs notices
#: only, for receivers remember them all the same (I-3). A remembered one takes 36 to 72 bytes.
_REMEMBERED_MAX = 1_048_576
_REMEMBERED_MIN = 16
#: So many peers that went last are remembered: what they have published may wait in the queue of a group that somebody joins.
_DEPARTED_MAX = 1_024


class Introductions(Outputs):
    """Introduces senders to receivers, each once, as long as the receiver can be expected to remember it (I-3)."""

    def __init__(self, peers: dict[int, Peer], effort: Effort) -> None:
        super().__init__()
        self._effort = effort
        self._peers = peers
        self._departed: dict[int, Origin] = {}
        self._remembered = 0

    def introduce_all(self, origin: Origin, lanes: tuple[Lane, ...], groups: tuple[Group, ...]) -> None:
        """Introduce a sender to all that take from *lanes* and *groups*."""
        for lane in lanes:
            introduced = lane.peer.introduced
            if introduced is not None and origin.id not in introduced:
                self._introduce_reader(origin, lane.peer, introduced)
        for group in groups:
            for lane in group.members:
                introduced = lane.peer.introduced
                if introduced is not None and origin.id not in introduced:
                    self._introduce_reader(origin, lane.peer, introduced)

    def _introduce_reader(self, origin: Origin, receiver: Peer, introduced: dict[int, None]) -> None:
        """Publications wait while much output does, and so do their introductions: a notice needs no credit, so who comes and goes could
        fill the output of one that does not read until that is closed for it."""
        if receiver.out_bytes < OUTPUT_HIGH_BYTES:
            self._tell_of(origin, receiver, introduced)
            return
        if receiver.unintroduced is None:
            receiver.unintroduced = {}
        receiver.unintroduced[origin.id] = origin
        if len(receiver.unintroduced) > MAX_INTRODUCED:  # it would forget the first by the last
            del receiver.unintroduced[next(iter(receiver.unintroduced))]

    def introduce_waiting(self, receiver: Peer) -> None:
        """Its output is small enough again for publications: first those who sent them."""
        if not receiver.closing:
            for origin in (receiver.unintroduced or {}).values():
                self.introduce(origin, receiver)
        receiver.unintroduced = None

    def introduce(self, origin: Origin, receiver: Peer) -> None:
        """Introduce a sender to *receiver*, unless that was done or is not wanted."""
        introduced = receiver.introduced
        if introduced is not None and origin.id not in introduced:
            self._tell_of(origin, receiver, introduced)

    def introduce_number(self, number: int, receiver: Peer) -> None:
        """The same for whom only the number is known, because its message has waited."""
        introduced = receiver.introduced
        if introduced is None or number in introduced or not number:
            return
        origin = self.origin_of(number)
        if origin is not None:
            self._introduce_reader(origin, receiver, introduced)
        else:
            self._remember(number, receiver, introduced, identity_notice(forgotten(number)))

    def origin_of(self, number: int) -> Origin | None:
        """Who *number* is or was, as far as the bus knows."""
        peer = self._peers.get(number)
        return peer.origin if peer is not None else self._departed.get(number)

    def gone(self, peer: Peer) -> None:
        """A peer has gone; something that it sent may wait yet. It is told of nobody any more."""
        if peer.introduced is not None:
            self._remembered -= len(peer.introduced)
            peer.introduced = None
        if peer.in_messages:
            departed = self._departed
            departed[peer.id] = peer.origin
            if len(departed) > _DEPARTED_MAX:
                del departed[next(iter(departed))]
            peer.origin.settle()

    def _tell_of(self, origin: Origin, receiver: Peer, introduced: dict[int, None]) -> None:
        self._remember(origin.id, receiver, introduced, origin.notice)

    def _remember(self, number: int, receiver: Peer, introduced: dict[int, None], notice: bytes) -> None:
        self._effort.spent += INTRODUCED
        self.put(receiver, notice)
        introduced[number] = None
        self._remembered += 1
        crowded = self._remembered > _REMEMBERED_MAX
        for _ in range(2):
            if len(introduced) > (_REMEMBERED_MIN if crowded else MAX_INTRODUCED):
                del introduced[next(iter(introduced))]
                self._remembered -= 1
