"""A short look with each target, always with the same inputs; and that the fuzzer finds what is there to be found."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.daemons import environment

from . import grammar
from .engine import Target, attempt, fuzz, mark
from .targets import TARGETS

#: Inputs of an ordinary run: about a second for each target. `python -m tests.fuzz --seconds N` takes as long as it is told.
RUNS = {"frame": 12_000, "stream": 4000, "payload": 12_000, "elements": 12_000, "topics": 6000, "text": 8000, "address": 8000,
        "config": 1000, "policy": 5000, "convert": 12_000, "bus": 1000, "session": 800}  # fmt: skip

#: What was found once.
FOUND: dict[str, list[str]] = {
    # a map with an int as its key: not an envelope, whatever its size; each size is refused for another of its two faults
    "frame": [
        *("9500000097000000810000000000c600000000", "00c6", "960d00a200006181a100cb7ff8000000000000c60000000100"),
        "930600cf000000c600000000",  # a number whose end looks like an empty payload
    ],
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_property(name: str) -> None:
    report = fuzz(TARGETS[name], seed=0, runs=RUNS[name])
    if report.failure is not None:
        pytest.fail(str(report.failure))
    assert report.runs == RUNS[name]
    assert report.marks > 5, "the inputs did not get anywhere"


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, found in FOUND.items() for data in found])
def test_what_was_found_once_holds(name: str, data: str) -> None:
    assert attempt(TARGETS[name], bytes.fromhex(data)) is None


# --- the fuzzer itself ---


def _deep(data: bytes) -> None:
    """Raises for what no blind guess would hit: five steps, each of which is marked."""
    for number, letter in enumerate(b"bread"):
        if data[number : number + 1] != bytes((letter,)):
            return
        mark(number)
    raise LookupError("deep inside")


def _somewhere(data: bytes) -> None:
    if b"needle" in data:
        raise LookupError("found")


def _plain(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(200))


def test_marks_lead_it_to_what_lies_deep() -> None:
    target = Target("deep", "", _deep, lambda chance: chance.randbytes(8), tuple(bytes((letter,)) for letter in range(97, 123)))
    report = fuzz(target, seed=1, runs=60_000)
    assert report.failure is not None
    assert report.failure.data == b"bread"
    assert "python -m tests.fuzz --target deep --input 6272656164" in str(report.failure)


def test_a_failing_input_becomes_small() -> None:
    target = Target("needle", "", _somewhere, lambda chance: _plain(chance) + b"needle" + _plain(chance))
    report = fuzz(target, seed=1, runs=1)
    assert report.failure is not None
    assert report.failure.data == b"needle"


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        fuzz(Target("any", "", seen.append, _plain), seed=seed, runs=200)
        return seen

    assert inputs(3) == inputs(3) != inputs(4)


def test_the_grammar_makes_what_is_mostly_legal() -> None:
    chance = random.Random(1)
    legal = sum(attempt(Target("", "", _is_legal, _plain), grammar.frame(chance)) is None for _ in range(1000))
    assert legal > 900


def _is_legal(data: bytes) -> None:
    from ipcbus.protocol.messages import decode

    decode(data)


def test_the_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.fuzz", *arguments]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    done = run("--target", "text", "--runs", "50", "--seed", "7")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["text", "50"]), done.stderr
    done = run("--target", "frame", "--input", "9306014d")
    assert (done.returncode, done.stdout) == (0, "frame: every property holds\n"), done.stderr
    assert run("--target", "nothing").returncode == 2
