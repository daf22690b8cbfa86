"""Real ``ipcbusd`` processes for tests: started in a directory of their own, ended by their pid, whatever the test did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 20.0  #: far above what a start takes, for a machine under load
STOP_S = 20.0


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: this project importable, nothing of the developer's own ipcbus settings."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("IPCBUS_")}
    paths = [str(ROOT), str(ROOT / "clients" / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(paths), "XDG_CONFIG_HOME": "/nonexistent", **extra}


def command(*arguments: str) -> list[str]:
    """The command line of ``ipcbusd`` in this interpreter."""
    return [sys.executable, "-m", "ipcbus.cli.daemon", *arguments]


def run_ipcbusd(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``ipcbusd`` to its end, for what does not serve: --check-config, a refused start."""
    return subprocess.run(command(*arguments), env=environment(**env), capture_output=True, text=True, timeout=START_S, check=False)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll until *condition* () holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class RunningDaemon:
    """One ``ipcbusd`` that listens. ``address`` is its first address, ``path`` the path of its Unix socket."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        listen: Sequence[str] | None = None,
        config: str | None = None,
        env: Mapping[str, str] | None = None,
        nofile: int | None = None,
    ) -> None:
        self.directory = directory
        self.path = str(directory / "bus.sock")
        self.secret_file = str(directory / "bus.secret")
        self.config_file = directory / "ipcbusd.toml"
        self.log_file = directory / "log"
        self.config_file.write_text(config or "")
        read, write = os.pipe()
        flags = [f"--listen={address}" for address in (listen if listen is not None else [f"unix:{self.path}"])]
        prefix = ["prlimit", f"--nofile={nofile}"] if nofile else []
        self.command = [
            *prefix,
            *command("--config", str(self.config_file), "--secret-file", self.secret_file, "--ready-fd", str(write)),
            *flags,
            *arguments,
        ]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment(**(env or {})), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,)
            )
        os.close(write)
        with os.fdopen(read) as ready:
            self.addresses = [line.split()[1] for line in ready]
        if not self.addresses:
            self.process.wait(START_S)
            raise RuntimeError(f"ipcbusd did not start, exit code {self.process.returncode}: {self.log()}")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def address(self) -> str:
        """Where it listens, first of all."""
        return self.addresses[0]

    def log(self) -> str:
        """All that it logged so far."""
        return self.log_file.read_text()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_S) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """End it in order; returns the exit code. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """End it as the kernel would for want of memory. Idempotent."""
        self.process.kill()
        self.process.wait(STOP_S)

    def finish(self) -> None:
        """Clean up after a test: end it, and fail where it logged a fault or did not end in order by itself."""
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"ipcbusd did not stop within {STOP_S:g} s: {self.log()}") from None
        assert code in (0, -signal.SIGKILL), self.log()
        assert "fault of the bus" not in self.log(), self.log()


@contextmanager
def system_bus(policy: str) -> Iterator[RunningDaemon]:
    """A system bus with *policy* as its only file of rules, on a Unix socket for everybody and on loopback TCP."""
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        directory = Path(path)
        directory.chmod(0o711)
        (directory / "policy.toml").write_text(policy)
        daemon = RunningDaemon(
            directory,
            ["--kind", "system", "--policy-file", f"{path}/policy.toml", "--policy-dir", f"{path}/none"],
            listen=[f"unix:{path}/bus.sock", "tcp:127.0.0.1:0"],
        )
        yield daemon
        daemon.finish()
