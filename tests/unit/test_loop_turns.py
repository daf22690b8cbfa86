"""Whose turn it is: who asks for little waits for one small slice of the others at most, and who is alone has large ones.

The clock stands still unless a test moves it; a step is one round of the loop.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from ipcbus.broker import Peer
from ipcbus.broker.effort import FRAME, UNLIMITED
from ipcbus.daemon.limits import SHARED_S, SHARED_SLICE_WORK, SLICE_WORK
from ipcbus.daemon.links import Turn
from ipcbus.protocol.messages import Kind, encode, encode_with_payload

from .test_loop import Bench, frames, subscribe

FRAME_BYTES = 150


class Rounds(Bench):
    """A bench whose time stands still, and what its broker does: (what, for whom, bytes of a read)."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(clock=lambda: self.now)
        self.done: list[tuple[str, int, int]] = []
        self.work: list[int] = []  #: units of each round for those whose reads cost much
        receive, resume, wrote = self.broker.receive, self.broker.resume, self.broker.wrote

        def receiving(peer: Peer, data: bytes, now: float, work: int = UNLIMITED) -> int:
            self.done.append(("read", peer.id, len(data)))
            return self.count(receive(peer, data, now, work))

        def resuming(peer: Peer, now: float, work: int = UNLIMITED) -> int:
            self.done.append(("resume", peer.id, 0))
            return self.count(resume(peer, now, work))

        def writing(peer: Peer, count: int, now: float) -> None:
            self.done.append(("write", peer.id, 0))
            wrote(peer, count, now)

        self.broker.receive = receiving  # type: ignore[method-assign]
        self.broker.resume = resuming  # type: ignore[method-assign]
        self.broker.wrote = writing  # type: ignore[method-assign]

    def count(self, spent: int) -> int:
        if spent > FRAME:
            self.work[-1:] = [self.work[-1] + spent]
        return spent

    def step(self) -> None:
        self.work.append(0)
        self.loop.at(self.now, lambda _: self.loop.stop())
        self.loop._stopped = False
        self.loop.run()

    def run(self, seconds: float = 0.0) -> None:
        for _ in range(3):
            self.step()


class Flood:
    """A publisher whose socket is always full of small messages."""

    def __init__(self, rounds: Rounds) -> None:
        self.sock, self.peer = rounds.ready()
        frame = encode_with_payload(b"", Kind.PUBLISH, self.peer.id, "t", None)
        self.frame = encode_with_payload(bytes(FRAME_BYTES - len(frame)), Kind.PUBLISH, self.peer.id, "t", None)
        self.rest = b""
        self.pour()

    def pour(self) -> None:
        self.sock.setblocking(False)
        try:
            while True:
                self.rest = self.rest or self.frame * 100
                self.rest = self.rest[self.sock.send(self.rest) :]
        except BlockingIOError:
            self.sock.settimeout(5)

    @property
    def turn(self) -> Turn:
        turn = self.peer.link.turn
        assert isinstance(turn, Turn)
        return turn


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    made = Rounds()
    yield made
    made.close()


def ask(sock: socket.socket, peer: Peer) -> None:
    sock.sendall(encode(Kind.PING, peer.id, 1))


def test_who_asks_for_little_is_read_and_answered_before_the_turns(rounds: Rounds) -> None:
    good, peer = rounds.ready()
    floods = [Flood(rounds) for _ in range(3)]
    for flood in floods:
        flood.pour()
    rounds.step()
    assert [flood.turn for flood in floods] == [Turn.QUEUED] * 3
    for _ in range(5):
        for flood in floods:
            flood.pour()
        ask(good, peer)
        rounds.done.clear()
        rounds.step()
        assert [what for what, who, _ in rounds.done if who == peer.id] == ["read", "write"]
        assert rounds.done[1][:2] == ("write", peer.id)
        assert len(rounds.done) > 2
        assert len(frames(good)) == 1


class Full(deque[Any]):
    """Turns for which there is no memory once."""

    failures = 0

    def append(self, link: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        super().append(link)


def test_whose_turn_cannot_be_noted_is_cut_off_and_not_forgotten(rounds: Rounds) -> None:
    rounds.loop._turns = turns = Full()
    floods = [Flood(rounds) for _ in range(2)]
    for flood in floods:
        flood.pour()
    rounds.step()
    assert [flood.turn for flood in floods] == [Turn.QUEUED] * 2
    turns.failures = 1
    for flood in floods:
        flood.pour()
    rounds.run()
    assert sorted(flood.peer.closed for flood in floods) == [False, True]
    for flood in floods:
        flood.sock.close()
    rounds.run()
    assert not rounds.broker.peers


@pytest.mark.parametrize("count", [1, 5])
def test_the_others_have_one_small_slice_a_round_while_somebody_is_served(rounds: Rounds, count: int) -> None:
    good, peer = rounds.ready()
    floods = [Flood(rounds) for _ in range(count)]
    for number in range(20 * count):
        for flood in floods:
            flood.pour()
        if number % 4 == 0:
            ask(good, peer)
        rounds.step()
        rounds.now += SHARED_S / 8
    assert max(rounds.work[-10 * count :]) < 2 * SHARED_SLICE_WORK
    assert min(rounds.work[-10 * count :]) > 0
    assert min(flood.peer.in_messages for flood in floods) > 1000


def test_who_is_alone_has_large_slices_and_large_reads(rounds: Rounds) -> None:
    good, peer = rounds.ready()
    flood = Flood(rounds)

    def largest_read() -> int:
        """Of the last of some rounds."""
        for _ in range(10):
            flood.pour()
            rounds.done.clear()
            rounds.step()
        return max(size for _, who, size in rounds.done if who == flood.peer.id)

    assert largest_read() > 150_000
    ask(good, peer)
    assert largest_read() < 100_000
    rounds.now += SHARED_S
    assert largest_read() > 150_000
    assert max(rounds.work) < SLICE_WORK


def test_who_reads_what_is_published_and_gives_credit_is_nobody_else(rounds: Rounds) -> None:
    reader, peer = rounds.ready()
    flood = Flood(rounds)
    subscribe(reader, peer, "t", rounds)
    rounds.now += SHARED_S
    for _ in range(20):
        flood.pour()
        rounds.done.clear()
        reader.sendall(encode(Kind.CREDIT, peer.id, 1, 1 << 20, 0))
        rounds.step()
        empty(reader)
    assert ("read", peer.id) in {done[:2] for done in rounds.done}
    assert max(size for _, who, size in rounds.done if who == flood.peer.id) > 150_000


def empty(sock: socket.socket) -> None:
    """Take what is there, whole frames or not."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 20):
            pass
    except BlockingIOError:
        sock.settimeout(5)


def test_who_has_sent_all_is_read_like_others_again(rounds: Rounds) -> None:
    flood = Flood(rounds)
    rounds.step()
    assert flood.turn is Turn.QUEUED
    for _ in range(10):
        rounds.step()
    assert flood.turn is Turn.READY
    assert not rounds.loop._turns
    assert rounds.loop._timeout(rounds.now) is None


def test_large_reads_cost_something_too(rounds: Rounds) -> None:
    """A few large messages are no work for the broker, but it takes time to copy them."""
    sock, peer = rounds.ready()
    sock.setblocking(False)
    sock.send(encode_with_payload(bytes(1 << 20), Kind.PUBLISH, peer.id, "t", None))
    rounds.done.clear()
    rounds.step()
    assert [size > 150_000 for _, _, size in rounds.done] == [True]
    assert peer.link.turn is Turn.QUEUED
