"""Both shells against a real daemon: what waits without a connection, what is unknown, and how each failure is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.integration.test_client_shells import Connect, connect, run, until

__all__ = ["connect"]  # the fixture

WAIT_S = 20.0


@pytest.mark.parametrize(("policy", "left"), [("drop_oldest", [3, 4]), ("drop_newest", [0, 1])])
def test_what_is_published_without_a_bus_is_dropped_by_the_policy(
    connect: Connect, daemon_factory: DaemonFactory, policy: str, left: list[int]
) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox=policy, outbox_messages=2)
        sub = await bus.subscribe("t", retained=False)
        daemon.kill()
        await until(lambda: bus.peer_id and bus.stats_local()["waiting"] == 0 and _is_down(bus))
        for n in range(5):
            await bus.publish("t", n)
        assert (bus.stats_local()["waiting"], bus.stats_local()["outbox_dropped"]) == (2, 3)
        daemon_factory(at=daemon.directory)
        assert [(await sub.get(WAIT_S)).data for _ in left] == left
        await bus.flush(WAIT_S)
        assert bus.stats_local()["unsent"] == 3
        await bus.close()

    run(body())


def _is_down(bus: Any) -> bool:
    state = getattr(bus, "inner", bus).state
    return bool(state.value == "reconnecting")


@pytest.mark.parametrize("policy", ["raise", "block"])
def test_a_full_outbox_is_an_error_and_keeps_what_it_has(connect: Connect, daemon_factory: DaemonFactory, policy: str) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox=policy, outbox_bytes=1000, timeout=WAIT_S if policy == "raise" else 0.5)
        sub = await bus.subscribe("t", retained=False)
        daemon.kill()
        await until(lambda: _is_down(bus))
        await bus.publish("t", bytes(800))
        for send in (bus.publish("t", bytes(800)), bus.send("name", bytes(800))):
            with pytest.raises(ipcbus_client.OutboxFull, match="outbox_bytes=1000") as caught:
                await send
            assert isinstance(caught.value, BufferError)
            assert caught.value.who in ("t", "name")
        await bus.publish("t", b"small")
        daemon_factory(at=daemon.directory)
        assert [(await sub.get(WAIT_S)).data for _ in range(2)] == [bytes(800), b"small"]
        await bus.close()

    run(body())


def test_block_waits_for_the_connection(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox_messages=0, timeout=WAIT_S)
        sub = await bus.subscribe("t", retained=False)
        daemon.kill()
        await until(lambda: _is_down(bus))
        daemon_factory(at=daemon.directory)
        await bus.publish("t", 1)
        assert (await sub.get(WAIT_S)).data == 1
        await bus.close()

    run(body())


@pytest.mark.parametrize(
    ("options", "error"),
    [({"outbox": "wait"}, ValueError), ({"outbox_bytes": -1}, ValueError), ({"outbox_messages": 2.5}, TypeError)],
)
def test_bad_outbox_arguments(connect: Connect, daemon: RunningDaemon, options: dict[str, Any], error: type[Exception]) -> None:
    async def body() -> None:
        with pytest.raises(error, match=next(iter(options))):
            await connect(daemon.address, **options)

    run(body())


def test_what_the_kernel_had_and_nobody_confirmed_is_unknown(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        for n in range(100):
            await bus.publish("t", n)
        await bus.flush(WAIT_S)
        assert (bus.stats_local()["unsent"], bus.stats_local()["unknown"]) == (0, 0)
        for n in range(7):
            await bus.publish("t", n)
        await until(lambda: not bus.stats_local()["unsent_bytes"])
        daemon.kill()
        await until(lambda: _is_down(bus))
        assert bus.stats_local()["unknown"] == 7
        await bus.publish("t", "waits")
        assert bus.stats_local()["unsent"] == 1
        daemon_factory(at=daemon.directory)
        await bus.flush(WAIT_S)
        assert (bus.stats_local()["unsent"], bus.stats_local()["unknown"]) == (0, 7)
        await bus.close()

    run(body())


BAD_TIMEOUTS = [(10**400, ValueError), ("5", TypeError), (float("nan"), ValueError), (-1, ValueError), (-0.5, ValueError)]


@pytest.mark.parametrize(("timeout", "error"), BAD_TIMEOUTS, ids=["huge", "text", "nan", "negative", "negative float"])
def test_bad_timeouts_are_the_callers_error_everywhere(
    connect: Connect, daemon: RunningDaemon, timeout: Any, error: type[Exception]
) -> None:
    async def body() -> None:
        with pytest.raises(error, match="a timeout of"):
            await connect(daemon.address, timeout=timeout)
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        for call in (bus.request("bus/stats", timeout=timeout), bus.flush(timeout), bus.close(timeout), sub.get(timeout)):
            with pytest.raises(error, match="a timeout of"):
                await call
        assert bus.state.value == "connected"
        await bus.close()

    run(body())


def test_a_bad_mode_is_the_callers_error(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        for call in (bus.own("me", mode="bogus"), bus.respond("svc/do", lambda r: 1, mode="bogus")):
            with pytest.raises(ValueError, match="mode='bogus': allowed are exclusive, queue, shared"):
                await call
        assert await bus.names() == []
        await bus.close()

    run(body())


def test_flush_without_time_sends_and_does_not_wait(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        await bus.publish("t", 1)
        with pytest.raises(ipcbus_client.Timeout):
            await bus.flush(0)
        assert (await sub.get(WAIT_S)).data == 1
        assert (await bus.stats())["peers"] == 1
        await bus.close()

    run(body())


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _readable(path: Path) -> None:
    path.write_bytes(b"s" * 32)
    path.chmod(0o640)


def _writable(path: Path) -> None:
    path.write_bytes(b"s" * 32)
    path.chmod(0o602)


def _short(path: Path) -> None:
    path.write_bytes(b"s" * 31)
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_fifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (_readable, "0640"),
        (_writable, "0602"),
        (_short, "32 bytes"),
        (lambda path: None, "there is no secret"),
    ],
    ids=["FIFO", "directory", "readable", "writable", "short", "missing"],
)
def test_a_secret_file_that_cannot_be_trusted(connect: Connect, daemon_factory: DaemonFactory, make: Any, says: str) -> None:
    async def body() -> None:
        daemon = daemon_factory(listen=["tcp:127.0.0.1:0"])
        path = daemon.directory / "mine"
        make(path)
        with pytest.raises(ipcbus_client.ConnectError, match=says) as caught:
            await connect(daemon.address, secret_file=str(path), timeout=WAIT_S)
        assert caught.value.reason == "secret"
        assert str(path) in str(caught.value)

    run(body())
