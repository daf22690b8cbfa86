"""The matcher sees differences: a runner that finds everything good proves nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from .matching import IncompleteError, MismatchError, check_bye, check_frames, check_lanes, cut, encode, envelope, merge_errors

PONG = encode([7, 0, 1])
PUBLISH = encode([8, 1, "t", None, b"hi"])
REPLY = encode([13, 0, ":1", 1, None, msgpack.packb({"retained": 0, "more": True})])


def _refusal(count: int, to: str = "a b") -> bytes:
    return encode([15, 0, ":1", 0, 28, "text", None, msgpack.packb({"kind": 8, "to": to, "count": count})])


def _no_proof(role: str, proof: bytes) -> bool:
    return role == "bus" and proof == b"p" * 32


@pytest.mark.parametrize(
    ("expected", "frames"),
    [
        ([], []),
        (["ce00000004 9307 00 01"], [PONG]),
        ([[7, 0, 1]], [PONG]),
        ([[7, "*", "*"]], [PONG]),
        ([{"parts": ["ce0000000d 9508 01 a174 c0 c600000002", {"repeat": "68", "times": 1}, "69"]}], [PUBLISH]),
        ([[8, 1, "t", None, {"hex": "6869"}]], [PUBLISH]),
        ([[8, 1, "t", None, {"bytes": 2}]], [PUBLISH]),
        ([[8, 1, "t", None, {"repeat": "61", "times": 3}]], [encode([8, 1, "t", None, b"aaa"])]),
        ([[13, 0, ":1", 1, None, {"msgpack": {"retained": 0}}]], [REPLY]),
        ([{"frame": [7, 0, 1], "times": 2}, [8, 1, "t", None, "*"]], [PONG, PONG, PUBLISH]),
        ([{"frame": [7, 0, 1], "times": "*"}, [8, 1, "t", None, "*"]], [PONG, PONG, PUBLISH]),
        ([{"frame": [7, 0, 1], "times": "*"}], []),
        ([[3, 0, {"proof": "bus"}]], [encode([3, 0, b"p" * 32])]),
        ([[15, 0, ":1", 0, 28, "*", None, {"msgpack": {"count": 3}}]], [_refusal(1), _refusal(2)]),
    ],
)
def test_what_is_expected(expected: list[Any], frames: list[bytes]) -> None:
    check_frames(expected, frames, _no_proof)


@pytest.mark.parametrize(
    ("expected", "frames", "error"),
    [
        ([[7, 0, 1]], [], IncompleteError),
        ([[7, 0, 1], [7, 0, 1]], [PONG], IncompleteError),
        ([{"frame": [7, 0, 1], "times": 3}], [PONG, PONG], IncompleteError),
        ([[15, 0, ":1", 0, 28, "*", None, {"msgpack": {"count": 3}}]], [_refusal(1)], IncompleteError),
        ([], [PONG], MismatchError),
        ([[7, 0, 1]], [PONG, PONG], MismatchError),
        (["ce00000004 9307 00 02"], [PONG], MismatchError),
        ([[7, 0, 2]], [PONG], MismatchError),
        ([[7, 0, True]], [PONG], MismatchError),
        ([[7, 0, 1.0]], [PONG], MismatchError),
        ([[7, 0]], [PONG], MismatchError),
        ([[8, 1, "t", None, {"hex": "686a"}]], [PUBLISH], MismatchError),
        ([[8, 1, "t", None, {"bytes": 3}]], [PUBLISH], MismatchError),
        ([[8, 1, {"bytes": 1}, None, "*"]], [PUBLISH], MismatchError),
        ([[8, 1, "t", None, {"msgpack": 1}]], [PUBLISH], MismatchError),
        ([[8, 1, {"msgpack": "t"}, None, "*"]], [PUBLISH], MismatchError),
        ([[8, 1, "t", {"a": 1}, "*"]], [PUBLISH], MismatchError),
        ([[13, 0, ":1", 1, None, {"msgpack": {"retained": 1}}]], [REPLY], MismatchError),
        ([[13, 0, ":1", 1, None, {"msgpack": {"dropped": 0}}]], [REPLY], MismatchError),
        ([[13, 0, ":1", 1, None, {"msgpack": [0]}]], [REPLY], MismatchError),
        ([[3, 0, {"proof": "bus"}]], [encode([3, 0, b"q" * 32])], MismatchError),
        ([[7, 0, 1]], [bytes.fromhex("ce00000005 9307 00 cc01")], MismatchError),
        ([[7, 0, 1]], [bytes.fromhex("ce00000002 c1c1")], MismatchError),
        ([[15, 0, ":1", 0, 28, "*", None, {"msgpack": {"to": "x"}}]], [_refusal(1)], MismatchError),
    ],
)
def test_what_is_not(expected: list[Any], frames: list[bytes], error: type[MismatchError]) -> None:
    with pytest.raises(MismatchError) as raised:
        check_frames(expected, frames, _no_proof)
    assert type(raised.value) is error


def test_errors_about_different_things_are_not_added_up() -> None:
    frames = [_refusal(1), _refusal(1, "c d"), PONG, _refusal(1, "c d")]
    assert merge_errors(frames) == frames
    assert merge_errors([_refusal(1), _refusal(1), PONG]) == [_refusal(2), PONG]


LANE1, LANE2 = encode([19, 0, 1]), encode([19, 0, 2])


def test_lanes_may_be_mixed() -> None:
    expected = {"1": [[8, 1, "t", None, "*"]] * 2, "2": [[8, 1, "t", None, "*"]]}
    check_lanes(expected, [LANE1, PUBLISH, PUBLISH, LANE2, PUBLISH], _no_proof)
    check_lanes(expected, [LANE1, PUBLISH, LANE2, PUBLISH, LANE1, PUBLISH], _no_proof)


@pytest.mark.parametrize(
    "frames",
    [
        [LANE1, PUBLISH], [LANE1, PUBLISH, LANE1, PUBLISH], [LANE2, LANE1, PUBLISH, PUBLISH], [PUBLISH], [LANE1, PUBLISH, PUBLISH, PONG],
        [LANE1, PUBLISH, PUBLISH, LANE2, PUBLISH], [LANE1, PUBLISH, PUBLISH, PUBLISH],
    ],
    ids=range(7),
)  # fmt: skip
def test_lanes_that_are_wrong(frames: list[bytes]) -> None:
    with pytest.raises(MismatchError):
        check_lanes({"1": [[8, 1, "t", None, "*"]] * 2}, frames, _no_proof)


def test_bye() -> None:
    check_bye(None, [])
    check_bye(1, [encode([5, 0, 1, "why"])])
    for code, frames in ((None, [encode([5, 0, 0, ""])]), (1, []), (1, [encode([5, 0, 2, "why"])]), (1, [PONG, encode([5, 0, 1, "why"])])):
        with pytest.raises(MismatchError):
            check_bye(code, frames)


def test_cutting() -> None:
    assert cut(PONG + PUBLISH + PONG[:3]) == ([PONG, PUBLISH], PONG[:3])
    assert cut(b"") == ([], b"")
    with pytest.raises(MismatchError):
        cut(PONG + b"\x00" * 5)


def test_envelopes() -> None:
    assert envelope(PUBLISH) == [8, 1, "t", None, b"hi"]
    for raw in ("ce00000004 c1c1c1c1", "ce0000000a 9508 01 a174 c0 c4026869", "ce00000005 9307 00 cc01", "ce00000002 9001"):
        with pytest.raises(MismatchError):
            envelope(bytes.fromhex(raw))
