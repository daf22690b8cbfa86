"""watch() and wait_for_name() of both shells against a real daemon, which is killed, restarted, and too fast for its client."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import dataclass
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


async def told(watch: Any, count: int) -> list[tuple[str, Any, bool, bool]]:
    changes = [await watch.get(WAIT_S) for _ in range(count)]
    return [(change.topic, change.data, change.removed, change.initial) for change in changes]


def test_the_present_and_then_each_change(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.publish("room.a", 1, retain=True)
        await bus.publish("room.b", [2], retain=True)
        await bus.publish("room.c", "never kept")
        async with await bus.watch("room.*") as watch:
            assert watch.state == {"room.a": 1, "room.b": [2]}
            assert (watch.pattern, watch.closed) == ("room.*", False)
            assert await told(watch, 2) == [("room.a", 1, False, True), ("room.b", [2], False, True)]
            await bus.publish("room.c", "still not kept")
            await bus.publish("room.a", 3, retain=True)
            await bus.publish("room.b", b"", retain=True)
            await bus.publish("room.none", b"", retain=True)
            await bus.publish("room.d", 4, retain=True)
            assert await told(watch, 3) == [("room.a", 3, False, False), ("room.b", None, True, False), ("room.d", 4, False, False)]
            assert watch.state == {"room.a": 3, "room.d": 4}
            assert watch.messages["room.a"].sender == bus.peer_id
            with pytest.raises(ipcbus_client.Timeout):
                await watch.get(0.01)
        assert watch.closed
        assert [change async for change in watch] == []
        with pytest.raises(ipcbus_client.Closed):
            await watch.get()
        with pytest.raises(ipcbus_client.BadName):
            await bus.watch("a..b")
        await bus.close()
        with pytest.raises(ipcbus_client.Closed):
            await bus.watch("a")

    run(body())


def test_more_than_a_window(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        for n in range(300):
            await bus.publish(f"big.{n}", bytes(20_000), retain=True)
        watch = await bus.watch("big.>")
        assert len(watch.state) == 300
        assert {change[0] for change in await told(watch, 300)} == {f"big.{n}" for n in range(300)}
        empty = await bus.watch("none.>")
        assert empty.state == {}
        await bus.publish("big.0", "later", retain=True)
        assert await told(watch, 1) == [("big.0", "later", False, False)]
        await bus.close()

    run(body())


@dataclass
class Reading:
    celsius: float


def test_typed(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.publish("t.a", Reading(21.5), retain=True)
        watch = await bus.watch("t.*", type=Reading)
        assert watch.state == {"t.a": Reading(21.5)}
        await bus.publish("t.b", "warm", retain=True)
        await watch.get(WAIT_S)
        wrong = await watch.get(WAIT_S)
        with pytest.raises(ipcbus_client.PayloadError):
            wrong.data  # noqa: B018
        await bus.close()

    run(body())


def test_the_difference_after_a_reconnect(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        watcher = await connect(daemon.address)
        async with ipcbus_client.aio.connect(daemon.address, reconnect=False) as bus:
            for topic in ("s.same", "s.other", "s.gone"):
                await bus.publish(topic, topic, retain=True)
            watch = await watcher.watch("s.*")
            await told(watch, 3)
            daemon.kill()
        await watcher.state.wait_for("reconnecting", WAIT_S)
        daemon = daemon_factory(at=daemon.directory)
        async with ipcbus_client.aio.connect(daemon.address) as bus:
            await bus.publish("s.late", 1, retain=True)
            await bus.flush()
            changes = {change[0]: change for change in await told(watch, 4)}
            assert watch.state == {"s.late": 1}
            assert changes == {
                "s.same": ("s.same", None, True, False),
                "s.other": ("s.other", None, True, False),
                "s.gone": ("s.gone", None, True, False),
                "s.late": ("s.late", 1, False, False),
            }
        await watcher.close()

    run(body())


def test_after_a_loss_the_state_is_right_again(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory(config="[limits]\nlane_stall_s = 0.1\n")
        watcher, publisher = await connect(daemon.address), await connect(daemon.address)
        watch = await watcher.watch("s.*")
        for n in range(600):  # 6 MB, while nobody looks: much over what may wait for the lane
            await publisher.publish(f"s.{n % 50}", n.to_bytes(2, "big") + bytes(10_000), retain=True)
        for n in range(10):
            await publisher.publish(f"s.{n}", b"", retain=True)
        await publisher.flush(WAIT_S)
        expected = {f"s.{n % 50}": n.to_bytes(2, "big") + bytes(10_000) for n in range(550, 600) if n % 50 >= 10}
        while watch.state != expected:
            await watch.get(WAIT_S)
        assert watcher.stats_local()["lost"] > 0
        await publisher.publish("s.10", "after", retain=True)
        while (change := (await told(watch, 1))[0]) != ("s.10", "after", False, False):
            assert change[2], change  # removals of the comparison, which the state has already
        await publisher.close()
        await watcher.close()

    run(body())


def test_wait_for_name(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, owner = await connect(daemon.address), await connect(daemon.address)
        for other in ("mm", "na", "nameless", "namf", "nan"):
            await owner.own(other)
        with pytest.raises(ipcbus_client.Timeout, match="nobody owned 'name'"):
            await bus.wait_for_name("name", 0.05)
        with pytest.raises(ipcbus_client.BadName):
            await bus.wait_for_name("no name")
        waiting = asyncio.create_task(bus.wait_for_name("name"))
        await asyncio.sleep(0.1)
        await owner.own("name", mode="queue")
        assert await waiting == owner.peer_id
        assert await bus.wait_for_name("name", WAIT_S) == owner.peer_id
        waiting = asyncio.create_task(bus.wait_for_name("later"))
        await asyncio.sleep(0.1)
        daemon.kill()
        await bus.state.wait_for("reconnecting", WAIT_S)
        daemon_factory(at=daemon.directory)
        await owner.state.wait_for("connected", WAIT_S)
        await owner.own("later")
        assert await waiting == owner.peer_id
        waiting = asyncio.create_task(bus.wait_for_name("never"))
        await asyncio.sleep(0.1)
        await bus.close()
        with pytest.raises(ipcbus_client.Closed):
            await waiting
        await owner.close()

    run(body())


def test_wait_for_name_ends_with_its_time_whatever_the_bus_does(connect: Connect, daemon_factory: DaemonFactory) -> None:
    """Listening, looking and leaving: none of it may take the patience of the bus object, which is an hour here."""

    async def body() -> None:
        daemon = daemon_factory()
        bus, owner = await connect(daemon.address, timeout=3600, heartbeat=0), await connect(daemon.address, heartbeat=0)
        daemon.signal(signal.SIGSTOP)
        with pytest.raises(ipcbus_client.Timeout, match=r"nobody owned 'name' within 0\.1 s; the bus did not answer") as caught:
            await bus.wait_for_name("name", 0.1)
        assert (caught.value.who, caught.value.what) == ("name", "wait_for_name")
        waiting = asyncio.create_task(bus.wait_for_name("name"))
        await asyncio.sleep(0.1)
        daemon.signal(signal.SIGCONT)
        await owner.own("name")
        assert await waiting == owner.peer_id
        assert (await bus.stats())["lanes"] == 0
        daemon.kill()
        await bus.state.wait_for("reconnecting", WAIT_S)
        with pytest.raises(ipcbus_client.Timeout, match="not connected"):
            await bus.wait_for_name("name", 0.1)
        waiting = asyncio.create_task(bus.wait_for_name("name", WAIT_S))
        daemon_factory(at=daemon.directory)
        assert await waiting == owner.peer_id
        await bus.close()
        await owner.close()

    run(body())


def test_from_a_callback(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, name="me")
        await bus.publish("s.a", 1, retain=True)
        found: list[Any] = []
        if hasattr(bus, "inner"):

            def look(message: Any) -> None:
                with bus.inner.watch("s.*") as watch:
                    found.append((watch.state, watch.get(WAIT_S).topic))
                found.append(bus.inner.wait_for_name("me", WAIT_S))
                found.append(bus.inner.state.wait_for("connected", WAIT_S))

            await bus.subscribe("go", look)
        else:

            async def look_async(message: Any) -> None:
                async with await bus.watch("s.*") as watch:
                    found.append((watch.state, (await watch.get(WAIT_S)).topic))
                found.append(await bus.wait_for_name("me", WAIT_S))
                found.append(await bus.state.wait_for("connected", WAIT_S))

            await bus.subscribe("go", look_async)
        await bus.publish("go")
        await until(lambda: len(found) == 3)
        assert found == [({"s.a": 1}, "s.a"), bus.peer_id, "connected"]
        await bus.close()

    run(body())


def test_several_share_the_changes(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        watch = await bus.watch("s")
        seen: list[list[int]] = [[], [], []]

        async def take(into: list[int]) -> None:
            async for change in watch:
                into.append(change.data)

        takers = [asyncio.create_task(take(into)) for into in seen]
        for n in range(300):
            await bus.publish("s", n, retain=True)
        await until(lambda: sum(map(len, seen)) == 300)
        assert sorted(n for into in seen for n in into) == list(range(300))
        assert all(into == sorted(into) for into in seen)
        assert watch.state == {"s": 299}
        await watch.close()
        await asyncio.gather(*takers)
        await bus.close()

    run(body())


def test_a_cancelled_wait_loses_no_change(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with ipcbus_client.aio.connect(daemon.address) as bus, await bus.watch("s") as watch:
            changes = bus.state.changes()
            assert await anext(changes) == "connected"
            for n in range(100):
                waits = [asyncio.create_task(watch.get()), asyncio.create_task(anext(changes))]
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                await bus.publish("s", n, retain=True)
                if n % 2:
                    await bus.flush()
                taken = []
                for wait in waits:
                    wait.cancel()
                    (one,) = await asyncio.gather(wait, return_exceptions=True)
                    taken += [one] if isinstance(one, ipcbus_client.Change) else []
                assert [change.data for change in taken or [await watch.get(WAIT_S)]] == [n]

    run(body())
