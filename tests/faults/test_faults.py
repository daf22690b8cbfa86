"""Each kind of call fails at some of its times, spread over a daemon's whole life. `python -m tests.faults --runs 0` tries every time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.daemons import environment

from .injector import KINDS
from .scenario import GROUP

RUNS = 4  #: lives for each kind and error in an ordinary run
MEMORY_RUNS = 30
GROUPS = {
    "streams": ["recv", "send", "sendmsg"],
    "connections": ["accept", "shutdown", "close", "setblocking", "setsockopt", "getsockopt", "getsockname", "getpeername"],
    "poller": [kind for kind in KINDS if kind.startswith(("epoll.", "poll.", "select."))],
    "start": ["socket", "socket.socketpair", "bind", "listen", "connect", "fcntl.flock", "resource.setrlimit"],
    "files": [kind for kind in KINDS if kind.startswith("os.")] + ["builtins.open"],
    "memory": ["memory", "memory.bus"],
}


def test_every_kind_is_in_a_group() -> None:
    assert sorted(kind for group in GROUPS.values() for kind in group) == sorted(KINDS)


@pytest.mark.parametrize("group", GROUPS)
def test_one_failure_costs_one_peer_at_most(group: str) -> None:
    """Nobody else notices, the daemon lives, nothing is left, and afterwards everything works. At the start it may end, if it says why."""
    runs = MEMORY_RUNS if group == "memory" else RUNS
    command = [sys.executable, "-m", "tests.faults", "--runs", str(runs), *(f"--kind={kind}" for kind in GROUPS[group])]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    tried = {(life["kind"], life["error"]): life["tried"] for life in map(json.loads, done.stdout.splitlines())}
    assert set(tried) == {(kind, error) for kind in GROUPS[group] for error in KINDS[kind]}
    assert all(tried[kind, error] for kind, error in tried if GROUP or kind != "os.chown"), tried
