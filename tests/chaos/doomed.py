"""kill -9 at every moment of a start or an end: before the first system call that changes something, the second, and so on to the last.

Run as a program, as it forks: ``doomed.py start|stop|starter DIRECTORY``. One doomed process after the other is forked, in which a
profile hook counts the calls into the kernel that the code of ipcbus makes, and kills it at the Nth. After each death a sound one begins
at the same place and must come to serve. One line on stdout for each death: the call that it fell on. Exit code 1, and why, where a sound
one failed.

What a death of a daemon leaves is met in two ways: where there was nothing before, and where a killed daemon had left everything.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import ipcbus_client
from ipcbus.cli.daemon import main
from ipcbus.daemon import lifecycle  # noqa: F401  # what a daemon imports late: a doomed one shall not spend its calls on it
from ipcbus_client import _starter
from ipcbus_client._autostart import Order
from tests.wire import Wire

#: Calls after which a death leaves something else than before them, by the name of the builtin function or method.
_CHANGES = {
    "bind", "chmod", "chown", "close", "connect", "flock", "fork_exec", "ftruncate", "link", "listen", "mkdir", "open", "pipe", "pwrite",
    "rename", "socketpair", "unlink", "write", "writelines",
}  # fmt: skip
PATIENCE_S = 30.0
MISSES = 3  #: so many starters in a row that were not killed have lived through all calls


def _doom(number: int, report: int, begin: str = "") -> None:
    """From here on (or from the call of the function *begin*) count calls into the kernel; die before the *number*-th."""
    left = number
    counting = not begin

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, counting
        if event == "call" and frame.f_code.co_name == begin:
            counting = True
        if event != "c_call" or not counting or argument.__name__ not in _CHANGES or not _ours(frame):
            return
        left -= 1
        if left == 0:
            os.write(report, f"{argument.__name__} in {frame.f_code.co_name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


def _ours(frame: FrameType | None) -> bool:
    """Whether ipcbus makes the call, itself or through the standard library."""
    for _ in range(6):
        if frame is None:
            return False
        if "/ipcbus" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _forked(body: Callable[[], object], log: Path) -> int:
    """A child that runs *body* with streams of its own."""
    pid = os.fork()
    if pid:
        return pid
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        code = body()
    except BaseException:  # noqa: BLE001  # the child must end here whatever happened, and say it
        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


class Daemons:
    """Doomed and sound daemons in one directory, on a Unix socket and on TCP, so that there is a secret too."""

    def __init__(self, directory: Path, begin: str) -> None:
        self.directory = directory
        self.log = directory.with_suffix(".log")
        self._begin = begin
        self._wish = os.environ | {"XDG_CONFIG_HOME": "/nonexistent"}
        os.environ.clear()
        os.environ.update({key: value for key, value in self._wish.items() if not key.startswith("IPCBUS_")})

    def _arguments(self, ready: int) -> list[str]:
        return [
            "--config", os.devnull, "--listen", f"unix:{self.directory}/bus.sock", "--listen", "tcp:127.0.0.1:0",
            "--secret-file", f"{self.directory}/bus.secret", "--ready-fd", str(ready), "--log-level", "warning",
        ]  # fmt: skip

    def doomed(self, number: int) -> str | None:
        """Start one, and end it in order where it comes to serve; the call that it died on, None where it lived through all of it."""
        report, write = os.pipe()
        ready, ready_write = os.pipe()

        def body() -> int:
            _doom(number, write, self._begin)
            return main(self._arguments(ready_write))

        pid = _forked(body, self.log)
        os.close(write)
        os.close(ready_write)
        with os.fdopen(report) as told, os.fdopen(ready) as lines:
            if lines.read():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
            call = told.read().strip()
        if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
            raise AssertionError(f"the doomed one ended with {os.waitstatus_to_exitcode(status)}: {self.log.read_text()}")
        return call or None

    def sound(self, how_it_ends: int) -> None:
        """Start one, and use it; then *how_it_ends*, a signal."""
        ready, write = os.pipe()
        pid = _forked(lambda: main(self._arguments(write)), self.log)
        os.close(write)
        with os.fdopen(ready) as lines:
            addresses = [line.split()[1] for line in lines]
        try:
            assert len(addresses) == 2, f"it does not start: {self.log.read_text()}"
            secret = self.directory / "bus.secret"
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
            for address in addresses:
                with Wire(address) as wire:
                    wire.hello(secret=secret.read_bytes())
                    assert wire.call("stats")["pid"] == pid
        finally:
            os.kill(pid, how_it_ends)
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == (0 if how_it_ends == signal.SIGTERM else -how_it_ends), self.log.read_text()


def daemons(directory: Path, begin: str) -> None:
    """Every death of a daemon in its start, or, with a *begin*, in its end."""
    with redirect_stdout(io.StringIO()):
        main(["--config", os.devnull, "--check-config"])
    for number in itertools.count(1):
        calls = []
        for leftovers in (False, True):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            made = Daemons(directory, begin)
            if leftovers:
                made.sound(signal.SIGKILL)
            calls.append(made.doomed(number))
            made.sound(signal.SIGTERM)
            left = {entry.name for entry in directory.iterdir()}
            assert left == {"bus.secret", "bus.sock.lock"}, left
        if not any(calls):
            return
        _tell(calls[0] or calls[1])


def starters(directory: Path) -> None:
    """Every death of a client while it starts the user's bus."""
    run = directory / "run"
    run.mkdir(parents=True, mode=0o700)
    os.environ.update({"XDG_RUNTIME_DIR": str(run), "XDG_STATE_HOME": str(directory / "state"), "HOME": str(directory)})
    order = Order(str(run / "ipcbus" / "default.sock"), "default")
    log = directory / "log"
    number, misses = 1, 0
    while misses < MISSES:
        report, write = os.pipe()

        def body(number: int = number, write: int = write) -> None:
            _doom(number, write)
            _starter.start(order)

        pid = _forked(body, log)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(report) as told:
            call = told.read().strip()
        with ipcbus_client.connect(autostart=True, timeout=PATIENCE_S) as bus:
            assert bus.stats()["peers"] == 1
        _kill_started(run)
        if call:
            number += 1
            misses = 0
            _tell(call)
        else:
            misses += 1  # it lived through all of it; or the one before had started a bus that came only now, so that it had nothing to do


def _tell(call: str | None) -> None:
    sys.stdout.write(f"{call}\n")
    sys.stdout.flush()


def _kill_started(run: Path) -> None:
    """End what was started here: the bus, and what a doomed one had started and comes late. It has the directory in its environment."""
    mark = f"XDG_RUNTIME_DIR={run}\0".encode()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        if not found:
            return
        assert time.monotonic() < deadline, f"{found} do not end"
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    gc.collect()
    gc.freeze()
    if what == "starter":
        starters(where)
    else:
        daemons(where, "_on_signal" if what == "stop" else "")
