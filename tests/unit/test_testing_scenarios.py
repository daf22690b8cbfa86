"""The scenarios of a user's program, on the bus in memory: tests/integration/test_testing_scenarios.py runs the same on a real daemon."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus_client import testing
from tests.scenarios import SCENARIOS, Memory


@pytest.mark.parametrize("shell", ["blocking", "aio"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_the_bus_in_memory(shell: str, scenario: Any) -> None:
    with testing.FakeBus() as kit:
        Memory(shell, kit).run(scenario)
