"""The attacks, each a process of its own with raw sockets: ``python -m tests.survival.attacks NAME ADDRESS``.

An attack says "attacking" when it is under way, goes on until its stdin ends, and then says what it did. It runs with a low priority, so
that the figures tell what the bus does with it and not how the kernel shares two cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from tests.survival.attacking import CREDIT, MIB, answers, hello, publications, requests, say, send, subscribe_all, until_over
from tests.survival.effort import all_at_once, dear_frames
from tests.wire import Wire

_PR_SET_PDEATHSIG = 1  #: linux/prctl.h: a child ends with its parent


# --- connections ------------------------------------------------------------------------------------------------------------------------


def descriptors(address: str) -> dict[str, int]:
    """Connections until there are no more, and on."""
    path = address.removeprefix("unix:")
    held: list[socket.socket] = []
    refused = 0

    def one_more() -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(0.5)
        try:
            sock.connect(path)
            sock.send(encode(Kind.HELLO, 0, 1, 1, [], {"program": "attacker"}, None))
            good = sock.recv(6)[5:] != b""
            good = good and sock.recv(1)[0] == Kind.WELCOME
        except (OSError, IndexError):
            good = False
        if good:
            held.append(sock)
        else:
            sock.close()
        return good

    while one_more():
        pass
    for _ in until_over():
        refused += not one_more()
        time.sleep(0.005)
    return {"held": len(held), "refused": refused}


def storm(address: str) -> dict[str, int]:
    """Connections that come and go as fast as the kernel makes them."""
    path = address.removeprefix("unix:")
    greeting = encode(Kind.HELLO, 0, 1, 1, [], {"program": "attacker"}, None)
    connected = failed = 0
    for number in until_over():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.2)
            try:
                sock.connect(path)
                if number % 2:
                    sock.send(greeting)
                connected += 1
            except OSError:
                failed += 1
    return {"connected": connected, "failed": failed}


def half_open(address: str) -> dict[str, int]:
    """Many connections that never finish their HELLO, and send a byte of it now and then. Who is let go comes again."""
    greeting = encode(Kind.HELLO, 0, 1, 1, [], {"program": "x" * 100}, None)[:-1]
    path = address.removeprefix("unix:")

    def begin() -> tuple[socket.socket, Iterator[int]]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(0.5)
        sock.connect(path)
        return sock, iter(greeting)

    open_ones = [begin() for _ in range(200)]
    sent = closed = 0
    for number in until_over():
        sock, rest = open_ones[number % len(open_ones)]
        try:
            sent += sock.send(bytes(itertools.islice(rest, 1)))
        except OSError:
            closed += 1
            sock.close()
            open_ones[number % len(open_ones)] = begin()
        time.sleep(0.001)
    return {"connections": len(open_ones), "bytes": sent, "closed": closed}


# --- bytes ------------------------------------------------------------------------------------------------------------------------------


def byte_by_byte(address: str) -> dict[str, int]:
    """A frame of 16 MiB, a byte at a time."""
    wire = hello(address)
    frame = encode_with_payload(bytes(16 * MIB - 100), Kind.PUBLISH, wire.peer, "attack.huge", 1)
    wire.send(frame[: 8 * MIB])
    sent = 0
    for number in until_over():
        if not send(wire, frame[8 * MIB + number : 8 * MIB + number + 1]):
            break
        sent += 1
    return {"writes": sent}


def small_of_big(address: str) -> dict[str, int]:
    """Small messages for who does not read, each in a big read of others for nobody."""
    stuck = hello(address, "stuck")
    stuck.subscribe("attack.small", credit=CREDIT)
    wire = hello(address)
    small = encode_with_payload(bytes(1500), Kind.PUBLISH, wire.peer, "attack.small", 1)
    big = encode_with_payload(bytes(60_000), Kind.PUBLISH, wire.peer, "attack.nobody", 1)
    sent = 0
    for _ in until_over():
        if not send(wire, (big + small) * 4):
            break
        sent += 4
    return {"small": sent}


def argument_bombs(address: str) -> dict[str, int]:
    """Arguments of the bus's methods that are small on the wire and large in memory, deep, or of the wrong kind."""
    wire = hello(address)
    megabyte = MIB - 100
    payloads = [
        b"\xdd" + megabyte.to_bytes(4, "big") + b"\x80" * megabyte,
        b"\x91" * megabyte,
        b"\xdf" + (megabyte // 2).to_bytes(4, "big") + b"\x00\xc0" * (megabyte // 2),
        b"\xdd\xff\xff\xff\xff",
        pack({"x": [[]] * 60_000}),
    ]
    bombs = [encode_with_payload(payload, Kind.REQUEST, wire.peer, "bus/ping", 1, 60_000, None) for payload in payloads]
    sent = 0
    for number in until_over():
        if not (send(wire, bombs[number % len(bombs)]) and answers(wire, 1)):
            break
        sent += 1
    return {"bombs": sent}


# --- subscriptions ----------------------------------------------------------------------------------------------------------------------


def churn(address: str) -> dict[str, int]:
    """Subscriptions that come and go, half of them with wildcards, while somebody publishes to many topics."""
    wire = hello(address)
    calls: list[tuple[str, dict[str, Any]]] = []
    for lane in range(1, 101):
        pattern = f"attack.{lane}.*" if lane % 2 else f"attack.{lane}"
        calls += [("subscribe", {"pattern": pattern, "lane": lane, "credit": 1000}), ("unsubscribe", {"lane": lane})]
    changes = 0
    for _ in until_over():
        if not (send(wire, requests(wire, *calls)) and answers(wire, len(calls))):
            break
        changes += len(calls)
    return {"changes": changes}


def wildcard_bomb(address: str) -> dict[str, int]:
    """A peer with as many subscriptions to every topic as are allowed, that reads, and a publisher that makes use of them."""
    patterns = [f"attack.{'*.' * (number % 5)}>" for number in range(900)]
    bomb = hello(address, "bomb")
    subscribe_all(bomb, patterns)
    wire = hello(address)
    blob = publications(wire, [f"attack.a.b.c.d.e.f{number}" for number in range(20)], b"x", 1)
    delivered = 0
    ended = threading.Event()

    def read() -> None:
        nonlocal delivered
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                if not (data := bomb.sock.recv(1 << 18)):
                    return
                delivered += len(data)

    reader = threading.Thread(target=read)
    reader.start()
    sent = 0
    for _ in until_over():
        if not send(wire, blob):
            break
        sent += 20
    ended.set()
    reader.join()
    return {"messages": sent, "delivered_bytes": delivered}


def too_many_matches(address: str) -> dict[str, int]:
    """More subscriptions to one message than are allowed, again and again."""
    closed = 0
    wire = hello(address)
    for _ in until_over():
        bomb = hello(address, "bomb")
        subscribe_all(bomb, ["attack.>"] * 1001, credit=1000)
        wire.publish("attack.x", b"x")
        wire.ping()
        bomb.sock.settimeout(20)
        frame = bomb.receive()
        while frame is not None and frame.kind is not Kind.BYE:
            frame = bomb.receive()
        closed += frame is not None
        bomb.sock.close()
    return {"closed": closed}


def many_subscriptions(address: str) -> dict[str, int]:
    """One peer with 100 000 subscriptions, each tenth with a wildcard; then it goes and does it again."""
    patterns = [f"attack.{number}.x" if number % 10 else f"attack.{number}.*" for number in range(100_000)]
    wire = hello(address)
    subscribe_all(wire, patterns, 1, 0)
    made, at = len(patterns), len(patterns)
    for _ in until_over():
        if at == len(patterns):
            wire.sock.close()
            wire = hello(address)
            at = 0
        subscribe_all(wire, patterns[at : at + 500], at + 1, 0)
        at += 500
        made += 500
    return {"subscriptions": made}


# --- traffic ----------------------------------------------------------------------------------------------------------------------------


def stuck_readers(address: str) -> dict[str, int]:
    """Fifty who never read what they asked for, and lose it by their policies, and a publisher at full speed. Some of them asked for what
    the witness publishes."""
    stuck = [hello(address, "stuck") for _ in range(50)]
    for number, each in enumerate(stuck):
        pattern = "witness.>" if number % 10 == 0 else "attack.>"
        policy = ("drop_oldest", "drop_newest", "latest")[number % 3]
        each.call("subscribe", pattern=pattern, lane=1, credit=CREDIT if number % 2 else 1000, policy=policy)
    return flood(address, "attack.stuck")


def blocking_readers(address: str) -> dict[str, int]:
    """Twenty who never read, and hold their publisher, which goes on at full speed; one with the policy to be closed."""
    stuck = [hello(address, "stuck") for _ in range(21)]
    for number, each in enumerate(stuck):
        policy = "block" if number else "disconnect"
        each.call("subscribe", pattern="attack.>", lane=1, credit=CREDIT if number % 2 else 1000, policy=policy)
    return flood(address, "attack.stuck")


def nobody(address: str) -> dict[str, int]:
    """A publisher at full speed to nobody."""
    return flood(address, "attack.nobody")


def flood(address: str, topic: str) -> dict[str, int]:
    wire = hello(address)
    blob = publications(wire, [topic], bytes(100), MIB)
    count = blob.count(topic.encode())
    sent = 0
    for _ in until_over():
        if not send(wire, blob):
            break
        sent += count
    return {"messages": sent}


def many_topics(address: str) -> dict[str, int]:
    """A publisher to ever new topics, to nobody."""
    wire = hello(address)
    sent = 0
    for number in until_over():
        if not send(wire, publications(wire, [f"attack.{number}.{at}" for at in range(1000)], b"", 1)):
            break
        sent += 1000
    return {"messages": sent}


def unread_answers(address: str) -> dict[str, int]:
    """Questions to the bus without end, whose answers are never read: until it is closed, and again."""
    asked = closed = 0
    wire = hello(address)
    for number in until_over():
        what = requests(wire, *[("stats", {})] * 500) if number % 2 else encode(Kind.PING, wire.peer, 1) * 10_000
        if not send(wire, what):
            wire.sock.close()
            closed += 1
            wire = hello(address)
        asked += 1
    return {"blobs": asked, "closed": closed}


def long_lists(address: str) -> dict[str, int]:
    """The longest lists there are, one after the other."""
    wire = hello(address)
    for start in range(0, 20_000, 1000):
        assert send(wire, publications(wire, [f"attack.list.{start + at}" for at in range(1000)], b"", 1))
    calls: list[tuple[str, dict[str, Any]]] = [("topics", {}), ("peers", {}), ("names", {}), ("stats", {}), ("introspect", {})]
    asked = 0
    for _ in until_over():
        if not (send(wire, requests(wire, *calls)) and answers(wire, len(calls))):
            break
        asked += len(calls)
    return {"lists": asked}


class StoppedMember:
    """A member of a group in a process of its own, which is stopped by a signal until it may go on."""

    def __init__(self, address: str) -> None:
        self._reader, writer = os.pipe()
        self._data = b""
        self.pid = os.fork()
        if not self.pid:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                self._work(join_group(address, "stopped"), writer)
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(self._reader, 4) == bytes(4)
        os.set_blocking(self._reader, False)
        os.kill(self.pid, signal.SIGSTOP)

    @staticmethod
    def _work(wire: Wire, writer: int) -> None:
        wire.sock.settimeout(None)
        os.write(writer, bytes(4))
        while (frame := wire.receive()) is not None:
            if frame.kind is Kind.PUBLISH:
                os.write(writer, int(frame.payload).to_bytes(4, "big"))
                wire.send(encode(Kind.CREDIT, wire.peer, 1, 60, 1))

    def taken(self) -> list[int]:
        """What it has worked for so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, 65536):
                self._data += data
        return [int.from_bytes(self._data[at : at + 4], "big") for at in range(0, len(self._data) // 4 * 4, 4)]

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def join_group(address: str, program: str) -> Wire:
    wire = hello(address, program)
    wire.call("subscribe", pattern="attack.work", lane=1, credit=CREDIT, messages=20, group="workers")
    return wire


def group_with_one_stopped(address: str) -> dict[str, Any]:
    """Three members of a group, one of them stopped (SIGSTOP): the others get the rest, and it its own when it goes on."""
    stopped = StoppedMember(address)
    members = [join_group(address, f"member {number}") for number in range(2)]
    publisher = hello(address)
    taken: list[list[int]] = [[], []]

    def work() -> None:
        """Take what is there, and give the credit back."""
        for wire, mine in zip(members, taken, strict=True):
            wire.sock.settimeout(0.002)
            with contextlib.suppress(TimeoutError):
                while (frame := wire.receive()) is not None:
                    if frame.kind is Kind.PUBLISH:
                        mine.append(int(frame.payload))
                        wire.send(encode(Kind.CREDIT, wire.peer, 1, 60, 1))

    sent = 0
    for _ in until_over():
        for _ in range(50):
            publisher.publish("attack.work", b"%d" % sent)
            sent += 1
        work()
    deadline = time.monotonic() + 30
    while sum(map(len, taken)) < sent - 20 and time.monotonic() < deadline:
        work()
    others = sum(map(len, taken))
    meanwhile = len(stopped.taken())
    os.kill(stopped.pid, signal.SIGCONT)
    while others + len(stopped.taken()) < sent and time.monotonic() < deadline:
        work()
        others = sum(map(len, taken))
    taken.append(stopped.taken())
    stopped.end()
    return {
        "sent": sent,
        "whole": sorted(itertools.chain(*taken)) == list(range(sent)),
        "in_order": all(each == sorted(each) for each in taken),
        "meanwhile": meanwhile,
        "stopped": len(taken[2]),
    }


ATTACKS: dict[str, Callable[[str], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        descriptors, storm, half_open, byte_by_byte, small_of_big, argument_bombs, churn, wildcard_bomb, too_many_matches,
        many_subscriptions, stuck_readers, blocking_readers, nobody, many_topics, unread_answers, long_lists, dear_frames, all_at_once,
        group_with_one_stopped,
    )
}  # fmt: skip


def main() -> None:
    name, address = sys.argv[1:]
    os.nice(10)
    say(ATTACKS[name](address))


if __name__ == "__main__":
    main()
