"""Both shells against a real daemon: what a caller did wrong is said at once and by name, and every failure says whom it is about."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, Connect, connecting, run


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


NOT_A_FUNCTION: dict[str, Callable[[Any], Any]] = {
    "subscribe": lambda bus: bus.subscribe("t", 5),
    "inbox": lambda bus: bus.inbox("callback"),
    "respond": lambda bus: bus.respond("svc/do", None),
}
NOT_A_NUMBER: dict[str, Callable[[Any], Any]] = {
    "window_bytes of 1.5": lambda bus: bus.subscribe("t", window_bytes=1.5),
    "window_bytes of '1'": lambda bus: bus.stream("svc/do", window_bytes="1"),
    "window_bytes of True": lambda bus: bus.subscribe("t", window_bytes=True),
    "prefetch of 2.5": lambda bus: bus.subscribe("t", group="g", prefetch=2.5),
    "no type that": lambda bus: bus.get("nothing.kept", type=5),
}


@pytest.mark.parametrize(("says", "call"), [*((" is a function", call) for call in NOT_A_FUNCTION.values()), *NOT_A_NUMBER.items()])
def test_an_argument_of_the_wrong_type_is_a_type_error_that_names_it(
    connect: Connect, daemon: RunningDaemon, says: str, call: Callable[[Any], Any]
) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        with pytest.raises(TypeError, match=says):
            await call(bus)
        assert await bus.names() == []
        assert (await bus.stats())["lanes"] == 0
        await bus.close()

    run(body())


def test_a_heartbeat_that_is_no_number(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        with pytest.raises(TypeError, match="a heartbeat of '5'"):
            await connect(daemon.address, heartbeat="5")

    run(body())


def test_on_change_takes_a_function(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        with pytest.raises(TypeError, match="is a function, not int"):
            getattr(bus, "inner", bus).state.on_change(5)
        await bus.close()

    run(body())


CALLERS_OWN: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "publish": (lambda bus: bus.publish("t", object()), "t", "publish"),
    "retain": (lambda bus: bus.publish("t", object(), retain=True), "t", "publish"),
    "headers": (lambda bus: bus.publish("t", 1, ttl=1, headers={"k": []}), "t", "publish"),
    "bound": (lambda bus: bus.publish("t", bytes(2**21), retain=True, bound=True), "t", "publish"),
    "confirm": (lambda bus: bus.publish("t", {"x": object()}, confirm=True), "t", "publish"),
    "will": (lambda bus: bus.will("t", object()), "t", "will"),
    "large will": (lambda bus: bus.will("t", bytes(2**21)), "t", "will"),
    "will's topic": (lambda bus: bus.will("t.*"), "t.*", "will"),
    "release": (lambda bus: bus.release("a b"), "a b", "release"),
    "wait_for_name": (lambda bus: bus.wait_for_name("a b"), "a b", "wait_for_name"),
    "nobody": (lambda bus: bus.wait_for_name("nobody", 0.01), "nobody", "wait_for_name"),
    "wait": (lambda bus: bus.wait(0.01), "", "wait"),
    "send": (lambda bus: bus.send(5, 1), "", "send"),
}


@pytest.mark.parametrize("case", CALLERS_OWN)
def test_every_error_says_whom_it_is_about_and_in_what(connect: Connect, daemon: RunningDaemon, case: str) -> None:
    call, who, what = CALLERS_OWN[case]

    async def body() -> None:
        bus = await connect(daemon.address)
        with pytest.raises(ipcbus_client.BusError) as caught:
            await call(bus)
        expected = daemon.address if case == "wait" else who
        assert (caught.value.who, caught.value.what) == (expected, what)
        await bus.close()

    run(body())


def test_a_watch_says_whom_it_is_about(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        watch = await bus.watch("w.>")
        with pytest.raises(ipcbus_client.Timeout) as timeout:
            await watch.get(0.01)
        await watch.close()
        with pytest.raises(ipcbus_client.Closed) as closed:
            await watch.get()
        assert [(error.value.who, error.value.what) for error in (timeout, closed)] == [("w.>", "get")] * 2
        await bus.close()

    run(body())


DECLARATIONS: dict[str, Callable[[Any], Any]] = {
    "pattern.>": lambda bus: bus.subscribe("pattern.>"),
    "watched.*": lambda bus: bus.watch("watched.*"),
    "will": lambda bus: bus.will("will"),
    "name": lambda bus: bus.own("name"),
    "service": lambda bus: bus.respond("service/do", print),
    "waited": lambda bus: bus.wait_for_name("waited", 0.01),
}


def test_a_bus_that_does_not_answer_is_a_timeout_about_what_was_declared(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, timeout=WAIT_S, heartbeat=0)
        getattr(bus, "inner", bus)._timeout = 0.01
        daemon.signal(signal.SIGSTOP)
        for who, call in DECLARATIONS.items():
            with pytest.raises(ipcbus_client.Timeout, match="did not answer") as caught:
                await call(bus)
            assert caught.value.who == who
        daemon.signal(signal.SIGCONT)
        await bus.flush(WAIT_S)
        assert (await bus.request("bus/stats", timeout=WAIT_S))["lanes"] == 0
        await bus.close()

    run(body())


def test_a_bus_that_is_not_there_is_what_the_timeout_says(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, timeout=WAIT_S)
        getattr(bus, "inner", bus)._timeout = 0.01
        daemon.kill()
        await bus.state.wait_for("reconnecting", WAIT_S)
        for call in DECLARATIONS.values():
            with pytest.raises(ipcbus_client.Timeout, match="not connected"):
                await call(bus)
        for unsent, who, what in (
            (bus.publish("t", confirm=True), "t", "publish"),
            (bus.request("svc/do", timeout=0.01), daemon.address, "request"),
            (bus.request_all(["svc/do"], timeout=0.01), daemon.address, "request_all"),
        ):
            with pytest.raises(ipcbus_client.ConnectionLost, match=r"not connected, for .* s: nothing listens") as caught:
                await unsent
            assert (caught.value.who, caught.value.what) == (who, what)
            assert "It was not sent" in caught.value.hint
        await bus.close()


def test_a_confirmation_that_is_lost_is_of_a_publication(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, timeout=WAIT_S)
        daemon.signal(signal.SIGSTOP)
        waiting = asyncio.create_task(bus.publish("t", confirm=True))
        await asyncio.sleep(0.1)
        daemon.kill()
        with pytest.raises(ipcbus_client.ConnectionLost) as caught:
            await waiting
        assert (caught.value.who, caught.value.what) == ("t", "publish")
        await bus.close()

    run(body())


def test_what_ended_the_bus_is_raised_anew_each_time(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, reconnect=False)
        daemon.kill()
        errors = []
        for _ in range(2):
            with pytest.raises(ipcbus_client.ConnectionLost) as caught:
                await bus.wait(WAIT_S)
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        await bus.close()

    run(body())


OWNED: dict[str, Callable[[Any], Any]] = {
    "subscription": lambda bus: bus.subscribe("t"),
    "watch": lambda bus: bus.watch("t"),
    "monitor": lambda bus: bus.monitor("t"),
    "responder": lambda bus: bus.respond("svc/do", print),
}


async def fail_in(made: Any, daemon: RunningDaemon) -> None:
    if hasattr(made, "inner"):
        with made.inner:
            daemon.signal(signal.SIGSTOP)
            raise KeyError
    async with made:
        daemon.signal(signal.SIGSTOP)
        raise KeyError


@pytest.mark.parametrize("kind", OWNED)
def test_an_exception_does_not_wait_for_a_stopped_bus_on_its_way_out(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    """The connect timeout is an hour: a ``with`` that waited for the answer to unsubscribe would hang, and replace the exception."""

    async def body() -> None:
        bus = await connect(daemon.address, timeout=3600, heartbeat=0)
        made = await OWNED[kind](bus)
        with pytest.raises(KeyError):
            await fail_in(made, daemon)
        daemon.signal(signal.SIGCONT)
        assert await bus.names() == []
        stats = await bus.stats()
        assert (stats["lanes"], stats["monitors"]) == (0, 0)
        await bus.close()

    run(body())


def test_a_timeout_of_asyncio_is_not_held_up_by_a_stopped_bus(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address, timeout=3600, heartbeat=0) as bus:
            sub = await bus.subscribe("t")
            daemon.signal(signal.SIGSTOP)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05), sub:
                    await sub.get()
            assert not isinstance(caught.value, ipcbus_client.Timeout)
            daemon.signal(signal.SIGCONT)

    run(body())
