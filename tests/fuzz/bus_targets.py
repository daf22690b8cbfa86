"""What must hold for any bytes that peers write to a bus: the broker of a daemon, and the session of a client, each without a socket."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgpack

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.protocol.errors import ProtocolError
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload
from ipcbus_client._calls import Call
from ipcbus_client._errors import BusError
from ipcbus_client._lanes import INBOX, Lane
from ipcbus_client._session import Session
from ipcbus_client._state import State
from tests.conformance import vectors

from . import grammar
from .engine import Target, mark

# --- a bus and its peers ---

#: Small, so that some inputs reach them.
LIMITS = Limits(max_payload_bytes=4096, max_peers=6, max_lanes=4, max_names=3, max_requests=5, max_wills=2, max_retained_topics=5)
HELLO = encode(Kind.HELLO, 0, 1, 1, [], {"program": "fuzz"}, None)
WRITE, END, LEAVE, WAIT, JOIN = range(5)
_PEERS = 4


class Story:
    """An input as acts: each is three bytes (which act, which peer, a length or a time), and what a peer writes."""

    def __init__(self, data: bytes) -> None:
        self.acts: list[tuple[int, int, bytes]] = []
        at = 0
        while at + 4 <= len(data) and len(self.acts) < 60:
            act, peer, size = data[at] % 5, data[at + 1] % _PEERS, int.from_bytes(data[at + 2 : at + 4], "big")
            at += 4
            carried = data[at : at + size] if act == WRITE else bytes((size & 0xFF,))
            at += len(carried) if act == WRITE else 0
            self.acts.append((act, peer, carried))


def tell(acts: list[tuple[int, int, bytes]]) -> bytes:
    """The input that is *acts*."""
    return b"".join(
        bytes((act, peer)) + (len(carried) if act == WRITE else carried[0]).to_bytes(2, "big") + (carried if act == WRITE else b"")
        for act, peer, carried in acts
    )


class Bus:
    """A broker whose peers read all they are given, at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.broker = Broker(incarnation=bytes(16), random_bytes=bytes, now=self.now, limits=LIMITS)
        self.peers: dict[int, Peer] = {}
        self.unread: dict[Peer, list[bytes | None]] = {}  #: of peers that are held
        self.came: dict[Peer, bytes] = {}
        self.ends: Counter[Any] = Counter()

    def play(self, story: Story, chance: random.Random | None) -> None:
        """With *chance*, what peers write comes in random pieces, and is worked off in as small slices."""
        self.slices = chance
        for act, number, carried in story.acts:
            peer = self.peers.get(number)
            if act == JOIN or peer is None:
                self._join(number)
            elif act == WRITE:
                self.unread[peer] += [carried] if chance is None else _pieces(carried, chance)
            elif act == END:
                self.unread[peer].append(None)
            elif act == LEAVE:
                self._gone(number)
            else:
                self._wait(carried[0] / 8)
            self._settle()

    def _join(self, number: int) -> None:
        if number in self.peers:
            return
        try:
            peer = self.broker.connect(self.now, credentials=Credentials(100 + number, 1000, 1000))
        except ProtocolError as error:
            mark(error.code)
            return
        self.peers[number] = peer
        self.unread[peer] = []
        self.came[peer] = b""

    def _wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.broker.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.broker.tick(self.now)
            self._settle()
        self.now = end

    def _settle(self) -> None:
        while self._write() or self._read():
            pass

    def _write(self) -> bool:
        touched = self.broker.take_touched()
        for peer in touched:
            if peer.closed:
                continue
            assert peer.out_bytes == sum(map(len, peer.out))
            self.came[peer] += b"".join(peer.out)
            if peer.out:
                self.broker.wrote(peer, peer.out_bytes, self.now)
            if peer.closing:
                for number in [number for number, other in self.peers.items() if other is peer]:
                    self._gone(number)
        return bool(touched)

    def _read(self) -> bool:
        for peer in self.peers.values():
            waiting = self.unread[peer]
            if waiting and not peer.held:
                data = waiting.pop(0)
                if data is None:
                    self.broker.half_close(peer, self.now)
                elif self.slices is None:
                    self.broker.receive(peer, data, self.now)
                else:
                    self.broker.receive(peer, data, self.now, self.slices.choice((1, 5, 100)))
                    while peer.unread is not None:
                        self.broker.resume(peer, self.now, self.slices.choice((1, 5, 100)))
                return True
        return False

    def _gone(self, number: int) -> None:
        peer = self.peers.pop(number)
        del self.unread[peer]
        self.broker.disconnect(peer, self.now)
        data, at, last = self.came.pop(peer), 0, None
        while at < len(data):  # what a peer gets is whole legal frames, whatever others wrote
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            last = decode(data[at:end])
            mark("out", last.kind, last.elements[3] if last.kind is Kind.ERROR else 0)
            at = end
        assert at == len(data), "a part of a frame"
        ending = last.elements[2] if last is not None and last.kind is Kind.BYE else None
        self.ends[number, ending] += 1
        mark("end", ending)

    def empty(self) -> None:
        """Everybody leaves, and nothing is left."""
        for number in list(self.peers):
            self._gone(number)
        self._wait(100.0)
        check_empty(self.broker)


def check_empty(broker: Broker) -> None:
    """A bus from which everybody went holds nothing but what is retained."""
    assert not broker.peers
    assert not broker._sessions
    assert (len(broker.names), broker.lane_count, len(broker.requests)) == (0, 0, 0)
    assert not broker.routes._literal
    assert broker.routes._root.empty
    assert broker.queued_bytes() == 0
    assert broker.accounts.is_empty, f"somebody who left is still charged: {broker.accounts.used}"
    assert broker.next_deadline() is None, "a timer of somebody who left"


def _pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 5, 8, 40, 200))
        yield data[at : at + size]
        at += size


def serve_peers(data: bytes) -> None:
    """No input makes the broker raise, or write anything but whole legal frames; who is closed, and why, does not depend on how the input
    comes; when everybody has left, nothing is left.
    """
    story = Story(data)
    whole, split = Bus(), Bus()
    for bus, chance in ((whole, None), (split, random.Random(1))):
        bus.play(story, chance)
        bus.empty()
    assert whole.ends == split.ends, (whole.ends, split.ends)


@cache
def stories() -> list[bytes]:
    """The cases of the vectors, as far as they have no TCP and little waiting."""
    found = []
    for case in vectors.load():
        acts: list[tuple[int, int, bytes]] = []
        numbers: dict[str, int] = {}
        for step in vectors.plain_steps(case):
            peer = next((step[key] for key in ("connect", "peer", "eof", "close") if key in step), "")
            number = numbers.setdefault(peer, len(numbers)) % _PEERS
            if "connect" in step:
                acts.append((JOIN, number, b"\0"))
            elif "in" in step:
                acts.append((WRITE, number, (vectors.to_bytes(step["in"]) * int(step.get("times", 1)))[:60_000]))
            elif "eof" in step or "close" in step:
                acts.append((END if "eof" in step else LEAVE, number, b"\0"))
            elif "advance_s" in step:
                acts.append((WAIT, number, bytes((min(255, int(step["advance_s"] * 8)),))))
        data = tell(acts)
        if len(data) < 6000 and not any("prove" in step for step in case.steps):
            found.append(data)
    return found


def _make_story(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return chance.choice(stories())
    count = chance.choice((1, 2, 3))
    acts = [act for number in range(count) for act in ((JOIN, number, b"\0"), (WRITE, number, HELLO))]
    for _ in range(chance.choice((2, 6, 20))):
        number = chance.randrange(count)
        act = chance.choice((WRITE,) * 12 + (END, LEAVE, WAIT, JOIN))
        wire = b"".join(grammar.frame(chance, number + 1) for _ in range(chance.choice((1, 1, 2, 5))))
        acts.append((act, number, wire[:60_000] if act == WRITE else chance.randbytes(1)))
    return tell(acts)


# --- a client ---

_INFO = {"software": "fuzz", "max_frame_bytes": 70_000, "max_payload_bytes": 4464, "max_timeout_ms": 60_000}
WELCOME = encode(Kind.WELCOME, 0, 1, ["parts"], 7, b"i" * 16, _INFO)


class Program:
    """A session as a program uses it: subscriptions, a service, requests, streams; each wait is counted when it settles."""

    def __init__(self) -> None:
        self.session = session = Session(program="fuzz", library="fuzz", heartbeat=1.0)
        session.inbox = Lane(INBOX, "", window_bytes=1 << 20)
        session.on_requests = self._serve
        self.settled: Counter[int] = Counter()
        self.calls: list[Call] = []
        self.lanes = [
            Lane(session.new_id(), "a.>", window_bytes=2000, notices=True),
            Lane(session.new_id(), "b", group="g", window_bytes=500),
        ]
        self._watch(*(session.declarations.subscribe(lane) for lane in self.lanes))
        self._watch(*session.services.begin("svc", {"do": None}, "handler", "exclusive"))
        self.connect()
        session.receive(WELCOME)
        self._push()
        self._watch(session.request("other/do", 1, None, 5.0), session.request("bus/stats", None, {"a": 1}, 5.0), session.ping())

    def _watch(self, *calls: Any) -> None:
        for call in calls:
            number = len(self.calls)
            self.calls.append(call)
            call.notify = lambda number=number: self.settled.update((number,))

    def connect(self) -> None:
        self.session.opened()
        self._push()

    def _serve(self) -> None:
        services = self.session.services
        while services.requests:
            _, request = services.requests.popleft()
            services.answer(request, None)

    def _push(self) -> None:
        outbox = self.session.outbox
        while outbox.unsent_bytes:
            outbox.wrote(len(outbox.chunk()))


def feed_session(data: bytes) -> None:
    """Whatever comes from the bus, receive() does not raise; the session hangs up or goes on; a new connection works; at the end every call
    has settled once, and is not done twice.
    """
    if not data:
        return
    stream, chance = data[1:], random.Random(data[0])
    whole, split = Program(), Program()
    for program, pieces in ((whole, [stream]), (split, list(_pieces(stream, chance)))):
        session = program.session
        for piece in pieces:
            if session.hangup is not None:
                break
            session.receive(piece)
            program._push()
            assert session.state is State.CONNECTED
        mark(session.hangup is None, session.error is None, *(call.done for call in program.calls))
        _look(program)
    for program in (whole, split):
        _end(program)


def _look(program: Program) -> None:
    """What a program does with what came. Only errors of the bus come out."""
    for lane in (*program.lanes, program.session.inbox):
        assert lane is not None
        for message in list(lane.messages):
            try:
                mark(type(message), type(message.data))
                _ = message.topic, message.headers, message.retained
            except BusError as error:
                mark(type(error))
            except AttributeError:
                assert not hasattr(message, "topic"), message  # a notice
    for call in program.calls:
        if call.done:
            try:
                mark("result", type(call.result()))
            except BusError as error:
                mark(type(error))


def _end(program: Program) -> None:
    session = program.session
    if session.hangup is not None or session.state is State.CONNECTED:
        session.lost(session.hangup or "cut", again=session.error is None)
    if session.state is not State.CLOSED:
        assert session.state is State.RECONNECTING
        program.connect()
        session.receive(WELCOME)
        assert session.state is State.CONNECTED, session.hangup
        program._push()
        session.bye()
    session.close()
    assert session.state is State.CLOSED
    assert all(call.done for call in program.calls)
    assert max(program.settled.values()) == 1, "a call settled twice"


def _make_wire(chance: random.Random) -> bytes:
    """What a bus may say, and what it must not."""
    frames: list[bytes] = []
    for _ in range(chance.choice((1, 2, 5, 12))):
        number = chance.randrange(1, 12)
        what = chance.randrange(9)
        if what == 0:
            frames.append(encode(Kind.LANE, 0, chance.randrange(1, 4)))
        elif what == 1:
            sender = chance.choice((1, 7, 9))
            publication = grammar.body([8, sender, "a.b", grammar.meta(chance)], grammar.payload(chance))
            frames += [grammar.framed(publication)] * chance.choice((1, 3))
        elif what == 2:
            usual = {}, {"retained": 0}, {"retained": 3}, {"owner": True, "position": 0}, None, [1]
            result = chance.choice((*usual, grammar.value(chance)))
            frames.append(encode_with_payload(msgpack.packb(result), Kind.REPLY, 0, ":7", number, grammar.meta(chance)))
        elif what == 3:
            count = chance.choice((1, -1, "x", None))
            arguments = {"lane": chance.randrange(1, 4), "count": count, "why": "too_slow", "name": "svc", "id": 1}
            name = chance.choice(("lost", "name_lost", "name_acquired", "lagging", "caught_up", "hold", "resume", "x"))
            frames.append(encode_with_payload(msgpack.packb(arguments), Kind.NOTICE, 0, name, None))
        elif what == 4:
            method = chance.choice(("svc/do", "svc/no", "svc", ":7/do"))
            frames.append(encode_with_payload(grammar.payload(chance), Kind.REQUEST, 9, method, number, 1000, grammar.meta(chance)))
        else:
            frames.append(grammar.frame(chance, chance.choice((0, 0, 9))))
    return chance.randbytes(1) + b"".join(frames)


TARGETS = (
    Target("bus", "a broker and what its peers write, whole and split", serve_peers, _make_story, (*grammar.WIRE_TOKENS, HELLO)),
    Target("session", "a client's session and what comes from the bus", feed_session, _make_wire, (*grammar.WIRE_TOKENS, WELCOME)),
)
