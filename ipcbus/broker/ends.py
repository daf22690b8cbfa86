"""How connections end: by the peer, by the network, or by the bus; and what of a peer ends with them (H-10, H-11, E-2).

`broker` is this with what connections bring.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..protocol.errors import Code, ProtocolError
from ..protocol.messages import Kind, clip_text, encode
from .effort import ENDS_AT_ONCE
from .peers import Peer, Session
from .quotas import LANES, OverQuota
from .state import State

if TYPE_CHECKING:
    from .calls import Calls
    from .charges import Charges
    from .inflow import Inflows
    from .timeouts import Timeouts


class Ends(State):
    """Ends connections, each once. What it needs beside the tables the broker makes."""

    _calls: Calls
    _charges: Charges
    _inflows: Inflows
    _leaving: Timeouts[Peer]
    _sessions: dict[Session, Peer]

    def half_close(self, peer: Peer, now: float) -> None:
        """The peer is done sending (H-11). Idempotent."""
        self.now = self._delivery.now = now
        if peer.closing or peer.half_closed:
            return
        peer.half_closed = True
        self._withdraw(peer)
        if peer.calls:
            self._leaving.start(peer, now)
        else:
            self._end(peer)

    def disconnect(self, peer: Peer, now: float) -> None:
        """The connection is gone: release everything the peer had. Idempotent, and goes on where a fault (no memory) interrupted it, or the
        peer's end before."""
        self.now = self._delivery.now = now
        if peer.closed:
            return
        self._end(peer)
        if peer.lanes or peer.claims or peer.holds or peer.serving or peer.calls:
            self._let_go(peer)
        peer.closed = True
        peer.connection.scanner.owner = None  # its memory is free at once
        self.counters.add(peer)
        self.peers.pop(peer.id, None)
        self._delivery.gone(peer)
        peer.out.clear()
        peer.out_bytes = 0
        self._charges.forget(peer)
        self._inflows.forget(peer)
        self.accounts.leave(peer.account)
        self.losses.record("unknown", peer, peer.given - peer.delivered, peer.given_bytes - peer.delivered_bytes)

    # --- steps -------------------------------------------------------------------------------------

    def _withdraw(self, peer: Peer) -> None:
        """Everything that others use of a peer ends: names, subscriptions, methods, the requests it was to answer (H-11)."""
        self._delivery.forget_publisher(peer)
        lanes = peer.lanes or {}
        many = len(lanes) > ENDS_AT_ONCE
        for lane in reversed(tuple(lanes.values())):  # who pays for a group's queue is its first member: that stays to the last
            if not many or lane.group is not None or lane.backlog is not None or lane.watches:
                self.remove_lane(lane)
        if lanes:
            self.routes.leave(lanes.values())
            self.accounts.release(peer.account, LANES, len(lanes))
        peer.lane = peer.lanes = peer.grouped = peer.waiting = None
        self.publications.left(peer)
        self.announce_all(self.names.release_all(peer))
        self._calls.callee_died(peer)

    def _end(self, peer: Peer) -> None:
        """The connection ends after what is in its output. Idempotent."""
        self._strangers.stop(peer)
        self._leaving.stop(peer)
        if peer.closing:
            return
        peer.closing = True
        peer.unread, peer.unread_bytes = None, 0
        peer.connection.close()
        session = peer.session
        if session is not None and self._sessions.get(session) is peer:
            del self._sessions[session]
        self._let_go(peer)

    def _let_go(self, peer: Peer) -> None:
        """All that it had and asked ends; each step may be done again where a later one failed."""
        self._withdraw(peer)
        self._calls.requester_went(peer)
        self._delivery.touch(peer)

    def _settled(self, requester: Peer) -> None:
        """A peer that is done sending stays only for its answers (H-11)."""
        if requester.half_closed and not requester.calls:
            self._end(requester)

    def _expel(self, peer: Peer, error: ProtocolError) -> None:
        """End a connection with a fatal error: BYE, and one line in the log (E-2)."""
        if not self._strangers.holds_back(peer, error, self.now):
            self._dismiss(peer, error)

    def _dismiss(self, peer: Peer, error: ProtocolError) -> None:
        """The same, at once in any case."""
        if peer.closing:
            return
        self.losses.closed(peer, error)
        if not self._strangers.failed(peer, error, self.now):
            self._log(logging.WARNING, f"{peer} closed: {error}")
        self._end(peer)
        if error.code is Code.SLOW_READER or isinstance(error, OverQuota):
            self._delivery.drop_output(peer)
        self._delivery.put(peer, encode(Kind.BYE, 0, error.code.value, clip_text(error.text)))

    def _evict(self, peer: Peer, error: OverQuota) -> None:
        """A peer has to go for what waits; one that is going already, and does not read what is left for it, loses that."""
        if peer.closing:
            self._delivery.drop_output(peer)
        else:
            self._expel(peer, error)

    def expel(self, peer: Peer, code: Code, text: str, now: float) -> None:
        """End a connection from outside, for instance after a fault in its work (``internal``)."""
        self.now = self._delivery.now = now
        self._expel(peer, ProtocolError(code, text))
