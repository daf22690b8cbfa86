"""``pytest tests/survival --survival-seconds 30 --survival-json FILE`` for longer attacks, and the witness's figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.survival.witness import Report

SECONDS = 0.8  #: of an attack in an ordinary run

_REPORTS: pytest.StashKey[list[Report]] = pytest.StashKey()


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
    return pytestconfig.stash.setdefault(_REPORTS, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of ``-n`` hands what its witness saw to the one with the terminal."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["survival"] = [report.as_dict() for report in session.config.stash.get(_REPORTS, [])]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found = getattr(node, "workeroutput", {}).get("survival", [])
    node.config.stash.setdefault(_REPORTS, []).extend(map(Report.from_dict, found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(_REPORTS, [])
    if not found:
        return
    terminalreporter.section("what the others saw of an attack (not asserted: it depends on the machine)")
    for line in Report.table(found):
        terminalreporter.write_line(line)
    if file := config.getoption("--survival-json", None):
        Path(file).write_text(json.dumps([report.as_dict() for report in found], indent=1) + "\n")
