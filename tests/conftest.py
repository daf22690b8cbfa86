"""Fixtures for all tests: real daemons, each in a short temporary directory (a Unix socket's path has at most 107 bytes).

And how tests are spread: file by file over some processes, where there are many files; ``-n 0`` runs them in this one.
"""

from __future__ import annotations

import compileall
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import ROOT, RunningDaemon

os.umask(0o022)  # the daemon trusts no file that others may write to, whatever the developer's umask is

pytest_plugins = ["tests.survival.table"]

DaemonFactory = Callable[..., RunningDaemon]

#: Test processes for each core: most tests wait most of the time, for another process or for a clock.
PER_CORE = 2
#: So many files are worth the start of these processes.
MANY_FILES = 8
#: What takes longest, first of all, so that no process is left alone with it at the end.
LONGEST = ("tests/stories/", "tests/conformance/test_live", "tests/survival/", "tests/sim/")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What ``-n auto`` means: 0 is this process, in which also what a test prints can be seen."""
    named = [Path(argument.partition("::")[0]) for argument in config.args]
    files = {file for path in named for file in (path.rglob("test_*.py") if path.is_dir() else [path])}
    return PER_CORE * len(os.sched_getaffinity(0)) if len(files) >= MANY_FILES else 0


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile what the hundreds of processes that the tests start import, also where the environment has them keep nothing."""
    if not hasattr(session.config, "workerinput"):
        for directory in ("ipcbus", "clients/python", "tests"):
            compileall.compile_dir(ROOT / directory, quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((rank for rank, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=rank)


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
