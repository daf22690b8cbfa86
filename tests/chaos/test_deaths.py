"""Death is cheap: whatever is killed at whatever moment of its start or end, the next start works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import ROOT, environment

LIMIT_S = 120.0


@pytest.mark.parametrize(
    ("what", "on_the_way"),
    [
        ("start", ["write in _create", "link in _create", "flock in _lock", "pwrite in _lock", "bind in _listen_unix"]),
        ("stop", ["close in close", "unlink in stop", "ftruncate in close"]),
        ("starter", ["mkdir in makedirs", "flock in _lock", "fork_exec in _execute_child", "flock in start"]),
    ],
)
def test_killed_before_each_system_call(short_dir: Path, what: str, on_the_way: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.doomed", what, str(short_dir / "home")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "killed on:\n" + done.stdout
    calls = done.stdout.splitlines()
    assert not [call for call in on_the_way if call not in calls], calls
