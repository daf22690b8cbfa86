"""``pytest tests/integration/test_client_kills.py --kills 100`` for a long run."""

from __future__ import annotations

import pytest

KILLS = 5  #: of an ordinary run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=KILLS, help="tests/integration: how often the daemon ends under traffic")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often the daemon ends under traffic."""
    # a plain `pytest` reads this file too late for its options, then the default holds
    return int(request.config.getoption("--kills", KILLS))
