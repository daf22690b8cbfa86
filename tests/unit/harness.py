"""A broker with a hand-driven clock, for tests with literal bytes: peers that write, and the envelopes that they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.broker.rights import subject_of
from ipcbus.policy import EVERYTHING, Policy, Subject
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload

SubjectOf = Callable[[Peer], Subject]


def publication(sender: int, topic: str, payload: bytes = b"x", kind: Kind = Kind.PUBLISH, meta: Any = None) -> bytes:
    return encode_with_payload(payload, kind, sender, topic, meta)


class Bus:
    """One broker and its clock."""

    def __init__(
        self, *, owners: frozenset[int] | None = None, policy: Policy = EVERYTHING, subject_of: SubjectOf = subject_of, **limits: Any
    ) -> None:
        self.now = 100.0
        self.log: list[tuple[int, str]] = []
        self.broker = Broker(
            incarnation=b"i" * 16,
            random_bytes=lambda size: b"r" * size,
            now=self.now,
            limits=Limits(**limits),
            software="test",
            pid=4242,
            owners=owners,
            policy=policy,
            subject_of=subject_of,
            log=lambda level, text: self.log.append((level, text)),
        )

    def peer(self, program: str = "test", features: tuple[str, ...] = (), *, pid: int = 10, uid: int = 20) -> Client:
        """A connected peer; its WELCOME was taken."""
        client = Client(self, self.broker.connect(self.now, credentials=Credentials(pid, uid, 30)))
        client.write(encode(Kind.HELLO, 0, 1, 1, features, {"program": program}, None))
        assert [envelope[0] for envelope in client.read()] == [Kind.WELCOME]
        return client

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)


class Client:
    """One peer as its program sees it."""

    def __init__(self, bus: Bus, peer: Peer) -> None:
        self.bus = bus
        self.peer = peer
        self._request = 1000

    @property
    def id(self) -> int:
        return self.peer.id

    @property
    def held(self) -> int:
        """By how many queues it is held (L-12)."""
        return len(self.peer.holds or ())

    def write(self, data: bytes) -> None:
        self.bus.broker.receive(self.peer, data, self.bus.now)

    def read(self) -> list[list[Any]]:
        """The envelopes that wait for this peer, taken as if the kernel had sent them."""
        data = b"".join(self.peer.out)
        assert len(data) == self.peer.out_bytes
        if data:
            self.bus.broker.wrote(self.peer, len(data), self.bus.now)
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(data)
        objects = list(unpacker)
        assert unpacker.tell() == len(data)
        return objects[1::2]

    def notices(self) -> list[dict[str, Any]]:
        """The NOTICEs that wait for this peer; whatever else does is taken too."""
        return [{"name": each[2], **msgpack.unpackb(each[-1])} for each in self.read() if each[0] == Kind.NOTICE]

    def read_payloads(self, kind: Kind = Kind.PUBLISH) -> list[bytes]:
        return [envelope[-1] for envelope in self.read() if envelope[0] == kind]

    def publish(self, topic: str, *payloads: bytes, kind: Kind = Kind.PUBLISH) -> None:
        self.write(b"".join(publication(self.id, topic, payload, kind) for payload in payloads or (b"x",)))

    def request(self, to: str, payload: bytes = b"", *, id: int | None = None, timeout_ms: int = 1000) -> int:
        """Write a REQUEST; returns its id."""
        if id is None:
            self._request += 1
            id = self._request
        self.write(encode_with_payload(payload, Kind.REQUEST, self.id, to, id, timeout_ms, None))
        return id

    def reply(self, requester: Client, id: int, payload: bytes = b"") -> None:
        self.write(encode_with_payload(payload, Kind.REPLY, self.id, f":{requester.id}", id, None))

    def ask(self, method: str, /, **arguments: Any) -> Any:
        """A request to the bus: the decoded result, or (code, text) of its ERROR. Nothing else may come before it."""
        self.ask_only(method, **arguments)
        return self.answer(self.read().pop())

    def ask_only(self, method: str, /, **arguments: Any) -> None:
        """The request of `ask`; what comes of it is left to `read`."""
        self.request(f"bus/{method}", msgpack.packb(arguments))

    @staticmethod
    def answer(envelope: list[Any]) -> Any:
        if envelope[0] == Kind.ERROR:
            return envelope[4], envelope[5]
        assert envelope[0] == Kind.REPLY, envelope
        return msgpack.unpackb(envelope[-1], strict_map_key=False)

    def subscribe(self, pattern: str, lane: int = 1, credit: int = 1 << 20, **more: Any) -> None:
        result = self.ask("subscribe", pattern=pattern, lane=lane, credit=credit, **more)
        assert isinstance(result, dict), result

    def credit(self, lane: int, size: int, messages: int = 0) -> None:
        self.write(encode(Kind.CREDIT, self.id, lane, size, messages))

    def serve(self, name: str, *methods: str, mode: str = "exclusive") -> None:
        assert isinstance(self.ask("own", name=name, mode=mode), dict)
        assert self.ask("serve", name=name, methods=list(methods)) == {}

    def leave(self) -> None:
        self.bus.broker.disconnect(self.peer, self.bus.now)
