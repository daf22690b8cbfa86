"""Each example, run as its reader would run it, against a real daemon."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon, environment, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "clients" / "python" / "examples"
WAIT_S = 30.0


class Program:
    """An example that runs, and what it prints."""

    def __init__(self, name: str, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def line(self) -> str:
        """What it prints next."""
        return self._lines.get(timeout=WAIT_S)

    def until(self, text: str) -> None:
        """Read on until a line has *text*."""
        while text not in self.line():
            pass

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send it a signal, and wait for its end: exit code and what it wrote to standard error."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Start:
    """Starts examples on one daemon, and ends them all."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.programs: list[Program] = []

    def __call__(self, name: str, *arguments: str) -> Program:
        self.programs.append(Program(name, *arguments, IPCBUS_ADDRESS=self.address))
        return self.programs[-1]


@pytest.fixture
def start(daemon: RunningDaemon) -> Iterator[Start]:
    starter = Start(daemon.address)
    yield starter
    for program in starter.programs:
        program.close()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_says_how_it_is_used(path: Path, start: Start) -> None:
    program = start(path.name, "--help")
    assert program.line().startswith(f"usage: {path.name}")
    assert program.end() == (0, "")


def test_each_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'start("{path.name}"' not in text] == []


def test_sensor_and_watcher(start: Start) -> None:
    sensor = start("sensor.py", "cellar", "--every", "0.01")
    watcher = start("watcher.py", "--limit", "21.5")
    watcher.until("too warm")
    sensor.process.kill()
    watcher.until("room.cellar.temp is gone")
    assert start("sensor.py", "attic", "--count", "3", "--every", "0").end() == (0, "")
    watcher.until("room.attic.temp is gone")
    kitchen = start("sensor.py", "kitchen", "--every", "60")
    watcher.until("room.kitchen.temp 21.0")
    late = start("watcher.py")
    assert late.line().split() == ["room.kitchen.temp", "21.0"], "what is there is told to who comes later"
    for program in (kitchen, watcher, late):
        assert program.end(signal.SIGINT) == (0, "")


def test_sensor_and_watcher_go_on_with_the_next_daemon(start: Start, daemon: RunningDaemon) -> None:
    watcher, sensor = start("watcher.py"), start("sensor.py", "kitchen", "--every", "0.01")
    watcher.until("room.kitchen.temp")
    daemon.kill()
    successor = RunningDaemon(daemon.directory)
    try:
        with ipcbus_client.connect(successor.address) as bus:
            wait_until(lambda: len(bus.peers()) == 3, "they did not come back", WAIT_S)
        while not watcher._lines.empty():
            watcher.line()
        watcher.until("room.kitchen.temp")
        assert sensor.end(signal.SIGINT)[0] == watcher.end(signal.SIGINT)[0] == 0
    finally:
        successor.finish()


def test_thermostat_and_client(start: Start) -> None:
    client = start("thermostat_client.py", "22.5")
    code, said = client.end()
    assert (code, "there is no thermostat" in said) == (1, True)
    service = start("thermostat.py")
    assert service.line() == "serving"
    for celsius, said in (("22.5", "the target was 20, and is 22.5 now"), ("19", "the target was 22.5, and is 19 now")):
        client = start("thermostat_client.py", celsius)
        assert client.line() == said
        assert client.end() == (0, "")
    code, refused = start("thermostat_client.py", "31").end()
    assert (code, "31 °C is above 30 °C" in refused) == (1, True)
    assert service.end(signal.SIGINT) == (0, "")


def test_work_queue(start: Start, daemon: RunningDaemon) -> None:
    workers = [start("work_queue.py", "work", name, "--seconds", "0.02") for name in ("first", "second")]
    with ipcbus_client.connect(daemon.address) as bus:
        wait_until(lambda: sum(peer["lanes"] for peer in bus.peers()) == 2, "the workers did not come", WAIT_S)
    adder = start("work_queue.py", "add", "10")
    assert adder.line() == "10 jobs are done"
    assert adder.end() == (0, "")
    did = []
    while len(did) < 10:
        for worker in workers:
            while not worker._lines.empty():
                did.append(worker.line().split())
    assert sorted(int(number) for _, _, number in did) == list(range(10))
    assert {who for who, _, _ in did} == {"first", "second"}
    for worker in workers:
        assert worker.end(signal.SIGINT) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_async_service_answers_what_is_at_work_before_it_goes(start: Start, daemon: RunningDaemon, number: int) -> None:
    service = start("async_service.py")
    assert service.line() == "serving"
    with ipcbus_client.connect(daemon.address) as bus:
        answers: list[str] = []
        asker = threading.Thread(target=lambda: answers.append(bus.request("kettle/boil", {"cups": 2}, timeout=WAIT_S)))
        asker.start()
        assert service.line() == "boiling 2"
        code, said = service.end(number)
        asker.join(WAIT_S)
        assert answers == ["2 cups of hot water"]
        assert (code, said) == (0, "")
        assert [service.line(), service.line()] == ["finishing", "gone"]
        with pytest.raises(ipcbus_client.NoSuchName):
            bus.request("kettle/boil", {"cups": 1})


def test_async_service_stops_when_nobody_waits(start: Start, daemon: RunningDaemon) -> None:
    service = start("async_service.py")
    assert service.line() == "serving"
    with ipcbus_client.connect(daemon.address) as bus:
        with pytest.raises(ipcbus_client.Expired):
            bus.request("kettle/boil", {"cups": 100}, timeout=0.5)
        assert [service.line(), service.line()] == ["boiling 100", "nobody waits any more: off"]
    assert service.end(signal.SIGTERM) == (0, "")
