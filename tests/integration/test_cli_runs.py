"""ipcbus.cli.runs: one run of a command, with real processes (they end by themselves or are killed)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ipcbus.cli import runs
from ipcbus.cli.runs import Output, Run


def finish(
    *command: str,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    limit_s: float | None = 20.0,
) -> Output:
    return Run(command, given, environment or {}, cancelled, limit_s).finish()


def test_stdin_goes_in_and_stdout_comes_out() -> None:
    big = b"x" * 300_000  # more than a pipe holds
    assert finish("/bin/cat", given=big) == Output(big)


def test_the_environment_is_added() -> None:
    assert finish("/bin/sh", "-c", "echo $IPCBUS_METHOD", environment={"IPCBUS_METHOD": "m"}).stdout == b"m\n"


def test_an_exit_code_becomes_an_error_with_the_last_line_of_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    output = finish("/bin/sh", "-c", "echo first >&2; echo last >&2; echo out; exit 3")
    assert (output.failure, output.why) == ("exit-3", "last")
    assert capfd.readouterr().err == "first\nlast\n"


def test_a_signal_becomes_an_error() -> None:
    output = finish("/bin/sh", "-c", "kill -9 $$")
    assert (output.failure, output.why) == ("signal-9", "the command was ended by signal 9")


def test_a_caller_that_gives_up_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    # The grandchild holds stdout: only its death lets the pipe end, and finish() return.
    output = finish("/bin/sh", "-c", "sleep 100 & sleep 100", cancelled=lambda: True)
    assert output.failure == "cancelled"


def test_too_slow() -> None:
    assert finish("/bin/sleep", "100", limit_s=0.01).failure == "too-slow"
    assert finish("/bin/sh", "-c", "exec >&- 2>&-; sleep 100", limit_s=0.3).failure == "too-slow"


def test_a_stderr_that_nobody_reads_stops_nothing() -> None:
    code = """
from ipcbus.cli.runs import Run
import time
chatter = 'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done'
begin = time.monotonic()
print(Run(['/bin/sh', '-c', chatter], b'', {}, lambda: False, 0.5).finish().failure)
print(Run(['/bin/sh', '-c', chatter], b'', {}, lambda: time.monotonic() > begin + 1, None).finish().failure)
print(Run(['/bin/sh', '-c', 'head -c 300000 /dev/zero >&2; echo why >&2; exit 3'], b'', {}, lambda: False, None).finish().why[-3:])
print(Run(['/bin/sh', '-c', 'echo note >&2; echo done'], b'', {}, lambda: False, None).finish().stdout.decode(), end='')
"""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=20, stdout=subprocess.PIPE, stderr=writing)
    finally:
        os.close(reading)
        os.close(writing)
    assert ended.stdout.decode().split() == ["too-slow", "cancelled", "why", "done"]


def test_endless_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_OUTPUT_BYTES", 100_000)
    assert finish("/bin/sh", "-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done").failure == "too-large"


def test_a_command_that_cannot_start_raises() -> None:
    with pytest.raises(OSError, match="nothing"):
        finish("/nothing/here")
    assert finish(sys.executable, "-c", "").failure == ""


def test_a_command_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    code = f"""
import os, time
from ipcbus.cli.runs import Run
run = Run(['/bin/sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 100'], b'', {{}}, None, None)
while not os.path.exists('{tmp_path}/pid') or not os.path.getsize('{tmp_path}/pid'):
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == -9
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < deadline, "left behind"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether *pid* does more than wait for somebody to take its exit code."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except ProcessLookupError:
        return os.path.exists(f"/proc/{pid}")
