"""The end of a program, and of a bus that it forgot: dropped, at exit, and when the interpreter goes; both shells, a real daemon."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon, environment, wait_until

WAIT_S = 30.0


@pytest.fixture
def watcher(daemon: RunningDaemon) -> Iterator[ipcbus_client.Bus]:
    """Somebody who sees what others leave behind."""
    with ipcbus_client.connect(daemon.address, program="watcher", timeout=WAIT_S) as bus:
        yield bus


def peers(watcher: ipcbus_client.Bus) -> int:
    return len(watcher.peers())


def drop(held: list[Any]) -> None:
    """Drop what only *held* holds."""
    held.clear()
    gc.collect()


def keepers() -> int:
    return sum(thread.name.startswith("ipcbus") for thread in threading.enumerate())


def test_a_dropped_bus_is_closed_with_a_warning_that_names_it(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    before = keepers()
    bus = ipcbus_client.connect(daemon.address, name="forgotten", timeout=WAIT_S)
    sub = bus.subscribe("unread.>")
    seen = watcher.subscribe("t.>")
    for n in range(20):
        bus.publish("t.x", n)
    held = [bus, sub]
    del bus, sub
    with pytest.warns(ResourceWarning, match=f"<Bus {daemon.address} connected> was dropped without close"):
        drop(held)
    assert [seen.get(WAIT_S).data for _ in range(20)] == list(range(20))
    wait_until(lambda: peers(watcher) == 1 and watcher.names() == [], "it is still connected", WAIT_S)
    wait_until(lambda: keepers() == before, "a thread is left", WAIT_S)


def test_a_dropped_bus_that_is_not_connected_is_closed_too(daemon: RunningDaemon) -> None:
    before = keepers()
    bus = ipcbus_client.connect(daemon.address, timeout=WAIT_S)
    daemon.kill()
    held = [bus]
    del bus
    wait_until(lambda: held[0].state.value == "reconnecting", "the loss is not noticed", WAIT_S)
    held[0].publish("t", 1)
    with pytest.warns(ResourceWarning, match="reconnecting> was dropped"):
        drop(held)
    wait_until(lambda: keepers() == before, "a thread is left", WAIT_S)


def test_a_bus_that_has_callbacks_or_handlers_is_in_use(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    came = threading.Event()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ipcbus_client.connect(daemon.address, timeout=WAIT_S).subscribe("t", lambda message: came.set())
        ipcbus_client.connect(daemon.address, timeout=WAIT_S).respond("a/b", lambda request: "answer")
        gc.collect()
        watcher.publish("t")
        assert came.wait(WAIT_S)
        assert watcher.request("a/b", timeout=WAIT_S) == "answer"
    from ipcbus_client import _blocking

    for bus in [bus for bus in list(_blocking._buses) if bus is not watcher]:
        bus.close()


def test_a_closed_bus_is_dropped_without_a_word(daemon: RunningDaemon) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bus = ipcbus_client.connect(daemon.address, timeout=WAIT_S)
        bus.close()
        del bus
        gc.collect()
        with pytest.raises(ipcbus_client.AddressError):
            ipcbus_client.connect("nonsense:/x")
        gc.collect()


def test_asyncio_a_dropped_bus_is_closed_with_a_warning_that_names_it(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    seen = watcher.subscribe("t")

    async def main() -> None:
        bus = await aio.connect(daemon.address, name="forgotten", timeout=WAIT_S)
        sub = await bus.subscribe("unread")
        await bus.publish("t", 1)
        held = [bus, sub]
        del bus, sub
        with pytest.warns(ResourceWarning, match="connected> was dropped without close"):
            drop(held)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while len(asyncio.all_tasks()) > 1:
            assert asyncio.get_running_loop().time() < deadline, "a task is left"
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert seen.get(WAIT_S).data == 1
    wait_until(lambda: peers(watcher) == 1, "it is still connected", WAIT_S)


def test_asyncio_a_bus_that_outlives_its_loop(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    seen = watcher.subscribe("t")

    async def main() -> aio.Bus:
        bus = await aio.connect(daemon.address, timeout=WAIT_S)
        await bus.publish("t", 1)
        await bus.publish("t", 2)
        return bus

    held = [asyncio.run(main())]
    assert [seen.get(WAIT_S).data for _ in range(2)] == [1, 2]
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        drop(held)
    wait_until(lambda: peers(watcher) == 1, "it is still connected", WAIT_S)


def test_asyncio_what_tidies_up_when_the_loop_ends_may_use_the_bus(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    seen = watcher.subscribe("t")

    async def serve(bus: aio.Bus) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await bus.publish("t", f"peer {len(await bus.peers())}")
            await bus.close()

    async def main() -> None:
        bus = await aio.connect(daemon.address, timeout=WAIT_S)
        main.task = asyncio.create_task(serve(bus))  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen.get(WAIT_S).data == "peer 2"


def run_program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which must come."""
    command = [sys.executable, "-X", "dev", "-c", code, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)


PROGRAMS = {
    "it forgot": "bus = connect()\nfor n in range(1000): bus.publish('t', n)",
    "it forgot, with threads and handlers": (
        "bus = connect()\nbus.subscribe('x', print)\nbus.respond('a/b', print)\nfor n in range(1000): bus.publish('t', n)"
    ),
    "closed at exit": "import atexit\nbus = connect()\natexit.register(bus.close)\nfor n in range(1000): bus.publish('t', n)",
    "closed at exit, before the import": (
        "import atexit\natexit.register(lambda: bus.close())\nbus = connect()\nfor n in range(1000): bus.publish('t', n)"
    ),
    "closed in __del__ of a global": (
        "class Owner:\n    def __init__(self): self.bus = connect()\n    def __del__(self): self.bus.close()\n"
        "owner = Owner()\nowner.bus.subscribe('x', print)\nfor n in range(1000): owner.bus.publish('t', n)"
    ),
    "closed in __del__ of a cycle": (
        "class Owner:\n    def __init__(self): self.bus = connect(); self.me = self\n    def __del__(self): self.bus.close()\n"
        "owner = Owner()\nfor n in range(1000): owner.bus.publish('t', n)"
    ),
    "it is the child of a fork": (
        "import os\nbus = connect()\npid = os.fork()\nif pid: os.waitpid(pid, 0); bus.close()\n"
        "else:\n    for n in range(1000): bus.publish('t', n)"
    ),
    "SystemExit in a with block": "with connect() as bus:\n    for n in range(1000): bus.publish('t', n)\n    sys.exit(0)",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_ends_sends_what_it_published_and_ends(daemon: RunningDaemon, watcher: ipcbus_client.Bus, program: str) -> None:
    seen = watcher.subscribe("t")
    start = "import sys, ipcbus_client\ndef connect(): return ipcbus_client.connect(sys.argv[1])\n"
    done = run_program(start + PROGRAMS[program], daemon.address)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Fatal" not in done.stderr, done.stderr
    assert [seen.get(WAIT_S).data for _ in range(1000)] == list(range(1000))
    wait_until(lambda: peers(watcher) == 1, "it is still connected", WAIT_S)


def test_a_program_whose_bus_is_stuck_ends_too(daemon: RunningDaemon) -> None:
    import signal

    daemon.signal(signal.SIGSTOP)
    try:
        code = (
            "import sys, ipcbus_client, os, signal\nos.kill(int(sys.argv[2]), signal.SIGCONT)\nbus = ipcbus_client.connect(sys.argv[1])\n"
            "os.kill(int(sys.argv[2]), signal.SIGSTOP)\nbus._wire.timeout = 0.2\n"
            "try:\n    for n in range(1000): bus.publish('t', bytes(60000))\nexcept ipcbus_client.Timeout: print('full')"
        )
        done = run_program(code, daemon.address, str(daemon.pid))
        assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr
        assert "at the end of the program" in done.stderr
    finally:
        daemon.signal(signal.SIGCONT)


def test_asyncio_a_program_that_forgot_to_close(daemon: RunningDaemon, watcher: ipcbus_client.Bus) -> None:
    seen = watcher.subscribe("t")
    code = (
        "import sys, asyncio\nfrom ipcbus_client import aio\nasync def main():\n    bus = await aio.connect(sys.argv[1])\n"
        "    for n in range(1000): await bus.publish('t', n)\nasyncio.run(main())"
    )
    done = run_program(code, daemon.address)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "was dropped without close()" in done.stderr
    assert "Task was destroyed" not in done.stderr
    assert [seen.get(WAIT_S).data for _ in range(1000)] == list(range(1000))
