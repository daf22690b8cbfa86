"""Arguments that mean nothing are an error at once, in both shells: nothing is ignored, nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ipcbus_client import ConnectError
from tests.daemons import RunningDaemon
from tests.threaded import SHELLS, Connect, connecting, run


@pytest.fixture(params=SHELLS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """connect() of a shell."""
    with connecting(request.param) as made:
        yield made


def test_how_a_callback_runs_needs_one(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            wrong: list[dict[str, Any]] = [{"concurrency": 2}, {"key": lambda message: message.topic}, {"errors": "raise"}]
            for options in wrong:
                with pytest.raises(ValueError, match=f"{next(iter(options))} without a callback"):
                    await bus.subscribe("t", **options)
            for concurrency in (None, "3", True, 1.0):
                with pytest.raises(TypeError, match=f"concurrency of {concurrency!r}: it is a whole number"):
                    await bus.subscribe("t", print, concurrency=concurrency)
                with pytest.raises(TypeError, match=f"concurrency of {concurrency!r}: it is a whole number"):
                    await bus.subscribe("t", concurrency=concurrency)
            assert bus.stats_local()["lanes"] == 0
            await bus.subscribe("t", concurrency=1, key=None, errors="log")
            await bus.subscribe("t", print, concurrency=2, key=len, errors="raise")
            assert bus.stats_local()["lanes"] == 2

    run(body())


@pytest.mark.parametrize("option", ["reconnect", "autostart"])
@pytest.mark.parametrize("value", ["no", "", 0, 1, [], 1.0])
def test_yes_and_no_are_bools(connect: Connect, option: str, value: Any) -> None:
    async def body() -> None:
        with pytest.raises(TypeError, match=f"^{option}="):
            await connect("unix:/nowhere", timeout=0, **{option: value})

    run(body())


def test_reconnect_is_yes_or_no(connect: Connect) -> None:
    async def body() -> None:
        with pytest.raises(TypeError, match="reconnect=None: it is True or False"):
            await connect("unix:/nowhere", timeout=0, reconnect=None)
        with pytest.raises(ConnectError):
            await connect("unix:/nowhere", timeout=0, reconnect=False, autostart=False)

    run(body())
