"""``pytest tests/survival --survival-seconds 30 --survival-json FILE`` for longer attacks, and the witness's figures as JSON."""

from __future__ import annotations

import pytest

from tests.survival import table
from tests.survival.witness import Report

SECONDS = 0.8  #: of an attack in an ordinary run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--survival-seconds", type=float, default=SECONDS, help="tests/survival: how long each attack is watched")
    parser.addoption("--survival-json", default=None, metavar="FILE", help="tests/survival: write the witness's figures here")


@pytest.fixture(scope="session")
def attack_s(pytestconfig: pytest.Config) -> float:
    """How long an attack is watched."""
    # a plain `pytest` reads this file too late for its options, then the defaults hold
    return float(pytestconfig.getoption("--survival-seconds", SECONDS))


@pytest.fixture(scope="session")
def reports(pytestconfig: pytest.Config) -> list[Report]:
    """What the witness saw, for the table at the end of the run."""
    return pytestconfig.stash.setdefault(table.REPORTS, [])
