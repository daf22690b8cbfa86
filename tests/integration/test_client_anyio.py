"""The asyncio shell under anyio's cancel scopes and task groups, with asyncio as the backend: they cancel a task again and again until it
has left the scope, at any await, which loses no message and leaves the bus usable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon

anyio = pytest.importorskip("anyio", reason="anyio is not installed; `pip install -e '.[test]'` does that")

WAIT_S = 30.0


def run(body: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(120):
            return await body()

    return anyio.run(bounded, backend="asyncio")


def test_a_scope_that_is_over_ends_get_and_loses_no_message(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address, timeout=WAIT_S) as bus:
            sub = await bus.subscribe("t")
            with anyio.move_on_after(0.02) as scope:
                await sub.get()
            assert scope.cancelled_caught
            got: list[int] = []

            async def publish() -> None:
                for n in range(300):
                    await bus.publish("t", n)
                    if n % 10 == 0:
                        await anyio.sleep(0.001)

            async with anyio.create_task_group() as group:
                group.start_soon(publish)
                while len(got) < 300:
                    with anyio.move_on_after(0.0005):
                        got.append((await sub.get()).data)
            assert got == list(range(300))

    run(body)


def test_a_scope_that_is_over_cancels_the_request_at_the_service(daemon: RunningDaemon) -> None:
    async def body() -> None:
        cancelled = anyio.Event()

        async def slow(request: aio.Request) -> None:
            try:
                await anyio.sleep(600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with aio.connect(daemon.address, timeout=WAIT_S) as service, aio.connect(daemon.address, timeout=WAIT_S) as bus:
            await service.respond("svc/slow", slow)
            await service.respond("svc/echo", lambda request: request.data)
            with pytest.raises(TimeoutError), anyio.fail_after(0.1):
                await bus.request("svc/slow", timeout=600)
            with anyio.fail_after(WAIT_S):
                await cancelled.wait()
            assert await bus.request("svc/echo", "after", timeout=WAIT_S) == "after"
            assert bus.stats_local()["requests"] == 0

    run(body)


def test_iteration_in_a_task_group_that_is_cancelled(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address, timeout=WAIT_S) as bus:
            seen: list[int] = []
            sub, rest = await bus.subscribe("t"), []

            async def iterate() -> None:
                async for message in sub:
                    seen.append(message.data)

            async with anyio.create_task_group() as group:
                group.start_soon(iterate)
                for n in range(10):
                    await bus.publish("t", n)
                with anyio.fail_after(WAIT_S):
                    while len(seen) < 10:
                        await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            for n in range(10, 20):
                await bus.publish("t", n)
            rest = [(await sub.get(WAIT_S)).data for _ in range(10)]
            assert seen + rest == list(range(20))

    run(body)


def test_a_failing_task_takes_the_others_and_the_bus_with_it(daemon: RunningDaemon) -> None:
    async def body() -> None:
        made: list[aio.Bus] = []

        async def serve() -> None:
            async with aio.connect(daemon.address, name="svc", timeout=WAIT_S) as bus:
                made.append(bus)
                async for _ in await bus.subscribe("never"):
                    pass

        async def fail() -> None:
            while not (made and made[0].peer_id):
                await anyio.sleep(0.001)
            raise ValueError("on purpose")

        async def both() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                group.start_soon(fail)

        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert [type(error) for error in caught.value.exceptions] == [ValueError]
        assert made[0].state.value == "closed"
        async with aio.connect(daemon.address, timeout=WAIT_S) as bus:
            with anyio.fail_after(WAIT_S):
                while await bus.names():
                    await anyio.sleep(0.01)

    run(body)


@pytest.mark.parametrize("shield", [False, True])
def test_close_in_a_cancelled_scope(daemon: RunningDaemon, shield: bool) -> None:
    """Unshielded it closes without the rest; shielded, as anyio has it for tidying up, in order."""

    async def body() -> None:
        bus = await aio.connect(daemon.address, name="svc", timeout=WAIT_S)
        other = await aio.connect(daemon.address, timeout=WAIT_S)
        sub = await other.subscribe("t")
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await bus.publish("t", 1)
                await anyio.sleep(0)
            finally:
                with anyio.CancelScope(shield=shield):
                    await bus.close()
        assert bus.state.value == "closed"
        if shield:
            assert (await sub.get(WAIT_S)).data == 1
        with anyio.fail_after(WAIT_S):
            while await other.names():
                await anyio.sleep(0.01)
        await other.close()

    run(body)


def test_connecting_in_a_scope_that_is_over(daemon: RunningDaemon) -> None:
    async def body() -> None:
        daemon.kill()
        with anyio.move_on_after(0.1) as scope:
            await aio.connect(daemon.address, timeout=600)
        assert scope.cancelled_caught
        assert len(asyncio.all_tasks()) == 1

    run(body)


@pytest.mark.parametrize("call", ["subscribe", "own", "flush", "ping", "names", "respond"])
def test_any_call_in_a_scope_that_is_cancelled_already(daemon: RunningDaemon, call: str) -> None:
    calls: dict[str, Callable[[aio.Bus], Awaitable[Any]]] = {
        "subscribe": lambda bus: bus.subscribe("t"),
        "own": lambda bus: bus.own("n"),
        "flush": lambda bus: bus.flush(),
        "ping": lambda bus: bus.ping(),
        "names": lambda bus: bus.names(),
        "respond": lambda bus: bus.respond("n/m", lambda request: None),
    }

    async def body() -> None:
        async with aio.connect(daemon.address, timeout=WAIT_S) as bus:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await calls[call](bus)
            assert scope.cancelled_caught
            await bus.flush(WAIT_S)
            assert await bus.names() == []  # what was declared was taken back
            assert bus.stats_local()["lanes"] == 0
            await calls[call](bus)

    run(body)


def test_handlers_may_use_anyio(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async def handler(request: aio.Request) -> list[int]:
            found: list[int] = []

            async def part(n: int) -> None:
                await anyio.sleep(0)
                found.append(n)

            async with anyio.create_task_group() as group:
                for n in range(request.data):
                    group.start_soon(part, n)
            with anyio.move_on_after(0.01):
                await anyio.sleep(600)
            return sorted(found)

        async with aio.connect(daemon.address, timeout=WAIT_S) as bus:
            await bus.respond("svc/m", handler)
            assert await bus.request("svc/m", 3, timeout=WAIT_S) == [0, 1, 2]
            with pytest.raises(ipcbus_client.NoSuchMethod):
                await bus.request("svc/other")

    run(body)
