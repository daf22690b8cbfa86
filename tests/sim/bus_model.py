"""The reference model of the requests to the bus itself: subscriptions, names, wills, bound values and what is kept (B-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.messages import Kind, encode_with_payload

from .models import PeerModel
from .queues_model import GroupModel, LaneModel, terms_of
from .shares_model import admits
from .violations import frame_of, matches, refusal_of

if TYPE_CHECKING:
    from .oracle import Oracle


class BusModel:
    """What one bus answers, and what it does."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def call(self, peer: PeerModel, method: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """A request to the bus takes effect, and settles, in its place of the order."""
        if method == "subscribe":
            if sum(lane.open for lane in peer.lanes.values()) >= self._oracle.limits.max_lanes:
                self._oracle.checked["max_lanes"] += 1
                return ("code", Code.OVER_LIMIT)
            try:
                return ("value", self._subscribe(peer, arguments))
            except ProtocolError as error:
                return ("code", error.code)
        if method == "unsubscribe":
            lane = peer.lanes.get(arguments["lane"])
            if lane is None or not lane.open:
                return ("code", Code.NO_SUCH_LANE)
            self._oracle.close_lane(lane)
            return ("dropped", lane)
        if method in ("will", "bind", "unbind", "get", "restore"):
            return self._state(peer, method, **arguments)
        try:
            value, notices = self._oracle.names.call(method, peer, arguments)
        except ProtocolError as error:
            return ("code", error.code)
        for receiver, name, about in notices:
            receiver.notices.append((name, about))
        return ("value", value) if value is not None else ("any",)

    def _state(self, peer: PeerModel, method: str, topic: str, **more: Any) -> tuple[Any, ...]:
        """W-1, W-2, and what is kept."""
        if method == "get":
            self._oracle.expire_kept()
            if topic not in self._oracle.retained.frames:
                return ("value", None)
            kept = frame_of(self._oracle.retained.frames[topic])
            return ("value", {"topic": topic, "sender": kept.elements[1], "meta": kept.elements[3], "payload": kept.payload})
        refusal = refusal_of(topic)
        if refusal is not None:
            return ("code", refusal)
        if method == "restore":
            try:
                return ("value", {"restored": self._restore(peer, topic, **more)})
            except ProtocolError as error:
                return ("code", error.code)
        if method == "will":
            peer.wills.pop(topic, None)
            if "payload" in more and len(peer.wills) >= self._oracle.limits.max_wills:
                self._oracle.checked["max_wills"] += 1
                return ("code", Code.OVER_LIMIT)
            if "payload" in more:
                kind = Kind.RETAIN if more.get("retain") else Kind.PUBLISH
                peer.wills[topic] = encode_with_payload(more["payload"], kind, peer.id, topic, more.get("meta"))
        elif method == "bind":
            if topic not in peer.bound and len(peer.bound) >= self._oracle.limits.max_bound:
                self._oracle.checked["max_bound"] += 1
                return ("code", Code.OVER_LIMIT)
            peer.bound[topic] = None
        else:
            peer.bound.pop(topic, None)
        return ("value", {})

    def _restore(self, peer: PeerModel, topic: str, payload: bytes, meta: Any, ttl_ms: int | None, was: list[int]) -> bool:
        """B-3: what a program had retained before, where nobody else has published since."""
        self._oracle.expire_kept()
        peer.published.add(topic)
        kept = self._oracle.retained.frames.get(topic)
        if kept is not None and frame_of(kept).elements[1] not in was:
            self._oracle.checked["not restored"] += 1
            return False
        if kept is not None and (frame_of(kept).elements[3], frame_of(kept).payload) == (meta, payload):
            return True
        self._oracle.checked["restored"] += 1
        frame = frame_of(encode_with_payload(payload, Kind.RETAIN, peer.id, topic, meta))
        deadline = None if ttl_ms is None else self._oracle.now + ttl_ms / 1000
        self._oracle.route(frame, deadline)
        self._oracle.order.pop()  # not a publication of its own: that was before
        if not self._oracle.keep(frame, peer.program, deadline):
            raise ProtocolError(Code.OVER_LIMIT, topic)
        return True

    def _subscribe(self, peer: PeerModel, arguments: dict[str, Any]) -> dict[str, Any]:
        name, pattern, number = arguments.get("group"), arguments["pattern"], arguments["lane"]
        assert number not in peer.lanes, "simulated clients do not use a lane number twice"
        terms = terms_of(arguments, self._oracle.limits)
        self._oracle.checked[terms.policy] += 1
        group = None
        if name is not None:
            group = self._oracle.groups.get((pattern, name))
            if group is None:
                group = GroupModel(terms)
            else:
                group.check_joins(arguments)
            terms = group.terms
        self._oracle.expire_kept()  # not for one whose terms were refused
        self._admit_lane(peer)
        if group is not None:
            self._oracle.groups[pattern, name] = group
        where = f"{peer}, lane {number} ({pattern})"
        lane = LaneModel(where, peer.id, pattern, terms, group, arguments["credit"], arguments.get("messages", 1))
        peer.lanes[number] = lane
        if group is not None:
            group.members.add(lane)
        elif arguments.get("retained", True):
            for topic, raw in self._oracle.retained.frames.items():
                if matches(pattern, topic):
                    lane.offer(raw, retained=True)
            self._oracle.offered += len(lane.expected)
        return {"retained": len(lane.expected), "policy": terms.policy}

    def _admit_lane(self, peer: PeerModel) -> None:
        oracle = self._oracle
        lanes = [(one.program, sum(lane.open for lane in one.lanes.values())) for one in oracle.peers]
        if not admits(oracle.limits, "lanes", lanes, peer.program):
            oracle.checked["max_program_lanes"] += 1
            raise ProtocolError(Code.OVER_LIMIT, "lanes")
