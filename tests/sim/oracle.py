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
from ipcbus.protocol.messages import Frame, Kind, encode, encode_with_payload
from ipcbus.protocol.payloads import decode_value
from ipcbus.protocol.topics import parse_peer

from .bus_model import BusModel
from .climate import FEW_BYTES_FREE
from .models import IDENTITY_BYTES, PeerModel, RequestModel
from .names_model import NamesModel
from .queues_model import GroupModel, LaneModel
from .receipts import Receipts
from .retained_model import RetainedModel
from .shares_model import ProgramModel, admits
from .violations import ViolationError, check, frame_of, frames_in, matches, refusal_of


class Oracle:
    """The model of one bus, from its start to its end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peers: list[PeerModel] = []
        self.by_id: dict[int, PeerModel] = {}  #: who is here
        self.names: NamesModel[PeerModel] = NamesModel(limits.max_names, limits.max_methods, self._admit_name)
        self.groups: dict[tuple[str, str], GroupModel] = {}
        self.retained = RetainedModel(limits)
        self.programs: dict[tuple[int, int], ProgramModel] = {}
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
        self._bus = BusModel(self)
        self._receipts = Receipts(self)
        self.checked: Counter[str] = Counter()  #: how much was seen: a simulation that checks nothing must be noticed

    # --- what the network tells it ----------------------------------------------------------------------------------------------------

    def opened(self, label: str, uid: int, pid: int, now: float) -> PeerModel:
        """Somebody connects: `admitted` or `refused` follows."""
        return PeerModel(label, self.programs.get((uid, pid)) or ProgramModel(uid, pid), now)

    def admitted(self, peer: PeerModel) -> None:
        """The connection was accepted; `closed` ends it."""
        program = peer.program
        if not self._admits_connection(program):
            raise ViolationError(f"{program} has {program.connections} connections, and another is accepted (Q-1)")
        self.programs[program.uid, program.pid] = program
        program.connections += 1
        self._due(peer.opened_at + self.limits.handshake_timeout_s, peer)
        self.peers.append(peer)

    def refused(self, peer: PeerModel) -> None:
        """The connection was not accepted."""
        self.checked["too_many_peers"] += 1
        if self._admits_connection(peer.program):
            raise ViolationError(f"{peer.program} has {peer.program.connections} connections, and no other is accepted (Q-1)")

    def _admits_connection(self, program: ProgramModel) -> bool:
        return admits(self.limits, "peers", [(one, one.connections) for one in self.programs.values()], program)

    def closed(self, peer: PeerModel) -> None:
        """The connection is gone."""
        program = peer.program
        program.connections -= 1
        if not program.connections:
            del self.programs[program.uid, program.pid]

    def came(self, peer: PeerModel, peer_id: int, data: bytes, ends: set[int], now: float) -> None:
        """The broker has just processed *data* from *peer*, whose id it holds to be *peer_id*. *ends* (counted in bytes of frames): where
        it took frames together, of which it keeps only the last (L-8)."""
        self.now = now
        if peer.done_sending:
            peer.buffer_in += data  # which is never looked at
            return
        if peer_id and not peer.id:
            peer.id = peer_id
            self.by_id[peer_id] = peer
        peer.buffer_in += data
        for raw in frames_in(peer.buffer_in):
            peer.came_bytes += len(raw)
            self._process(peer, frame_of(raw), now, last=peer.came_bytes in ends)
            if peer.done_sending:
                return
        if peer.buffer_in and peer.buffer_in[0] != 0xCE:  # F-2: garbage ends the connection
            peer.said_bye = Code.BAD_FRAME
            self.left(peer)

    def ticked(self, now: float, expelled: list[tuple[PeerModel, Code]]) -> None:
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
        self.expel(expelled)
        self.expire_kept()

    def check_due(self, now: float) -> None:
        """The broker did what its clock says: nothing of what this model knows to be due is left."""
        while self.due and self.due[0][0] <= now:
            _, _, what = heapq.heappop(self.due)
            if (
                (isinstance(what, RequestModel) and what.outcome is None)
                or (isinstance(what, str) and self.retained.until.get(what, now + 1) <= now)
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

    def expel(self, expelled: list[tuple[PeerModel, Code]]) -> None:
        """The bus ended connections, in this order. Though nothing fatal was sent it may do so for what waits."""
        for peer, code in expelled:
            if peer.gone:
                continue  # it is known why
            (self._over_quota if code is Code.OVER_QUOTA else self._too_slow)(peer)
            peer.said_bye = code
            self.left(peer)

    def _over_quota(self, peer: PeerModel) -> None:
        """Q-3: only for much that waits."""
        lanes = [lane for other in self.peers if not other.gone for lane in other.lanes.values()]
        queues = [*(lane.expected for lane in lanes), *(group.outstanding for group in self.groups.values())]
        parked = sum(len(raw) for queue in queues for raw in queue if frame_of(raw).elements[1] == peer.id)
        notices = IDENTITY_BYTES * (len(self.peers) - len(peer.introduced)) if peer.asks_identity else 0
        if peer.waiting_bytes() + parked + notices <= FEW_BYTES_FREE:
            raise ViolationError(f"{peer} is sent away for its quota, and only {peer.waiting_bytes()} + {parked} bytes can wait")
        self.checked["sent away for its quota"] += 1

    def _too_slow(self, peer: PeerModel) -> None:
        """L-7: only a queue with the policy disconnect gives the right."""
        lanes = [lane for lane in peer.lanes.values() if lane.open and lane.terms.policy == "disconnect"]
        if not any(sum(map(len, lane.expected)) > lane.terms.soft // 2 for lane in lanes):
            raise ViolationError(f"{peer} is sent away, and none of its queues is too long")
        self.checked["disconnected"] += 1

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
            self._receipts.receive(peer, frame_of(raw), now)

    # --- what peers say -----------------------------------------------------------------------------------------------------------------

    def _process(self, peer: PeerModel, frame: Frame, now: float, *, last: bool) -> None:
        kind, elements = frame.kind, frame.elements
        if kind is Kind.HELLO:
            peer.ready = True
            peer.session = elements[5].get("session", "")
            peer.calls_itself = elements[5].get("program", "")
            peer.asks_identity = "identity" in elements[4]
            for before in self.peers:
                if before is not peer and peer.session and before.session == peer.session and not before.gone:
                    self.checked["ended by its session"] += 1
                    self.left(before)  # H-13
        elif kind in (Kind.PUBLISH, Kind.RETAIN):
            self._publish(peer, frame, last=last)
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

    def _publish(self, peer: PeerModel, frame: Frame, *, last: bool) -> None:
        peer.published.add(frame.elements[2])
        refusal = refusal_of(frame.elements[2])
        if refusal is None:
            self.route(frame)
            if frame.kind is Kind.RETAIN and last and not self.keep(frame, peer.program):
                peer.refusals[Code.OVER_LIMIT] += 1
        else:
            peer.refusals[refusal] += 1

    def _post(self, peer: PeerModel, frame: Frame, now: float) -> None:
        """L-11."""
        _, _, topic, number, ttl_ms, retain, meta = frame.elements
        peer.published.add(topic)
        refusal = refusal_of(topic)
        if number is not None:
            peer.requests[number] = RequestModel(peer, None, "", number, now)
        elif refusal is not None:
            peer.refusals[refusal] += 1
        outcome: tuple[Any, ...] = ("code", refusal)
        if refusal is None:
            plain = frame_of(encode_with_payload(frame.payload, Kind.RETAIN if retain else Kind.PUBLISH, peer.id, topic, meta))
            deadline = None if ttl_ms is None else now + ttl_ms / 1000
            outcome = ("value", self.route(plain, deadline))
            if retain and not self.keep(plain, peer.program, deadline):
                outcome = ("code", Code.OVER_LIMIT)
                peer.refusals[Code.OVER_LIMIT] += number is None
        if number is not None:
            peer.requests[number].outcome = outcome

    def route(self, frame: Frame, deadline: float | None = None, *, of_bus: bool = False) -> int:
        """A publication takes its place in the order; how many lanes and groups it goes to. *of_bus*: it holds nobody (L-12), whoever its
        sender is."""
        topic = frame.elements[2]
        before = self.offered
        if deadline is not None:
            self.mortal[frame.raw] = deadline
        self.place += 1
        self.order.append(frame.payload)
        for other in self.by_id.values():
            for lane in other.lanes.values():
                if lane.open and lane.group is None and matches(lane.pattern, topic):
                    lane.offer(frame.raw, nobody_to_hold=of_bus or frame.elements[1] == lane.owner)
                    self.offered += 1
        for (pattern, _), group in self.groups.items():
            if matches(pattern, topic):
                group.outstanding.setdefault(frame.raw, []).append(self.place)
                self.offered += 1
        if self.offered == before:
            self.unwanted += 1
        return self.offered - before

    def keep(self, frame: Frame, program: ProgramModel, deadline: float | None = None) -> bool:
        """L-8: keep it as the last of its topic, at the expense of *program*; False where that has no room (Q-1), then nothing is kept."""
        kept = self.retained.keep(frame, program, deadline)
        if not kept:
            self.checked["not kept"] += 1
        elif deadline is not None:
            self._due(deadline, frame.elements[2])
        return kept

    def expire_kept(self) -> None:
        """L-11: before the bus looks at what it keeps, too."""
        for topic in self.retained.due(self.now):
            self._remove_kept(topic)

    def _remove_kept(self, topic: str) -> None:
        """L-11, W-2: the bus removes what is kept, and says so in the name of who had published it."""
        sender = frame_of(self.retained.frames[topic]).elements[1]
        self.retained.forget(topic)
        self.route(frame_of(encode_with_payload(b"", Kind.RETAIN, sender, topic, None)), of_bus=True)

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
            request.outcome = self._bus.call(peer, method, decode_value(None, frame.payload) or {})
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
        check(request.callee is peer and request.credit > 0, peer, frame, "no client may send it: there is no credit (R-6)")
        check(frame.elements[4] == request.sequence, peer, frame, f"no client may send it: {request.sequence} is due (R-6)")
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

    def _admit_name(self, peer: PeerModel) -> None:
        names = [(one.program, self.names.count(one)) for one in self.peers if not one.done_sending]
        if not admits(self.limits, "names", names, peer.program):
            self.checked["max_program_names"] += 1
            raise ProtocolError(Code.OVER_LIMIT, "names")

    # --- ends ---------------------------------------------------------------------------------------------------------------------------

    def close_lane(self, lane: LaneModel) -> None:
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
                self.close_lane(lane)
        for lane in [lane for other in self.by_id.values() for lane in other.lanes.values() if lane.terms.policy == "block"]:
            # L-12: what it had parked counts as the subscriber's own from now on, and may be too much
            lane.excuse(any(frame_of(raw).elements[1] == peer.id for raw in lane.expected))
        if peer.bound:
            self.expire_kept()
        for topic in peer.bound:
            if topic in self.retained.frames and frame_of(self.retained.frames[topic]).elements[1] == peer.id:
                self.checked["bound value"] += 1
                self._remove_kept(topic)
        for will in peer.wills.values():
            self.checked["will"] += 1
            self.route(frame_of(will), of_bus=True)
            if frame_of(will).kind is Kind.RETAIN:
                self.keep(frame_of(will), peer.program)
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

    def check_quiet(self) -> None:
        """Nothing is under way any more."""
        self._receipts.check_quiet()
