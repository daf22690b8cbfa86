"""The loop over socket pairs in this process: the border around each peer, and what is done when."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipcbus.broker import Broker, Credentials, Peer
from ipcbus.broker.effort import UNLIMITED
from ipcbus.daemon.admission import Admission
from ipcbus.daemon.limits import READ_MIN_BYTES, SHARED_SLICE_WORK, SLICE_WORK, WAIT_MAX_S
from ipcbus.daemon.links import Link, Turn
from ipcbus.daemon.loop import POLLERS, Loop
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import READ_BYTES, Limits
from ipcbus.protocol.messages import Frame, Kind, decode, encode, encode_with_payload, pack

HELLO = encode(Kind.HELLO, 0, 1, 1, [], {"program": "unit"}, None)


class FaultyBroker(Broker):
    """Raises where it is told to: ``fail`` has the names of methods, and the fault is for peers below ``fail_id`` only."""

    fail: frozenset[str] = frozenset()

    def _maybe(self, what: str) -> None:
        if what in self.fail:
            raise ZeroDivisionError(what)

    def receive(self, peer: Peer, data: bytes, now: float, work: int = UNLIMITED) -> int:
        self._maybe("receive") if b"poison" in data else None
        return super().receive(peer, data, now, work)

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

    def __init__(self, poller: str = "epoll", limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.broker = FaultyBroker(incarnation=bytes(16), random_bytes=os.urandom, now=time.monotonic(), limits=limits)
        self.loop = Loop(self.broker, poller, clock)
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

    def until(self, done: Callable[[], object]) -> None:
        """Run until *done*, however slow the machine is; a test that follows says what is wrong where it never is."""
        deadline = time.monotonic() + 20
        while not done() and time.monotonic() < deadline:
            self.run()

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

    def receive_and_drop(peer: Peer, data: bytes, now: float, work: int) -> int:
        for other in (one, two):
            if other is not peer and other.link is not None:
                bench.loop._drop(other.link, now)
        return receive(peer, data, now, work)

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


# --- slices -----------------------------------------------------------------------------------------------------------------------------


def expensive(peer: int, count: int) -> bytes:
    """Frames of which each costs everybody something: subscriptions with wildcards."""
    return b"".join(
        encode_with_payload(
            pack({"pattern": f"w{number}.*", "lane": number, "credit": 1}), Kind.REQUEST, peer, "bus/subscribe", number, 10_000, None
        )
        for number in range(1, count + 1)
    )


class Diary:
    """Who is worked for, in order, and how much."""

    def __init__(self, bench: Bench) -> None:
        self.turns: list[tuple[int, int]] = []
        receive, resume = bench.broker.receive, bench.broker.resume

        def receiving(peer: Peer, data: bytes, now: float, work: int = UNLIMITED) -> int:
            return self.note(peer, receive(peer, data, now, work))

        def resuming(peer: Peer, now: float, work: int = UNLIMITED) -> int:
            return self.note(peer, resume(peer, now, work))

        bench.broker.receive = receiving  # type: ignore[method-assign]
        bench.broker.resume = resuming  # type: ignore[method-assign]

    def note(self, peer: Peer, spent: int) -> int:
        self.turns.append((peer.id, spent))
        return spent


def test_an_expensive_read_is_worked_off_in_turns(bench: Bench) -> None:
    greedy, peer = bench.ready()
    diary = Diary(bench)
    greedy.sendall(expensive(1, 200))
    bench.run(0.2)
    assert len(frames(greedy)) == 200
    assert len(peer.lanes or {}) == 200
    assert len(diary.turns) > 5
    most = max(spent for _, spent in diary.turns)
    assert most < SLICE_WORK + 1000  # by one frame at most
    assert not bench.loop._turns


def test_others_have_their_turns_between_the_slices(bench: Bench) -> None:
    greedy = [bench.ready()[0] for _ in range(5)]
    good, _ = bench.ready()
    for number, sock in enumerate(greedy, 1):
        sock.sendall(expensive(number, 100))
    answered: list[int] = []
    diary = Diary(bench)
    offer = bench.loop._serve

    class Watching(Loop):
        __slots__ = ()

        def _serve(self, link: Link, now: float) -> None:
            offer(link, now)
            if link.peer.id == 6:
                answered.append(sum(spent for who, spent in diary.turns if who != 6))
                if len(answered) < 20:
                    good.sendall(encode(Kind.PING, 6, len(answered) + 1))

    bench.loop.__class__ = Watching
    good.sendall(encode(Kind.PING, 6, 1))
    bench.run(0.5)
    assert len(answered) >= 20
    # in the first round everybody has a slice; after it all of the greedy ones together have one in each, a small one
    assert max(later - earlier for earlier, later in itertools.pairwise(answered[2:])) < SHARED_SLICE_WORK + 1000
    for sock in greedy:
        assert len(frames(sock)) == 100


def test_turns_go_on_without_new_bytes_and_end_with_the_connection(bench: Bench) -> None:
    greedy, peer = bench.ready()
    other, _ = bench.ready()
    greedy.sendall(expensive(1, 300))
    greedy.close()
    bench.ours.remove(greedy)
    bench.until(lambda: peer.closed)
    assert peer.closed
    assert not bench.loop._turns
    other.sendall(encode(Kind.PING, 2, 1))
    bench.run()
    assert [frame.kind for frame in frames(other)] == [Kind.PONG]


def test_who_is_held_goes_on_with_its_read_when_it_is_let_go(bench: Bench) -> None:
    greedy, peer = bench.ready()
    greedy.sendall(expensive(1, 200))
    receive = bench.broker.receive

    def receive_and_hold(peer: Peer, data: bytes, now: float, work: int = UNLIMITED) -> int:
        spent = receive(peer, data, now, work)
        peer.held += 1
        bench.broker._delivery.touch(peer)
        return spent

    bench.broker.receive = receive_and_hold  # type: ignore[method-assign]
    bench.run()
    assert peer.unread is not None
    assert peer.link.turn is Turn.ASIDE
    assert not bench.loop._turns  # nobody turns round and round for it
    before = len(frames(greedy))
    assert before < 200
    peer.held = 0
    bench.broker._delivery.touch(peer)
    bench.run(0.2)
    assert before + len(frames(greedy)) == 200
    assert peer.link.turn is Turn.READY


def test_what_others_asked_for_goes_out_before_the_next_slice(bench: Bench) -> None:
    greedy, _ = bench.ready()
    good, _ = bench.ready()
    steps: list[tuple[str, int]] = []
    diary = Diary(bench)
    note, serve = diary.note, bench.loop._serve

    def noting(peer: Peer, spent: int) -> int:
        steps.append(("work", peer.id))
        return note(peer, spent)

    class Watching(Loop):
        __slots__ = ()

        def _serve(self, link: Link, now: float) -> None:
            steps.append(("serve", link.peer.id))
            serve(link, now)
            if link.peer.id == 2:
                good.sendall(encode(Kind.PING, 2, 1))

    diary.note = noting  # type: ignore[method-assign]
    bench.loop.__class__ = Watching
    greedy.sendall(expensive(1, 200))
    good.sendall(encode(Kind.PING, 2, 1))
    bench.run(0.2)
    assert len(frames(greedy)) == 200
    first = steps.index(("work", 1))
    told = [step for step in steps[first + 1 :] if step != ("serve", 1)]
    asked = [index for index, step in enumerate(told) if step == ("work", 2)]
    assert len(asked) > 4
    assert all(told[index + 1] == ("serve", 2) for index in asked)


def test_what_comes_for_a_blocked_link_pins_no_read(bench: Bench) -> None:
    """Small slices of big reads wait for a peer whose kernel buffer is full since an earlier round."""
    _, peer = bench.ready()
    bench.broker._delivery.put(peer, bytes(1 << 22))
    bench.run()
    assert peer.link.blocked
    for _ in range(20):
        bench.broker._delivery.put(peer, memoryview(os.urandom(READ_BYTES))[:3000])
        bench.run(0.001)
    kept = {id(base): len(base) for base in (getattr(piece, "obj", piece) for piece in peer.out[1:])}
    assert sum(kept.values()) < 2 * 20 * 3000


@pytest.mark.parametrize(
    ("before", "spent", "after"),
    [
        (READ_BYTES, SLICE_WORK - 1, READ_BYTES),
        (READ_BYTES, 2 * SLICE_WORK - 1, READ_BYTES),
        (READ_BYTES, 2 * SLICE_WORK, READ_BYTES // 2),
        (READ_BYTES, 16 * SLICE_WORK, READ_BYTES // 16),
        (READ_BYTES, 1000 * SLICE_WORK, READ_MIN_BYTES),
        (READ_MIN_BYTES, SLICE_WORK, READ_MIN_BYTES),
        (READ_MIN_BYTES, SLICE_WORK - 1, 2 * READ_MIN_BYTES),
        (READ_BYTES - 1, 0, READ_BYTES),
    ],
)
def test_who_sends_runs_that_cost_more_than_a_slice_is_read_in_smaller_pieces(bench: Bench, before: int, spent: int, after: int) -> None:
    _, peer = bench.ready()
    peer.link.read_bytes = before
    peer.link.measure(before, spent, SLICE_WORK)
    assert peer.link.read_bytes == after


@pytest.mark.parametrize(("spent", "turn"), [(SHARED_SLICE_WORK - 1, Turn.READY), (SHARED_SLICE_WORK, Turn.QUEUED)])
def test_who_has_turns_is_who_sends_what_costs_as_much_as_a_small_slice(bench: Bench, spent: int, turn: Turn) -> None:
    _, peer = bench.ready()
    for work in (SHARED_SLICE_WORK, SLICE_WORK):
        peer.link.measure(1, spent, work)
        assert peer.link.turn is turn


def test_a_run_for_many_that_do_not_read_is_read_in_smaller_pieces(bench: Bench) -> None:
    sock, peer = bench.ready()
    for number in range(2, 12):
        reader, _ = bench.ready()
        arguments = {"pattern": "t", "lane": 1, "credit": 0, "policy": "latest"}
        reader.sendall(encode_with_payload(pack(arguments), Kind.REQUEST, number, "bus/subscribe", 1, 10_000, None))
    bench.until(lambda: bench.broker.lane_count == 10)
    diary = Diary(bench)
    frame = encode_with_payload(bytes(100), Kind.PUBLISH, 1, "t", None)
    sock.sendall(frame * 1000)
    bench.until(lambda: peer.in_messages == 1000)
    assert diary.turns[0][1] > 2 * SLICE_WORK
    diary.turns.clear()
    sock.sendall(frame * 1000)
    bench.until(lambda: peer.in_messages == 2000)
    assert peer.in_messages == 2000
    assert max(spent for _, spent in diary.turns) < 2 * SLICE_WORK
    for _ in range(20):
        sock.sendall(encode(Kind.PING, 1, 1))
        bench.run(0.001)
    assert peer.link.read_bytes == READ_BYTES  # and what is cheap is read whole again


def subscribe(sock: socket.socket, peer: Peer, pattern: str, bench: Bench) -> None:
    arguments = pack({"pattern": pattern, "lane": 1, "credit": 1 << 30})
    sock.sendall(encode_with_payload(arguments, Kind.REQUEST, peer.id, "bus/subscribe", 1, 1000, None))
    bench.run()
    assert [frame.kind for frame in frames(sock)] == [Kind.REPLY]


@pytest.mark.parametrize("reads_itself", [False, True])
def test_what_was_sent_before_a_close_arrives_whoever_is_written_to(bench: Bench, reads_itself: bool) -> None:
    """W-1. A write to who has closed fails; what it had sent is more than a slice, and comes all the same."""
    reader, taker = bench.ready()
    subscribe(reader, taker, ">", bench)
    writer, peer = bench.ready()
    if reads_itself:
        subscribe(writer, peer, "a", bench)
    pair = b"".join(encode_with_payload(b"", Kind.PUBLISH, peer.id, topic, None) for topic in "ab")
    count = SLICE_WORK // 2  # each is a run of its own: several slices
    writer.sendall(pair * count)
    writer.close()
    for _ in range(100):
        bench.run()
        if peer.closed:
            break
    assert len([frame for frame in frames(reader) if frame.kind is Kind.PUBLISH]) == 2 * count
    offered, ends = bench.broker.books()
    assert offered == sum(ends.values()) == count * (3 if reads_itself else 2)
    assert ends["delivered"] == 2 * count
    assert ends["unknown"] + ends["evicted"] == (count if reads_itself else 0)


def test_who_only_reads_no_more_is_let_go(bench: Bench) -> None:
    """A write fails, and the connection is not closed: there is no end of file to wait for."""
    writer, peer = bench.ready()
    subscribe(writer, peer, "a", bench)
    writer.shutdown(socket.SHUT_RD)
    writer.sendall(encode_with_payload(b"", Kind.PUBLISH, peer.id, "a", None))
    bench.run()
    assert peer.closed
