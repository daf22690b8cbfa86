"""The core of a client: bytes in, settled calls and filled lanes out; no socket, clock, thread or randomness.

Owns the state of the connection, the decoding of what comes, the requests in flight, the served methods and the declarations. A shell
owns the socket and the waiting. It calls opened() when a socket is connected, receive() with what it read, lost() when the socket is
gone, and writes what is in ``outbox``; it learns what happened through the ``notify`` of calls, lanes and requests, and through
``on_state`` and ``on_requests``. All calls of one session are under one lock.

What comes is decoded in _incoming.py; publications go from there into lanes, everything else comes to ``handlers`` here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from ipcbus.protocol.errors import Code, code_label
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload

from ._calls import ERROR, WARNING, Call, Remark, map_of
from ._declarations import Declarations
from ._errors import BusError, Closed, ConnectError, ConnectionLost, Denied, RequestError, Verdict, refusal_reason, request_error, verdict
from ._greeting import Greeting
from ._heads import HEADS_MAX, Head, call_head
from ._heartbeat import Heartbeat
from ._incoming import Incoming
from ._lanes import INBOX, Lane
from ._outbox import Outbox
from ._parts import Streams
from ._posts import Posts
from ._services import Services
from ._state import State, StateFeed
from ._told import Told
from ._waiting import Undelivered, Waiting

_DEFAULTS = Limits()
_REMARKS_MAX = 100
#: Direct messages that wait for an inbox's reader: they have no credit, so this is where they are bounded.
INBOX_MAX_BYTES = 16 * 1024 * 1024


_CONNECTED, _CLOSED = State.CONNECTED, State.CLOSED


class Session:
    """One client's side of the protocol, over any number of connections one after the other."""

    def __init__(
        self, *, program: str, library: str, waiting: Waiting | None = None, heartbeat: float | None = None, address: str = ""
    ) -> None:
        self.address = address  #: for what is said about the bus; it is not used
        self.program = program
        self.client_library = library
        self.outbox = Outbox(waiting)
        self.outbox.waiting.on_drop = self.outbox.holds.tell = partial(self.remark, WARNING)
        self.outbox.holds.on_change = lambda: self.on_state()  # whoever waits looks again
        self.outbox.holds.ping = self.ping
        self.clock: Callable[[], float] = float  #: the shell's, for what has a time to live
        self.posts = Posts(self)
        self.greeting = Greeting(self)
        self.services = Services(self)
        self.streams = Streams(self)
        self.told = Told(self)
        self.declarations = Declarations(self)
        self.incoming = Incoming(self)
        self.heartbeat = Heartbeat(self, heartbeat)
        self.receive = self.incoming.receive  #: what came from the bus
        self.state = State.CONNECTING
        self.error: BusError | None = None  #: why it is closed, where the program did not close it
        self.failure: BaseException | None = None  #: what user code raised first, whose owner asked to be told
        self.hangup: str | None = None  #: the shell must drop this connection, and why
        self.said_bye: int | None = None  #: the code of the bus's BYE on this connection
        self.peer = 0
        self.epoch = 0  #: connections so far, less one
        self.incarnation = b""
        self.limits: dict[str, int] = {}  #: WELCOME's (H-8)
        self.features: tuple[str, ...] = ()  #: WELCOME's (H-3)
        self.calls: dict[int, Call] = {}
        self.lanes: dict[int, Lane] = {}
        self.inbox: Lane | None = None
        self.remarks: deque[Remark] = deque(maxlen=_REMARKS_MAX)  #: for the shell to log
        self.on_state: Callable[[], None] = _nobody  #: the state changed
        self._state_feeds: WeakKeyDictionary[StateFeed, None] = WeakKeyDictionary()  #: who watches it, in order; who is gone drops out
        self.on_requests: Callable[[], None] = _nobody  #: ``services.requests`` has some
        self.counters = {
            "received": 0, "received_bytes": 0, "lost": 0, "refused": 0, "late_replies": 0, "unclaimed": 0,
            "reconnects": 0, "handler_errors": 0, "overloaded": 0, "not_remembered": 0, "lagging": 0,
        }  # fmt: skip
        self._told_unknown = 0  #: as many unknown messages the log knows of
        self.request_heads: dict[str, Head] = {}  #: by target: who is in here may be asked
        self._next_id = 0
        self.handlers: dict[int, Callable[[tuple[Any, ...]], None]] = {  # after WELCOME
            Kind.BYE: self.on_bye,
            Kind.PING: self._on_ping, Kind.PONG: self._on_pong, Kind.SEND: self.told.message, Kind.NOTICE: self.told.notice,
            Kind.REQUEST: self.services.take, Kind.ERROR: self._on_error, Kind.CANCEL: self._on_cancel,
            Kind.LANE: self._on_lane, Kind.PART: self.streams.take, Kind.ALLOW: self.services.allow,
        }  # fmt: skip

    # --- the connection ---

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Have *clock*, in seconds, say how old publications are."""
        self.clock = self.outbox.waiting.clock = clock

    def opened(
        self,
        *,
        secret: bytes | None = None,
        nonce: bytes | None = None,
        bus_address: str = "",
        client_address: str = "",
        identity: str = "",
        session_id: str = "",
    ) -> None:
        """A socket is connected: HELLO and, on a Unix socket, all declarations wait in the outbox for one write (H-4).

        On TCP *secret*, 32 random bytes as *nonce* and the addresses as this side's kernel reports them are for the proof (H-5), and
        *identity* is what the bus calls that secret, where it is not its own (H-14).
        *session_id* has the bus end this session's earlier connection first (H-13).
        """
        self._void("the connection was lost meanwhile")  # what a signal handler did within the end of the last one
        self.incoming.begin()
        self.heartbeat.begin()
        self.hangup = self.said_bye = None
        self.greeting.begin(secret, nonce, (bus_address, client_address), identity, session_id)
        if nonce is None:
            self.declarations.replay()

    def lost(self, why: str, *, again: bool) -> None:
        """The connection is gone. Calls in flight fail, declarations and publications wait for the next one; without *again* the bus is
        at its end. Done again it ends what was interrupted.
        """
        if self.state is State.CLOSED:
            return
        was_connected = self.state is State.CONNECTED
        self._void(why)
        if not again:
            self.close(self.error or ConnectionLost(why, who=self.address))
        elif was_connected:
            self.remark(WARNING, f"connection to the bus lost ({why}); reconnecting")
            self._change(State.RECONNECTING)

    def _void(self, why: str) -> None:
        """What was of a connection is so no more. Done again it does no harm: whoever is interrupted has left the rest to be done."""
        self.posts.lost()
        self.outbox.lost()
        self.request_heads.clear()
        self.services.lost()
        self.declarations.lost()
        for call in list(self.calls.values()):
            if call.declaration is None:
                call.settle(error=ConnectionLost(f"{call.to or 'ping'}: {why}", who=call.to or self.address, what=call.what()))
        self.calls.clear()

    def close(self, error: BusError | None = None) -> None:
        """The end: nothing is sent or received any more, every wait settles. Idempotent."""
        if self.state is State.CLOSED:
            return
        self.request_heads.clear()
        self.error = error
        final = error or Closed("the bus was closed", who=self.address)
        unsent = self.outbox.end(final)
        if unsent:
            text = "messages were never sent, for when the bus was closed there was no connection, or nobody read from it"
            self.remark(WARNING, f"{unsent} {text}")
        self.services.lost()
        for call in (*self.calls.values(), *self.declarations.take_calls()):
            call.settle(error=final.again(who=call.who(), what=call.what()))
        self.calls.clear()
        for lane in list(self.lanes.values()):
            lane.close(error)
        if self.inbox is not None:
            self.inbox.close(error)
        self._change(State.CLOSED)

    def disown(self, error: BusError) -> None:
        """In the child of a fork: all of this is the parent's, which goes on with it. As close() with *error*, but what waits is not
        counted as lost, and what came is not handed out a second time.
        """
        self.outbox = Outbox()
        self.remarks.clear()
        for lane in (*self.lanes.values(), *([] if self.inbox is None else [self.inbox])):
            lane.messages.clear()
        self.streams.disown()
        for feed in list(self._state_feeds):
            feed.close()
        self.close(error)

    def follow(self, other: Session) -> None:
        """This one takes the place of *other*: no id is one of that, so that what belongs to it cannot be taken for what belongs here."""
        self._next_id = other._next_id

    def welcomed(self, peer: int, incarnation: bytes, limits: dict[str, int], features: tuple[str, ...]) -> None:
        """The handshake is over: say what waited for it."""
        before, last_peer = self.incarnation, self.peer
        self.peer, self.incarnation, self.limits, self.features = peer, incarnation, limits, features
        self.request_heads.clear()
        if incarnation != before:
            self.told.another_bus()
        self.incoming.max_frame = limits.get("max_frame_bytes", _DEFAULTS.max_frame_bytes)
        self.outbox.peer = peer
        self.declarations.replay()  # TCP: all of them; Unix: what was declared since HELLO
        self.posts.welcomed(before, last_peer)
        dropped = self.outbox.opened(peer, limits.get("max_payload_bytes", self.outbox.max_payload_bytes))
        if dropped:
            self.remark(ERROR, f"{dropped} messages that waited for a connection are over this bus's payload limit and were dropped")
        lost = self._what_was_lost()
        if before:
            self.epoch += 1
            self.counters["reconnects"] += 1
            for lane in (*self.lanes.values(), *filter(None, [self.inbox])):
                lane.reconnected(self.epoch, incarnation != before)
            self.remark(WARNING, f"connected to the bus again, as peer {peer}{lost}")
        for lane in self.lanes.values():
            self.grant(lane, idle=True)  # what was consumed since HELLO, where the credit was fixed
        self._change(State.CONNECTED)

    def _what_was_lost(self) -> str:
        """For the log: what the time without a connection cost."""
        unknown, self._told_unknown = self.outbox.undelivered().unknown - self._told_unknown, self.outbox.undelivered().unknown
        dropped = self.outbox.waiting.end_episode()
        text = f"; {unknown} messages were sent before and not confirmed, so that it is unknown whether the bus had them" if unknown else ""
        return text + (f"; {dropped} messages were dropped from the full outbox meanwhile" if dropped else "")

    def on_bye(self, envelope: tuple[Any, ...]) -> None:
        """The bus ends the connection (H-10)."""
        _, _, code, text = envelope
        self.said_bye = code
        words = f"{code_label(code)}: {text}" if text else code_label(code)
        replaced = code == Code.AUTH_FAILED and self.state is State.CONNECTED  # H-14: the file has another secret by now
        if verdict(code) is Verdict.END and not replaced:
            hint = Denied.hint if code == Code.DENIED else ""
            self.fatal(ConnectError(f"the bus ended the connection: {words}", reason=refusal_reason(code), who=self.address, hint=hint))
        self.hangup = f"the bus said {words}"

    def fatal(self, error: BusError) -> None:
        """This connection ends, and trying again would be no better."""
        self.hangup = str(error)
        self.error = error

    def bye(self) -> None:
        """Put BYE into the outbox: the last frame (H-10)."""
        if self.state is State.CONNECTED:
            self.outbox.put(encode(Kind.BYE, self.peer, Code.OK.value, ""))

    def tick(self, now: float, unread: Callable[[], bool]) -> float | None:
        """Do what is due while connected: say again what a replay was refused, and the heartbeat, which asks *unread* whether bytes wait
        in the socket. Returns when to call again (None: not before something changes). May put frames into the outbox, or set ``hangup``.
        """
        retry_at, beat_at = self.declarations.tick(now), self.heartbeat.tick(now, unread)
        return min((at for at in (retry_at, beat_at) if at is not None), default=None)

    def awaits(self) -> bool:
        """Whether something is awaited of the bus: an answer, a confirmation, or that it reads."""
        return bool(self.calls) or self.outbox.unanswered

    def check_open(self) -> None:
        """Raise Closed, or the error that ended the bus, when it is closed."""
        if self.state is State.CLOSED:
            raise self.error.again() if self.error is not None else Closed("the bus was closed", who=self.address)

    def user_raised(self, error: BaseException) -> None:
        """User code with ``errors="raise"`` raised *error*: wait() of the bus raises it in the owner. Only the first one waits there."""
        if self.failure is None and self.state is not State.CLOSED:
            self.failure = error
            self.on_state()

    def stats(self) -> dict[str, Any]:
        """Counters since the start and gauges of now."""
        return {
            **self.counters,
            "requests": len(self.calls),
            "handling": self.services.at_work,
            "lanes": len(self.lanes),
            "held_bytes": sum(lane.held_bytes for lane in self.lanes.values()),
            "unsent_bytes": self.outbox.unsent_bytes,
            "waiting": len(self.outbox.waiting),
            "waiting_bytes": self.outbox.waiting.bytes,
            "dropped_waiting": self.outbox.waiting.discarded,
            "outbox_dropped": self.outbox.waiting.dropped,
            "outbox_expired": self.outbox.waiting.expired,
            **self.outbox.holds.stats(),
            **self.posts.stats(),
            **self.undelivered()._asdict(),
        }

    def watch_state(self, feed: StateFeed) -> StateFeed:
        """Tell *feed* of each change of the state from now on, as long as somebody holds it."""
        self._state_feeds[feed] = None
        return feed

    def undelivered(self) -> Undelivered:
        """What certainly did not arrive so far, dropped messages included, and what may not have arrived."""
        unsent, unknown = self.outbox.undelivered()
        waiting = self.outbox.waiting
        return Undelivered(unsent + waiting.discarded + waiting.dropped + waiting.expired, unknown)

    def _change(self, state: State) -> None:
        self.state = state
        for feed in list(self._state_feeds):
            feed.put(state)
        self.on_state()

    def remark(self, level: int, text: str) -> None:
        """Something for the log."""
        self.remarks.append(Remark(level, text))

    # --- what goes out ---

    def new_id(self) -> int:
        """An id for a request or ping (V-7): never used again by this session."""
        self._next_id += 1
        return self._next_id

    def request(self, to: str, data: Any, headers: Mapping[str, Any] | None, timeout_s: float) -> Call:
        """Send a REQUEST; *to* is checked already. Raises PayloadError."""
        outbox = self.outbox
        meta, payload = (1, data) if type(data) is bytes and headers is None else outbox.encode(data, headers, to, "request")
        size = len(payload)
        if size > outbox.max_payload_bytes:
            outbox.check_size(size, to, "request")
        self._next_id = identity = self._next_id + 1
        call = Call(identity, to)
        if type(meta) is dict:
            self.put_request(call, meta, payload, timeout_s)
            return call
        try:
            pack, before, _, highest, base, after, after_raw, made_for = self.request_heads[to]
        except KeyError:
            made_for = -1.0
        if made_for != timeout_s or identity > highest:
            if to.startswith("bus/"):
                self.put_request(call, meta, payload, timeout_s)
                return call
            pack, before, _, highest, base, after, after_raw, _ = self._request_head(identity, to, timeout_s)
        frame = pack(0xCE, base + size, before, identity, after_raw if meta else after, size), payload
        out = outbox.out
        out += frame
        outbox.control += 2
        self.calls[identity] = call
        return call

    def _request_head(self, identity: int, to: str, timeout_s: float) -> Head:
        if len(self.request_heads) >= HEADS_MAX:
            self.request_heads.clear()
        timeout_ms = self._timeout_ms(timeout_s)
        head = self.request_heads[to] = call_head(identity, Kind.REQUEST, self.outbox.peer, to, timeout_ms, note=timeout_s)
        return head

    def put_request(self, call: Call, meta: Any, payload: bytes, timeout_s: float) -> None:
        """Put the REQUEST of *call* into the outbox and wait for its answer."""
        timeout_ms = self._timeout_ms(timeout_s)
        if call.to.startswith("bus/"):
            call.mark = self.outbox.mark()  # the bus itself answers when it has had everything before
        self.outbox.put(encode_with_payload(payload, Kind.REQUEST, self.outbox.peer, call.to, call.id, timeout_ms, meta))
        self.calls[call.id] = call

    def _timeout_ms(self, timeout_s: float) -> int:
        return max(1, int(min(timeout_s * 1000, self.limits.get("max_timeout_ms", _DEFAULTS.max_timeout_ms))))

    def ping(self) -> Call:
        """Send a PING: it settles after everything sent before was routed (H-12)."""
        call = Call(self.new_id(), "")
        call.mark = self.outbox.mark()
        self.outbox.put(encode(Kind.PING, self.peer, call.id))
        self.calls[call.id] = call
        return call

    def cancel(self, call: Call) -> None:
        """Nobody waits for *call* any more: CANCEL, which is authoritative (R-2)."""
        if self.calls.pop(call.id, None) is not None and call.to and self.outbox.peer:
            self.outbox.put(encode(Kind.CANCEL, self.peer, call.to, call.id))

    def grant(self, lane: Lane, *, idle: bool = False) -> bool:
        """Renew the credit of *lane* where it is worth a frame (L-5, L-6); whether one is in the outbox now."""
        if lane.number == INBOX or lane.closed:
            lane.restart()
        elif self.outbox.peer:  # before WELCOME what was consumed is kept in the lane's account
            size, count = lane.grant(idle=idle)
            if size or count:
                self.outbox.put(encode(Kind.CREDIT, self.peer, lane.number, size, count))
                return True
        return False

    # --- what comes in, besides publications (for _incoming.py) ---

    def _on_ping(self, envelope: tuple[Any, ...]) -> None:
        self.outbox.put(encode(Kind.PONG, self.peer, envelope[2]))

    def _on_pong(self, envelope: tuple[Any, ...]) -> None:
        call = self.calls.pop(envelope[2], None)
        if call is not None:
            if call.mark is not None:
                self.outbox.confirm(call.mark)
            call.settle()

    def _on_lane(self, envelope: tuple[Any, ...]) -> None:
        self.incoming.lane = envelope[2]

    def _on_cancel(self, envelope: tuple[Any, ...]) -> None:
        self.services.cancel(envelope[1], envelope[3])

    def _on_error(self, envelope: tuple[Any, ...]) -> None:
        _, _, _, identity, code, text, meta, payload = envelope
        if identity:
            call = self.calls.pop(identity, None)
            about = map_of(meta, payload) if payload else {}
            self.settle(call, meta, payload, request_error(code, text, call.to if call else "", about), envelope[1])
            return
        self.told.refused(envelope)

    def settle(self, call: Call | None, meta: Any, payload: bytes, error: RequestError | None, sender: int = 0) -> None:
        """An answer came, where that is not the usual one, which _incoming.py settles."""
        if call is None:
            self.counters["late_replies"] += 1
            return
        if call.mark is not None:
            call.sender = self.told.senders[sender]
            self.outbox.confirm(call.mark)
        if call.declaration is not None:
            self.declarations.answered(call, meta, payload, error)
        else:
            call.settle(meta, payload, error)


def _nobody() -> None:
    """Nobody listens."""
