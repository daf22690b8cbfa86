"""``ipcbusd --exit-idle``: a real daemon that nobody uses ends in order, and leaves nothing that a next one stumbles over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.daemons import run_ipcbusd, wait_until

WAIT_S = 30.0


def test_it_ends_when_nobody_comes(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--exit-idle", "0.1")
    assert daemon.wait() == 0
    assert not os.path.exists(daemon.path)
    assert "nobody was connected for 0.1 s: stopping" in daemon.log()


def test_it_stays_while_somebody_is_connected_and_ends_after(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--exit-idle", "0.3")
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        sub = bus.subscribe("t")
        for _ in range(4):
            try:
                sub.get(0.3)
            except ipcbus_client.Timeout:
                assert daemon.process.poll() is None
        assert bus.ping() >= 0
    assert daemon.wait() == 0
    assert not os.path.exists(daemon.path)


def test_it_can_be_set_and_unset_while_it_runs(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config="exit_idle_s = 1000\n")
    daemon.config_file.write_text("")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "exit_idle_s is now not set (was 1000.0)" in daemon.log(), "it did not read the configuration", WAIT_S)
    daemon.config_file.write_text("exit_idle_s = 0.05\n")
    daemon.signal(signal.SIGHUP)
    assert daemon.wait() == 0


def test_print_config_and_errors(tmp_path: Path) -> None:
    printed = run_ipcbusd("--exit-idle", "60", "--print-config", XDG_RUNTIME_DIR=str(tmp_path)).stdout
    assert "exit_idle_s = 60.0  # flag --exit-idle: end when nobody was connected for so long" in printed
    assert "# exit_idle_s =  # not set" in run_ipcbusd("--print-config", XDG_RUNTIME_DIR=str(tmp_path)).stdout
    for bad in ("0.049", "31536001", "soon"):
        refused = run_ipcbusd("--exit-idle", bad, "--check-config", XDG_RUNTIME_DIR=str(tmp_path))
        assert refused.returncode == 2
        assert "is not a number of seconds from 0.05 to 3.1536e+07" in refused.stderr
    for good in ("0.05", "31536000"):
        assert run_ipcbusd("--exit-idle", good, "--check-config", XDG_RUNTIME_DIR=str(tmp_path)).returncode == 0
