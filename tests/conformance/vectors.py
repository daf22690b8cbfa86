"""Reads tests/vectors/*.json (PROTOCOL.md section 11): cases, steps, the bytes that they stand for, and their splits over writes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parents[1] / "vectors"
SPLITS = ("whole", "bytes", "random")

#: The secret of every bus that a vector meets (H-6).
SECRET = bytes(range(32))
#: H-14: another secret that the bus has.
NAMED_SECRETS = {"panel": bytes(range(32, 64))}
#: What ``{"ready": …}`` stands for: HELLO on a Unix socket, and its WELCOME.
HELLO = "ce00000008 9701 00 01 01 90 80 c0"
WELCOME: list[Any] = [4, 0, 1, [], "*", {"bytes": 16}, "*"]

#: A live run waits for real: cases with a longer wait are for cores with a virtual clock.
LIVE_WAIT_MAX_S = 1.0
#: Of an input over this size only so much of its beginning and its end goes byte by byte.
_BYTEWISE_BYTES = 2048
_PIECE_BYTES = 4093

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a vector file."""

    group: str
    name: str
    clauses: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def longest_wait_s(self) -> float:
        """The longest time that one step lets pass."""
        return max((float(step.get("advance_s", 0)) for step in self.steps), default=0.0)

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"


def load() -> list[Case]:
    """All cases, in the order of the files' names."""
    cases = []
    for path in sorted(DIRECTORY.glob("*.json")):
        content = json.loads(path.read_text())
        for case in content["cases"]:
            cases.append(Case(content["group"], case["name"], tuple(case["clauses"]), tuple(case["steps"])))
    return cases


def plain_steps(case: Case) -> Iterator[Step]:
    """The steps of *case* with ``ready`` written out."""
    for step in case.steps:
        if "ready" in step:
            peer = step["ready"]
            yield {"connect": peer, "transport": "unix"}
            yield {"peer": peer, "in": HELLO}
            yield {"peer": peer, "out": [WELCOME]}
        else:
            yield step


def to_bytes(source: Any) -> bytes:
    """The bytes of HEX, of ``{"repeat": HEX, "times": n}``, or of a list of these."""
    if isinstance(source, str):
        return bytes.fromhex(source)
    if isinstance(source, dict):
        return bytes.fromhex(source["repeat"]) * int(source["times"])
    return b"".join(map(to_bytes, source))


def split(data: bytes, how: str, seed: str) -> Iterator[bytes]:
    """*data* in the pieces of one of SPLITS; the same *seed* gives the same random pieces."""
    if how == "whole":
        if data:
            yield data
        return
    chance = random.Random(seed)
    at = 0
    while at < len(data):
        if how == "random":
            size = chance.choice((1, 2, 3, 5, 8, 13, 40, 400, _PIECE_BYTES))
        elif _BYTEWISE_BYTES <= at < len(data) - _BYTEWISE_BYTES:
            size = min(_PIECE_BYTES, len(data) - _BYTEWISE_BYTES - at)
        else:
            size = 1
        yield data[at : at + size]
        at += size
