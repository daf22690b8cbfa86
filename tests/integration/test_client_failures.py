"""Every public way to fail, in both shells: its class, its builtin base, whom it is about, in what, when, and what to do."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

import ipcbus_client as client
from ipcbus.protocol.messages import Kind, encode
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.integration.test_client_contract import start, stuck
from tests.integration.test_client_shells import Connect, connect, run, until

__all__ = ["connect"]  # the fixture

WAIT_S = 20.0


@dataclass
class Place:
    """What a way to fail may use."""

    connect: Connect
    daemon: RunningDaemon
    bus: Any
    other: Any
    sub: Any


Way = Callable[[Place], Awaitable[Any]]


async def nothing_listens(at: Place) -> None:
    await at.connect("unix:/nonexistent/bus.sock", timeout=0.05)


async def lost_while_asked(at: Place) -> None:
    await at.other.respond("svc/kills", lambda request: at.daemon.kill())
    await at.bus.request("svc/kills", timeout=None)


async def lost_for_good(at: Place) -> None:
    alone = await at.connect(at.daemon.address, reconnect=False)
    at.daemon.kill()
    await until(lambda: alone.state.value == "closed")
    await alone.publish("t")


async def not_connected(at: Place) -> None:
    await gone(at)
    await at.bus.request("svc/do", timeout=0.05)


async def flush_without_a_bus(at: Place) -> None:
    await gone(at)
    await at.bus.flush(0.05)


async def gone(at: Place) -> None:
    at.daemon.kill()
    await until(lambda: at.bus.state.value == "reconnecting")


async def a_full_outbox(at: Place) -> None:
    full = await at.connect(at.daemon.address, outbox="raise", outbox_messages=0)
    try:
        at.daemon.kill()
        await until(lambda: full.state.value == "reconnecting")
        await full.publish("room.t")
    finally:
        await full.close(0)


async def a_closed_bus(at: Place) -> None:
    await at.bus.close(0)
    await at.bus.publish("room.t")


async def a_closed_subscription(at: Place) -> None:
    await at.sub.close()
    await at.sub.get()


async def a_closed_bus_under_a_subscription(at: Place) -> None:
    await at.bus.close(0)
    await at.sub.get()


async def somebody_elses_name(at: Place) -> None:
    await at.other.own("mine")
    await at.bus.own("mine")


async def an_old_peer(at: Place) -> None:
    await at.bus.request(":9999/do")


async def a_missing_method(at: Place) -> None:
    await at.other.own("svc")
    await at.bus.request("svc/nothing")


async def a_service_that_goes(at: Place) -> None:
    async def close() -> None:
        await at.other.close(0)

    import threading

    release, asked = threading.Event(), threading.Event()
    handler = stuck(at.other, release)

    def handle(request: Any) -> Any:
        asked.set()
        return handler(request)

    await at.other.respond("svc/do", handle)
    asking = start(at.bus.request("svc/do"), at.bus)
    await until(asked.is_set)
    await close()
    release.set()
    await asking


async def a_service_that_does_not_answer(at: Place) -> None:
    import threading

    release = threading.Event()
    await at.other.respond("svc/do", stuck(at.other, release))
    try:
        await at.bus.request("svc/do", timeout=0.05)
    finally:
        release.set()


async def a_services_own_error(at: Place) -> None:
    def handle(request: Any) -> None:
        raise client.ServiceError("too_hot", "90 degrees")

    await at.other.respond("svc/do", handle)
    await at.bus.request("svc/do")


WAYS: list[tuple[str, Way, type[client.BusError], type[BaseException], str, str]] = [
    ("nothing listens", nothing_listens, client.ConnectError, ConnectionError, "unix:/nonexistent/bus.sock", "connect"),
    ("a bad address", lambda at: at.connect("here"), client.AddressError, ValueError, "here", "connect"),
    ("lost while asked", lost_while_asked, client.ConnectionLost, ConnectionError, "svc/kills", "request"),
    ("lost for good", lost_for_good, client.ConnectionLost, ConnectionError, "t", "publish"),
    ("not connected", not_connected, client.ConnectionLost, ConnectionError, "ADDRESS", "request"),
    ("flush without a bus", flush_without_a_bus, client.Timeout, TimeoutError, "ADDRESS", "flush"),
    ("a full outbox", a_full_outbox, client.OutboxFull, BufferError, "room.t", "publish"),
    ("a closed bus", a_closed_bus, client.Closed, ConnectionError, "room.t", "publish"),
    ("a closed subscription", a_closed_subscription, client.Closed, ConnectionError, "room.>", "get"),
    ("a closed bus, get", a_closed_bus_under_a_subscription, client.Closed, ConnectionError, "room.>", "get"),
    ("no message", lambda at: at.sub.get(0.01), client.Timeout, TimeoutError, "room.>", "get"),
    ("no state", lambda at: at.bus.state.wait_for("closed", 0.01), client.Timeout, TimeoutError, "ADDRESS", "wait_for"),
    ("a bad topic", lambda at: at.bus.publish("a..b"), client.BadName, ValueError, "a..b", "publish"),
    ("a bad receiver", lambda at: at.bus.send("a/b"), client.BadName, ValueError, "a/b", "send"),
    ("a bad pattern", lambda at: at.bus.subscribe("a.>.b"), client.BadName, ValueError, "a.>.b", "subscribe"),
    ("a bad name", lambda at: at.bus.own("a b"), client.BadName, ValueError, "a b", "own"),
    ("a bad target", lambda at: at.bus.request("svc"), client.BadName, ValueError, "svc", "request"),
    ("a bad service", lambda at: at.bus.respond("svc", print), client.BadName, ValueError, "svc", "respond"),
    ("bad targets", lambda at: at.bus.request_all("a.*"), client.BadName, ValueError, "a.*", "request_all"),
    ("what cannot be packed", lambda at: at.bus.publish("t", object()), client.PayloadError, ValueError, "t", "publish"),
    ("a bad retained value", lambda at: at.bus.publish("t", object(), retain=True), client.PayloadError, ValueError, "t", "publish"),
    ("a bad will", lambda at: at.bus.will("t", object()), client.PayloadError, ValueError, "t", "will"),
    ("bad headers", lambda at: at.bus.send("n", 1, headers={"": 1}), client.PayloadError, ValueError, "n", "send"),
    ("too large", lambda at: at.bus.request("s/do", bytes(17 << 20)), client.PayloadError, ValueError, "s/do", "request"),
    ("no such name", lambda at: at.bus.request("nobody/do"), client.NoSuchName, LookupError, "nobody/do", "request"),
    ("no such method", a_missing_method, client.NoSuchMethod, LookupError, "svc/nothing", "request"),
    ("no such peer", an_old_peer, client.NoSuchPeer, LookupError, ":9999/do", "request"),
    ("it died", a_service_that_goes, client.ResponderDied, ConnectionError, "svc/do", "request"),
    ("no answer", a_service_that_does_not_answer, client.Expired, TimeoutError, "svc/do", "request"),
    ("its own error", a_services_own_error, client.ServiceError, client.RequestError, "svc/do", "request"),
    ("somebody else's name", somebody_elses_name, client.Refused, client.RequestError, "mine", "own"),
]


@pytest.mark.parametrize(("way", "cls", "builtin", "who", "what"), [pytest.param(*row[1:], id=row[0]) for row in WAYS])
def test_each_way_to_fail(
    connect: Connect, daemon: RunningDaemon, way: Way, cls: type[client.BusError], builtin: type[BaseException], who: str, what: str
) -> None:
    async def body() -> None:
        bus, other = await connect(daemon.address), await connect(daemon.address)
        at = Place(connect, daemon, bus, other, await bus.subscribe("room.>"))
        before = time.time()
        with pytest.raises(client.BusError) as caught:
            await way(at)
        error = caught.value
        assert type(error) is cls, error
        assert isinstance(error, builtin)
        assert (error.who, error.what) == (who if who != "ADDRESS" else daemon.address, what)
        assert before <= error.when <= time.time()
        assert error.hint.endswith(".")
        assert str(error)
        for one in (bus, other):
            await one.close(0)

    run(body())


def test_a_raised_error_does_not_grow(connect: Connect, daemon: RunningDaemon) -> None:
    """A program that goes on after the end gets an exception of its own each time, and not one with the frames of all before."""

    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        await bus.close()
        seen = []
        for _ in range(3):
            for call in (bus.publish("t"), bus.request("a/b"), sub.get(), bus.flush()):
                with pytest.raises(client.Closed) as caught:
                    await call
                seen.append(caught.value)
        assert len({id(error) for error in seen}) == len(seen)

    run(body())


def test_a_listener_that_lets_us_in_without_its_proof_is_named(connect: Connect, daemon_factory: DaemonFactory) -> None:
    import socket
    import threading

    daemon = daemon_factory(listen=["tcp:127.0.0.1:0"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            made, _ = listener.accept()
            with made:
                made.recv(65536)
                made.sendall(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {}))
                made.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()

        async def body() -> None:
            address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(client.ConnectError, match="without showing that it holds the secret") as caught:
                await connect(address, secret_file=daemon.secret_file, timeout=None)
            assert (caught.value.reason, caught.value.who) == ("secret", address)

        run(body())
        thread.join(WAIT_S)


def test_every_wait_settles_when_the_connection_ends(connect: Connect, daemon_factory: DaemonFactory) -> None:
    """With a daemon that is stopped, so that nothing is answered, and then killed: who waits for an answer hears of it at once."""

    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, timeout=None, heartbeat=0)
        daemon.signal(signal.SIGSTOP)
        waits = [
            start(wait, bus)
            for wait in (
                bus.request("svc/do", timeout=None),
                bus.request(":5/do", timeout=None, headers={"h": 1}),
                bus.flush(None),
                bus.ping(),
                bus.publish("t", 1, confirm=True),
                bus.publish("t", 1, confirm=True, retain=True, ttl=60.0),
            )
        ]
        many = start(bus.request_all(["svc/do", "other/do"], timeout=None), bus)
        await until(lambda: bus.stats_local()["requests"] == 8)
        daemon.kill()
        for wait in waits:
            with pytest.raises(client.ConnectionLost):
                await wait
        assert [type(answer.error) for answer in await many] == [client.ConnectionLost, client.ConnectionLost]
        await bus.close(0)

    run(body())


def test_declarations_in_flight_are_made_on_the_next_connection(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, timeout=None, heartbeat=0)
        daemon.signal(signal.SIGSTOP)
        own, subscribe = start(bus.own("me"), bus), start(bus.subscribe("t"), bus)
        respond = start(bus.respond("svc/do", lambda request: 1), bus)
        await until(lambda: bus.stats_local()["requests"] == 4)  # respond() is two: the name and its method are said at once
        daemon.kill()
        await until(lambda: bus.state.value == "reconnecting")
        daemon_factory(at=daemon.directory)
        assert await own is True
        sub = await subscribe
        await respond
        assert await bus.request("svc/do", timeout=WAIT_S) == 1
        await bus.publish("t", 5)
        assert (await sub.get(WAIT_S)).data == 5
        await bus.close()

    run(body())


def test_close_settles_when_the_connection_ends(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, heartbeat=0)
        sub = await bus.subscribe("t")
        daemon.signal(signal.SIGSTOP)
        reading = start(sub.get(None), bus)
        closing = start(bus.close(None), bus)
        await until(lambda: bus.stats_local()["requests"] >= 1)
        daemon.kill()
        await closing
        with pytest.raises(client.Closed):
            await reading
        assert bus.state.value == "closed"

    run(body())
