"""A small fuzzer: seeded, without dependencies, guided by what an input made happen, and it makes a failing input small.

A target is a function of bytes that raises where a property does not hold. It may `mark` what it came by (a refusal and where it was
raised, a kind of frame): an input that leads to a mark which none before it led to is kept and mutated further. That costs nothing where
tracing every line would cost a hundredfold; atheris, where it is installed, is guided by the branches themselves (__main__.py).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .mutations import mutate

#: Inputs that are kept for mutation. Above it a new one takes the place of another.
CORPUS_MAX = 2000
INPUT_MAX_BYTES = 20_000
#: Runs that making a failing input small may take.
SHRINK_RUNS = 3000

_BEGINNING = re.compile(r"(?:[A-Za-z_:-]+ ?){0,4}")
_marks: set[Hashable] = set()


def mark(*what: Hashable) -> None:
    """The target came by *what*, which has few different values."""
    _marks.add(what)


def mark_error(error: BaseException) -> None:
    """The target met an *error* that it allows: its type, where it was raised, from the last three frames, and the first words of its text,
    before it quotes anything.
    """
    places = []
    traceback = error.__traceback__
    while traceback is not None:
        places.append((traceback.tb_frame.f_code.co_name, traceback.tb_lineno))
        traceback = traceback.tb_next
    _marks.add((type(error).__name__, _BEGINNING.match(str(error))[0], *places[-3:]))


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed: *run* raises where a property does not hold; *make* invents an input that is mostly legal; *tokens* are bytes that
    mutations put in.
    """

    name: str
    about: str
    run: Callable[[bytes], None]
    make: Callable[[random.Random], bytes]
    tokens: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """An input for which a property does not hold, as small as it could be made."""

    target: Target
    data: bytes
    error: Exception

    def __str__(self) -> str:
        again = f"python -m tests.fuzz --target {self.target.name} --input {self.data.hex() or '-'}"
        return f"{self.target.name}: {type(self.error).__name__}: {self.error}\n{again}"


@dataclass(slots=True)
class Report:
    """How a run went."""

    runs: int = 0
    corpus: int = 0
    marks: int = 0
    failure: Failure | None = None


def fuzz(target: Target, *, seed: int, runs: int | None = None, seconds: float | None = None) -> Report:
    """Feed *target* until *runs* or *seconds* are over, or something fails. The same seed and runs give the same inputs."""
    chance = random.Random(f"{target.name}/{seed}")
    report = Report()
    corpus: list[bytes] = []
    known: set[Hashable] = set()
    end = None if seconds is None else time.monotonic() + seconds
    while (runs is None or report.runs < runs) and (end is None or time.monotonic() < end):
        if not corpus or chance.random() < 0.25:
            data = target.make(chance)
        else:
            data = mutate(chance.choice(corpus), chance, target.tokens, chance.choice(corpus))
        data = data[:INPUT_MAX_BYTES]
        report.runs += 1
        error = attempt(target, data)
        if error is not None:
            report.failure = shrink(Failure(target, data, error))
            break
        if not _marks <= known:
            known |= _marks
            if len(corpus) < CORPUS_MAX:
                corpus.append(data)
            else:
                corpus[chance.randrange(CORPUS_MAX)] = data
    report.corpus, report.marks = len(corpus), len(known)
    return report


def attempt(target: Target, data: bytes) -> Exception | None:
    """One run: what it raised."""
    _marks.clear()
    try:
        target.run(data)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        return error
    return None


def shrink(failure: Failure) -> Failure:
    """Leave out and simplify what the failure does not need: pieces first, halves to single bytes, then values."""
    target, data, error = failure.target, failure.data, failure.error
    left = SHRINK_RUNS

    def still_fails(smaller: bytes) -> bool:
        nonlocal data, error, left
        left -= 1
        again = attempt(target, smaller)
        if again is None or _signature(again) != _signature(error):
            return False
        data, error = smaller, again
        return True

    size = max(len(data) // 2, 1)
    while size and left > 0:
        at, before = 0, len(data)
        while at < len(data) and left > 0:
            if not still_fails(data[:at] + data[at + size :]):
                at += size
        if len(data) == before:
            size //= 2
    for at in range(len(data)):
        for plain in (0, ord("a")):
            if left <= 0 or data[at] == plain or still_fails(data[:at] + bytes((plain,)) + data[at + 1 :]):
                break
    return Failure(target, data, error)


def _signature(error: Exception) -> tuple[Hashable, ...]:
    """What makes two failures the same one: the type, and the line that raised it."""
    traceback = error.__traceback__
    line = 0
    while traceback is not None:
        line = traceback.tb_lineno
        traceback = traceback.tb_next
    return type(error), line
