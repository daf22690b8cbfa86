"""The real `ipcbus_client` session in a shell made of the fake network: what the program sees is compared with what the wire brought.

The oracle judges the wire; this judges the session: nothing lost, doubled or reordered between wire and program, publications
sent in order and once across reconnects, declarations replayed, every call settled exactly once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ipcbus.protocol.messages import Kind, encode
from ipcbus.protocol.payloads import decode_value
from ipcbus_client._calls import Call
from ipcbus_client._errors import OutboxFull, ServiceError
from ipcbus_client._lanes import INBOX, Lane
from ipcbus_client._message import Message, Request
from ipcbus_client._notices import Lost
from ipcbus_client._refusal import refusal
from ipcbus_client._session import Session
from ipcbus_client._state import State
from ipcbus_client._waiting import Waiting

from . import session_checks
from .model_client import LEGAL_TOPICS, METHODS, NAMES, PATTERNS, POOL
from .network import Link, World
from .session_parts import WINDOW_BYTES, Producer, Reader, Taker, Who, append_loss
from .violations import ViolationError, frame_of, frames_in


class SessionClient:
    """A program with one bus object, whose connection comes and goes."""

    def __init__(self, world: World, label: str) -> None:
        self.world = world
        self.random = world.dice(label)
        self.label = label
        self.acting = True
        self.resting = False
        self.link: Link | None = None
        self.session = Session(program=label, library="sim", heartbeat=1.5, waiting=self._outbox())
        self.session.use_clock(lambda: world.now)
        self.session.on_requests = self._requests_came
        self.session.inbox = Lane(INBOX, "", window_bytes=1 << 24)
        self.readers: dict[int, Reader] = {INBOX: Reader(self.session.inbox, 0)}
        self.calls: list[tuple[Call, list[int]]] = []  #: each with one entry for each time that it settled
        self.given_up: set[Call] = set()
        self.takers: dict[int, Taker] = {}
        self.published: list[bytes] = []
        self.topics: dict[bytes, str] = {}  #: of what was published
        self.mortal: set[bytes] = set()  #: of these, what has a time to live
        self.cancelled: list[tuple[int, int]] = []  #: requests to it that the last read cancelled: by requester and id
        self.bound: set[str] = set()  #: of the topics in present, those that go with the connection
        self.present: dict[str, bytes] = {}  #: what this program, and no other, retained last on its own topics
        self.excused = bytearray()  #: bytes that died in a connection
        self._numbers = itertools.count(1)
        self._current = 0  #: lane on the wire
        self._buffer = bytearray()
        world.after(self.soon(0.1), self._connect)
        world.after(self.soon(0.5), self._act_again)
        self._tick()

    def soon(self, longest_s: float) -> float:
        """A delay by its own dice."""
        return self.world.soon(longest_s, self.random)

    def _outbox(self) -> Waiting:
        policy = self.random.choice(["block", "block", "raise", "drop_oldest", "drop_newest"])
        return Waiting(policy, *self.random.choice([(1 << 20, 10_000), (30_000, 40)]))

    # --- the shell ----------------------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.link is not None or self.world.closing:
            return
        if not self.world.connect(self, f"{self.label}/{self.session.epoch}"):
            self.world.after(self.soon(0.5), self._connect)

    def connected(self, link: Link) -> None:
        self.link = link
        self._buffer = bytearray()
        self._current = -1
        self.session.opened(session_id=f"session of {self.label}")
        self._push()

    def disconnected(self) -> None:
        assert self.link is not None
        self.excused += self.link.model.buffer_in + self.link.rest + self.link.up + self._torn()
        self.link = None
        self.session.lost("cut", again=True)
        self.world.after(self.soon(0.5), self._connect)

    def _torn(self) -> bytes:
        """The rest of a frame that was begun: the session cannot send it again."""
        data, written = self.session.outbox._sending, self.session.outbox._at
        at = 0
        while at < written:
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if end > written:
                return bytes(data[written:end])
            at = end
        return b""

    def received(self, data: bytes) -> None:
        self._tap(data)
        self.session.receive(data)
        for who in self.cancelled:
            if who in self.session.services._active:
                raise ViolationError(f"{self.label} goes on with request {who}, which was cancelled")
        self.cancelled.clear()
        for reader in self.readers.values():
            if reader.lane.messages and not reader.busy:
                self._soon_take(reader, self._take)
        for taker in self.takers.values():
            if taker.call.lane.messages and not taker.busy:
                self._soon_take(taker, self._take_parts)
        if self.session.hangup is not None:
            self.world.note(f"{self.label} hangs up: {self.session.hangup}")
            known = ("stopped", "shutting_down", "handshake_timeout", "slow_reader", "over_quota")  # the oracle knows when
            if not any(word in self.session.hangup for word in known):
                raise ViolationError(f"{self.label} hung up: {self.session.hangup}")
            if self.link is not None:
                self.link.abandon()
        self._push()

    def _push(self) -> None:
        """Write what is in the outbox: all of it, or as much as a full kernel would take, and the rest later."""
        outbox = self.session.outbox
        while self.link is not None and outbox.unsent_bytes:
            chunk = outbox.chunk()
            size = len(chunk) if self.random.random() < 0.8 else self.random.randint(1, len(chunk))
            data = bytes(chunk[:size])
            chunk.release()
            outbox.wrote(size)
            self.link.send(data)
            if outbox.blocked:
                self.world.after(self.soon(0.2), self._push)
                return

    def _tick(self) -> None:
        if self.session.state is State.CONNECTED:
            self.session.tick(self.world.now, lambda: False)  # (what is on its way is not in a socket yet)
            if self.session.hangup is not None:
                self.world.note(f"{self.label} hangs up: {self.session.hangup}")
                assert self.link is not None
                self.link.abandon()
        self._push()
        if not self.resting:
            self.world.after(0.5, self._tick)

    def _tap(self, data: bytes) -> None:
        """What the wire brings, read by another decoder than the session's."""
        self._buffer += data
        for raw in frames_in(self._buffer):
            frame = frame_of(raw)
            if frame.kind is Kind.LANE:
                self._current = frame.elements[2]
            elif frame.kind in (Kind.PUBLISH, Kind.RETAIN, Kind.SEND):
                number = INBOX if frame.kind is Kind.SEND else self._current
                reader = self.readers.get(number)
                if reader is not None and reader.open:
                    reader.wire.append(frame.payload)
            elif frame.kind is Kind.CANCEL:
                self.cancelled.append((frame.elements[1], frame.elements[3]))
            elif frame.kind is Kind.PART:
                taker = self.takers.get(frame.elements[3])
                if taker is not None and taker.call not in self.given_up:
                    taker.wire.append(frame.payload)
            elif frame.kind is Kind.NOTICE and frame.elements[2] == "lost":
                content = decode_value(None, frame.payload)
                reader = self.readers.get(content["lane"])
                if reader is not None and reader.open:
                    reader.lost_on_wire += content["count"]
                    if reader.lane.notices:
                        append_loss(reader.wire, content["count"])

    # --- the program --------------------------------------------------------------------------------------------------------------------

    def _act_again(self) -> None:
        if self.acting:
            actions = (self._publish, self._subscribe, self._unsubscribe, self._serve, self._call, self._send, self._ping)
            actions += (self._declare, self._confirm)
            self.world.let(self.random.choices(actions, (10, 4, 1, 2, 6, 2, 1, 3, 2))[0])
            self.world.after(self.soon(0.6), self._act_again)

    def _payload(self) -> bytes:
        size = self.random.choice([0, 100, 2000]) if self.random.random() < 0.3 else 10
        return f"{self.label}#{next(self._numbers)}#".encode() + bytes(size)

    def _publish(self) -> None:
        try:
            self._publish_some()
        except OutboxFull:  # held by a slow subscriber (L-12), where a shell would wait: this one was not taken
            self.published.pop()
        self.world.after(self.soon(0.1), self._push)

    def _publish_some(self) -> None:
        topic, retain = self.random.choice(LEGAL_TOPICS), self.random.random() < 0.2
        for _ in range(self.random.choice([1, 1, 5, 30])):
            self.published.append(self._payload())
            self.topics[self.published[-1]] = topic
            if retain:
                posts = self.session.posts
                ttl = self.random.choice([None, None, 0.2, 8.0])
                if ttl is not None:
                    self.mortal.add(self.published[-1])
                posts.put(posts.make(topic, self.published[-1], self.random.random() < 0.5, None, ttl))
            else:
                self.session.outbox.publish(topic, self.published[-1], False, None)

    def _declare(self) -> None:
        """A will, or a value that is there as long as the connection is."""
        posts, topic = self.session.posts, f"state.{self.label}.{self.random.randint(1, 3)}"
        if self.random.random() < 0.3:
            self._watch(posts.will(topic, self._payload(), self.random.random() < 0.5, None))
        else:
            present = self._payload() if self.random.random() < 0.8 else b""
            bound = self.random.random() < 0.7
            try:
                posts.put(posts.make(topic, present, True, None, bound=bound))
            except OutboxFull:
                return
            self.present[topic] = present
            (self.bound.add if bound else self.bound.discard)(topic)
        self._push()

    def _confirm(self) -> None:
        if self.session.state is State.CONNECTED:
            posts = self.session.posts
            with suppress(OutboxFull):
                self._watch(posts.confirm(posts.make(self.random.choice(LEGAL_TOPICS), self._payload(), False, None)))
            self._push()

    def _send(self) -> None:
        with suppress(OutboxFull):
            self.session.outbox.send(self.random.choice([*NAMES, POOL]), self._payload(), None)
        self._push()

    def _subscribe(self) -> None:
        if len(self.session.lanes) >= 6:
            return
        more: dict[str, Any] = {"group": self.random.choice([None, None, "jobs"]), "notices": self.random.random() < 0.5}
        if more["group"] is None and self.random.random() < 0.6:
            more["policy"] = self.random.choice(["block", "drop_oldest", "drop_newest", "latest", "disconnect"])
            more["limits"] = {"soft": self.random.choice([500, 6_000]), "seconds": self.random.choice([0.2, 1.5])}
        lane = Lane(self.session.new_id(), self.random.choice(PATTERNS), window_bytes=WINDOW_BYTES, prefetch=4, **more)
        reader = self.readers[lane.number] = Reader(lane, self.session.epoch)
        reader.subscribed = self.session.declarations.subscribe(lane)
        self._watch(reader.subscribed)
        self._push()

    def _unsubscribe(self) -> None:
        answered = [reader for reader in self.readers.values() if reader.subscribed is not None and reader.subscribed.done]
        readers = [reader for reader in answered if reader.open]
        if readers:
            reader = self.random.choice(readers)
            reader.open = False
            call = self.session.declarations.withdraw("subscribe", reader.lane.number)
            if call is not None:
                self._watch(call)
            self._push()

    def _serve(self) -> None:
        name, method = self.random.choice(NAMES), self.random.choice(METHODS)
        if self.session.declarations.declared("serve", name, method) is not None:
            return
        if self.session.declarations.declared("own", name) is None:
            self._watch(self.session.declarations.own(name, "queue", False, False))
        self.session.services.add(name, method, "handler")
        self._watch(self.session.declarations.serve(name, method))
        self._push()

    def _call(self) -> None:
        if self.session.state is not State.CONNECTED:
            return
        timeout_s = self.random.choice([0.1, 1.0])
        to = f"{self.random.choice([*NAMES, POOL])}/{self.random.choice(METHODS)}"
        if self.random.random() < 0.6:
            call = self.session.request(to, self._payload(), None, timeout_s)
            patience_s = timeout_s + 0.2
        else:
            call = parted = self.session.streams.open(to, self._payload(), None, 4 * timeout_s, self.random.choice([1, 300, WINDOW_BYTES]))
            self.takers[call.id] = Taker(parted)
            patience_s = self.random.choice([0.3, 1.0, 4 * timeout_s + 0.2])
        self._watch(call)

        def give_up() -> None:
            if not call.done:
                self.given_up.add(call)
                self.session.cancel(call)
                if encode(Kind.CANCEL, self.session.outbox.peer, call.to, call.id) not in self.session.outbox.out:
                    raise ViolationError(f"{self.label} gave up request {call.id} to {call.to} and does not tell the bus")
                self._push()

        self.world.after(patience_s, give_up)
        self._push()

    def _ping(self) -> None:
        if self.session.state is State.CONNECTED:
            self._watch(self.session.ping())
            self._push()

    def _watch(self, call: Call) -> None:
        settled: list[int] = [1] if call.done else []
        call.notify = lambda: settled.append(1)
        self.calls.append((call, settled))

    def _requests_came(self) -> None:
        requests: deque[tuple[object, Request]] = self.session.services.requests
        while requests:
            _, request = requests.popleft()
            self.world.after(self.soon(0.5), partial(self._answer, request))

    def _answer(self, request: Request) -> None:
        if self.random.random() < 0.5:
            Producer(self, request, self.random.choice([0, 1, 5, 40])).wake()
            return
        if self.random.random() < 0.8:
            self.session.services.answer(request, self._payload())
        else:
            self.session.services.refuse(request, refusal(request, ServiceError("not-today", "come back tomorrow")))
        self._push()

    def _soon_take(self, who: Who, take: Callable[[Who], None]) -> None:
        who.busy = True
        self.world.after(self.soon(0.3), partial(take, who))

    def _take(self, reader: Reader) -> None:
        reader.busy = False
        messages = reader.lane.messages
        for _ in range(min(len(messages), self.random.choice([1, 5, 100]))):
            message: object = messages.popleft()
            if isinstance(message, Lost):
                append_loss(reader.taken, message.count)
            elif isinstance(message, Message):
                reader.taken.append(message.payload)
            reader.lane.handled()
        self.session.grant(reader.lane, idle=not messages)
        self._push()
        if messages:
            self._soon_take(reader, self._take)

    def _take_parts(self, taker: Taker) -> None:
        taker.busy = False
        parts = taker.call.lane.messages
        for _ in range(min(len(parts), self.random.choice([1, 5, 100]))):
            taker.taken.append(taker.call.value_of(taker.call.next_part()))
        self.session.streams.grant(taker.call)
        self._push()
        if parts:
            self._soon_take(taker, self._take_parts)

    # --- the end ------------------------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Do nothing new, take all that waits."""
        self.acting = False

    def rest(self) -> None:
        """No heartbeat any more: nothing is under way when all is looked at."""
        self.resting = True

    def check(self) -> None:
        """All is quiet and the connection stands."""
        session_checks.check(self)

    def check_left(self) -> None:
        """It has gone, and with it what was bound to its connection."""
        session_checks.check_left(self)
