"""A process that has the daemon's modules loaded and forks one ``ipcbusd`` after another: a fresh bus for each case in milliseconds.

Run as a program. Each line on stdin is a command in JSON, answered by one line on stdout:

- ``{"start": [ARGUMENT, …], "log": PATH}``: ``{"pid": …, "addresses": […]}`` when it listens, no addresses when it did not start;
- ``{"stop": PID}`` (SIGTERM): ``{"status": exit status}``.

At the end of stdin, what still runs is killed.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import ipcbus.daemon
from ipcbus.cli.daemon import main

STOP_S = 10.0


def start(arguments: list[str], log: str) -> dict[str, Any]:
    """Fork a daemon and wait until it listens or has ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os._exit(_daemon([*arguments, "--ready-fd", str(write)], log))
    os.close(write)
    with os.fdopen(read) as ready:
        addresses = [line.split()[1] for line in ready]
    return {"pid": pid, "addresses": addresses}


def _daemon(arguments: list[str], log: str) -> int:
    """The child: streams of its own, then the daemon to its end."""
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        return main(arguments)
    except BaseException:  # noqa: BLE001  # the child must end here whatever happened, and say it
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def stop(pid: int) -> dict[str, Any]:
    """End a daemon in order; after STOP_S by force, with a status that says so."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return {"status": os.waitstatus_to_exitcode(status)}
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"status": -signal.SIGKILL}


def _load() -> None:
    """Import all that a daemon imports, also what it imports late, and keep the garbage collector from touching it in every child."""
    for module in pkgutil.walk_packages(ipcbus.daemon.__path__, "ipcbus.daemon."):
        import_module(module.name)
    with redirect_stdout(io.StringIO()):
        main(["--config", os.devnull, "--check-config"])
    gc.collect()
    gc.freeze()


def serve() -> None:
    """Do what stdin says."""
    _load()
    running: set[int] = set()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if "start" in command:
                answer = start(command["start"], command["log"])
                running.add(answer["pid"])
            else:
                running.discard(command["stop"])
                answer = stop(command["stop"])
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    serve()
