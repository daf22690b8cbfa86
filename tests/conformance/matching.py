"""Compares frames with what a vector expects (PROTOCOL.md section 11).

Uses msgpack alone and nothing of ipcbus: it must not share its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from .vectors import to_bytes

ANYTHING = "*"
ERROR, BYE, LANE = 15, 5, 19
_PUBLICATIONS = (8, 9)
_COUNT = "envelope[7] content.count:"  #: how a difference begins that later frames may make up for
_WITH_PAYLOAD = (8, 9, 10, 11, 12, 13, 14, 15, 20)

#: Says whether bytes are the proof (H-5) of a role.
ProofCheck = Callable[[str, bytes], bool]


class MismatchError(AssertionError):
    """What came is not what the vector says."""


class IncompleteError(MismatchError):
    """What came is not all yet: more may make it what the vector says."""


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole frames at the beginning of *data*, and the rest."""
    frames, at = [], 0
    while at + 5 <= len(data):
        if data[at] != 0xCE:
            raise MismatchError(f"the bus wrote no frame: {data[at : at + 40].hex()}")
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def envelope(frame: bytes) -> list[Any]:
    """The elements of a frame, the payload as bytes; raises MismatchError unless it is in its one encoding (section 2)."""
    try:
        elements = msgpack.unpackb(frame[5:])
    except (ValueError, msgpack.UnpackException) as error:
        raise MismatchError(f"not msgpack: {frame.hex()}") from error
    if type(elements) is not list or frame != encode(elements):
        raise MismatchError(f"not in its one encoding: {frame.hex()}")
    return elements


def encode(elements: Sequence[Any]) -> bytes:
    """The frame of *elements* in the one encoding."""
    if elements[0] in _WITH_PAYLOAD:
        body: bytes = b"".join(map(msgpack.packb, elements[:-1])) + b"\xc6" + len(elements[-1]).to_bytes(4, "big") + elements[-1]
    else:
        body = b"".join(map(msgpack.packb, elements))
    return b"\xce" + (1 + len(body)).to_bytes(4, "big") + bytes((0x90 + len(elements),)) + body


def merge_errors(frames: Sequence[bytes]) -> list[bytes]:
    """E-4 counts per run, and runs depend on how reads were split: consecutive ones about the same are added up."""
    merged: list[bytes] = []
    for frame in frames:
        if merged and _is_counted(frame) and _is_counted(merged[-1]):
            one, two = envelope(merged[-1]), envelope(frame)
            if one[:-1] == two[:-1]:
                old, new = msgpack.unpackb(one[-1]), msgpack.unpackb(two[-1])
                if {**old, "count": 0} == {**new, "count": 0}:
                    merged[-1] = encode([*one[:-1], msgpack.packb({**old, "count": old["count"] + new["count"]})])
                    continue
        merged.append(frame)
    return merged


def _is_counted(frame: bytes) -> bool:
    elements = envelope(frame)
    return bool(elements[0] == ERROR and elements[1] == 0 and elements[3] == 0)


def check_frames(expected: Sequence[Any], frames: Sequence[bytes], is_proof: ProofCheck) -> None:
    """Raise MismatchError unless *frames* are exactly the *expected* ones."""
    have = merge_errors(frames)
    at = 0
    for want in expected:
        want, times = (want["frame"], want["times"]) if isinstance(want, dict) and "frame" in want else (want, 1)
        if times == ANYTHING:
            while at < len(have) and _frame_difference(want, have[at], is_proof) is None:
                at += 1
            continue
        for _ in range(int(times)):
            if at == len(have):
                raise IncompleteError(f"{at} frames came; missing: {_show_expected(want)}")
            difference = _frame_difference(want, have[at], is_proof)
            if difference:
                may_grow = at == len(have) - 1 and _is_counted(have[at]) and difference.startswith(_COUNT)
                shown = f"  expected {_show_expected(want)}\n  got      {show(have[at])}"
                raise (IncompleteError if may_grow else MismatchError)(f"frame {at + 1}: {difference}\n{shown}")
            at += 1
    if at < len(have):
        raise MismatchError("unexpected:" + "".join(f"\n  {show(frame)}" for frame in have[at : at + 10]))


def check_lanes(expected: Mapping[str, Sequence[Any]], frames: Sequence[bytes], is_proof: ProofCheck) -> None:
    """Raise MismatchError unless *frames* are LANE and exactly the publications that are *expected* on each lane, in order on each."""
    lanes: dict[str, list[bytes]] = {number: [] for number in expected}
    current = last = None
    for frame in frames:
        elements = envelope(frame)
        if elements[0] == LANE:
            if last == LANE or elements[2] == current:
                raise MismatchError(f"a LANE that changes nothing (L-3): {show(frame)}")
            current = elements[2]
        elif elements[0] in _PUBLICATIONS and str(current) in lanes:
            lanes[str(current)].append(frame)
        else:
            raise MismatchError(f"unexpected on lane {current}: {show(frame)}")
        last = elements[0]
    for number, wanted in expected.items():
        try:
            check_frames(wanted, lanes[number], is_proof)
        except MismatchError as error:
            raise type(error)(f"lane {number}: {error}") from None


def check_bye(code: int | None, frames: Sequence[bytes]) -> None:
    """Raise MismatchError unless *frames* are one BYE of the bus with *code* and a text; for None: no frame at all."""
    check_frames([] if code is None else [[BYE, 0, code, ANYTHING]], frames, lambda role, proof: False)


def _frame_difference(want: Any, frame: bytes, is_proof: ProofCheck) -> str | None:
    elements = envelope(frame)
    if isinstance(want, list):
        return _difference(want, elements, is_proof, "envelope")
    raw = to_bytes(want["parts"] if isinstance(want, dict) else want)
    return None if raw == frame else "other bytes"


def _difference(want: Any, have: Any, is_proof: ProofCheck, where: str) -> str | None:
    """Why *have* is not *want*, or None. Types count: 1 is neither 1.0 nor true."""
    if want == ANYTHING and type(want) is str:
        return None
    if isinstance(want, dict):
        special = _special(want, have, is_proof, where)
        if special is not NotImplemented:
            return special  # type: ignore[no-any-return]
        if type(have) is not dict:
            return f"{where}: not a map: {have!r}"
        for key, value in want.items():
            if key not in have:
                return f"{where}: no {key!r}"
            difference = _difference(value, have[key], is_proof, f"{where}.{key}")
            if difference:
                return difference
        return None
    if type(want) is not type(have):
        return f"{where}: {want!r} expected, not {have!r}"
    if isinstance(want, list):
        if len(want) != len(have):
            return f"{where}: {len(want)} elements expected, not {len(have)}"
        for index, (one, other) in enumerate(zip(want, have, strict=True)):
            difference = _difference(one, other, is_proof, f"{where}[{index}]")
            if difference:
                return difference
        return None
    return None if want == have else f"{where}: {want!r} expected, not {have!r}"


def _special(want: dict[str, Any], have: Any, is_proof: ProofCheck, where: str) -> Any:
    """The maps with a meaning of their own: None or a difference; NotImplemented for any other map."""
    keys = set(want)
    if keys == {"hex"} or keys == {"repeat", "times"}:
        raw = to_bytes(want.get("hex", want))
        return None if type(have) is bytes and have == raw else f"{where}: other bytes"
    if keys == {"bytes"}:
        return None if type(have) is bytes and len(have) == want["bytes"] else f"{where}: no {want['bytes']} bytes: {have!r}"
    if keys == {"proof"}:
        return None if type(have) is bytes and is_proof(want["proof"], have) else f"{where}: a wrong proof"
    if keys == {"msgpack"}:
        if type(have) is not bytes:
            return f"{where}: no bin: {have!r}"
        try:
            value = msgpack.unpackb(have)
        except (ValueError, msgpack.UnpackException) as error:
            return f"{where}: not msgpack: {error}"
        return _difference(want["msgpack"], value, is_proof, f"{where} content")
    return NotImplemented


def show(frame: bytes) -> str:
    """A frame for a person."""
    try:
        text = repr(envelope(frame))
    except MismatchError as error:
        text = str(error)
    return text if len(text) <= 400 else text[:397] + "…"


def _show_expected(want: Any) -> str:
    if isinstance(want, list):
        text = repr(want)
        return text if len(text) <= 400 else text[:397] + "…"
    return show(to_bytes(want["parts"] if isinstance(want, dict) else want))
