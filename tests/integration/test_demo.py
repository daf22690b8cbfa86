"""``ipcbus demo``: the whole story with real processes, and that it ends cleanly however it is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemons import environment

WAIT_S = 60.0


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The demo with its private directory below *directory*; the user's own bus is named in vain."""
    env = environment(TMPDIR=str(directory), IPCBUS_ADDRESS="unix:/nonexistent/bus.sock")
    return subprocess.Popen(
        [sys.executable, "-m", "ipcbus.cli.main", "demo", *arguments],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def processes_of(directory: Path) -> list[int]:
    """Who has *directory* in its command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in text:
                found.append(int(entry.name))
    return found


def wait_for_nobody(directory: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while processes_of(directory):
        assert time.monotonic() < deadline, f"left behind: {processes_of(directory)}"
        time.sleep(0.02)


def test_the_demo_holds(short_dir: Path) -> None:
    child = start(short_dir, "--seconds", "4", "--json")
    out, err = child.communicate(timeout=WAIT_S)
    assert (child.returncode, err) == (0, b""), (out, err)
    found = json.loads(out)
    assert found["ok"] is True
    assert all(found["checks"].values())
    assert found["messages"]["received"] > 10
    assert found["requests"]["answered"] > 10
    assert found["outage"]["message_gap_ms"] > 0
    assert set(found["outage"]["reconnects"]) == {"publisher", "service", "subscriber"}
    assert (found["lost_elsewhere"], found["repeated"]) == (0, 0)
    assert list(short_dir.iterdir()) == []
    assert processes_of(short_dir) == []


def test_plain_lines_tell_the_story(short_dir: Path) -> None:
    child = start(short_dir, "--seconds", "4", "--plain")
    out, err = child.communicate(timeout=WAIT_S)
    assert (child.returncode, err) == (0, b""), (out, err)
    text = out.decode()
    assert "\x1b" not in text
    story = ["daemon started", "the service answers", "killed with SIGKILL", "started again", "everybody is back", "outage  ", "ok   "]
    places = [text.index(part) for part in story]
    assert places == sorted(places)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_it_leaves_nobody_behind(short_dir: Path, number: signal.Signals, code: int) -> None:
    child = start(short_dir, "--seconds", "30", "--plain")
    assert child.stdout is not None
    while b"the service answers" not in (line := child.stdout.readline()):
        assert line, child.communicate()
    assert len(processes_of(short_dir)) >= 4
    child.send_signal(number)
    err = child.communicate(timeout=WAIT_S)[1]
    assert child.returncode == code, err
    assert b"Traceback" not in err
    wait_for_nobody(short_dir)
    assert (list(short_dir.iterdir()) == []) is (number != signal.SIGKILL)


def test_a_terminal_that_is_closed_leaves_nothing(short_dir: Path) -> None:
    """Its screen is gone too (EIO), and SIGHUP comes more than once."""
    leader, follower = os.openpty()
    env = environment(TMPDIR=str(short_dir), TERM="xterm")
    child = subprocess.Popen(
        [sys.executable, "-m", "ipcbus.cli.main", "demo", "--seconds", "30"], env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    while b"the service answers" not in seen:
        seen += os.read(leader, 65536)
    os.close(leader)
    for _ in range(3):
        child.send_signal(signal.SIGHUP)
    assert child.wait(WAIT_S) == 129
    wait_for_nobody(short_dir)
    assert list(short_dir.iterdir()) == []
