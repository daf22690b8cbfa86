"""Every public method, called from every kind of user code, in both shells: it returns, or raises a BusError, and the bus works on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, Connect, connecting, run, until

CONTEXTS = ["callback", "group", "several", "inbox", "handler", "handlers", "state"]


@pytest.fixture(params=["blocking", "aio"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(shell: str) -> Iterator[Connect]:
    with connecting(shell) as made:
        yield made


class Thing:
    """A service."""

    def answer(self) -> int:
        """The answer."""
        return 42


#: class -> method -> its arguments. What is made is closed afterwards.
CALLS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "Bus": {
        "publish": lambda bus: bus.publish("m.x", 1, confirm=True),
        "get": lambda bus: bus.get("m.kept"),
        "will": lambda bus: bus.will("m.last", 1),
        "drop_will": lambda bus: bus.drop_will("m.last"),
        "subscribe": lambda bus: bus.subscribe("m.y"),
        "watch": lambda bus: bus.watch("m.kept"),
        "monitor": lambda bus: bus.monitor("m.>"),
        "request": lambda bus: bus.request("svc/echo", 1, timeout=2.0),
        "request_all": lambda bus: bus.request_all(["svc/echo", "nobody/echo"], 1, timeout=2.0),
        "stream": lambda bus: bus.stream("svc/echo", 1, timeout=2.0),
        "respond": lambda bus: bus.respond("m/do", lambda request: 1),
        "serve": lambda bus: bus.serve("thing", Thing()),
        "proxy": lambda bus: bus.proxy("svc"),
        "send": lambda bus: bus.send("svc", 1),
        "inbox": lambda bus: bus.inbox(),
        "own": lambda bus: bus.own("m.mine"),
        "release": lambda bus: bus.release("m.mine"),
        "wait_for_name": lambda bus: bus.wait_for_name("svc", 2.0),
        "names": lambda bus: bus.names(),
        "peers": lambda bus: bus.peers(),
        "identity": lambda bus: bus.identity(bus.peer_id),
        "topics": lambda bus: bus.topics(),
        "stats": lambda bus: bus.stats(),
        "ping": lambda bus: bus.ping(),
        "introspect": lambda bus: bus.introspect("svc"),
        "flush": lambda bus: bus.flush(),
        "wait": lambda bus: bus.wait(0.01),
        "losses": lambda bus: bus.losses(),
        "holds": lambda bus: bus.holds(),
        "stats_local": lambda bus: bus.stats_local(),
        "close": lambda bus: bus.close(),
    },
    "Subscription": {"get": lambda sub: sub.get(0.01), "close": lambda sub: sub.close()},
    "Inbox": {"get": lambda inbox: inbox.get(0.01), "close": lambda inbox: inbox.close()},
    "Watch": {"get": lambda watch: watch.get(0.01), "close": lambda watch: watch.close()},
    "Monitor": {"get": lambda monitor: monitor.get(0.01), "close": lambda monitor: monitor.close()},
    "Responder": {"close": lambda responder: responder.close()},
    "Service": {"close": lambda service: service.close()},
    "ReplyStream": {"get": lambda stream: stream.get(2.0), "close": lambda stream: stream.close()},
    "BusState": {
        "wait_for": lambda state: state.wait_for("connected", 1.0),
        "on_change": lambda state: state.on_change(lambda value: None),
        "changes": lambda state: state.changes(),
    },
    "StateHandle": {"close": lambda handle: handle.close()},
    "StateChanges": {"close": lambda changes: changes.close()},
}  # fmt: skip
#: how an object of a class is had
MAKE: dict[str, Callable[[Any], Any]] = {
    "Bus": lambda bus: bus,
    "Subscription": lambda bus: bus.subscribe("m.z"),
    "Inbox": lambda bus: bus.inbox(),
    "Watch": lambda bus: bus.watch("m.nothing"),
    "Monitor": lambda bus: bus.monitor("m.>"),
    "Responder": lambda bus: bus.respond("m.made/do", lambda request: 1),
    "Service": lambda bus: bus.serve("made", Thing()),
    "ReplyStream": lambda bus: bus.stream("svc/echo", 1, timeout=2.0),
    "BusState": lambda bus: bus.state,
    "StateHandle": lambda bus: bus.state.on_change(lambda value: None),
    "StateChanges": lambda bus: bus.state.changes(),
}
#: Methods of a proxy are those of its service.
ELSEWHERE = {"Proxy", "ProxyMethod", "Change"}


def test_no_public_method_is_forgotten() -> None:
    for module in (ipcbus_client, aio):
        for name in aio.__all__:
            cls = getattr(module, name)
            if inspect.isclass(cls) and not issubclass(cls, (tuple, int, Exception)) and name not in ELSEWHERE | {"Request"}:
                methods = {method for method, value in inspect.getmembers(cls, inspect.isfunction) if not method.startswith("_")}
                assert methods == set(CALLS[name]), name


_tasks: list[Any] = []


async def _settle(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def caller(shell: str, bus: Any, work: list[tuple[str, str]], results: dict[tuple[str, str], Any]) -> Callable[[Any], Any]:
    """User code that calls all of *work*."""

    def call(item: Any) -> Any:
        for cls, method in work:
            try:
                made = MAKE[cls](bus)
                result = CALLS[cls][method](made)
                if cls != "Bus" and hasattr(made, "close"):
                    made.close()
                if method != "proxy" and hasattr(result, "close"):  # (a proxy has every method)
                    result.close()
                results[cls, method] = "returned"
            except ipcbus_client.BusError as error:
                results[cls, method] = error
            except BaseException as error:
                results[cls, method] = error
                raise

    async def call_later(item: Any) -> Any:
        for cls, method in work:
            try:
                made = await _settle(MAKE[cls](bus))
                result = await _settle(CALLS[cls][method](made))
                if cls != "Bus" and hasattr(made, "close"):
                    await _settle(made.close())
                if method != "proxy" and hasattr(result, "close"):
                    await _settle(result.close())
                results[cls, method] = "returned"
            except ipcbus_client.BusError as error:
                results[cls, method] = error
            except BaseException as error:
                results[cls, method] = error
                raise

    return call if shell == "blocking" else call_later


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_method_from_every_kind_of_user_code(connect: Connect, shell: str, daemon: RunningDaemon, context: str) -> None:
    work = [(cls, method) for cls, methods in CALLS.items() for method in methods if (cls, method) != ("Bus", "close")]

    async def body() -> None:
        bus = await connect(daemon.address)
        inner = getattr(bus, "inner", bus)
        results: dict[tuple[str, str], Any] = {}
        code = caller(shell, inner, work, results)
        await bus.respond("svc/echo", lambda request: request.data)
        await place(bus, inner, context, code)
        await until(lambda: len(results) == len(work), "it hangs")
        unexpected = {
            key: result
            for key, result in results.items()
            if result != "returned" and not (key[1] in ("get", "wait") and isinstance(result, ipcbus_client.Timeout | ipcbus_client.Closed))
        }
        assert unexpected == {}
        await bus.ping()
        await bus.close(WAIT_S)

    run(body())


async def place(bus: Any, inner: Any, context: str, code: Callable[[Any], Any]) -> None:
    """Have *code* run once as this kind of user code."""
    if context in ("callback", "group", "several"):
        options = {"group": {"group": "g"}, "several": {"concurrency": 2}}.get(context, {})
        await bus.subscribe("m.begin", code, **options)
        await bus.publish("m.begin")
    elif context == "inbox":
        await bus.inbox(code)
        await bus.send(f":{inner.peer_id}")
    elif context == "state":
        if inspect.iscoroutinefunction(code):  # it takes a plain function; a coroutine would iterate over changes()
            inner.state.on_change(lambda value: _tasks.append(asyncio.ensure_future(code(value))))
        else:
            inner.state.on_change(code)
        with getattr(inner, "_lock", contextlib.nullcontext()):
            for feed in list(inner._session._state_feeds):
                feed.put(inner._session.state)
    else:
        await bus.respond("m.ask/begin", code, concurrency=2 if context == "handlers" else None)
        async with aio.connect(inner.address) as other:
            await other.request("m.ask/begin", timeout=WAIT_S)


@pytest.mark.parametrize("context", ["callback", "several", "handler", "handlers"])
def test_close_from_user_code(connect: Connect, shell: str, daemon: RunningDaemon, context: str) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        inner = getattr(bus, "inner", bus)
        results: dict[tuple[str, str], Any] = {}
        code = caller(shell, inner, [("Bus", "close"), ("Bus", "publish"), ("Bus", "request"), ("Bus", "wait")], results)
        if "handler" in context:
            with pytest.raises(ipcbus_client.ResponderDied):
                await place(bus, inner, context, code)
        else:
            await place(bus, inner, context, code)
        await bus.wait(WAIT_S)
        await until(lambda: len(results) == 4)
        assert results["Bus", "close"] == results["Bus", "wait"] == "returned"
        assert isinstance(results["Bus", "publish"], ipcbus_client.Closed)
        assert isinstance(results["Bus", "request"], ipcbus_client.Closed)

    run(body())
    assert asyncio.iscoroutinefunction(aio.Bus.close)
