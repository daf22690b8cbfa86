"""``bus.state`` in both shells: what it is, waiting for it, being told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, Connect, connecting, run, until


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


def test_every_change_in_order(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        called: list[str] = []
        handle = bus.state.on_change(called.append)
        unwanted = bus.state.on_change(called.append)
        unwanted.close()
        unwanted.close()
        seen: list[str] = []

        async def look() -> None:
            async for value in bus.state.changes():
                seen.append(value)

        looking = asyncio.create_task(look())
        await until(lambda: seen == ["connected"])
        waiting = asyncio.create_task(bus.state.wait_for({"reconnecting", "closed"}, WAIT_S))
        await asyncio.sleep(0)
        daemon.kill()
        assert await waiting == "reconnecting"
        daemon_factory(at=daemon.directory)
        assert await bus.state.wait_for("connected", WAIT_S) == "connected" == bus.state.value
        await bus.close()
        await asyncio.wait_for(looking, WAIT_S)
        assert seen == ["connected", "reconnecting", "connected", "closed"]
        await until(lambda: called == seen[1:])
        handle.close()
        assert [value async for value in bus.state.changes()] == ["closed"]

    run(body())


def test_the_state_is_compared_as_its_value(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, other = await connect(daemon.address), await connect(daemon.address)
        ours, others = (getattr(one, "inner", one) for one in (bus, other))
        assert ours.state == "connected"
        assert ours.state != "closed"
        assert ours.state == ours.state
        assert ours.state != others.state
        assert ours.state != 1
        assert f"{ours.state}" == "connected"
        with pytest.raises(TypeError, match="unhashable"):
            hash(ours.state)
        await bus.close()
        await other.close()
        assert ours.state == "closed"

    run(body())


def test_waits_that_cannot_end_well_end(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        assert await bus.state.wait_for("connected", 0) == "connected"
        with pytest.raises(ipcbus_client.Timeout):
            await bus.state.wait_for("reconnecting", 0.01)
        for wrong in ("up", set(), {"connected", "gone"}):
            with pytest.raises(ValueError, match="the states of a bus are"):
                await bus.state.wait_for(wrong)
        with pytest.raises(ValueError, match="timeout"):
            await bus.state.wait_for("connected", -1)
        waiting = asyncio.create_task(bus.state.wait_for("reconnecting"))
        changes = bus.state.changes()
        assert await anext(aiter(changes)) == "connected"
        blocked = asyncio.create_task(_collect(changes))
        await asyncio.sleep(0.05)
        await changes.close()
        assert await blocked == []
        await bus.close()
        with pytest.raises(ipcbus_client.Closed):
            await waiting
        with pytest.raises(ipcbus_client.Closed):
            await bus.state.wait_for("connected")
        with pytest.raises(ipcbus_client.Closed):
            bus.state.on_change(print)
        assert await bus.state.wait_for("closed") == "closed"

    run(body())


async def _collect(items: Any) -> list[Any]:
    return [item async for item in items]


def test_what_ended_the_bus_ends_the_wait(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, reconnect=False)
        waiting = asyncio.create_task(bus.state.wait_for("reconnecting"))
        await asyncio.sleep(0.05)
        daemon.kill()
        with pytest.raises(ipcbus_client.ConnectionLost):
            await waiting
        await bus.close()

    run(body())


def test_callbacks_may_fail_and_use_the_bus(connect: Connect, daemon_factory: DaemonFactory, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        where: list[tuple[str, str, bool]] = []

        def note(value: str) -> None:
            where.append((value, bus.state.value, threading.current_thread() is threading.main_thread()))
            bus.stats_local()
            if value == "reconnecting":
                raise KeyError("mine")

        bus.state.on_change(note)
        daemon.kill()
        await bus.state.wait_for("reconnecting", WAIT_S)
        daemon_factory(at=daemon.directory)
        await until(lambda: len(where) == 2)
        assert [value for value, _, _ in where] == ["reconnecting", "connected"]
        assert where[1][2] is not hasattr(bus, "inner")  # the worker's thread, or the loop's
        assert bus.stats_local()["handler_errors"] == 1
        await bus.close()

    run(body())
    assert "KeyError" in caplog.text


def test_asyncio_callbacks_are_plain_functions(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with ipcbus_client.aio.connect(daemon.address) as bus:

            async def unfit(value: str) -> None:
                raise AssertionError(value)

            with pytest.raises(TypeError, match="plain function"):
                bus.state.on_change(unfit)

    run(body())
