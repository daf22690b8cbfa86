"""Reconnected and Lost in the streams of both shells: in iteration, get() and callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import Lost, Reconnected
from tests.conftest import DaemonFactory
from tests.threaded import WAIT_S, Connect, connecting, run, until


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


def plain(item: Any) -> Any:
    return item.data if isinstance(item, ipcbus_client.Message) else item


def test_a_gap_is_in_the_stream(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory()
        bus = await connect(daemon.address, name="me")
        subs = {
            "get": await bus.subscribe("t", notices=True),
            "group": await bus.subscribe("t", group="g", notices=True, prefetch=2),
            "iteration": await bus.subscribe("t", notices=True),
            "silent": await bus.subscribe("t"),
        }
        called: list[Any] = []
        await bus.subscribe("t", lambda item: called.append(plain(item)), notices=True)
        inbox = await bus.inbox(notices=True)
        iterated: list[Any] = []

        async def iterate() -> None:
            async for item in subs["iteration"]:
                iterated.append(plain(item))

        iterating = asyncio.create_task(iterate())
        got: dict[str, list[Any]] = {"get": [], "group": [], "silent": []}

        async def take(name: str, count: int) -> None:
            for _ in range(count):
                got[name].append(plain(await subs[name].get(WAIT_S)))

        for n in range(5):
            await bus.publish("t", n)
        for name in got:
            await take(name, 5)
        await until(lambda: len(iterated) == len(called) == 5)
        daemon.kill()
        await bus.state.wait_for("reconnecting", WAIT_S)
        daemon_factory(at=daemon.directory)
        await bus.state.wait_for("connected", WAIT_S)
        await until(lambda: iterated[5:] == called[5:] == [Reconnected(1, True, "t")])
        await bus.flush()
        for n in range(5, 10):
            await bus.publish("t", n)
        await take("get", 6)
        await take("group", 6)
        await take("silent", 5)
        expected = [0, 1, 2, 3, 4, Reconnected(bus.epoch, True, "t"), 5, 6, 7, 8, 9]
        await until(lambda: iterated == called == expected)
        assert got["get"] == got["group"] == expected
        assert got["silent"] == list(range(10))
        assert [sub.gaps for sub in subs.values()] == [1, 1, 1, 1]
        await bus.send("me", "hello")
        assert await inbox.get(WAIT_S) == Reconnected(1, True, "inbox")
        assert (await inbox.get(WAIT_S)).data == "hello"
        await bus.close()
        await iterating

    run(body())


def test_what_was_dropped_is_in_the_stream(connect: Connect, daemon_factory: DaemonFactory) -> None:
    async def body() -> None:
        daemon = daemon_factory(config="[limits]\nlane_stall_s = 0.1\n")
        bus, publisher = await connect(daemon.address), await connect(daemon.address)
        sub = await bus.subscribe("t", notices=True, window_bytes=10_000)
        payload = bytes(10_000)
        total = 600  # 6 MB: much over the 1 MiB that may wait for the lane (L-7)
        for _ in range(total):
            await publisher.publish("t", payload)
        await publisher.flush(WAIT_S)
        seen = told = 0
        while seen + told < total:
            item = await sub.get(WAIT_S)
            if isinstance(item, Lost):
                assert (item.why, item.pattern) == ("too_slow", "t")
                told += item.count
            else:
                seen += 1
        assert told == sub.lost > 0
        assert seen + told == total
        await publisher.close()
        await bus.close()

    run(body())
