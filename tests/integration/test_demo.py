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


def test_the_demo_holds_and_its_plain_lines_tell_the_story(short_dir: Path) -> None:
    """Two demos beside each other, which have nothing in common: one for programs, one for people."""
    places = [short_dir / "json", short_dir / "plain"]
    for place in places:
        place.mkdir()
    children = [start(place, "--seconds", "4", f"--{place.name}") for place in places]
    (found_json, found_text) = (child.communicate(timeout=WAIT_S) for child in children)
    assert [(child.returncode, err) for child, err in zip(children, (found_json[1], found_text[1]), strict=True)] == [(0, b"")] * 2
    found = json.loads(found_json[0])
    assert found["ok"] is True
    assert all(found["checks"].values())
    assert found["messages"]["received"] > 10
    assert found["requests"]["answered"] > 10
    assert found["outage"]["message_gap_ms"] > 0
    assert set(found["outage"]["reconnects"]) == {"publisher", "service", "subscriber"}
    assert (found["lost_elsewhere"], found["repeated"]) == (0, 0)
    text = found_text[0].decode()
    assert "\x1b" not in text
    story = ["daemon started", "the service answers", "killed with SIGKILL", "started again", "everybody is back", "outage  ", "ok   "]
    order = [text.index(part) for part in story]
    assert order == sorted(order)
    assert [entry for place in places for entry in place.iterdir()] == []
    assert processes_of(short_dir) == []


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
