"""The daemon ends again and again under traffic, under both shells: every subscription delivers afterwards, nothing comes twice, nothing
hangs, nothing is left.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client._backoff import Backoff
from tests.conftest import DaemonFactory
from tests.threaded import WAIT_S, Connect, connecting, run, until

#: What a request may end with when the bus or the service has just gone, or is not back yet.
GONE = (ipcbus_client.ConnectionLost, ipcbus_client.ResponderDied, ipcbus_client.NoSuchName, ipcbus_client.NoSuchMethod)


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


class Traffic:
    """Two programs that talk all the time: publications to subscriptions of every kind, and requests."""

    def __init__(self, service: Any, client: Any) -> None:
        self.service = service
        self.client = client
        self.streams: dict[str, list[int]] = {}
        self.published = 0
        self.answered = 0
        self.failed = 0
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        await self._iterate("iteration", await self.service.subscribe("t.>"))
        await self._iterate("own", await self.client.subscribe("t.*"))
        await self._iterate("member 1", await self.service.subscribe("t.n", group="g"))
        await self._iterate("member 2", await self.client.subscribe("t.n", group="g"))
        called = self.streams["callback"] = []
        await self.service.subscribe("t.n", lambda message: called.append(message.data))
        await self.service.respond("svc/echo", lambda request: request.data)
        await self._watch("watch", await self.service.watch("kept.*"))
        self._spawn(self._publish())
        self._spawn(self._ask())

    async def _iterate(self, name: str, subscription: Any) -> None:
        seen = self.streams[name] = []

        async def iterate() -> None:
            async for message in subscription:
                seen.append(message.data)

        self._spawn(iterate())

    async def _watch(self, name: str, watch: Any) -> None:
        seen = self.streams[name] = []

        async def iterate() -> None:
            async for change in watch:
                if change.removed:  # a new bus knows nothing until the publisher is back
                    assert change.topic == "kept.n"
                elif not seen or change.data != seen[-1]:  # it says again what was there before
                    seen.append(change.data)

        self._spawn(iterate())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _publish(self) -> None:
        while not self._stopped:
            await self.client.publish("t.n", self.published)
            if self.published % 10 == 0:
                await self.client.publish("kept.n", self.published, retain=True)
            self.published += 1
            await asyncio.sleep(0.001)

    async def _ask(self) -> None:
        while not self._stopped:
            try:
                assert await self.client.request("svc/echo", self.answered, timeout=WAIT_S) == self.answered
                self.answered += 1
            except GONE:
                self.failed += 1
                await asyncio.sleep(0.001)

    async def flows(self) -> None:
        """Wait until everything that is published and asked from now on comes."""
        published, answered = self.published, self.answered
        for name in ("iteration", "own", "callback", "watch"):
            await until(lambda seen=self.streams[name]: seen and seen[-1] > published + 10, f"{name} delivers no more")
        members = self.streams["member 1"], self.streams["member 2"]
        await until(lambda: all(seen and seen[-1] > published for seen in members), "the group delivers no more")
        await until(lambda: self.answered > answered, "no request is answered any more")
        for task in self._tasks:
            assert not task.done(), task

    async def end(self) -> None:
        self._stopped = True
        await self.client.close()
        await self.service.close()
        for task in self._tasks:
            try:
                await asyncio.wait_for(task, WAIT_S)
            except ipcbus_client.Closed:
                pass  # it published or asked just now

    def check(self) -> None:
        """Nothing came twice, and nothing out of order."""
        for name, seen in self.streams.items():
            assert all(before < after for before, after in pairwise(seen)), name
        assert not set(self.streams["member 1"]) & set(self.streams["member 2"])
        assert self.answered > 0


def held() -> tuple[int, int, int]:
    """What a program holds: descriptors, threads of the bus, tasks."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("ipcbus")]
    return len(os.listdir("/proc/self/fd")), len(threads), len(asyncio.all_tasks())


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_daemon_ends_again_and_again(
    connect: Connect, daemon_factory: DaemonFactory, kills: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "delay_s", lambda *_: 0.02)  # how long to wait has its own tests

    async def body() -> None:
        daemon = daemon_factory()
        service, client = await connect(daemon.address, name="svc"), await connect(daemon.address)
        traffic = Traffic(service, client)
        await traffic.begin()
        await traffic.flows()
        before = held()
        for epoch in range(1, kills + 1):
            end: Callable[[], Any] = daemon.kill if how == "kill" else daemon.stop
            await asyncio.to_thread(end)
            daemon = await asyncio.to_thread(daemon_factory, at=daemon.directory)
            await until(lambda epoch=epoch: service.epoch == client.epoch == epoch, "it did not come back")
            await traffic.flows()
        await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), f"something was left: {before}")
        assert [name["name"] for name in await client.names()] == ["svc"]
        await traffic.end()
        traffic.check()

    run(body(), 60 + 10 * kills)
