"""Publications beyond the run of bytes: what is kept, what has a time to live, and what a peer leaves behind (L-8, L-11, W-1).

Runs of PUBLISH and RETAIN come here only where they are more than bytes for lanes. A POST is made into the PUBLISH or RETAIN that its
receivers get. What a peer leaves, its bound values and its wills, is published by `left` before anything else of it is released.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits
from ..protocol.messages import Frame, Kind, Meta, decode, encode_with_payload, pack
from ..protocol.topics import check_publication, peer_address
from .accounts import Accounts
from .counters import TopicCounter
from .delivery import Delivery
from .effort import ENDS_AT_ONCE, Effort
from .losses import Losses
from .monitors import Monitors
from .origins import Origin
from .peers import Peer, Piece
from .retained import Retained
from .rights import Judge
from .routing import PublishRoute, RetainRoute, RouteTable


class Publications:
    """Gives publications to lanes and groups, keeps the retained ones, and knows what peers leave behind."""

    def __init__(
        self,
        limits: Limits,
        losses: Losses,
        routes: RouteTable,
        delivery: Delivery,
        accounts: Accounts,
        log: Callable[[int, str], None],
        effort: Effort,
        monitors: Monitors,
        judge: Judge,
    ) -> None:
        self.limits = limits
        self._effort = effort
        self._judge = judge
        self.retained = Retained(limits, accounts)
        self._losses = losses
        self._counters = losses.counters
        self._routes = routes
        self._delivery = delivery
        self._log = log
        self._monitors = monitors

    # --- runs -------------------------------------------------------------------------------------

    def publish(self, route: PublishRoute, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None = None) -> None:
        """Give *count* whole frames to all that *route* reaches."""
        counters = self._counters
        counters.offered += count * (len(route.lanes) + len(route.groups))
        if route.lanes:
            self._delivery.offer(route.lanes, piece, size, count, sender, deadline)
        elif route.nobody is not None:
            counters.no_subscriber += count
            nobody = self._routes.topics.other if route.nobody.retired else route.nobody
            nobody.no_subscriber += count
            nobody.unwanted_at = self._delivery.now
        for group in route.groups:
            self._delivery.offer_group(group, piece, size, count, sender, deadline)
        if route.monitors:
            self._monitors.publication(route, piece, count)

    def retain(self, route: RetainRoute, frame: bytes, peer: Peer) -> None:
        """L-8: keep the last frame of a run; one without payload removes what is kept. Raises ``over_limit``."""
        if len(frame) == route.span:
            self.retained.remove(route.topic)
        else:
            self._keep_of(peer, route.topic, frame, None)

    def announce(self, topic: str, payload: bytes) -> None:
        """Publish *payload* in the name of the bus. The bus's own topics are not counted: they would take the place of others (B-3)."""
        self._give(topic, encode_with_payload(payload, Kind.PUBLISH, 0, topic, None), self._routes.uncounted)

    def _give_counted(self, topic: str, frame: bytes, origin: Origin, sender: Peer | None = None, deadline: float | None = None) -> int:
        """Publish one frame of *origin*; returns how many lanes and groups it goes to. *sender* is who can be held for it."""
        counter = self._routes.topics.of(topic)
        counter.messages += 1
        counter.bytes += len(frame)
        return self._give(topic, frame, counter, origin, sender, deadline)

    def _give(
        self,
        topic: str,
        frame: bytes,
        counter: TopicCounter,
        origin: Origin | None = None,
        sender: Peer | None = None,
        deadline: float | None = None,
    ) -> int:
        lanes, groups = self._routes.receivers(topic)
        if origin is not None:
            self._delivery.introduce_all(origin, lanes, groups)
        route = PublishRoute(0, lanes, groups, counter, self._routes.watching(topic))
        self._effort.spent += route.work
        self.publish(route, frame, len(frame), 1, sender, deadline)
        return len(lanes) + len(groups)

    def _give_removal(self, topic: str, origin: Origin) -> None:
        """Tell who subscribes that what *origin* had retained is kept no more (L-8)."""
        self._give_counted(topic, encode_with_payload(b"", Kind.RETAIN, origin.id, topic, None), origin)

    # --- POST (L-11) ------------------------------------------------------------------------------

    def post(self, peer: Peer, frame: Frame) -> None:
        """A PUBLISH or RETAIN with options. Errors that are not fatal are the caller's to answer."""
        _, _, topic, request, ttl_ms, retain, meta = frame.elements
        peer.in_messages += 1
        check_publication(topic)
        if peer.rights is not None:
            self._judge.publish(peer, topic)
        deadline = None if ttl_ms is None else self._delivery.now + ttl_ms / 1000
        plain = encode_with_payload(frame.payload, Kind.RETAIN if retain else Kind.PUBLISH, peer.id, topic, meta)
        lanes = self._give_counted(topic, plain, peer.origin, peer, deadline)
        if retain:
            self._keep(peer, topic, plain, frame.payload_size, deadline)
        if request is not None:
            answer = encode_with_payload(pack(lanes), Kind.REPLY, 0, peer_address(peer.id), request, None)
            self._delivery.put(peer, answer)

    def _keep_of(self, peer: Peer, topic: str, frame: bytes, deadline: float | None) -> None:
        try:
            self.retained.keep(topic, frame, peer.origin, deadline)
        except ProtocolError as error:
            self._losses.not_kept(topic, peer, error)
            raise

    def _keep(self, peer: Peer, topic: str, frame: bytes, payload_size: int, deadline: float | None) -> None:
        if payload_size:
            self._keep_of(peer, topic, frame, deadline)
        else:
            self.retained.remove(topic)

    def expire(self, now: float) -> None:
        """Remove kept messages whose time has passed, and tell who subscribes to them (L-11)."""
        for topic, origin in self.retained.due(now, ENDS_AT_ONCE):
            self._give_removal(topic, origin)

    # --- what the bus's own methods use -----------------------------------------------------------

    def kept(self, topic: str) -> Frame | None:
        """The kept message of *topic*."""
        self.expire(self._delivery.now)
        frame = self.retained.get(topic, self._delivery.now)
        return None if frame is None else decode(frame)

    def restore(self, peer: Peer, topic: str, meta: Meta, payload: bytes, ttl_ms: int | None, was: list[int]) -> bool:
        """Retain *payload* unless another peer than *was* has published what is kept (B-3). What is kept like that is not published
        again. Raises ``over_limit``."""
        check_publication(topic)
        self._judge.publish(peer, topic)
        self.check_size(payload)
        kept = self.kept(topic)
        if kept is not None and kept.elements[1] not in was:
            return False
        if kept is not None and kept.raw == encode_with_payload(payload, Kind.RETAIN, kept.elements[1], topic, meta):
            return True  # compared as bytes: the header 1 is not the header true (V-2)
        deadline = None if ttl_ms is None else self._delivery.now + ttl_ms / 1000
        frame = encode_with_payload(payload, Kind.RETAIN, peer.id, topic, meta)
        self._give_counted(topic, frame, peer.origin, peer, deadline)
        self._keep(peer, topic, frame, len(payload), deadline)
        return True

    def check_size(self, payload: bytes) -> None:
        """Raise ``over_limit`` for a payload that no frame may have."""
        if len(payload) > self.limits.max_payload_bytes:
            raise ProtocolError(
                Code.OVER_LIMIT, f"a payload of {len(payload)} bytes: at most {self.limits.max_payload_bytes} (limits.max_payload_bytes)"
            )

    def set_will(self, peer: Peer, topic: str, meta: Meta, payload: bytes, *, retain: bool) -> None:
        """What is published when *peer* goes without BYE (W-1). A refused one leaves none on its topic."""
        self.drop_will(peer, topic)
        self._judge.publish(peer, topic)
        self.check_size(payload)
        wills = peer.wills or {}
        limits = self.limits
        if len(wills) >= limits.max_wills:
            raise ProtocolError(Code.OVER_LIMIT, f"this peer has {len(wills)} wills: at most {limits.max_wills} (limits.max_wills)")
        frame = encode_with_payload(payload, Kind.RETAIN if retain else Kind.PUBLISH, peer.id, topic, meta)
        size = sum(map(len, wills.values())) + len(frame)
        if size > limits.max_will_bytes:
            raise ProtocolError(
                Code.OVER_LIMIT, f"the wills of this peer have {size} bytes: at most {limits.max_will_bytes} (limits.max_will_bytes)"
            )
        wills[topic] = frame
        peer.wills = wills

    @staticmethod
    def drop_will(peer: Peer, topic: str) -> None:
        """Take a will back. Idempotent."""
        check_publication(topic)
        if peer.wills is not None:
            peer.wills.pop(topic, None)

    def bind(self, peer: Peer, topic: str) -> None:
        """What is kept for *topic* goes with *peer*, where that one published it (W-2)."""
        check_publication(topic)
        self._judge.publish(peer, topic)
        bound = peer.bound if peer.bound is not None else {}
        if topic not in bound and len(bound) >= self.limits.max_bound:
            raise ProtocolError(
                Code.OVER_LIMIT, f"this peer has bound {len(bound)} topics: at most {self.limits.max_bound} (limits.max_bound)"
            )
        bound[topic] = None
        peer.bound = bound

    @staticmethod
    def unbind(peer: Peer, topic: str) -> None:
        """Let what is kept for *topic* stay. Idempotent."""
        check_publication(topic)
        if peer.bound is not None:
            peer.bound.pop(topic, None)

    # --- the end of a peer ------------------------------------------------------------------------

    def left(self, peer: Peer) -> None:
        """A peer goes: its bound values end, then its wills are published (W-1, W-2), where it may publish there (P-8). After BYE it has no
        wills any more. Idempotent."""
        bound, wills = peer.bound, peer.wills
        peer.bound = peer.wills = None
        for topic in bound or ():
            kept = self.kept(topic)
            if kept is not None and kept.elements[1] == peer.id and self._may_leave(peer, topic):
                self.retained.remove(topic)
                self._give_removal(topic, peer.origin)
        for topic, frame in (wills or {}).items():
            if not self._may_leave(peer, topic):
                continue
            self._give_counted(topic, frame, peer.origin)
            will = decode(frame)
            if will.kind is Kind.RETAIN:
                try:
                    self._keep(peer, topic, frame, will.payload_size, None)
                except ProtocolError as error:
                    self._log(logging.WARNING, f"the will of {peer} on {topic!r} was published but is not kept: {error}")

    def _may_leave(self, peer: Peer, topic: str) -> bool:
        """Whether a peer that goes because of a new policy may still publish to *topic*; from all others what they may not was taken."""
        try:
            self._judge.publish(peer, topic)
        except ProtocolError as error:
            self._log(logging.INFO, f"what {peer} would leave on {topic!r} is not published: {error}")
            return False
        return True
