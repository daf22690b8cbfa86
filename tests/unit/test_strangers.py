"""Connections by TCP that are not ready: how many there may be, when who fails hears so, and what the log says of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ipcbus.broker import Broker, Credentials, Peer, strangers
from ipcbus.daemon import tcp_owners
from ipcbus.daemon.tcp_owners import owner_of
from ipcbus.protocol.auth import Secret, Secrets, proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import FAILED_AT_ONCE, FAILED_LOG_S, FAILED_LOOK_S, FAILED_WAIT_S, TCP_STRANGERS_MAX
from ipcbus.protocol.messages import Kind, encode

SECRET = b"s" * 32
HELLO = encode(Kind.HELLO, 0, 1, 1, [], {"program": "p"}, b"n" * 32)
BUS = "127.0.0.1:4222"


class Tcp:
    """A broker whose peers come by TCP, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.uids: list[int | None] = []  #: what the kernel says of the next ones; at the end it knows nobody
        self.looked: list[tuple[str, str]] = []
        self.broker = Broker(
            incarnation=b"i" * 16, random_bytes=lambda size: b"r" * size, now=self.now, owner_of=self.owner_of,
            secrets=Secrets({"default": Secret(SECRET)}, bytes(32)), log=lambda level, text: self.log.append(text),
        )  # fmt: skip
        self.ports = 50000

    def owner_of(self, ends: tuple[str, str]) -> int | None:
        self.looked.append(ends)
        return self.uids.pop(0) if self.uids else None

    def connect(self) -> Peer:
        self.ports += 1
        return self.broker.connect(self.now, transport="tcp", addresses=(BUS, f"127.0.0.1:{self.ports}"))

    def say(self, peer: Peer, data: bytes) -> None:
        self.broker.receive(peer, data, self.now)

    def fail(self, more: bytes = b"") -> Peer:
        """A handshake with a wrong proof."""
        peer = self.connect()
        self.say(peer, HELLO)
        self.say(peer, encode(Kind.PROOF, 0, b"x" * 32) + more)
        return peer

    def succeed(self, peer: Peer) -> None:
        assert peer.connection.addresses is not None
        self.say(peer, HELLO)
        self.say(peer, encode(Kind.PROOF, 0, proof(SECRET, "client", HELLO[5:], 1, [], b"r" * 32, *peer.connection.addresses)))
        assert said(peer)[-1][0] == Kind.WELCOME

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)


def said(peer: Peer) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(b"".join(peer.out))
    return list(unpacker)[1::2]


def code(peer: Peer) -> Code | None:
    """With which code it was closed, None while it is not."""
    last = said(peer)[-1] if peer.out else [None]
    return Code(last[2]) if last[0] == Kind.BYE else None


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_so_many_may_be_not_ready_and_the_oldest_makes_room(more: int) -> None:
    bus = Tcp()
    ready = bus.connect()
    bus.succeed(ready)
    on_unix = bus.broker.connect(bus.now, credentials=Credentials(1, 2, 3))
    peers = [bus.connect() for _ in range(TCP_STRANGERS_MAX + more)]
    gone = [peer for peer in peers if peer.closing]
    assert gone == ([peers[0]] if more > 0 else [])
    assert [code(peer) for peer in gone] == [Code.TOO_MANY_PEERS] * len(gone)
    assert not ready.closing
    assert not on_unix.closing
    bus.succeed(peers[-1])
    bus.connect()
    assert [peer for peer in peers if peer.closing] == gone, "who is ready takes no place of a stranger"


def test_who_fails_often_hears_so_later_and_is_not_read_meanwhile() -> None:
    bus = Tcp()
    for _ in range(FAILED_AT_ONCE):
        assert code(bus.fail()) is Code.AUTH_FAILED
    late = bus.fail(encode(Kind.PROOF, 0, b"y" * 32) + b"garbage")
    assert (code(late), late.held, late.closing) == (None, 1, False)
    bus.say(late, encode(Kind.PROOF, 0, b"z" * 32))
    assert code(late) is None, "no second guess"
    ours = bus.connect()
    bus.succeed(ours)
    assert bus.broker.next_deadline() == bus.now + FAILED_WAIT_S
    bus.advance(FAILED_WAIT_S - 0.01)
    assert code(late) is None
    bus.advance(0.02)
    assert code(late) is Code.AUTH_FAILED
    assert late.closing
    assert code(bus.fail()) is Code.AUTH_FAILED, "one comes back in that time"
    assert code(bus.fail()) is None
    assert not ours.closing


def test_who_waits_for_its_answer_is_a_stranger_still() -> None:
    bus = Tcp()
    for _ in range(FAILED_AT_ONCE):
        bus.fail()
    late, gone = bus.fail(), bus.fail()
    bus.broker.disconnect(gone, bus.now)
    for _ in range(TCP_STRANGERS_MAX - 1):
        bus.connect()
    assert not late.closing
    second = bus.connect()
    assert code(late) is Code.TOO_MANY_PEERS
    last = bus.fail()
    assert code(last) is None
    assert code(second) is None
    bus.broker.shut_down(bus.now)
    assert code(last) is Code.SHUTTING_DOWN
    bus.advance(60)
    assert [each[0] for each in said(last)].count(Kind.BYE) == 1


def test_the_log_has_a_line_a_minute_for_each_user() -> None:
    bus = Tcp()
    bus.uids = [1000, 1000, 2000]
    for _ in range(3):
        bus.broker.disconnect(bus.fail(), bus.now)
    assert len(bus.looked) == 1, "nobody is looked for more often than that"
    assert bus.looked == [(BUS, "127.0.0.1:50001")]
    (line,) = bus.log
    assert "uid 1000" in line
    assert "127.0.0.1:50001" in line
    assert "auth_failed" in line
    bus.advance(FAILED_LOOK_S)
    bus.fail()
    assert len(bus.log) == 1, "of this one there was a line"
    bus.advance(FAILED_LOOK_S)
    bus.say(bus.connect(), b"GET / HTTP/1.1\r\n")
    assert "uid 2000" in bus.log[1]
    assert "3 others failed" in bus.log[1]
    assert "bad_frame" in bus.log[1]
    bus.advance(FAILED_LOG_S)
    bus.fail()
    assert "a user who cannot be found" in bus.log[-1]
    assert bus.broker.counters.protocol_errors == 6


def test_who_told_lies_is_told_harmlessly_and_at_bounded_length() -> None:
    bus = Tcp()
    peer = bus.connect()
    bus.say(peer, encode(Kind.HELLO, 0, 1, 1, [], {"identity": "a\nb\x1b" + "x" * 120}, b"n" * 32))
    bus.say(peer, encode(Kind.PROOF, 0, b"x" * 32))
    assert "'a\\nb\\x1b" in bus.log[-1]


def test_who_was_about_to_prove_a_secret_that_is_replaced_is_no_failure() -> None:
    """Each hears at once what happened, and who fails after that is answered as before."""
    bus = Tcp()
    peers = [bus.connect() for _ in range(FAILED_AT_ONCE + 1)]
    for peer in peers:
        bus.say(peer, HELLO)
    bus.broker.replace_secrets({"default": Secret(b"t" * 32)}, bus.now)
    assert [code(peer) for peer in peers] == [Code.AUTH_FAILED] * len(peers)
    assert {said(peer)[-1][3] for peer in peers} == {"the secret of 'default' was replaced or taken away: read its file again (H-14)"}
    assert code(bus.fail()) is Code.AUTH_FAILED


def test_who_makes_room_is_told_of_at_the_time_when_it_does() -> None:
    bus = Tcp()
    bus.fail()
    bus.now += FAILED_LOG_S
    for _ in range(TCP_STRANGERS_MAX + 1):
        bus.connect()
    assert len(bus.log) == 2
    assert "too_many_peers" in bus.log[1]


def test_so_many_users_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "FAILED_USERS", 2)
    bus = Tcp()
    bus.uids = [1, 2, 3, 2, 1]
    for _ in range(5):
        bus.fail()
        bus.advance(FAILED_LOOK_S)
    assert [line.split("uid ")[1][0] for line in bus.log] == ["1", "2", "3", "1"]


# --- /proc/net ------------------------------------------------------------------------------------

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def table(short_dir: Path, name: str, *rows: tuple[str, str, int, int]) -> str:
    lines = [
        f"{number:4}: {local} {remote} 01 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0\n"
        for number, (local, remote, uid, inode) in enumerate(rows)
    ]
    (short_dir / name).write_text(HEAD + "".join(lines))
    return str(short_dir)


def test_the_client_s_end_says_whose_it_is(short_dir: Path) -> None:
    bus, client = "0100007F:107E", "0100007F:C351"
    ends = (BUS, "127.0.0.1:50001")
    place = table(short_dir, "tcp", (bus, client, 1, 5), (client, "0100007F:107F", 2, 5), (client, bus, 4711, 5))
    assert owner_of(ends, place) == 4711
    table(short_dir, "tcp", (bus, client, 1, 5), (client, bus, 0, 0))
    assert owner_of(ends, place) is None, "nobody holds it any more"
    table(short_dir, "tcp", (bus, client, 1, 5))
    assert owner_of(ends, place) is None
    mapped = "0000000000000000FFFF0000"
    table(short_dir, "tcp6", (f"{mapped}{client}", f"{mapped}{bus}", 8, 5))
    assert owner_of(ends, place) == 8, "a socket of IPv6 that speaks IPv4"
    one = "00000000000000000000000001000000"
    table(short_dir, "tcp6", (f"{one}:C351", f"{one}:107E", 9, 5))
    assert owner_of(("[::1]:4222", "[::1]:50001"), place) == 9
    assert owner_of(ends, f"{short_dir}/none") is None


@pytest.mark.parametrize(("more", "found"), [(-1, None), (0, 7)])
def test_no_more_is_read_than_that(short_dir: Path, monkeypatch: pytest.MonkeyPatch, more: int, found: int | None) -> None:
    place = table(short_dir, "tcp", ("0100007F:C351", "0100007F:107E", 7, 5))
    needed = (short_dir / "tcp").read_bytes().index(b" 5 1 0") + 2
    monkeypatch.setattr(tcp_owners, "TCP_TABLE_MAX_BYTES", needed + 2 * more)
    assert owner_of((BUS, "127.0.0.1:50001"), place) == found


def test_it_is_as_this_kernel_shows_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        names = [f"{name[0]}:{name[1]}" for name in (client.getpeername(), client.getsockname())]
        assert owner_of((names[0], names[1])) in (os.geteuid(), None), "None where /proc/net is not to be had or long"
