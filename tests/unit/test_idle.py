"""--exit-idle on a clock driven by hand: when it leaves, and when not."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from ipcbus.daemon.idle import IdleExit


class Clockwork:
    """The loop's timers and its count of connections."""

    def __init__(self) -> None:
        self.empty_since: float | None = 0.0
        self.timers: list[tuple[float, int, Callable[[float], None]]] = []
        self.looks = 0

    def at(self, when: float, callback: Callable[[float], None]) -> None:
        self.looks += 1
        heapq.heappush(self.timers, (when, self.looks, callback))

    def pass_to(self, now: float) -> None:
        while self.timers and self.timers[0][0] <= now:
            when, _, callback = heapq.heappop(self.timers)
            callback(when)


@pytest.fixture
def loop() -> Clockwork:
    return Clockwork()


def test_it_leaves_when_the_period_is_over_and_not_before(loop: Clockwork) -> None:
    left: list[float] = []
    IdleExit(loop, left.append).set(10.0, 0.0)
    loop.pass_to(9.999)
    assert left == []
    loop.pass_to(10.0)
    assert left == [10.0]
    loop.pass_to(100.0)
    assert left == [10.0]


def test_a_moment_that_rounding_makes_a_little_too_early_is_the_moment(loop: Clockwork) -> None:
    """Looked at again in the same moment, and again, the loop would never come out of its timers."""
    left: list[float] = []
    since, idle_s = 7.3, 0.1
    assert since + idle_s - since < idle_s
    loop.empty_since = since
    IdleExit(loop, left.append).set(idle_s, since)
    when, _, callback = heapq.heappop(loop.timers)
    callback(when)
    assert (left, loop.timers) == ([when], [])


def test_the_period_counts_from_the_last_one_who_left(loop: Clockwork) -> None:
    left: list[float] = []
    IdleExit(loop, left.append).set(10.0, 0.0)
    loop.pass_to(9.0)
    loop.empty_since = None
    loop.pass_to(500.0)
    assert left == []
    loop.empty_since = 503.0
    loop.pass_to(512.9)
    assert left == []
    loop.pass_to(513.0)
    assert left == [513.0]


def test_a_busy_bus_looks_once_per_period(loop: Clockwork) -> None:
    loop.empty_since = None
    IdleExit(loop, lambda now: None).set(60.0, 0.0)
    loop.pass_to(6000.0)
    assert loop.looks == 101


def test_the_period_may_change_and_end(loop: Clockwork) -> None:
    left: list[float] = []
    idle = IdleExit(loop, left.append)
    idle.set(None, 0.0)
    assert loop.timers == []
    idle.set(10.0, 1.0)
    idle.set(100.0, 2.0)
    loop.pass_to(99.0)
    assert left == []
    idle.set(None, 99.0)
    loop.pass_to(1000.0)
    assert left == []
    idle.set(20.0, 1000.0)
    assert left == [1000.0]
