"""User code in both shells, against a real daemon: several at once, in order by key, what it raises, what it is told, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.threaded import Connect, connecting, run, until, wait_for

WAIT_S = 30.0


@pytest.fixture(params=["blocking", "aio"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(shell: str) -> Iterator[Connect]:
    with connecting(shell) as made:
        yield made


class Gate:
    """User code that stops until it is let go, in both shells."""

    def __init__(self, shell: str) -> None:
        self.shell = shell
        self.inside: list[Any] = []  #: what is in the gate
        self.most = 0
        self.done: list[Any] = []
        self.failed: list[type[BaseException]] = []
        self._open: set[Any] = set()
        self._all = False

    def open(self, *what: Any) -> None:
        """Let *what* go, or all."""
        self._open.update(what)
        self._all = self._all or not what

    @property
    def code(self) -> Callable[[Any], Any]:
        """A callback or handler."""
        return self._block if self.shell == "blocking" else self._wait

    def _enter(self, data: Any) -> None:
        self.inside.append(data)
        self.most = max(self.most, len(self.inside))

    def _closed(self, data: Any) -> bool:
        return not self._all and data not in self._open

    def _leave(self, data: Any) -> Any:
        self.inside.remove(data)
        self.done.append(data)
        return data

    def _block(self, item: Any) -> Any:
        data = item.data
        self._enter(data)
        until = time.monotonic() + WAIT_S
        while self._closed(data) and time.monotonic() < until:
            time.sleep(0.005)
        return self._leave(data)

    async def _wait(self, item: Any) -> Any:
        data = item.data
        self._enter(data)
        try:
            async with asyncio.timeout(WAIT_S):
                while self._closed(data):
                    await asyncio.sleep(0.005)
        except BaseException as error:
            self.failed.append(type(error))
            raise
        return self._leave(data)


# --- several at once ---


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_at_most_so_many_callbacks_run_at_once(connect: Connect, shell: str, daemon: RunningDaemon, concurrency: int) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            gate = Gate(shell)
            await bus.subscribe("t", gate.code, concurrency=concurrency)
            for number in range(20):
                await bus.publish("t", number)
            await until(lambda: len(gate.inside) == concurrency)
            await bus.flush()
            assert len(gate.inside) == concurrency
            gate.open()
            await until(lambda: len(gate.done) == 20)
            assert gate.most == concurrency
            assert sorted(gate.done) == list(range(20))

    run(body())


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_at_most_so_many_requests_are_handled_at_once(connect: Connect, shell: str, daemon: RunningDaemon, concurrency: int) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            gate = Gate(shell)
            await service.respond("svc/do", gate.code, concurrency=concurrency)
            asked = [asyncio.ensure_future(bus.request("svc/do", number, timeout=WAIT_S)) for number in range(12)]
            await until(lambda: len(gate.inside) == concurrency)
            await bus.flush()
            await service.ping()
            assert len(gate.inside) == concurrency
            gate.open()
            assert await asyncio.gather(*asked) == list(range(12))
            assert gate.most == concurrency
            if concurrency == 1:
                assert gate.done == list(range(12))

    run(body())


def test_a_key_keeps_its_order_and_others_pass_it(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            gate = Gate(shell)
            await bus.subscribe("t", gate.code, concurrency=3, key=lambda message: message.data[0])
            for what in ("a1", "a2", "a3", "b1", "b2"):
                await bus.publish("t", what)
            gate.open("b1", "b2")
            await until(lambda: gate.done == ["b1", "b2"])
            assert gate.inside == ["a1"]
            gate.open()
            await until(lambda: len(gate.done) == 5)
            assert gate.done[2:] == ["a1", "a2", "a3"]

    run(body())


def test_a_key_of_requests(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            gate = Gate(shell)
            await service.respond("svc/do", gate.code, concurrency=3, key=lambda request: request.data[0])
            asked = [asyncio.ensure_future(bus.request("svc/do", what, timeout=WAIT_S)) for what in ("a1", "a2", "b1", "b2")]
            gate.open("b1", "b2")
            assert await asyncio.gather(*asked[2:]) == ["b1", "b2"]
            assert gate.inside == ["a1"]
            gate.open()
            assert await asyncio.gather(*asked[:2]) == ["a1", "a2"]
            assert gate.done == ["b1", "b2", "a1", "a2"]

    run(body())


def test_a_key_that_raises_costs_its_own_message_only(
    connect: Connect, shell: str, daemon: RunningDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            gate = Gate(shell)
            gate.open()
            await bus.subscribe("t", gate.code, concurrency=2, key=lambda message: 1 // message.data, group="g", prefetch=2)
            await bus.respond("svc/do", gate.code, concurrency=2, key=lambda request: [request.data])
            for number in (0, 1, 0, 2, 0, 0, 3):
                await bus.publish("t", number)
            await until(lambda: len(gate.done) == 3)
            with pytest.raises(ipcbus_client.ServiceError, match="unhashable"):
                await bus.request("svc/do", 1, timeout=WAIT_S)
            await until(lambda: bus.stats_local()["handler_errors"] == 5 if shell == "aio" else True)

    run(body())
    assert len([record for record in caplog.records if "ZeroDivisionError" in record.message]) == 4


@pytest.mark.parametrize("keyed", [False, True])
def test_a_members_message_counts_as_handled_when_its_callback_ended(
    connect: Connect, shell: str, daemon: RunningDaemon, keyed: bool
) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as slow, await connect(daemon.address) as bus:
            gate = Gate(shell)
            key = (lambda message: message.data % 2) if keyed else None
            await slow.subscribe("t", gate.code, group="g", prefetch=4, concurrency=2, key=key)
            for number in range(8):
                await bus.publish("t", number)
            await bus.flush()
            other = await bus.subscribe("t", group="g", prefetch=100)
            await until(lambda: len(gate.inside) == 2)
            got = [(await other.get(WAIT_S)).data for _ in range(4)]
            gate.open()
            await until(lambda: len(gate.done) == 4)
            assert sorted([*gate.done, *got]) == list(range(8))
            assert gate.done != got

    run(body())


def test_a_stuck_key_bounds_memory_by_the_window(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        window = 20_000
        async with await connect(daemon.address) as bus, aio.connect(daemon.address) as publisher:
            gate = Gate(shell)
            gate.open(*range(1, 100))
            await bus.subscribe("t", gate.code, concurrency=2, key=lambda message: message.data[:1] == b"s", window_bytes=window)
            gate.open(b"f" * 500)
            for _ in range(10):
                await publisher.publish("t", b"s" * 500)
            for _ in range(200):  # ten windows of others pass a key that holds a quarter of one
                await publisher.publish("t", b"f" * 500)
            await until(lambda: len(gate.done) == 200)
            for _ in range(1600):
                await publisher.publish("t", b"s" * 500)
            await publisher.flush()
            await bus.ping()
            stats = getattr(bus, "inner", bus).stats_local()
            assert stats["held_bytes"] <= window + 2 * 262_144  # credit may be overdrawn by one read (L-5)
            gate.open()
            await until(lambda: len(gate.done) == 1810)

    run(body())


# --- what it raises, and wait() ---


def raising(shell: str, error: BaseException) -> Callable[[Any], Any]:
    def fail(item: Any) -> None:
        raise error

    async def fail_later(item: Any) -> None:
        await asyncio.sleep(0)
        raise error

    return fail if shell == "blocking" else fail_later


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=["ValueError", "SystemExit"])
def test_wait_raises_what_user_code_raised_where_the_owner_asked(
    connect: Connect, shell: str, daemon: RunningDaemon, concurrency: int, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        inner = getattr(bus, "inner", bus)
        await bus.subscribe("log", raising(shell, error), concurrency=concurrency)
        await bus.subscribe("raise", raising(shell, error), concurrency=concurrency, errors="raise")
        await bus.respond("svc/do", raising(shell, error), concurrency=concurrency, errors="raise")
        await bus.publish("log")
        await until(lambda: inner.stats_local()["handler_errors"] == 1)
        with pytest.raises(ipcbus_client.Timeout):
            await bus.wait(0.05)
        for raised in range(2):
            await bus.publish("raise")
            await until(lambda raised=raised: inner.stats_local()["handler_errors"] == 2 + raised)
            assert await raised_by_wait(bus) is error
        with pytest.raises(ipcbus_client.ServiceError, match=type(error).__name__):
            await bus.request("svc/do", timeout=WAIT_S)
        assert await raised_by_wait(bus) is error
        with pytest.raises(ipcbus_client.Timeout):
            await bus.wait(0)
        await bus.close()
        await bus.wait()

    run(body())
    assert len([record for record in caplog.records if record.exc_info and record.levelname == "ERROR"]) == 4


async def raised_by_wait(bus: Any) -> BaseException | None:
    try:
        inner = getattr(bus, "inner", None)
        if inner is None:
            await bus.wait(WAIT_S)
        else:
            await asyncio.to_thread(_wait_in_thread, inner)
    except _RaisedError as error:
        return error.__cause__
    except (ValueError, SystemExit) as error:
        return error
    return None


class _RaisedError(Exception):
    pass


def _wait_in_thread(bus: ipcbus_client.Bus) -> None:
    try:
        bus.wait(WAIT_S)
    except BaseException as error:
        raise _RaisedError from error  # a SystemExit would end the thread of the executor without a word


def test_wait_ends_with_the_bus(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        waiting = asyncio.ensure_future(bus.wait())
        await bus.ping()
        await bus.close()
        await waiting
        other = await connect(daemon.address, reconnect=False)
        waiting = asyncio.ensure_future(other.wait())
        await other.ping()
        daemon.kill()
        with pytest.raises(ipcbus_client.ConnectionLost):
            await waiting
        await other.close()

    run(body())


def test_a_service_error_is_an_answer_and_no_failure(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            await bus.respond("svc/do", raising(shell, ipcbus_client.ServiceError("no", "not now")), errors="raise")
            with pytest.raises(ipcbus_client.ServiceError, match="not now"):
                await bus.request("svc/do", timeout=WAIT_S)
            with pytest.raises(ipcbus_client.Timeout):
                await bus.wait(0)

    run(body())


# --- what a handler knows ---


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_handler_knows_its_request(connect: Connect, shell: str, daemon: RunningDaemon, concurrency: int | None) -> None:
    def who() -> Any:
        request = ipcbus_client.current_request()
        return None if request is None else [request.method, request.data]

    def handle(request: Any) -> Any:
        return who()

    async def handle_later(request: Any) -> Any:
        before = who()
        await asyncio.sleep(0)
        assert await asyncio.to_thread(who) == who() == before
        return before

    async def body() -> None:
        assert who() is None
        seen: list[Any] = []
        async with await connect(daemon.address) as bus:
            await bus.respond("svc/*", handle, concurrency=concurrency)
            if shell == "aio":
                await bus.respond("svc/later", handle_later, concurrency=concurrency)
            await bus.subscribe("t", lambda message: seen.append(who()))
            for number in range(3):
                assert await bus.request("svc/do", number) == ["do", number]
                assert await bus.request("svc/later", number) == ["later", number]
            await bus.publish("t")
            await until(lambda: seen)
            assert seen == [None]
        assert who() is None

    run(body())


@pytest.mark.parametrize("how", ["timeout", "cancel", "death"])
@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_handler_sees_that_nobody_waits_any_more(
    connect: Connect, shell: str, daemon: RunningDaemon, how: str, concurrency: int | None
) -> None:
    seen: list[Any] = []
    begun: list[Any] = []

    def handle(request: ipcbus_client.Request) -> None:
        assert not request.wait_cancelled(0)
        begun.append(request)
        seen.append(request.wait_cancelled(WAIT_S) and request.wait_cancelled() and request.cancelled)

    async def handle_later(request: ipcbus_client.Request) -> None:
        begun.append(request)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            seen.append(request.cancelled and await asyncio.to_thread(request.wait_cancelled, WAIT_S))
            raise

    async def body() -> None:
        async with await connect(daemon.address) as service:
            await service.respond("svc/do", handle if shell == "blocking" else handle_later, concurrency=concurrency)
            async with aio.connect(daemon.address) as bus:
                asked = asyncio.ensure_future(bus.request("svc/do", timeout=0.2 if how == "timeout" else WAIT_S))
                await until(lambda: begun)
                if how == "timeout":
                    with pytest.raises(ipcbus_client.Expired):
                        await asked
                elif how == "cancel":
                    asked.cancel()
                else:
                    await bus.close(0)
                await until(lambda: seen)
                await asyncio.gather(asked, return_exceptions=True)
            assert seen == [True]
            assert getattr(service, "inner", service).stats_local()["handling"] == 0

    run(body())


def test_no_handler_is_left_of_requests_that_are_cancelled_as_they_come(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    """REQUEST and CANCEL in one read: the handler never begins, or hears of it."""
    begun: list[Any] = []
    ended: list[Any] = []

    def waits(request: ipcbus_client.Request) -> None:
        begun.append(request)
        if request.wait_cancelled(WAIT_S):
            ended.append(request)

    async def sleeps(request: aio.Request) -> None:
        begun.append(request)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            ended.append(request)
            raise

    async def body() -> None:
        async with await connect(daemon.address) as bus, aio.connect(daemon.address) as asker:
            await bus.respond("svc/wait", waits if shell == "blocking" else sleeps)
            await bus.respond("svc/last", lambda request: "last")
            for turns in range(100):
                asked = asyncio.create_task(asker.request("svc/wait"))
                for _ in range(turns % 4):
                    await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            assert await asker.request("svc/last", timeout=WAIT_S) == "last"
            await until(lambda: len(ended) == len(begun))

    run(body())


def test_what_waits_for_its_turn_and_is_cancelled_never_begins(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            gate = Gate(shell)
            await service.respond("svc/do", gate.code, concurrency=1)
            asked = [asyncio.ensure_future(bus.request("svc/do", number, timeout=WAIT_S)) for number in range(4)]
            await until(lambda: gate.inside)
            asked[1].cancel()
            asked[2].cancel()
            await asyncio.sleep(0)
            await bus.flush()
            await service.ping()
            gate.open()
            assert [await asked[0], await asked[3]] == [0, 3]
            assert gate.done == [0, 3]

    run(body())


# --- user code that waits for the bus ---


@pytest.mark.parametrize("depth", [1, 5])
def test_user_code_may_ask_its_own_service(connect: Connect, shell: str, daemon: RunningDaemon, depth: int) -> None:
    got: list[Any] = []

    async def body() -> None:
        async with await connect(daemon.address) as bus:
            inner = getattr(bus, "inner", bus)

            def count(request: Any) -> Any:
                return request.data and 1 + inner.request("svc/count", request.data - 1, timeout=WAIT_S)

            async def count_later(request: Any) -> Any:
                return request.data and 1 + await inner.request("svc/count", request.data - 1, timeout=WAIT_S)

            def ask(message: Any) -> None:
                got.append(inner.request("svc/count", depth, timeout=WAIT_S))

            async def ask_later(message: Any) -> None:
                got.append(await inner.request("svc/count", depth, timeout=WAIT_S))

            await bus.respond("svc/count", count if shell == "blocking" else count_later)
            await bus.subscribe("t", ask if shell == "blocking" else ask_later)
            for _ in range(3):
                await bus.publish("t")
            await until(lambda: len(got) == 3)
            assert got == [depth] * 3

    run(body())


def test_the_order_of_callbacks_holds_while_one_waits_for_the_bus(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    got: list[Any] = []

    async def body() -> None:
        async with await connect(daemon.address) as bus:
            inner = getattr(bus, "inner", bus)

            def ask(message: Any) -> None:
                inner.request("svc/echo", timeout=WAIT_S)
                got.append(message.data)

            async def ask_later(message: Any) -> None:
                await inner.request("svc/echo", timeout=WAIT_S)
                got.append(message.data)

            await bus.respond("svc/echo", lambda request: request.data)
            await bus.subscribe("t", ask if shell == "blocking" else ask_later)
            for number in range(100):
                await bus.publish("t", number)
            await until(lambda: len(got) == 100)
            assert got == list(range(100))

    run(body())


# --- close() ---


def test_close_waits_for_user_code_and_sends_what_it_said(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            gates = [Gate(shell) for _ in range(3)]
            service = await connect(daemon.address)
            await service.subscribe("t", gates[0].code)
            await service.subscribe("t", gates[1].code, concurrency=3)
            await service.respond("svc/do", gates[2].code, concurrency=2)
            for number in range(5):
                await bus.publish("t", number)
            asked = [asyncio.ensure_future(bus.request("svc/do", number, timeout=WAIT_S)) for number in range(3)]
            await until(lambda: [len(gate.inside) for gate in gates] == [1, 3, 2])
            closing = asyncio.ensure_future(service.close(WAIT_S))
            while await bus.names():
                await asyncio.sleep(0.01)
            with pytest.raises(ipcbus_client.NoSuchName):  # nothing new comes
                await bus.request("svc/do", 9)
            assert not closing.done()
            for gate in gates:
                gate.open()
            assert not await closing
            assert await asyncio.gather(*asked) == [0, 1, 2]
            assert [len(gate.done) for gate in gates] == [5, 5, 3]

    run(body())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_deadline_holds_against_user_code_that_hangs(
    connect: Connect, shell: str, daemon: RunningDaemon, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            gate, handler = Gate(shell), Gate(shell)
            service = await connect(daemon.address)
            await service.subscribe("t", gate.code, concurrency=concurrency)
            other = await connect(daemon.address)
            await other.respond("svc/hang", handler.code, concurrency=concurrency)
            for number in range(5):
                await bus.publish("t", number)
            asked = asyncio.ensure_future(bus.request("svc/hang", timeout=WAIT_S))
            await until(lambda: len(gate.inside) == concurrency and handler.inside)
            await service.close(0.3)
            await other.close(0.3)
            with pytest.raises(ipcbus_client.ResponderDied):
                await asked
            gate.open()
            handler.open()
            if shell == "aio":
                assert gate.failed == [asyncio.CancelledError] * concurrency
                assert handler.failed == [asyncio.CancelledError]
            else:
                await until(lambda: len(gate.done) == concurrency)
                assert len(gate.done) == concurrency  # what had not begun never does

    run(body())
    assert "closed while callback" in caplog.text
    assert "svc/hang" in caplog.text
    assert f"{5 - concurrency} messages for which no callback has begun" in caplog.text


def test_the_deadline_holds_against_a_daemon_that_is_stopped(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address, timeout=1.0)
        await bus.subscribe("t", lambda message: None)
        await bus.respond("svc/do", lambda request: None)
        daemon.signal(signal.SIGSTOP)
        try:
            full = False
            while not full:  # the socket's buffer is full
                try:
                    await asyncio.wait_for(bus.publish("x", bytes(1_000_000)), WAIT_S)
                except ipcbus_client.Timeout:
                    full = True
            undelivered = await asyncio.wait_for(bus.close(0.3), WAIT_S)
            assert undelivered.unsent + undelivered.unknown >= 1
            assert await bus.close() == undelivered
        finally:
            daemon.signal(signal.SIGCONT)

    run(body())


def test_close_is_legal_in_user_code_and_ends_what_waits(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        for concurrency in (1, 2):
            for kind in ("callback", "handler", "inbox"):
                bus = await connect(daemon.address)
                inner = getattr(bus, "inner", bus)
                closed: list[Any] = []
                asking: list[Any] = []

                def close(item: Any, inner: Any = inner, closed: list[Any] = closed) -> None:
                    closed.append(inner.close(WAIT_S))

                async def close_later(item: Any, inner: Any = inner, closed: list[Any] = closed) -> None:
                    closed.append(await inner.close(WAIT_S))

                code = close if shell == "blocking" else close_later
                if kind == "callback":
                    await bus.subscribe("t", code, concurrency=concurrency)
                    with contextlib.suppress(ipcbus_client.Closed):  # the first one may have closed it
                        for _ in range(2):
                            await bus.publish("t")
                elif kind == "handler":
                    await bus.respond("svc/do", code, concurrency=concurrency)
                    for _ in range(2):
                        asking.append(asyncio.ensure_future(_ask(daemon.address)))
                else:
                    await bus.inbox(code)
                    await bus.send(f":{inner.peer_id}", 1)
                await bus.wait(WAIT_S)
                await until(lambda closed=closed: closed)
                assert await bus.close() == closed[0]
                await asyncio.gather(*asking)

    async def _ask(address: str) -> None:
        async with aio.connect(address) as other:
            try:
                await other.request("svc/do", timeout=WAIT_S)
            except ipcbus_client.BusError:
                pass

    run(body())


def test_several_close_at_once_and_each_returns_when_it_is_closed(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        inner = getattr(bus, "inner", bus)
        gate = Gate(shell)
        await bus.subscribe("t", gate.code)
        await bus.publish("t", 1)
        await until(lambda: gate.inside)
        closing = [asyncio.ensure_future(bus.close(WAIT_S)) for _ in range(4)]
        waiting = asyncio.ensure_future(bus.wait())
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in (*closing, waiting))
        gate.open()
        await asyncio.gather(*closing, waiting)
        assert inner.state.value == "closed"
        assert gate.done == [1]

    run(body())


def test_a_shorter_deadline_ends_a_longer_close(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        gate = Gate(shell)
        await bus.subscribe("t", gate.code)
        await bus.publish("t", 1)
        await until(lambda: gate.inside)
        patient = asyncio.ensure_future(bus.close(None))
        await asyncio.sleep(0.05)
        await bus.close(0.05)
        await asyncio.wait_for(patient, WAIT_S)
        assert not gate.done, "close() waited for the end of what the shorter one had cut off"
        gate.open()
        await until(lambda: gate.done or gate.failed)

    run(body())


def test_nothing_of_the_hands_is_left(connect: Connect, shell: str, daemon: RunningDaemon) -> None:
    """Threads and tasks that ran user code are gone after close(); the fixture counts the threads."""

    async def body() -> None:
        bus = await connect(daemon.address)
        gate = Gate(shell)
        await bus.subscribe("t", gate.code, concurrency=20)
        for number in range(40):
            await bus.publish("t", number)
        await until(lambda: len(gate.inside) == 20)
        assert len([thread for thread in threading.enumerate() if thread.name == "ipcbus worker"]) <= 22
        gate.open()
        await until(lambda: len(gate.done) == 40)
        await bus.close()
        if shell == "aio":
            assert [task for task in asyncio.all_tasks() if "ipcbus" in task.get_name() or "callback" in task.get_name()] == []

    run(body())
    assert inspect.iscoroutinefunction(aio.Bus.wait)


def test_what_get_handed_out_of_a_group_is_handled_when_iteration_asks_for_more(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            sub = await bus.subscribe("t", group="g", prefetch=1)
            for number in range(4):
                await bus.publish("t", number)
            assert (await sub.get(WAIT_S)).data == 0
            got = []
            async for message in sub:
                got.append(message.data)
                if len(got) == 3:
                    break
            assert got == [1, 2, 3]

    run(body())


def test_what_a_generator_raises_when_it_is_closed_reaches_the_owner(connect: Connect, daemon: RunningDaemon) -> None:
    seen: list[Any] = []

    def count(request: ipcbus_client.Request) -> Iterator[int]:
        try:
            for number in range(1000):
                seen.append(ipcbus_client.current_request() is request)
                yield number
        finally:
            seen.append(ipcbus_client.current_request() is request)
            raise LookupError("in the end")

    async def body() -> None:
        async with await connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            await service.respond("svc/count", count, errors="raise")
            stream = await bus.stream("svc/count", window_bytes=100)
            assert [await stream.get(WAIT_S) for _ in range(50)] == list(range(50))
            await stream.close()
            with pytest.raises(LookupError, match="in the end"):
                await service.wait(WAIT_S)
            assert all(seen)
            assert service.stats_local()["handler_errors"] == 1

    run(body())


class NoThreads(threading.Thread):
    """The system has no thread left for user code."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_without_a_thread_for_more_at_once_they_run_one_after_the_other(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    together = threading.Barrier(2)

    def take(message: ipcbus_client.Message) -> None:
        if message.data >= 20:
            together.wait(WAIT_S)
        got.append(message.data)

    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus, ipcbus_client.connect(daemon.address, timeout=WAIT_S) as other:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThreads)
            with pytest.raises(RuntimeError, match="new thread"):
                bus.subscribe("t", take)
            with pytest.raises(RuntimeError, match="new thread"):
                bus.respond("svc/twice", take)
        assert other.names() == []
        bus.subscribe("t", take, concurrency=2)
        bus.respond("svc/twice", lambda request: 2 * request.data, concurrency=2)
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", NoThreads)
            for number in range(20):
                other.publish("t", number)
            assert [other.request("svc/twice", number, timeout=WAIT_S) for number in range(20)] == [2 * number for number in range(20)]
            wait_for(lambda: len(got) == 20, "a message has no callback")
        assert caplog.text.count("no further thread") == 1
        for number in (20, 21):
            other.publish("t", number)
        wait_for(lambda: len(got) == 22, "they do not run at once again")
