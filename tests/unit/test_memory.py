"""Memory is given back when what waited has gone, and only where that is worth it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipcbus.daemon import memory
from ipcbus.daemon.limits import RECLAIM_AFTER_S, RECLAIM_BYTES

START = 20 << 20


class Process:
    """What the kernel says of it, and the loop's timers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident = START
        self.waiting = 0
        self.holes = 0  #: what a walk over the heap would give back
        self.trims = 0
        self.timers: list[tuple[float, Callable[[float], None]]] = []
        monkeypatch.setattr(memory, "resident_bytes", lambda: self.resident)
        monkeypatch.setattr(memory, "trim_heap", self._trim)
        self.reclaim = memory.Reclaim(lambda when, look: self.timers.append((when, look)), lambda: self.waiting)

    def _trim(self) -> None:
        self.trims += 1
        self.resident -= self.holes
        self.holes = 0

    def look(self) -> None:
        """The one timer that there is."""
        ((when, look),) = self.timers
        self.timers.clear()
        look(when)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_a_look_is_taken_once_and_later(process: Process) -> None:
    process.reclaim.look_later(100.0)
    process.reclaim.look_later(101.0)
    assert [when for when, _ in process.timers] == [100.0 + RECLAIM_AFTER_S]
    process.look()
    assert process.timers == []


@pytest.mark.parametrize(("holes", "trims"), [(RECLAIM_BYTES - 1, 0), (RECLAIM_BYTES, 1), (RECLAIM_BYTES + 1, 1)])
def test_small_holes_are_left(process: Process, holes: int, trims: int) -> None:
    process.resident += holes
    process.holes = holes
    process.reclaim.look_later(0.0)
    process.look()
    assert process.trims == trims


def test_what_waits_is_no_hole_and_is_looked_at_again(process: Process) -> None:
    process.resident += 100 << 20
    process.waiting = 95 << 20
    process.reclaim.look_later(0.0)
    for _ in range(3):
        process.look()
        assert process.trims == 0
    process.waiting, process.holes = 0, 95 << 20
    process.look()
    assert (process.trims, process.timers) == (1, [])


def test_who_waits_for_ever_does_not_keep_the_holes_of_others(process: Process) -> None:
    process.waiting = 10 << 20
    process.resident += 100 << 20
    process.holes = 90 << 20
    process.reclaim.look_later(0.0)
    process.look()
    assert process.trims == 1
    process.look()
    assert process.trims == 1  # nothing is left to give back


def test_what_a_trim_could_not_give_back_is_not_asked_for_again(process: Process) -> None:
    process.resident += 50 << 20
    process.reclaim.look_later(0.0)
    process.look()
    process.reclaim.look_later(0.0)
    process.look()
    assert process.trims == 1


def test_the_real_ones() -> None:
    assert memory.resident_bytes() > 1 << 20
    memory.trim_heap()
