"""A policy that is changed under running programs, on a real daemon and in both shells: what ends, where, and with which words (P-8)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from tests.conftest import DaemonFactory
from tests.scenarios import WAIT_S, Real

DENY = f"""
[[rule]]
deny = ["own", "subscribe"]
uid = {os.getuid()}
names = ["svc"]
topics = ["a.>"]
"""


@pytest.mark.parametrize("shell", ["blocking", "aio"])
def test_what_a_changed_policy_takes_ends_at_its_place(shell: str, short_dir: Path, daemon_factory: DaemonFactory) -> None:
    policy = short_dir / "policy.toml"
    policy.write_text("")
    policy.chmod(0o600)
    daemon = daemon_factory(f"--policy-file={policy}")
    world = Real(shell, daemon)  # type: ignore[arg-type]

    async def body(world: Any) -> None:
        bus, other = await world.connect(name="svc"), await world.connect()
        await bus.respond("svc/do", lambda request: request.data)
        sub, kept = await bus.subscribe("a.>"), await bus.subscribe("b.>")
        await other.publish("a.b", 1)
        await other.flush()
        policy.write_text(DENY)
        daemon.signal(signal.SIGHUP)
        assert (await sub.get(WAIT_S)).data == 1
        with pytest.raises(ipcbus_client.Denied) as caught:
            await sub.get(WAIT_S)
        assert f"rule 1 of {policy}, line 2 denies subscribe to 'a.>'" in caught.value.why
        assert caught.value.who == "a.>"
        with pytest.raises(ipcbus_client.NoSuchName):
            await other.request("svc/do")
        with pytest.raises(ipcbus_client.Denied, match="denies own of 'svc'"):
            await bus.own("svc")
        await other.publish("b.a", 2)
        assert (await kept.get(WAIT_S)).data == 2
        await bus.close()
        await other.close()

    world.run(body)
    assert "loses its subscription to 'a.>'" in daemon.log()
