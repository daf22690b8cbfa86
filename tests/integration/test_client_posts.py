"""Both shells against a real daemon: confirm, time to live, wills, bound values, and what a bus has again after a restart."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment
from tests.integration.test_client_shells import Connect, connect, run, until

__all__ = ["connect"]  # the fixture

WAIT_S = 20.0

#: A program that has a will and a presence, and does what its standard input says.
CHILD = """
import sys, ipcbus_client
bus = ipcbus_client.connect(sys.argv[1])
bus.will("status", "crashed", retain=True)
bus.will("dropped", "never")
bus.drop_will("dropped")
bus.publish("status", "running", retain=True)
bus.publish("present", "here", retain=True, bound=True)
bus.flush()
print(bus.peer_id, flush=True)
sys.stdin.readline()
bus.close()
"""


def start_child(daemon: RunningDaemon) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, daemon.address], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def cut(bus: Any) -> None:
    """End the connection as a fault would, without BYE."""
    inner = getattr(bus, "inner", bus)
    if inner is bus:
        inner._wire.drop("cut by the test")
    else:
        with inner._lock:
            inner._wire.drop("cut by the test")


def test_confirm_says_how_many_took_it(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        assert await bus.publish("t", 1) is None
        assert await bus.publish("t", 1, confirm=True) == 0
        one = await bus.subscribe("t")
        await bus.subscribe("*", group="g")
        await bus.subscribe("*", group="g")
        assert await bus.publish("t", 2, confirm=True, headers={"h": 1}, ttl=60) == 2
        message = await one.get(WAIT_S)
        assert (message.data, message.headers, message.retained, message.sender) == (2, {"h": 1}, False, bus.peer_id)
        for n in range(50):
            await bus.publish("t", n)
        assert await bus.publish("t", "last", confirm=True, retain=True) == 2
        assert [(await one.get(WAIT_S)).data for _ in range(51)] == [*range(50), "last"]
        for wrong in ({"ttl": 0}, {"bound": True}):
            with pytest.raises(ValueError, match=r"ttl|retain"):
                await bus.publish("t", 1, **wrong)
        await bus.close()
        with pytest.raises(ipcbus_client.Closed):
            await bus.publish("t", 1, confirm=True)

    run(body())


def test_confirm_fails_with_the_connection_and_is_not_sent_again(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        daemon.signal(signal.SIGSTOP)
        killer = threading.Timer(0.3, daemon.kill)
        killer.start()
        with pytest.raises(ipcbus_client.ConnectionLost):
            await bus.publish("t", "unknown", confirm=True)
        killer.join()
        daemon_factory(at=daemon.directory)
        assert await bus.publish("t", "next", confirm=True) == 1  # it waits for the connection
        assert (await sub.get(WAIT_S)).data == "next"
        await bus.close()

    run(body())


def test_what_waits_too_long_is_lost_and_said(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t", window_bytes=1)
        await bus.publish("t", "fills the window")
        await bus.publish("t", "too old", ttl=0.05)
        await bus.publish("t", "new", ttl=3600)
        await bus.flush()
        await asyncio.sleep(0.1)
        assert [(await sub.get(WAIT_S)).data for _ in range(2)] == ["fills the window", "new"]
        assert sub.lost == 1
        stats = await bus.stats()
        assert (stats["expired_messages"], stats["lost"]) == (1, 0)
        await bus.close()

    run(body())


def test_what_waits_too_long_for_a_bus_is_dropped_and_counted(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        daemon.kill()
        await until(lambda: bus.state.value == "reconnecting")
        await bus.publish("t", "too old", ttl=0.01)
        await bus.publish("t", "in time", ttl=3600)
        await asyncio.sleep(0.05)
        daemon_factory(at=daemon.directory)
        assert (await sub.get(WAIT_S)).data == "in time"
        assert bus.stats_local()["outbox_expired"] == 1
        await bus.close()

    run(body())


def test_get(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        assert await bus.get("t") is None
        await bus.publish("t", {"a": 1}, retain=True, headers={"h": 1})
        message = await bus.get("t")
        assert (message.topic, message.data, message.headers, message.retained) == ("t", {"a": 1}, {"h": 1}, True)
        assert message.sender == bus.peer_id
        await bus.publish("t", b"raw", retain=True)
        assert (await bus.get("t")).data == b"raw"
        with pytest.raises(ipcbus_client.PayloadError):
            (await bus.get("t", type=int)).data  # noqa: B018  # looking is what raises
        await bus.publish("t", b"", retain=True)
        assert await bus.get("t") is None
        await bus.publish("t", 5, retain=True, ttl=0.05)
        while await bus.get("t") is not None:
            await asyncio.sleep(0.01)
        with pytest.raises(ipcbus_client.BadName):
            await bus.get("a.*")
        await bus.close()

    run(body())


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_what_a_program_leaves_behind(connect: Connect, daemon: RunningDaemon, end: str) -> None:
    async def body() -> None:
        with start_child(daemon) as child:
            assert child.stdout is not None
            peer = int(await asyncio.to_thread(child.stdout.readline))
            bus = await connect(daemon.address)
            sub = await bus.subscribe(">")
            assert {(await sub.get(WAIT_S)).data for _ in range(2)} == {"running", "here"}
            if end == "killed":
                child.kill()
            else:
                child.communicate("go\n")
        gone = await sub.get(WAIT_S)
        assert (gone.topic, gone.payload, gone.retained, gone.sender) == ("present", b"", True, peer)
        if end == "killed":
            will = await sub.get(WAIT_S)
            assert (will.topic, will.data, will.retained, will.sender) == ("status", "crashed", True, peer)
        await bus.publish("fence", 1)
        assert (await sub.get(WAIT_S)).topic == "fence"
        assert (await bus.get("status")).data == ("crashed" if end == "killed" else "running")
        assert await bus.get("present") is None
        await bus.close()

    run(body())


@pytest.mark.parametrize(("count", "fits"), [(99, True), (100, True), (101, False)])
def test_as_many_wills_as_the_bus_allows(connect: Connect, daemon: RunningDaemon, count: int, fits: bool) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        for n in range(count - 1):
            await bus.will(f"w{n}", n)
        if fits:
            await bus.will("last", 1)
        else:
            with pytest.raises(ipcbus_client.Refused, match=r"limits\.max_wills"):
                await bus.will("last", 1)
        with pytest.raises(ipcbus_client.PayloadError):
            await bus.will("w0", bytes(1 << 20))
        await bus.drop_will("never.set")
        await bus.close()

    run(body())


def test_a_restarted_daemon_has_the_retained_values_again(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        await bus.publish("a", "old", retain=True)
        await bus.publish("a", "kept", retain=True, headers={"h": 1})
        await bus.publish("b", "bound", retain=True, bound=True)
        await bus.publish("large", bytes(2_000_000), retain=True)
        await bus.publish("short", 1, retain=True, ttl=0.01)
        await bus.publish("removed", 1, retain=True)
        await bus.publish("removed", b"", retain=True)
        sub = await bus.subscribe("order", retained=False)
        await bus.flush()
        daemon.kill()
        await until(lambda: bus.state.value == "reconnecting")
        await bus.publish("order", "waited")
        await asyncio.sleep(0.02)
        daemon_factory(at=daemon.directory)
        assert (await sub.get(WAIT_S)).data == "waited"
        other = await connect(daemon.address)  # what waited came after the values, so they are there
        assert ((await other.get("a")).data, (await other.get("a")).headers) == ("kept", {"h": 1})
        assert (await other.get("b")).data == "bound"
        assert len((await other.get("large")).data) == 2_000_000
        assert await other.get("short") is None
        assert await other.get("removed") is None
        await bus.close()
        assert await other.get("b") is None
        assert (await other.get("a")).data == "kept"
        await other.close()

    run(body())


def test_a_reconnect_never_undoes_what_others_published_since(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, other = await connect(daemon.address), await connect(daemon.address)
        await bus.publish("mine", 1, retain=True, bound=True)
        await bus.publish("theirs", 1, retain=True)
        await bus.will("status", "offline", retain=True)
        await bus.publish("status", "online", retain=True)
        await other.flush()
        await bus.flush()
        await other.publish("theirs", 2, retain=True, confirm=True)
        sub = await other.subscribe(">", retained=False)
        await cut(bus)
        await until(lambda: bus.epoch == 1 and bus.state.value == "connected")
        await bus.flush()
        seen = [(message.topic, message.data) for message in [await sub.get(WAIT_S) for _ in range(4)]]
        assert seen == [("mine", None), ("status", "offline"), ("mine", 1), ("status", "online")]
        assert (await other.get("theirs")).data == 2
        assert (await other.get("mine")).sender == bus.peer_id
        await bus.close()
        assert (await other.get("status")).data == "online"
        await other.close()

    run(body())


def test_a_held_connection_is_over_before_its_successor_begins(connect: Connect, daemon_factory: DaemonFactory) -> None:
    """The daemon does not read a held connection, so it cannot see that it ended, nor what stands in it unread: neither may come later."""

    async def body() -> None:
        daemon = daemon_factory(config="[limits]\nlane_soft_bytes = 1000\nlane_stall_s = 600\n")
        bus, other = await connect(daemon.address), await connect(daemon.address)
        await other.subscribe("flood", window_bytes=1)

        async def held() -> bool:
            return any(peer["held"] for peer in await other.peers())

        await bus.will("p", "will", retain=True)  # before the first publication: once held, it gets no answer
        while not await held():
            await bus.publish("flood", bytes(1000))
        await bus.publish("p", "unread", retain=True, bound=True)
        await until(lambda: not bus.stats_local()["unsent_bytes"])  # what is not written would flood the next connection too
        old = bus.peer_id
        await cut(bus)
        await until(lambda: bus.state.value == "connected" and bus.peer_id != old)
        await bus.publish("p", "fresh", retain=True, confirm=True)
        assert not await held()
        assert old not in [peer["peer"] for peer in await other.peers()]
        message = await other.get("p")
        assert (message.data, message.sender) == ("fresh", bus.peer_id)
        await bus.close()
        await other.close()

    run(body())
