"""The broker: takes the bytes of peers, decides, and leaves bytes in the records of peers. See DESIGN.md for the interface and a frame's
journey.

One thread, one order: what `receive` does for a frame is done before the next frame of any peer is looked at. That order is the bus's
total order (L-4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from ..policy import EVERYTHING, Policy, Subject
from ..protocol.auth import Secret, Secrets
from ..protocol.connection import Connection
from ..protocol.errors import Code, ProtocolError
from ..protocol.framing import Run
from ..protocol.limits import CHECKPOINT_BYTES, NONCE_BYTES, Limits
from ..protocol.messages import Frame, Kind, encode
from .bus import BusService
from .calls import Calls
from .charges import Charges
from .effort import CLAIM_WORK, CLAIMS, ENDS_AT_ONCE, FRAME, UNLIMITED
from .ends import Ends
from .inflow import Inflows
from .lanes import OUTPUT_HIGH_BYTES
from .peers import Credentials, Peer, Piece, Session
from .refusals import Refusals
from .revocation import Revocation
from .rights import subject_of
from .routing import AnyRoute, PublishRoute, Refusal, RetainRoute
from .timeouts import Timeouts

#: Up to this size a run is copied out of its read.
COPIED_BYTES = 1024


class Broker(Ends):
    """All of the bus but its sockets. Not thread-safe. No method raises for what a peer did wrong."""

    def __init__(
        self,
        *,
        incarnation: bytes,
        random_bytes: Callable[[int], bytes],
        now: float,
        limits: Limits | None = None,
        secrets: Secrets | None = None,
        software: str = "ipcbus",
        pid: int = 0,
        owners: frozenset[int] | None = None,
        log: Callable[[int, str], None] = lambda level, text: None,
        gauges: Callable[[], dict[str, int]] = dict,
        owner_of: Callable[[tuple[str, str]], int | None] = lambda ends: None,
        policy: Policy = EVERYTHING,
        subject_of: Callable[[Peer], Subject] = subject_of,
    ) -> None:
        """*owners*: the uids whose bus it is (Q-2), None: everybody's. *owner_of* says for the log which uid has a TCP connection, by
        the bus's end and the client's. *subject_of* says whom *policy* judges when a peer comes (P-1), and again at each `set_policy`."""
        super().__init__(limits or Limits(), now, software, pid, owners, log, gauges, policy, subject_of)
        self._strangers.find_owners_with(owner_of)
        self._incarnation = incarnation
        self._random_bytes = random_bytes
        self._secrets = secrets
        self._offer = self._delivery.offer
        self._refusals = Refusals(self.losses, self._delivery, log)
        self._charges = Charges(self.limits, self.accounts, shed=self._delivery.shed, expel=self._evict)
        self._inflows = Inflows(self.limits, self.accounts)
        self._leaving: Timeouts[Peer] = Timeouts(self.limits.half_close_linger_s)
        self._last_peer = 0
        self._sessions: dict[Session, Peer] = {}  #: who is here by its user and what its HELLO said (H-13)
        self._calls = Calls(
            self.limits,
            self.losses,
            self.peers,
            self.names,
            self.requests,
            self._delivery,
            self._inflows,
            bus=BusService(self, self._delivery),
            effort=self.effort,
            judge=self.judge,
            settled=self._settled,
        )
        self._handlers: dict[Kind, Callable[[Peer, Frame], None]] = {
            Kind.HELLO: self._on_hello,
            Kind.PROOF: self._on_proof,
            Kind.BYE: self._on_bye,
            Kind.PING: self._on_ping,
            Kind.PONG: self._on_pong,
            Kind.REQUEST: self._calls.on_request,
            Kind.REPLY: self._calls.on_answer,
            Kind.ERROR: self._calls.on_answer,
            Kind.CANCEL: self._calls.on_cancel,
            Kind.CREDIT: self._on_credit,
            Kind.POST: self.publications.post,
            Kind.PART: self._calls.on_answer,
            Kind.ALLOW: self._calls.on_allow,
        }
        self.monitors.attach(self._handlers, self._calls, self._refusals)

    # --- what the daemon calls --------------------------------------------------------------------

    def connect(
        self, now: float, *, transport: str = "unix", credentials: Credentials | None = None, addresses: tuple[str, str] | None = None
    ) -> Peer:
        """A new connection, charged; `disconnect` gives that back. Raises OverQuota ``too_many_peers`` (Q-1). *addresses* (TCP): the bus's
        end and the client's (H-5)."""
        self.now = self._delivery.now = now
        account = self.accounts.enter(credentials.uid, credentials.pid) if credentials else self.accounts.enter(transport, 0)
        connection = Connection(self.routes, self.limits, secrets=self._secrets, addresses=addresses)
        peer = Peer(connection, transport, credentials, now, account)
        connection.scanner.owner = peer
        self._strangers.start(peer, now)
        if (first := self._strangers.crowded_out()) is not None:
            self._dismiss(first, ProtocolError(Code.TOO_MANY_PEERS, "too many connections by TCP are not ready; this is the oldest (H-9)"))
        return peer

    def receive(self, peer: Peer, data: bytes, now: float, work: int = UNLIMITED) -> int:
        """Bytes that came from a peer, in immutable bytes: slices of them go to receivers. Returns how much work that was (`effort`).

        After *work* units the rest is left in ``peer.unread``: then `resume` goes on, before the peer is read again.
        """
        self.now = self._delivery.now = now
        peer.in_bytes += len(data)
        if peer.closing:
            return 0
        try:
            events = peer.connection.scanner.scan(data)
        except ProtocolError as error:  # of a frame that is a whole read: it is judged at once
            self._expel(peer, error)
            return 0
        return self._work_off(peer, events, work, len(data))

    def resume(self, peer: Peer, now: float, work: int = UNLIMITED) -> int:
        """Go on with what `receive` left of a read."""
        self.now = self._delivery.now = now
        rest, peer.unread = peer.unread, None
        size, peer.unread_bytes = peer.unread_bytes, 0
        return 0 if peer.closing or rest is None else self._work_off(peer, rest, work, size)

    def _work_off(self, peer: Peer, events: Iterable[Run | Frame], work: int, size: int) -> int:
        effort = self.effort
        begin = effort.spent
        end = begin + work
        events = iter(events)
        try:
            for event in events:
                if event.__class__ is tuple:
                    effort.spent += event[0].work + event[5]
                    self._route_run(peer, *event)
                else:
                    effort.spent += FRAME
                    self._handle(peer, event)  # type: ignore[arg-type]  # what is no tuple is a Frame
                if peer.closing:
                    break
                if effort.spent >= end and not (effort.spent < begin + CLAIM_WORK and _is_claim(event)):
                    peer.unread, peer.unread_bytes = events, size
                    break
            if peer.unread_bytes + peer.connection.scanner.held_bytes > self._charges.free_bytes or peer.charged:
                self._charges.settle(peer, self.now)
        except ProtocolError as error:
            self._expel(peer, error)
        return effort.spent - begin

    def wrote(self, peer: Peer, count: int, now: float) -> None:
        """The first *count* bytes of ``peer.out`` were given to the kernel."""
        self.now = self._delivery.now = now
        out, before = peer.out, peer.out_bytes
        peer.written_bytes += count
        peer.out_bytes = before - count
        if count == before:
            out.clear()
            peer.delivered = peer.given
            peer.delivered_bytes = peer.given_bytes
            if peer.marks is not None:
                peer.marks = None
        else:
            done = 0
            while count >= len(out[done]):
                count -= len(out[done])
                done += 1
            del out[:done]
            if count:
                out[0] = memoryview(out[0])[count:]
            peer.pass_marks()
        if before >= OUTPUT_HIGH_BYTES > peer.out_bytes:
            self._delivery.output_shrank(peer)
        if peer.inflow is not None:
            self._inflows.written(peer)
        if peer.charged:
            self._charges.settle(peer, now)

    def discard(self, peer: Peer, now: float) -> None:
        """Nobody reads what is written to *peer*, which is not gone yet: what it had sent is still to be received. What waits for it goes;
        it will be unknown (B-4)."""
        self.now = self._delivery.now = now
        peer.out.clear()
        peer.out_bytes = 0
        peer.marks = None
        self._inflows.forget(peer)
        if peer.charged:
            self._charges.settle(peer, now)

    def tick(self, now: float) -> None:
        """Do what has become due. Where that is much, some of it; `next_deadline` says then that it is to be called again at once."""
        self.now = self._delivery.now = now
        for peer, error in self._strangers.over(now, ENDS_AT_ONCE):
            self._dismiss(peer, error)
        for peer in self._leaving.due(now, ENDS_AT_ONCE):
            self._end(peer)
        for pending in self.requests.due(now, ENDS_AT_ONCE):
            self._calls.expire(pending)
        self._charges.due(now)
        self._delivery.stalled(now)
        self.publications.expire(now)
        self.monitors.due(now)
        self.routes.clean(ENDS_AT_ONCE)
        self._calls.clean()
        self.publish_owners()

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next, or None."""
        if self.routes.leaving or self._calls.orphans or self._unpublished:
            return self.now
        first = self.requests.earliest
        delivery = self._delivery
        untold = self.monitors.untold
        for timeouts in (self._strangers, self._leaving, delivery.late, delivery.holds.exhausted, self._charges.beyond, untold):
            deadline = timeouts.earliest
            if deadline is not None and (first is None or deadline < first):
                first = deadline
        kept = self.retained.earliest
        return kept if kept is not None and (first is None or kept < first) else first

    def take_touched(self) -> list[Peer]:
        """The peers whose ``out``, ``held`` or ``closing`` changed since the last call; some of them twice."""
        touched, free_bytes = self._delivery.touched, self._charges.free_bytes
        for peer, error in self.routes.take_crowded():
            self._expel(peer, error)
        for peer in touched:  # it grows: who ends here leaves wills and notices to others
            peer.touched = False
            if peer.charged or peer.out_bytes + peer.backlog_bytes + peer.parked_bytes > free_bytes:
                self._charges.settle(peer, self.now)
            if peer.out_bytes >= CHECKPOINT_BYTES:
                peer.mark()
            if peer.queued_bytes > self.limits.max_output_bytes and not peer.ending:
                peer.ending = peer.too_much()
            if peer.ending and not peer.closing:
                self._expel(peer, ProtocolError(Code.SLOW_READER, peer.ending))
        self._delivery.touched = []
        self._charges.round_over()
        return touched

    def shut_down(self, now: float) -> None:
        """The bus stops: BYE to everybody (E-2). The daemon writes what waits and disconnects."""
        self.now = self._delivery.now = now
        for peer in self.peers.values():
            for lane in tuple(peer.lanes.values()) if peer.lanes else ():
                self.remove_lane(lane)  # nothing may follow BYE (H-10)
            self.names.release_all(peer)
        self._calls.forget_all()
        goodbye = encode(Kind.BYE, 0, Code.SHUTTING_DOWN.value, "the bus stops")
        for peer in (*self.peers.values(), *self._strangers):
            if not peer.closing:
                self._delivery.put(peer, goodbye)
        for peer in (*self.peers.values(), *self._strangers):
            peer.connection.close()
            peer.closing = True
            self._delivery.touch(peer)

    def reconfigure(self, limits: Limits, now: float) -> None:
        """Other limits from now on. What a connection was told in its WELCOME (H-8) stays as it is for that connection."""
        self.limits = limits
        self._delivery.reconfigure(limits, self.peers.values(), now)
        self._strangers.set_delay(limits.handshake_timeout_s, now)
        self._leaving.set_delay(limits.half_close_linger_s, now)
        self.routes.max_matches = limits.max_matches
        self.accounts.reconfigure(limits)
        self._charges.reconfigure(limits, now)
        self._calls.limits = self._inflows.limits = limits
        self.names.limits = limits
        self.publications.limits = self.retained.limits = self.monitors.limits = limits

    def set_policy(self, policy: Policy, now: float) -> list[str]:
        """Another policy from now on: every peer gets its rights anew, and what it has that they do not allow ends (P-8). Returns what that
        was, in lines for the log."""
        self.now = self._delivery.now = now
        self.judge.set_policy(policy)
        self.routes.generation += 1
        return Revocation(self, self._delivery, self._expel).run()

    def replace_secrets(self, keys: Mapping[str, Secret], now: float) -> list[str]:
        """Other secrets from now on (H-14). Who proved one that is gone, or was about to, is closed. Returns what changed, in lines for the
        log."""
        self.now = self._delivery.now = now
        if self._secrets is None:
            return []
        changed, added = self._secrets.changed(keys), self._secrets.added(keys)
        for peer in (*self.peers.values(), *self._strangers):
            connection = peer.connection
            if peer.transport == "tcp" and connection.version and connection.identity in changed:
                text = f"the secret of {connection.identity!r} was replaced or taken away: read its file again (H-14)"
                self._dismiss(peer, ProtocolError(Code.AUTH_FAILED, text))  # at once: nobody's proof was wrong
        self._secrets.replace(keys)  # last: where a fault (no memory) came before, who was not closed yet is found again
        what = {name: "new" if name in added else "another one" if name in keys else "gone" for name in changed | added}
        return [f"the secret of {name!r} is {what[name]}" for name in sorted(what)]

    # --- runs: PUBLISH, RETAIN, SEND --------------------------------------------------------------

    def _route_run(self, peer: Peer, route: AnyRoute, data: bytes, start: int, end: int, last: int, count: int) -> None:
        """Send a run on its way. The hot path: a slice for each receiver, nothing for each frame."""
        peer.in_messages += count
        size = end - start
        piece: Piece
        if size <= COPIED_BYTES:
            piece = data[start:end]  # cheaper than a view, and pins nothing
        else:
            piece = data if size == len(data) else memoryview(data)[start:end]
        if route.__class__ is PublishRoute and route.lanes and not route.groups:
            self.counters.offered += count * len(route.lanes)
            self._offer(route.lanes, piece, size, count, peer)  # the usual case, without a call more than it needs
        elif isinstance(route, PublishRoute):
            self.publications.publish(route, piece, size, count, peer)
            if isinstance(route, RetainRoute):
                try:
                    self.publications.retain(route, data[last:end], peer)
                except ProtocolError as error:
                    self._refusals.frames(peer, Kind.RETAIN, route.topic, 1, error)
        elif isinstance(route, Refusal):
            self._refusals.frames(peer, route.kind, route.to, count, route.error)
        else:
            try:
                self._calls.give(peer, route.to, piece, size, count)
            except ProtocolError as error:
                self._refusals.frames(peer, Kind.SEND, route.to, count, error)

    # --- frames -----------------------------------------------------------------------------------

    def _handle(self, peer: Peer, frame: Frame) -> None:
        """One frame. Errors that are not fatal are answered here (E-3, E-4)."""
        peer.connection.check(frame)
        try:
            self._handlers[frame.kind](peer, frame)
        except ProtocolError as error:
            if error.code.fatal:
                raise
            self._refusals.frame(peer, frame, error)

    def _on_hello(self, peer: Peer, frame: Frame) -> None:
        challenge = peer.connection.hello(frame, self._random_bytes(NONCE_BYTES) if peer.transport == "tcp" else b"")
        if challenge is None:
            self._welcome(peer)
        else:
            self._delivery.put(peer, challenge)

    def _on_proof(self, peer: Peer, frame: Frame) -> None:
        peer.connection.prove(frame)
        peer.identity = peer.connection.identity
        self._welcome(peer)

    def _welcome(self, peer: Peer) -> None:
        try:
            self.judge.give_rights(peer)
        except ProtocolError as error:
            self._expel(peer, error)  # P-2
            return
        self._strangers.stop(peer)
        self._last_peer += 1
        peer.id = self._last_peer
        session = peer.session
        if session is not None:
            before = self._sessions.get(session)
            if before is not None:
                self._log(logging.DEBUG, f"{before} is back as peer {peer.id}: its old connection ends (H-13)")
                self._end(before)
            self._sessions[session] = peer
        self.peers[peer.id] = peer
        if not peer.account.pid:
            peer.account.name = f"peer {peer.id} ({peer.program!r})"
        if "identity" in peer.connection.features:
            peer.introduced = {}
        self._delivery.put(peer, peer.connection.welcome(peer.id, self._incarnation, self.software))
        self._log(logging.DEBUG, f"{peer} connected")

    def _on_bye(self, peer: Peer, frame: Frame) -> None:
        peer.wills = None  # H-10
        self._end(peer)

    def _on_ping(self, peer: Peer, frame: Frame) -> None:
        self._delivery.put(peer, encode(Kind.PONG, 0, frame.elements[2]))

    def _on_pong(self, peer: Peer, frame: Frame) -> None:
        """Nothing waits for it: this version of the bus sends no PING."""

    def _on_credit(self, peer: Peer, frame: Frame) -> None:
        _, _, number, size, messages = frame.elements
        lane = (peer.lanes or {}).get(number)
        if lane is not None:
            self._delivery.grant(lane, size, messages)


def _is_claim(event: Run | Frame) -> bool:
    """Whether it is the claim of a name or of methods, whose slice goes on with the next of them."""
    return isinstance(event, Frame) and event.kind is Kind.REQUEST and event.elements[2] in CLAIMS
