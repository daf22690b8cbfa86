"""Fixtures for all tests: real daemons, each in a short temporary directory (a Unix socket's path has at most 107 bytes)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import RunningDaemon

DaemonFactory = Callable[..., RunningDaemon]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory of our own, mode 0700, with a short path."""
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def daemon_factory(short_dir: Path) -> Iterator[DaemonFactory]:
    """Starts daemons with the arguments of RunningDaemon; ends them all after the test. ``at=directory`` starts one where another was."""
    daemons: list[RunningDaemon] = []

    def start(*arguments: str, at: Path | None = None, **options: Any) -> RunningDaemon:
        directory = at or short_dir / str(len(daemons))
        directory.mkdir(mode=0o700, exist_ok=True)
        daemons.append(RunningDaemon(directory, arguments, **options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.finish()


@pytest.fixture
def daemon(daemon_factory: DaemonFactory) -> RunningDaemon:
    """One daemon on a Unix socket."""
    return daemon_factory()
