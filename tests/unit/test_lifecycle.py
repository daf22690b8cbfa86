"""What a reload does, step by step, where a step fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ipcbus.broker import Broker, Credentials
from ipcbus.daemon import lifecycle, logs
from ipcbus.daemon.config import load
from ipcbus.policy import Policy
from ipcbus.protocol.messages import Kind, encode


def test_a_new_policy_reaches_everybody_though_memory_was_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a new policy would leave rights to whom it takes them from."""
    file = tmp_path / "policy.toml"
    file.write_text('[[rule]]\nallow = "*"\n')
    flags = {"policy_file": str(file), "listen": [f"unix:{tmp_path}/x.sock"]}
    monkeypatch.setattr(logs, "set_up", lambda *given: None)
    daemon = lifecycle.Daemon(load(flags=flags, environ={}, path=os.devnull), lambda: load(flags=flags, environ={}, path=os.devnull))
    now = daemon._broker.now
    peer = daemon._broker.connect(now, transport="unix", credentials=Credentials(1, 4242, 4242))
    daemon._broker.receive(peer, encode(Kind.HELLO, 0, 1, 1, [], {}, None), now)
    assert peer.rights is None

    whole, failures = Broker.set_policy, [1, 1]

    def short_of_memory(broker: Broker, policy: Policy, now: float) -> Any:
        if failures:
            failures.pop()
            raise MemoryError
        return whole(broker, policy, now)

    monkeypatch.setattr(Broker, "set_policy", short_of_memory)
    file.write_text('[[rule]]\ndeny = "publish"\ntopics = "a"\n[[rule]]\nallow = "*"\n')
    try:
        with pytest.raises(MemoryError):
            daemon._on_hangup()
        for number in range(2):
            assert peer.rights is None
            daemon._loop._expire(daemon._loop._timers[0][0])
            assert len(daemon._loop._timers) == (number < 1), "tried again until it is done"
        assert peer.rights is not None
        assert not peer.rights.publish("a").allowed
        assert not daemon._policy.policy.rights(daemon._policy.subject_of(peer)).publish("a").allowed
    finally:
        daemon.close()
