"""Sends and requests, and whom they reach: a request from REQUEST to the one way in which it settles (section 7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits
from ..protocol.messages import Frame, Kind, encode, encode_with_payload, error_frame
from ..protocol.topics import BUS_NAME, check_name, parse_peer, peer_address, split_method
from .bus import BusService
from .delivery import Delivery
from .effort import ENDS_AT_ONCE, LOOK, Effort
from .inflow import DIRECT_FREE_BYTES, Inflows, no_room
from .losses import Losses
from .names import Claim, Names
from .peers import Peer, Piece
from .requests import CALLERS_COUNTED, Pending, Requests
from .rights import Judge


class Calls:
    """Routes sends, requests and answers. *settled* is called with the requester whenever somebody else settled one of its requests."""

    def __init__(
        self,
        limits: Limits,
        losses: Losses,
        peers: dict[int, Peer],
        names: Names,
        requests: Requests,
        delivery: Delivery,
        inflows: Inflows,
        *,
        bus: BusService,
        effort: Effort,
        judge: Judge,
        settled: Callable[[Peer], None],
    ) -> None:
        self.limits = limits
        self._losses = losses
        self.counters = losses.counters
        self.peers = peers
        self.names = names
        self.requests = requests
        self._delivery = delivery
        self._inflows = inflows
        self.orphans: deque[Pending] = deque()  #: of requesters that went with many: settled, but their callees do not know it yet
        self._bus = bus
        self._effort = effort
        self._judge = judge
        self._settled = settled
        self.give: Callable[[Peer, str, Piece, int, int], object] = self.send  #: what a SEND is given to; monitors go between
        self.told: Callable[[Pending, Code, str], None] | None = None  #: who else hears of what the bus settles with an error

    # --- SEND ---------------------------------------------------------------------------------------------------------------------------

    def send(self, peer: Peer, to: str, piece: Piece, size: int, count: int) -> Peer:
        """Give *count* frames of a SEND to whom *to* reaches (N-3), and return that one. Raises ``no_such_name``, ``no_such_peer``,
        ``bad_name``, ``reserved``, ``overloaded``."""
        receiver = self._receiver(to)
        self._check_room(peer, receiver, to, size)
        self._put(peer, receiver, piece)
        receiver.given += count
        receiver.given_bytes += size
        self.counters.offered += count
        return receiver

    def _check_room(self, sender: Peer, receiver: Peer, to: str, size: int) -> None:
        """Raise ``overloaded`` where *receiver* has no room for *size* bytes of *sender* (Q-5)."""
        if receiver.out_bytes > DIRECT_FREE_BYTES:
            self._inflows.check(sender, receiver, to, size)
        elif receiver.out_bytes + size > self.limits.max_output_bytes:
            raise no_room(receiver, to, size)

    def _put(self, sender: Peer, receiver: Peer, piece: Piece) -> None:
        """Give a frame of *sender* to *receiver*, who did not ask for it."""
        notice = 0
        if receiver.introduced is not None and sender.id not in receiver.introduced:
            self._delivery.introduce(sender.origin, receiver)
            notice = len(sender.origin.notice)
        self._delivery.put(receiver, piece)
        if receiver.out_bytes > DIRECT_FREE_BYTES:
            self._inflows.note(sender, receiver, notice + len(piece))

    # --- whom an address reaches ---------------------------------------------------------------------------------------------------------

    def _receiver(self, to: str) -> Peer:
        """N-3: who gets it."""
        peer = self._peer_at(to)
        if peer is not None:
            return peer
        owners = self._owners(to)
        if len(owners) == 1:
            return owners[0].peer
        self._effort.spent += LOOK * len(owners)
        return min(owners, key=lambda claim: (claim.peer.out_bytes, len(claim.peer.serving or ()))).peer

    def _callee(self, target: str, method: str) -> Peer:
        """R-1: who answers."""
        peer = self._peer_at(target)
        if peer is not None:
            self._effort.spent += LOOK * len(peer.claims or ())
            if any(claim.serves(method) for claim in (peer.claims or {}).values()):
                return peer
            raise ProtocolError(Code.NO_SUCH_METHOD, f"peer {target} serves no method {method!r}")
        owners = self._owners(target)
        if len(owners) == 1 and owners[0].serves(method):
            return owners[0].peer
        self._effort.spent += LOOK * len(owners)
        serving = [claim for claim in owners if claim.serves(method)]
        if not serving:
            raise ProtocolError(Code.NO_SUCH_METHOD, f"{target!r} serves no method {method!r}; `ipcbus names` lists what it serves")
        return min(serving, key=lambda claim: len(claim.peer.serving or ())).peer

    def _peer_at(self, to: str) -> Peer | None:
        """The peer at an address ``:42``, None where *to* is none; raises ``no_such_peer``."""
        if not to.startswith(":"):
            return None
        number = parse_peer(to)
        if number is None:
            raise ProtocolError(Code.BAD_NAME, f"{to!r} is no peer address: a colon and a number (T-6)")
        peer = self.peers.get(number)
        if peer is None or peer.half_closed or peer.closing:
            raise ProtocolError(Code.NO_SUCH_PEER, f"there is no peer {to}")
        return peer

    def _owners(self, name: str) -> list[Claim]:
        record = self.names.get(name)
        if record is None:
            check_name(name)
            raise ProtocolError(Code.NO_SUCH_NAME, f"nobody owns the name {name!r}")
        return record.owners

    # --- frames -------------------------------------------------------------------------------------------------------------------------

    def on_request(self, peer: Peer, frame: Frame) -> None:
        """REQUEST (R-1, R-2). Errors that are not fatal are the caller's to answer."""
        _, _, to, request, timeout_ms, _ = frame.elements
        peer.in_messages += 1
        calls = peer.calls
        if calls is not None and request in calls:
            raise ProtocolError(Code.DUPLICATE_ID, f"request id {request} is in flight already (R-1)")
        target, method = split_method(to)
        if timeout_ms < 1 or (timeout_ms > self.limits.max_timeout_ms and target != BUS_NAME):  # the bus answers at once
            raise ProtocolError(
                Code.BAD_ARGUMENT, f"timeout_ms is {timeout_ms}: 1 to {self.limits.max_timeout_ms} are allowed (limits.max_timeout_ms)"
            )
        if target == BUS_NAME:
            payload = self._bus.call(peer, method, frame)
            self._delivery.put(peer, encode_with_payload(payload, Kind.REPLY, 0, peer_address(peer.id), request, None))
            return
        if len(calls or ()) >= self.limits.max_requests:
            raise ProtocolError(Code.OVER_LIMIT, f"{len(calls or ())} requests of this peer are in flight (limits.max_requests)")
        if peer.rights is not None:
            self._judge.call(peer, to, target, method)
        callee = self._callee(target, method)
        serving = len(callee.serving or ())
        if serving >= self.limits.max_callee_requests:
            raise ProtocolError(Code.OVERLOADED, f"{target!r} has {serving} requests in flight (limits.max_callee_requests)")
        if serving >= CALLERS_COUNTED:
            self.requests.check_callee(peer, callee, target, self.limits.max_callee_requests)
        size = len(frame.raw)
        waiting = callee.out_bytes + size
        if waiting > DIRECT_FREE_BYTES or waiting > self.limits.max_output_bytes:
            self._check_room(peer, callee, target, size)
        if calls is not None and len(calls) >= peer.calls_room:
            self.requests.more_room(peer)
        self.requests.open(Pending(peer, callee, request, to, self._delivery.now + timeout_ms / 1000))
        callee.forwarded += 1
        if callee.introduced is not None and peer.id not in callee.introduced:
            self._delivery.introduce(peer.origin, callee)
            size += len(peer.origin.notice)
        self._delivery.put(callee, frame.raw)
        if callee.out_bytes > DIRECT_FREE_BYTES:
            self._inflows.note(peer, callee, size)

    def on_answer(self, peer: Peer, frame: Frame) -> None:
        """REPLY, ERROR or PART of a callee (R-4, R-6)."""
        peer.in_messages += 1
        to, request = frame.elements[2], frame.elements[3]
        if frame.kind is Kind.ERROR and frame.elements[4].__class__ is int:
            raise ProtocolError(Code.BAD_ENVELOPE, f"ERROR with code {frame.elements[4]}: a service's code is a str (E-1)")
        number = parse_peer(to)
        requester = self.peers.get(number) if number is not None else None
        pending = (requester.calls or {}).get(request) if requester is not None else None
        if requester is None or pending is None:
            self.counters.late_replies += 1
            raise ProtocolError(Code.NO_SUCH_REQUEST, f"request {request} of {to!r} is not in flight: answered, expired or cancelled (R-4)")
        if pending.callee is not peer:
            raise ProtocolError(Code.BAD_REPLY, f"request {request} of {to!r} is another peer's to answer (R-4)")
        if requester.introduced is not None and peer.id not in requester.introduced:
            self._delivery.introduce(peer.origin, requester)
        if frame.kind is Kind.PART:
            self._take_part(pending, frame)
            return
        self._delivery.put(requester, frame.raw)  # first: where it fails the request is in flight still, and ends with its callee
        self.requests.settle(pending)
        requester.forwarded += 1
        self._settled(requester)

    def _take_part(self, pending: Pending, frame: Frame) -> None:
        """R-6: the request goes on; its credit pays."""
        sequence = frame.elements[4]
        if sequence != pending.sequence or pending.credit <= 0:
            wrong = f"of sequence {sequence} where {pending.sequence} is due" if sequence != pending.sequence else "without credit"
            raise ProtocolError(Code.BAD_REPLY, f"PART {wrong} for request {pending.id} of {frame.elements[2]!r} (R-6)")
        pending.sequence += 1
        pending.credit -= len(frame.raw)
        pending.requester.forwarded += 1
        self._delivery.put(pending.requester, frame.raw)

    def on_allow(self, peer: Peer, frame: Frame) -> None:
        """R-6. The callee is told what was added here, so that it never holds more credit than this table: a requester cannot lead it
        into sending too much."""
        _, _, to, request, size = frame.elements
        pending = (peer.calls or {}).get(request)
        if pending is None or pending.to != to or "parts" not in pending.callee.connection.features:
            return
        added = min(size, self.limits.max_credit_bytes - pending.credit)
        if added <= 0:
            return
        callee = pending.callee
        try:
            self._check_room(peer, callee, to, len(frame.raw))
        except ProtocolError as error:
            self._tell_callee_cancelled(pending)
            self._fail(pending, error.code, error.text)
            return
        pending.credit += added
        self._put(peer, callee, frame.raw if added == size else encode(Kind.ALLOW, peer.id, to, request, added))

    def on_cancel(self, peer: Peer, frame: Frame) -> None:
        """R-3."""
        pending = (peer.calls or {}).get(frame.elements[3])
        if pending is not None and pending.to == frame.elements[2]:
            self.counters.cancelled += 1
            self._tell_callee_cancelled(pending)
            self.requests.settle(pending)

    def _tell_callee_cancelled(self, pending: Pending) -> None:
        self._put(pending.requester, pending.callee, encode(Kind.CANCEL, pending.requester.id, pending.to, pending.id))

    def _fail(self, pending: Pending, code: Code, text: str) -> None:
        """Settle a request with an error of the bus (R-2)."""
        if self.told is not None:
            self.told(pending, code, text)
        self.requests.settle(pending)
        self._delivery.put(pending.requester, error_frame(peer_address(pending.requester.id), pending.id, code, text))
        self._settled(pending.requester)

    # --- ends ---------------------------------------------------------------------------------------------------------------------------

    def expire(self, pending: Pending) -> None:
        """The time of a request in flight is over."""
        self.counters.expired += 1
        self._losses.no_answer(pending, "timed_out")
        self._tell_callee_cancelled(pending)
        self._fail(pending, Code.EXPIRED, f"{pending.to!r} did not answer in time")

    def callee_died(self, peer: Peer) -> None:
        """Nobody will answer what *peer* was to answer."""
        for pending in tuple((peer.serving or {}).values()):
            if pending.settled:
                continue  # a peer that called itself and is done sending ended within this loop (H-11)
            self._losses.no_answer(pending, "responder_died")
            self._fail(pending, Code.RESPONDER_DIED, f"the peer that served {pending.to!r} went before it answered")

    def requester_went(self, peer: Peer) -> None:
        """Nobody waits for the answers to *peer* any more (R-3). Of many requests most are taken back in the next rounds, by `clean`."""
        orphans = self.requests.orphan(peer)
        for pending in orphans[:ENDS_AT_ONCE]:
            self._take_back(pending)
        self.orphans.extend(orphans[ENDS_AT_ONCE:])

    def clean(self) -> None:
        """Take back some of the requests whose requesters went with many."""
        for _ in range(min(len(self.orphans), ENDS_AT_ONCE)):
            self._take_back(self.orphans.popleft())

    def _take_back(self, pending: Pending) -> None:
        if not pending.callee.closing:
            self._tell_callee_cancelled(pending)
        self.requests.let_go(pending)

    def forget_all(self) -> None:
        """The bus stops: nobody is told any more."""
        for peer in self.peers.values():
            for pending in tuple((peer.calls or {}).values()):
                self.requests.settle(pending)
