"""asyncio: every public coroutine is cancelled at its first suspension, at its second, … until it completes. After each the bus works, and
nothing of it is left.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, run, until


class CancelledAt:
    """Drives a coroutine, whose task is cancelled when it suspends for the *number*-th time."""

    def __init__(self, work: Coroutine[Any, Any, Any], number: int) -> None:
        self._work = work
        self._left = number

    @property
    def reached(self) -> bool:
        """Whether there were so many suspensions."""
        return self._left <= 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            error = None
            self._left -= 1
            if self._left == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield awaited
            except BaseException as raised:  # noqa: BLE001  # it is the coroutine's
                error = raised


async def cancelled_everywhere(make: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[Any]]) -> int:
    """Run make() again and again, each time cancelled one suspension later, with check() after each; how many suspensions it has."""
    for number in range(1, 200):
        driven = CancelledAt(make(), number)

        async def drive(driven: CancelledAt = driven) -> Any:
            return await driven

        task = asyncio.ensure_future(drive())
        done, _ = await asyncio.wait([task], timeout=WAIT_S)
        assert done, f"it hangs, cancelled at suspension {number}"
        if not driven.reached:
            task.result()
            return number - 1
        assert task.cancelled() or task.exception() is None, task.exception()
        await check()
    raise AssertionError("it suspends for ever")


Operation = Callable[[aio.Bus], Coroutine[Any, Any, Any]]


class Thing:
    """A service."""

    def answer(self) -> int:
        """The answer."""
        return 42


async def _then_close(made: Awaitable[Any]) -> None:
    thing = await made
    try:
        await asyncio.sleep(0)
    finally:
        await thing.close()


async def _stream(bus: aio.Bus) -> None:
    async with await bus.stream("svc/numbers") as stream:
        assert [value async for value in stream] == list(range(5))


async def _watch(bus: aio.Bus) -> None:
    async with await bus.watch("kept") as watch:
        assert (await watch.get(WAIT_S)).data == 1


async def _will(bus: aio.Bus) -> None:
    await bus.will("last", 1)
    await bus.drop_will("last")


async def _withdraw(bus: aio.Bus) -> None:
    await bus.own("mine")
    await bus.release("mine")


OPERATIONS: dict[str, Operation] = {
    "publish": lambda bus: bus.publish("x", bytes(100), confirm=True),
    "get": lambda bus: bus.get("kept"),
    "will": _will,
    "drop_will": lambda bus: bus.drop_will("last"),
    "subscribe": lambda bus: _then_close(bus.subscribe("x")),
    "watch": _watch,
    "monitor": lambda bus: _then_close(bus.monitor("x")),
    "request": lambda bus: bus.request("svc/echo", 1),
    "request_all": lambda bus: bus.request_all("*/echo", 1),
    "stream": _stream,
    "respond": lambda bus: _then_close(bus.respond("other/do", lambda request: None)),
    "serve": lambda bus: _then_close(bus.serve("thing", Thing())),
    "send": lambda bus: bus.send("svc", 1),
    "inbox": lambda bus: _then_close(bus.inbox()),
    "own": _withdraw,
    "release": lambda bus: bus.release("nothing"),
    "wait_for_name": lambda bus: bus.wait_for_name("svc", WAIT_S),
    "names": lambda bus: bus.names(),
    "peers": lambda bus: bus.peers(),
    "identity": lambda bus: bus.identity(bus.peer_id),
    "topics": lambda bus: bus.topics(),
    "losses": lambda bus: bus.losses(),
    "stats": lambda bus: bus.stats(),
    "ping": lambda bus: bus.ping(),
    "introspect": lambda bus: bus.introspect("svc"),
    "flush": lambda bus: bus.flush(),
}  # fmt: skip
#: Those that end the bus, or only end with it, have tests of their own.
OTHERS = {"close", "wait"}


def test_every_public_coroutine_is_here() -> None:
    coroutines = {name for name, _ in inspect.getmembers(aio.Bus, inspect.iscoroutinefunction) if not name.startswith("_")}
    assert coroutines - OTHERS == set(OPERATIONS)


def left_over(bus: aio.Bus) -> dict[str, Any]:
    """What a cancelled call might leave behind."""
    session: Any = bus._session
    return {
        "calls": {call.to for call in session.calls.values()},
        "lanes": len(session.lanes),
        "handlers": set(session.services._handlers),
        "declared": {key[:2] for key in session.declarations._all},
        "unanswered": len(session.declarations.take_calls()),
        "waiters": len(bus._wire._writable_waiters),
        "closers": len(bus._closers),
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_every_await(daemon: RunningDaemon, name: str) -> None:
    async def numbers(request: Any) -> Any:
        for number in range(5):
            yield number

    async def body() -> None:
        async with aio.connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            await service.respond("svc/echo", lambda request: request.data)
            await service.respond("svc/numbers", numbers)
            await bus.publish("kept", 1, retain=True)
            sub = await bus.subscribe("count")
            count = 0
            tasks = len(asyncio.all_tasks())
            before = left_over(bus)

            async def check() -> None:
                nonlocal count
                count += 1
                await bus.publish("count", count)
                assert (await sub.get(WAIT_S)).data == count
                assert await bus.request("svc/echo", count, timeout=WAIT_S) == count
                await until(lambda: left_over(bus) == before, f"left over: {left_over(bus)} instead of {before}")
                await until(lambda: len(asyncio.all_tasks()) == tasks)
                assert bus.state.value == "connected"
                assert bus.epoch == 0

            suspensions = await cancelled_everywhere(lambda: OPERATIONS[name](bus), check)
            assert suspensions == count
            await check()

    run(body())


@pytest.mark.parametrize("group", [None, "workers"])
@pytest.mark.parametrize("how", ["get", "iterate"])
def test_a_cancelled_get_loses_nothing(daemon: RunningDaemon, how: str, group: str | None) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            sub = await bus.subscribe("t", group=group)
            take = (lambda: sub.get(WAIT_S)) if how == "get" else (lambda: sub.__anext__())
            got: list[int] = []
            sent = 0

            async def one() -> None:
                got.append((await take()).data)

            for number in range(1, 50):
                while sent < number:
                    await bus.publish("t", sent)
                    sent += 1
                driven = CancelledAt(one(), 1 + number % 3)

                async def drive(driven: CancelledAt = driven) -> None:
                    await driven

                await asyncio.wait([asyncio.ensure_future(drive())], timeout=WAIT_S)
            while len(got) < sent:
                await one()
            assert got == list(range(sent))

    run(body())


def test_timeout_scopes_just_work_and_the_service_is_told(daemon: RunningDaemon) -> None:
    ended: list[str] = []

    async def hang(request: ipcbus_client.Request) -> None:
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            ended.append(request.to)
            raise

    async def body() -> None:
        async with aio.connect(daemon.address) as service, aio.connect(daemon.address) as bus:
            await service.respond("svc/hang", hang)
            sub = await bus.subscribe("t")
            for work in (lambda: bus.request("svc/hang", timeout=WAIT_S), lambda: sub.get(), lambda: bus.wait()):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await work()
            await until(lambda: ended == ["svc/hang"])
            assert bus.stats_local()["requests"] == 0

    run(body())


def test_close_cancelled_at_every_await_has_closed_the_bus(daemon: RunningDaemon) -> None:
    async def body() -> None:
        tasks = len(asyncio.all_tasks())
        for number in range(1, 50):
            bus = await aio.connect(daemon.address)
            await bus.subscribe("t", lambda message: asyncio.sleep(0.01))
            await bus.publish("t", 1)
            driven = CancelledAt(bus.close(), number)

            async def drive(driven: CancelledAt = driven) -> Any:
                return await driven

            task = asyncio.ensure_future(drive())
            await asyncio.wait([task], timeout=WAIT_S)
            assert bus.state.value == "closed"
            await bus.close()
            await bus.wait()
            await until(lambda: len(asyncio.all_tasks()) == tasks)
            if not driven.reached:
                return
        raise AssertionError("close() suspends for ever")

    run(body())
