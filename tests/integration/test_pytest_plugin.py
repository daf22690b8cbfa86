"""The pytest plugin and its real daemon, used as a user's tests do: pytest in a process of its own, in another directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import testing
from ipcbus_client.testing import _daemon
from tests.daemons import wait_until

_TESTS = '''
import os

import pytest

import ipcbus_client
from ipcbus_client import testing

seen = []


def alarm():
    with ipcbus_client.connect() as bus:
        for message in bus.subscribe("room.>"):
            if message.data > 25:
                return message.topic


def test_in_memory(ipcbus_bus):
    sensor = ipcbus_bus.connect()
    ipcbus_bus.call_later(3600, lambda: sensor.publish("room.kitchen", 26))
    with ipcbus_bus.patched():
        assert alarm() == "room.kitchen"
    assert ipcbus_bus.now == 3600


def test_each_has_a_bus_of_its_own(ipcbus_bus):
    assert ipcbus_bus.now == 0
    with pytest.raises(testing.StuckError), ipcbus_bus.patched():
        alarm()


def test_a_real_daemon(ipcbus_daemon, ipcbus_address):
    assert ipcbus_address == ipcbus_daemon.address == os.environ["IPCBUS_ADDRESS"]
    seen.append((ipcbus_daemon.pid, ipcbus_daemon.directory))
    with ipcbus_client.connect(name="here") as bus:
        sub = bus.subscribe("t")
        ipcbus_daemon.kill()
        ipcbus_daemon.start()
        with ipcbus_client.connect() as other:
            while not sub.gaps:
                bus.flush(20)
            other.publish("t", 1)
        assert sub.get(20).data == 1
        ipcbus_daemon.restart()


def test_it_is_gone_afterwards():
    (pid, directory), = seen
    assert not directory.exists()
    assert "IPCBUS_ADDRESS" not in os.environ
'''


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest with only our plugin, found as an installed package would be."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("IPCBUS_")}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "ipcbus_client.testing.plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_users_tests_pass(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(_TESTS)
    done = run_pytest(tmp_path, "-q", "test_user.py")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixtures_say_what_they_are(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--fixtures")
    for name in ("ipcbus_bus", "ipcbus_daemon", "ipcbus_address"):
        assert name in done.stdout


def test_a_daemon_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)did not start, exit code 2: .*--no-such-flag"):
        testing.Daemon(["--no-such-flag"])


def test_a_daemon_that_never_says_that_it_is_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def start_sleeper(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(start([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return started[0]

    monkeypatch.setattr(_daemon.subprocess, "Popen", start_sleeper)
    monkeypatch.setattr(_daemon, "select", SimpleNamespace(select=lambda *arguments: ([], [], [])))  # the time is over
    with pytest.raises(RuntimeError, match="did not start within 30 s"):
        testing.Daemon()
    assert started[0].wait(30) == -signal.SIGKILL


def test_a_daemon_is_paused_killed_and_started_again() -> None:
    with testing.Daemon(config="[limits]\nmax_peers = 2\n") as daemon, ipcbus_client.connect(daemon.address) as bus:
        assert daemon.running
        pid = daemon.pid
        daemon.pause()
        with pytest.raises(ipcbus_client.Timeout):
            bus.flush(0.1)
        daemon.resume()
        bus.flush(20)
        with ipcbus_client.connect(daemon.address), pytest.raises(ipcbus_client.ConnectError):
            ipcbus_client.connect(daemon.address, timeout=0)
        daemon.kill()
        daemon.kill()
        assert not daemon.running
        daemon.restart()
        assert daemon.pid != pid
        wait_until(lambda: bus.state.value == "connected" and bus.epoch > 0, "it did not come back")
        daemon.pause()
        assert daemon.stop() == 0, "a paused one stops too"
        directory = daemon.directory
    assert not directory.exists()
    daemon.close()
