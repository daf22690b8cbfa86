"""``pytest tests/sim --seeds 5000`` for a long run; ``--seed 17`` and ``--story …`` to see one again."""

from __future__ import annotations

import pytest

SEEDS = 1_000  #: of an ordinary run; tests/stories goes on where they end


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=SEEDS, help="tests/sim: play the seeds 0 … N − 1")
    parser.addoption("--seed", type=int, default=None, help="tests/sim: play this seed only")
    parser.addoption("--story", default=None, help="tests/sim: with --seed: only a part of it, like clients=0+2,faults=0-2,until=3.2")


@pytest.fixture
def seeds(pytestconfig: pytest.Config) -> range:
    """What to play."""
    # a plain `pytest` reads this file too late for its options, then the defaults hold
    one = pytestconfig.getoption("--seed", None)
    return range(pytestconfig.getoption("--seeds", SEEDS)) if one is None else range(one, one + 1)


@pytest.fixture
def story_text(pytestconfig: pytest.Config) -> str | None:
    """The part of a seed that is to be played, if one was said."""
    text: str | None = pytestconfig.getoption("--story", None)
    return text
