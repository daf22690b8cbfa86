"""What a reload does, step by step, where a step fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgpack import packb

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.daemon import lifecycle, logs
from ipcbus.daemon.config import load
from ipcbus.policy import Policy
from ipcbus.protocol.auth import proof
from ipcbus.protocol.errors import ProtocolError
from ipcbus.protocol.messages import Kind, encode, encode_with_payload


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


@pytest.mark.parametrize("faults", [0, 1])
def test_who_has_no_secret_any_more_leaves_what_the_new_policy_lets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: int) -> None:
    """One reload takes a secret and a right. The will of who is closed is judged by the new policy; and nobody is forgotten in a fault."""
    secrets, file = tmp_path / "secrets", tmp_path / "policy.toml"
    secrets.mkdir(mode=0o700)
    key = secrets / "panel.secret"
    key.write_bytes(b"p" * 32)
    key.chmod(0o600)
    file.write_text('[[rule]]\nallow = "*"\n')
    flags = {
        "policy_file": str(file), "listen": ["tcp:127.0.0.1:0"], "secret_file": str(tmp_path / "bus.secret"), "secret_dir": str(secrets),
    }  # fmt: skip
    monkeypatch.setattr(logs, "set_up", lambda *given: None)
    daemon = lifecycle.Daemon(load(flags=flags, environ={}, path=os.devnull), lambda: load(flags=flags, environ={}, path=os.devnull))
    broker = daemon._broker
    now, ends = broker.now, ("127.0.0.1:1", "127.0.0.1:2")
    watcher = broker.connect(now, transport="unix", credentials=Credentials(1, os.geteuid(), 1))
    panels = [broker.connect(now, transport="tcp", addresses=ends) for _ in range(2)]
    try:
        broker.receive(watcher, encode(Kind.HELLO, 0, 1, 1, [], {}, None), now)
        subscription = packb({"pattern": "*", "lane": 1, "credit": 10_000})
        broker.receive(watcher, encode_with_payload(subscription, Kind.REQUEST, 0, "bus/subscribe", 1, 1000, None), now)
        for panel in panels:
            hello = encode(Kind.HELLO, 0, 1, 1, [], {"identity": "panel"}, b"n" * 32)
            monkeypatch.setattr(broker, "_random_bytes", lambda size: b"r" * size)
            broker.receive(panel, hello, now)
            broker.receive(panel, encode(Kind.PROOF, 0, proof(b"p" * 32, "client", hello[5:], 1, [], b"r" * 32, *ends)), now)
            assert (panel.identity, panel.rights) == ("panel", None)
            for topic in ("allowed", "denied"):
                will = packb({"topic": topic, "payload": b"last"})
                broker.receive(panel, encode_with_payload(will, Kind.REQUEST, 0, "bus/will", 1, 1000, None), now)
        watcher.out.clear()
        watcher.out_bytes = 0
        file.write_text('[[rule]]\ndeny = "publish"\ntopics = "denied"\n[[rule]]\nallow = "*"\n')
        key.unlink()
        dismiss, failures = broker._dismiss, [MemoryError()] * faults

        def short_of_memory(peer: Peer, error: ProtocolError) -> None:
            if peer is panels[1] and failures:
                raise failures.pop()
            dismiss(peer, error)

        monkeypatch.setattr(broker, "_dismiss", short_of_memory)
        if faults:
            with pytest.raises(MemoryError):
                daemon._on_hangup()
            daemon._loop._expire(daemon._loop._timers[0][0])
        else:
            daemon._on_hangup()
        assert [panel.closing for panel in panels] == [True, True]
        assert b"".join(watcher.out).count(b"last") == 2
        assert b"denied" not in b"".join(watcher.out)
    finally:
        daemon.close()
