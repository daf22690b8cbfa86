"""Replies in parts under both shells against a real daemon: values as they are made, backpressure, and every way in which a stream ends."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, Connect, Threaded, connecting, run, until

LATE_S = 3600.0  #: of what must not be waited for


class Handler:
    """A generator handler with a diary."""

    def __init__(self, count: int = 10, *, value: Any = None, fail_at: int = -1, result: Any = None) -> None:
        self.count = count
        self.value = value
        self.fail_at = fail_at
        self.result = result
        self.made = 0
        self.closed = 0

    def plain(self, request: ipcbus_client.Request) -> Iterator[Any]:
        try:
            for number in range(self.count):
                if number == self.fail_at:
                    raise ipcbus_client.ServiceError("too_hot", "in the middle")
                self.made = number + 1
                yield number if self.value is None else self.value
            return self.result
        finally:
            self.closed += 1

    async def asynchronous(self, request: ipcbus_client.Request) -> AsyncIterator[Any]:
        inner = self.plain(request)
        try:
            for value in inner:
                if self.made % 50 == 0:
                    await asyncio.sleep(0)
                yield value
        finally:
            inner.close()


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


@pytest.fixture(params=["blocking", "aio", "aio-asynchronous"])
def kind(request: pytest.FixtureRequest) -> str:
    """The other end: a blocking program, or an asyncio one whose handler is a generator or an async generator."""
    return str(request.param)


async def serve(address: str, kind: str, handler: Handler) -> Any:
    """A bus on which ``svc/values`` is *handler*, and ``svc/alive`` answers as long as the program does."""
    if kind == "blocking":
        bus: Any = Threaded(await asyncio.to_thread(ipcbus_client.connect, address))
    else:
        bus = await aio.connect(address)
    await bus.respond("svc/values", handler.asynchronous if kind == "aio-asynchronous" else handler.plain)
    await bus.respond("svc/alive", lambda request: "yes")
    return bus


async def rest_of(stream: Any, into: list[Any] | None = None) -> None:
    """All values until something is raised."""

    async def take() -> None:
        while True:
            value = await stream.get(LATE_S)
            if into is not None:
                into.append(value)

    await asyncio.wait_for(take(), WAIT_S)


def test_values_one_by_one_then_the_result(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(1000, result="all")
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", timeout=LATE_S)
        with pytest.raises(RuntimeError):
            _ = stream.result
        assert [value async for value in stream] == list(range(1000))
        assert stream.result == (None if kind == "aio-asynchronous" else "all")
        with pytest.raises(ipcbus_client.Closed):
            await stream.get()
        await stream.close()
        assert handler.closed == 1
        assert (await bus.stats())["late_replies"] == 0
        await callee.close()
        await bus.close()

    run(body())


def test_a_producer_does_not_run_ahead_of_its_consumer(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        window, size = 8_000, 100
        handler = Handler(100_000, value=bytes(size))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=window)
        for taken in range(1, 301):
            assert await stream.get(WAIT_S) == bytes(size)
            assert handler.made - taken <= window // size + 1
        for _ in range(20):  # the service does everything else meanwhile
            assert await bus.request("svc/alive", timeout=WAIT_S) == "yes"
        await until(lambda: handler.made > 300)
        assert handler.made - 300 <= window // size + 1
        assert handler.closed == 0
        await stream.close()
        await until(lambda: handler.closed == 1)
        assert handler.made - 300 <= window // size + 1
        await callee.close()
        await bus.close()

    run(body())


def test_values_larger_than_the_window(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(20, value=bytes(500_000))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1)
        for taken in range(1, 21):
            assert len(await stream.get(WAIT_S)) == 500_000
            assert handler.made <= taken + 1
        with pytest.raises(ipcbus_client.Closed):
            await stream.get(WAIT_S)
        assert stream.result is None
        await callee.close()
        await bus.close()

    run(body())


@pytest.mark.parametrize("how", ["break", "close", "with", "forgotten"])
def test_a_stream_that_is_left_ends_the_generator(connect: Connect, daemon: RunningDaemon, kind: str, how: str) -> None:
    async def body() -> None:
        handler = Handler(100_000)
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values")
        if how == "break":
            async for value in stream:
                if value == 3:
                    break
        elif how == "close":
            assert [await stream.get(WAIT_S) for _ in range(3)] == [0, 1, 2]
            await stream.close()
            assert [value async for value in stream] == []
            with pytest.raises(ipcbus_client.Closed):
                await stream.get()
            with pytest.raises(ipcbus_client.Closed):
                _ = stream.result
        elif how == "with":
            async with stream:
                assert await stream.get(WAIT_S) == 0
        else:
            assert await stream.get(WAIT_S) == 0
            del stream
            gc.collect()
        await until(lambda: handler.closed == 1, "the generator was not closed")
        assert handler.made < 100_000
        assert await bus.request("svc/alive", timeout=WAIT_S) == "yes"
        assert bus.stats_local()["requests"] == 0
        assert callee.stats_local()["handling"] == 0
        assert callee.stats_local()["handler_errors"] == 0
        await callee.close()
        await bus.close()

    run(body())


def test_an_error_comes_after_the_values_before_it(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(10, fail_at=7)
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values")
        await until(lambda: handler.closed == 1)
        values: list[Any] = []
        with pytest.raises(ipcbus_client.ServiceError) as caught:
            await rest_of(stream, values)
        assert values == list(range(7))
        assert (caught.value.code, caught.value.text) == ("too_hot", "in the middle")
        with pytest.raises(ipcbus_client.ServiceError):
            await stream.get()
        with pytest.raises(ipcbus_client.ServiceError):
            _ = stream.result
        handler.value = object()  # what cannot be sent is the service's error
        stream = await bus.stream("svc/values")
        with pytest.raises(ipcbus_client.ServiceError, match="cannot pack object"):
            await stream.get(WAIT_S)
        await until(lambda: handler.closed == 2)
        await callee.close()
        await bus.close()

    run(body())


def test_the_daemon_is_killed_in_the_middle(connect: Connect, daemon_factory: DaemonFactory, kind: str) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        handler = Handler(100_000, value=bytes(100))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1000, timeout=LATE_S)
        await stream.get(WAIT_S)
        await until(lambda: handler.made >= 5)

        daemon.kill()
        with pytest.raises(ipcbus_client.ConnectionLost):
            await rest_of(stream)
        await until(lambda: handler.closed == 1, "the generator was not closed")
        again = daemon_factory(at=daemon.directory)
        stream = await bus.stream("svc/values", timeout=WAIT_S)  # waits for the connection
        await until(lambda: handler.made >= 1)
        await callee.close()
        await bus.close()
        again.stop()

    run(body())


def test_a_wait_that_finds_the_end_when_it_writes_settles(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        callee, bus = await serve(daemon.address, "aio", Handler(100_000, value=bytes(100))), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1000, timeout=LATE_S)
        await stream.get(WAIT_S)
        daemon.kill()
        getattr(bus, "inner", bus)._session.ping()  # something to write, before anybody read the end
        with pytest.raises(ipcbus_client.ConnectionLost):
            await rest_of(stream)
        await callee.close()
        await bus.close()

    run(body())


def test_the_service_goes_in_the_middle(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(100_000, value=bytes(100))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1000, timeout=LATE_S)
        await stream.get(WAIT_S)
        await callee.close(LATE_S)
        assert handler.closed == 1
        with pytest.raises(ipcbus_client.ResponderDied):
            await rest_of(stream)
        await bus.close()

    run(body())


def test_the_requester_goes_in_the_middle(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(100_000, value=bytes(100))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1000, timeout=LATE_S)
        await stream.get(WAIT_S)
        await bus.close()
        await until(lambda: handler.closed == 1, "the generator was not closed")
        with pytest.raises(ipcbus_client.Closed, match="the bus was closed"):
            await rest_of(stream)
        await callee.close()

    run(body())


def test_the_time_of_a_stream_and_of_one_value(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(100_000, value=bytes(100))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        stream = await bus.stream("svc/values", window_bytes=1000, timeout=0.3)
        await until(lambda: handler.closed == 1, "the generator was not closed")
        with pytest.raises(ipcbus_client.Expired):
            await rest_of(stream)
        go = threading.Event()

        def wait(request: ipcbus_client.Request) -> Iterator[str]:
            go.wait(WAIT_S)
            yield "at last"

        async def wait_async(request: ipcbus_client.Request) -> AsyncIterator[str]:
            await until(go.is_set)
            yield "at last"

        await callee.respond("svc/wait", wait if kind == "blocking" else wait_async)
        stream = await bus.stream("svc/wait")
        with pytest.raises(ipcbus_client.Timeout):
            await stream.get(0.05)
        go.set()
        assert await stream.get(WAIT_S) == "at last"
        await callee.close()
        await bus.close()

    run(body())


def test_without_a_stream_the_values_are_one_list(connect: Connect, daemon_factory: DaemonFactory, kind: str) -> None:
    async def body() -> None:
        daemon = daemon_factory(config="[limits]\nmax_payload_bytes = 10000\n")
        handler = Handler(300)
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        assert await bus.request("svc/values", timeout=WAIT_S) == list(range(300))
        handler.count, handler.value = 90, bytes(100)
        assert await bus.request("svc/values", timeout=WAIT_S) == [bytes(100)] * 90
        handler.count = 10_000_000
        with pytest.raises(ipcbus_client.ServiceError, match=r"ask with stream\(\)"):
            await bus.request("svc/values", timeout=WAIT_S)
        await until(lambda: handler.closed == 3)
        await callee.close()
        await bus.close()

    run(body())


def test_a_handler_that_is_no_generator_and_other_errors(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        callee, bus = await serve(daemon.address, kind, Handler(fail_at=0)), await connect(daemon.address)
        stream = await bus.stream("svc/alive")
        assert [value async for value in stream] == []
        assert stream.result == "yes"
        for to, error in {
            "svc/nothing": ipcbus_client.NoSuchMethod,
            "nobody/values": ipcbus_client.NoSuchName,
            "svc/values": ipcbus_client.ServiceError,
        }.items():
            stream = await bus.stream(to)
            with pytest.raises(error):
                await stream.get(WAIT_S)
        for arguments, options in (("nothing",), {}), (("a/b",), {"window_bytes": 0}), (("a/b",), {"timeout": -1}):
            with pytest.raises(ValueError, match=r"NAME/METHOD|METHOD|window_bytes|timeout"):
                await bus.stream(*arguments, **options)
        await callee.close()
        await bus.close()

    run(body())


def test_many_streams_at_once(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        handler = Handler(200)
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        streams = [await bus.stream("svc/values", window_bytes=200) for _ in range(30)]
        for number in range(200):
            for stream in streams:
                assert await stream.get(WAIT_S) == number
        for stream in streams:
            with pytest.raises(ipcbus_client.Closed):
                await stream.get(WAIT_S)
        assert handler.closed == 30
        await callee.close()
        await bus.close()

    run(body())


def test_streams_over_many_deaths_of_the_daemon(connect: Connect, daemon_factory: DaemonFactory, kind: str) -> None:
    """Each time the streams end with ConnectionLost and their generators are closed, and new ones begin when the bus is back."""

    async def body() -> None:
        daemon = daemon_factory()
        handler = Handler(1_000_000, value=bytes(100))
        callee, bus = await serve(daemon.address, kind, handler), await connect(daemon.address)
        for turn in range(1, 5):
            streams = []
            while len(streams) < 3:
                stream = await bus.stream("svc/values", window_bytes=2_000, timeout=LATE_S)
                try:
                    await stream.get(WAIT_S)
                except ipcbus_client.NoSuchName:  # the service is not back yet
                    await asyncio.sleep(0.01)
                else:
                    streams.append(stream)
            consumers = [asyncio.create_task(rest_of(stream)) for stream in streams[:2]]  # the third is not read
            await asyncio.sleep(0)
            daemon.kill()
            for consumer in consumers:
                with pytest.raises(ipcbus_client.ConnectionLost):
                    await consumer
            with pytest.raises(ipcbus_client.ConnectionLost):
                await rest_of(streams[2])
            await until(lambda turn=turn: handler.closed == 3 * turn, "a generator was not closed")  # type: ignore[misc]
            daemon = daemon_factory(at=daemon.directory)
        assert bus.stats_local()["requests"] == 0
        assert callee.stats_local()["handling"] == 0
        await callee.close()
        await bus.close()

    run(body())


def test_requests_that_wait_at_a_stuck_handler_are_bounded(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        callee, bus = await connect(daemon.address), await connect(daemon.address)
        go = threading.Event()

        def stuck(request: ipcbus_client.Request) -> str:
            go.wait(WAIT_S)
            return "done"

        async def stuck_async(request: ipcbus_client.Request) -> str:
            await until(go.is_set)
            return "done"

        await callee.respond("svc/stuck", stuck if isinstance(callee, Threaded) else stuck_async)
        payload = bytes(15 << 20)
        asked = [asyncio.create_task(bus.request("svc/stuck", payload, timeout=WAIT_S)) for _ in range(6)]
        await until(lambda: callee.stats_local()["overloaded"] == 2)
        go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, ipcbus_client.ServiceError)]
        assert [error.code for error in refused] == ["overloaded"] * 2
        assert sum(answer == "done" for answer in answers) == 4
        assert await bus.request("svc/stuck", payload, timeout=WAIT_S) == "done"
        await callee.close()
        await bus.close()

    run(body())


def test_a_generator_is_a_handler_like_others(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    """It knows its request, may ask its own program, shares a concurrency, and what it raises reaches the owner that asked for it."""

    async def body() -> None:
        bus = await connect(daemon.address)
        callee = await serve(daemon.address, kind, Handler())
        blocking = kind == "blocking"

        def plain(request: ipcbus_client.Request) -> Iterator[Any]:
            for _ in range(3):
                assert ipcbus_client.current_request() is request
                yield callee.inner.request("svc/alive", timeout=WAIT_S) if blocking else "yes"
            raise KeyError("the end")

        async def asynchronous(request: ipcbus_client.Request) -> AsyncIterator[Any]:
            for _ in range(3):
                assert ipcbus_client.current_request() is request
                yield await callee.request("svc/alive", timeout=WAIT_S)
            raise KeyError("the end")

        handler = asynchronous if kind == "aio-asynchronous" else plain
        for method, options in {"one": {}, "several": {"concurrency": 2, "errors": "raise"}}.items():
            await callee.respond(f"svc/{method}", handler, **options)
            stream, values = await bus.stream(f"svc/{method}", window_bytes=1), []
            with pytest.raises(ipcbus_client.ServiceError, match="the end"):
                await rest_of(stream, values)
            assert values == ["yes"] * 3
        with pytest.raises(KeyError, match="the end"):
            await callee.wait(WAIT_S)
        assert await bus.request("svc/alive", timeout=WAIT_S) == "yes"
        await callee.close()
        await bus.close()

    run(body())


def test_a_generator_may_close_its_bus(connect: Connect, daemon: RunningDaemon, kind: str) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        callee = await serve(daemon.address, kind, Handler())
        closed: list[str] = []

        def plain(request: ipcbus_client.Request) -> Iterator[int]:
            try:
                yield 1
                if kind == "blocking":
                    callee.inner.close()
                else:
                    asyncio.get_running_loop().create_task(callee.close())
                yield 2
                yield 3
            finally:
                closed.append("closed")

        async def asynchronous(request: ipcbus_client.Request) -> AsyncIterator[int]:
            try:
                yield 1
                await callee.close()
                yield 2
            finally:
                closed.append("closed")

        await callee.respond("svc/end", asynchronous if kind == "aio-asynchronous" else plain)
        stream = await bus.stream("svc/end", window_bytes=1)
        with pytest.raises(ipcbus_client.ResponderDied):
            await rest_of(stream)
        await until(lambda: closed == ["closed"])
        await callee.close()
        await bus.close()

    run(body())
