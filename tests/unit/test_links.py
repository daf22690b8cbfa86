"""Output on its way into the kernel: short writes at every place, budgets, and what waiting pieces may pin."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ipcbus.daemon import links
from ipcbus.daemon.limits import CHUNK_BYTES, IOV_MAX, WRITE_BYTES
from ipcbus.daemon.links import Link, hung_up, offer, part, say_bye, settle
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, decode


class FakePeer:
    """What offer and settle use of a peer; wrote() is what the broker does."""

    def __init__(self, pieces: list[Any]) -> None:
        self.out = pieces
        self.out_bytes = sum(len(piece) for piece in pieces)

    def wrote(self, count: int) -> None:
        self.out_bytes -= count
        while count and count >= len(self.out[0]):
            count -= len(self.out.pop(0))
        if count:
            self.out[0] = memoryview(self.out[0])[count:]


class FakeSocket:
    """Takes as many bytes as it is told, then none."""

    def __init__(self, *takes: int) -> None:
        self.takes = list(takes)
        self.taken = b""
        self.offers: list[tuple[int, int]] = []

    def fileno(self) -> int:
        return -1

    def send(self, piece: Any) -> int:
        return self.sendmsg([piece])

    def sendmsg(self, pieces: list[Any]) -> int:
        assert 0 < len(pieces) <= IOV_MAX
        data = b"".join(pieces)
        self.offers.append((len(pieces), len(data)))
        if not self.takes:
            raise BlockingIOError
        count = min(self.takes.pop(0), len(data))
        self.taken += data[:count]
        return count


def make(pieces: list[Any], *takes: int) -> tuple[Link, FakePeer, FakeSocket]:
    peer, sock = FakePeer(pieces), FakeSocket(*takes)
    return Link(sock, peer), peer, sock  # type: ignore[arg-type]


def turn(link: Link, peer: FakePeer) -> int:
    """What the loop does when a link is served."""
    count = offer(link)
    if count:
        peer.wrote(count)
    if link.blocked:
        settle(link)
    return count


@pytest.mark.parametrize("cut", range(13))
def test_short_write_at_every_byte(cut: int) -> None:
    pieces = [b"one", memoryview(b"..two..")[2:5], bytearray(b"three"), b"4"]
    whole = b"".join(pieces)
    link, peer, sock = make(pieces, cut, 100)
    assert turn(link, peer) == min(cut, 12)
    assert link.blocked == (cut < 12)
    if cut < 12:
        assert turn(link, peer) == 12 - cut
    assert (sock.taken, peer.out, peer.out_bytes, link.blocked) == (whole, [], 0, False)


def test_full_kernel() -> None:
    link, peer, _ = make([b"x"])
    assert turn(link, peer) == 0
    assert link.blocked
    assert peer.out == [b"x"]


def test_random_writes_keep_every_byte() -> None:
    for seed in range(12):
        rng = random.Random(seed)
        buffer = bytes(rng.randbytes(300_000))
        link, peer, sock = make([], *[rng.choice([0, 1, 5, 100, 5000, 300_000]) for _ in range(60)])
        sent = b""
        while sock.takes:
            for _ in range(rng.randrange(6)):
                start = rng.randrange(len(buffer))
                piece = (
                    buffer[start : start + 10] if rng.random() < 0.3 else memoryview(buffer)[start : start + rng.choice([9, 3000, 200_000])]
                )
                peer.out.append(piece)
                peer.out_bytes += len(piece)
                sent += piece
            if peer.out:
                turn(link, peer)
                assert link.settled <= len(peer.out), seed
        assert sock.taken + b"".join(peer.out) == sent, seed
        assert peer.out_bytes == sum(len(piece) for piece in peer.out)


def test_budget_of_a_round() -> None:
    link, peer, sock = make([b"x" * (3 * WRITE_BYTES)], *[1 << 30] * 9)
    while peer.out:
        turn(link, peer)
    assert sock.offers == [(1, WRITE_BYTES)] * 3
    link, peer, sock = make([b"x" * 300_000] * 10, *[1 << 30] * 9)
    turn(link, peer)
    assert link.blocked
    assert sock.offers[0][1] == WRITE_BYTES


def test_many_small_pieces_are_joined_before_they_are_written() -> None:
    link, peer, _ = make([b"%d" % (i % 10) for i in range(100)], 30, 1 << 30)
    assert turn(link, peer) == 30
    assert len(peer.out) == 1
    assert bytes(peer.out[0]) == b"0123456789" * 7


def test_no_more_buffers_than_the_kernel_takes() -> None:
    link, peer, _ = make([b"x"] * (IOV_MAX + 10) + [bytes(1 << 22)], *[1 << 30] * 9)
    assert turn(link, peer) == IOV_MAX
    assert turn(link, peer) > 10


def pinned(peer: FakePeer) -> int:
    """Memory that stays alive for what waits."""
    return sum(len(base) for base in {id(base): base for base in (getattr(piece, "obj", piece) for piece in peer.out)}.values())


def test_a_small_slice_does_not_pin_its_buffer() -> None:
    reads = [os.urandom(262_144) for _ in range(50)]
    link, peer, _ = make([memoryview(read)[100:120] for read in reads])
    turn(link, peer)
    assert pinned(peer) == 50 * 20
    assert len(peer.out) == 1


def test_a_slice_that_is_most_of_its_buffer_is_not_copied() -> None:
    read = os.urandom(262_144)
    piece = memoryview(read)[1000:]
    link, peer, _ = make([piece])
    turn(link, peer)
    assert peer.out[0] is piece


def test_the_rest_of_a_written_piece_does_not_pin_it() -> None:
    read = os.urandom(200_000)
    link, peer, _ = make([read, b"y" * 5000], 150_000, 49_990)
    turn(link, peer)
    assert pinned(peer) <= 50_000 + 5000
    turn(link, peer)
    assert pinned(peer) <= 10 + 5000
    assert b"".join(peer.out) == read[-10:] + b"y" * 5000


def test_many_small_pieces_become_few() -> None:
    link, peer, _ = make([b"%09d" % number for number in range(50_000)])
    turn(link, peer)
    assert len(peer.out) <= 450_000 // CHUNK_BYTES + 1
    assert b"".join(peer.out) == b"".join(b"%09d" % number for number in range(50_000))


def test_small_pieces_that_come_one_by_one_are_gathered_too() -> None:
    """A PONG a round for who does not read would be an object each."""
    link, peer, _ = make([b"%09d" % 0])
    turn(link, peer)
    for number in range(1, 20_000):
        peer.out.append(b"%09d" % number)
        peer.out_bytes += 9
        settle(link)
    assert len(peer.out) <= 180_000 // CHUNK_BYTES + 1
    assert b"".join(peer.out) == b"".join(b"%09d" % number for number in range(20_000))


def test_what_is_partly_written_is_not_added_to() -> None:
    link, peer, sock = make([b"abc", b"def"], 0, 4, 100)
    turn(link, peer)
    assert len(peer.out) == 1
    turn(link, peer)  # "e" is the next byte
    peer.out.append(b"ghi")
    peer.out_bytes += 3
    settle(link)
    turn(link, peer)
    assert (sock.taken, peer.out) == (b"abcdefghi", [])
    assert link.tail is None  # nothing is kept for a link that has nothing to write


def test_each_piece_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    original = links._pinned

    def counting(piece: Any) -> int:
        nonlocal looked
        looked += 1
        return original(piece)

    monkeypatch.setattr(links, "_pinned", counting)
    link, peer, _ = make([])
    for _ in range(500):
        peer.out.append(b"z" * 10_000)
        peer.out_bytes += 10_000
        turn(link, peer)
    assert looked <= 2 * 500


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_hung_up(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    link = Link(one, FakePeer([]))  # type: ignore[arg-type]
    assert not hung_up(link)
    other.shutdown(socket.SHUT_WR)
    assert not hung_up(link)
    other.close()
    assert hung_up(link)


def test_last_words_survive_unread_input(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    other.sendall(b"never read" * 1000)
    one.setblocking(False)
    say_bye(one, Code.DENIED, "x" * 5000)
    part(one)
    frame = decode(other.recv(10_000))
    assert (frame.kind, frame.elements[2]) == (Kind.BYE, Code.DENIED)
    assert other.recv(1) == b""


def test_last_words_to_nobody(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    other.close()
    say_bye(one, Code.DENIED, "x")
    part(one)
    assert one.fileno() == -1
