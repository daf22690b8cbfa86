"""Publishers and a slow subscriber on a real daemon, in both shells: who waits for whom, for how long, and that everything else goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import CaughtUp, Lagging, Lost, OutboxFull, aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment
from tests.scenarios import Blocking

WAIT_S = 30.0
#: A queue is full with twenty messages of this size, and a subscriber takes one at a time.
SOFT, MESSAGE, WINDOW = 20_000, b"x" * 1000, 1000
FOREVER = "lane_stall_s = 60.0\nstall_window_s = 600.0\n"


class Threaded:
    """A blocking object whose methods are awaited and run on threads, so that one of them may wait while others go on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value) or name in ("stats_local", "holds"):
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            result = await asyncio.to_thread(value, *arguments, **options)
            return Threaded(result) if type(result).__module__.startswith("ipcbus_client._blocking") else result

        return call


class Shell:
    """How to connect in one of the shells, and to write a handler for it once."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.buses: list[Any] = []

    async def connect(self, **options: Any) -> Any:
        if self.name == "blocking":
            bus: Any = Threaded(await asyncio.to_thread(ipcbus_client.connect, self.address, **options))
        else:
            bus = await aio.connect(self.address, **options)
        self.buses.append(bus)
        return bus

    def handler(self, bus: Any, body: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Any]:
        """*body* of a bus whose methods are awaited, and of what comes, as a callback or handler."""
        if self.name == "aio":
            return lambda item: body(bus, item)

        def handle(item: Any) -> Any:
            try:
                body(Blocking(bus.inner), item).send(None)
            except StopIteration as end:
                return end.value
            raise AssertionError("it waited outside of the bus")

        return handle


@pytest.fixture(params=["blocking", "aio"])
def shell_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(daemon_factory: DaemonFactory) -> Callable[[str], RunningDaemon]:
    return lambda limits: daemon_factory(config=f"[limits]\nlane_soft_bytes = {SOFT}\n{limits}")


@asynccontextmanager
async def world(name: str, daemon: RunningDaemon) -> AsyncIterator[Shell]:
    shell = Shell(name, daemon.address)
    try:
        yield shell
    finally:
        for bus in shell.buses:
            await bus.close(2.0)


def run(body: Awaitable[Any]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body, 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def publish(bus: Any, count: int, begin: int = 0) -> None:
    for n in range(begin, begin + count):
        await bus.publish("t", MESSAGE, headers={"n": n})


async def fill(bus: Any) -> int:
    """Publish until *bus* is held; returns how many messages that took. A PONG comes after the notice of what went before its PING."""
    count = 0
    while not bus.holds():
        await publish(bus, 1, count)
        count += 1
        await bus.flush(WAIT_S)
    return count


async def held(bus: Any, more: int = 20) -> tuple[asyncio.Task[None], int]:
    """Publish until *bus* is held, and then *more*; what goes on to wait, and how many messages it will be in all."""
    count = await fill(bus)
    task = asyncio.create_task(publish(bus, more, count))
    await asyncio.sleep(0.05)
    assert not task.done()
    return task, count + more


async def take(sub: Any, count: int) -> list[int]:
    return [(await sub.get(WAIT_S)).headers["n"] for _ in range(count)]


# --- the three ---


def test_a_handler_calls_while_its_own_lane_is_full(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader, service = await shell.connect(), await shell.connect(), await shell.connect()
            await service.respond("svc/echo", lambda request: request.data)
            seen: list[Any] = []

            async def handle(bus: Any, message: Any) -> None:
                n = message.headers["n"]
                while not n and not (await bus.request("bus/stats"))["holding"]:
                    pass
                seen.append(n if n % 10 else await bus.request("svc/echo", n))

            await reader.subscribe("t", shell.handler(reader, handle), window_bytes=WINDOW)
            await publish(publisher, 100)
            await until(lambda: len(seen) == 100, "not everything came")
            assert seen == list(range(100))
            assert publisher.stats_local()["holds"] >= 1

    run(body())


def test_a_full_subscriber_calls_the_very_publisher_that_waits_for_it(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader, user = await shell.connect(), await shell.connect(), await shell.connect()
            seen: list[Any] = []

            async def produce(bus: Any, request: Any) -> str:
                await publish(bus, 100)
                return "published"

            await publisher.respond("pub/produce", shell.handler(publisher, produce))
            await publisher.respond("pub/value", lambda request: request.data)

            async def handle(bus: Any, message: Any) -> None:
                n = message.headers["n"]
                while not n and not publisher.holds():
                    await bus.request("bus/ping")
                seen.append(await bus.request("pub/value", n))

            await reader.subscribe("t", shell.handler(reader, handle), window_bytes=WINDOW)
            assert await user.request("pub/produce", timeout=WAIT_S) == "published"
            await until(lambda: len(seen) == 100, "not everything came")
            assert seen == list(range(100))
            assert publisher.stats_local()["holds"] >= 1

    run(body())


def test_who_stalls_is_cut_comes_back_and_stalls_again_holds_nobody_any_more(
    shell_name: str, start: Callable[[str], RunningDaemon]
) -> None:
    async def body() -> None:
        async with world(shell_name, start("lane_stall_s = 0.5\nstall_window_s = 6000.0\n")) as shell:
            publisher = await shell.connect()
            for _ in range(5):
                reader = await shell.connect()
                sub = await reader.subscribe("t", window_bytes=WINDOW, notices=True)
                await publish(publisher, 100)
                while (await publisher.stats())["holding"]:
                    await asyncio.sleep(0.01)
                first = await sub.get(WAIT_S)
                assert first.headers["n"] == 0
                stream = []
                while not stream or type(stream[-1]) is not CaughtUp:
                    stream.append(await sub.get(WAIT_S))
                lost = sum(item.count for item in stream if isinstance(item, Lost))
                messages = [item.headers["n"] for item in stream if isinstance(item, ipcbus_client.Message)]
                assert lost > 0
                assert sub.lost == lost == stream[-1].lost
                assert len(messages) + lost == 99
                assert messages == sorted(messages)
                assert messages[-1] == 99
                assert any(isinstance(item, Lagging) and item.dropping for item in stream)
                await reader.close()
            assert publisher.stats_local()["holds"] == 1, "it was held again by who had used up its time"
            assert publisher.holds() == []

    run(body())


# --- what goes on ---


def test_a_held_publisher_answers_publishes_elsewhere_and_beats(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader, user = await shell.connect(heartbeat=0.1), await shell.connect(program="reader"), await shell.connect()
            await publisher.respond("pub/echo", lambda request: request.data)
            other = await user.subscribe("other")
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            waiting, count = await held(publisher)
            (hold,) = publisher.holds()
            assert (hold.pattern, hold.group, hold.peer, hold.program) == ("t", None, reader.peer_id, "reader")
            assert hold.bytes > SOFT
            (told,) = (await user.stats())["holding"]
            assert (told["peer"], told["publishers"]) == (reader.peer_id, 1)
            beaten = time.monotonic() + 0.5  # more than two heartbeats
            rounds = 0
            while time.monotonic() < beaten or rounds < 20:
                rounds += 1
                assert await user.request("pub/echo", rounds, timeout=WAIT_S) == rounds
                await publisher.publish("other", rounds)
                assert (await other.get(WAIT_S)).data == rounds
                assert await publisher.publish("other", "confirmed", confirm=True) == 1
                assert (await other.get(WAIT_S)).data == "confirmed"
                await asyncio.sleep(0.02)
            assert not waiting.done()
            assert (publisher.epoch, publisher.stats_local()["held"]) == (0, 1)
            assert await take(sub, count) == list(range(count))
            await waiting
            assert publisher.holds() == []
            assert publisher.stats_local()["held_s"] > 0

    run(body())


def test_a_group_that_is_full_holds_until_one_of_its_members_reads(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader = await shell.connect(), await shell.connect()
            subs = [await reader.subscribe("t", group="workers", window_bytes=WINDOW, prefetch=1, notices=True) for _ in range(2)]
            waiting, count = await held(publisher)
            assert publisher.holds()[0].group == "workers"
            seen: list[int] = []
            notices: list[Any] = []
            while len(seen) < count - 1:  # one message stays with the member that reads nothing
                item = await subs[0].get(WAIT_S)
                if isinstance(item, (Lagging, CaughtUp)):
                    notices.append(item)
                else:
                    seen.append(item.headers["n"])
            await waiting
            assert seen == sorted(seen)
            assert isinstance(notices[0], Lagging)

    run(body())


# --- what becomes of what is held ---


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_an_outbox_that_drops(policy: str, shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader = await shell.connect(outbox=policy, outbox_messages=5), await shell.connect()
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            count = await fill(publisher)
            await publish(publisher, 20, count)
            kept = range(15, 20) if policy == "drop_oldest" else range(5)
            assert publisher.stats_local()["outbox_dropped"] == 15
            assert await take(sub, count + 5) == [*range(count), *(count + n for n in kept)]
            await publisher.publish("t", MESSAGE, headers={"n": "last"})
            assert await take(sub, 1) == ["last"]
            await publisher.flush(WAIT_S)
            assert await publisher.close() == (15, 0)

    run(body())


def test_an_outbox_that_raises_says_who_it_is(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader = await shell.connect(outbox="raise"), await shell.connect(program="reader")
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            count = await fill(publisher)
            with pytest.raises(OutboxFull, match=rf"subscription 't' of :{reader.peer_id} \(reader\), for which \d+ bytes wait") as caught:
                await publisher.publish("t", MESSAGE)
            assert caught.value.hold.peer == reader.peer_id
            assert await take(sub, count) == list(range(count))
            await until(lambda: not publisher.holds(), "it was never let go")
            await publish(publisher, 1, count)
            assert await take(sub, 1) == [count]

    run(body())


def test_it_gives_up_after_the_connect_timeout(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader = await shell.connect(timeout=0.5), await shell.connect()
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            count = await fill(publisher)
            with pytest.raises(OutboxFull) as caught:
                await publish(publisher, 1, count)
            assert caught.value.hold is not None
            assert await publisher.close() == (0, 0)
            assert await take(sub, count) == list(range(count))
            with pytest.raises(ipcbus_client.Timeout):
                await sub.get(0.1)

    run(body())


def test_close_while_held_is_bounded_and_tells(shell_name: str, start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world(shell_name, start(FOREVER)) as shell:
            publisher, reader = await shell.connect(outbox="drop_newest"), await shell.connect()
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            count = await fill(publisher)
            await publish(publisher, 20, count)
            assert publisher.stats_local()["waiting"] == 20
            assert await publisher.close(WAIT_S) == (0, 0)  # the bus parks it
            assert await take(sub, count + 20) == list(range(count + 20))

            cut = await shell.connect(outbox="drop_newest")
            await publish(cut, 20, await fill(cut))
            assert (await cut.close(0)).unsent == 20

            waits = await shell.connect()
            waiting, _ = await held(waits, 1_000_000)
            started = time.monotonic()
            await waits.close(0.5)
            with pytest.raises(ipcbus_client.Closed):
                await waiting
            assert time.monotonic() - started < WAIT_S

    run(body())


def test_another_bus_takes_its_place(shell_name: str, start: Callable[[str], RunningDaemon], daemon_factory: DaemonFactory) -> None:
    """The daemon dies while a publisher is held: it goes on with the next one."""

    async def body() -> None:
        daemon = start(FOREVER)
        async with world(shell_name, daemon) as shell:
            publisher, reader = await shell.connect(timeout=WAIT_S), await shell.connect()
            await reader.subscribe("t", window_bytes=WINDOW)
            waiting, _ = await held(publisher)
            daemon.kill()
            daemon_factory(at=daemon.directory)
            await waiting
            await publisher.flush(WAIT_S)
            assert (publisher.holds(), publisher.epoch) == ([], 1)

    run(body())


def test_cancelled_it_was_not_sent(start: Callable[[str], RunningDaemon]) -> None:
    async def body() -> None:
        async with world("aio", start(FOREVER)) as shell:
            publisher, reader = await shell.connect(), await shell.connect()
            sub = await reader.subscribe("t", window_bytes=WINDOW)
            waiting, count = await held(publisher)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            for task in [asyncio.create_task(publisher.publish("t", "never")) for _ in range(3)]:
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            await publisher.flush()
            sent = count - 20
            assert await take(sub, sent) == list(range(sent))
            with pytest.raises(ipcbus_client.Timeout):
                await sub.get(0.1)

    run(body())


# --- the blocking shell's own ---


def test_a_signal_handler_may_raise_and_publish_while_held(start: Callable[[str], RunningDaemon]) -> None:
    class AlarmError(Exception):
        pass

    daemon = start(FOREVER)
    with ipcbus_client.connect(daemon.address) as publisher, ipcbus_client.connect(daemon.address) as reader:
        sub, other = reader.subscribe("t", window_bytes=WINDOW), reader.subscribe("other")
        alarms = []

        def on_alarm(number: int, frame: object) -> None:
            alarms.append(publisher.holds())
            publisher.publish("other", "from the handler")
            raise AlarmError

        before = signal.signal(signal.SIGALRM, on_alarm)
        sent = 0

        def flood() -> None:
            nonlocal sent
            while True:
                publisher.publish("t", MESSAGE, headers={"n": sent})
                sent += 1

        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
            with pytest.raises(AlarmError):
                flood()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(alarms[0]) == 1
        assert other.get(WAIT_S).data == "from the handler"
        assert [sub.get(WAIT_S).headers["n"] for _ in range(sent)] == list(range(sent))
        publisher.publish("t", "after")
        assert sub.get(WAIT_S).data == "after"


def test_a_child_made_by_fork_while_held_is_a_publisher_of_its_own(start: Callable[[str], RunningDaemon]) -> None:
    daemon = start(FOREVER)
    with ipcbus_client.connect(daemon.address) as publisher, ipcbus_client.connect(daemon.address) as reader:
        sub, other = reader.subscribe("t", window_bytes=WINDOW), reader.subscribe("other")
        done = threading.Event()
        count = 0
        while not publisher.holds():
            publisher.publish("t", MESSAGE, headers={"n": count})
            publisher.flush(WAIT_S)
            count += 1

        def go_on() -> None:
            publisher.publish("t", MESSAGE, headers={"n": count})
            done.set()

        threading.Thread(target=go_on, daemon=True).start()
        pid = os.fork()
        if pid == 0:
            try:
                clean = not publisher.holds() and not publisher.stats_local()["held"]
                publisher.publish("other", "of the child" if clean else "held in the child")
                publisher.close()
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert other.get(WAIT_S).data == "of the child"
        assert not done.is_set()
        assert len(publisher.holds()) == 1
        assert [sub.get(WAIT_S).headers["n"] for _ in range(count + 1)] == list(range(count + 1))
        assert done.wait(WAIT_S)


def test_a_program_that_ends_while_held_leaves_what_it_had_to_the_bus(start: Callable[[str], RunningDaemon]) -> None:
    daemon = start(FOREVER)
    code = (
        "import sys, time, ipcbus_client\n"
        "bus = ipcbus_client.connect(sys.argv[1], outbox='drop_newest')\n"
        "n = 0\n"
        "while not bus.holds():\n"
        "    bus.publish('t', b'x' * 1000, headers={'n': n}); n += 1; time.sleep(0.001)\n"
        "for more in range(n, n + 5):\n"
        "    bus.publish('t', b'x' * 1000, headers={'n': more})\n"
        "print(n + 5, bus.stats_local()['waiting'])\n"
    )
    with ipcbus_client.connect(daemon.address) as reader:
        sub = reader.subscribe("t", window_bytes=WINDOW)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, daemon.address], env=environment(), capture_output=True, text=True,
            timeout=WAIT_S, check=True,
        )  # fmt: skip
        count, waited = map(int, done.stdout.split())
        assert waited == 5
        assert [sub.get(WAIT_S).headers["n"] for _ in range(count)] == list(range(count))
