"""The wire by hand: a raw socket and ``ipcbus.protocol``, for tests that must not depend on the client library."""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Any

from ipcbus.protocol.addresses import UnixAddress, parse_address
from ipcbus.protocol.auth import proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Frame, Kind, decode, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import decode_value

TIMEOUT_S = 20.0


class Wire:
    """One connection. ``receive`` gives frames one by one and None at the end of the connection."""

    def __init__(self, address: str, connected: socket.socket | None = None) -> None:
        """Connect to *address*, or speak on what another process *connected* to it and handed over: its credentials hold."""
        parsed = parse_address(address)
        self.tcp = not isinstance(parsed, UnixAddress)
        if connected is not None:
            self.sock = connected
        elif isinstance(parsed, UnixAddress):
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self.sock = socket.socket(socket.AF_INET6 if ":" in parsed.host else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        try:
            if connected is None:
                self.sock.connect(parsed.path if isinstance(parsed, UnixAddress) else (parsed.host, parsed.port))
        except BaseException:
            self.sock.close()
            raise
        self.peer = 0
        self._buffer = b""
        self._last_id = 0

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Write all of *data*."""
        self.sock.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame, None at the end of the connection (a reset is one too)."""
        while len(self._buffer) < 5 or len(self._buffer) < 5 + int.from_bytes(self._buffer[1:5], "big"):
            try:
                data = self.sock.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self._buffer, f"the connection ended in a frame: {self._buffer[:80]!r}"
                return None
            self._buffer += data
        size = 5 + int.from_bytes(self._buffer[1:5], "big")
        raw, self._buffer = self._buffer[:size], self._buffer[size:]
        return decode(raw)

    def expect(self, kind: Kind) -> Frame:
        """The next frame, which must be of *kind*."""
        frame = self.receive()
        assert frame is not None, f"expected {kind.name}, the connection ended"
        assert frame.kind is kind, f"expected {kind.name}, got {frame}"
        return frame

    def expect_bye(self, code: Code) -> str:
        """BYE with *code* and then the end; returns its text. Other frames before it are skipped."""
        frame = self.receive()
        while frame is not None and frame.kind is not Kind.BYE:
            frame = self.receive()
        assert frame is not None, f"expected BYE {code.label}, the connection ended without one"
        assert frame.elements[2] == code, frame
        assert self.receive() is None
        return str(frame.elements[3])

    def hello(self, program: str = "test", secret: bytes | None = None, features: tuple[str, ...] = ()) -> Frame:
        """The handshake, on TCP with *secret*; returns WELCOME."""
        nonce = os.urandom(32) if self.tcp else None
        frame = encode(Kind.HELLO, 0, 1, 1, features, {"program": program}, nonce)
        self.send(frame)
        if self.tcp:
            _, _, version, features, bus_nonce, bus_proof = self.expect(Kind.CHALLENGE).elements
            ends = [
                (f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}")
                for name in (self.sock.getpeername(), self.sock.getsockname())
            ]
            transcript: tuple[Any, ...] = (frame[5:], version, features, bus_nonce, *ends)
            assert secret is not None
            assert bus_proof == proof(secret, "bus", *transcript)
            self.send(encode(Kind.PROOF, 0, proof(secret, "client", *transcript)))
        welcome = self.expect(Kind.WELCOME)
        self.peer = welcome.elements[4]
        return welcome

    def request(self, to: str, payload: bytes = b"", timeout_ms: int = 10_000) -> int:
        """Send a REQUEST and return its id."""
        self._last_id += 1
        self.send(encode_with_payload(payload, Kind.REQUEST, self.peer, to, self._last_id, timeout_ms, None))
        return self._last_id

    def call(self, method: str, **arguments: Any) -> Any:
        """A request to the bus; returns the value of its REPLY. What comes before the REPLY is skipped."""
        request = self.request(f"bus/{method}", pack(arguments))
        while True:
            frame = self.receive()
            assert frame is not None, f"the connection ended in {method}"
            if frame.kind in (Kind.REPLY, Kind.ERROR) and frame.elements[3] == request:
                assert frame.kind is Kind.REPLY, frame
                return decode_value(frame.elements[-1], frame.payload)

    def subscribe(self, pattern: str, lane: int = 1, credit: int = 1 << 26) -> None:
        """One lane."""
        self.call("subscribe", pattern=pattern, lane=lane, credit=credit)

    def publish(self, topic: str, payload: bytes) -> None:
        """PUBLISH *payload* raw."""
        self.send(encode_with_payload(payload, Kind.PUBLISH, self.peer, topic, 1))

    def ping(self, number: int = 1) -> None:
        """PING and its PONG, skipping what comes between."""
        self.send(encode(Kind.PING, self.peer, number))
        while (frame := self.receive()) is None or frame.kind is not Kind.PONG:
            assert frame is not None, "the connection ended before PONG"
