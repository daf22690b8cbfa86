"""Lost and Reconnected in a stream: at their place, without a trace in the arithmetic of credit, and bounded."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client._lanes import INBOX, Lane
from ipcbus_client._message import Message
from ipcbus_client._notices import Lost, Reconnected
from ipcbus_client._session import Session

INFO = {"software": "test", "max_frame_bytes": 100_000, "max_payload_bytes": 50_000}


def welcome(incarnation: bytes = b"i") -> bytes:
    return encode(Kind.WELCOME, 0, 1, [], 7, incarnation * 16, INFO)


def frames(session: Session) -> list[tuple[Any, ...]]:
    """The envelopes that wait to be written, taken out."""
    unpacker = msgpack.Unpacker(use_list=False)
    while session.outbox.unsent_bytes:
        chunk = bytes(session.outbox.chunk())
        unpacker.feed(chunk)
        session.outbox.wrote(len(chunk))
    return list(unpacker)[1::2]


def connected() -> Session:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(welcome())
    frames(session)
    return session


def subscribed(session: Session, **options: Any) -> Lane:
    lane = Lane(session.new_id(), "a.>", **{"window_bytes": 1000, "notices": True, **options})
    session.declarations.subscribe(lane)
    answer(session)
    return lane


def answer(session: Session) -> dict[str, Any]:
    """Accept the subscription that is in the outbox; returns its arguments."""
    (request,) = [frame for frame in frames(session) if frame[0] == Kind.REQUEST]
    session.receive(encode_with_payload(msgpack.packb({"retained": 0}), Kind.REPLY, 0, ":7", request[3], None))
    return dict(msgpack.unpackb(request[-1]))


def message(payload: bytes) -> bytes:
    return encode_with_payload(payload, Kind.PUBLISH, 9, "a.b", 1)


def lost(lane: Lane, count: int, why: str = "too_slow") -> bytes:
    about = msgpack.packb({"lane": lane.number, "count": count, "bytes": 10, "why": why})
    return encode_with_payload(about, Kind.NOTICE, 0, "lost", None)


def select(lane: Lane) -> bytes:
    return encode(Kind.LANE, 0, lane.number)


def reconnect(session: Session, incarnation: bytes = b"i") -> dict[str, Any]:
    session.lost("gone", again=True)
    session.opened()
    session.receive(welcome(incarnation))
    return answer(session)


def stream(lane: Lane) -> list[Any]:
    return [item.payload if isinstance(item, Message) else item for item in lane.messages]


def test_at_their_place() -> None:
    session = connected()
    lane = subscribed(session)
    told: list[int] = []
    lane.notify = lambda: told.append(len(lane.messages))
    session.receive(select(lane) + message(b"1") + message(b"2") + lost(lane, 5) + message(b"3"))
    assert stream(lane) == [b"1", b"2", Lost(5, "too_slow", "a.>"), b"3"]
    assert told == [2, 3, 4]
    reconnect(session)
    session.receive(select(lane) + message(b"4"))
    assert stream(lane)[4:] == [Reconnected(1, False, "a.>"), b"4"]
    reconnect(session, b"j")
    assert stream(lane)[6:] == [Reconnected(2, True, "a.>")]
    assert (lane.lost, lane.gaps, session.epoch) == (5, 2, 2)


def test_who_does_not_ask_meets_only_messages() -> None:
    session = connected()
    lane = subscribed(session, notices=False)
    session.receive(select(lane) + message(b"1") + lost(lane, 5))
    reconnect(session)
    assert stream(lane) == [b"1"]
    assert (lane.lost, lane.gaps) == (5, 1)


def test_without_a_message_between_them_they_are_one() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(lost(lane, 5) + lost(lane, 1, "expired"))
    for _ in range(3):
        reconnect(session, b"j")
        session.receive(lost(lane, 2))
    assert stream(lane) == [Lost(6, "expired", "a.>"), Reconnected(3, True, "a.>"), Lost(6, "too_slow", "a.>")]
    lane.messages.pop()
    session.receive(lost(lane, 7))
    assert stream(lane) == [Lost(6, "expired", "a.>"), Reconnected(3, True, "a.>"), Lost(7, "too_slow", "a.>")]
    lane.messages.clear()
    reconnect(session, b"j")
    session.receive(lost(lane, 1))
    assert stream(lane) == [Reconnected(4, False, "a.>"), Lost(1, "too_slow", "a.>")]


def granted(notices: bool, left: int) -> list[tuple[int, int]]:
    """At which message how many bytes were granted, to a consumer that always leaves *left* messages."""
    session = connected()
    lane = subscribed(session, notices=notices)
    size = len(message(b"x" * 80))
    grants = []
    for n in range(40):
        session.receive(select(lane) + (lost(lane, 1) if n % 3 else b"") + message(b"x" * 80) + (lost(lane, 1) if n % 2 else b""))
        while sum(isinstance(item, Message) for item in lane.messages) > left:
            lane.messages.popleft()
        session.grant(lane)
        grants += [(n, frame[3]) for frame in frames(session) if frame[0] == Kind.CREDIT]
    assert sum(count for _, count in grants) + lane.held_bytes == 40 * size
    lane.messages.clear()
    assert lane.restart()[0] == 1000
    assert lane.held_bytes == 0
    return grants


@pytest.mark.parametrize("left", [0, 1, 4])
def test_they_cost_no_bytes_of_credit(left: int) -> None:
    assert granted(True, left) == granted(False, left) != []


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_they_cost_no_messages_of_credit(prefetch: int) -> None:
    """In a group: what was granted and what is out add up to the prefetch, whatever stands between the messages."""
    session = connected()
    lane = subscribed(session, group="g", prefetch=prefetch)
    credit = prefetch
    for n in range(60):
        if credit:
            credit -= 1
            session.receive(select(lane) + message(b"m") + (lost(lane, 1) if n % 3 else b"") + (lost(lane, 1) if n % 4 else b""))
        if n == 30:
            credit = reconnect(session)["messages"]
        if lane.messages and n % 5:
            lane.messages.popleft()
            lane.handled()
        session.grant(lane, idle=True)
        credit += sum(frame[4] for frame in frames(session) if frame[0] == Kind.CREDIT)
        assert 0 <= credit <= prefetch
    while lane.messages:
        lane.messages.popleft()
        lane.handled()
        session.grant(lane, idle=True)
        credit += sum(frame[4] for frame in frames(session) if frame[0] == Kind.CREDIT)
    assert credit == prefetch


def test_the_inbox_has_them_too() -> None:
    session = connected()
    inbox = session.inbox = Lane(INBOX, "inbox", window_bytes=300, notices=True)
    direct = encode_with_payload(b"x" * 100, Kind.SEND, 9, "me", 1)
    session.receive(direct * 4)
    assert stream(inbox) == [b"x" * 100] * 2 + [Lost(2, "inbox_full", "inbox")]
    session.lost("gone", again=True)
    session.opened()
    session.receive(welcome())
    assert stream(inbox)[3:] == [Reconnected(1, False, "inbox")]
    inbox.messages.clear()
    session.receive(direct * 3)
    assert stream(inbox) == [b"x" * 100] * 2 + [Lost(1, "inbox_full", "inbox")]


def test_memory_is_bounded_by_the_messages() -> None:
    session = connected()
    lane = subscribed(session)
    for _ in range(1000):
        reconnect(session)
        session.receive(lost(lane, 1) + lost(lane, 1, "expired"))
    assert len(lane.messages) == 2
    assert len(lane._batches) == 0


def test_they_are_values() -> None:
    for notice in (Lost(1, "too_slow", "a"), Reconnected(1, False, "a")):
        with pytest.raises(AttributeError):
            notice.pattern = "b"  # type: ignore[misc]
        assert not isinstance(notice, Message)
