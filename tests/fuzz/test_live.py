"""A real daemon whose other peers write mutated vectors, mutated frames and noise: those who did nothing wrong notice nothing."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Generator
from contextlib import closing

import msgpack

from ipcbus.protocol.addresses import TcpAddress, parse_address
from ipcbus.protocol.messages import Kind, encode_with_payload
from tests.conformance import vectors
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, wait_until
from tests.wire import Wire

from . import grammar
from .mutations import mutate

ROUNDS = 800
SEED = 1
NAME = "innocent.service"


class Innocents:
    """Two programs that talk to each other; everything is to arrive, in order, and once."""

    def __init__(self, address: str) -> None:
        self.one, self.other = Wire(address), Wire(address)
        for wire in (self.one, self.other):
            wire.hello("innocent")
        self.other.subscribe("innocent.>")
        self.other.call("own", name=NAME, mode="exclusive")
        self.other.call("serve", name=NAME, methods=["do"])
        self.number = 0

    def talk(self) -> None:
        """A message and a request; raises where either does not come."""
        self.number += 1
        mark = b"%d" % self.number
        self.one.publish("innocent.topic", mark)
        asked = self.one.request(f"{NAME}/do", mark)
        came: list[bytes] = []
        answered = False
        while not (came and answered):
            frame = self.other.receive()
            assert frame is not None, "the bus closed an innocent's connection"
            if frame.kind is Kind.PUBLISH:
                came.append(frame.payload)
            elif frame.kind is Kind.REQUEST:
                _, sender, _, number, *_ = frame.elements
                self.other.send(encode_with_payload(frame.payload, Kind.REPLY, self.other.peer, f":{sender}", number, None))
                answered = answered or (sender, number) == (self.one.peer, asked)
        assert came == [mark]
        while (frame := self.one.receive()) is not None and frame.kind is not Kind.REPLY:
            assert frame.kind is not Kind.ERROR, frame
        assert frame is not None
        assert (frame.elements[3], frame.payload) == (asked, mark)

    def close(self) -> None:
        self.one.sock.close()
        self.other.sock.close()


def _writes() -> list[bytes]:
    """What the vectors' peers write after HELLO."""
    found = []
    for case in vectors.load():
        for step in vectors.plain_steps(case):
            if "in" in step and step["in"] != vectors.HELLO:
                data = vectors.to_bytes(step["in"])
                if len(data) < 100_000:
                    found.append(data)
    return found


def _from(data: bytes, sender: int) -> bytes:
    """The frames of *data*, each whole one in the name of *sender*; the rest as it is."""
    frames, at = [], 0
    while at + 5 <= len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        try:
            elements = msgpack.unpackb(data[at + 5 : end], strict_map_key=False)
            carried = elements.pop() if elements[0] in (8, 9, 10, 11, 12, 13, 14, 15, 20) else None
            elements[1] = sender
            frames.append(grammar.framed(grammar.body(elements, carried)))
        except (ValueError, TypeError, LookupError, AttributeError, msgpack.UnpackException):
            break
        at = end
    return b"".join(frames) + data[at:]


def _attack(address: str, known: list[bytes], chance: random.Random) -> Wire:
    """One more peer, and what it writes; its connection stays open."""
    wire = Wire(address)
    wire.sock.settimeout(20.0)
    try:
        if not wire.tcp and chance.random() < 0.95:
            wire.hello("attacker")
        for _ in range(chance.choice((1, 2, 5))):
            if chance.random() < 0.5:
                data = _from(chance.choice(known), wire.peer)
            else:
                data = b"".join(grammar.frame(chance, wire.peer) for _ in range(chance.choice((1, 3, 10))))
            if chance.random() < 0.6:
                data = mutate(data, chance, grammar.WIRE_TOKENS, chance.choice(known))
            for at in range(0, len(data), size := chance.choice((7, 1000, 1 << 20))):
                wire.sock.sendall(data[at : at + size])
        if chance.random() < 0.3:
            wire.sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the bus closed it, as it may; or does not read it, because it is held
    return wire


def _descriptors(daemon: RunningDaemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def _together(known: list[bytes], daemon: RunningDaemon, chance: random.Random) -> Generator[list[Wire]]:
    """Up to six attackers at a time, of which most never read. Closes them at its end."""
    attackers: list[Wire] = []
    try:
        for _ in range(ROUNDS):
            attackers.append(_attack(chance.choice(daemon.addresses), known, chance))
            if len(attackers) > 6:
                attackers.pop(chance.randrange(len(attackers))).sock.close()
            yield attackers
    finally:
        for wire in attackers:
            wire.sock.close()


def test_mutated_vectors_harm_nobody_but_their_senders(daemon_factory: DaemonFactory, short_dir: os.PathLike[str]) -> None:
    # a peer that never reads may hold others for so long (L-7), which is not looked at here
    daemon = daemon_factory(listen=[f"unix:{short_dir}/bus.sock", "tcp:127.0.0.1:0"], config="[limits]\nlane_stall_s = 0.05\n")
    assert isinstance(parse_address(daemon.addresses[1]), TcpAddress)
    chance, known = random.Random(SEED), _writes()
    assert len(known) > 500
    innocents = Innocents(daemon.address)
    try:
        innocents.talk()
        before = _descriptors(daemon)
        with closing(_together(known, daemon, chance)) as rounds:  # also where one fails, or their sockets warn in a later test
            for _ in rounds:
                innocents.talk()
        wait_until(lambda: _descriptors(daemon) == before, "a descriptor of an attacker is left")
        innocents.talk()
        stats = innocents.one.call("stats")
        assert (stats["peers"], stats["lanes"], stats["names"], stats["requests"], stats["queued_bytes"]) == (2, 1, 1, 0, 0)
        assert stats["protocol_errors"] > ROUNDS / 10, "the attackers did nothing wrong"
    finally:
        innocents.close()
    assert daemon.process.poll() is None
    assert "fault of the bus" not in daemon.log()
