"""The scenarios of a user's program, on a real daemon: tests/unit/test_testing_scenarios.py runs the same on the bus in memory."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus_client import testing
from tests.scenarios import SCENARIOS, Real


@pytest.mark.parametrize("shell", ["blocking", "aio"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_a_real_daemon(shell: str, scenario: Any) -> None:
    with testing.Daemon() as daemon:
        Real(shell, daemon).run(scenario)
