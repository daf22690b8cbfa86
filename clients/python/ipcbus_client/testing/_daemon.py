"""A real ``ipcbusd`` for a test: in a directory of its own, found by connect() through the environment, ended whatever the test did."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

#: Far above what a start or an orderly end takes, for a machine under load.
PATIENCE_S = 30.0


class Daemon:
    """A running ``ipcbusd`` on a Unix socket in a new directory. Usable in a ``with`` statement, which ends it and removes the directory.

    *arguments* are more flags for it, *config* is the text of its configuration file. Raises RuntimeError, with what it logged, where it
    does not start.
    """

    def __init__(self, arguments: Sequence[str] = (), *, config: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ipcbus-", dir=_short_place()))
        self.path = str(self.directory / "bus.sock")
        self.address = f"unix:{self.path}"  #: what connect() takes
        self._log_file = self.directory / "log"
        self._arguments = arguments
        (self.directory / "ipcbusd.toml").write_text(config)
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    # --- its life ---

    def start(self) -> None:
        """Start it; returns when it listens. Only after stop() or kill()."""
        read, write = os.pipe()
        files = ["--config", str(self.directory / "ipcbusd.toml"), "--secret-file", str(self.directory / "bus.secret")]
        command = [sys.executable, "-m", "ipcbus.cli.daemon", *files, "--listen", self.address, "--ready-fd", str(write)]
        command += self._arguments
        with os.fdopen(read) as ready:
            try:
                with self._log_file.open("ab") as log:
                    self._process = subprocess.Popen(
                        command, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,)
                    )
            finally:
                os.close(write)
            try:
                if not select.select([ready], [], [], PATIENCE_S)[0]:
                    raise RuntimeError(f"ipcbusd did not start within {PATIENCE_S:g} s: {self.log()}")
                if not ready.read():
                    code = self._process.wait(PATIENCE_S)
                    raise RuntimeError(f"ipcbusd did not start, exit code {code}: {self.log()}")
            except BaseException:  # also Ctrl-C: nobody would end it
                self.kill()
                raise

    def stop(self) -> int:
        """End it in order, as SIGTERM does; returns its exit code. Idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as ``kill -9`` does. Idempotent."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def restart(self) -> None:
        """End it in order where it runs, and start it again at the same address. It remembers nothing."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop it as SIGSTOP does: connections stay, nothing moves."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After pause()."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its directory. Idempotent."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- what a test may want to know ---

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended (a paused one has not)."""
        return self._process.poll() is None

    def log(self) -> str:
        """All that it logged so far."""
        return self._log_file.read_text()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Daemon {self.address} pid {self.pid}>"


def _short_place() -> str | None:
    """Where a socket's path stays within its 107 bytes."""
    place = tempfile.gettempdir()
    return place if len(place) < 60 else "/tmp"  # noqa: S108 - a new directory with mode 0700 is made in it


def _environment() -> dict[str, str]:
    """What the daemon gets: what this program can import, and none of the developer's own settings of ipcbus."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("IPCBUS_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path))), "XDG_CONFIG_HOME": "/nonexistent"}
