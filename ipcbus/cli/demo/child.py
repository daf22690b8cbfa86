"""The demo's other processes: how one begins, so that it never outlives the demo.

``python -m ipcbus.cli.demo.child ROLE …`` is how `company` starts them.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # now: between fork and exec it may not be looked up


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that started it, *parent*, ends in whatever way.

    It is the thread that started it whose end counts. May be called between fork and exec.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


def told_to_stop(wait_s: float | None) -> bool:
    """Wait *wait_s* seconds (None: for ever) for the end of stdin, by which `company` ends a child; whether it came."""
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    return bool(readable)


def main(arguments: list[str]) -> int:
    """Become what ROLE says: the arguments are PARENT-PID ROLE ARGUMENT…"""
    parent, role, *rest = arguments
    die_with_parent(int(parent))
    if role == "daemon":
        from ..daemon import main as daemon

        return int(daemon(rest) or 0)
    if role == "publisher":
        from .publisher import publish

        return publish(*rest)
    if role == "service":
        from .service import serve

        return serve(*rest)
    raise ValueError(f"no role {role!r}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
