"""Payloads: values to (meta, bytes) and back, with limits (V-6, S-2)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.payloads import JSON, MAX_ELEMENTS, RAW, TEXT, PayloadError, decode_value, encode_value, encoding_of


@pytest.mark.parametrize(
    ("value", "meta", "payload"),
    [
        (b"\x00\xff", RAW, b"\x00\xff"),
        (bytearray(b"ab"), RAW, b"ab"),
        (memoryview(b"abcd")[1:3], RAW, b"bc"),
        (b"", RAW, b""),
        (None, None, b"\xc0"),
        (7, None, b"\x07"),
        ("ä", None, b"\xa2\xc3\xa4"),
        ({"a": [1, 2.5]}, None, bytes.fromhex("81a161 92 01 cb4004000000000000")),
        (True, None, b"\xc3"),
        ({"b": b"x"}, None, b"\x81\xa1b\xc4\x01x"),
    ],
)
def test_values_there_and_back(value: Any, meta: int | None, payload: bytes) -> None:
    assert encode_value(value) == (meta, payload)
    assert decode_value(meta, payload) == (bytes(value) if isinstance(value, (bytearray, memoryview)) else value)


def _cycle() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, {"a": object()}, "\ud800", _cycle()], ids=type)
def test_values_that_cannot_be_packed(value: Any) -> None:
    with pytest.raises(PayloadError, match="cannot pack"):
        encode_value(value)


@pytest.mark.parametrize(
    ("meta", "encoding"),
    [(None, None), (1, 1), (127, 127), ({}, None), ({"encoding": 3}, 3), ({"encoding": 3, "x": 1}, 3), ({"x": 1}, None)],
)
def test_the_encoding_that_meta_names(meta: Any, encoding: int | None) -> None:
    assert encoding_of(meta) == encoding


@pytest.mark.parametrize(
    ("meta", "payload", "value"),
    [
        (None, b"", None),
        ({}, b"", None),
        (RAW, b"\xc1", b"\xc1"),
        ({"encoding": RAW}, b"\xc1", b"\xc1"),
        (TEXT, "grüß".encode(), "grüß"),
        (TEXT, b"", ""),
        ({"encoding": TEXT, "a": 1}, b"x", "x"),
        (JSON, b'{"a": [1, null]}', {"a": [1, None]}),
        ({"encoding": JSON}, b"1.5", 1.5),
        (None, b"\x81\x01\x02", {1: 2}),
        ({"x": "y"}, b"\x01", 1),
    ],
)
def test_decoding(meta: Any, payload: bytes, value: Any) -> None:
    assert decode_value(meta, payload) == value


@pytest.mark.parametrize(
    ("meta", "payload"),
    [
        (None, b"\xc1"),
        (None, b"\x91"),
        (None, b"\x01\x02"),
        (None, b"\xa1\xff"),
        (None, b"\xdd\xff\xff\xff\xff"),
        (None, b"\xdf\xff\xff\xff\xff"),
        (None, b"\xc6\xff\xff\xff\xff"),
        (None, b"\x91" * 5000 + b"\xc0"),
        (None, b"\x81\x80\x01"),
        (TEXT, b"\xff"),
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b"\xff"),
        (JSON, b"[" * 100_000),
        (4, b"x"),
        (127, b""),
        ({"encoding": 9}, b"x"),
    ],
)
def test_payloads_that_are_not_what_meta_says(meta: Any, payload: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_value(meta, payload)


def test_an_unknown_encoding_says_where_the_bytes_are() -> None:
    with pytest.raises(PayloadError, match=r"encoding 77.*payload"):
        decode_value(77, b"")


def _array(items: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + items


HALF = MAX_ELEMENTS // 2


@pytest.mark.parametrize(
    "payload",
    [
        _array(b"\x80" * (MAX_ELEMENTS + 1), MAX_ELEMENTS + 1),
        _array(b"\x90" * (MAX_ELEMENTS + 1), MAX_ELEMENTS + 1),
        b"\xdf" + (HALF + 1).to_bytes(4, "big") + b"".join(b"\xce" + number.to_bytes(4, "big") + b"\x80" for number in range(HALF + 1)),
        _array(b"\x92\x01\x02" * (HALF + 1), HALF + 1),
        _array(b"\x81\x01\x02" * (HALF + 1), HALF + 1),
    ],
    ids=["empty maps", "empty arrays", "one map", "arrays of two", "maps of one"],
)
def test_more_than_a_million_elements_are_refused_before_they_are_made(payload: bytes) -> None:
    with pytest.raises(PayloadError, match="more than 1000000 elements"):
        decode_value(None, payload)


def test_a_large_payload_of_few_elements_is_decoded() -> None:
    blob = b"x" * MAX_ELEMENTS
    assert decode_value(None, b"\xc6" + MAX_ELEMENTS.to_bytes(4, "big") + blob) == blob
    assert decode_value(None, b"\xdb" + MAX_ELEMENTS.to_bytes(4, "big") + blob) == blob.decode()
    assert decode_value(None, b"\x92\xc6" + MAX_ELEMENTS.to_bytes(4, "big") + blob + b"\x01") == [blob, 1]


def test_every_header_is_walked_by_its_size() -> None:
    one_of_each = [
        b"\x01",
        b"\xff",
        b"\xc0",
        b"\xc2",
        b"\xc3",
        b"\x80",
        b"\x90",
        b"\xa1a",
        b"\xca" + bytes(4),
        b"\xcb" + bytes(8),
        b"\xcc\x80",
        b"\xcd\x01\x00",
        b"\xce\x00\x01\x00\x00",
        b"\xcf" + b"\x01" * 8,
        b"\xd0\x80",
        b"\xd1\x80\x00",
        b"\xd2\x80\x00\x00\x00",
        b"\xd3\x80" + bytes(7),
        b"\xc4\x01a",
        b"\xc5\x00\x01a",
        b"\xc6\x00\x00\x00\x01a",
        b"\xd9\x01a",
        b"\xda\x00\x01a",
        b"\xdb\x00\x00\x00\x01a",
        b"\xd4\x05a",
        b"\xd5\x05ab",
        b"\xd6\x05abcd",
        b"\xd7\x05" + bytes(8),
        b"\xd8\x05" + bytes(16),
        b"\xc7\x01\x05a",
        b"\xc8\x00\x01\x05a",
        b"\xc9\x00\x00\x00\x01\x05a",
        b"\xdc\x00\x01\x01",
        b"\xdd\x00\x00\x00\x01\x01",
        b"\xde\x00\x01\x01\x01",
        b"\xdf\x00\x00\x00\x01\x01\x01",
    ]
    filler = b"\xc6" + MAX_ELEMENTS.to_bytes(4, "big") + bytes(MAX_ELEMENTS)
    value = decode_value(None, _array(filler + b"".join(one_of_each) + b"\x2a", len(one_of_each) + 2))
    assert len(value) == len(one_of_each) + 2
    assert value[-1] == 42


@pytest.mark.parametrize("end", [b"\xdd\x00\x00\x00\x02\x01", b"\xcd\x01", b"\xc6\x00", b"\xdb\xff\xff\xff\xff", b""])
def test_a_large_payload_that_ends_too_early_is_the_decoders_to_refuse(end: bytes) -> None:
    filler = b"\xc6" + MAX_ELEMENTS.to_bytes(4, "big") + bytes(MAX_ELEMENTS)
    with pytest.raises(PayloadError):
        decode_value(None, _array(filler + end, 3))


def test_large_json_is_counted_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    for bomb in (b"[" + b"0," * MAX_ELEMENTS + b"0]", b"[" * (MAX_ELEMENTS + 1), b"[" + b"{}," * MAX_ELEMENTS + b"{}]"):
        with monkeypatch.context() as patch:
            patch.setattr(json, "loads", lambda data: pytest.fail("it was decoded"))
            with pytest.raises(PayloadError, match="elements"):
                decode_value(3, bomb)
    assert decode_value(3, b'["' + b"x" * MAX_ELEMENTS + b'", 1]') == ["x" * MAX_ELEMENTS, 1]
    assert len(decode_value(3, b"[" + b"0, " * (MAX_ELEMENTS // 2 - 2) + b"0]")) == MAX_ELEMENTS // 2 - 1


def test_arrays_are_keys_of_maps_as_tuples() -> None:
    value = {(1, 2): [3], ((1, ()), "a"): {(b"x",): [(4,)]}, "text": 5}
    assert decode_value(None, msgpack.packb(value)) == {(1, 2): [3], ((1, ()), "a"): {(b"x",): [[4]]}, "text": 5}
    for payload in (b"\x81\x80\x01", b"\x81\x91\x80\x01"):  # {{}: 1} and {[{}]: 1}
        with pytest.raises(PayloadError, match="a map has a map as a key"):
            decode_value(None, payload)
    deep = b"\x81" + b"\x91" * 5000 + b"\x01\x01"
    with pytest.raises(PayloadError):
        decode_value(None, deep)
