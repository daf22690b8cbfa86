"""Inputs that are legal, or nearly: values, topics, envelopes, streams of frames. Written from PROTOCOL.md, for mutations to begin with."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack

from ipcbus.protocol.messages import Kind

TOKENS = ("a", "b", "sensor", "1", "ä", "$bus", "x" * 60, "-", "_")
NAMES = ("svc", "a.b", "other", "bus", ":1", ":2", ":999", "no")
METHODS = ("do", "subscribe", "unsubscribe", "own", "serve", "list", "stats", "get", "retain", "x" * 128)


def topic(chance: random.Random) -> str:
    """A topic, perhaps with something that is not allowed."""
    tokens = [chance.choice(TOKENS) for _ in range(chance.choice((1, 1, 2, 2, 3, 4, 33)))]
    return _spoiled(".".join(tokens), chance)


def pattern(chance: random.Random) -> str:
    """A pattern, likewise."""
    tokens = [chance.choice((*TOKENS[:4], "*", "*")) for _ in range(chance.choice((1, 2, 2, 3, 4)))]
    if chance.random() < 0.4:
        tokens[-1] = ">"
    return _spoiled(".".join(tokens), chance)


def _spoiled(text: str, chance: random.Random) -> str:
    if chance.random() < 0.1:
        at = chance.randrange(len(text) + 1)
        return text[:at] + chance.choice((".", "..", " ", "*", ">", "\x7f", "$", "\u2028", "\0")) + text[at:]
    return text


def value(chance: random.Random, depth: int = 0) -> Any:
    """What a payload may hold."""
    what = chance.randrange(14 if depth < 4 else 10)
    if what < 3:
        return chance.choice((0, 1, -1, 127, 128, -32, -33, 255, 256, 65535, 65536, 2**31, -(2**31), 2**53, 2**64 - 1, -(2**63)))
    if what < 5:
        return chance.choice((None, True, False))
    if what < 7:
        return chance.choice((0.0, -0.0, 1.5, 1e308, float("inf"), float("nan")))
    if what < 9:
        return chance.choice(("", "a", "ä€😀", "x" * 31, "x" * 32, "x" * 300, "2026-01-31T12:00:00", "\ud7ff"))
    if what == 9:
        return chance.choice((b"", b"\0", b"x" * 300, msgpack.Timestamp(1, 5), msgpack.Timestamp(-1), msgpack.ExtType(5, b"xy")))
    if what < 12:
        return [value(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 3, 16)))]
    return {_key(chance): value(chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 3, 16)))}


def _key(chance: random.Random) -> Any:
    return chance.choice(("a", "b", "name", "", "x" * 40, 1, -1, None, True, b"k", (1, 2)))


def packed(chance: random.Random) -> bytes:
    """A msgpack object."""
    return bytes(msgpack.packb(value(chance)))


def meta(chance: random.Random) -> Any:
    """V-6."""
    return chance.choice((None, None, None, 1, 2, 3, 127, {}, {"encoding": 3}, {"a": 1, "b": "x"}, {"content": b"\0" * 20}, {"t": 1.5}))


def payload(chance: random.Random) -> bytes:
    """The bytes of a payload of any encoding."""
    return chance.choice((b"", b"x", b"hello", b'{"a": [1, 2]}', bytes(5000), packed(chance), packed(chance)))


def envelope(chance: random.Random, sender: int = 1) -> tuple[list[Any], bytes | None]:
    """The elements of a frame of any kind before its payload, and the payload (None: it has none)."""
    kind = Kind(chance.choice([*range(1, 21), Kind.PUBLISH, Kind.PUBLISH, Kind.REQUEST, Kind.REQUEST, Kind.SEND]))
    number = chance.choice((1, 2, 3, 127, 128, 2**53 - 1))
    to = f"{chance.choice(NAMES)}/{chance.choice(METHODS)}"
    peer = chance.choice((":1", ":2", ":3"))
    rest: dict[Kind, list[Any]] = {
        Kind.HELLO: [1, chance.choice((1, 2)), chance.choice(([], ["parts"], ["post", "wills"])), {"program": "p"}, None],
        Kind.CHALLENGE: [1, [], b"n" * 32, b"p" * 32],
        Kind.PROOF: [b"p" * 32],
        Kind.WELCOME: [1, [], chance.choice((1, 7)), b"i" * 16, {"software": "x", "max_frame_bytes": 70_000}],
        Kind.BYE: [chance.choice((0, 1, 11, 13)), "text"],
        Kind.PING: [number],
        Kind.PONG: [number],
        Kind.PUBLISH: [topic(chance), meta(chance)],
        Kind.RETAIN: [topic(chance), meta(chance)],
        Kind.POST: [topic(chance), chance.choice((None, number)), chance.choice((None, 0, 100)), chance.random() < 0.5, meta(chance)],
        Kind.SEND: [chance.choice(NAMES), meta(chance)],
        Kind.REQUEST: [to, number, chance.choice((0, 1, 1000, 2**32 - 1)), meta(chance)],
        Kind.REPLY: [peer, number, meta(chance)],
        Kind.PART: [peer, number, chance.choice((0, 1, 2)), meta(chance)],
        Kind.ERROR: [peer, number, chance.choice((20, 23, 65535, "Own", "a.b")), "text", meta(chance)],
        Kind.CANCEL: [chance.choice((peer, to)), number],
        Kind.CREDIT: [number, chance.choice((0, 100, 2**32 - 1)), chance.choice((0, 1))],
        Kind.ALLOW: [peer, number, chance.choice((0, 100, 2**32 - 1))],
        Kind.LANE: [number],
        Kind.NOTICE: [chance.choice(("lost", "name_lost", "lagging", "hold", "resume", "unknown")), None],
    }
    with_payload = {8, 9, 10, 11, 12, 13, 14, 15, 20}
    if kind is Kind.REQUEST and chance.random() < 0.5:
        return call(chance, sender)
    return [kind.value, sender, *rest[kind]], payload(chance) if kind in with_payload else None


def call(chance: random.Random, sender: int) -> tuple[list[Any], bytes]:
    """A REQUEST to the bus."""
    number = chance.randrange(1, 6)
    lane = chance.randrange(1, 4)
    method, arguments = chance.choice(
        (
            ("subscribe", {"pattern": pattern(chance), "lane": lane, "credit": chance.choice((0, 200, 1 << 16))}),
            ("subscribe", {"pattern": "a.>", "lane": lane, "credit": 1 << 16, "group": "g", "retained": False}),
            ("unsubscribe", {"lane": lane}),
            ("own", {"name": chance.choice(NAMES), "mode": chance.choice(("exclusive", "queue", "shared"))}),
            ("serve", {"name": "svc", "methods": ["do", "*"]}),
            ("disown", {"name": "svc"}),
            ("stats", {}),
            ("get", {"pattern": ">"}),
            ("names", {"cursor": 0}),
            ("peers", {}),
            ("topics", {}),
            ("will", {"topic": "a.b", "frame": b"x"}),
        )
    )
    return [Kind.REQUEST.value, chance.choice((0, sender)), f"bus/{method}", number, 1000, None], bytes(msgpack.packb(arguments))


def frame(chance: random.Random, sender: int = 1) -> bytes:
    """A whole frame."""
    return framed(body(*envelope(chance, sender)))


def body(elements: list[Any], carried: bytes | None) -> bytes:
    """An envelope's bytes (V-1, V-3)."""
    head = bytes(msgpack.packb(elements))
    if carried is None:
        return head
    return bytes((head[0] + 1,)) + head[1:] + b"\xc6" + struct.pack(">I", len(carried)) + carried


def framed(envelope_bytes: bytes) -> bytes:
    """F-1."""
    return b"\xce" + struct.pack(">I", len(envelope_bytes)) + envelope_bytes


#: What mutations put in.
WIRE_TOKENS = (
    b"\xce\0\0\0\x04", b"\xc6\0\0\0\0", b"\xc6\0\0\0\1x", b"\xc0", b"\x90", b"\x95", b"\x97\x0c", b"\x95\x08\x01", b"\xa1t", b"\xd9\xff",
    framed(body([6, 1, 1], None)), framed(body([8, 1, "a.b", None], b"hi")), framed(body([8, 1, "a.b", None], b"")),
    framed(body([9, 1, "a.b", 1], b"kept")), framed(body([11, 1, ":1", None], b"s")), framed(body([5, 1, 0, ""], None)),
    framed(body([19, 0, 2], None)),
)  # fmt: skip
