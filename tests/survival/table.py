"""A pytest plugin: what the witness saw, at the end of a run. Not in conftest.py, which the process with the terminal may not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.survival.witness import Report

REPORTS: pytest.StashKey[list[Report]] = pytest.StashKey()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of ``-n`` hands what its witness saw to the one with the terminal."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["survival"] = [report.as_dict() for report in session.config.stash.get(REPORTS, [])]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found = getattr(node, "workeroutput", {}).get("survival", [])
    node.config.stash.setdefault(REPORTS, []).extend(map(Report.from_dict, found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(REPORTS, [])
    if not found:
        return
    terminalreporter.section("what the others saw of an attack (not asserted: it depends on the machine)")
    for line in Report.table(found):
        terminalreporter.write_line(line)
    if file := config.getoption("--survival-json", None):
        Path(file).write_text(json.dumps([report.as_dict() for report in found], indent=1) + "\n")
