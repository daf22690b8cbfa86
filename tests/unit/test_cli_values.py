"""ipcbus.cli.values: JSON in, JSON out, and what JSON lacks."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest

from ipcbus.cli.failures import CommandError, Exit
from ipcbus.cli.values import dump, parse, plain, render, undecodable
from ipcbus.protocol.payloads import decode_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (21.5, "21.5"),
        ({"t": [1, "é"]}, '{"t": [1, "é"]}'),
        (b"abc", '{"$text-bytes": "abc"}'),
        (b"", '{"$text-bytes": ""}'),
        (b"a\n", '{"$text-bytes": "a\\n"}'),
        (b"\x1b[31m", '{"$base64": "G1szMW0="}'),
        (b"\xff\x00", '{"$base64": "/wA="}'),
        (bytearray(b"\xff"), '{"$base64": "/w=="}'),
        ({1: "one", "two": 2}, '{"$map": [[1, "one"], ["two", 2]]}'),
        ({b"k": None}, '{"$map": [[{"$text-bytes": "k"}, null]]}'),
        ({"$base64": "AA=="}, '{"$map": [["$base64", "AA=="]]}'),
        ({"$base64": 1, "x": 2}, '{"$base64": 1, "x": 2}'),
        ({}, "{}"),
        (math.nan, '{"$float": "nan"}'),
        (-math.inf, '{"$float": "-inf"}'),
        (msgpack.Timestamp(1, 2), '{"$time": "1970-01-01T00:00:01.000000002Z"}'),
        (msgpack.Timestamp(-1, 0), '{"$time": "1969-12-31T23:59:59.000000000Z"}'),
        (msgpack.Timestamp(2**40, 5), '{"$time": "1099511627776.000000005"}'),
        (msgpack.ExtType(5, b"\xff"), '{"$ext": [5, "/w=="]}'),
        ([msgpack.ExtType(5, b"")], '[{"$ext": [5, ""]}]'),
        ("\x1b]0;x\x07", '"\\u001b]0;x\\u0007"'),
        ("\x7f\x9b\u202e\u2028", '"\\u007f\\u009b\\u202e\\u2028"'),
        ("\U000e0041", '"\\udb40\\udc41"'),
        ("a\tb 😀", '"a\\tb 😀"'),
    ],
)
def test_rendering(value: Any, text: str) -> None:
    assert render(value) == text
    json.loads(text)


def test_what_is_rendered_decodes_to_the_same_text() -> None:
    assert json.loads(render("\x1b\x9b\u202e\U000e0041é")) == "\x1b\x9b\u202e\U000e0041é"


def test_depth_is_an_error_and_not_a_crash() -> None:
    value: Any = None
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RecursionError):
        render(value)
    while value:  # or its deallocation would recurse
        value = value[0]


def test_undecodable() -> None:
    assert dump(undecodable(b"\xff")) == '{"$undecodable": "/w=="}'
    assert dump(plain({"$undecodable": "x"})) == '{"$map": [["$undecodable", "x"]]}'


@pytest.mark.parametrize("text", ["", "hello", "{'t': 1}", "NaN", "-Infinity", "1e999", '{"t": [-1e999]}', "[1", b"\xff", "[" * 100_000])
def test_what_is_not_json_says_what_to_do(text: str | bytes) -> None:
    with pytest.raises(CommandError) as caught:
        parse(text)
    assert caught.value.exit == Exit.USAGE
    assert "--raw" in caught.value.text or "nested" in caught.value.text


def test_json_in() -> None:
    assert parse('{"t": [21.5, null, true, "é"]}') == {"t": [21.5, None, True, "é"]}
    assert parse(b'"x"', "stdin") == "x"


def test_a_key_that_is_an_array_is_printed_as_one() -> None:
    assert render(decode_value(None, msgpack.packb({(1, (2,)): [3], msgpack.ExtType(5, b"x"): 4}))) == (
        '{"$map": [[[1, [2]], [3]], [{"$ext": [5, "eA=="]}, 4]]}'
    )
