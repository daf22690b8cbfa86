"""ipcbus.cli.calls: which requests start the command of `ipcbus serve`, and that none of its runs is left behind."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipcbus.cli import runs
from ipcbus.cli.calls import Server
from ipcbus_client import Sender, ServiceError

WAIT_S = 20.0


def server(*command: str, count: int | None = None) -> Server:
    return Server(list(command), argparse.Namespace(raw=True, text=False, timeout=None, count=count))


def request() -> Any:
    return SimpleNamespace(payload=b"", method="m", sender=Sender(1), cancelled=False)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def refusal(served: Server) -> str:
    with pytest.raises(ServiceError) as caught:
        served.answer(request())
    return str(caught.value.code)


def test_nothing_is_started_after_stop(tmp_path: Path) -> None:
    served = server("/usr/bin/touch", str(tmp_path / "ran"))
    served.stop()
    assert refusal(served) == "stopping"
    time.sleep(0.2)
    assert not (tmp_path / "ran").exists()


def test_a_run_that_starts_while_it_is_stopped_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment: the command is known to stop() or is not started."""
    started, stopping = threading.Event(), threading.Event()
    processes: list[Any] = []
    popen = runs.subprocess.Popen

    def slow_start(*args: Any, **options: Any) -> Any:
        processes.append(popen(*args, **options))
        started.set()
        stopping.wait(0.3)  # stop() is called here
        return processes[-1]

    monkeypatch.setattr(runs.subprocess, "Popen", slow_start)
    served = server("/bin/sleep", "100")
    codes: list[str] = []
    thread = threading.Thread(target=lambda: codes.append(refusal(served)))
    thread.start()
    try:
        assert started.wait(WAIT_S)
        served.stop()
        stopping.set()
        thread.join(WAIT_S)
        assert codes == ["stopping"]
        assert processes[0].poll() is not None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_requests_beyond_count_start_nothing(tmp_path: Path) -> None:
    served = server("/bin/sh", "-c", f"echo x >> {tmp_path}/ran", count=1)
    assert served.answer(request()) == b""
    assert served.done.is_set()
    assert refusal(served) == "stopping"
    assert (tmp_path / "ran").read_text() == "x\n"


def test_stop_is_idempotent_and_ends_what_runs() -> None:
    served = server("/bin/sleep", "100")
    codes: list[str] = []
    thread = threading.Thread(target=lambda: codes.append(refusal(served)))
    thread.start()
    until(lambda: bool(served._runs))
    served.stop()
    served.stop()
    thread.join(WAIT_S)
    assert codes == ["stopping"]


def test_bad_output_is_an_answer_though_nobody_reads_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Server(["/bin/echo", "{"], argparse.Namespace(raw=False, text=False, timeout=None, count=None))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    codes: list[str] = []
    asking = SimpleNamespace(data=None, method="m", sender=Sender(1), cancelled=False)

    def ask() -> None:
        with pytest.raises(ServiceError) as caught:
            served.answer(asking)  # type: ignore[arg-type]
        codes.append(str(caught.value.code))

    with open(writing, "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(WAIT_S)
        monkeypatch.undo()
        os.close(reading)  # ends a write that waits
    assert codes == ["bad-output"]
