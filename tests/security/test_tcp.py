"""What a stranger on loopback TCP can do, and what of the secret can be seen: nothing."""

from __future__ import annotations

import base64
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipcbus_client
from ipcbus.protocol.auth import proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import FAILED_AT_ONCE
from ipcbus.protocol.messages import Kind, encode
from ipcbus_client._discovery import read_secret
from tests.daemons import RunningDaemon, command, environment, wait_until
from tests.wire import Wire

WAIT_S = 30.0
HELLO = encode(Kind.HELLO, 0, 1, 1, [], {"program": "stranger"}, b"n" * 32)


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """One for all of these: none of them changes what it does for others."""
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        secrets = Path(path) / "named"
        secrets.mkdir(0o700)
        put(secrets / "panel.secret", bytes(range(200, 232)))
        started = RunningDaemon(Path(path), ["--log-level", "debug", "--secret-dir", str(secrets)], listen=["tcp:127.0.0.1:0"])
        yield started
        started.finish()


def put(path: Path, secret: bytes) -> Path:
    path.touch(0o600)
    path.write_bytes(secret)
    return path


def port(daemon: RunningDaemon) -> int:
    return int(daemon.address.rsplit(":", 1)[1])


def prove(wire: Wire, secret: bytes) -> bytes:
    """HELLO, and the PROOF for what came back, which is not sent yet."""
    wire.send(HELLO)
    _, _, version, features, nonce, _ = wire.expect(Kind.CHALLENGE).elements
    ends = [f"{name[0]}:{name[1]}" for name in (wire.sock.getpeername(), wire.sock.getsockname())]
    return encode(Kind.PROOF, 0, proof(secret, "client", HELLO[5:], version, features, nonce, *ends))


def wire_from(daemon: RunningDaemon, here: tuple[str, int]) -> Wire:
    """A connection from the address *here*."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(here)
    made.connect(("127.0.0.1", port(daemon)))
    return Wire(daemon.address, connected=made)


def test_a_handshake_that_was_recorded_is_of_no_use_again(daemon: RunningDaemon) -> None:
    with wire_from(daemon, ("127.0.44.1", 0)) as wire:  # an address where nobody else takes the port meanwhile
        recorded = prove(wire, Path(daemon.secret_file).read_bytes())
        wire.send(recorded)
        wire.expect(Kind.WELCOME)
        here = wire.sock.getsockname()
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that the same port is free at once
    with wire_from(daemon, here) as again:
        again.send(HELLO)
        again.expect(Kind.CHALLENGE)
        again.send(recorded)
        again.expect_bye(Code.AUTH_FAILED)


class Relay(threading.Thread):
    """Listens on a port and hands everything on to the bus, both ways: a squatter that hopes to be taken for it."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen = b""
        self._to = to

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as client, socket.create_connection(("127.0.0.1", self._to)) as bus:
            back = threading.Thread(target=self._hand_on, args=(bus, client))
            back.start()
            self._hand_on(client, bus)
            back.join(WAIT_S)

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        source.settimeout(WAIT_S)
        try:
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_a_squatter_on_the_port_cannot_relay_the_handshake(daemon: RunningDaemon) -> None:
    relay = Relay(port(daemon))
    relay.start()
    with pytest.raises(ipcbus_client.ConnectError, match="does not hold this secret") as caught:
        ipcbus_client.connect(f"tcp:127.0.0.1:{relay.port}", secret_file=daemon.secret_file, name="me.and.my.secrets", timeout=WAIT_S)
    relay.join(WAIT_S)
    assert caught.value.reason == "secret"
    assert b"me.and.my.secrets" not in relay.seen, "nothing is declared to it"


def test_failures_are_told_now_and_then(daemon: RunningDaemon) -> None:
    wires = [Wire(daemon.address) for _ in range(FAILED_AT_ONCE + 5)]
    for wire in wires:
        wire.send(HELLO)
        wire.expect(Kind.CHALLENGE)
        wire.send(encode(Kind.PROOF, 0, bytes(32)))
    for wire in wires:
        with wire:
            wire.expect_bye(Code.AUTH_FAILED)
    lines = re.findall(r"a handshake on TCP failed \((.*?), from", daemon.log())
    assert 1 <= len(lines) < FAILED_AT_ONCE, "one a minute for each user, who may be found or not"
    assert "auth_failed" in daemon.log()


def test_no_memory_goes_into_core_dumps(daemon: RunningDaemon) -> None:
    assert int(Path(f"/proc/{daemon.pid}/coredump_filter").read_text(), 16) == 0


def shown_as(secret: bytes) -> list[bytes]:
    """How a secret could come out, in whole or its first half."""
    half = secret[:16]
    texts = (half.hex(), half.hex(" "), half.hex(":"), base64.b64encode(secret).decode()[:20], repr(half)[2:-1], str(list(half))[1:-1])
    return [half, *(form.encode() for text in texts for form in (text, text.upper(), text.replace("\\", "\\\\")))]


def test_the_secret_is_seen_nowhere(daemon: RunningDaemon) -> None:
    named = Path(daemon.secret_file).with_name("named")
    flags = ["--config", str(daemon.config_file), "--secret-file", daemon.secret_file, "--secret-dir", str(named)]
    bus = ["--address", daemon.address, "--secret-file", daemon.secret_file]
    wrong = put(Path(daemon.secret_file).with_name("wrong"), bytes(range(100, 133)))
    seen = b""
    for run in (
        command("--print-config", *flags), command("--check-config", *flags), command(f"--listen={daemon.address}", *flags),
        *([sys.executable, "-m", "ipcbus", what, *bus, "--json"] for what in ("peers", "stats", "why")),
        [sys.executable, "-m", "ipcbus", "peers", "--address", daemon.address, "--secret-file", str(wrong)],
    ):  # fmt: skip
        done = subprocess.run(run, env=environment(IPCBUS_LOG_LEVEL="debug"), capture_output=True, timeout=WAIT_S, check=False)
        assert done.stdout + done.stderr
        seen += done.stdout + done.stderr
    with ipcbus_client.connect(daemon.address, secret_file=daemon.secret_file, timeout=WAIT_S) as connected:
        seen += repr(connected).encode() + repr(vars(connected)).encode() + repr(connected._target).encode()
        seen += repr(vars(connected._session.greeting)).encode() + repr(read_secret(daemon.secret_file)).encode()
    put(named / "copy.secret", bytes(range(200, 232)))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "holds the same secret" in daemon.log(), "an error about secrets", WAIT_S)
    (named / "copy.secret").unlink()
    seen += daemon.log_file.read_bytes()
    assert b"debug: " in seen
    for secret in (Path(daemon.secret_file).read_bytes(), bytes(range(200, 232)), wrong.read_bytes()):
        for form in shown_as(secret):
            assert form not in seen, form
