"""The loop over socket pairs in this process: the border around each peer, and what is done when."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.daemon.admission import Admission
from ipcbus.daemon.limits import WAIT_MAX_S
from ipcbus.daemon.links import Link
from ipcbus.daemon.loop import POLLERS, Loop
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Frame, Kind, decode, encode, encode_with_payload, pack

HELLO = encode(Kind.HELLO, 0, 1, 1, [], {"program": "unit"}, None)


class FaultyBroker(Broker):
    """Raises where it is told to: ``fail`` has the names of methods, and the fault is for peers below ``fail_id`` only."""

    fail: frozenset[str] = frozenset()

    def _maybe(self, what: str) -> None:
        if what in self.fail:
            raise ZeroDivisionError(what)

    def receive(self, peer: Peer, data: bytes, now: float) -> None:
        self._maybe("receive") if b"poison" in data else None
        super().receive(peer, data, now)

    def half_close(self, peer: Peer, now: float) -> None:
        self._maybe("half_close")
        super().half_close(peer, now)

    def wrote(self, peer: Peer, count: int, now: float) -> None:
        self._maybe("wrote") if peer.program == "faulty" else None
        super().wrote(peer, count, now)

    def disconnect(self, peer: Peer, now: float) -> None:
        self._maybe("disconnect")
        super().disconnect(peer, now)

    def expel(self, peer: Peer, code: Code, text: str, now: float) -> None:
        self._maybe("expel")
        super().expel(peer, code, text, now)


class Bench:
    """A loop, its broker, and our ends of socket pairs."""

    def __init__(self, poller: str = "epoll", limits: Limits | None = None) -> None:
        self.broker = FaultyBroker(incarnation=bytes(16), random_bytes=os.urandom, now=time.monotonic(), limits=limits)
        self.loop = Loop(self.broker, poller, time.monotonic)
        self.ours: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, Peer]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(5)
        self.ours.append(ours)
        peer = self.broker.connect(time.monotonic(), transport="unix", credentials=Credentials(1, 2, 3))
        self.loop.adopt(theirs, peer)
        return ours, peer

    def ready(self) -> tuple[socket.socket, Peer]:
        ours, peer = self.connect()
        ours.sendall(HELLO)
        self.run()
        (welcome,) = frames(ours)
        assert welcome.kind is Kind.WELCOME
        return ours, peer

    def run(self, seconds: float = 0.02) -> None:
        self.loop.at(time.monotonic() + seconds, lambda now: self.loop.stop())
        self.loop._stopped = False
        self.loop.run()

    def close(self) -> None:
        self.loop.close()
        for sock in self.ours:
            sock.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def frames(sock: socket.socket) -> list[Frame]:
    """What is there to be read."""
    sock.setblocking(False)
    data = b""
    try:
        while part := sock.recv(1 << 20):
            data += part
    except BlockingIOError:
        pass
    sock.settimeout(5)
    found = []
    while data:
        size = 5 + int.from_bytes(data[1:5], "big")
        found.append(decode(data[:size]))
        data = data[size:]
    return found


def is_closed(sock: socket.socket) -> bool:
    sock.settimeout(5)
    return sock.recv(1) == b""


def test_fault_in_one_peers_work_stays_there(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.broker.fail = frozenset({"receive"})
    good, _ = bench.ready()
    bad, peer = bench.ready()
    bad.sendall(b"poison")
    bench.run()
    (bye,) = frames(bad)
    assert (bye.kind, bye.elements[2]) == (Kind.BYE, Code.INTERNAL)
    assert is_closed(bad)
    assert peer.closed
    assert peer.link is None
    good.sendall(encode(Kind.PING, 1, 1))
    bench.run()
    assert [frame.kind for frame in frames(good)] == [Kind.PONG]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR
    assert "peer 2 ('unit', pid 1 uid 2)" in record.getMessage()


@pytest.mark.parametrize("fail", [{"receive", "expel"}, {"receive", "disconnect"}, {"receive", "expel", "disconnect"}])
def test_fault_while_cutting_off(bench: Bench, fail: set[str]) -> None:
    good, _ = bench.ready()
    bad, _ = bench.ready()
    bench.broker.fail = frozenset(fail)
    bad.sendall(b"poison")
    bench.run()
    frames(bad)
    assert is_closed(bad)
    good.sendall(encode(Kind.PING, 1, 1))
    bench.run()
    assert [frame.kind for frame in frames(good)] == [Kind.PONG]


def test_fault_at_half_close(bench: Bench) -> None:
    bad, _ = bench.ready()
    bench.broker.fail = frozenset({"half_close"})
    bad.shutdown(socket.SHUT_WR)
    bench.run()
    (bye,) = frames(bad)
    assert bye.elements[2] == Code.INTERNAL


def test_fault_while_writing(bench: Bench) -> None:
    good, _ = bench.ready()
    bench.broker.fail = frozenset({"wrote"})
    bad, _ = bench.connect()
    bad.sendall(encode(Kind.HELLO, 0, 1, 1, [], {"program": "faulty"}, None))
    bench.run()
    assert [frame.kind for frame in frames(bad)] == [Kind.WELCOME]
    assert is_closed(bad)
    good.sendall(encode(Kind.PING, 1, 1))
    bench.run()
    assert [frame.kind for frame in frames(good)] == [Kind.PONG]


def subscribed(bench: Bench) -> tuple[socket.socket, Peer]:
    sock, peer = bench.ready()
    sock.sendall(encode_with_payload(pack({"pattern": "t", "lane": 1, "credit": 1 << 26}), Kind.REQUEST, 0, "bus/subscribe", 1, 1000, None))
    bench.run()
    assert [frame.kind for frame in frames(sock)] == [Kind.REPLY]
    return sock, peer


def test_held_peer_is_not_read(bench: Bench) -> None:
    bench.broker.limits = Limits()
    sock, peer = bench.ready()
    peer.held = 1
    bench.broker._delivery.touch(peer)
    bench.run()
    sock.sendall(encode(Kind.PING, 1, 1))
    bench.run()
    assert frames(sock) == []
    assert link_of(peer).interest == 0
    peer.held = 0
    bench.broker._delivery.touch(peer)
    bench.run()
    assert [frame.kind for frame in frames(sock)] == [Kind.PONG]


def link_of(peer: Peer) -> Link:
    link = peer.link
    assert isinstance(link, Link)
    return link


def test_interest_changes_only_when_the_kernel_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    watch = Loop._watch

    def counting(loop: Loop, link: Link, interest: int) -> None:
        changes.append(interest)
        watch(loop, link, interest)

    reader, peer = subscribed(bench)
    publisher, _ = bench.ready()
    monkeypatch.setattr(Loop, "_watch", counting)
    for _ in range(5):
        publisher.sendall(encode_with_payload(b"x", Kind.PUBLISH, 2, "t", 1))
        bench.run()
    assert changes == []
    publisher.setblocking(False)
    frame = encode_with_payload(bytes(1 << 20), Kind.PUBLISH, 2, "t", 1)
    at = 0
    while at < len(frame):
        at += publisher.send(frame[at:])
        bench.run(0.001)
    assert changes == [3]
    received = b""
    while peer.out or len(received) < len(frame):
        received += reader.recv(1 << 20)
        bench.run(0.001)
    assert changes == [3, 1]
    assert received.endswith(frame)


def test_timers_run_once_in_order(bench: Bench) -> None:
    seen: list[str] = []
    now = time.monotonic()
    bench.loop.at(now + 0.002, lambda when: seen.append("b"))
    bench.loop.at(now + 0.001, lambda when: seen.append("a"))
    bench.loop.at(now + 0.002, lambda when: seen.append("c"))
    bench.loop.at(now + 60, lambda when: seen.append("never"))
    bench.run()
    assert seen == ["a", "b", "c"]


def test_idle_loop_sleeps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ready()
    assert bench.loop._timeout(time.monotonic()) is None


def test_closed_in_the_round_in_which_it_is_readable(bench: Bench) -> None:
    """An event for a link that an earlier event of the same round dropped is not looked at."""
    first, one = bench.ready()
    second, two = bench.ready()
    receive = bench.broker.receive

    def receive_and_drop(peer: Peer, data: bytes, now: float) -> None:
        for other in (one, two):
            if other is not peer and other.link is not None:
                bench.loop._drop(other.link, now)
        receive(peer, data, now)

    bench.loop._broker.receive = receive_and_drop  # type: ignore[method-assign]
    first.sendall(encode(Kind.PING, 1, 1))
    second.sendall(encode(Kind.PING, 2, 1))
    bench.run()
    assert {one.closed, two.closed} == {True, False}


@pytest.mark.parametrize("poller", POLLERS)
def test_finish_ends_when_everybody_has_read(poller: str) -> None:
    bench = Bench(poller)
    sock, _ = bench.ready()
    bench.broker.shut_down(time.monotonic())
    bench.loop._stopped = False
    began = time.monotonic()
    bench.loop.finish(began + 20)
    bench.loop.run()
    assert time.monotonic() - began < 10
    assert frames(sock)[0].elements[2] == Code.SHUTTING_DOWN
    bench.close()


class FailingListener:
    """A listener whose accept fails as told."""

    transport = "unix"
    address = "unix:/somewhere"

    def __init__(self, *errors: int) -> None:
        self.sock = self
        self.errors = list(errors)
        self.real, self.other = socket.socketpair()

    def fileno(self) -> int:
        return self.real.fileno()

    def accept(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        raise BlockingIOError

    def close(self) -> None:
        self.real.close()
        self.other.close()


@pytest.mark.parametrize(
    ("number", "pauses"),
    [
        (errno.ECONNABORTED, False),
        (errno.EPERM, False),
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOBUFS, True),
        (errno.ENOMEM, True),
    ],
)
def test_accept_that_fails(bench: Bench, caplog: pytest.LogCaptureFixture, number: int, pauses: bool) -> None:
    listener: Any = FailingListener(number, number, number)
    admission = Admission(bench.broker, bench.loop)
    admission.open([listener])
    for _ in range(3):
        admission.accept(listener, time.monotonic())
    assert admission._open is not pauses
    assert sum("refusing connections" in record.getMessage() for record in caplog.records) == pauses
    bench.run(0.25)
    assert admission._open
    admission.close()
    admission.close()
    listener.close()


class Offer(FailingListener):
    """A listener at which one stranger waits."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(5)
        self.offered = [self.theirs]

    def accept(self) -> Any:
        return (self.offered.pop(), b"") if self.offered else super().accept()

    def close(self) -> None:
        super().close()
        self.ours.close()


@pytest.fixture
def offer() -> Iterator[Any]:
    made = Offer()
    yield made
    made.close()


def test_fault_while_accepting(bench: Bench, offer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(bench.broker, "connect", lambda *args, **more: 1 / 0)
    admission = Admission(bench.broker, bench.loop)
    admission.accept(offer, time.monotonic())
    (bye,) = frames(offer.ours)
    assert bye.elements[2] == Code.INTERNAL
    assert "fault of the bus while it accepted" in caplog.text
    admission.close()


def test_poller_that_is_full(bench: Bench, offer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    admission = Admission(bench.broker, bench.loop)
    monkeypatch.setattr(Loop, "_watch", full)
    admission.accept(offer, time.monotonic())
    assert offer.ours.recv(10) == b""
    assert bench.broker.next_deadline() is None, "the broker forgot the stranger"
    admission.close()


def test_stranger_that_is_gone_before_it_is_judged(bench: Bench, offer: Any) -> None:
    offer.transport = "tcp"  # on a Unix socket, so that TCP_NODELAY fails
    admission = Admission(bench.broker, bench.loop)
    admission.accept(offer, time.monotonic())
    assert offer.ours.recv(10) == b""
    assert offer.theirs.fileno() == -1
    admission.close()


@pytest.mark.parametrize("poller", POLLERS)
def test_a_deadline_beyond_what_a_poller_can_wait(poller: str) -> None:
    """max_timeout_ms goes up to 2**32 - 1, poll(2) to 2**31 - 1: the wait is cut, and a round without events begins anew."""
    bench = Bench(poller)
    try:
        now = time.monotonic()
        bench.loop.at(now + 2**32 / 1000, lambda _: pytest.fail("too early"))
        bench.loop._more = False
        assert bench.loop._timeout(now) == WAIT_MAX_S
        bench.run()
    finally:
        bench.close()
