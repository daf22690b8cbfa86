"""A client that does by chance whatever PROTOCOL.md allows: publishes, owns, serves, calls, cancels, is slow, leaves, comes back.

It writes and reads frames itself, so that the broker is judged without the client library. What it may not do (reuse a lane
number or a request id on one connection) keeps the oracle simple; the vectors and the fuzzer do those.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ipcbus.protocol.messages import Frame, Kind, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import decode_value
from ipcbus.protocol.topics import peer_address

from .network import Link, World
from .violations import frame_of, frames_in, matches

TOPICS = ["a.b", "a.c", "a.b.c", "x.b", "x.y.z", "lone", "$own", "bad..topic"]
LEGAL_TOPICS = TOPICS[:6]
PATTERNS = ["a.b", "a.*", "a.>", ">", "*.b", "x.>", "*", "a.*.c", "none.such"]
NAMES = ["alpha", "beta", "gamma.one"]
POOL = "pool"  #: a name that is only ever shared
METHODS = ["get", "set", "slow"]


@dataclass
class _Stream:
    """A request that is answered in parts (R-6)."""

    left: int
    credit: int = 0
    sequence: int = 0


class ModelClient:
    """One program: connects, does things until told to stop, reconnects when the connection is gone."""

    def __init__(self, world: World, label: str) -> None:
        self.world = world
        self.random = world.dice(label)
        self.label = label
        self.link: Link | None = None
        self.peer = 0
        self.acting = True
        self.connections = 0
        #: What it does more often than others, less often, or never: stories that mix everything evenly are all alike
        self._moods: list[int] | None = None
        self._numbers = itertools.count(1)
        self._slow = self.random.random() < 0.3  #: gives credit late
        self._features = ["parts"] + ["hold"] * (self.random.random() < 0.7) + ["identity"] * (self.random.random() < 0.7)
        self._obeys = self.random.random() < 0.5  #: publishes nothing that is held
        self._holds: dict[int, str] = {}
        self._buffer = bytearray()
        self._lanes: list[int] = []
        self._current = 0
        self._owed: dict[int, list[int]] = {}  #: lane: bytes and messages that were received and not yet credited
        self._requests: dict[int, str] = {}
        self._streams: dict[tuple[int, int], _Stream] = {}  #: that it answers in parts, by caller and id
        self.world.after(self.soon(0.1), self._connect)

    def soon(self, longest_s: float) -> float:
        """A delay by its own dice."""
        return self.world.soon(longest_s, self.random)

    # --- the connection -----------------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self.acting or self.link is not None:
            return
        if not self.world.connect(self, f"{self.label}/{self.connections}"):
            self.world.after(self.soon(0.5), self._connect)

    def connected(self, link: Link) -> None:
        self.link = link
        self.connections += 1
        self.peer = 0
        self._buffer = bytearray()
        self._lanes, self._owed, self._requests, self._streams, self._current = [], {}, {}, {}, 0
        self._holds = {}
        link.send(encode(Kind.HELLO, 0, 1, 1, self._features, {"program": self.label}, None))
        for _ in range(self.random.randint(0, 2)):  # H-4: before WELCOME
            self._subscribe()

    def disconnected(self) -> None:
        self.link = None
        self.world.after(self.soon(0.5), self._connect)

    def received(self, data: bytes) -> None:
        self._buffer += data
        for raw in frames_in(self._buffer):
            self._take(frame_of(raw))

    def _take(self, frame: Frame) -> None:
        elements = frame.elements
        if frame.kind is Kind.WELCOME:
            self.peer = elements[4]
            if self.acting:
                self._act_soon()
            else:
                self.settle()
        elif frame.kind is Kind.LANE:
            self._current = elements[2]
        elif frame.kind in (Kind.PUBLISH, Kind.RETAIN):
            lane = self._current
            if lane not in self._owed:
                self._owed[lane] = [0, 0]
                self.world.after(self.soon(3.0 if self._slow else 0.05), lambda: self._credit(lane))
            owed = self._owed[lane]
            owed[0] += len(frame.raw)
            owed[1] += 1
        elif frame.kind is Kind.REQUEST:
            meta = elements[5]
            if isinstance(meta, dict) and meta.get("stream") and self.random.random() < 0.7:
                self._streams[elements[1], elements[3]] = _Stream(self.random.choice([0, 1, 3, 30]))
            else:
                self._answer_later(elements[1], elements[3])
        elif frame.kind is Kind.ALLOW:
            stream = self._streams.get((elements[1], elements[3]))
            if stream is not None:
                stream.credit += elements[4]
                self._produce_later(elements[1], elements[3])
        elif frame.kind is Kind.CANCEL:
            if self.random.random() < 0.5:  # who does not listen goes on, and is told that nobody waits
                self._streams.pop((elements[1], elements[3]), None)
        elif frame.kind is Kind.PART:
            to, size = self._requests.get(elements[3]), len(frame.raw)
            if to is not None:
                self.world.after(self.soon(1.0 if self._slow else 0.1), lambda: self._allow(to, elements[3], size))
        elif frame.kind in (Kind.REPLY, Kind.ERROR):
            self._requests.pop(elements[3], None)
        elif frame.kind is Kind.NOTICE and elements[2] == "hold":
            content = decode_value(None, frame.payload)
            self._holds[content["id"]] = content["pattern"]
        elif frame.kind is Kind.NOTICE and elements[2] == "resume":
            del self._holds[decode_value(None, frame.payload)["id"]]

    # --- what it does -------------------------------------------------------------------------------------------------------------------

    def _act_soon(self) -> None:
        link = self.link

        def act() -> None:
            if self.acting and link is not None and self.link is link:
                self._act()
                self._act_soon()

        self.world.after(self.soon(0.6), act)

    def _act(self) -> None:
        actions: list[tuple[int, Callable[[], None]]] = [
            (12, self._publish),
            (5, self._subscribe),
            (2, self._unsubscribe),
            (3, self._own),
            (2, self._serve),
            (1, self._release),
            (8, self._call),
            (2, self._cancel),
            (3, self._send),
            (4, self._post),
            (3, self._declare),
            (1, self._ping),
            (1, self._leave),
        ]
        if self._moods is None:
            self._moods = [self.random.choice([0, 1, 1, 4]) for _ in actions]
        weights = [weight * mood for (weight, _), mood in zip(actions, self._moods, strict=True)]
        self.world.let(self.random.choices([action for _, action in actions], [*weights[:-1], weights[-1] + 0.1])[0])

    def _write(self, frame: bytes) -> None:
        if self.link is not None:
            self.link.send(frame)

    def _payload(self, largest: int) -> bytes:
        """Never twice the same, so that frames can be told apart."""
        mark = f"{self.label}/{self.connections}/{next(self._numbers)}/".encode()
        size = self.random.choice([0, 10, 100, largest // 4, largest]) if self.random.random() < 0.3 else 20
        return mark + bytes(size)

    def _publish(self) -> None:
        topic = self.random.choice(TOPICS)
        if self._is_held(topic):
            return
        kind = Kind.RETAIN if self.random.random() < 0.2 else Kind.PUBLISH
        for _ in range(self.random.choice([1, 1, 1, 5, 40])):
            if self.random.random() < 0.1:
                topic = self.random.choice(TOPICS)
            self._write(encode_with_payload(self._payload(4000), kind, self.peer, topic, 1))
        if kind is Kind.RETAIN and self.random.random() < 0.3 and topic in TOPICS[:6]:
            # an empty payload cannot carry a mark: a header makes the frame one of its kind
            self._write(encode_with_payload(b"", kind, self.peer, topic, {"mark": self._payload(0)}))

    def _is_held(self, topic: str) -> bool:
        return self._obeys and topic in TOPICS[:6] and any(matches(pattern, topic) for pattern in self._holds.values())

    def _post(self) -> None:
        """L-11, in all its forms."""
        ttl_ms = self.random.choice([None, 0, 100, 1_500])
        for _ in range(self.random.choice([1, 1, 6])):
            number = next(self._numbers) if self.random.random() < 0.5 else None
            retain = self.random.random() < 0.4
            frame = (Kind.POST, self.peer, self.random.choice(TOPICS), number, ttl_ms, retain, 1)
            self._write(encode_with_payload(self._payload(2000), *frame))

    def _declare(self) -> None:
        """Wills and bound values, and what is kept."""
        for _ in range(self.random.choice([1, 1, 5])):
            self._declare_one()

    def _declare_one(self) -> None:
        topic = self.random.choice(TOPICS)
        method = self.random.choice(["will", "will", "bind", "bind", "unbind", "get"] if topic in TOPICS[:6] else ["will", "bind"])
        more: dict[str, object] = {}
        if method == "will" and self.random.random() < 0.8:
            more = {"payload": self._payload(200), "meta": 1, "retain": self.random.random() < 0.5}
        self._to_bus(method, topic=topic, **more)
        if method == "bind" and topic in TOPICS[:6]:
            self._write(encode_with_payload(self._payload(200), Kind.RETAIN, self.peer, topic, 1))

    def _to_bus(self, method: str, **arguments: object) -> None:
        number = next(self._numbers)
        self._requests[number] = f"bus/{method}"
        self._write(encode_with_payload(pack(arguments), Kind.REQUEST, 0, f"bus/{method}", number, 10_000, None))

    def _subscribe(self) -> None:
        if len(self._lanes) >= 9:
            return
        lane = next(self._numbers)
        self._lanes.append(lane)
        arguments: dict[str, object] = {"pattern": self.random.choice(PATTERNS), "lane": lane}
        arguments["credit"] = self.random.choice([0, 300, 5_000, 20_000])
        if self.random.random() < 0.3:
            arguments |= {"group": self.random.choice(["jobs", "work"]), "messages": self.random.choice([1, 4])}
        elif self.random.random() < 0.2:
            arguments["retained"] = False
        if self.random.random() < 0.5:
            arguments["policy"] = self.random.choice(["block", "drop_oldest", "drop_newest", "latest", "latest", "disconnect"])
        if self.random.random() < 0.4:
            choices = {"soft": [300, 2_000, 8_000], "hard": [500, 3_000, 30_000], "seconds": [0, 0.3, 1, 3.0]}
            arguments["limits"] = {name: self.random.choice(some) for name, some in choices.items() if self.random.random() < 0.6}
        self._to_bus("subscribe", **arguments)
        if arguments["credit"] == 0:
            self.world.after(self.soon(1.0), lambda: self._grant(lane, 1000, 0))

    def _unsubscribe(self) -> None:
        if self._lanes:
            self._to_bus("unsubscribe", lane=self._lanes.pop(self.random.randrange(len(self._lanes))))

    def _grant(self, lane: int, size: int, messages: int) -> None:
        if self.peer:
            self._write(encode(Kind.CREDIT, self.peer, lane, size, messages))

    def _credit(self, lane: int) -> None:
        size, messages = self._owed.pop(lane, (0, 0))
        if size:
            self._grant(lane, size, messages)

    def _own(self) -> None:
        name = self._name()
        mode = "shared" if name == POOL else self.random.choice(["exclusive", "queue", "queue", "queue", "shared"])
        flags = {flag: True for flag in ("replace", "allow_replace") if self.random.random() < 0.5}
        self._to_bus("own", name=name, mode=mode, **flags)
        if name == POOL:
            self._to_bus("serve", name=name, methods=METHODS[:2])

    def _serve(self) -> None:
        methods = ["*"] if self.random.random() < 0.2 else self.random.sample(METHODS, 2)
        self._to_bus("serve" if self.random.random() < 0.7 else "unserve", name=self._name(), methods=methods)

    def _release(self) -> None:
        self._to_bus("release", name=self._name())

    def _name(self) -> str:
        return self.random.choices([*NAMES, POOL], (5, 2, 2, 4))[0]

    def _target(self) -> str:
        return self._name() if self.random.random() < 0.8 else peer_address(self.random.randint(1, 12))

    def _call(self) -> None:
        for _ in range(self.random.choice([1, 1, 6, 10])):
            number = next(self._numbers)
            to = f"{self._target()}/{self.random.choice(METHODS)}"
            timeout_ms = self.random.choice([20, 200, 2_000, 2_500])  # less than the linger of who is done sending (H-11)
            self._requests[number] = to
            meta: object = 1
            if self.random.random() < 0.4:
                meta = {"encoding": 1, "stream": True}
            self._write(encode_with_payload(self._payload(300), Kind.REQUEST, self.peer, to, number, timeout_ms, meta))
            if meta != 1:
                self._allow(to, number, self.random.choice([0, 1, 300, 3_000, 1 << 31]))

    def _allow(self, to: str, number: int, size: int) -> None:
        if number in self._requests:
            self._write(encode(Kind.ALLOW, self.peer, to, number, size))

    def _cancel(self) -> None:
        calls = [number for number, to in self._requests.items() if not to.startswith("bus/")]
        if calls:
            number = self.random.choice(calls)
            self._write(encode(Kind.CANCEL, self.peer, self._requests.pop(number), number))

    def _send(self) -> None:
        to = self._target()
        for _ in range(self.random.choice([1, 3])):
            self._write(encode_with_payload(self._payload(500), Kind.SEND, self.peer, to, 1))

    def _ping(self) -> None:
        self._write(encode(Kind.PING, self.peer, next(self._numbers)))

    def _answer_later(self, caller: int, number: int) -> None:
        link = self.link
        style = self.random.choice(["reply", "reply", "reply", "error", "twice", "never"])

        def answer() -> None:
            if self.link is not link or style == "never":
                return
            to = peer_address(caller)
            for _ in range(2 if style == "twice" else 1):
                if style == "error":
                    self._write(encode_with_payload(b"", Kind.ERROR, self.peer, to, number, "not-today", self._payload(0).decode(), None))
                else:
                    self._write(encode_with_payload(self._payload(300), Kind.REPLY, self.peer, to, number, 1))

        self.world.after(self.soon(0.4), answer)

    def _produce_later(self, caller: int, number: int) -> None:
        link = self.link

        def produce() -> None:
            stream = self._streams.get((caller, number))
            if self.link is not link or stream is None:
                return
            to = peer_address(caller)
            if not stream.left:
                del self._streams[caller, number]
                self._write(encode_with_payload(self._payload(300), Kind.REPLY, self.peer, to, number, 1))
            elif stream.credit > 0:
                part = encode_with_payload(self._payload(300), Kind.PART, self.peer, to, number, stream.sequence, 1)
                stream.credit -= len(part)
                stream.sequence += 1
                stream.left -= 1
                self._write(part)
                self.world.after(self.soon(0.02), produce)

        self.world.after(self.soon(0.02), produce)

    def _leave(self) -> None:
        """BYE, half-close, garbage, or nothing at all: the ways in which a connection ends."""
        link = self.link
        if link is None:
            return
        how = self.random.choice(["bye", "half", "half", "garbage", "die"])
        self.world.note(f"{self.label} leaves: {how}")
        if how == "bye":
            self._write(encode(Kind.BYE, self.peer, 0, ""))
        elif how == "half":
            link.end_of_file()
            self.world.after(self.soon(5.0), link.die)
        elif how == "garbage":
            self._write(b"GET / HTTP/1.1\r\n\r\n")
        else:
            link.die()

    # --- the end ------------------------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Do nothing new, and take all that waits."""
        self.acting = False
        self._slow = False
        for lane in self._lanes:
            self._grant(lane, 1 << 24, 1 << 20)
