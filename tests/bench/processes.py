"""Processes of a benchmark: starting a role or the daemon, talking to it, measuring it from outside, and ending it.

A role is a function ``role(stage, **arguments)`` of roles.py or controls.py that runs in a process of its own. It says
``stage.ready()`` when its connections stand, waits in ``stage.wait_go()``, works, and hands back its figures with
``stage.result(…)``. The talk goes as JSON lines over stdin and stdout. However a benchmark ends, its processes end too:
by ``Cast``, and by the kernel where the benchmark itself was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0  #: no single step of a benchmark takes longer; who does is ended and named

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A run that cannot be counted: a process died, was late or saw a wrong message."""


class Stage:
    """A role's side of the talk with the benchmark that started it."""

    def ready(self) -> None:
        """Say that all is connected."""
        self._say({"ready": True})

    def wait_go(self) -> None:
        """Wait until the benchmark says go; ends the process if the benchmark is gone."""
        if sys.stdin.readline() != "go\n":
            sys.exit(1)

    def result(self, **figures: Any) -> None:
        """Hand back the figures."""
        self._say(figures)

    def wait_end(self) -> None:
        """Keep everything open until the benchmark closes the talk."""
        sys.stdin.read()

    @staticmethod
    def _say(what: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


class Process:
    """One process that was started here; ended by its pid, never by name."""

    def __init__(self, label: str, command: list[str], *, talk: bool, fds: tuple[int, ...] = ()) -> None:
        self.label = label
        pipe = subprocess.PIPE if talk else subprocess.DEVNULL
        # a user's IPCBUS_… must not change what is measured
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IPCBUS_")}
        paths = [str(ROOT), str(ROOT / "clients" / "python"), os.environ.get("PYTHONPATH", "")]
        self._popen = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            cwd=ROOT,
            env={**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            pass_fds=fds,
            preexec_fn=_die_with_parent,
        )
        self._half_line = b""

    @property
    def pid(self) -> int:
        return self._popen.pid

    def go(self) -> None:
        """Let the role begin."""
        self.write("go")

    def write(self, line: str) -> None:
        """Give the role a line on its stdin."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError as error:
            raise BenchError(f"{self.label} ended before it could begin (its error is above)") from error

    def read(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next thing the role says; raises BenchError if it ends or takes longer than *patience_s*."""
        assert self._popen.stdout is not None
        fd = self._popen.stdout.fileno()
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._half_line:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise BenchError(f"{self.label} said nothing for {patience_s:.0f} s")
            data = os.read(fd, 65536)
            if not data:
                raise BenchError(f"{self.label} ended with code {self._popen.wait()} (its error is above)")
            self._half_line += data
        line, _, self._half_line = self._half_line.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def alive(self) -> bool:
        return self._popen.poll() is None

    def cpu_s(self) -> float:
        """CPU seconds of all its threads: utime + stime of /proc/PID/stat, but not in steps of 10 ms."""
        # the clock id of a process, as clock_getcpuclockid(3) makes it
        return time.clock_gettime((~self.pid << 3) | 2)

    def wakeups(self) -> int:
        """How often it went to sleep and was woken: the voluntary context switches of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def memory_bytes(self) -> dict[str, int]:
        """``Rss`` and ``Pss`` from /proc/PID/smaps_rollup."""
        found = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in ("Rss", "Pss"):
                found[key] = int(rest.split()[0]) * 1024
        return found

    def end(self) -> None:
        """End it: close the talk, SIGTERM, SIGKILL; returns when it is gone."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        for ask in (self._popen.terminate, self._popen.kill):
            if self.alive():
                ask()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5)
                return


class Cast:
    """All processes and the directory of one run. A context manager: when it is left, none of them is."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ipcbus-bench-"))
        self._processes: list[Process] = []

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def role(self, name: str, *, fds: tuple[int, ...] = (), wait: bool = True, **arguments: Any) -> Process:
        """Start ``name`` (``module.function`` in this package); with *wait* returns when it is ready."""
        code = "import sys; from tests.bench.processes import play; play(sys.argv[1])"
        process = Process(name, [sys.executable, "-c", code, name], talk=True, fds=fds)
        self._processes.append(process)
        process.write(json.dumps(arguments))
        if wait:
            process.read()
        return process

    def daemon(self, *, name: str = "bus", before: str = "", wait: bool = True) -> tuple[Process, str]:
        """Start an ``ipcbusd`` with an empty configuration of its own; returns it and its address when it listens. *before* is a statement
        that it executes first."""
        path = self.directory / f"{name}.sock"
        config = self.directory / "ipcbusd.toml"
        config.write_text("")
        code = f"import sys; from ipcbus.cli.daemon import main; {before or 'pass'}; sys.exit(main())"
        command = [sys.executable, "-c", code, "--config", str(config), "--listen", f"unix:{path}", "--log-level", "warning"]
        process = Process("ipcbusd", command, talk=False)
        self._processes.append(process)
        deadline = time.monotonic() + 10
        while wait and not _listens(path):
            if not process.alive() or time.monotonic() > deadline:
                raise BenchError("ipcbusd does not listen (its error is above)")
            time.sleep(0.02)
        return process, f"unix:{path}"


def play(name: str) -> None:
    """The main function of a role's process; its arguments come as the first line of stdin."""
    module, _, role = name.partition(".")
    roles = import_module(f"tests.bench.{module}")  # the one: no control carries the client library along
    arguments = json.loads(sys.stdin.readline() or sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the benchmark ends its processes itself
    getattr(roles, role)(Stage(), **arguments)


def _die_with_parent() -> None:
    """In the new process: the kernel ends it when the benchmark dies, even by SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
