"""``pytest tests/chaos --chaos-seconds 3600`` for a long run, ``--chaos-seed 17`` to play one again."""

from __future__ import annotations

import pytest

SECONDS = 6.0  #: of events in an ordinary run
SEED = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", type=float, default=SECONDS, help="tests/chaos: seconds of events, in acts of a minute")
    parser.addoption("--chaos-seed", type=int, default=SEED, help="tests/chaos: the seed of the first act; each further one has the next")


@pytest.fixture
def chaos_seconds(request: pytest.FixtureRequest) -> float:
    """How long the daemon and its programs are troubled."""
    # a plain `pytest` reads this file too late for its options, then the defaults hold
    return float(request.config.getoption("--chaos-seconds", SECONDS))


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """Which events, and when."""
    return int(request.config.getoption("--chaos-seed", SEED))
