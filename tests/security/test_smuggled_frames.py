"""Frames smuggled through what one decoder reads otherwise than another: through a real bus into both shells, and from a bus that is none.

What two decoders may see differently: which of several encodings a number, text or map is in, where an envelope ends, where a payload
ends, whether what a payload holds is frames. PROTOCOL.md (section 2, S-1) leaves one reading of each; here somebody tries the others.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload, pack
from ipcbus_client import aio
from tests.daemons import START_S, RunningDaemon
from tests.scenarios import Blocking
from tests.security.people import Stranger, needs_users

TOPIC = "open.smuggled"
VICTIM = 1  #: the peer whom every forged frame says that it is from


def frame(envelope: bytes) -> bytes:
    """A frame around any bytes."""
    return b"\xce" + struct.pack(">I", len(envelope)) + envelope


def published(sender: int, payload: bytes) -> bytes:
    """A PUBLISH as it should be."""
    return encode_with_payload(payload, Kind.PUBLISH, sender, TOPIC, 1)


def envelope(me: int, **parts: bytes) -> bytes:
    """The same with *parts* in place of what belongs there."""
    usual = {
        "head": b"\x95", "kind": b"\x08", "sender": pack(me), "topic": pack(TOPIC), "meta": b"\x01",
        "payload": b"\xc6\x00\x00\x00\x06forged", "more": b"",
    }  # fmt: skip
    assert parts.keys() <= usual.keys()
    return b"".join({**usual, **parts}.values())


FORGED = published(VICTIM, b"forged")
LANE_AND_FORGED = encode(Kind.LANE, 0, 1) + FORGED


def _bin(payload: bytes) -> bytes:
    return b"\xc6" + struct.pack(">I", len(payload)) + payload


def _headers(*items: bytes) -> bytes:
    return bytes([0x80 | len(items)]) + b"".join(items)


#: What a peer writes, and how the bus ends its connection.
ATTEMPTS: dict[str, tuple[Callable[[int], bytes], Code]] = {
    # another encoding of what is right
    "the sender longer than it has to be": (lambda me: frame(envelope(me, sender=b"\xcd" + struct.pack(">H", me))), Code.BAD_ENVELOPE),
    "the sender as a float": (lambda me: frame(envelope(me, sender=b"\xcb" + struct.pack(">d", me))), Code.BAD_ENVELOPE),
    "the sender as a text": (lambda me: frame(envelope(me, sender=pack(str(me)))), Code.BAD_ENVELOPE),
    "the sender as true": (lambda me: frame(envelope(me, sender=b"\xc3")), Code.BAD_ENVELOPE),
    "the sender as a negative number": (lambda me: frame(envelope(me, sender=b"\xff")), Code.BAD_ENVELOPE),
    "the kind longer than it has to be": (lambda me: frame(envelope(me, kind=b"\xcc\x08")), Code.BAD_ENVELOPE),
    "the kind as a float": (lambda me: frame(envelope(me, kind=b"\xcb" + struct.pack(">d", 8))), Code.BAD_ENVELOPE),
    "the kind as a signed number": (lambda me: frame(envelope(me, kind=b"\xd0\x08")), Code.BAD_ENVELOPE),
    "the topic as a bin": (lambda me: frame(envelope(me, topic=b"\xc4\x0d" + TOPIC.encode())), Code.BAD_ENVELOPE),
    "the topic longer than it has to be": (lambda me: frame(envelope(me, topic=b"\xd9\x0d" + TOPIC.encode())), Code.BAD_ENVELOPE),
    "a topic with a surrogate": (lambda me: frame(envelope(me, topic=b"\xa3\xed\xa0\x80")), Code.BAD_ENVELOPE),
    "a topic with an overlong zero": (lambda me: frame(envelope(me, topic=b"\xa2\xc0\x80")), Code.BAD_ENVELOPE),
    "a topic with an overlong dot": (lambda me: frame(envelope(me, topic=b"\xa6open\xc0\xae")), Code.BAD_ENVELOPE),
    "an array16": (lambda me: frame(envelope(me, head=b"\xdc\x00\x05")), Code.BAD_ENVELOPE),
    "an array32": (lambda me: frame(envelope(me, head=b"\xdd\x00\x00\x00\x05")), Code.BAD_ENVELOPE),
    "a map": (lambda me: frame(envelope(me, head=b"\x83")), Code.BAD_ENVELOPE),
    "an extension": (lambda me: frame(envelope(me, topic=b"\xd4\x01\x00")), Code.BAD_ENVELOPE),
    "an element more": (lambda me: frame(envelope(me, head=b"\x96", more=b"\xc0")), Code.BAD_ENVELOPE),
    "an element less": (lambda me: frame(envelope(me, head=b"\x94", meta=b"")), Code.BAD_ENVELOPE),
    # headers
    "meta as a float": (lambda me: frame(envelope(me, meta=b"\xcb" + struct.pack(">d", 1))), Code.BAD_ENVELOPE),
    "meta as true": (lambda me: frame(envelope(me, meta=b"\xc3")), Code.BAD_ENVELOPE),
    "a header twice": (lambda me: frame(envelope(me, meta=_headers(pack("a") + b"\x01", pack("a") + b"\x02"))), Code.BAD_ENVELOPE),
    "a header's key as a bin": (lambda me: frame(envelope(me, meta=_headers(b"\xc4\x01a\x01"))), Code.BAD_ENVELOPE),
    "a header's key twice, as bin and str": (
        lambda me: frame(envelope(me, meta=_headers(pack("a") + b"\x01", b"\xc4\x01a\x02"))), Code.BAD_ENVELOPE,
    ),
    "headers in a map16": (lambda me: frame(envelope(me, meta=b"\xde\x00\x01" + pack("a") + b"\x01")), Code.BAD_ENVELOPE),
    "a header's value is an array": (lambda me: frame(envelope(me, meta=_headers(pack("a") + b"\x91\x01"))), Code.BAD_ENVELOPE),
    "a header's value is a float32": (lambda me: frame(envelope(me, meta=_headers(pack("a") + b"\xca\0\0\0\0"))), Code.BAD_ENVELOPE),
    "the encoding as true": (lambda me: frame(envelope(me, meta=_headers(pack("encoding") + b"\xc3"))), Code.BAD_ENVELOPE),
    # where a payload ends
    "a payload in a bin8": (lambda me: frame(envelope(me, payload=b"\xc4\x06forged")), Code.BAD_ENVELOPE),
    "a payload in a bin16": (lambda me: frame(envelope(me, payload=b"\xc5\x00\x06forged")), Code.BAD_ENVELOPE),
    "a payload in a str32": (lambda me: frame(envelope(me, payload=b"\xdb\x00\x00\x00\x06forged")), Code.BAD_ENVELOPE),
    "a payload that is frames": (lambda me: frame(envelope(me, payload=FORGED)), Code.BAD_ENVELOPE),
    "a payload that ends early, and a frame": (
        lambda me: frame(envelope(me, payload=b"\xc6\x00\x00\x00\x01x", more=FORGED)), Code.BAD_ENVELOPE,
    ),
    "a payload that ends late": (lambda me: frame(envelope(me, payload=b"\xc6\x00\x00\x00\x07forged")) + FORGED, Code.BAD_ENVELOPE),
    "a payload of 4 GiB": (lambda me: frame(envelope(me, payload=b"\xc6\xff\xff\xff\xffforged")) + FORGED, Code.BAD_ENVELOPE),
    "a frame that ends in its payload": (
        lambda me: b"\xce" + struct.pack(">I", len(envelope(me)) - 6) + envelope(me)[:-6] + FORGED, Code.BAD_ENVELOPE,
    ),
    "a frame that is longer than its envelope": (lambda me: frame(envelope(me) + FORGED), Code.BAD_ENVELOPE),
    "a frame within a frame": (lambda me: frame(FORGED), Code.BAD_ENVELOPE),
    # what is no frame
    "a length in another encoding": (lambda me: b"\xcd\x00\x20" + published(me, b"forged")[5:], Code.BAD_FRAME),
    "a length of nothing": (lambda me: frame(b"") + FORGED, Code.BAD_FRAME),
    "a length of one": (lambda me: frame(b"\x90") + FORGED, Code.BAD_FRAME),
    "a length of 4 GiB": (lambda me: b"\xce\xff\xff\xff\xff" + FORGED, Code.TOO_LARGE),
    "nil between two frames": (lambda me: b"\xc0" + FORGED, Code.BAD_FRAME),
    "an array without its length": (lambda me: published(me, b"forged")[5:], Code.BAD_FRAME),
    "a browser": (lambda me: b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n" + FORGED, Code.BAD_FRAME),
    "an unknown kind": (lambda me: frame(envelope(me, kind=b"\x7f")), Code.UNKNOWN_KIND),
    # said by another
    "another's frame": (lambda me: FORGED, Code.FORGED_SENDER),
    "the bus's frame": (lambda me: published(0, b"forged"), Code.FORGED_SENDER),
    "the bus's lane": (lambda me: LANE_AND_FORGED, Code.BAD_STATE),
}  # fmt: skip

#: Payloads, which are anybody's own matter, however much they look like something else.
PAYLOADS = [
    b"", FORGED, FORGED * 3, LANE_AND_FORGED, frame(FORGED), FORGED[5:], FORGED[:-1], b"\xce", b"\xce\xff\xff\xff\xff", b"\xc1" * 9,
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 2000, b"\xc0" + FORGED, b"\xc7\xff", b"\xd9\xff" + FORGED,
]  # fmt: skip


@pytest.fixture(params=["blocking", "aio"])
def shell(request: pytest.FixtureRequest) -> str:
    """Both shells get the same."""
    return str(request.param)


async def connected(shell: str, address: str, **options: Any) -> Any:
    """A bus object of *shell*, whose methods are awaited."""
    if shell == "aio":
        return await aio.connect(address, **options)
    return Blocking(ipcbus_client.connect(address, **options))


# --- through a real bus ---


@needs_users
def test_through_a_real_bus(shell: str, bus: RunningDaemon, mallory: Stranger) -> None:
    """Of what is not in order nobody gets anything; what is in order arrives whole, from whom it is."""

    async def body() -> None:
        client = await connected(shell, bus.address)
        epoch = client.epoch
        sub = await client.subscribe(TOPIC)
        sent: list[tuple[int, bytes]] = []
        for name, (attempt, code) in ATTEMPTS.items():
            with mallory.join(bus) as wire:
                before = published(wire.peer, name.encode())
                wire.send(before + attempt(wire.peer) + published(wire.peer, b"after"))
                wire.expect_bye(code)
                sent.append((wire.peer, name.encode()))
        with mallory.join(bus) as wire:
            for payload in PAYLOADS:
                header = pack({"frame": FORGED, "text": "\u2028\x00"})
                wire.send(published(wire.peer, payload) + frame(envelope(wire.peer, meta=header, payload=_bin(payload))))
                sent += [(wire.peer, payload)] * 2
            wire.ping()
            got = [await sub.get(timeout=START_S) for _ in sent]
            assert [(int(message.sender), bytes(message[4])) for message in got] == sent
            assert VICTIM not in {message.sender for message in got}
            assert got[-1].headers == {"frame": FORGED, "text": "\u2028\x00"}
            for message in got[-2 * len(PAYLOADS) :: 2]:
                assert message.data == bytes(message[4])
        assert client.epoch == epoch
        await client.close()

    asyncio.run(body())


# --- from a bus that is none ---

WELCOME = encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"software": "trap", "max_frame_bytes": 100_000})
HONEST = encode(Kind.LANE, 0, 1) + encode_with_payload(b"honest", Kind.PUBLISH, 3, TOPIC, 1)


class Trap:
    """Listens as a bus would, lets one client in, and says after its subscription what a bus never says."""

    def __init__(self, path: str, welcome: bytes, said: bytes) -> None:
        self.ended = False  #: the client hung up by itself
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._welcome, self._said = welcome, said
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        made, _ = self._listener.accept()
        with made:
            made.settimeout(START_S)
            try:
                made.sendall(self._welcome)
                for raw in self._frames(made):
                    got = decode(raw)
                    if got.kind is Kind.REQUEST:
                        reply = pack({"retained": 0, "policy": "block"})
                        made.sendall(encode_with_payload(reply, Kind.REPLY, 0, ":7", got.elements[3], None))
                        made.sendall(self._said + encode(Kind.PING, 0, 77))
                    elif got.kind is Kind.PONG:
                        return
            except OSError:
                pass
            self.ended = True

    def _frames(self, made: socket.socket) -> Iterator[bytes]:
        buffer = b""
        while data := made.recv(65_536):
            buffer += data
            while len(buffer) >= 5 and len(buffer) >= (size := 5 + int.from_bytes(buffer[1:5], "big")):
                yield buffer[:size]
                buffer = buffer[size:]

    def close(self) -> None:
        """It has had its client; where that came too late for its own time limit somebody else comes and goes."""
        with socket.socket(socket.AF_UNIX) as instead:
            instead.connect(self._path)
        self._thread.join(START_S)
        assert not self._thread.is_alive()
        self._listener.close()


def _nested(payload: bytes) -> bytes:
    """A PUBLISH from the trap whose payload is no bin."""
    return frame(envelope(3, payload=payload))


HOSTILE_STREAMS = {
    "a payload that is frames": _nested(FORGED),
    "a payload that ends early, and a frame": frame(envelope(3, payload=b"\xc6\x00\x00\x00\x01x", more=FORGED)),
    "a payload that ends late": frame(envelope(3, payload=b"\xc6\x00\x00\x00\x09forged")) + FORGED + FORGED,
    "a frame that is longer than its envelope": frame(envelope(3) + FORGED),
    "a frame that ends in its payload": b"\xce" + struct.pack(">I", 4) + envelope(3) + FORGED,
    "no msgpack": b"\xc1" + FORGED,
    "nil between two frames": b"\xc0" + FORGED,
    "two lengths": b"\xce\x00\x00\x00\x05" + FORGED,
    "two envelopes": HONEST + envelope(3) + FORGED,
    "a length over the limit": frame(bytes(100_001)),
    "a length of 4 GiB": b"\xce\xff\xff\xff\xff" + FORGED,
    "an array of 4 Gi elements": frame(b"\xdd\xff\xff\xff\xff") + FORGED,
    "a map with a key that no dict can have": frame(b"\x95\x08\x03" + pack(TOPIC) + b"\x81\x80\x01" + _bin(b"forged")) + FORGED,
    "a text that is no text": frame(b"\x94\x05\x00\x00\xa2\xff\xff") + FORGED,
    "a second welcome": WELCOME + FORGED,
    "a challenge after welcome": encode(Kind.CHALLENGE, 0, 1, [], b"n" * 32, b"p" * 32) + FORGED,
    "what only a client says": encode(Kind.CREDIT, 0, 1, 1, 1) + FORGED,
    "an unknown kind": frame(b"\x92\x7f\x00") + FORGED,
    "a lane that is a map": frame(b"\x93\x13\x00\x80") + FORGED,
    "an empty envelope": frame(b"\x90\x90") + FORGED,
    "nothing but numbers": b"\x01\x02\x03\x04" * 8,
}

HOSTILE_WELCOMES = {
    "another version": encode(Kind.WELCOME, 0, 2, [], 7, b"i" * 16, {}),
    "version 0": frame(b"\x97\x04\x00\x00\x90\x07\xc4\x10" + b"i" * 16 + b"\x80"),
    "a version that is a text": frame(b"\x97\x04\x00\xa11\x90\x07\xc4\x10" + b"i" * 16 + b"\x80"),
    "peer 0": frame(b"\x97\x04\x00\x01\x90\x00\xc4\x10" + b"i" * 16 + b"\x80"),
    "a peer that is true": frame(b"\x97\x04\x00\x01\x90\xc3\xc4\x10" + b"i" * 16 + b"\x80"),
    "a short incarnation": frame(b"\x97\x04\x00\x01\x90\x07\xc4\x01i\x80"),
    "a message first": HONEST + WELCOME,
    "a proof asked for": encode(Kind.CHALLENGE, 0, 1, [], b"n" * 32, b"p" * 32),
    "a large frame first": frame(bytes(70_000)) + WELCOME,
    "a terminal's line": b"SSH-2.0-OpenSSH_9.9\r\n",
}


@pytest.mark.parametrize("name", HOSTILE_STREAMS)
def test_from_a_bus_that_is_none(name: str, shell: str, short_dir: Path) -> None:
    """The connection ends, and nothing of what follows the lie is taken for a message."""
    path = str(short_dir / "trap")
    trap = Trap(path, WELCOME, HONEST + HOSTILE_STREAMS[name])

    async def body() -> None:
        client = await connected(shell, f"unix:{path}", reconnect=False)
        got: list[Any] = []
        with pytest.raises(ipcbus_client.ConnectionLost):  # noqa: PT012 - either step may meet the end first
            sub = await client.subscribe(TOPIC)
            while True:
                got.append(await sub.get(timeout=START_S))
        assert {(int(message.sender), bytes(message[4])) for message in got} <= {(3, b"honest")}
        await client.close()

    asyncio.run(body())
    trap.close()
    assert trap.ended


@pytest.mark.parametrize("name", HOSTILE_WELCOMES)
def test_let_in_by_a_bus_that_is_none(name: str, shell: str, short_dir: Path) -> None:
    """A client says nothing but HELLO to it."""
    path = str(short_dir / "trap")
    trap = Trap(path, HOSTILE_WELCOMES[name], FORGED)

    async def body() -> None:
        with pytest.raises(ipcbus_client.ConnectError):
            await connected(shell, f"unix:{path}", reconnect=False, timeout=0.2)

    asyncio.run(body())
    trap.close()
    assert trap.ended
