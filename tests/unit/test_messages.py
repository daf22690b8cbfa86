"""Kinds, envelopes and their one encoding (sections 2 and 3), in literal bytes."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.messages import (
    LAYOUTS,
    WITH_PAYLOAD,
    Kind,
    brief,
    clip_text,
    decode,
    encode,
    encode_prefix,
    encode_with_payload,
    error_frame,
    pack,
)

NONCE = b"n" * 32
PROOF = b"p" * 32

#: One frame of each kind: kind, elements after it, payload, envelope in hex.
EVERY_KIND: list[tuple[Kind, tuple[Any, ...], bytes | None, str]] = [
    (Kind.HELLO, (0, 1, 300, ["a"], {"program": "x"}, None), None, "97 01 00 01 cd012c 91a161 81a770726f6772616da178 c0"),
    (Kind.HELLO, (0, 1, 1, [], {}, NONCE), None, "97 01 00 01 01 90 80 c420" + NONCE.hex()),
    (Kind.CHALLENGE, (0, 1, [], NONCE, PROOF), None, "96 02 00 01 90 c420" + NONCE.hex() + "c420" + PROOF.hex()),
    (Kind.PROOF, (0, PROOF), None, "93 03 00 c420" + PROOF.hex()),
    (
        Kind.WELCOME,
        (0, 1, [], 5, b"i" * 16, {"software": "s", "m": 1}),
        None,
        "97 04 00 01 90 05 c410" + b"i".hex() * 16 + "82a8736f667477617265a173a16d01",
    ),
    (Kind.BYE, (7, 0, "bye"), None, "94 05 07 00 a3627965"),
    (Kind.PING, (7, 2**53 - 1), None, "93 06 07 cf001fffffffffffff"),
    (Kind.PONG, (0, 1), None, "93 07 00 01"),
    (Kind.PUBLISH, (7, "t", None), b"hi", "95 08 07 a174 c0 c600000002 6869"),
    (Kind.RETAIN, (7, "t", 1), b"", "95 09 07 a174 01 c600000000"),
    (Kind.POST, (7, "t", None, None, False, None), b"", "98 0a 07 a174 c0 c0 c2 c0 c600000000"),
    (Kind.POST, (7, "t", 9, 1000, True, 127), b"", "98 0a 07 a174 09 cd03e8 c3 7f c600000000"),
    (Kind.SEND, (128, ":7", {}), b"", "95 0b cc80 a23a37 80 c600000000"),
    (Kind.REQUEST, (7, "n/m", 1, 5000, None), b"\xc0", "97 0c 07 a36e2f6d 01 cd1388 c0 c600000001 c0"),
    (Kind.REPLY, (7, ":1", 1, {"encoding": 3}), b"{}", "96 0d 07 a23a31 01 81a8656e636f64696e6703 c600000002 7b7d"),
    (Kind.POST, (7, "t", 2**53 - 1, 2**32 - 1, False, None), b"", "98 0a 07 a174 cf001fffffffffffff ceffffffff c2 c0 c600000000"),
    (Kind.PART, (7, ":1", 1, 0, None), b"", "97 0e 07 a23a31 01 00 c0 c600000000"),
    (Kind.PART, (7, ":1", 1, 2**53 - 1, None), b"", "97 0e 07 a23a31 01 cf001fffffffffffff c0 c600000000"),
    (Kind.ALLOW, (7, "n/m", 1, 2**32 - 1), None, "95 12 07 a36e2f6d 01 ceffffffff"),
    (Kind.ERROR, (7, ":1", 0, "no.luck", "", None), b"", "98 0f 07 a23a31 00 a76e6f2e6c75636b a0 c0 c600000000"),
    (Kind.ERROR, (0, ":1", 1, 24, "x", None), b"", "98 0f 00 a23a31 01 18 a178 c0 c600000000"),
    (Kind.CANCEL, (7, "n/m", 1), None, "94 10 07 a36e2f6d 01"),
    (Kind.CREDIT, (7, 1, 2**32 - 1, 0), None, "95 11 07 01 ceffffffff 00"),
    (Kind.ALLOW, (7, "n/m", 1, 65536), None, "95 12 07 a36e2f6d 01 ce00010000"),
    (Kind.LANE, (0, 255), None, "93 13 00 ccff"),
    (Kind.NOTICE, (0, "lost", None), b"\x80", "95 14 00 a46c6f7374 c0 c600000001 80"),
]


def frame(envelope: str | bytes) -> bytes:
    """A frame around literal bytes."""
    body = bytes.fromhex(envelope) if isinstance(envelope, str) else envelope
    return b"\xce" + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(("kind", "elements", "payload", "envelope"), EVERY_KIND, ids=lambda value: getattr(value, "name", ""))
def test_every_kind_there_and_back(kind: Kind, elements: tuple[Any, ...], payload: bytes | None, envelope: str) -> None:
    raw = frame(envelope)
    made = encode(kind, *elements) if payload is None else encode_with_payload(payload, kind, *elements)
    assert made == raw
    got = decode(raw)
    assert (got.kind, got.raw, len(got.elements)) == (kind, raw, 1 + len(elements))
    assert pack(got.elements) == pack((kind.value, *elements)), "an array may be a list or a tuple; all else keeps its type"
    assert (got.payload, got.payload_size) == (payload or b"", len(payload or b""))
    assert kind.name in repr(got)


def test_every_kind_is_in_the_table() -> None:
    assert set(LAYOUTS) == set(Kind) == {kind for kind, *_ in EVERY_KIND}
    assert {kind for kind, _, payload, _ in EVERY_KIND if payload is not None} == WITH_PAYLOAD


def test_a_prefix_is_what_the_frames_of_a_run_share() -> None:
    assert encode_prefix(Kind.PUBLISH, 7, "t", None) == bytes.fromhex("95 08 07 a174 c0 c6")


@pytest.mark.parametrize("payload", [b"x" * 5, bytearray(b"x" * 5), memoryview(b"x" * 5)], ids=type)
def test_payloads_of_any_bytes_like_type(payload: Any) -> None:
    assert encode_with_payload(payload, Kind.PUBLISH, 7, "t", None) == frame("95 08 07 a174 c0 c600000005 7878787878")


@pytest.mark.parametrize("size", [0, 4000, 4096, 5000, 70_000])
def test_payloads_of_any_size(size: int) -> None:
    payload = b"\xc1" * size
    got = decode(encode_with_payload(payload, Kind.PUBLISH, 7, "t", {"a": 1}))
    assert got.elements == (8, 7, "t", {"a": 1})
    assert got.payload == payload


HEAD = "95 08 07 a174 c0"
PAYLOAD = "c600000002 6869"


@pytest.mark.parametrize(
    "envelope",
    [
        # no array of elements
        "c0c0",
        "80",
        "90",
        "9090",
        "a568656c6c6f",
        "c1c1",
        "ddffffffff",
        "dfffffffff",
        "c9ffffffff01",
        "c7020161 62",
        "95 08 07",
        # the kind
        f"95 cc08 07 a174 c0 {PAYLOAD}",
        f"95 c3 07 a174 c0 {PAYLOAD}",
        f"95 cb4020000000000000 07 a174 c0 {PAYLOAD}",
        f"95 c0 07 a174 c0 {PAYLOAD}",
        f"95 a138 07 a174 c0 {PAYLOAD}",
        f"95 9108 07 a174 c0 {PAYLOAD}",
        # the number of elements
        f"94 08 07 a174 {PAYLOAD}",
        f"96 08 07 a174 c0 c0 {PAYLOAD}",
        f"dc0005 08 07 a174 c0 {PAYLOAD}",
        f"dd00000005 08 07 a174 c0 {PAYLOAD}",
        f"96 08 07 a174 c0 {PAYLOAD} c0",
        # another encoding of the same
        f"95 08 cc07 a174 c0 {PAYLOAD}",
        f"95 08 d007 a174 c0 {PAYLOAD}",
        f"95 08 cf0000000000000007 a174 c0 {PAYLOAD}",
        f"95 08 cb401c000000000000 a174 c0 {PAYLOAD}",
        f"95 08 07 d90174 c0 {PAYLOAD}",
        f"95 08 07 c40174 c0 {PAYLOAD}",
        f"95 08 07 a174 cc01 {PAYLOAD}",
        f"95 08 07 a174 de0000 {PAYLOAD}",
        f"95 08 07 a174 81d90161 01 {PAYLOAD}",
        f"95 08 07 a174 81a161 cc01 {PAYLOAD}",
        # types and values
        f"95 08 ff a174 c0 {PAYLOAD}",
        f"95 08 cf0020000000000000 a174 c0 {PAYLOAD}",
        f"95 08 c3 a174 c0 {PAYLOAD}",
        f"95 08 c0 a174 c0 {PAYLOAD}",
        f"95 08 07 07 c0 {PAYLOAD}",
        f"95 08 07 a1ff c0 {PAYLOAD}",
        f"95 08 07 a3eda080 c0 {PAYLOAD}",
        f"95 08 07 d40174 c0 {PAYLOAD}",
        # the payload
        HEAD,
        f"{HEAD} c0",
        f"{HEAD} a26869",
        f"{HEAD} c4026869",
        f"{HEAD} c500026869",
        f"{HEAD} c600000001 6869",
        f"{HEAD} c600000003 6869",
        f"{HEAD} c6000000",
        f"{HEAD} c6ffffffff",
        f"{HEAD} {PAYLOAD} 00",
        f"{HEAD} 920102",
        # kinds without payload
        "93 06 cc07 01",
        "93 06 07 d10100",
        f"97 0c 07 a36e2f6d 01 d103e8 c0 {PAYLOAD}",
        "93 06 07 01 00",
        "94 06 07 01 c0",
        "92 06 07",
        "93 06 07 00",
        "93 06 07 ff",
        "93 06 07 cf0020000000000000",
    ],
)
def test_what_is_no_envelope(envelope: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(frame(envelope))
    assert raised.value.code is Code.BAD_ENVELOPE
    assert len(raised.value.text.encode()) <= 1024


@pytest.mark.parametrize("number", [0, 21, 127, 2**64 - 1, -1])
def test_kinds_that_do_not_exist(number: int) -> None:
    encoded = number.to_bytes(8, "big").hex() if number > 127 else ""
    with pytest.raises(ProtocolError) as raised:
        decode(frame(f"92 {'cf' + encoded if encoded else (number & 0xFF).to_bytes(1, 'big').hex()} 07"))
    assert raised.value.code is Code.UNKNOWN_KIND


BIG = b"\xc6" + (5000).to_bytes(4, "big") + b"x" * 5000


@pytest.mark.parametrize(
    "envelope",
    [
        bytes.fromhex("95 08 cc07 a174 c0") + BIG,
        bytes.fromhex("95 08 07 d90174 c0") + BIG,
        bytes.fromhex("dc0005 08 07 a174 c0") + BIG,
        bytes.fromhex("94 08 07 a174") + BIG,
        bytes.fromhex("96 08 07 a174 c0") + BIG + b"\xc0",
        bytes.fromhex("95 08 07 a174 c0") + BIG + b"\xc0",
        bytes.fromhex("95 08 07 a174 c0") + BIG[:-1],
        bytes.fromhex("95 08 07 a174") + b"\xc9\x00\x00\x13\x88\x05" + b"x" * 5000,
        bytes.fromhex("95 08 07") + b"\xda\x13\x88" + b"t" * 5000 + bytes.fromhex("c0 c600000000"),
        bytes.fromhex("93 06 07 01") + b"\xc0" * 5000,
        b"\x91" * 5000,
        b"\xdd\x00\x00\x00\x01" * 1000,
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x90" + b"x" * 5000,
        b"\x8f\x08" + b"x" * 5000,
        b"\xc0" * 5000,
        b"\x95\xc3\x07\xa1t\xc0" + BIG,
        b"\x95\x91\x08\x07\xa1t\xc0" + BIG,
    ],
    ids=lambda envelope: envelope[:8].hex(),
)
def test_what_is_no_envelope_and_is_large(envelope: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(frame(envelope))
    assert raised.value.code is Code.BAD_ENVELOPE


def test_a_large_frame_of_an_unknown_kind() -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(frame(b"\x93\x15\x07" + BIG))
    assert raised.value.code is Code.UNKNOWN_KIND


@pytest.mark.parametrize("depth", [3, 10, 100, 1000, 1023, 1024, 2000])
def test_deep_nesting_is_refused_without_a_recursion_error(depth: int) -> None:
    for envelope in (
        b"\x95\x08" + b"\x91" * depth + b"\x07" + bytes.fromhex("a174 c0") + BIG[:5],
        b"\x95\x08\x07\xa1t\x81\xa1k" + b"\x91" * depth + b"\x07" + bytes.fromhex(PAYLOAD),
        b"\x95\x08\x07\xa1t\x81\xa1k" + b"\x81\xa1k" * (depth // 3) + b"\x07" + bytes.fromhex(PAYLOAD),
    ):
        with pytest.raises(ProtocolError) as raised:
            decode(frame(envelope))
        assert raised.value.code is Code.BAD_ENVELOPE


def _meta(meta: Any) -> bytes:
    return encode_with_payload(b"hi", Kind.PUBLISH, 7, "t", meta)


@pytest.mark.parametrize(
    "meta",
    [
        None,
        1,
        127,
        {},
        {"k" * 64: 1},
        {f"k{number}": 1 for number in range(32)},
        {"k": b"v" * 4090},
        {"encoding": 1},
        {"encoding": 127},
        {"n": None, "b": True, "i": -(2**63), "u": 2**64 - 1, "f": 0.5, "s": "ä", "y": b"\0"},
    ],
)
def test_meta_that_is_allowed(meta: Any) -> None:
    assert decode(_meta(meta)).elements[3] == meta


@pytest.mark.parametrize(
    "meta",
    [
        0,
        128,
        -1,
        1.0,
        True,
        False,
        "json",
        b"\1",
        [],
        [1],
        {"": 1},
        {"k" * 65: 1},
        {"ä" * 33: 1},
        {1: 1},
        {b"k": 1},
        {None: 1},
        {True: 1},
        {1.5: 1},
        {f"k{number}": 1 for number in range(33)},
        {f"k{number}": 1 for number in range(65)},
        {"k": b"v" * 4091},
        {"k": []},
        {"k": {}},
        {"encoding": 0},
        {"encoding": 128},
        {"encoding": -1},
        {"encoding": "x"},
        {"encoding": None},
        {"encoding": True},
        {"encoding": 1.0},
    ],
)
def test_meta_that_is_not(meta: Any) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(_meta(meta))
    assert raised.value.code is Code.BAD_ENVELOPE


@pytest.mark.parametrize(
    "headers",
    [
        "82 a161 01 a161 02",
        "83 a161 01 a162 01 a161 01",
        "81 a161 ca3f800000",
        "81 a161 d40101",
        "81 a161 d6ff00000001",
        "81 a161 c1",
        "81 9101 01",
        "81 80 01",
        "81 a1ff 01",
        "de0001 a161 01",
        "df00000001 a161 01",
        "82 a161 01",
    ],
)
def test_headers_that_decoders_choke_on(headers: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(frame(f"95 08 07 a174 {headers} {PAYLOAD}"))
    assert raised.value.code is Code.BAD_ENVELOPE


def _hello(**changes: Any) -> bytes:
    elements = {"sender": 0, "low": 1, "high": 1, "features": [], "info": {}, "nonce": None, **changes}
    return encode(Kind.HELLO, *elements.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"features": [f"f{number}" for number in range(32)]},
        {"features": ["f" * 32]},
        {"info": {f"k{number}": "" for number in range(16)}},
        {"info": {"k" * 32: "v" * 128}},
        {"nonce": NONCE},
        {"high": 65535},
    ],
)
def test_hello_at_its_limits(changes: dict[str, Any]) -> None:
    assert decode(_hello(**changes)).kind is Kind.HELLO


@pytest.mark.parametrize(
    "changes",
    [
        {"low": 0},
        {"high": 65536},
        {"low": 1.0},
        {"features": None},
        {"features": {}},
        {"features": [1]},
        {"features": [""]},
        {"features": ["a", "a"]},
        {"features": ["f" * 33]},
        {"features": [f"f{number}" for number in range(33)]},
        {"features": [[]]},
        {"info": None},
        {"info": []},
        {"info": {"": "v"}},
        {"info": {"k" * 33: "v"}},
        {"info": {"k": "v" * 129}},
        {"info": {"k": 1}},
        {"info": {1: "v"}},
        {"info": {f"k{number}": "" for number in range(17)}},
        {"nonce": b"n" * 31},
        {"nonce": "n" * 32},
        {"nonce": 0},
    ],
)
def test_hello_beyond_its_limits(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(_hello(**changes))
    assert raised.value.code is Code.BAD_ENVELOPE


@pytest.mark.parametrize(
    "raw",
    [
        encode(Kind.WELCOME, 0, 1, [], 0, b"i" * 16, {}),
        encode(Kind.WELCOME, 0, 1, [], 1, b"i" * 15, {}),
        encode(Kind.WELCOME, 0, 1, [], 1, b"i" * 16, {"a": 1.5}),
        encode(Kind.WELCOME, 0, 1, [], 1, b"i" * 16, {"a": True}),
        encode(Kind.WELCOME, 0, 1, [], 1, b"i" * 16, []),
        encode(Kind.CHALLENGE, 0, 1, [], b"n" * 31, PROOF),
        encode(Kind.CHALLENGE, 0, 1, [], NONCE, b""),
        encode(Kind.PROOF, 0, "p" * 32),
        encode(Kind.BYE, 7, -1, ""),
        encode(Kind.BYE, 7, 65536, ""),
        encode(Kind.BYE, 7, 0, "x" * 1025),
        encode(Kind.LANE, 0, 0),
        encode(Kind.CREDIT, 7, 1, 2**32, 0),
        encode(Kind.CREDIT, 7, 1, 0, True),
        encode(Kind.ALLOW, 7, "n/m", 1, -1),
        encode(Kind.ALLOW, 7, "n/m", 1, 2**32),
        encode_with_payload(b"", Kind.PART, 7, ":1", 1, 2**53, None),
        encode_with_payload(b"", Kind.PART, 7, ":1", 1, -1, None),
        encode(Kind.CANCEL, 7, b"n/m", 1),
        encode_with_payload(b"", Kind.POST, 7, "t", 0, None, False, None),
        encode_with_payload(b"", Kind.POST, 7, "t", None, -1, False, None),
        encode_with_payload(b"", Kind.POST, 7, "t", None, 2**32, False, None),
        encode_with_payload(b"", Kind.POST, 7, "t", 2**53, None, False, None),
        encode_with_payload(b"", Kind.POST, 7, "t", None, None, 0, None),
        encode_with_payload(b"", Kind.REQUEST, 7, "n/m", 0, 1, None),
        encode_with_payload(b"", Kind.REQUEST, 7, "n/m", 1, -1, None),
        encode_with_payload(b"", Kind.ERROR, 7, ":1", 1, "", "", None),
        encode_with_payload(b"", Kind.ERROR, 7, ":1", 1, "no luck", "", None),
        encode_with_payload(b"", Kind.ERROR, 7, ":1", 1, "x" * 65, "", None),
        encode_with_payload(b"", Kind.ERROR, 7, ":1", 1, 65536, "", None),
        encode_with_payload(b"", Kind.ERROR, 7, ":1", 1, "x", "t" * 1025, None),
        encode_with_payload(b"", Kind.NOTICE, 0, "n" * 65, None),
    ],
    ids=lambda raw: raw[5:25].hex(),
)
def test_elements_out_of_their_range(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(raw)
    assert raised.value.code is Code.BAD_ENVELOPE


def test_an_error_of_the_bus() -> None:
    assert error_frame(":7", 5, Code.EXPIRED, "late", b"\x80") == frame("98 0f 00 a23a37 05 18 a46c617465 c0 c600000001 80")


@pytest.mark.parametrize(
    ("text", "clipped"),
    [("short", "short"), ("x" * 1024, "x" * 1024), ("x" * 1025, "x" * 1021 + "…"), ("ä" * 600, "ä" * 510 + "…"), ("\ud800", "?")],
    ids=["short", "at the limit", "over it", "not within a letter", "no Unicode"],
)
def test_texts_are_cut_to_what_an_error_may_carry(text: str, clipped: str) -> None:
    assert clip_text(text) == clipped
    assert len(clip_text(text).encode()) <= 1024


def test_what_a_peer_sent_is_shown_in_brief() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert brief(7) == "7"
    assert len(brief(deep)) < 100
    assert len(brief("x" * 100_000)) < 100
    assert len(brief({f"key {number}": "v" * 1000 for number in range(1000)})) < 1000
