"""Services from annotated objects, proxies and typed errors, in both shells with a real daemon."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import datetime
import inspect
import logging
import pickle
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.integration import test_client_shells as shells
from tests.integration.test_client_shells import Connect, run, until


class Blocking(shells.Blocking):
    """As there, also for what this module gets handed out."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return value
        if name == "proxy":
            return lambda *arguments, **options: Called(value(*arguments, **options))

        async def call(*arguments: Any, **options: Any) -> Any:
            result = await asyncio.to_thread(value, *arguments, **options)
            return Blocking(result) if isinstance(result, (ipcbus_client.Bus, ipcbus_client.Service, ipcbus_client.Responder)) else result

        return call


class Called:
    """A blocking proxy whose methods are awaited."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name == "with_":
            return lambda **options: Called(method(**options))
        return Called(method)

    async def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return await asyncio.to_thread(self.inner, *arguments, **keywords)


async def _connect_blocking(*arguments: Any, **options: Any) -> Any:
    return Blocking(ipcbus_client.connect(*arguments, **options))


async def _connect_aio(*arguments: Any, **options: Any) -> Any:
    return await aio.connect(*arguments, **options)


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return _connect_blocking if request.param == "blocking" else _connect_aio


@dataclasses.dataclass
class Reading:
    room: str
    celsius: float
    at: datetime.datetime | None = None


class TooHot(ipcbus_client.ServiceError):
    code = "thermostat.too_hot"


class PrivateError(Exception):
    """Of the service only: no class at the caller."""


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


class Thermostat:
    def __init__(self) -> None:
        self.target = 20.0
        self.calls = 0

    def set_target(self, target: float, *, hold: bool = False) -> float:
        """Set the target in degrees Celsius."""
        self.calls += 1
        if target > 30:
            raise TooHot(f"{target} is over 30 °C")
        self.target = target
        return -target if hold else target

    def readings(self, rooms: list[str]) -> list[Reading]:
        return [Reading(room, self.target, NOW) for room in rooms]

    def store(self, reading: Reading) -> str:
        return f"{reading.room} {reading.celsius} {reading.at}"

    def whoami(self, request: ipcbus_client.Request, extra: int = 0) -> tuple[int, int]:
        return request.sender, extra

    def size(self, data: bytes) -> int:
        return len(data)

    def echo(self, *values: Any, **named: Any) -> Any:
        return [values, named]

    def fail(self, how: str) -> None:
        raise {"value": ValueError("bad"), "key": KeyError("missing"), "private": PrivateError("own"), "denied": PermissionError("no")}[how]

    def wrong_result(self) -> Reading:
        return {"room": 1}  # type: ignore[return-value]  # what the caller's conversion finds

    def unpackable(self) -> Any:
        return {"value": object()}


def test_a_service_and_its_proxy(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, asker = await connect(daemon.address), await connect(daemon.address)
        thermostat = Thermostat()
        service = await bus.serve("home.thermostat", thermostat)
        assert service.name == "home.thermostat"
        assert {"set_target", "readings", "echo"} <= set(service.methods)
        proxy = asker.proxy("home.thermostat")
        assert await proxy.set_target(21.5) == 21.5
        assert await proxy.set_target(22) == 22.0
        assert await proxy.set_target(target=23, hold=True) == -23.0
        assert await proxy.set_target(24, hold=True) == -24.0
        assert await asker.request("home.thermostat/set_target", 25.5) == 25.5  # any other value: the one positional argument
        assert await proxy.store(Reading("hall", 3.0, NOW)) == f"hall 3.0 {NOW}"
        assert await proxy.whoami(extra=3) == [asker.peer_id, 3]
        assert await proxy.size(b"raw") == 3
        assert await proxy.size(memoryview(b"view")) == 4
        for value in ({"a": 1}, [1], None, "text", b"bytes"):
            assert await proxy.echo(value, 1, named=value) == [[value, 1], {"named": value}]
            assert await proxy.echo(value) == [[value], {}]
        assert await proxy.echo() == [[], {}]
        assert await asker.request("home.thermostat/readings", [["a"]], type=list[Reading]) == [Reading("a", 25.5, NOW)]
        assert await asker.proxy(f":{bus.peer_id}").set_target(1) == 1.0
        assert "uptime_s" in await asker.proxy("bus").stats()
        with pytest.raises(ipcbus_client.ServiceError, match=r"\$\.value: cannot pack object"):
            await proxy.unpackable()
        await service.close()
        await service.close()
        with pytest.raises(ipcbus_client.NoSuchName):
            await proxy.set_target(1)
        await asker.close()
        await bus.close()

    run(body())


def test_a_wrong_call_is_told_with_the_signature_and_never_made(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        thermostat = Thermostat()
        await bus.serve("t", thermostat)
        proxy = bus.proxy("t")
        for arguments, named, text in (
            (("warm",), {}, "target: expected float, got str 'warm'"),
            ((), {}, "missing a required argument: 'target'"),
            ((1, 2), {}, "too many positional arguments"),
            ((1,), {"hold": 1}, "hold: expected bool, got int 1"),
            ((1,), {"speed": 1}, "got an unexpected keyword argument 'speed'"),
        ):
            with pytest.raises(ipcbus_client.BadArguments) as caught:
                await proxy.set_target(*arguments, **named)
            assert caught.value.text == f"set_target(target: float, *, hold: bool = False) -> float: {text}"
            assert (caught.value.code, caught.value.to) == ("BadArguments", "t/set_target")
            assert isinstance(caught.value, TypeError)
        with pytest.raises(ipcbus_client.BadArguments, match=r"reading\.celsius: expected float, got None"):
            await proxy.store({"room": "hall", "celsius": None})
        with pytest.raises(ipcbus_client.NoSuchMethod):
            await proxy.missing()
        assert thermostat.calls == 0
        await bus.close()

    run(body())


def test_errors_cross_as_what_they_are(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.serve("plain", Thermostat())
        await bus.serve("traced", Thermostat(), tracebacks=True)
        for name, traced in (("plain", False), ("traced", True)):
            proxy = bus.proxy(name)
            with pytest.raises(TooHot) as hot:
                await proxy.set_target(31)
            assert (hot.value.code, hot.value.text, hot.value.to) == ("thermostat.too_hot", "31.0 is over 30 °C", f"{name}/set_target")
            for how, builtin, text in (("value", ValueError, "bad"), ("key", KeyError, "'missing'"), ("denied", PermissionError, "no")):
                with pytest.raises(builtin) as caught:
                    await proxy.fail(how)
                assert isinstance(caught.value, ipcbus_client.ServiceError)
                assert caught.value.text == text
                if traced:
                    assert caught.value.traceback is not None
                    assert "in fail" in caught.value.traceback
                else:
                    assert caught.value.traceback is None
            with pytest.raises(ipcbus_client.ServiceError) as private:
                await proxy.fail("private")
            assert (type(private.value), private.value.code) == (ipcbus_client.ServiceError, "PrivateError")
        await bus.close()

    run(body())


def test_a_remote_traceback_is_bounded_and_keeps_its_end(connect: Connect, daemon: RunningDaemon) -> None:
    class Deep:
        def fail(self, text: str) -> None:
            raise ValueError(text + " the end")

    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.serve("deep", Deep(), tracebacks=True)
        with pytest.raises(ValueError, match="the") as caught:
            await bus.proxy("deep").fail("é" * 40_000)
        assert isinstance(caught.value, ipcbus_client.ServiceError)
        trace = caught.value.traceback
        assert trace is not None
        assert 32 * 1024 - 4 <= len(trace.encode()) <= 32 * 1024
        assert trace.endswith(" the end\n")
        await bus.close()

    run(body())


def test_an_interface_gives_types_to_results(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.serve("t", Thermostat())
        proxy = bus.proxy("t", Thermostat)
        assert await proxy.readings(["a", "b"]) == [Reading("a", 20.0, NOW), Reading("b", 20.0, NOW)]
        assert await proxy.whoami() == (bus.peer_id, 0)
        with pytest.raises(ipcbus_client.PayloadError, match=r"^\$\.room: expected str, got int 1"):
            await proxy.wrong_result()
        with pytest.raises(AttributeError):
            _ = proxy.missing
        await bus.close()

    run(body())


def test_a_module_is_a_service(connect: Connect, daemon: RunningDaemon) -> None:
    module = types.ModuleType("tests.clock_module")
    exec("from math import sqrt\ndef double(x: int) -> int:\n    'Twice.'\n    return 2 * x\n", vars(module))

    async def body() -> None:
        bus = await connect(daemon.address)
        async with await bus.serve("clock", module) if isinstance(bus, aio.Bus) else Entered(await bus.serve("clock", module)) as service:
            assert service.methods == ["double"]
            assert await bus.proxy("clock").double(4) == 8
        with pytest.raises(ipcbus_client.NoSuchName):
            await bus.proxy("clock").double(4)
        await bus.close()

    run(body())


class Entered:
    """A blocking service in an ``async with``."""

    def __init__(self, service: Any) -> None:
        self.service = service

    async def __aenter__(self) -> Any:
        self.service.inner.__enter__()
        return self.service

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self.service.inner.__exit__, None, None, None)


def test_introspection_and_what_is_declared_again(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address)
        await bus.serve("t", Thermostat())
        await bus.respond("other/do", lambda request: 1, about={"doc": "Do it."})
        before = (await bus.introspect("t"))["methods"]
        assert before["set_target"] == {
            "doc": "Set the target in degrees Celsius.",
            "signature": "set_target(target: float, *, hold: bool = False) -> float",
            "arguments": {"target": {"type": "float", "required": True}, "hold": {"type": "bool", "required": False, "default": False}},
            "returns": "float",
        }
        assert before["store"]["arguments"]["reading"]["type"] == "Reading"
        assert (await bus.introspect("other"))["methods"] == {"do": {"doc": "Do it."}}
        epoch = bus.epoch
        daemon.kill()
        daemon_factory(at=daemon.directory)
        await until(lambda: bus.epoch > epoch and bus.state.value == "connected")
        assert (await bus.introspect("t"))["methods"] == before
        assert (await bus.introspect("other"))["methods"] == {"do": {"doc": "Do it."}}
        assert await bus.proxy("t").set_target(3) == 3.0
        with pytest.raises(ipcbus_client.Refused, match="over_limit"):
            await bus.respond("big/do", lambda request: 1, about={"doc": "x" * 70_000})
        with pytest.raises(ipcbus_client.PayloadError):
            await bus.respond("big/do", lambda request: 1, about={"doc": object()})
        await bus.close()

    run(body())


def test_who_sees_the_name_finds_every_method(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, asker = await connect(daemon.address), await connect(daemon.address)
        for number in range(20):
            name = f"t{number}"
            seen = asyncio.ensure_future(asker.wait_for_name(name, 20))
            serving = asyncio.ensure_future(bus.serve(name, Thermostat()))
            assert await seen == bus.peer_id
            answers = await asyncio.gather(asker.proxy(name).whoami(), asker.proxy(name).echo(), asker.proxy(name).set_target(1))
            assert answers[0] == [asker.peer_id, 0]
            await (await serving).close()
        await asker.close()
        await bus.close()

    run(body())


def test_a_method_that_is_refused_leaves_nothing_behind(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        with pytest.raises(ipcbus_client.Refused, match="over_limit"):
            await bus.respond("big/do", lambda request: 1, about={"doc": "x" * 70_000})
        assert await bus.names() == []
        await bus.respond("big/other", lambda request: 1)
        with pytest.raises(ipcbus_client.Refused, match="over_limit"):
            await bus.respond("big/do", lambda request: 1, about={"doc": "x" * 70_000})
        assert [(item["name"], item["methods"]) for item in await bus.names()] == [("big", ["other"])]
        assert await bus.proxy("big").other() == 1
        await bus.close()

    run(body())


class Half:
    def first(self) -> int:
        return 1

    def second(self, x: complex) -> int:
        return 2


def test_what_cannot_be_served_leaves_nothing_behind(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, other = await connect(daemon.address), await connect(daemon.address)
        with pytest.raises(TypeError, match="second: parameter 'x': complex"):
            await bus.serve("half", Half())
        with pytest.raises(TypeError, match="is a class"):
            await bus.serve("half", Thermostat)
        with pytest.raises(ipcbus_client.BadName):
            await bus.serve("not a name", Thermostat())
        assert await other.names() == []
        await other.serve("taken", Thermostat())
        with pytest.raises(ipcbus_client.Refused, match="name_taken"):
            await bus.serve("taken", Thermostat())
        assert await bus.proxy("taken").set_target(1) == 1.0
        async with asyncio.timeout(20):
            await other.close()
        await bus.serve("taken", Thermostat(), mode="queue")
        await bus.close()

    run(body())


def test_a_proxy_is_no_trap_for_python(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        proxy = bus.proxy("t")
        proxy = proxy.inner if isinstance(proxy, Called) else proxy
        assert repr(proxy) == "<Proxy t>"
        assert repr(proxy.method) == "<ProxyMethod t/method>"
        for name in ("__len__", "_ipython_display_", "__wrapped__", "__deepcopy__"):
            with pytest.raises(AttributeError, match=name):
                getattr(proxy, name)
        assert repr(copy.copy(proxy)) == "<Proxy t>"
        with pytest.raises(TypeError):
            pickle.dumps(proxy)
        for bad in ("", "a b", "a/b", "bus.x", 3):
            with pytest.raises(ipcbus_client.BadName):
                bus.proxy(bad)
        await bus.respond("slow/do", lambda request: request.timeout)
        assert await bus.proxy("slow", timeout=9).do() == 9.0
        assert await bus.proxy("slow").do.with_(timeout=7.5)() == 7.5
        await bus.close()

    run(body())


class Streaming:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def count(self, to: int, fail_at: int = -1) -> Iterator[Reading]:
        """Count."""
        try:
            for number in range(to):
                if number == fail_at:
                    raise TooHot(f"at {number}")
                yield Reading("n", float(number))
        finally:
            self.ended.append("count")


    def mapped(self, to: int) -> Iterator[int]:
        return map(int, iter(range(to)))


class Counting:
    """An asynchronous iterator that is no generator."""

    def __init__(self, to: int) -> None:
        self.numbers = iter(range(to))

    def __aiter__(self) -> Counting:
        return self

    async def __anext__(self) -> int:
        for number in self.numbers:
            return number
        raise StopAsyncIteration


class StreamingLater:
    """The same, asynchronous."""

    def mapped(self, to: int) -> AsyncIterator[int]:
        return Counting(to)

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def count(self, to: int, fail_at: int = -1) -> AsyncIterator[Reading]:
        """Count."""
        try:
            for number in range(to):
                await asyncio.sleep(0)
                if number == fail_at:
                    raise TooHot(f"at {number}")
                yield Reading("n", float(number))
        finally:
            self.ended.append("count")


def collect(stream: Any) -> list[Any]:
    with stream:
        return list(stream)


async def taken(bus: Any, method: Any, *arguments: Any) -> list[Any]:
    """All values of a stream of either shell."""
    if isinstance(bus, aio.Bus):
        async with await method.stream(*arguments) as stream:
            return [value async for value in stream]
    return await asyncio.to_thread(lambda: collect(method.inner.stream(*arguments)))


@pytest.mark.parametrize("later", [False, True])
def test_generator_methods_stream(connect: Connect, daemon: RunningDaemon, later: bool) -> None:
    async def body() -> None:
        bus, asker = await connect(daemon.address), await connect(daemon.address)
        if later and not isinstance(bus, aio.Bus):
            with pytest.raises(TypeError, match="count is asynchronous"):
                await bus.serve("s", StreamingLater())
            await asker.close()
            await bus.close()
            return
        service = StreamingLater() if later else Streaming()
        await bus.serve("s", service, tracebacks=True)
        plain, typed = asker.proxy("s"), asker.proxy("s", Streaming)
        readings = [Reading("n", float(number)) for number in range(200)]
        assert await taken(asker, typed.count, 200) == readings
        assert (await taken(asker, plain.count, 2))[1] == {"room": "n", "celsius": 1.0, "at": None}
        assert await typed.count(to=3) == readings[:3]  # a call without stream() gets them at once
        assert await taken(asker, typed.count.with_(timeout=30, window_bytes=10), 20) == readings[:20]
        with pytest.raises(ipcbus_client.BadArguments, match="to: expected int"):
            await taken(asker, plain.count, "x")
        with pytest.raises(TooHot, match="at 2") as hot:
            await taken(asker, plain.count, 9, 2)
        assert "in count" in str(hot.value.traceback)
        ended = len(service.ended)
        await left_early(asker, plain.count)
        await until(lambda: len(service.ended) == ended + 1, "the generator was not closed")
        assert (await asker.introspect("s"))["methods"]["count"]["streams"] is True
        await asker.close()
        await bus.close()

    run(body())


async def left_early(bus: Any, method: Any) -> None:
    if isinstance(bus, aio.Bus):
        stream = await method.with_(window_bytes=1000).stream(1_000_000)
        assert (await stream.get(20))["celsius"] == 0.0
        await stream.close()
        return
    stream = await asyncio.to_thread(method.inner.with_(window_bytes=1000).stream, 1_000_000)
    assert (await asyncio.to_thread(stream.get, 20))["celsius"] == 0.0
    await asyncio.to_thread(stream.close)


class Accounts:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = threading.Event()

    def pay_in(self, account: str) -> None:
        self.log.append(f"in {account} begins")
        assert self.gate.wait(20)
        self.log.append(f"in {account} ends")

    def pay_out(self, account: str) -> None:
        self.log.append(f"out {account}")


class AccountsLater(Accounts):
    async def pay_in(self, account: str) -> None:  # type: ignore[override]  # the same, asynchronous
        self.log.append(f"in {account} begins")
        while not self.gate.is_set():
            await asyncio.sleep(0.005)
        self.log.append(f"in {account} ends")


async def handling(bus: Any) -> int:
    """How many requests are at work at *bus*."""
    stats = bus.stats_local()
    return int((await stats if inspect.isawaitable(stats) else stats)["handling"])


def test_a_key_keeps_its_order_over_all_methods(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus, asker = await connect(daemon.address), await connect(daemon.address)
        accounts = AccountsLater() if isinstance(bus, aio.Bus) else Accounts()
        service = await bus.serve("accounts", accounts, concurrency=4, key=lambda request: request.data[0])
        proxy = asker.proxy("accounts", timeout=30)
        first = asyncio.ensure_future(proxy.pay_in("a"))
        await until(lambda: accounts.log)
        second = asyncio.ensure_future(proxy.pay_out("a"))
        async with asyncio.timeout(20):
            while await handling(bus) < 2:
                await asyncio.sleep(0.01)
        await proxy.pay_out("b")
        assert accounts.log == ["in a begins", "out b"]
        accounts.gate.set()
        await asyncio.gather(first, second)
        assert accounts.log == ["in a begins", "out b", "in a ends", "out a"]
        await service.close()
        with pytest.raises(ValueError, match="concurrency of 0"):
            await bus.serve("accounts", accounts, concurrency=0)
        with pytest.raises(ipcbus_client.NoSuchName):
            await proxy.pay_out("a")
        await asker.close()
        await bus.close()

    run(body())


def test_what_a_method_raises_is_raised_by_wait_too_where_asked(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.serve("t", Thermostat(), errors="raise")
        for wrong in (bus.proxy("t").set_target("warm"), bus.proxy("t").set_target(99)):
            with pytest.raises(ipcbus_client.ServiceError):  # answers, and no fault of the service
                await wrong
        with pytest.raises(ValueError, match="bad"):
            await bus.proxy("t").fail("value")
        with pytest.raises(ValueError, match="bad") as caught:
            await bus.wait(20)
        assert type(caught.value) is ValueError
        await bus.close()

    run(body())


class Awaiting:
    async def later(self, x: int) -> int:
        """Twice, a little later."""
        await asyncio.sleep(0)
        return 2 * x

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError("later")


def test_coroutine_methods(daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await aio.connect(daemon.address)
        async with await bus.serve("later", Awaiting(), tracebacks=True):
            assert await bus.proxy("later").later(4) == 8
            assert await bus.proxy("later", Awaiting).later(4) == 8
            with pytest.raises(ipcbus_client.BadArguments):
                await bus.proxy("later").later("x")
            with pytest.raises(ValueError, match="later") as caught:
                await bus.proxy("later").fail()
            assert "in fail" in str(caught.value.traceback)  # type: ignore[attr-defined]  # it is a ServiceError too
        await bus.close()

    run(body())
    with ipcbus_client.connect(daemon.address) as blocking, pytest.raises(TypeError, match=r"(later|fail) is asynchronous: serve it with"):
        blocking.serve("later", Awaiting())


def test_serving_is_loaded_when_it_is_used() -> None:
    import subprocess

    code = "import sys, ipcbus_client; print([m for m in sys.modules if m in ('ipcbus_client._methods', 'ipcbus_client._convert')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Careless(ipcbus_client.ServiceError):
    code = "tests.careless"

    def __init__(self, limit: float) -> None:
        self.limit = limit


class Failing:
    def careless(self) -> None:
        raise Careless(3.5)

    def wraps(self) -> None:
        raise ipcbus_client.ServiceError("tests.wraps", ValueError("inner"))  # type: ignore[arg-type]

    def numbers(self) -> None:
        error = Careless(3.5)
        error.text = 3.5  # type: ignore[assignment]
        raise error

    def unpackable(self) -> Any:
        class Lazy(dict[str, Any]):
            def items(self) -> Any:
                raise PrivateError("too late")

        return [Lazy()]

    def noted(self) -> None:
        error = PrivateError("own")
        error.__notes__ = 5  # type: ignore[assignment]
        raise error

    def forgotten(self):  # type: ignore[no-untyped-def]
        return None


def test_whatever_a_method_raises_answers_the_request(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        with pytest.warns(UserWarning, match="forgotten of .* will not be served"):
            await bus.serve("t", Failing(), tracebacks=True)
        with pytest.raises(ipcbus_client.ServiceError, match="t/noted: PrivateError: own"):
            await bus.proxy("t").noted.with_(timeout=20)()
        with pytest.raises(Careless):
            await bus.proxy("t").careless.with_(timeout=20)()
        with pytest.raises(ipcbus_client.ServiceError, match="PayloadError: cannot pack list: too late"):
            await bus.proxy("t").unpackable.with_(timeout=20)()
        with pytest.raises(Careless, match=r"^t/numbers: tests\.careless: 3\.5"):
            await bus.proxy("t").numbers.with_(timeout=20)()
        with pytest.raises(ipcbus_client.ServiceError, match=r"^t/wraps: tests\.wraps: inner"):
            await bus.proxy("t").wraps.with_(timeout=20)()
        await bus.close()

    run(body())


def test_the_warning_points_at_who_serves(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as bus, pytest.warns(UserWarning, match="forgotten") as caught:
        bus.serve("t", Failing())
    assert caught[0].filename == __file__

    async def body() -> None:
        async with await aio.connect(daemon.address) as bus:
            with pytest.warns(UserWarning, match="forgotten") as caught:
                await bus.serve("t", Failing())
            assert caught[0].filename == __file__

    run(body())


def test_a_log_that_fails_does_not_end_the_bus(connect: Connect, daemon: RunningDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise PrivateError("a broken filter")

    broken = Broken()
    logging.getLogger("ipcbus_client").addFilter(broken)

    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.serve("t", Thermostat())
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                await bus.proxy("t").fail.with_(timeout=20)("value")  # logged with its traceback
        with pytest.raises(ipcbus_client.ServiceError, match="cannot pack object"):
            await bus.proxy("t").unpackable.with_(timeout=20)()  # a remark of the session
        await bus.ping()
        assert bus.state.value == "connected"
        await bus.close()

    try:
        run(body())
    finally:
        logging.getLogger("ipcbus_client").removeFilter(broken)
    assert capfd.readouterr().err.count("PrivateError: a broken filter") == 4


@pytest.mark.parametrize("later", [False, True])
def test_methods_may_return_any_iterator(connect: Connect, daemon: RunningDaemon, later: bool) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        if later and not isinstance(bus, aio.Bus):
            with pytest.raises(TypeError, match="is asynchronous: serve it with"):
                await bus.serve("s", StreamingLater())
            await bus.close()
            return
        await bus.serve("s", StreamingLater() if later else Streaming())
        proxy = bus.proxy("s")
        assert await taken(bus, proxy.mapped, 3) == [0, 1, 2]
        assert await proxy.mapped(3) == [0, 1, 2]
        assert (await bus.introspect("s"))["methods"]["mapped"]["streams"] is True
        await bus.close()

    run(body())
