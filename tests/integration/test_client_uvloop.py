"""The asyncio shell on uvloop: the same tests as on asyncio's own loop, those of them that run in this process."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.daemons import wait_until
from tests.integration import test_client_end, test_client_fork, test_client_shells, test_client_state
from tests.integration.test_client_end import watcher
from tests.integration.test_client_shells import Connect, _connect_aio

uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed; `pip install -e '.[test]'` does that")

__all__ = ["watcher"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

#: it starts a program that chooses its loop itself
_ELSEWHERE = "test_asyncio_a_program_that_forgot_to_close"
_FIXTURES = {"daemon", "daemon_factory", "short_dir", "watcher", "connect"}


@pytest.fixture(autouse=True)
def on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio.run() is uvloop's."""
    uvloop.run(asyncio.sleep(0))  # the first one opens descriptors that stay
    monkeypatch.setattr(asyncio, "run", uvloop.run)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """connect() of the asyncio shell; afterwards no descriptor of it may be left."""
    before = len(os.listdir("/proc/self/fd"))
    yield _connect_aio
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "a descriptor is left", 20.0)


def _tests_of(module: ModuleType, prefix: str, needed: str) -> dict[str, object]:
    """The tests whose names begin so, and that take the fixture *needed*, under other names."""
    found = {}
    for name, test in vars(module).items():
        if name.startswith(prefix) and name != _ELSEWHERE:
            wanted = set(inspect.signature(test).parameters)
            parameters = {mark.args[0] for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"}
            if needed in wanted and wanted - parameters <= _FIXTURES:
                found[f"{name}_of_{module.__name__.rpartition('_')[2]}"] = test
    return found


globals().update(_tests_of(test_client_shells, "test_", "connect"))
globals().update(_tests_of(test_client_state, "test_", "connect"))
globals().update(_tests_of(test_client_end, "test_asyncio_", "daemon"))
globals().update(_tests_of(test_client_fork, "test_asyncio_", "daemon"))


def test_it_is_uvloop() -> None:
    async def body() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert asyncio.run(body()).partition(".")[0] == "uvloop"


def test_there_are_tests() -> None:
    """No module has lost its prefix, or its fixture's name."""
    counts = {word: sum(name.endswith(f"_of_{word}") for name in globals()) for word in ("shells", "state", "end", "fork")}
    assert counts["shells"] >= 15, counts
    assert min(counts.values()) >= 3, counts
