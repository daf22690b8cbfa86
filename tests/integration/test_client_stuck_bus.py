"""Both shells and a bus that does not read: what a program goes on publishing has a bound, and nothing of what was taken is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.integration.test_client_shells import Connect, connect, run, until

__all__ = ["connect"]  # the fixture

WAIT_S = 20.0
LIMIT = 1_000_000
SIZE = 50_000


@pytest.mark.parametrize("options", [{}, {"retain": True}, {"ttl": 60.0}])
def test_who_catches_the_timeout_and_goes_on_is_refused_at_the_limit(
    connect: Connect, daemon_factory: DaemonFactory, options: dict[str, Any]
) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox_bytes=LIMIT, heartbeat=0, timeout=WAIT_S)
        sub = await bus.subscribe("t.>", retained=False)
        getattr(bus, "inner", bus)._wire.timeout = getattr(bus, "inner", bus)._timeout = 0.01
        daemon.signal(signal.SIGSTOP)
        taken = 0

        async def go_on() -> None:
            nonlocal taken
            while True:
                with contextlib.suppress(ipcbus_client.Timeout):  # it is kept
                    await bus.publish(f"t.{taken}", bytes(SIZE), **options)
                taken += 1
                assert bus.stats_local()["unsent_bytes"] <= LIMIT

        with pytest.raises(ipcbus_client.OutboxFull, match="does not read") as caught:
            await go_on()
        assert caught.value.who == f"t.{taken}"
        with pytest.raises(ipcbus_client.OutboxFull):
            await bus.send("name", bytes(SIZE))
        assert LIMIT - 2 * SIZE < bus.stats_local()["unsent_bytes"] <= LIMIT
        daemon.signal(signal.SIGCONT)
        getattr(bus, "inner", bus)._wire.timeout = getattr(bus, "inner", bus)._timeout = WAIT_S
        await bus.publish(f"t.{taken}", b"last", **options)  # it waits for room
        assert [(await sub.get(WAIT_S)).topic for _ in range(taken + 1)] == [f"t.{n}" for n in range(taken + 1)]
        await bus.flush(WAIT_S)
        assert (bus.stats_local()["unsent"], bus.stats_local()["unknown"]) == (0, 0)
        await bus.close()

    run(body())


def test_the_timeout_names_whom_the_bus_holds_publications_for(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, heartbeat=0, timeout=WAIT_S)
        reader = await connect(daemon.address, heartbeat=0, program="tail")
        await reader.subscribe("log", policy="block", limits={"soft": 20_000, "seconds": 60.0}, window_bytes=1000)
        while not getattr(bus, "inner", bus).holds():
            await bus.publish("log", bytes(1000))
            await bus.flush(WAIT_S)
        getattr(bus, "inner", bus)._wire.timeout = 0.01
        daemon.signal(signal.SIGSTOP)  # as good as one that has parked too much, and at a time that we choose
        who = rf"took nothing for 0.01 s; \d+ bytes .*It holds publications for the subscription 'log' of :{reader.peer_id} \(tail\)"

        async def go_on() -> None:
            while True:
                await bus.publish("t", bytes(SIZE))

        with pytest.raises(ipcbus_client.Timeout, match=who):
            await go_on()
        daemon.signal(signal.SIGCONT)
        await bus.close()
        await reader.close()

    run(body())


def test_many_who_publish_at_once_wait_for_room(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox_bytes=LIMIT, heartbeat=0, timeout=WAIT_S)
        sub = await bus.subscribe("t", retained=False, window_bytes=64 * 1024 * 1024)
        daemon.signal(signal.SIGSTOP)
        inner = getattr(bus, "inner", None)
        with ThreadPoolExecutor(40) as pool:
            if inner is None:
                waits: list[Any] = [asyncio.ensure_future(bus.publish("t", bytes(SIZE))) for _ in range(40)]
            else:
                waits = [asyncio.wrap_future(pool.submit(inner.publish, "t", bytes(SIZE))) for _ in range(40)]
            await until(lambda: bus.stats_local()["unsent_bytes"] > LIMIT - 2 * SIZE)
            assert bus.stats_local()["unsent_bytes"] <= LIMIT
            daemon.signal(signal.SIGCONT)
            await asyncio.gather(*waits)
        for _ in waits:
            assert len((await sub.get(WAIT_S)).payload) == SIZE
        await bus.close()

    run(body())
