"""Heartbeats of the client's core, with the time in hand: who asks when, what counts as life, who may judge."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client import _names
from ipcbus_client._heartbeat import BUSY_S, IDLE_S, LEAST_S
from ipcbus_client._session import Session
from ipcbus_client._state import State

WELCOME = encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"software": "test"})


class Clock:
    """A connected session, and the time at its shell, which ticks when it was told to."""

    def __init__(self, heartbeat: float | None = None) -> None:
        self.session = Session(program="p", library="l", heartbeat=heartbeat)
        self.now = 1000.0
        self.unread = False
        self.asked_unread = 0
        self.open()

    def open(self) -> None:
        self.session.opened()
        self.session.receive(WELCOME)
        self.frames()
        self.due = self.tick()

    def tick(self) -> float | None:
        return self.session.tick(self.now, self._unread)

    def _unread(self) -> bool:
        self.asked_unread += 1
        return self.unread

    def run(self, seconds: float, late: float = 0.0) -> list[float]:
        """Tick whenever it is due until *seconds* have passed; returns after how many seconds there was a PING."""
        start, end = self.now, self.now + seconds
        pings = []
        while self.due is not None and self.due + late <= end + 1e-9 and self.session.hangup is None:
            self.now = self.due + late
            self.due = self.tick()
            pings += [round(self.now - start, 6) for frame in self.frames() if frame[0] == Kind.PING]
        self.now = end
        return pings

    def frames(self) -> list[tuple[Any, ...]]:
        unpacker = msgpack.Unpacker(use_list=False)
        while self.session.outbox.unsent_bytes:
            chunk = bytes(self.session.outbox.chunk())
            unpacker.feed(chunk)
            self.session.outbox.wrote(len(chunk))
        return list(unpacker)[1::2]

    def pong(self) -> None:
        (ping,) = [call for call in self.session.calls.values() if not call.to]
        self.session.receive(encode(Kind.PONG, 0, ping.id))


def test_idle_asks_rarely() -> None:
    clock = Clock()
    for _ in range(3):
        assert clock.run(IDLE_S - 0.001) == []
        assert clock.run(0.001) == [0.001]
        clock.pong()
        assert clock.run(BUSY_S) == []  # here the answer is seen, and 120 s begin anew
    assert clock.session.hangup is None


def test_a_request_in_flight_makes_it_ask_soon() -> None:
    clock = Clock()
    call = clock.session.request("a/b", 1, None, 60.0)
    clock.frames()
    assert clock.run(BUSY_S) == [BUSY_S]
    assert clock.run(BUSY_S - 0.001) == []
    assert clock.session.hangup is None
    clock.run(0.001)
    assert clock.session.hangup == "no sign of life from the bus for 20 s; is it stopped?"
    clock.session.lost(clock.session.hangup, again=True)
    assert call.done
    assert "no sign of life" in str(call.error)
    clock.open()
    assert clock.session.state is State.CONNECTED
    assert clock.run(IDLE_S - 0.001) == []
    assert clock.session.hangup is None


def publish(session: Session) -> None:
    session.outbox.publish("t", b"x", False, None)


def block(session: Session) -> None:
    session.outbox.put(encode(Kind.PING, 7, 1))
    session.outbox.chunk()
    session.outbox.wrote(1)


def declare(session: Session) -> None:
    session.declarations.own("me", "exclusive", False, False)


@pytest.mark.parametrize("await_something", [publish, block, declare, Session.ping])
def test_what_is_awaited(await_something: Any) -> None:
    clock = Clock()
    assert not clock.session.awaits()
    await_something(clock.session)
    assert clock.session.awaits()
    clock.now = clock.due or 0.0
    clock.due = clock.tick()
    clock.now += BUSY_S
    clock.tick()
    assert clock.session.hangup is not None


def test_its_answer_confirms_what_was_published() -> None:
    clock = Clock()
    publish(clock.session)
    clock.frames()
    assert clock.session.outbox.undelivered().unknown == 1
    assert clock.run(BUSY_S) == [BUSY_S]
    clock.pong()
    assert clock.session.outbox.undelivered().unknown == 0
    assert not clock.session.awaits()
    assert clock.run(BUSY_S + IDLE_S - 0.001) == []


def test_whatever_comes_is_life() -> None:
    clock = Clock()
    clock.session.request("a/b", 1, None, 1000.0)
    for _ in range(20):
        clock.run(BUSY_S)
        clock.session.receive(encode_with_payload(b"x", Kind.PUBLISH, 9, "nobody", 1))
    assert clock.session.hangup is None


def test_what_waits_in_the_socket_is_life() -> None:
    clock = Clock()
    clock.session.request("a/b", 1, None, 1000.0)
    clock.unread = True
    clock.run(20 * BUSY_S)
    assert clock.session.hangup is None
    clock.unread = False
    clock.run(2 * BUSY_S)
    assert clock.session.hangup is not None


@pytest.mark.parametrize("late", [0.5, 0.50001])
def test_who_was_away_does_not_judge(late: float) -> None:
    """A program that was stopped with its PING out sees a tick that is much too late: the bus has had no fair chance."""
    clock = Clock(2.0)
    clock.session.request("a/b", 1, None, 1000.0)
    assert clock.run(2.0) == [2.0]
    clock.run(2.0 + late * 2.0, late * 2.0)
    assert (clock.session.hangup is None) is (late > 0.5)
    if late > 0.5:
        assert clock.run(2.0) == [2.0]
        clock.run(2.0)
        assert clock.session.hangup is not None


def test_ticks_in_between_change_nothing() -> None:
    clock = Clock()
    clock.session.request("a/b", 1, None, 1000.0)
    for _ in range(1000):
        clock.now += 0.0199
        assert clock.tick() == clock.due or clock.now >= (clock.due or 0.0)
        clock.due = clock.tick()
    assert clock.session.hangup is None
    clock.run(1.0)
    assert clock.session.hangup is not None


def test_a_number_is_for_both() -> None:
    clock = Clock(0.5)
    for _ in range(3):
        assert clock.run(0.5) == [0.5]
        clock.pong()
        assert clock.run(0.5) == []
    clock.run(1.0)
    assert clock.session.hangup == "no sign of life from the bus for 1 s; is it stopped?"


def test_none_at_all() -> None:
    clock = Clock(0)
    clock.session.request("a/b", 1, None, 1000.0)
    assert clock.due is None
    assert clock.frames() != []
    clock.now += 1e6
    assert clock.tick() is None
    assert clock.frames() == []


@pytest.mark.parametrize("heartbeat", [None, 0, 0.0, LEAST_S, 1, _names.WAIT_MAX_S])
def test_heartbeats_that_may_be(heartbeat: float | None) -> None:
    _names.check_heartbeat(heartbeat)


@pytest.mark.parametrize("heartbeat", [-1, LEAST_S * 0.99, _names.WAIT_MAX_S * 1.01, float("inf"), float("nan")])
def test_heartbeats_that_may_not(heartbeat: float) -> None:
    with pytest.raises(ValueError, match="heartbeat"):
        _names.check_heartbeat(heartbeat)
