"""A process that has the client loaded and forks one program after another: in milliseconds, and with nothing of pytest's in them.

Run as a program. Each line on stdin is a command in JSON, answered by one line on stdout:

- ``{"start": {…}}`` (the arguments of `programs.Part` as text, ``role``, and ``errors``, a file): ``{"pid": …}``;
- ``{"reap": true}``: ``{"ended": {PID: exit code}}`` since the last time.

At the end of stdin what still runs is killed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.chaos import programs

_PR_SET_PDEATHSIG = 1


def start(role: str, errors: str, **arguments: Any) -> int:
    """Fork a program; returns its pid."""
    pid = os.fork()
    if pid == 0:
        os._exit(_program(role, errors, arguments))
    return pid


def _program(role: str, errors: str, arguments: dict[str, Any]) -> int:
    """The child, to its end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)
    try:
        programs.play(role, programs.Part(journal=Path(arguments.pop("journal")), **arguments))
        return 0
    except BaseException:  # noqa: BLE001  # the child must end here whatever happened, and say it
        traceback.print_exc()
        return 70
    finally:
        sys.stderr.flush()


def reap() -> dict[int, int]:
    """The children that have ended, with their exit codes (negative: the signal)."""
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Do what stdin says."""
    gc.collect()
    gc.freeze()
    running: set[int] = set()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            answer: dict[str, Any]
            if "start" in command:
                answer = {"pid": start(**command["start"])}
                running.add(answer["pid"])
            else:
                answer = {"ended": reap()}
                running -= answer["ended"].keys()
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    serve()
