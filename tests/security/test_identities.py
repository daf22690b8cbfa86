"""Who comes by TCP is who the secret that it proves is called, in the policy, in what others are told, and after a reload."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ipcbus_client
from ipcbus_client import aio
from tests.daemons import RunningDaemon, environment, wait_until

WAIT_S = 30.0
POLICY = """
[[rule]]
allow = ["connect", "publish", "subscribe"]
identity = "panel"
topics = ["room.>"]

[[rule]]
deny = "*"
identity = "sign"
"""


class Running(NamedTuple):
    daemon: RunningDaemon
    secrets: Path


def put(path: Path, secret: bytes) -> str:
    path.touch(0o600)
    path.write_bytes(secret)
    return str(path)


@pytest.fixture
def running(daemon_factory: Any, short_dir: Path) -> Running:
    secrets = short_dir / "named"
    secrets.mkdir(0o700)
    put(secrets / "panel.secret", b"p" * 32)
    put(secrets / "sign.secret", b"s" * 32)
    policy = short_dir / "policy.toml"
    policy.write_text(POLICY)
    daemon = daemon_factory("--secret-dir", str(secrets), "--policy-file", str(policy), listen=["tcp:127.0.0.1:0"])
    return Running(daemon, secrets)


def connect(running: Running, identity: str | None = "panel", **more: Any) -> ipcbus_client.Bus:
    file = running.daemon.secret_file if identity is None else str(running.secrets / f"{identity}.secret")
    return ipcbus_client.connect(running.daemon.address, identity=identity, **{"secret_file": file, "timeout": WAIT_S, **more})


def test_a_secret_with_a_name(running: Running, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(running, None) as own, connect(running) as panel:
        inbox = own.subscribe("room.>")
        panel.publish("room.kitchen", 1)
        message = inbox.get(timeout=WAIT_S)
        who = message.sender.credentials
        assert (who.transport, who.identity, who.uid) == ("tcp", "panel", None)
        assert own.identity(panel.peer_id).identity == "panel"
        assert own.identity(own.peer_id).identity == "default"
        with pytest.raises(ipcbus_client.Denied, match="garden"):
            panel.subscribe("garden.>")
        with pytest.raises(ipcbus_client.ConnectError, match="denied"):
            connect(running, "sign")

    async def awaited() -> None:
        file = str(running.secrets / "panel.secret")
        async with aio.connect(running.daemon.address, identity="panel", secret_file=file, timeout=WAIT_S) as bus:
            assert (await bus.identity(bus.peer_id)).identity == "panel"

    asyncio.run(awaited())
    # What the environment says, and where it is looked for beside the bus's own.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    (short_dir / "ipcbus").mkdir(0o700)
    put(short_dir / "ipcbus" / "panel.secret", b"p" * 32)
    monkeypatch.setenv("IPCBUS_IDENTITY", "panel")
    with ipcbus_client.connect(running.daemon.address, timeout=WAIT_S) as bus:
        assert bus.identity(bus.peer_id).identity == "panel"
    seen = subprocess.run(
        [sys.executable, "-m", "ipcbus", "peers", "--address", running.daemon.address, "--identity", "default", "--secret-file",
         running.daemon.secret_file, "--json"], env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    assert '"default"' in seen.stdout


@pytest.mark.parametrize(("identity", "file"), [("panel", "sign"), ("nobody", "panel"), ("default", "panel")])
def test_a_name_with_another_secret(running: Running, identity: str, file: str) -> None:
    with pytest.raises(ipcbus_client.ConnectError, match="does not hold this secret") as caught:
        connect(running, identity, secret_file=str(running.secrets / f"{file}.secret"))
    assert caught.value.reason == "secret"


def test_a_name_that_is_none() -> None:
    for wrong in ("a b", "", "x" * 129):
        if wrong:
            with pytest.raises(ipcbus_client.AddressError, match="identity"):
                ipcbus_client.connect("tcp:127.0.0.1:9", identity=wrong)
    with pytest.raises(TypeError, match="identity="):
        ipcbus_client.connect("tcp:127.0.0.1:9", identity=7)  # type: ignore[arg-type]


def test_a_secret_is_replaced_and_taken_away(running: Running) -> None:
    daemon = running.daemon
    with connect(running, None) as own, connect(running) as panel:
        before = panel.peer_id
        put(running.secrets / "panel.secret", b"P" * 32)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "the secret of 'panel' is another one" in daemon.log(), "it is said", WAIT_S)
        wait_until(lambda: panel.peer_id not in (0, before), "it read its new secret and is back", WAIT_S)
        (running.secrets / "panel.secret").chmod(0o644)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "has mode 0644" in daemon.log(), "a directory that cannot be used changes nothing", WAIT_S)
        assert own.identity(panel.peer_id).identity == "panel"
        os.unlink(running.secrets / "panel.secret")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "the secret of 'panel' is gone" in daemon.log(), "it is said", WAIT_S)
        put(running.secrets / "panel.secret", b"p" * 32)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "the secret of 'panel' is new" in daemon.log(), "it is said", WAIT_S)
        assert daemon.log().count("was replaced or taken away: read its file again") == 2
        assert own.epoch == 0, "who proved another secret stays"
