"""A real system bus whose policy says what its peers may do, and a reload that takes it back. Root becomes other users to connect."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Frame, Kind, encode_with_payload, pack
from tests.daemons import RunningDaemon, wait_until
from tests.integration.test_daemon_policy import connect_as, needs_root
from tests.wire import Wire

SERVICE, OPERATOR, STRANGER, OPERATORS = 4250, 4251, 4252, 4350

RULES = f"""
[[rule]]
allow = "own"
uid = {SERVICE}
names = "home.lights"
[[rule]]
allow = ["publish", "subscribe"]
uid = {SERVICE}
topics = "home.lights.>"
[[rule]]
allow = "call"
gid = {OPERATORS}
names = "home.lights"
methods = ["on", "off"]
[[rule]]
allow = "subscribe"
topics = "home.lights.state"
"""


@pytest.fixture
def system() -> Iterator[RunningDaemon]:
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        directory = Path(path)
        directory.chmod(0o711)
        (directory / "rules.toml").write_text(RULES)
        daemon = RunningDaemon(directory, ["--kind", "system", "--policy-file", f"{path}/rules.toml", "--policy-dir", f"{path}/none"])
        yield daemon
        daemon.finish()

_ids = count(1)


def ask(wire: Wire, to: str, **arguments: Any) -> Frame:
    """A request: the next frame that is no NOTICE or LANE."""
    payload = pack(arguments) if arguments else b""
    wire.send(encode_with_payload(payload, Kind.REQUEST, wire.peer, to, next(_ids), 10_000, None))
    return answer(wire)


def answer(wire: Wire) -> Frame:
    while (frame := wire.receive()) is not None:
        if frame.kind not in (Kind.NOTICE, Kind.LANE):
            return frame
    raise AssertionError("the connection ended")


def is_denied(frame: Frame) -> bool:
    return frame.kind is Kind.ERROR and frame.elements[4] == Code.DENIED


@needs_root
def test_a_service_its_operators_and_everybody_else(system: RunningDaemon) -> None:
    with (
        connect_as(system, SERVICE) as service,
        connect_as(system, OPERATOR, groups=[OPERATORS]) as operator,
        connect_as(system, STRANGER) as stranger,
    ):
        for wire in (service, operator, stranger):
            wire.hello()
        assert is_denied(ask(stranger, "bus/own", name="home.lights"))
        assert ask(service, "bus/own", name="home.lights").kind is Kind.REPLY
        assert ask(service, "bus/serve", name="home.lights", methods=["on", "explode"]).kind is Kind.REPLY
        assert is_denied(ask(stranger, "home.lights/on"))
        assert is_denied(ask(operator, "home.lights/explode"))
        assert is_denied(ask(operator, f":{service.peer}/explode"))
        assert is_denied(ask(stranger, "bus/subscribe", pattern="home.lights.*", lane=1, credit=10_000))
        assert ask(stranger, "bus/subscribe", pattern="home.lights.state", lane=1, credit=10_000).kind is Kind.REPLY
        assert ask(stranger, "bus/subscribe", pattern="$bus.names.>", lane=2, credit=10_000).kind is Kind.REPLY
        stranger.send(encode_with_payload(b"lie", Kind.PUBLISH, stranger.peer, "home.lights.state", None))
        assert is_denied(answer(stranger))
        service.send(encode_with_payload(b"true", Kind.PUBLISH, service.peer, "home.lights.state", None))
        assert answer(stranger).payload == b"true"
        # another policy: the service's user has nothing any more, and the stranger must not be here
        (system.directory / "rules.toml").write_text(f'[[rule]]\ndeny = "connect"\nuid = {STRANGER}\n')
        system.signal(signal.SIGHUP)
        wait_until(lambda: "loses the name 'home.lights'" in system.log(), "the name should be taken")
        told = service.receive()
        assert told is not None
        assert (told.kind, told.elements[2]) == (Kind.NOTICE, "revoked")
        assert ask(operator, "home.lights/on").elements[4] == Code.DENIED
        while (frame := stranger.receive()) is not None and frame.kind is not Kind.BYE:
            assert frame.kind in (Kind.NOTICE, Kind.LANE, Kind.PUBLISH)
        assert frame is not None
        assert frame.elements[2] == Code.DENIED
    assert f"uid {STRANGER}" in system.log()
    assert os.geteuid() == 0
