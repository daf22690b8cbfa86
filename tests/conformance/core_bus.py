"""The sans-I/O core as a bus under test: a broker, a virtual clock, and a network that delivers everything at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.policy import Policy, Rule, parse
from ipcbus.protocol.auth import Secret, Secrets

from .matching import cut
from .runner import Enough
from .vectors import NAMED_SECRETS, SECRET

BUS_ADDRESS = "127.0.0.1:4222"


class CoreBus:
    """A `BusUnderTest`. Reads of a held peer wait here, as they would in the kernel's socket buffer (L-7)."""

    def __init__(self) -> None:
        numbers = count(1)
        self._now = 1000.0
        self._broker = Broker(
            incarnation=bytes(range(16)),
            random_bytes=lambda size: next(numbers).to_bytes(size, "big"),
            now=self._now,
            secrets=Secrets({name: Secret(key) for name, key in {"default": SECRET, **NAMED_SECRETS}.items()}, bytes(32)),
            software="ipcbus under test",
            pid=4242,
        )
        self._peers: dict[str, Peer] = {}
        self._labels: dict[Peer, str] = {}
        self._unread: dict[str, list[bytes | None]] = {}  #: what waits for a held peer; None is the end of file
        self._written: dict[str, bytes] = {}
        self._ended: set[str] = set()
        self._ports: dict[str, int] = {}

    def set_policy(self, text: str) -> None:
        parsed = parse(text, "the policy", users=lambda name: None, groups=lambda name: None)
        assert not parsed.errors, parsed.errors
        self._broker.set_policy(Policy(parsed.rules, default=Rule(False, where="the default")), self._now)
        self._settle()

    def connect(self, peer: str, transport: str) -> None:
        if transport == "tcp":
            self._ports[peer] = 50000 + len(self._peers)
            record = self._broker.connect(self._now, transport="tcp", addresses=self.addresses(peer))
        else:
            record = self._broker.connect(self._now, transport="unix", credentials=Credentials(100, 1000, 1000))
        self._peers[peer] = record
        self._labels[record] = peer
        self._unread[peer] = []
        self._written[peer] = b""
        self._settle()

    def write(self, peer: str, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self._unread[peer].append(piece)
            self._settle()

    def shut(self, peer: str) -> None:
        self._unread[peer].append(None)
        self._settle()

    def close(self, peer: str) -> None:
        self._unread[peer].clear()
        self._ended.add(peer)
        self._broker.disconnect(self._peers[peer], self._now)
        self._settle()

    def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while (deadline := self._broker.next_deadline()) is not None and deadline <= end:
            assert deadline >= self._now, "a deadline that has passed was not done by tick()"
            self._now = deadline
            self._broker.tick(self._now)
            self._settle()
            again = self._broker.next_deadline()
            assert again is None or again > deadline, "tick() did not do what was due"
        self._now = end
        self._broker.tick(self._now)
        self._settle()

    def addresses(self, peer: str) -> tuple[str, str]:
        return BUS_ADDRESS, f"127.0.0.1:{self._ports[peer]}"

    def collect(self, peer: str, enough: Enough) -> tuple[list[bytes], bool]:
        frames, rest = cut(self._written[peer])
        assert not rest, "the core wrote a part of a frame"
        self._written[peer] = b""
        return frames, peer in self._ended

    def _settle(self) -> None:
        """Move bytes until there is nothing to move."""
        while self._take_output() or self._give_input():
            pass

    def _take_output(self) -> bool:
        touched = self._broker.take_touched()
        for record in touched:
            label = self._labels[record]
            if label in self._ended:
                continue
            data = b"".join(record.out)
            assert len(data) == record.out_bytes, "out_bytes does not say what is in out"
            self._written[label] += data
            if data:
                self._broker.wrote(record, len(data), self._now)
            if record.closing:
                self._ended.add(label)
                self._unread[label].clear()
                self._broker.disconnect(record, self._now)
        return bool(touched)

    def _give_input(self) -> bool:
        for label, waiting in self._unread.items():
            record = self._peers[label]
            if not waiting or record.held or label in self._ended:
                continue
            data = waiting.pop(0)
            if data is None:
                self._broker.half_close(record, self._now)
            else:
                self._broker.receive(record, data, self._now)
            return True
        return False
