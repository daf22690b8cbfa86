"""What a user's program does, written once: run on the bus in memory (tests/unit) and on a real daemon (tests/integration), in both shells.

So the test kit is shown to behave as the real thing does. A scenario is a coroutine function of a `World`; the blocking shell's objects are
wrapped so that their methods are awaited, and never suspend.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio, testing

WAIT_S = 20.0


class Blocking:
    """A blocking object whose methods are awaited."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return value

        async def call(*arguments: Any, **options: Any) -> Any:
            result = value(*arguments, **options)
            return Blocking(result) if type(result).__module__.startswith("ipcbus_client._blocking") else result

        return call

    async def __aiter__(self) -> Any:
        for message in self.inner:
            yield message


class World:
    """A bus, and how to connect to it in one of the shells."""

    shell: str

    async def connect(self, **options: Any) -> Any:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        raise NotImplementedError

    def run(self, scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        raise NotImplementedError

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        for _ in range(int(WAIT_S / 0.01)):
            if condition():
                return
            await self.sleep(0.01)
        raise AssertionError(what)


class Memory(World):
    """The kit's."""

    def __init__(self, shell: str, kit: testing.FakeBus) -> None:
        self.shell = shell
        self.kit = kit
        self.kill = kit.kill  # type: ignore[method-assign]
        self.restart = kit.restart  # type: ignore[method-assign]

    async def connect(self, **options: Any) -> Any:
        return Blocking(self.kit.connect(**options)) if self.shell == "blocking" else await self.kit.aio_connect(**options)

    async def sleep(self, seconds: float) -> None:
        if self.shell == "blocking":
            self.kit.advance(seconds)
        else:
            await asyncio.sleep(seconds)

    def run(self, scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        body = scenario(self)
        if self.shell == "aio":
            self.kit.run_async(body)
        else:
            with pytest.raises(StopIteration):
                body.send(None)


class Real(World):
    """A daemon's."""

    def __init__(self, shell: str, daemon: testing.Daemon) -> None:
        self.shell = shell
        self.daemon = daemon
        self.kill = daemon.kill  # type: ignore[method-assign]

    def restart(self) -> None:
        if self.daemon.running:
            self.daemon.kill()
        self.daemon.start()

    async def connect(self, **options: Any) -> Any:
        if self.shell == "blocking":
            return Blocking(ipcbus_client.connect(self.daemon.address, **options))
        return await aio.connect(self.daemon.address, **options)

    async def sleep(self, seconds: float) -> None:
        if self.shell == "blocking":
            time.sleep(seconds)
        else:
            await asyncio.sleep(seconds)

    def run(self, scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await scenario(self)

        asyncio.run(bounded())


async def messages_and_retained_values(world: World) -> None:
    bus, other = await world.connect(name="sensor"), await world.connect()
    await bus.publish("room.kitchen", 20.5, retain=True)
    await bus.flush()
    sub = await other.subscribe("room.>")
    kept = await sub.get(WAIT_S)
    assert (kept.data, kept.retained, kept.sender) == (20.5, True, bus.peer_id)
    for n in range(500):
        await bus.publish(f"room.{n % 3}", n)
    assert [(await sub.get(WAIT_S)).data for _ in range(500)] == list(range(500))
    with pytest.raises(ipcbus_client.Timeout):
        await sub.get(0.05)
    await sub.close()
    assert [message async for message in sub] == []
    await bus.close()
    await other.close()


async def messages_larger_than_what_a_socket_holds(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    sub = await other.subscribe("large", window_bytes=32 * 1024 * 1024)
    for n in range(5):
        await bus.publish("large", bytes([n]) * 3_000_000)
        await bus.publish("large", n)
    for n in range(5):
        assert (await sub.get(WAIT_S)).data == bytes([n]) * 3_000_000
        assert (await sub.get(WAIT_S)).data == n
    await other.respond("echo/it", lambda request: request.data)
    assert await bus.request("echo/it", b"x" * 5_000_000, timeout=WAIT_S) == b"x" * 5_000_000
    await bus.close()
    await other.close()


async def requests_and_their_errors(world: World) -> None:
    bus, other = await world.connect(), await world.connect()

    def handle(request: Any) -> Any:
        if request.data == "too hot":
            raise ipcbus_client.ServiceError("too_hot", "no more than 30")
        if request.data == "fault":
            raise KeyError("gone")
        return request.data

    responder = await bus.respond("thermostat/set", handle)
    assert await other.request("thermostat/set", 21) == 21
    with pytest.raises(ipcbus_client.ServiceError) as refused:
        await other.request("thermostat/set", "too hot")
    assert refused.value.code == "too_hot"
    with pytest.raises(ipcbus_client.ServiceError):
        await other.request("thermostat/set", "fault")
    with pytest.raises(ipcbus_client.NoSuchName):
        await other.request("nobody/set")
    with pytest.raises(ipcbus_client.NoSuchMethod):
        await other.request("thermostat/get")
    with pytest.raises(ipcbus_client.Refused):
        await other.own("thermostat")
    await responder.close()
    assert await other.own("thermostat")
    await bus.close()
    await other.close()


async def a_handler_that_asks_another_service(world: World) -> None:
    bus, other, user = await world.connect(), await world.connect(), await world.connect()
    await other.respond("adder/add", lambda request: sum(request.data))
    if world.shell == "blocking":
        await bus.respond("front/twice", lambda request: bus.inner.request("adder/add", [request.data, request.data], timeout=WAIT_S))
    else:

        async def twice(request: Any) -> Any:
            return await bus.request("adder/add", [request.data, request.data], timeout=WAIT_S)

        await bus.respond("front/twice", twice)
    assert [await user.request("front/twice", n, timeout=WAIT_S) for n in range(5)] == [0, 2, 4, 6, 8]
    for one in (user, bus, other):
        await one.close()


class TooHot(ipcbus_client.ServiceError):
    code = "scenario_too_hot"


class Thermostat:
    def __init__(self) -> None:
        self._target = 20.0

    def set_target(self, celsius: float) -> float:
        """Returns the one before."""
        if celsius > 30:
            raise TooHot("no more than 30")
        before, self._target = self._target, celsius
        return before


async def a_service_and_its_proxy(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    await bus.serve("scenario.thermostat", Thermostat())
    proxy = other.proxy("scenario.thermostat", timeout=WAIT_S)
    if inspect.isawaitable(proxy):
        proxy = await proxy
    assert [await proxy.set_target(21.5), await proxy.set_target(celsius=22)] == [20.0, 21.5]
    with pytest.raises(TooHot):
        await proxy.set_target(31)
    with pytest.raises(ipcbus_client.RequestError, match="celsius"):
        await proxy.set_target("warm")
    assert "set_target" in (await other.introspect("scenario.thermostat"))["methods"]
    world.restart()
    await world.until(lambda: bus.epoch == other.epoch == 1, "they did not come back")
    await bus.flush()
    assert await proxy.set_target(23) == 22.0
    await bus.close()
    await other.close()


async def what_is_bound_goes_with_its_owner_and_a_will_only_where_there_was_no_goodbye(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    watch = await other.watch("presence.>")
    await bus.will("presence.will", "gone", retain=True)
    await bus.publish("presence.bound", "here", retain=True, bound=True)
    await bus.publish("presence.kept", "here", retain=True, confirm=True)
    changes = [await watch.get(WAIT_S) for _ in range(2)]
    assert [(change.topic, change.data, change.removed) for change in changes] == [
        ("presence.bound", "here", False),
        ("presence.kept", "here", False),
    ]
    await bus.close()
    change = await watch.get(WAIT_S)
    assert (change.topic, change.removed) == ("presence.bound", True)
    await other.publish("presence.end", 1, retain=True)
    assert (await watch.get(WAIT_S)).topic == "presence.end"
    assert watch.state == {"presence.kept": "here", "presence.end": 1}
    await other.close()


async def asking_again_where_it_does_no_harm(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    asked: list[int] = []

    def handle(request: Any) -> int:
        asked.append(1)
        if len(asked) == 1:
            world.kill()
            world.restart()
        return len(asked)

    await bus.respond("counter/next", handle)
    assert await other.request("counter/next", idempotent=True, timeout=WAIT_S) == 2
    await bus.close()
    await other.close()


async def a_stream_of_values_at_the_pace_of_who_takes_them(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    made: list[int] = []
    ended: list[str] = []

    def count(request: Any) -> Any:
        try:
            for n in range(request.data):
                made.append(n)
                yield bytes([n % 250]) * 1000
            return "all of them"
        finally:
            ended.append("closed")

    await bus.respond("counter/count", count)
    stream = other.stream("counter/count", 300, window_bytes=20_000, timeout=WAIT_S)
    stream = await stream if inspect.isawaitable(stream) else stream
    values = [value async for value in stream]
    assert [value[0] for value in values] == [n % 250 for n in range(300)]
    assert stream.result == "all of them"
    made.clear()
    stream = other.stream("counter/count", 100_000, window_bytes=20_000)
    stream = await stream if inspect.isawaitable(stream) else stream
    async for value in stream:
        assert value[0] == 0
        break
    await world.sleep(0.2)
    assert 1 <= len(made) < 1000, "it was made faster than it was taken"
    await stream.close()
    await world.until(lambda: len(ended) == 2, "the generator was not closed")
    await bus.close()
    await other.close()


async def a_group_shares_the_work(world: World) -> None:
    buses = [await world.connect() for _ in range(3)]
    done: list[list[int]] = [[], [], []]
    for bus, mine in zip(buses, done, strict=True):
        await bus.subscribe("job.*", lambda message, mine=mine: mine.append(message.data), group="workers", prefetch=1)
    publisher = await world.connect()
    for n in range(60):
        await publisher.publish("job.new", n)
    await world.until(lambda: sum(map(len, done)) == 60, "the work was not done")
    assert sorted(n for mine in done for n in mine) == list(range(60))
    assert all(done)
    for bus in (*buses, publisher):
        await bus.close()


async def the_bus_is_killed_and_comes_back(world: World) -> None:
    bus, other = await world.connect(name="thermostat"), await world.connect()
    sub = await other.subscribe("t")
    await bus.respond("thermostat/get", lambda request: 21)
    await bus.publish("kept", 20.5, retain=True, confirm=True)
    epoch = other.epoch
    world.kill()
    await world.until(lambda: (bus.state.value, other.state.value) == ("reconnecting",) * 2, "the loss was not seen")
    await bus.publish("t", "said while there was no bus")
    with pytest.raises(ipcbus_client.ConnectionLost):
        await bus.request("thermostat/get", timeout=0.05)
    world.restart()
    await world.until(lambda: (bus.state.value, other.state.value) == ("connected",) * 2, "they did not come back")
    assert other.epoch == epoch + 1
    assert sub.gaps == 1
    await other.flush()
    assert await other.request("thermostat/get", timeout=WAIT_S) == 21
    await bus.flush(WAIT_S)
    assert (await other.get("kept")).data == 20.5, "the next bus was told what the one before had kept"
    await bus.publish("t", "after")
    while (await sub.get(WAIT_S)).data != "after":
        pass
    await bus.close()
    await other.close()


async def close_settles_every_wait(world: World) -> None:
    bus = await world.connect()
    sub = await bus.subscribe("t")
    await bus.publish("t", 1)
    await bus.flush()
    await bus.close()
    assert [message.data async for message in sub] == [1]
    with pytest.raises(ipcbus_client.Closed):
        await bus.publish("t", 2)
    with pytest.raises(ipcbus_client.Closed):
        await sub.get()
    await bus.close()


async def _until_caught_up(sub: Any) -> list[Any]:
    """What comes, notices too, until nothing waits any more."""
    stream: list[Any] = []
    while not stream or not isinstance(stream[-1], ipcbus_client.CaughtUp):
        stream.append(await sub.get(WAIT_S))
    return stream


async def who_is_too_slow_loses_what_its_policy_says_and_is_told_where(world: World) -> None:
    for policy in ("drop_oldest", "drop_newest"):
        bus, other = await world.connect(), await world.connect()
        limits = {"soft": 3000, "hard": 5000, "seconds": 60.0}
        sub = await other.subscribe("t", policy=policy, limits=limits, window_bytes=1, notices=True)
        for n in range(100):
            await bus.publish("t", b"x" * 1000, headers={"n": n})
        await bus.flush()
        stream = await _until_caught_up(sub)
        seen = [item.headers["n"] for item in stream if isinstance(item, ipcbus_client.Message)]
        losses = [item for item in stream if isinstance(item, ipcbus_client.Lost)]
        assert seen == sorted(seen)
        assert seen[0] == 0
        assert len(seen) >= 3
        assert (seen[-1] == 99) == (policy == "drop_oldest")
        assert {loss.why for loss in losses} == {"too_slow"}
        assert sum(loss.count for loss in losses) == 100 - len(seen) == sub.lost == stream[-1].lost
        if policy == "drop_oldest":  # at the place of the gap
            at = stream.index(losses[0])
            before = [item for item in stream[:at] if isinstance(item, ipcbus_client.Message)][-1]
            after = next(item for item in stream[at:] if isinstance(item, ipcbus_client.Message))
            assert after.headers["n"] - before.headers["n"] == losses[0].count + 1
        assert (await bus.stats())["held"] == 0
        await bus.close()
        await other.close()


async def the_latest_of_each_topic(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    sub = await other.subscribe("t.*", policy="latest", limits={"soft": 1500}, window_bytes=1, notices=True)
    for n in range(20):
        for topic in ("t.a", "t.b", "t.c"):
            await bus.publish(topic, n, headers={"filler": "x" * 500})
    await bus.flush()
    stream = await _until_caught_up(sub)
    messages = [item for item in stream if isinstance(item, ipcbus_client.Message)]
    assert {message.topic: message.data for message in messages} == {"t.a": 19, "t.b": 19, "t.c": 19}
    assert {item.why for item in stream if isinstance(item, ipcbus_client.Lost)} == {"replaced"}
    assert len(messages) + sub.lost == 60
    await bus.close()
    await other.close()


async def who_would_rather_be_cut_off(world: World) -> None:
    bus, other = await world.connect(), await world.connect()
    sub = await other.subscribe("t", policy="disconnect", limits={"soft": 3000, "hard": 5000}, window_bytes=1, notices=True)
    for _ in range(100):
        await bus.publish("t", b"x" * 1000)
    await bus.flush()
    await world.until(lambda: other.epoch == 1, "it was not cut off")
    while not isinstance(await sub.get(WAIT_S), ipcbus_client.Reconnected):
        pass
    await bus.publish("t", "after")
    assert (await sub.get(WAIT_S)).data == "after"
    await bus.close()
    await other.close()


async def nobody_listens(world: World) -> None:
    world.kill()
    with pytest.raises(ipcbus_client.ConnectError) as error:
        await world.connect(timeout=0.2)
    assert error.value.reason == "nothing_listens"


SCENARIOS: list[Callable[[World], Awaitable[None]]] = [
    messages_and_retained_values,
    messages_larger_than_what_a_socket_holds,
    requests_and_their_errors,
    a_handler_that_asks_another_service,
    a_service_and_its_proxy,
    what_is_bound_goes_with_its_owner_and_a_will_only_where_there_was_no_goodbye,
    asking_again_where_it_does_no_harm,
    a_stream_of_values_at_the_pace_of_who_takes_them,
    a_group_shares_the_work,
    the_bus_is_killed_and_comes_back,
    close_settles_every_wait,
    who_is_too_slow_loses_what_its_policy_says_and_is_told_where,
    the_latest_of_each_topic,
    who_would_rather_be_cut_off,
    nobody_listens,
]
