"""What somebody tries before it is let in: to replay a handshake, to relay one, to talk a bus or client down, to be root of a namespace."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.addresses import parse_address
from ipcbus.protocol.auth import proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import decode_value
from ipcbus_client import aio
from tests.daemons import START_S, RunningDaemon
from tests.security.people import MALLORY, Stranger, needs_users
from tests.wire import Wire

pytestmark = needs_users

NONCE = b"n" * 32


class Recorder(Wire):
    """A connection that remembers what it wrote."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.written: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.written.append(data)
        super().send(data)


# --- replaying and guessing ---


def test_replaying_a_recorded_handshake(bus: RunningDaemon) -> None:
    secret = Path(bus.secret_file).read_bytes()
    with Recorder(bus.addresses[1]) as good:
        good.hello(secret=secret)
    hello, proved = good.written
    with Wire(bus.addresses[1]) as wire:
        wire.send(hello)
        wire.expect(Kind.CHALLENGE)
        wire.send(proved)
        wire.expect_bye(Code.AUTH_FAILED)
    with Wire(bus.addresses[1]) as wire:  # in one write, before the bus said its nonce
        wire.send(hello + proved)
        wire.expect_bye(Code.AUTH_FAILED)
    with Wire(bus.addresses[1]) as wire:  # the bus's own proof sent back to it
        wire.send(hello)
        wire.send(encode(Kind.PROOF, 0, wire.expect(Kind.CHALLENGE).elements[5]))
        wire.expect_bye(Code.AUTH_FAILED)


def test_doing_something_before_the_proof(bus: RunningDaemon) -> None:
    sent = {
        "publish": encode_with_payload(b"x", Kind.PUBLISH, 1, "open.door", 1),
        "own": encode_with_payload(pack({"name": "guest.x"}), Kind.REQUEST, 0, "bus/own", 1, 1000, None),
        "hello": encode(Kind.HELLO, 0, 1, 1, [], {}, NONCE),
        "bye": encode(Kind.BYE, 0, 0, ""),
    }
    for name, data in sent.items():
        with Wire(bus.addresses[1]) as wire:
            wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, NONCE))
            wire.expect(Kind.CHALLENGE)
            wire.send(data)
            wire.expect_bye(Code.BAD_STATE)
            assert name


def test_filling_the_bus_before_the_proof(bus: RunningDaemon) -> None:
    """F-3: a frame of a stranger has 1024 bytes at most, and is refused by its length."""
    for data, code in ((b"\xce\x00\x00\x04\x01", Code.TOO_LARGE), (b"\xce\xff\xff\xff\xff", Code.TOO_LARGE), (b"GET / ", Code.BAD_FRAME)):
        with Wire(bus.addresses[1]) as wire:
            wire.send(data)
            wire.expect_bye(code)


# --- relaying ---


class Relay:
    """A squatter on a port: it passes what a client says on to the real bus, and back, and keeps it all."""

    def __init__(self, bus: str, change: Callable[[bytes], bytes] = bytes) -> None:
        self._bus = parse_address(bus)
        self._change = change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self.from_client = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection((self._bus.host, self._bus.port), START_S) as bus:  # type: ignore[union-attr]
            client.settimeout(START_S)
            try:
                while data := client.recv(65_536):
                    self.from_client += data
                    bus.sendall(self._change(data))
                    client.sendall(bus.recv(65_536))
            except OSError:
                pass

    def close(self) -> None:
        self._thread.join(START_S)
        assert not self._thread.is_alive()
        self._listener.close()


@pytest.fixture
def relay(bus: RunningDaemon) -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def make(**options: Any) -> Relay:
        made.append(Relay(bus.addresses[1], **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _blocking(address: str, **options: Any) -> None:
    ipcbus_client.connect(address, **options).close()


def _aio(address: str, **options: Any) -> None:
    async def body() -> None:
        await (await aio.connect(address, **options)).close()

    asyncio.run(body())


both_shells = pytest.mark.parametrize("connect", [_blocking, _aio], ids=["blocking", "aio"])


@both_shells
def test_relaying_a_handshake(connect: Callable[..., None], bus: RunningDaemon, relay: Callable[..., Relay]) -> None:
    """H-5: the proof covers the addresses as each side sees them. The client says no more than HELLO to who is in between."""
    between = relay()
    with pytest.raises(ipcbus_client.ConnectError) as caught:
        connect(between.address, secret_file=bus.secret_file, timeout=None)
    assert caught.value.reason == "secret"
    between.close()
    assert len(between.from_client) == 5 + int.from_bytes(between.from_client[1:5], "big"), "one frame"


@both_shells
def test_talking_a_client_down(connect: Callable[..., None], bus: RunningDaemon, relay: Callable[..., Relay]) -> None:
    """Features left out of its HELLO on the way."""
    between = relay(change=lambda data: data.replace(b"\xa8identity", b"\xa8idontity"))
    with pytest.raises(ipcbus_client.ConnectError) as caught:
        connect(between.address, secret_file=bus.secret_file, timeout=None)
    assert caught.value.reason == "secret"
    assert b"identity" in between.from_client


def test_a_relay_that_is_a_client_itself_knows_no_proof(bus: RunningDaemon) -> None:
    """What it can see of a handshake, with the role of the other or another address, proves nothing."""
    secret = Path(bus.secret_file).read_bytes()
    with Wire(bus.addresses[1]) as wire:
        hello = encode(Kind.HELLO, 0, 1, 1, [], {}, NONCE)
        wire.send(hello)
        _, _, version, features, nonce, _ = wire.expect(Kind.CHALLENGE).elements
        there, here = wire.sock.getpeername(), wire.sock.getsockname()
        elsewhere = proof(secret, "client", hello[5:], version, features, nonce, f"{there[0]}:{there[1]}", f"{here[0]}:{here[1] ^ 1}")
        wire.send(encode(Kind.PROOF, 0, elsewhere))
        wire.expect_bye(Code.AUTH_FAILED)


# --- versions ---


@pytest.mark.parametrize(("low", "high", "code"), [(2, 2, "bad_version"), (2, 65_535, "bad_version"), (1, 65_535, ""), (1, 1, "")])
def test_downgrading_the_version(low: int, high: int, code: str, bus: RunningDaemon, mallory: Stranger) -> None:
    with mallory.connect(bus) as wire:
        wire.send(encode(Kind.HELLO, 0, low, high, [], {}, None))
        if code:
            assert "1" in wire.expect_bye(Code.BAD_VERSION)
        else:
            assert wire.expect(Kind.WELCOME).elements[2] == 1


@pytest.mark.parametrize("versions", ["0000", "0001", "0201", "0100", "cc0101", "ffff"])
def test_versions_that_there_never_were(versions: str, bus: RunningDaemon, mallory: Stranger) -> None:
    body = bytes.fromhex(f"970100{versions}9080c0")
    with mallory.connect(bus) as wire:
        wire.send(b"\xce" + len(body).to_bytes(4, "big") + body)
        frame = wire.expect(Kind.BYE)
        assert frame.elements[2] in (Code.BAD_ENVELOPE, Code.BAD_VERSION)


def test_the_handshake_of_the_other_transport(bus: RunningDaemon, mallory: Stranger) -> None:
    """No proof on a Unix socket makes anybody more than the kernel says; no way around it on TCP."""
    with mallory.connect(bus) as wire:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, NONCE))
        wire.expect_bye(Code.BAD_STATE)
    with Wire(bus.addresses[1]) as wire:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
        wire.expect_bye(Code.BAD_STATE)


# --- namespaces ---


@pytest.fixture
def contained() -> Iterator[Stranger]:
    """mallory, who is root in a user namespace of its own."""
    stranger = Stranger(MALLORY)
    try:
        stranger.do("enter_namespaces")
    except OSError as error:
        stranger.close()
        pytest.skip(f"no user namespace can be made by a user here: {error}")
    yield stranger
    stranger.close()


def test_peers_in_another_user_and_pid_namespace(bus: RunningDaemon, alice: Stranger, contained: Stranger) -> None:
    """Root in there, and process 1; here who it was, and what it may do is the same."""
    assert contained.do("read", "/proc/self/uid_map").split() == ["0", str(MALLORY), "1"]
    sock = contained.do("connect_from_child", bus.path)
    with alice.join(bus, features=("identity",)) as owner, Wire(bus.address, sock) as wire:
        wire.hello("inside")
        owner.subscribe("open.>")
        wire.publish("open.door", b"x")
        told = owner.expect(Kind.NOTICE)
        about = decode_value(told.elements[-1], told.payload)
        assert (about["uid"], about["gid"]) == (MALLORY, MALLORY)
        assert about["pid"] not in (0, 1)
        wire.request("bus/own", pack({"name": "vault"}))
        assert wire.expect(Kind.ERROR).elements[4] == Code.DENIED
        wire.request("bus/topics", pack({}))
        assert wire.expect(Kind.ERROR).elements[4] == Code.DENIED
