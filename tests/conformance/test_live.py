"""The vectors against live daemons over real sockets, a fresh daemon for each case, its input whole, byte by byte and at random splits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import vectors
from .live_bus import Nursery
from .runner import Replay

CASES = [case for case in vectors.load() if case.longest_wait_s <= vectors.LIVE_WAIT_MAX_S]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        one = Nursery(Path(path))
        yield one
        one.close()


@pytest.mark.parametrize("how", vectors.SPLITS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_daemon_does_what_the_vector_says(case: vectors.Case, how: str, nursery: Nursery) -> None:
    with nursery.bus() as bus:
        Replay(case, bus, how).run()
