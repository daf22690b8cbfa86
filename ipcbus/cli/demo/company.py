"""The processes of the demo: a daemon that can be killed, a publisher and a service.

Owns their start, their end and their private directory. Every process is waited for in `close`, and the kernel kills
them when the demo itself is killed.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from ...protocol.addresses import UnixAddress
from ..failures import CommandError, Exit

START_TIMEOUT_S = 20.0  #: for a slow, busy machine; the start of an interpreter takes a fraction of a second
STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 12
_TEMP_MAX_BYTES = 60  #: a longer $TMPDIR leaves no room for a socket's path


class Company:
    """Starts and ends the processes. Use it from the main thread only: the children die with the thread that started them."""

    def __init__(self) -> None:
        temporary = tempfile.gettempdir()
        if len(os.fsencode(temporary)) > _TEMP_MAX_BYTES:
            temporary = "/tmp"  # noqa: S108 - a new directory with mode 0700 is made in it
        self.directory = tempfile.mkdtemp(prefix="ipcbus-demo-", dir=temporary)
        self.address = str(UnixAddress(f"{self.directory}/bus.sock"))
        self._log = open(f"{self.directory}/log", "w+b", buffering=0)  # noqa: SIM115 - closed in close()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start_daemon(self) -> int:
        """Start a daemon and return its pid when it listens."""
        ready, ready_child = os.pipe()
        try:
            self._daemon = self._start(
                "daemon",
                *("--listen", self.address, "--ready-fd", str(ready_child), "--config", os.devnull),
                pass_fds=(ready_child,),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
            )
            os.close(ready_child)
            ready_child = -1
            readable, _, _ = select.select([ready], [], [], START_TIMEOUT_S)
            if not readable or not os.read(ready, 1):
                raise CommandError(Exit.INTERNAL, "demo: the daemon did not start")
            return self._daemon.pid
        finally:
            os.close(ready)
            if ready_child >= 0:
                os.close(ready_child)

    def kill_daemon(self) -> None:
        """SIGKILL, so that it can neither say goodbye nor clean up."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def stop_daemon(self) -> int:
        """SIGTERM; the exit code, -1 where it did not end."""
        assert self._daemon is not None
        self._daemon.terminate()
        try:
            return self._daemon.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return -1  # close() will kill it, and count it

    def start(self, role: str) -> int:
        """Start the publisher or the service; its pid."""
        child = self._start(role, self.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._children[role] = child
        return child.pid

    def stop(self, role: str) -> dict[str, Any]:
        """Have the child *role* end, and return what it reports; raises CommandError where it does not end well."""
        child = self._children[role]
        try:
            report, _ = child.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise CommandError(Exit.INTERNAL, f"demo: the {role} did not end within {STOP_TIMEOUT_S:g} s") from None
        if child.returncode != 0:
            raise CommandError(Exit.INTERNAL, f"demo: the {role} ended with {child.returncode}")
        return dict(json.loads(report))

    def dead(self) -> str | None:
        """The role of a process that ended although nobody told it to, or None."""
        everybody = {"daemon": self._daemon, **self._children}
        return next((role for role, child in everybody.items() if child and child.poll() is not None), None)

    def log_tail(self) -> str:
        """The last lines that the processes wrote to stderr."""
        with open(f"{self.directory}/log", encoding="utf-8", errors="replace") as log:
            return "\n".join(f"  | {line.rstrip()}" for line in log.readlines()[-LOG_TAIL_LINES:])

    def close(self) -> int:
        """Kill and wait for what still runs, and remove the directory; how many had to be killed. Idempotent."""
        everybody = [child for child in (self._daemon, *self._children.values()) if child is not None]
        left = [child for child in everybody if child.poll() is None]
        for child in left:
            child.kill()
        for child in everybody:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        return len(left)

    def _start(self, role: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        # The user's own bus and its settings are none of the demo's business.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IPCBUS_")}
        return subprocess.Popen(
            [sys.executable, "-m", "ipcbus.cli.demo.child", str(os.getpid()), role, *arguments],
            stderr=self._log,
            env=environment,
            process_group=0,  # Ctrl-C is for the demo, which then ends them
            **options,
        )


