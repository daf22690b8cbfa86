"""A daemon that is stopped is noticed under both shells; a client that is stopped harms nobody and does not judge the bus."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment
from tests.threaded import WAIT_S, Connect, connecting, run, until, wait_for


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


def test_a_stopped_daemon_is_noticed(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, name="me", heartbeat=0.5)
        sub = await bus.subscribe("t", notices=True)
        daemon.signal(signal.SIGSTOP)
        try:
            with pytest.raises(ipcbus_client.ConnectionLost, match="no sign of life"):
                await bus.request("bus/stats", timeout=600.0)
            assert bus.state.value == "reconnecting"
        finally:
            daemon.signal(signal.SIGCONT)
        await bus.state.wait_for("connected", WAIT_S)
        await bus.publish("t", "back")
        assert isinstance(await sub.get(WAIT_S), ipcbus_client.Reconnected)
        assert (await sub.get(WAIT_S)).data == "back"
        await bus.close()

    run(body())


def test_also_while_nothing_is_awaited(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, deaf = await connect(daemon.address, heartbeat=0.3), await connect(daemon.address, heartbeat=0)
        daemon.signal(signal.SIGSTOP)
        try:
            assert await bus.state.wait_for("reconnecting", WAIT_S) == "reconnecting"
        finally:
            daemon.signal(signal.SIGCONT)
        await bus.state.wait_for("connected", WAIT_S)
        assert bus.epoch > 0
        assert (deaf.epoch, deaf.state.value) == (0, "connected")
        await bus.close()
        await deaf.close()

    run(body())


def test_a_lively_bus_is_left_alone(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, heartbeat=1.0)
        received = bus.stats_local()["received"]
        await until(lambda: bus.stats_local()["received"] > received)  # a PONG
        assert (bus.epoch, bus.state.value) == (0, "connected")
        await bus.close()

    run(body())


def test_wrong_heartbeats(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        for wrong in (-1, 0.001, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="heartbeat"):
                await connect(daemon.address, heartbeat=wrong)

    run(body())


CLIENTS = {
    "blocking": """
import sys, ipcbus_client
with ipcbus_client.connect(sys.argv[1], heartbeat=0.5) as bus:
    sub = bus.subscribe("t")
    print("ready", flush=True)
    seen = 0
    for message in sub:
        if message.data == "end":
            break
        seen += 1
    print(bus.epoch, seen, sub.lost, flush=True)
""",
    "aio": """
import asyncio, sys
from ipcbus_client import aio
async def main():
    async with aio.connect(sys.argv[1], heartbeat=0.5) as bus:
        sub = await bus.subscribe("t")
        print("ready", flush=True)
        seen = 0
        async for message in sub:
            if message.data == "end":
                break
            seen += 1
        print(bus.epoch, seen, sub.lost, flush=True)
asyncio.run(main())
""",
}


@pytest.fixture(params=["blocking", "aio"])
def subscriber(request: pytest.FixtureRequest, daemon_factory: DaemonFactory) -> Iterator[tuple[RunningDaemon, subprocess.Popen[str]]]:
    """A daemon and a process that has subscribed to ``t`` there."""
    daemon = daemon_factory(config="[limits]\nlane_stall_s = 0.5\n")
    command = [sys.executable, "-c", CLIENTS[request.param], daemon.address]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield daemon, process
            process.wait(WAIT_S)
        finally:
            process.kill()


def test_a_stopped_client_does_not_judge_the_bus(subscriber: tuple[RunningDaemon, subprocess.Popen[str]]) -> None:
    daemon, process = subscriber
    with ipcbus_client.connect(daemon.address) as bus:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(8):  # 1.6 s: more than its patience
            bus.publish("t", "while it sleeps")
            signal.sigtimedwait([], 0.2)
        process.send_signal(signal.SIGCONT)
        bus.publish("t", "end")
        assert process.stdout is not None
        assert process.stdout.readline() == "0 8 0\n"


def test_a_stopped_client_does_not_stall_others(subscriber: tuple[RunningDaemon, subprocess.Popen[str]]) -> None:
    daemon, process = subscriber
    total, payload = 800, bytes(10_000)  # 8 MB: much over what may wait for the one that is stopped
    with ipcbus_client.connect(daemon.address) as bus, ipcbus_client.connect(daemon.address) as other:
        came: list[int] = []
        good = other.subscribe("t", lambda message: came.append(len(message.payload)))
        bus.publish("t", payload)
        process.send_signal(signal.SIGSTOP)
        for _ in range(total - 1):
            bus.publish("t", payload)
        bus.flush(WAIT_S)  # held for 0.5 s, the lane_stall_s, not for as long as the process is stopped
        wait_for(lambda: len(came) == total, "the other subscriber did not get all")
        assert good.lost == 0
        process.send_signal(signal.SIGCONT)
        bus.publish("t", "end")
        assert process.stdout is not None
        epoch, seen, lost = map(int, process.stdout.readline().split())
        assert (epoch, seen + lost) == (0, total)
        assert lost > 0
