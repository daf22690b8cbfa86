"""Both shells against a real daemon: what waits without a connection, what is unknown, and how each failure is told."""

from __future__ import annotations

import asyncio
import os
import threading
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
    connect: Connect, daemon_factory: DaemonFactory, caplog: pytest.LogCaptureFixture, policy: str, left: list[int]
) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, outbox=policy, outbox_messages=2)
        sub = await bus.subscribe("t", retained=False)
        daemon.kill()
        await until(lambda: _is_down(bus))
        for n in range(5):
            await bus.publish("t", n)
        assert (bus.stats_local()["waiting"], bus.stats_local()["outbox_dropped"]) == (2, 3)
        await until(lambda: f"outbox='{policy}'" in caplog.text)
        daemon_factory(at=daemon.directory)
        assert [(await sub.get(WAIT_S)).data for _ in left] == left
        await bus.flush(WAIT_S)
        assert bus.stats_local()["unsent"] == 3
        await until(lambda: "3 messages were dropped from the full outbox" in caplog.text)
        assert caplog.text.count("the outbox is full") == 1
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


def test_an_idempotent_request_is_asked_again_on_the_next_connection(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, service = await connect(daemon.address), await connect(daemon.address)
        asked: list[int] = []
        answers = threading.Event()

        def handler(request: ipcbus_client.Request) -> int:
            asked.append(request.data)
            if not answers.is_set():
                daemon.kill()
            return len(asked)

        await service.respond("svc/do", handler)
        asking = start(bus.request("svc/do", 5, timeout=WAIT_S, idempotent=True), bus)
        await until(lambda: asked)
        answers.set()
        await until(lambda: daemon.process.poll() is not None)
        daemon_factory(at=daemon.directory)
        assert await asking == 2
        assert asked == [5, 5]
        for one in (bus, service):
            await one.close()

    run(body())


def test_what_is_not_idempotent_fails_at_once_when_the_connection_ends(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, service = await connect(daemon.address), await connect(daemon.address)
        asked: list[int] = []

        def handler(request: ipcbus_client.Request) -> None:
            asked.append(1)
            daemon.kill()

        await service.respond("svc/do", handler)
        with pytest.raises(ipcbus_client.ConnectionLost) as caught:
            await bus.request("svc/do", timeout=None)
        assert (caught.value.who, caught.value.what) == ("svc/do", "request")
        assert asked == [1]
        for one in (bus, service):
            await one.close(0)

    run(body())


def test_an_idempotent_request_outlives_its_service(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, first = await connect(daemon.address), await connect(daemon.address)
        release = threading.Event()
        asked: list[int] = []

        gone = stuck(first, release)

        def dies(request: ipcbus_client.Request) -> Any:
            asked.append(1)
            return gone(request)

        await first.respond("svc/do", dies)
        asking = start(bus.request("svc/do", timeout=WAIT_S, idempotent=True), bus)
        await until(lambda: asked)
        await first.close(0)
        release.set()
        second = await connect(daemon.address)
        await second.respond("svc/do", lambda request: "second")
        assert await asking == "second"
        with pytest.raises(ipcbus_client.NoSuchName):
            await bus.request("nobody/do", timeout=WAIT_S, idempotent=True)
        await bus.close()
        await second.close()

    run(body())


def test_an_idempotent_request_ends_with_its_time_and_its_bus(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, alone = await connect(daemon.address), await connect(daemon.address, reconnect=False)
        daemon.kill()
        await until(lambda: _is_down(bus))
        with pytest.raises(ipcbus_client.ConnectionLost, match=r"not connected, for 0\.2 s: nothing listens"):
            await bus.request("svc/do", timeout=0.2, idempotent=True)
        with pytest.raises(ipcbus_client.ConnectionLost):
            await alone.request("svc/do", timeout=None, idempotent=True)
        asking = start(bus.request("svc/do", timeout=None, idempotent=True), bus)
        await asyncio.sleep(0)
        await bus.close(0)
        with pytest.raises(ipcbus_client.Closed):
            await asking
        await alone.close()

    run(body())


def test_many_are_asked_at_once(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        services = [await connect(daemon.address) for _ in range(4)]
        release = threading.Event()
        for n, service in enumerate(services[:2]):
            await service.respond(f"lab.s{n}/get", lambda request, n=n: {"n": n, "asked": request.data})
            await service.respond("lab.all/get", lambda request, n=n: n, mode="shared")
        await services[2].respond("lab.other/set", lambda request: 0)
        await services[3].respond("lab.stuck/get", stuck(services[3], release))
        await services[3].respond("lab.bad/get", raises_value_error)

        answers = await bus.request_all("lab.*/get", "x", timeout=1.0)
        by_name = {(answer.to, answer.peer): answer for answer in answers}
        ids = [service.peer_id for service in services]
        assert {to for to, _ in by_name} == {"lab.s0/get", "lab.s1/get", "lab.all/get", "lab.stuck/get", "lab.bad/get"}
        for n in (0, 1):
            assert by_name[f"lab.s{n}/get", ids[n]].result() == {"n": n, "asked": "x"}
            assert by_name["lab.all/get", ids[n]].result() in (n, {"n": n, "asked": "x"})
        assert isinstance(by_name["lab.stuck/get", ids[3]].error, ipcbus_client.Expired)
        release.set()

        some = await bus.request_all((to for to in ("lab.s1/get", "lab.other/get", "nobody/get")), timeout=WAIT_S)
        assert [answer.to for answer in some] == ["lab.s1/get", "lab.other/get", "nobody/get"]
        assert some[0].result()["n"] == 1
        assert [type(answer.error) for answer in some[1:]] == [ipcbus_client.NoSuchMethod, ipcbus_client.NoSuchName]
        assert [answer.peer for answer in some] == [ids[1], 0, 0]
        assert await bus.request_all("nobody.>/get", timeout=WAIT_S) == []
        assert await bus.request_all([], timeout=WAIT_S) == []
        for bad in ("lab.*", "lab..x/get", "lab.*/a b", ["lab"], [5], "lab.>.x/get"):
            with pytest.raises(ipcbus_client.BadName):
                await bus.request_all(bad)
        with pytest.raises(ValueError, match="a timeout of"):
            await bus.request_all("lab.*/get", timeout=-1)
        for one in (bus, *services):
            await one.close()

    run(body())


def stuck(service: Any, release: threading.Event) -> Any:
    """A handler that takes its time, in the shell's own way."""
    if hasattr(service, "inner"):
        return lambda request: release.wait(WAIT_S)

    async def handler(request: ipcbus_client.Request) -> None:
        await until(release.is_set)

    return handler


def raises_value_error(request: ipcbus_client.Request) -> None:
    raise ValueError("bad")


def start(coroutine: Any, bus: Any) -> Any:
    """Have it run meanwhile: a task, or for the blocking shell a thread."""
    if not hasattr(bus, "inner"):
        return asyncio.ensure_future(coroutine)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def work() -> None:  # (a thread for each: an executor has few, and one that waits for ever would hold up the end of a failed test)
        try:
            result = asyncio.run(coroutine)
        except BaseException as error:  # noqa: BLE001  # whoever awaits it gets it
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=work, daemon=True).start()
    return done
