"""The reference model: what PROTOCOL.md says about the bytes that went in, compared with the bytes that came out.

It stands at the border of the broker and sees, in the broker's own order, what each peer sent and what each peer is given. It
knows nothing of the broker's inside and shares no code with it but the codec (`protocol.messages`, `protocol.topics`), which has
tests of its own. Every expectation is exact: the same frames, byte for byte, in the one total order, and where one is missing a
`lost` notice must stand at its place. It holds for whoever drives the peers: the model client, the real session, or garbage.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import Any

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import IN_RUNS, Frame, Kind, encode, encode_with_payload
from ipcbus.protocol.payloads import decode_value
from ipcbus.protocol.topics import check_topic, parse_peer

from .models import PeerModel, RequestModel
from .names_model import NamesModel
from .queues_model import GroupModel, LaneModel, terms_of
from .violations import ViolationError, frame_of, frames_in, matches


class Oracle:
    """The model of one bus, from its start to its end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peers: list[PeerModel] = []
        self.by_id: dict[int, PeerModel] = {}  #: who is here
        self.names: NamesModel[PeerModel] = NamesModel(limits.max_names, limits.max_methods)
        self.groups: dict[tuple[str, str], GroupModel] = {}
        self.retained: dict[str, bytes] = {}
        self.most_retained_bytes = 0
        self.kept_until: dict[str, float] = {}  #: of those that have a time to live (L-11)
        self.mortal: dict[bytes, float] = {}  #: frames that may expire while they wait, and when
        self.floating: dict[bytes, list[PeerModel]] = {}  #: SENDs to a shared name: one of these gets it
        self.now = 0.0
        self.due: list[tuple[float, int, RequestModel | PeerModel | str]] = []  #: deadlines, in order
        self._count = itertools.count()
        self.place = 0  #: in the total order
        self.order: list[bytes] = []  #: the payloads of publications and sends in that order
        self.unwanted = 0  #: publications to nobody: B-4's no_subscriber
        self.offered = 0  #: pairs of message and lane (or group), and SENDs: B-4's books must come to it
        self.handed = 0  #: of these, what left the bus whole
        self.checked: Counter[str] = Counter()  #: how much was seen: a simulation that checks nothing must be noticed

    # --- what the network tells it ----------------------------------------------------------------------------------------------------

    def opened(self, label: str, now: float) -> PeerModel:
        """A connection was accepted."""
        peer = PeerModel(label, now)
        self._due(now + self.limits.handshake_timeout_s, peer)
        self.peers.append(peer)
        return peer

    def came(self, peer: PeerModel, peer_id: int, data: bytes, now: float) -> None:
        """The broker has just processed *data* from *peer*, whose id it holds to be *peer_id*."""
        self.now = now
        if peer.done_sending:
            peer.buffer_in += data  # which is never looked at
            return
        if peer_id and not peer.id:
            peer.id = peer_id
            self.by_id[peer_id] = peer
        peer.buffer_in += data
        for raw in frames_in(peer.buffer_in):
            self._process(peer, frame_of(raw), now)
            if peer.done_sending:
                return
        if peer.buffer_in and peer.buffer_in[0] != 0xCE:  # F-2: garbage ends the connection
            peer.said_bye = Code.BAD_FRAME
            self.left(peer)

    def ticked(self, now: float) -> None:
        """The broker's clock went on: requests whose time is over have expired (R-2), strangers who said nothing are sent away (H-9)."""
        expired = []
        for peer in self.peers:
            if not peer.ready and not peer.done_sending and peer.opened_at + self.limits.handshake_timeout_s <= now:
                self.checked["handshake_timeout"] += 1
                peer.said_bye = Code.HANDSHAKE_TIMEOUT
                self.left(peer)
            expired += [request for request in peer.calls.values() if request.deadline <= now]
        for request in sorted(expired, key=lambda request: (request.deadline, request.opened)):
            self._cancelled(request)
            self._settle(request, ("code", Code.EXPIRED))
        self.now = now
        self._expire_kept()

    def check_due(self, now: float) -> None:
        """The broker did what its clock says: nothing of what this model knows to be due is left."""
        while self.due and self.due[0][0] <= now:
            _, _, what = heapq.heappop(self.due)
            if (
                (isinstance(what, RequestModel) and what.outcome is None)
                or (isinstance(what, str) and self.kept_until.get(what, now + 1) <= now)
                or (isinstance(what, PeerModel) and not what.ready and not what.done_sending)
            ):
                raise ViolationError(f"the bus let the time of {what} pass")

    def _due(self, deadline: float, what: RequestModel | PeerModel | str) -> None:
        heapq.heappush(self.due, (deadline, next(self._count), what))

    def half_closed(self, peer: PeerModel) -> None:
        """H-11: everything of it is released, its own requests go on."""
        if not peer.done_sending:
            peer.done_sending = True
            self._withdraw(peer)

    def expelled(self, peer: PeerModel) -> None:
        """The bus ended the connection though nothing fatal was sent: only a queue with the policy disconnect gives it the right (L-7)."""
        lanes = [lane for lane in peer.lanes.values() if lane.open and lane.terms.policy == "disconnect"]
        if not any(sum(map(len, lane.expected)) > lane.terms.soft // 2 for lane in lanes):
            raise ViolationError(f"{peer} is sent away, and none of its queues is too long")
        self.checked["disconnected"] += 1
        peer.said_bye = Code.SLOW_READER
        self.left(peer)

    def left(self, peer: PeerModel) -> None:
        """The connection is over."""
        self.half_closed(peer)
        peer.gone = True
        self.by_id.pop(peer.id, None)
        for request in tuple(peer.calls.values()):
            self._cancelled(request)
            self._settle(request, ("nothing",))

    def went(self, peer: PeerModel, data: bytes, now: float) -> None:
        """The broker gave *data* for *peer* to the network."""
        peer.buffer_out += data
        for raw in frames_in(peer.buffer_out):
            if peer.said_bye == -1:
                raise ViolationError(f"{peer}: a frame after BYE")
            self._receive(peer, frame_of(raw), now)

    # --- what peers say -----------------------------------------------------------------------------------------------------------------

    def _process(self, peer: PeerModel, frame: Frame, now: float) -> None:
        kind, elements = frame.kind, frame.elements
        if kind is Kind.HELLO:
            peer.ready = True
            peer.session = elements[5].get("session", "")
            for before in self.peers:
                if before is not peer and peer.session and before.session == peer.session and not before.gone:
                    self.checked["ended by its session"] += 1
                    self.left(before)  # H-13
        elif kind in (Kind.PUBLISH, Kind.RETAIN):
            self._publish(peer, frame)
        elif kind is Kind.POST:
            self._post(peer, frame, now)
        elif kind is Kind.CREDIT:
            lane = peer.lanes.get(elements[2])
            if lane is not None and lane.open:
                lane.granted_bytes += elements[3]
                lane.granted_messages += elements[4]
        elif kind is Kind.SEND:
            self._send(peer, frame)
        elif kind is Kind.REQUEST:
            self._request(peer, frame, now)
        elif kind in (Kind.REPLY, Kind.ERROR):
            requester = self.by_id.get(parse_peer(elements[2]) or 0)
            request = requester.requests.get(elements[3]) if requester is not None else None
            if request is None or request.outcome is not None:
                peer.refusals[Code.NO_SUCH_REQUEST] += 1
            else:
                self._settle(request, ("frame", frame.raw))
        elif kind is Kind.PART:
            self._part(peer, frame)
        elif kind is Kind.ALLOW:
            self._allow(peer, frame)
        elif kind is Kind.CANCEL:
            request = peer.requests.get(elements[3])
            if request is not None and request.outcome is None:
                self._cancelled(request)
                self._settle(request, ("nothing",))
        elif kind is Kind.PING:
            peer.pings.append(elements[2])
        elif kind is Kind.BYE:
            peer.wills.clear()
            self.left(peer)
        else:
            raise ViolationError(f"{peer} sent {frame}, which no simulated client does")

    def _publish(self, peer: PeerModel, frame: Frame) -> None:
        peer.published.add(frame.elements[2])
        refusal = _refusal(frame.elements[2])
        if refusal is None:
            self._route(frame)
        else:
            peer.refusals[refusal] += 1

    def _post(self, peer: PeerModel, frame: Frame, now: float) -> None:
        """L-11."""
        _, _, topic, number, ttl_ms, retain, meta = frame.elements
        peer.published.add(topic)
        refusal = _refusal(topic)
        if number is not None:
            peer.requests[number] = RequestModel(peer, None, "", number, now)
        elif refusal is not None:
            peer.refusals[refusal] += 1
        outcome: tuple[Any, ...] = ("code", refusal)
        if refusal is None:
            plain = frame_of(encode_with_payload(frame.payload, Kind.RETAIN if retain else Kind.PUBLISH, peer.id, topic, meta))
            outcome = ("value", self._route(plain, None if ttl_ms is None else now + ttl_ms / 1000))
        if number is not None:
            peer.requests[number].outcome = outcome

    def _route(self, frame: Frame, deadline: float | None = None) -> int:
        """A publication takes its place in the order; how many lanes and groups it goes to."""
        topic = frame.elements[2]
        before = self.offered
        if deadline is not None:
            self.mortal[frame.raw] = deadline
        self.place += 1
        self.order.append(frame.payload)
        for other in self.by_id.values():
            for lane in other.lanes.values():
                if lane.open and lane.group is None and matches(lane.pattern, topic):
                    lane.offer(frame.raw, nobody_to_hold=frame.elements[1] == lane.owner or not self._is_here(frame.elements[1]))
                    self.offered += 1
        for (pattern, _), group in self.groups.items():
            if matches(pattern, topic):
                group.outstanding.setdefault(frame.raw, []).append(self.place)
                self.offered += 1
        if frame.kind is Kind.RETAIN:
            self.retained.pop(topic, None)
            self.kept_until.pop(topic, None)
            if frame.payload_size:
                self.retained[topic] = frame.raw
                self.most_retained_bytes = max(self.most_retained_bytes, sum(map(len, self.retained.values())))
                if deadline is not None:
                    self.kept_until[topic] = deadline
                    self._due(deadline, topic)
        if self.offered == before:
            self.unwanted += 1
        return self.offered - before

    def _expire_kept(self) -> None:
        """L-11: before the bus looks at what it keeps, too."""
        due = [topic for topic, deadline in self.kept_until.items() if deadline <= self.now]
        for topic in sorted(due, key=self.kept_until.__getitem__):  # of the same moment: in the order in which they came
            self._remove_kept(topic)

    def _remove_kept(self, topic: str) -> None:
        """L-11, W-2: the bus removes what is kept, and says so in the name of who had published it."""
        sender = frame_of(self.retained[topic]).elements[1]
        self._route(frame_of(encode_with_payload(b"", Kind.RETAIN, sender, topic, None)))

    def _send(self, peer: PeerModel, frame: Frame) -> None:
        to = frame.elements[2]
        number = parse_peer(to)
        if number is not None:
            receivers = [self.by_id[number]] if self._is_here(number) else []
        else:
            receivers = self.names.owners(to)
        if not receivers:
            peer.refusals[Code.NO_SUCH_NAME if number is None else Code.NO_SUCH_PEER] += 1
            return
        self.offered += 1
        self.order.append(frame.payload)
        if len(receivers) == 1:
            receivers[0].direct.append(frame.raw)
        else:
            self.floating[frame.raw] = receivers

    def _is_here(self, number: int) -> bool:
        return number in self.by_id and not self.by_id[number].done_sending

    def _request(self, peer: PeerModel, frame: Frame, now: float) -> None:
        _, _, to, number, timeout_ms, _ = frame.elements
        request = RequestModel(peer, None, to, number, now + timeout_ms / 1000)
        peer.requests[number] = request
        target, _, method = to.partition("/")
        if target == "bus":
            request.outcome = self._bus(peer, method, decode_value(None, frame.payload) or {})
            return
        if len(peer.calls) >= self.limits.max_requests:
            self.checked["max_requests"] += 1
            request.outcome = ("code", Code.OVER_LIMIT)
            return
        address = parse_peer(target)
        if address is not None:
            callee = self.by_id.get(address) if self._is_here(address) else None
            if callee is None:
                request.outcome = ("code", Code.NO_SUCH_PEER)
                return
            serving = [callee] if self.names.serves(callee, method) else []
        else:
            if not self.names.owners(target):
                request.outcome = ("code", Code.NO_SUCH_NAME)
                return
            serving = [owner for owner in self.names.owners(target) if self.names.serves(owner, method, target)]
        if not serving:
            request.outcome = ("code", Code.NO_SUCH_METHOD)
            return
        callee = min(serving, key=lambda owner: len(owner.serving))  # R-1; ties: the one that owned first
        if len(callee.serving) >= self.limits.max_callee_requests:
            self.checked["max_callee_requests"] += 1
            request.outcome = ("code", Code.OVERLOADED)
            return
        request.callee = callee
        peer.calls[number] = request
        self._due(request.deadline, request)
        request.opened = next(self._count)
        request.callee.serving[peer.id, number] = request
        request.callee.direct.append(frame.raw)

    def _part(self, peer: PeerModel, frame: Frame) -> None:
        """R-6. A part without credit or out of sequence is fatal: no simulated client sends one."""
        requester = self.by_id.get(parse_peer(frame.elements[2]) or 0)
        request = requester.requests.get(frame.elements[3]) if requester is not None else None
        if request is None or request.outcome is not None:
            peer.refusals[Code.NO_SUCH_REQUEST] += 1
            return
        self._check(request.callee is peer and request.credit > 0, peer, frame, "no client may send it: there is no credit (R-6)")
        self._check(frame.elements[4] == request.sequence, peer, frame, f"no client may send it: {request.sequence} is due (R-6)")
        request.credit -= len(frame.raw)
        request.sequence += 1
        request.parts.append(frame.raw)

    def _allow(self, peer: PeerModel, frame: Frame) -> None:
        """R-6: the callee is told what was added."""
        _, _, to, number, size = frame.elements
        request = peer.requests.get(number)
        if request is None or request.outcome is not None or request.to != to or request.callee is None:
            return
        added = min(size, self.limits.max_credit_bytes - request.credit)
        if added > 0:
            request.credit += added
            request.callee.direct.append(encode(Kind.ALLOW, peer.id, to, number, added))

    def _bus(self, peer: PeerModel, method: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """A request to the bus takes effect, and settles, in its place of the order."""
        if method == "subscribe":
            if sum(lane.open for lane in peer.lanes.values()) >= self.limits.max_lanes:
                self.checked["max_lanes"] += 1
                return ("code", Code.OVER_LIMIT)
            try:
                return ("value", self._subscribe(peer, arguments))
            except ProtocolError as error:
                return ("code", error.code)
        if method == "unsubscribe":
            lane = peer.lanes.get(arguments["lane"])
            if lane is None or not lane.open:
                return ("code", Code.NO_SUCH_LANE)
            self._close_lane(lane)
            return ("dropped", lane)
        if method in ("will", "bind", "unbind", "get", "restore"):
            return self._state(peer, method, **arguments)
        try:
            value, notices = self.names.call(method, peer, arguments)
        except ProtocolError as error:
            return ("code", error.code)
        for receiver, name, about in notices:
            receiver.notices.append((name, about))
        return ("value", value) if value is not None else ("any",)

    def _state(self, peer: PeerModel, method: str, topic: str, **more: Any) -> tuple[Any, ...]:
        """W-1, W-2, and what is kept."""
        if method == "get":
            self._expire_kept()
            if topic not in self.retained:
                return ("value", None)
            kept = frame_of(self.retained[topic])
            return ("value", {"topic": topic, "sender": kept.elements[1], "meta": kept.elements[3], "payload": kept.payload})
        refusal = _refusal(topic)
        if refusal is not None:
            return ("code", refusal)
        if method == "restore":
            return ("value", {"restored": self._restore(peer, topic, **more)})
        if method == "will":
            peer.wills.pop(topic, None)
            if "payload" in more and len(peer.wills) >= self.limits.max_wills:
                self.checked["max_wills"] += 1
                return ("code", Code.OVER_LIMIT)
            if "payload" in more:
                kind = Kind.RETAIN if more.get("retain") else Kind.PUBLISH
                peer.wills[topic] = encode_with_payload(more["payload"], kind, peer.id, topic, more.get("meta"))
        elif method == "bind":
            if topic not in peer.bound and len(peer.bound) >= self.limits.max_bound:
                self.checked["max_bound"] += 1
                return ("code", Code.OVER_LIMIT)
            peer.bound[topic] = None
        else:
            peer.bound.pop(topic, None)
        return ("value", {})

    def _restore(self, peer: PeerModel, topic: str, payload: bytes, meta: Any, ttl_ms: int | None, was: list[int]) -> bool:
        """B-3: what a program had retained before, where nobody else has published since."""
        self._expire_kept()
        peer.published.add(topic)
        kept = self.retained.get(topic)
        if kept is not None and frame_of(kept).elements[1] not in was:
            self.checked["not restored"] += 1
            return False
        if kept is not None and (frame_of(kept).elements[3], frame_of(kept).payload) == (meta, payload):
            return True
        self.checked["restored"] += 1
        frame = frame_of(encode_with_payload(payload, Kind.RETAIN, peer.id, topic, meta))
        self._route(frame, None if ttl_ms is None else self.now + ttl_ms / 1000)
        self.order.pop()  # not a publication of its own: that was before
        return True

    def _subscribe(self, peer: PeerModel, arguments: dict[str, Any]) -> dict[str, Any]:
        name, pattern, number = arguments.get("group"), arguments["pattern"], arguments["lane"]
        assert number not in peer.lanes, "simulated clients do not use a lane number twice"
        terms = terms_of(arguments, self.limits)
        self.checked[terms.policy] += 1
        self._expire_kept()
        group = None
        if name is not None:
            group = self.groups.get((pattern, name))
            if group is None:
                group = self.groups[pattern, name] = GroupModel(terms)
            else:
                group.check_joins(arguments)
            terms = group.terms
        where = f"{peer}, lane {number} ({pattern})"
        lane = LaneModel(where, peer.id, pattern, terms, group, arguments["credit"], arguments.get("messages", 1))
        peer.lanes[number] = lane
        if group is not None:
            group.members.add(lane)
        elif arguments.get("retained", True):
            for topic, raw in self.retained.items():
                if matches(pattern, topic):
                    lane.offer(raw, retained=True)
            self.offered += len(lane.expected)
        return {"retained": len(lane.expected), "policy": terms.policy}

    # --- ends ---------------------------------------------------------------------------------------------------------------------------

    def _close_lane(self, lane: LaneModel) -> None:
        lane.open = False
        group = lane.group
        if group is not None:
            group.members.discard(lane)
            group.member_left = True
            if not group.members:
                self.groups = {key: other for key, other in self.groups.items() if other is not group}

    def _withdraw(self, peer: PeerModel) -> None:
        for lane in peer.lanes.values():
            if lane.open:
                self._close_lane(lane)
        if peer.bound:
            self._expire_kept()
        for topic in peer.bound:
            if topic in self.retained and frame_of(self.retained[topic]).elements[1] == peer.id:
                self.checked["bound value"] += 1
                self._remove_kept(topic)
        for will in peer.wills.values():
            self.checked["will"] += 1
            self._route(frame_of(will))
        peer.bound.clear()
        peer.wills.clear()
        for receiver, name, about in self.names.leave(peer):
            receiver.notices.append((name, about))
        for request in tuple(peer.serving.values()):
            self._settle(request, ("code", Code.RESPONDER_DIED))

    def _cancelled(self, request: RequestModel) -> None:
        """R-3: who works at it is told."""
        if request.callee is not None:
            request.callee.direct.append(encode(Kind.CANCEL, request.requester.id, request.to, request.id))

    def _settle(self, request: RequestModel, outcome: tuple[Any, ...]) -> None:
        request.outcome = outcome
        if request.callee is not None:
            del request.callee.serving[request.requester.id, request.id]
            del request.requester.calls[request.id]
        requester = request.requester
        if requester.done_sending and not requester.gone and not requester.calls:
            self.left(requester)  # H-11: it stayed only for its answers

    # --- what peers get -----------------------------------------------------------------------------------------------------------------

    def _receive(self, peer: PeerModel, frame: Frame, now: float) -> None:
        kind, elements = frame.kind, frame.elements
        self.checked[kind.name] += 1
        self.handed += kind in IN_RUNS
        if kind is Kind.WELCOME:
            self._check(elements[4] == peer.id != 0, peer, frame, f"the id is {peer.id}")
        elif kind is Kind.LANE:
            peer.lane = peer.lanes.get(elements[2])
            self._check(peer.lane is not None, peer, frame, "no such lane")
        elif kind in (Kind.PUBLISH, Kind.RETAIN):
            self._receive_publication(peer, frame, now)
        elif kind in (Kind.SEND, Kind.REQUEST, Kind.ALLOW, Kind.CANCEL):
            if frame.raw in self.floating and peer in self.floating[frame.raw]:
                del self.floating[frame.raw]
            else:
                self._check(bool(peer.direct) and peer.direct.popleft() == frame.raw, peer, frame, "not the next one to it")
        elif kind in (Kind.REPLY, Kind.ERROR):
            self._receive_answer(peer, frame, now)
        elif kind is Kind.PART:
            request = peer.requests.get(elements[3])
            good = request is not None and bool(request.parts) and not request.told and request.parts.popleft() == frame.raw
            self._check(good, peer, frame, "not the next part of a request of its own (R-6)")
        elif kind is Kind.PONG:
            self._check(bool(peer.pings) and peer.pings.popleft() == elements[2], peer, frame, "not the next PONG")
        elif kind is Kind.NOTICE:
            self._receive_notice(peer, frame)
        elif kind is Kind.BYE:
            allowed = (peer.said_bye, Code.SHUTTING_DOWN.value)
            self._check(elements[2] in allowed, peer, frame, "nothing fatal was sent")
            peer.said_bye = -1
        else:
            self._check(False, peer, frame, "the bus does not send this")

    def _receive_publication(self, peer: PeerModel, frame: Frame, now: float) -> None:
        if peer.lane is None:
            raise ViolationError(f"{peer}: {frame} without a LANE before it (L-3)")
        self.checked.update(peer.lane.received(frame.raw, now, self.mortal))

    def _receive_answer(self, peer: PeerModel, frame: Frame, now: float) -> None:
        number = frame.elements[3]
        if number == 0:
            count = decode_value(None, frame.payload)["count"]
            peer.refusals[frame.elements[4]] -= count
            self._check(peer.refusals[frame.elements[4]] >= 0, peer, frame, "nothing was to be refused with this code")
            return
        request = peer.requests.get(number)
        if request is None or request.outcome is None or request.told:
            raise ViolationError(f"{peer}: {frame} answers what was not asked, has not settled or has been answered (R-2)")
        request.told = True
        self._check(not request.parts, peer, frame, f"{len(request.parts)} parts were to come before it (R-6)")
        what = request.outcome[0]
        if what == "frame":
            self._check(frame.raw == request.outcome[1], peer, frame, "not the callee's answer")
        elif what == "code":
            good = frame.kind is Kind.ERROR and frame.elements[4] == request.outcome[1]
            self._check(good, peer, frame, f"expected {request.outcome[1].label}")
        elif what == "value":
            value = decode_value(None, frame.payload)
            self._check(frame.kind is Kind.REPLY and value == request.outcome[1], peer, frame, f"expected {request.outcome[1]}")
        elif what == "dropped":
            lane = request.outcome[1]
            if lane.group is None:
                dropped = decode_value(None, frame.payload)["dropped"]
                self._check(dropped == lane.missing(), peer, frame, f"{dropped} dropped, {lane.missing()} missing")
        else:
            self._check(what == "any", peer, frame, f"expected {what}")

    def _receive_notice(self, peer: PeerModel, frame: Frame) -> None:
        name, content = frame.elements[2], decode_value(None, frame.payload)
        self.checked[name] += 1
        if name in ("lagging", "caught_up", "lost"):
            lane = peer.lanes[content["lane"]]
            if name == "lagging":
                lane.told_lagging(content)
                self.checked["dropping"] += content["dropping"]
            elif name == "caught_up":
                lane.told_caught_up(content)
            else:
                lane.told_lost(content["why"], content["count"], content["bytes"])
                self.checked[content["why"]] += 1
        elif name == "hold":
            self._check(content["id"] not in peer.holds, peer, frame, "it is held so already (L-12)")
            self._check(content["peer"] != peer.id, peer, frame, "nobody is held by itself (L-12)")
            topics = [topic for topic in peer.published if matches(content["pattern"], topic)]
            self._check(bool(topics), peer, frame, "it never published such a thing (L-12)")
            peer.holds[content["id"]] = content["pattern"]
        elif name == "resume":
            self._check(peer.holds.pop(content["id"], None) is not None, peer, frame, "nothing held it (L-12)")
        else:
            self._check((name, content["name"]) in peer.notices, peer, frame, f"expected {peer.notices}")
            peer.notices.remove((name, content["name"]))

    @staticmethod
    def _check(good: bool, peer: PeerModel, frame: Frame, why: str) -> None:
        if not good:
            raise ViolationError(f"{peer} got {frame}: {why}")

    # --- the end --------------------------------------------------------------------------------------------------------------------------

    def check_quiet(self) -> None:
        """Nothing is under way any more: everything that a connected peer was to get, it got."""
        for peer in self.peers:
            if peer.gone or peer.done_sending:
                continue
            left = {
                "messages": sum(lane.missing() for lane in peer.lanes.values() if lane.open),
                "ends of lagging": sum(lane.lagging for lane in peer.lanes.values() if lane.open),
                "resumes": len(peer.holds),
                "direct": len(peer.direct),
                "requests": sum(not request.told and request.outcome != ("nothing",) for request in peer.requests.values()),
                "parts": sum(len(request.parts) for request in peer.requests.values()),
                "refusals": sum(peer.refusals.values()),
                "notices": len(peer.notices),
                "pongs": len(peer.pings),
            }
            if any(left.values()):
                raise ViolationError(f"{peer} never got { ({what: count for what, count in left.items() if count}) }")
        for (pattern, name), group in self.groups.items():
            missing = sum(map(len, group.outstanding.values())) - group.lost
            if missing < 0 or (missing and not group.member_left):
                raise ViolationError(f"group {name} on {pattern}: {missing} messages are neither delivered nor said to be lost")


def _refusal(topic: str) -> Code | None:
    """Why a client may not publish to *topic* (T-3, T-4)."""
    try:
        check_topic(topic)
    except ProtocolError as error:
        return error.code
    return Code.RESERVED if topic.startswith("$") else None
