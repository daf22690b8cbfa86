"""Further seeds of tests/sim, for which its fast part has no time."""

from __future__ import annotations

from tests.sim import many

SEEDS = range(1_000, 2_000)  #: after those of tests/sim


def test_promises_hold() -> None:
    many.judge(SEEDS)
