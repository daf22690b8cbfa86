"""What programs do wrong with a bus, or around it: tasks cancelled under it, loops that end before it, copies, depth."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import _current, _worker, aio
from tests.daemons import RunningDaemon, environment
from tests.threaded import SHELLS, WAIT_S, Connect, connecting, run, until, wait_for


@pytest.fixture(params=SHELLS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """connect() of a shell."""
    with connecting(request.param) as made:
        yield made


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_callback_that_is_cancelled_costs_its_own_message_only(daemon: RunningDaemon, concurrency: int) -> None:
    got: list[int] = []

    async def callback(message: ipcbus_client.Message) -> None:
        got.append(message.data)
        if message.data == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(WAIT_S)

    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            await bus.subscribe("t", callback, concurrency=concurrency)
            for number in range(5):
                await bus.publish("t", number)
            await until(lambda: got == list(range(5)), f"only {got} came")

    run(body())


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_handlers_that_wait_for_each_other_too_deep_are_told(
    daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, depth: int
) -> None:
    monkeypatch.setattr(_worker, "LENT_MAX", 3)
    with ipcbus_client.connect(daemon.address) as bus:

        def count(request: ipcbus_client.Request) -> int:
            return 1 + bus.request("svc/count", request.data - 1, timeout=0.5 if depth > 3 else WAIT_S) if request.data else 0

        bus.respond("svc/count", count)
        for _ in range(2):
            if depth <= 3:
                assert bus.request("svc/count", depth, timeout=WAIT_S) == depth
            else:
                with pytest.raises(ipcbus_client.ServiceError, match="did not answer in time"):
                    bus.request("svc/count", depth, timeout=WAIT_S)
        assert bus.request("svc/count", 0, timeout=WAIT_S) == 0
    told = [record.getMessage() for record in caplog.records if "each for the next one" in record.getMessage()]
    assert len(told) == (depth > 3), told


def test_asyncio_a_bus_is_closed_after_its_loop(daemon: RunningDaemon) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with ipcbus_client.connect(daemon.address) as watcher, warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = watcher.subscribe("t")
        loop = asyncio.new_event_loop()

        async def main() -> tuple[aio.Bus, Any]:
            bus = await aio.connect(daemon.address)
            sub = await bus.subscribe("never")
            forgotten = [loop.create_task(sub.get()), loop.create_task(bus.wait()), loop.create_task(anext(bus.state.changes()))]
            await asyncio.sleep(0.1)
            await bus.publish("t", 1)
            await bus.publish("t", 2)
            return bus, (sub, forgotten)

        bus, held = loop.run_until_complete(main())
        loop.close()
        assert asyncio.run(bus.close()) == asyncio.run(bus.close())
        assert bus.state.value == "closed"
        assert [seen.get(WAIT_S).data for _ in range(2)] == [1, 2]
        for task in held[1]:
            task._log_destroy_pending = False  # it was the loop's, and is what this test is about
        del bus, held, task
        gc.collect()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= fds, "a descriptor is left")


def test_asyncio_close_in_another_loop_says_so(daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with aio.connect(daemon.address) as bus:
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(bus.close()))
            assert await bus.ping() >= 0

    run(body())


def test_a_bus_cannot_be_copied_or_pickled(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        async with await connect(daemon.address) as bus:
            real = getattr(bus, "inner", bus)
            for way in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="connect\\(\\) in the other process"):
                    way(real)
            assert await bus.ping() >= 0

    run(body())


def test_wait_cancelled_in_a_child_whose_parent_was_just_in_it() -> None:
    _current._making.acquire()  # as another thread would have it at the moment of the fork
    pid = os.fork()
    if not pid:
        os._exit(0 if _current._making.acquire(timeout=1) else 1)
    _current._making.release()
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_of_a_fork_says_why_it_has_no_connection(daemon: RunningDaemon) -> None:
    code = (
        "import os, signal, sys, ipcbus_client\nbus = ipcbus_client.connect(sys.argv[1])\nos.kill(int(sys.argv[2]), signal.SIGSTOP)\n"
        "if os.fork(): os.wait(); os._exit(0)\n"
        "try: bus.request('a/b', timeout=0.2)\nexcept ipcbus_client.ConnectionLost as error: print(error, flush=True)\nos._exit(0)"
    )
    command = [sys.executable, "-c", code, daemon.address, str(daemon.pid)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout == "a/b: not connected, for 0.2 s: the bus did not answer\n", done.stderr
