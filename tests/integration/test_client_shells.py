"""Both shells of the client against a real daemon, from one body: what a user is promised, also when the connection ends."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon

WAIT_S = 20.0


class Blocking:
    """A blocking object whose methods are awaited, so that one body serves both shells."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value) or name == "stats_local":
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            result = value(*arguments, **options)
            return Blocking(result) if isinstance(result, _HANDED_OUT) else result

        return call

    async def __aiter__(self) -> Any:
        for message in self.inner:
            yield message


_HANDED_OUT = (ipcbus_client.Bus, ipcbus_client.Subscription, ipcbus_client.Responder)
Connect = Callable[..., Awaitable[Any]]


async def _connect_blocking(*arguments: Any, **options: Any) -> Any:
    return Blocking(ipcbus_client.connect(*arguments, **options))


async def _connect_aio(*arguments: Any, **options: Any) -> Any:
    return await aio.connect(*arguments, **options)


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """connect() of a shell. Afterwards nothing of it may be left: no thread, no descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    yield _connect_blocking if request.param == "blocking" else _connect_aio
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("ipcbus")], "a thread is left")
    wait_for(lambda: len(set(os.listdir("/proc/self/fd"))) <= len(before), "a descriptor is left")


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


async def until(condition: Callable[[], Any], what: str = "it never came true") -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def run(body: Awaitable[Any]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body, 60)

    asyncio.run(bounded())


def test_messages_in_order_with_all_that_is_on_them(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, program="tester")
        await bus.publish("room.kept", "old", retain=True)
        sub = await bus.subscribe("room.>")
        fresh = await bus.subscribe("room.>", retained=False)
        kept = await sub.get(WAIT_S)
        assert (kept.data, kept.retained, kept.topic, kept.sender) == ("old", True, "room.kept", bus.peer_id)
        for n in range(3000):
            await bus.publish(f"room.{n % 7}", n if n % 2 else str(n).encode(), headers={"n": n} if n % 100 == 0 else None)
        for one in (sub, fresh):
            for n in range(3000):
                message = await one.get(WAIT_S)
                assert message.data == (n if n % 2 else str(n).encode())
                assert message.headers == ({"n": n} if n % 100 == 0 else {})
        with pytest.raises(ipcbus_client.Timeout):
            await sub.get(0.01)
        assert [peer["program"] for peer in await bus.peers()] == ["tester"]
        assert {topic["topic"] for topic in await bus.topics()} >= {"room.kept", "room.3"}
        assert (await bus.stats())["peers"] == 1
        assert "subscribe" in (await bus.introspect())["methods"]
        await sub.close()
        await sub.close()
        assert [message async for message in sub] == []
        with pytest.raises(ipcbus_client.Closed):
            await sub.get()
        await bus.close()
        assert [message async for message in fresh] == []
        for late in (bus.publish("t"), bus.request("a/b"), bus.subscribe("t"), bus.flush(), bus.own("x")):
            with pytest.raises(ipcbus_client.Closed):
                await late
        await bus.close()

    run(body())


def test_iteration_and_large_payloads(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("big")
        big = os.urandom(3_000_000)
        for n in range(4):
            await bus.publish("big", big[n:])
        count = 0
        async for message in sub:
            assert message.payload == big[count:]
            count += 1
            if count == 4:
                break
        assert sub.lost == 0
        with pytest.raises(ipcbus_client.PayloadError):
            await bus.publish("big", bytes(17 * 1024 * 1024))
        await bus.close()

    run(body())


def test_callbacks_and_groups(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, other = await connect(daemon.address), await connect(daemon.address)
        seen: list[int] = []

        def callback(message: ipcbus_client.Message) -> None:
            if message.data == 5:
                raise RuntimeError("one message's trouble")
            seen.append(message.data)

        await bus.subscribe("c", callback)
        shares: list[list[int]] = [[], []]
        await bus.subscribe("job", lambda m: shares[0].append(m.data), group="g", prefetch=4)
        await other.subscribe("job", lambda m: shares[1].append(m.data), group="g", prefetch=4)
        for n in range(500):
            await bus.publish("c", n)
            await bus.publish("job", n)
        await bus.flush()
        await until(lambda: len(seen) == 499 and len(shares[0]) + len(shares[1]) == 500)
        assert seen == [n for n in range(500) if n != 5]
        assert sorted(shares[0] + shares[1]) == list(range(500))
        assert min(map(len, shares)) > 0
        pulled = await bus.subscribe("pull", group="g", prefetch=2)
        for n in range(20):
            await other.publish("pull", n)
        assert [(await pulled.get(WAIT_S)).data for n in range(20)] == list(range(20))
        await bus.close()
        await other.close()

    run(body())


def test_requests_and_their_errors(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        service, bus = await connect(daemon.address, name="svc"), await connect(daemon.address)
        cancelled = threading.Event()

        def slow(request: ipcbus_client.Request) -> None:
            while not request.cancelled:
                time.sleep(0.005)
            cancelled.set()

        async def slow_async(request: ipcbus_client.Request) -> None:
            try:
                await asyncio.sleep(WAIT_S)
            finally:
                cancelled.set()

        def fail(request: ipcbus_client.Request) -> None:
            raise KeyError("k")

        def refuse(request: ipcbus_client.Request) -> None:
            raise ipcbus_client.ServiceError("too_hot", "text")

        await service.respond("svc/add", lambda r: sum(r.data))
        await service.respond("svc/slow", slow_async if connect is _connect_aio else slow)
        for method, handler in (("fail", fail), ("refuse", refuse), ("object", lambda r: object())):
            await service.respond(f"svc/{method}", handler)
        second = await service.respond("other/*", lambda r: [r.method, r.headers, r.sender])
        assert await bus.request("svc/add", [1, 2, 3]) == 6
        assert await bus.request(f":{service.peer_id}/add", [1]) == 1
        assert await bus.request("other/what", headers={"h": 1}) == ["what", {"h": 1}, bus.peer_id]
        for to, kind, code in (
            ("svc/fail", ipcbus_client.ServiceError, "KeyError"),
            ("svc/refuse", ipcbus_client.ServiceError, "too_hot"),
            ("svc/object", ipcbus_client.ServiceError, "PayloadError"),
            ("svc/nothing", ipcbus_client.NoSuchMethod, 22),
            ("nobody/x", ipcbus_client.NoSuchName, 20),
            (":999/x", ipcbus_client.NoSuchPeer, 21),
            ("bus/nothing", ipcbus_client.NoSuchMethod, 22),
        ):
            with pytest.raises(kind) as caught:
                await bus.request(to)
            assert (caught.value.code, caught.value.to) == (code, to)
        with pytest.raises(ipcbus_client.Expired):
            await bus.request("svc/slow", timeout=0.1)
        await asyncio.to_thread(cancelled.wait, WAIT_S)
        assert cancelled.is_set()
        assert await bus.request("svc/add", [1], timeout=WAIT_S) == 1
        await second.close()
        assert [name["name"] for name in await bus.names()] == ["svc"]
        with pytest.raises(ipcbus_client.Refused, match="name_taken"):
            await bus.own("svc")
        with pytest.raises(ipcbus_client.Refused, match="name_taken"):
            await connect(daemon.address, name="svc")
        assert await bus.own("svc", mode="queue") is False
        await bus.close()
        await service.close()

    run(body())


def test_direct_messages(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        one, two = await connect(daemon.address, name="one"), await connect(daemon.address)
        inbox = await one.inbox()
        got: list[Any] = []
        await two.inbox(lambda m: got.append((m.topic, m.data)))
        await two.send("one", {"a": 1}, headers={"h": 2})
        message = await inbox.get(WAIT_S)
        assert (message.data, message.headers, message.sender, message.topic) == ({"a": 1}, {"h": 2}, two.peer_id, "one")
        await one.send(f":{two.peer_id}", b"raw")
        await until(lambda: got)
        assert got == [(f":{two.peer_id}", b"raw")]
        await two.send("nobody", 1)
        await two.flush()
        assert two.stats_local()["refused"] == 1
        await inbox.close()
        await one.close()
        await two.close()

    run(body())


def test_a_killed_daemon_is_a_gap_and_nothing_else(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        first = daemon_factory()
        bus = await connect(first.address, name="svc")
        sub = await bus.subscribe("t.>")
        await bus.respond("svc/echo", lambda r: r.data)
        peer = bus.peer_id
        assert (bus.epoch, sub.gaps, bus.state.value) == (0, 0, "connected")
        first.kill()
        await until(lambda: bus.state.value == "reconnecting")
        for n in range(100):
            await bus.publish("t.a", n)
        with pytest.raises(ipcbus_client.ConnectionLost):
            await bus.request("svc/echo", 1, timeout=0.05)
        daemon_factory(at=first.directory)
        assert [(await sub.get(WAIT_S)).data for n in range(100)] == list(range(100))
        assert await bus.request("svc/echo", [1], timeout=WAIT_S) == [1]
        assert (bus.epoch, sub.gaps, bus.state.value) == (1, 1, "connected")
        assert peer == 1
        await bus.close()

    run(body())


def test_requests_in_flight_fail_at_once(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, reconnect=False)
        stuck = await connect(daemon.address, name="svc", reconnect=False)
        release = threading.Event()

        async def never(request: ipcbus_client.Request) -> None:
            await asyncio.sleep(WAIT_S)

        await stuck.respond("svc/never", never if connect is _connect_aio else lambda r: release.wait(WAIT_S))
        killer = threading.Timer(0.2, daemon.kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(ipcbus_client.ConnectionLost):
            await bus.request("svc/never", timeout=WAIT_S)
        assert time.monotonic() - started < WAIT_S / 2
        release.set()
        killer.join()
        assert bus.state.value == "closed"
        with pytest.raises(ipcbus_client.ConnectionLost):
            await bus.publish("t")
        await bus.close()
        await stuck.close()

    run(body())


def test_connect_fails_in_time_and_says_why(connect: Connect, short_dir: Any) -> None:
    async def body() -> None:
        started = time.monotonic()
        with pytest.raises(ipcbus_client.ConnectError, match="nothing listens on unix:"):
            await connect(f"unix:{short_dir}/none.sock", timeout=0.2)
        assert 0.15 < time.monotonic() - started < 5
        with pytest.raises(ipcbus_client.AddressError):
            await connect("tcp:192.0.2.1:4222")
        with pytest.raises(ipcbus_client.BadName):
            await connect(f"unix:{short_dir}/none.sock", name="no name")

    run(body())


def test_tcp_needs_the_secret(connect: Connect, daemon_factory: DaemonFactory, short_dir: Any) -> None:
    async def body() -> None:
        daemon = daemon_factory(listen=["tcp:127.0.0.1:0"])
        bus = await connect(daemon.address, secret_file=daemon.secret_file, name="t")
        await bus.respond("t/x", lambda r: r.data)
        assert await bus.request("t/x", 3) == 3
        await bus.close()
        wrong = short_dir / "wrong"
        wrong.write_bytes(b"x" * 32)
        with pytest.raises(ipcbus_client.ConnectError, match="secret"):
            await connect(daemon.address, secret_file=str(wrong), timeout=5)
        with pytest.raises(ipcbus_client.ConnectError, match="no secret in"):
            await connect(daemon.address, secret_file=str(short_dir / "none"), timeout=0.2)

    run(body())


def test_a_slow_reader_of_its_own_publications_does_not_deadlock(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t", window_bytes=10_000)
        for n in range(20_000):
            await bus.publish("t", b"%05d" % n + b"x" * 95)
        got = 0
        while got < 20_000 - sub.lost:
            await sub.get(WAIT_S)
            got += 1
        await bus.flush(WAIT_S)
        assert got + sub.lost == 20_000
        await bus.close()

    run(body())


def test_what_a_handler_or_callback_raises_stays_there(connect: Connect, daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    class WordlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raised = {"exit": SystemExit(3), "wordless": WordlessError(), "generator": GeneratorExit()}

    async def body() -> None:
        bus, seen = await connect(daemon.address), []

        def handle(request: ipcbus_client.Request) -> str:
            if request.data in raised:
                raise raised[request.data]
            return "fine"

        async def handle_later(request: ipcbus_client.Request) -> str:
            await asyncio.sleep(0)
            return handle(request)

        def call_back(message: ipcbus_client.Message) -> None:
            seen.append(message.data)
            if message.data in raised:
                raise raised[message.data]

        await bus.respond("svc/do", handle)
        if connect is _connect_aio:
            await bus.respond("svc/later", handle_later)
        await bus.subscribe("t", call_back)
        for to in ("svc/do", "svc/later") if connect is _connect_aio else ("svc/do",):
            for data, code in (("exit", "SystemExit"), ("wordless", "WordlessError"), ("generator", "GeneratorExit")):
                with pytest.raises(ipcbus_client.ServiceError) as caught:
                    await bus.request(to, data, timeout=WAIT_S)
                assert caught.value.code == code
            assert await bus.request(to, "else", timeout=WAIT_S) == "fine"
        for data in ("exit", "wordless", "generator", "else"):
            await bus.publish("t", data)
        await until(lambda: seen == ["exit", "wordless", "generator", "else"])
        assert bus.stats_local()["handler_errors"] >= 6
        started = time.monotonic()
        await bus.close(WAIT_S)
        assert time.monotonic() - started < WAIT_S / 2
        assert "handler of svc/do raised SystemExit" in caplog.text

    run(body())


def test_a_name_that_another_took_meanwhile_can_be_given_up(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        first = daemon_factory()
        bus = await connect(first.address)
        responder = await bus.respond("svc/do", lambda r: 1)
        await bus.respond("own/do", lambda r: 1)
        first.kill()
        await until(lambda: bus.state.value == "reconnecting")
        inner = bus.inner if isinstance(bus, Blocking) else bus
        said: list[Any] = []
        # the other one is first, as it may be with another back-off
        session, thief = inner._session, None
        replay = session.declarations.replay
        session.declarations.replay = lambda: said.append(1)
        daemon_factory(at=first.directory)
        thief = await connect(first.address, name="svc")
        await thief.own("own")
        await until(lambda: bus.state.value == "connected")
        session.declarations.replay = replay
        replay()
        await bus.flush()
        await until(lambda: len(session.declarations._refused) == 4)
        await responder.close()
        await bus.release("own")
        await asyncio.sleep(1.2)
        assert await bus.own("svc", mode="queue") is False
        await bus.release("svc")
        await bus.release("never")
        assert (await bus.ping()) < WAIT_S
        await bus.close()
        await thief.close()

    run(body())


@pytest.mark.parametrize("timeout", [1e7, 1e18, float("inf")])
def test_timeouts_may_be_as_long_as_you_like(connect: Connect, daemon: RunningDaemon, timeout: float) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, timeout=timeout)
        sub = await bus.subscribe("t", window_bytes=64 * 1024 * 1024)
        await bus.respond("svc/do", lambda r: r.timeout)
        assert await bus.request("svc/do", timeout=timeout) == 86_400.0
        assert await bus.request("svc/do", timeout=None) == 86_400.0
        if isinstance(bus, Blocking):
            threading.Timer(0.1, lambda: bus.inner.publish("t", 1)).start()
        else:
            asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(bus.publish("t", 1)))
        assert (await sub.get(timeout)).data == 1
        await bus.flush(timeout)
        await bus.stats()
        await bus.close(timeout)

    run(body())


def test_timeouts_that_mean_nothing_are_refused(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        for timeout in (-1.0, float("nan")):
            for make in (
                lambda timeout=timeout: connect(daemon.address, timeout=timeout),
                lambda timeout=timeout: bus.request("bus/ping", timeout=timeout),
                lambda timeout=timeout: bus.flush(timeout),
                lambda timeout=timeout: bus.close(timeout),
                lambda timeout=timeout: sub.get(timeout),
            ):
                with pytest.raises(ValueError, match="timeout of"):
                    await make()
        await bus.close()

    run(body())


def test_connect_errors_name_their_cause(connect: Connect, daemon_factory: DaemonFactory, short_dir: Any) -> None:
    async def fails(*arguments: Any, **options: Any) -> tuple[str, str, float]:
        started = time.monotonic()
        with pytest.raises(ipcbus_client.ConnectError) as caught:
            await connect(*arguments, **options)
        return caught.value.reason, str(caught.value), time.monotonic() - started

    async def body() -> None:
        assert (await fails(f"unix:{short_dir}/none.sock", timeout=0.1))[0] == "nothing_listens"
        tcp = daemon_factory(listen=["tcp:127.0.0.1:0"])
        short, wrong, none = short_dir / "short", short_dir / "wrong", short_dir / "none"
        short.write_bytes(b"x")
        wrong.write_bytes(b"x" * 32)
        for path in (short, wrong):
            path.chmod(0o600)
        for path, words in ((short, "32 bytes"), (wrong, "H-5"), (short_dir, "not a regular file"), (none, "no secret in")):
            reason, text, took_s = await fails(tcp.address, secret_file=str(path), timeout=WAIT_S)
            assert (reason, words in text, "no bus at" in text) == ("secret", True, False), text
            assert took_s < WAIT_S / 2
        full = daemon_factory(config="[limits]\nmax_peers = 1\n")
        bus = await connect(full.address)
        reason, text, _ = await fails(full.address, timeout=0.5)
        assert (reason, "no bus at" in text) == ("refused", False), text
        assert "too_many_peers" in text
        assert "End a program" in text
        await bus.close()
        full.signal(signal.SIGSTOP)
        reason, text, _ = await fails(full.address, timeout=0.3)
        assert (reason, "did not answer" in text) == ("timeout", True), text

    run(body())


def test_a_bus_that_ends_the_connection_before_hello_is_heard(
    connect: Connect, short_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from ipcbus.protocol.messages import Kind, encode
    from ipcbus_client._dial import Target

    opening = Target.opening
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short_dir}/full.sock")
        listener.listen()

        def refused_at_once(self: Target, made: socket.socket) -> dict[str, Any]:
            accepted, _ = listener.accept()
            accepted.sendall(encode(Kind.BYE, 0, 14, "full"))
            accepted.close()
            return opening(self, made)

        monkeypatch.setattr(Target, "opening", refused_at_once)

        async def body() -> None:
            with pytest.raises(ipcbus_client.ConnectError, match="too_many_peers: full") as caught:
                await connect(f"unix:{short_dir}/full.sock", timeout=0.2)
            assert caught.value.reason == "refused"

        run(body())


def test_close_while_reconnecting_does_not_wait_for_the_bus(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus, idle = await connect(daemon.address), await connect(daemon.address)
        await bus.subscribe("t", lambda m: None)
        await bus.respond("svc/do", lambda r: 1)
        daemon.kill()
        for one in (bus, idle):
            await until(lambda one=one: one.state.value == "reconnecting")
            started = time.monotonic()
            await one.close()
            assert time.monotonic() - started < 2.5

    run(body())


def test_a_listener_that_skips_its_proof_gets_nothing(connect: Connect, short_dir: Any) -> None:
    import socket

    from ipcbus.protocol.messages import Kind, encode

    secret = short_dir / "secret"
    secret.write_bytes(b"s" * 32)
    secret.chmod(0o600)
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            made, _ = listener.accept()
            with made:
                got.extend(made.recv(65536))
                made.sendall(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {}))
                while more := made.recv(65536):
                    got.extend(more)

        thread = threading.Thread(target=serve)
        thread.start()

        async def body() -> None:
            with pytest.raises(ipcbus_client.ConnectError, match="H-5"):
                await connect(f"tcp:127.0.0.1:{listener.getsockname()[1]}", name="me", secret_file=str(secret), timeout=WAIT_S)

        run(body())
        thread.join(WAIT_S)
    assert int.from_bytes(got[1:5], "big") + 5 == len(got)  # HELLO and nothing else


def test_a_fault_in_the_keeper_closes_the_bus(
    connect: Connect, daemon_factory: DaemonFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        sub = await bus.subscribe("t")
        monkeypatch.setattr("ipcbus_client._backoff.Backoff.delay_s", lambda self, attempt, jitter: 1 / 0)
        daemon.kill()
        with pytest.raises(ipcbus_client.ConnectionLost, match="keeps the connection failed: ZeroDivisionError"):
            await sub.get(WAIT_S)
        assert bus.state.value == "closed"
        await bus.close()
        await until(lambda: "Traceback" in caplog.text)

    run(body())


# --- what only the blocking shell promises ---


def test_close_from_another_thread_settles_every_wait(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, name="svc") as bus:
        block = threading.Event()
        bus.respond("svc/never", lambda r: block.wait(WAIT_S))
        sub, results = bus.subscribe("t"), []

        def wait(what: Callable[[], Any]) -> None:
            try:
                results.append(what())
            except ipcbus_client.BusError as error:
                results.append(type(error))

        waits = [lambda: sub.get(), lambda: list(sub), lambda: list(sub), lambda: bus.request("svc/never", timeout=WAIT_S)]
        threads = [threading.Thread(target=wait, args=(what,)) for what in waits]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        started = time.monotonic()
        bus.close(0.5)
        for thread in threads:
            thread.join(WAIT_S)
        assert time.monotonic() - started < WAIT_S / 2
        block.set()
        assert sorted(map(str, results)) == sorted(map(str, [ipcbus_client.Closed, [], [], ipcbus_client.Closed]))


def test_close_settles_a_subscribe_that_waits_for_the_bus(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory()
    bus = ipcbus_client.connect(daemon.address, timeout=WAIT_S)
    daemon.kill()
    wait_for(lambda: bus.state.value == "reconnecting", "it did not notice")
    results: list[Any] = []

    def wait(what: Callable[[], Any]) -> None:
        try:
            results.append(what())
        except ipcbus_client.BusError as error:
            results.append(type(error))

    waits = [lambda: bus.subscribe("t"), lambda: bus.own("n"), lambda: bus.respond("m/do", print)]
    threads = [threading.Thread(target=wait, args=(what,)) for what in waits]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    bus.release("n")
    bus.close(0.5)
    for thread in threads:
        thread.join(WAIT_S)
    assert time.monotonic() - started < WAIT_S / 2
    assert results == [ipcbus_client.Closed] * 3


def test_a_fault_in_the_worker_closes_the_bus(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    with ipcbus_client.connect(daemon.address, name="svc") as bus:
        bus.respond("svc/do", print)
        bus._session.services.answer = lambda request, value: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(ipcbus_client.ConnectionLost, match="ZeroDivisionError"):
            bus.request("svc/do", timeout=WAIT_S)
        assert bus.state.value == "closed"
    wait_for(lambda: "Traceback" in caplog.text, "nothing was logged")


def test_many_threads_share_one_bus(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
        service.respond("svc/echo", lambda r: r.data)
        received: list[int] = []
        bus.subscribe("t", lambda m: received.append(m.data))
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(100):
                    assert bus.request("svc/echo", [number, n], timeout=WAIT_S) == [number, n]
                    bus.publish("t", number)
            except BaseException as error:  # noqa: BLE001  # a thread's failure must reach the test
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S * 3)
        assert errors == []
        bus.flush()
        wait_for(lambda: len(received) == 800, "messages are missing")


def test_an_interrupted_wait_leaves_the_bus_usable(daemon: RunningDaemon) -> None:
    class InterruptionError(Exception):
        pass

    def interrupt(number: int, frame: Any) -> None:
        raise InterruptionError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ipcbus_client.connect(daemon.address) as bus:
            sub = bus.subscribe("t")
            for _ in range(3):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(InterruptionError):
                    sub.get()
                bus.publish("t", 1)
                assert sub.get(WAIT_S).data == 1
                assert bus.epoch == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_a_signal_handler_publishes_is_sent_once(daemon: RunningDaemon) -> None:
    received: list[int] = []
    published = asked = 0

    def publish(number: int, frame: Any) -> None:
        nonlocal published
        published += 1
        bus.publish("t", published)

    with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
        service.respond("svc/do", lambda request: request.data)
        service.subscribe("t", lambda message: received.append(message.data), window_bytes=16 * 1024 * 1024)
        before = signal.signal(signal.SIGALRM, publish)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                asked += 1
                assert bus.request("svc/do", asked, timeout=WAIT_S) == asked
                bus.publish("t", -asked)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        bus.flush()
        wait_for(lambda: len(received) >= published + asked, "publications are missing")
        service.flush()
        assert sorted(received) == [*range(-asked, 0), *range(1, published + 1)]
        assert [number for number in received if number < 0] == list(range(-1, -asked - 1, -1))
        assert bus.epoch == 0


def test_a_signal_handler_inside_a_write_leaves_it_the_writing(daemon: RunningDaemon) -> None:
    class Interrupted:
        """A socket in whose send() a signal handler runs, when the kernel has the bytes and nobody knows yet."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.handler: Callable[[], None] | None = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def send(self, data: Any, flags: int) -> int:
            handler, self.handler = self.handler, None
            if handler is not None and len(data) % 2:
                handler()
            count = int(self.inner.send(data, flags))
            if handler is not None and not len(data) % 2:
                handler()
            return count

    def handle() -> None:
        bus.publish("t", "from the handler")
        with pytest.raises((ipcbus_client.Timeout, ipcbus_client.Expired)):
            bus.request("bus/ping", timeout=0.05)
        bus.publish("t", "again")

    with ipcbus_client.connect(daemon.address) as bus:
        sub = bus.subscribe("t")
        sock = bus._wire.sock = Interrupted(bus._wire.sock)  # type: ignore[assignment]
        for size in (10, 11):  # before and after the kernel took it
            time.sleep(0.01)  # it is no burst
            sock.handler = handle
            bus.publish("t", "x" * size)
            bus.flush()
            assert [sub.get(WAIT_S).data for _ in range(3)] == ["x" * size, "from the handler", "again"]
        with pytest.raises(ipcbus_client.Timeout):
            sub.get(0.05)
        assert bus.epoch == 0
        bus._wire.sock = sock.inner


def test_a_request_that_a_signal_handler_ends_is_cancelled_at_the_service(daemon: RunningDaemon) -> None:
    class InterruptionError(Exception):
        pass

    def interrupt(number: int, frame: Any) -> None:
        raise InterruptionError

    cancelled: list[bool] = []

    def wait_for_cancel(request: ipcbus_client.Request) -> None:
        until = time.monotonic() + WAIT_S
        while not request.cancelled and time.monotonic() < until:
            time.sleep(0.01)
        cancelled.append(request.cancelled)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
            service.respond("svc/slow", wait_for_cancel)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(InterruptionError):
                bus.request("svc/slow", timeout=60)
            assert bus.stats_local()["unsent_bytes"] == 0
            wait_for(lambda: cancelled, "the service was not told")
            assert cancelled == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_close_the_bus_that_waits(daemon: RunningDaemon) -> None:
    bus = ipcbus_client.connect(daemon.address)
    sub = bus.subscribe("t")
    before = signal.signal(signal.SIGALRM, lambda number, frame: bus.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        started = time.monotonic()
        assert list(sub) == []
        assert time.monotonic() - started < 3
    finally:
        signal.signal(signal.SIGALRM, before)
        bus.close()


def test_cancelling_an_await_loses_no_message(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            sub = await bus.subscribe("t")

            async def publish() -> None:
                for n in range(300):
                    await bus.publish("t", n)
                    if n % 10 == 0:
                        await asyncio.sleep(0.001)

            publisher = asyncio.create_task(publish())
            got = []
            while len(got) < 300:
                try:
                    got.append((await asyncio.wait_for(sub.get(), 0.0005)).data)
                except TimeoutError:
                    continue
            assert got == list(range(300))
            await publisher
            assert inspect.iscoroutinefunction(sub.get)

    run(body())


async def _await_what_was_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def test_a_handler_that_awaits_what_was_cancelled_is_answered_for(daemon: RunningDaemon, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(request: ipcbus_client.Request) -> None:
        await _await_what_was_cancelled()

    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            await bus.respond("svc/a", handle)
            await bus.respond("svc/b", lambda request: handle(request))
            for to in ("svc/a", "svc/b"):
                with pytest.raises(ipcbus_client.ServiceError) as caught:
                    await bus.request(to, timeout=WAIT_S)
                assert caught.value.code == "CancelledError"

    run(body())
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


@pytest.mark.parametrize("group", [None, "workers"])
def test_callbacks_go_on_after_one_that_awaits_what_was_cancelled(
    daemon: RunningDaemon, group: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    called = []

    async def callback(message: ipcbus_client.Message) -> None:
        called.append(message.data)
        await _await_what_was_cancelled()

    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            await bus.subscribe("t", callback, group=group, prefetch=2)
            for n in range(20):
                await bus.publish("t", n)
            await until(lambda: len(called) == 20)
            assert called == list(range(20))
            assert bus.stats_local()["handler_errors"] == 20

    run(body())
    assert len(caplog.records) >= 20


def test_close_without_a_timeout_waits_for_handlers(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        done = []
        begun = threading.Event()

        def handle_blocking(message: Any) -> None:
            begun.set()
            time.sleep(0.3)
            done.append(message.data)

        async def handle(message: Any) -> None:
            begun.set()
            await asyncio.sleep(0.3)
            done.append(message.data)

        await bus.subscribe("t", handle_blocking if isinstance(bus, Blocking) else handle)
        await bus.publish("t", 1)
        await until(begun.is_set)
        await bus.close(None)
        assert done == [1]
        await bus.close(None)

    run(body())


@pytest.mark.parametrize("later", [False, True])
def test_a_keyboard_interrupt_in_a_handler_is_the_programs_and_the_bus_goes_on(daemon: RunningDaemon, later: bool) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # asyncio says of the task that nobody looked at what it raised

    def handle(request: ipcbus_client.Request) -> Any:
        if request.data == "interrupt":
            raise KeyboardInterrupt
        return request.data

    async def handle_later(request: ipcbus_client.Request) -> Any:
        await asyncio.sleep(0)
        return handle(request)

    async def ask(bus: aio.Bus) -> list[Any]:
        asked = [asyncio.ensure_future(bus.request("svc/do", data, timeout=WAIT_S)) for data in ("interrupt", 1, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    async def begin() -> aio.Bus:
        bus = await aio.connect(daemon.address)
        await bus.respond("svc/do", handle_later if later else handle)
        return bus

    try:
        bus = loop.run_until_complete(begin())
        asking = loop.create_task(ask(bus))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asking)
        first, *rest = loop.run_until_complete(asyncio.wait_for(asking, WAIT_S))
        assert isinstance(first, ipcbus_client.ServiceError)
        assert (first.code, rest) == ("KeyboardInterrupt", [1, 2])
        loop.run_until_complete(bus.close())
    finally:
        loop.close()
