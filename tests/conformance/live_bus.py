"""Live daemons as buses under test: a process of its own for each case, real sockets, real time."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from ipcbus.protocol.addresses import TcpAddress, parse_address
from tests.daemons import environment, wait_until

from .matching import cut, encode
from .runner import Enough
from .vectors import NAMED_SECRETS, SECRET

#: How long nothing may come while something is expected, on a machine under load.
PATIENCE_S = 5.0
#: How long a fence may take before it is given up: the bus does not read who is held (L-7), so no PONG is no error.
FENCE_S = 0.3
#: Where no fence is possible: how long nothing must come.
GRACE_S = 0.02

WELCOME, PING = 4, 6
_FENCE_ID = 2**53 - 2  #: an id that no vector uses
_FENCE = encode([7, 0, _FENCE_ID])


class Nursery:
    """Starts and ends daemons, one for each case, and has the next one ready while a case runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._secret = directory / "secret"
        self._named = directory / "named"
        self._named.mkdir(0o700)
        for path, secret in {self._secret: SECRET, **{self._named / f"{name}.secret": key for name, key in NAMED_SECRETS.items()}}.items():
            path.touch(0o600)
            path.write_bytes(secret)
        self._config = directory / "ipcbusd.toml"
        self._config.write_text("")
        self._number = 0
        self._started: dict[str, Any] | None = None  #: the nursery's answer about the next daemon, where it was read already
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.nursery"],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        self._start_next()

    def close(self) -> None:
        """End all daemons."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()

    @contextmanager
    def bus(self) -> Iterator[LiveBus]:
        """A fresh bus; afterwards it must end in order and must not have logged a fault."""
        log, policy = self._log, self._policy
        started = self._started or self._answer()
        assert started["addresses"], f"ipcbusd did not start: {log.read_text()}"
        self._start_next()
        bus = LiveBus(*started["addresses"], started["pid"], policy, log)
        try:
            yield bus
        finally:
            bus.disconnect_all()
            self._started = self._answer()
            self._tell({"stop": started["pid"]})
            ended = self._answer()
        text = log.read_text()
        assert ended["status"] == 0, f"ipcbusd ended with {ended['status']}: {text}"
        assert "Traceback" not in text, text

    def _start_next(self) -> None:
        self._number += 1
        directory = self._directory / str(self._number)
        directory.mkdir(0o700)
        self._log = directory / "log"
        self._policy = directory / "policy.d"
        self._policy.mkdir(0o700)
        flags = ["--config", str(self._config), "--secret-file", str(self._secret), "--secret-dir", str(self._named)]
        flags += [f"--policy-dir={self._policy}", f"--listen=unix:{directory}/s", "--listen=tcp:127.0.0.1:0"]
        self._started = None
        self._tell({"start": flags, "log": str(self._log)})

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery ended"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class _Peer:
    """One connection, and what its two directions are in the middle of."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.id = 0
        self.ended = False  #: nothing more comes
        self.mute = False  #: it sends no more
        self.awaiting_fence = False
        self.unfenced = False  #: it wrote something since its last fence
        self._unsent = b""  #: what the kernel did not take, because the bus does not read
        self._unfinished = b""  #: the beginning of the frame that it is writing
        self._received = b""
        self._frames: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write *data*, or keep what the bus does not read."""
        self.unfenced = True
        self._unfinished += data
        while len(self._unfinished) >= 5 and self._unfinished[0] == 0xCE:
            end = 5 + int.from_bytes(self._unfinished[1:5], "big")
            if len(self._unfinished) < end:
                break
            self._unfinished = self._unfinished[end:]
        self._send(data)

    def _send(self, data: bytes) -> None:
        was_stuck = bool(self._unsent)
        self._unsent += data
        while not self.flush() and not was_stuck:
            if not select.select([], [self.sock], [], FENCE_S)[1]:
                break

    def flush(self) -> bool:
        """Give the kernel what it takes; True when nothing is left."""
        try:
            while self._unsent and not self.mute:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self.mute = True
        return True

    @property
    def can_ping(self) -> bool:
        """Whether a PING would be a frame that is allowed here, and would be read."""
        return bool(self.id) and not (self._unfinished or self._unsent or self.mute or self.ended or self.awaiting_fence)

    def read(self, timeout: float) -> bool:
        """Take what comes within *timeout*; False where nothing came."""
        if self.ended or not select.select([self.sock], [], [], max(timeout, 0))[0]:
            return False
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
            assert not self._received, f"the connection ended in the middle of a frame: {self._received.hex()}"
            return False
        frames, self._received = cut(self._received + data)
        for frame in frames:
            if frame == _FENCE:
                self.awaiting_fence = False
                continue
            if not self.id and frame[6] == WELCOME:
                self.id = msgpack.unpackb(frame[5:])[4]
            self._frames.append(frame)
        return True

    def fence(self) -> None:
        """PING, and read up to its PONG: what was routed before has come then. Given up where the bus does not read this peer."""
        self.unfenced = False
        self.awaiting_fence = True
        self._send(encode([PING, self.id, _FENCE_ID]))
        deadline = time.monotonic() + FENCE_S
        while self.awaiting_fence and not self.ended and time.monotonic() < deadline:
            self.read(deadline - time.monotonic())

    def frames(self) -> list[bytes]:
        """What came, without the answers to fences."""
        return list(self._frames)

    def take(self) -> list[bytes]:
        """The same, and forget it."""
        frames, self._frames = self._frames, []
        return frames


class LiveBus:
    """A `BusUnderTest` behind sockets."""

    def __init__(self, unix: str, tcp: str, pid: int, policy: Path, log: Path) -> None:
        self._pid = pid
        self._policy = policy
        self._log = log
        self._policies = 0
        self._unix = unix.removeprefix("unix:")
        address = parse_address(tcp)
        assert isinstance(address, TcpAddress)
        self._tcp = (address.host, address.port)
        self._peers: dict[str, _Peer] = {}

    def set_policy(self, text: str) -> None:
        (self._policy / "rules.toml").write_text(text)
        self._policies += 1
        os.kill(self._pid, signal.SIGHUP)
        wait_until(lambda: self._log.read_text().count("there is a new policy") == self._policies, "the daemon should read its policy")

    def connect(self, peer: str, transport: str) -> None:
        if transport == "tcp":
            sock = socket.create_connection(self._tcp, PATIENCE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(self._unix)
        self._peers[peer] = _Peer(sock)

    def write(self, peer: str, pieces: Iterable[bytes]) -> None:
        record = self._peers[peer]
        for piece in pieces:
            record.write(piece)

    def shut(self, peer: str) -> None:
        record = self._peers[peer]
        record.mute = True
        record.sock.shutdown(socket.SHUT_WR)
        self._let_it_be_seen()

    def close(self, peer: str) -> None:
        self._peers.pop(peer).sock.close()
        self._let_it_be_seen()

    def disconnect_all(self) -> None:
        """End every connection."""
        for record in self._peers.values():
            record.sock.close()
        self._peers.clear()

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)

    def addresses(self, peer: str) -> tuple[str, str]:
        sock = self._peers[peer].sock
        (bus_host, bus_port), (host, port) = sock.getpeername(), sock.getsockname()
        return f"{bus_host}:{bus_port}", f"{host}:{port}"

    def collect(self, peer: str, enough: Enough) -> tuple[list[bytes], bool]:
        record = self._peers[peer]
        deadline = time.monotonic() + PATIENCE_S
        while not enough(record.frames(), record.ended) and not record.ended and time.monotonic() < deadline:
            for other in self._peers.values():
                other.flush()
            if record.read(FENCE_S):
                deadline = time.monotonic() + PATIENCE_S
        self._look_for_more(record)
        return record.take(), record.ended

    def _look_for_more(self, record: _Peer) -> None:
        """Read what the bus has for *record* beyond what was expected: first let it route what others wrote."""
        for other in self._peers.values():
            if other is not record and other.unfenced and other.can_ping:
                other.fence()
        if record.can_ping:
            record.fence()
        else:
            while record.read(GRACE_S):
                pass

    def _let_it_be_seen(self) -> None:
        """Somebody ended, and no PONG tells when the bus has seen it: the end was there before the first of two fences of another peer."""
        for other in self._peers.values():
            if other.can_ping:
                other.fence()
                if other.can_ping:
                    other.fence()
                return
        time.sleep(GRACE_S)
