"""Ctrl-C, the end of the process, and many threads on one blocking bus."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon, environment
from tests.threaded import WAIT_S


def test_ctrl_c_ends_a_service_in_order(daemon: RunningDaemon) -> None:
    program = (
        "import sys, ipcbus_client\n"
        "with ipcbus_client.connect(sys.argv[1], name='svc') as bus:\n"
        "    bus.respond('svc/do', lambda request: request.data)\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        bus.wait()\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', bus.request('svc/do', 7), flush=True)\n"
        "print(bus.state.value)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, daemon.address], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=WAIT_S)[0] == "interrupted 7\nclosed\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_an_exit_in_a_handler_ends_the_program_that_waits(daemon: RunningDaemon) -> None:
    program = (
        "import sys, ipcbus_client\n"
        "with ipcbus_client.connect(sys.argv[1]) as bus:\n"
        "    bus.respond('svc/stop', lambda request: sys.exit(3), errors='raise')\n"
        "    print('ready', flush=True)\n"
        "    bus.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, daemon.address], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with ipcbus_client.connect(daemon.address) as bus, pytest.raises(ipcbus_client.ServiceError, match="SystemExit"):
            bus.request("svc/stop", timeout=WAIT_S)
        assert process.wait(WAIT_S) == 3
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_keeps_the_process_alive(daemon: RunningDaemon, hangs: bool) -> None:
    """Neither a bus that nobody closed nor user code that hangs."""
    program = (
        "import sys, threading, time, ipcbus_client\n"
        "bus = ipcbus_client.connect(sys.argv[1])\n"
        "begun = threading.Event()\n"
        "def hang(message):\n"
        "    begun.set()\n"
        f"    time.sleep({100 if hangs else 0})\n"
        "bus.subscribe('t', hang)\n"
        "bus.subscribe('t', hang, concurrency=3)\n"
        "bus.publish('t')\n"
        "begun.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", program, daemon.address], env=environment(), timeout=WAIT_S, check=False).returncode == 0


def test_an_exception_in_the_middle_of_a_connections_end_leaves_it_ended(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may raise anywhere: also between the end of the socket and that of the session's connection."""

    def interrupted(why: str, *, again: bool) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with ipcbus_client.connect(daemon.address) as bus:
        sub = bus.subscribe("t")
        monkeypatch.setattr(bus._session, "lost", interrupted)
        with pytest.raises(KeyboardInterrupt), bus._lock:
            bus._wire.drop("the test says so")
        until = time.monotonic() + WAIT_S
        while bus.epoch == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        bus.publish("t", 1)
        assert sub.get(WAIT_S).data == 1


# --- threads ---


def test_threads_that_publish_request_subscribe_iterate_and_close_at_random(daemon: RunningDaemon) -> None:
    """One bus, many threads: every request is answered once with its own answer, every message comes once and in its thread's order."""
    rounds, workers = 60, 8
    errors: list[BaseException] = []
    got: dict[int, list[int]] = {number: [] for number in range(workers)}

    def guarded(work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  # a thread's failure must reach the test
            errors.append(error)

    with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
        service.respond("svc/echo", lambda request: request.data, concurrency=3)
        everything: list[list[int]] = []
        called: list[list[int]] = []
        lock = threading.Lock()
        stream = bus.subscribe("all.*", window_bytes=16 * 1024 * 1024)

        def callback(message: ipcbus_client.Message) -> None:
            with lock:
                called.append(message.data)

        bus.subscribe("all.*", callback, concurrency=4)

        def work(number: int) -> None:
            own = bus.subscribe(f"all.{number}")
            for turn in range(rounds):
                bus.publish(f"all.{number}", [number, turn])
                assert bus.request("svc/echo", [number, turn], timeout=WAIT_S) == [number, turn]
                message = own.get(WAIT_S)
                got[number].append(message.data[1])
                if turn % 10 == number % 10:
                    with bus.subscribe("all.*") as other:
                        bus.publish(f"extra.{number}", turn)
                    list(other)
                    bus.flush(WAIT_S)
            own.close()

        def iterate() -> None:
            for message in stream:
                with lock:
                    everything.append(message.data)

        readers = [threading.Thread(target=guarded, args=(iterate,)) for _ in range(3)]
        threads = [threading.Thread(target=guarded, args=(work, number)) for number in range(workers)]
        for thread in (*readers, *threads):
            thread.start()
        for thread in threads:
            thread.join(WAIT_S * 3)
        bus.flush(WAIT_S)
        until = time.monotonic() + WAIT_S
        while len(everything) < rounds * workers or len(called) < rounds * workers:
            assert time.monotonic() < until, (len(everything), len(called), errors)
            time.sleep(0.01)
        stream.close()
        for thread in readers:
            thread.join(WAIT_S)
        assert errors == []
        expected = [[number, turn] for number in range(workers) for turn in range(rounds)]
        assert sorted(everything) == sorted(called) == expected
        assert all(turns == list(range(rounds)) for turns in got.values())
        assert bus.stats_local()["requests"] == 0
        assert bus.epoch == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_bus_that_is_closed_under_threads_settles_all_of_them(daemon: RunningDaemon, seed: int) -> None:
    with ipcbus_client.connect(daemon.address) as service:
        service.respond("svc/echo", lambda request: request.data)
        bus = ipcbus_client.connect(daemon.address)
        unexpected: list[BaseException] = []
        settled: list[int] = []

        def work(number: int) -> None:
            try:
                while True:
                    if number % 4 == 0:
                        bus.publish("t", number)
                    elif number % 4 == 1:
                        bus.request("svc/echo", number, timeout=WAIT_S)
                    elif number % 4 == 2:
                        with bus.subscribe("t") as sub:
                            sub.get(WAIT_S)
                    else:
                        for _ in bus.subscribe("t"):
                            pass
                        bus.ping()
            except ipcbus_client.Closed:
                settled.append(number)
            except BaseException as error:  # noqa: BLE001  # a thread's failure must reach the test
                unexpected.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.1 + seed / 20)
        closers = [threading.Thread(target=bus.close, args=(WAIT_S,)) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in (*closers, *threads):
            thread.join(WAIT_S)
        assert unexpected == []
        assert sorted(settled) == list(range(12))
