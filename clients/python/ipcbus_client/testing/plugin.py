"""The pytest plugin, registered as ``ipcbus``: a bus in memory or a real daemon for a test, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ._daemon import Daemon
    from ._kit import FakeBus


@pytest.fixture
def ipcbus_bus() -> Iterator[FakeBus]:
    """A bus in memory with a virtual clock (ipcbus_client.testing.FakeBus): ``bus = ipcbus_bus.connect(name="thermostat")``."""
    from ._kit import FakeBus  # here, and below: whoever runs pytest with ipcbus installed loads this module

    with FakeBus() as kit:
        yield kit


@pytest.fixture
def ipcbus_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A real daemon, which connect() without an address finds: address, kill(), stop(), start(), restart(), pause(), resume(), log()."""
    from ._daemon import Daemon

    with Daemon() as daemon:
        monkeypatch.delenv("IPCBUS_BUS", raising=False)
        monkeypatch.setenv("IPCBUS_ADDRESS", daemon.address)
        yield daemon


@pytest.fixture
def ipcbus_address(ipcbus_daemon: Daemon) -> str:
    """The address of a real daemon."""
    return ipcbus_daemon.address
