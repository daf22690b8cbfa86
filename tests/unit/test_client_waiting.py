"""What waits for a connection: its limits and policies, and the count of what may not have arrived."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client import OutboxFull, Undelivered
from ipcbus_client._lanes import Lane
from ipcbus_client._outbox import Outbox
from ipcbus_client._session import Session
from ipcbus_client._waiting import Item, Waiting

WELCOME = encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"max_payload_bytes": 50_000})
EACH = 64 + 1 + 10  #: bytes that item() counts


def item(n: int, size: int = 10) -> Item:
    return Kind.PUBLISH, "t", 1, bytes([n]) * size


def numbers(waiting: Waiting) -> list[int]:
    return [entry[3][0] for entry in waiting.items]


def filled(policy: str, count: int, **limits: int) -> Waiting:
    waiting = Waiting(policy, **limits)
    for n in range(count):
        waiting.add(item(n))
    return waiting


def take_back(waiting: Waiting, items: list[Item]) -> None:
    """Have *items* be what a connection that ends had not handed to the kernel."""
    outbox = Outbox(waiting)
    outbox.peer = 7
    for _, topic, _, payload in items:
        outbox.publish(topic, payload, False, None)
    outbox.lost()


LIMITS = [{"max_messages": 3}, {"max_bytes": 3 * EACH}, {"max_bytes": 4 * EACH - 1}]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(
    ("policy", "left", "dropped"), [("drop_oldest", [1, 2, 3], 1), ("drop_newest", [0, 1, 2], 1), ("block", None, 0), ("raise", None, 0)]
)
def test_each_policy_below_at_and_above_each_limit(limits: dict[str, int], policy: str, left: list[int] | None, dropped: int) -> None:
    for count in (2, 3):
        waiting = filled(policy, count, **limits)
        assert (numbers(waiting), waiting.dropped, waiting.bytes) == (list(range(count)), 0, count * EACH)
    if left is None:
        with pytest.raises(OutboxFull, match="3 messages of 225 bytes") as caught:
            waiting.add(item(3))
        assert (caught.value.who, caught.value.what) == ("t", "publish")
        assert isinstance(caught.value, BufferError)
        assert numbers(waiting) == [0, 1, 2]
    else:
        waiting.add(item(3))
        assert numbers(waiting) == left
    assert (waiting.dropped, waiting.bytes) == (dropped, 3 * EACH)


def test_one_message_that_is_larger_than_all_of_it_does_not_push_the_others_out() -> None:
    waiting = filled("drop_oldest", 2, max_bytes=3 * EACH)
    waiting.add(item(9, 10_000))
    assert (numbers(waiting), waiting.dropped) == ([0, 1], 1)
    waiting.add(item(9, 2 * EACH - 64))  # takes the place of both
    assert (numbers(waiting), waiting.dropped) == ([9], 3)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_an_outbox_for_nothing(policy: str) -> None:
    waiting = filled(policy, 3, max_messages=0)
    assert (numbers(waiting), waiting.dropped, waiting.bytes) == ([], 3, 0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"policy": "wait"}, ValueError, "outbox='wait': allowed are block, drop_oldest, drop_newest, raise"),
        ({"policy": None}, ValueError, "outbox=None"),
        ({"max_bytes": -1}, ValueError, "outbox_bytes=-1"),
        ({"max_messages": -1}, ValueError, "outbox_messages=-1"),
        ({"max_messages": 1.5}, TypeError, "outbox_messages=1.5"),
        ({"max_bytes": "8 MiB"}, TypeError, "outbox_bytes='8 MiB'"),
        ({"max_bytes": True}, TypeError, "outbox_bytes=True"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Waiting(**options)


@pytest.mark.parametrize(
    ("policy", "left", "dropped"),
    [
        ("block", [5, 6, 7, 0, 1, 2], 0),
        ("raise", [5, 6, 7, 0, 1, 2], 0),
        ("drop_oldest", [7, 0, 1, 2], 2),
        ("drop_newest", [5, 6, 7, 0], 2),
    ],
)
def test_what_is_taken_back_is_older_and_goes_by_the_policy(policy: str, left: list[int], dropped: int) -> None:
    waiting = filled(policy, 3, max_messages=4)
    take_back(waiting, [item(5), item(6), item(7)])
    assert (numbers(waiting), waiting.dropped, waiting.bytes) == (left, dropped, len(left) * EACH)
    if not dropped:  # nothing more until it is below its limit
        with pytest.raises(OutboxFull):
            waiting.add(item(8))
    assert waiting.discard() == len(left)
    assert (len(waiting), waiting.bytes, waiting.discarded) == (0, 0, len(left))


def test_headers_count() -> None:
    waiting = Waiting()
    waiting.add((Kind.PUBLISH, "t", {"key": "v" * 1000, "n": 5}, b""))
    assert waiting.bytes > 64 + 1 + 1000


def session_with(waiting: Waiting) -> Session:
    return Session(program="p", library="l", waiting=waiting)


def test_dropping_is_logged_once_for_each_time_without_a_connection() -> None:
    session = session_with(Waiting("drop_newest", max_messages=1))
    for n in range(5):
        session.outbox.publish("t", n, False, None)
    (full,) = session.remarks
    for word in ("full", "newest", "outbox='drop_newest'", "outbox_messages=1", "outbox_bytes="):
        assert word in full.text
    assert session.stats()["outbox_dropped"] == 4
    session.remarks.clear()
    session.opened()
    session.receive(WELCOME)
    write(session)
    session.lost("cut", again=True)
    session.outbox.publish("t", 1, False, None)
    session.remarks.clear()
    session.outbox.publish("t", 2, False, None)
    session.outbox.publish("t", 3, False, None)
    assert len(session.remarks) == 1
    session.opened()
    session.receive(WELCOME)
    assert "1 messages were sent before and not confirmed" in session.remarks[-1].text
    assert "2 messages were dropped from the full outbox" in session.remarks[-1].text
    assert session.undelivered() == Undelivered(4 + 2 + 1, 1)  # dropped, dropped, and one that is not written yet


# --- the count of what may not have arrived ---


def test_undelivered_is_false_when_all_arrived() -> None:
    assert not Undelivered(0, 0)
    assert Undelivered(1, 0)
    assert Undelivered(0, 1)


def connected(**options: Any) -> Session:
    session = session_with(Waiting(**options))
    session.opened()
    session.receive(WELCOME)
    write(session)
    return session


def write(session: Session) -> None:
    while session.outbox.begin():
        session.outbox.wrote(len(session.outbox.chunk()))


def test_only_a_fence_confirms() -> None:
    session = connected()
    for n in range(3):
        session.outbox.publish("t", n, n == 1, None)
    session.outbox.send("n", b"x", {"h": 1})
    assert session.undelivered() == (4, 0)
    write(session)
    assert session.undelivered() == (0, 4)
    call = session.ping()
    session.outbox.publish("t", 5, False, None)
    write(session)
    assert session.undelivered() == (0, 5)
    session.receive(encode(Kind.PONG, 0, call.id))
    assert session.undelivered() == (0, 1)
    assert (session.stats()["unsent"], session.stats()["unknown"]) == (0, 1)
    session.lost("cut", again=True)
    assert session.undelivered() == (0, 1)
    session.outbox.publish("t", 6, False, None)
    session.opened()
    session.receive(WELCOME)
    assert "1 messages were sent before and not confirmed" in session.remarks[-1].text
    assert session.undelivered() == (1, 1)
    write(session)
    session.receive(encode(Kind.PONG, 0, call.id))
    assert session.undelivered() == (0, 2)


@pytest.mark.parametrize("headers", [None, {"h": 1}])
def test_an_answer_of_the_bus_itself_confirms_and_a_services_does_not(headers: Any) -> None:
    session = connected()
    session.outbox.publish("t", 1, False, None)
    service = session.request("svc/do", b"x", headers, 5.0)
    bus = session.request("bus/stats", {}, headers, 5.0)
    write(session)
    session.receive(encode_with_payload(b"\x01", Kind.REPLY, 9, ":7", service.id, None))
    assert session.undelivered() == (0, 1)
    session.receive(encode_with_payload(b"\x01", Kind.REPLY, 0, ":7", bus.id, None))
    assert bus.result() == 1
    assert session.undelivered() == (0, 0)


def test_an_answered_declaration_confirms_too() -> None:
    session = connected()
    session.outbox.publish("t", 1, False, None)
    session.declarations.subscribe(Lane(session.new_id(), "t", window_bytes=100))
    write(session)
    (call,) = session.calls.values()
    session.receive(encode_with_payload(b"\x80", Kind.REPLY, 0, ":7", call.id, None))
    assert session.undelivered() == (0, 0)


def test_a_fence_of_a_lost_connection_confirms_nothing_of_the_next() -> None:
    outbox = Outbox()
    outbox.opened(7, 1000)
    for n in range(5):
        outbox.publish("t", n, False, None)
    mark = outbox.mark()
    outbox.lost()
    assert outbox.undelivered() == (5, 0)
    outbox.opened(8, 1000)
    outbox.wrote(len(outbox.chunk()))
    outbox.confirm(mark)
    assert outbox.undelivered() == (0, 5)


@pytest.mark.parametrize("seed", range(30))
def test_the_count_is_exact_wherever_the_connection_ends(seed: int) -> None:
    """Whatever is put in and however it is written: what a model that reads the written bytes knows is what the outbox says."""
    chance = random.Random(seed)
    session = connected()
    outbox = session.outbox
    unknown = 0
    begun_before: list[int] = []  #: for each fence in flight, messages before it

    for _ in range(chance.randint(5, 40)):
        what = chance.random()
        if what < 0.4:
            outbox.publish("t", bytes(chance.randint(0, 300)), chance.random() < 0.3, None if chance.random() < 0.7 else {"h": 1})
        elif what < 0.5:
            session.request("svc/do", bytes(10), None if chance.random() < 0.5 else {"h": 1}, 5.0)
        elif what < 0.6:
            begun_before.append(session.ping().id)
        elif what < 0.95:
            chunk = outbox.chunk()
            outbox.wrote(chance.randint(0, len(chunk)) if chance.random() < 0.7 else len(chunk))
        elif not outbox.blocked and not outbox.out and begun_before:
            session.receive(encode(Kind.PONG, 0, begun_before.pop()))
            begun_before.clear()
    before = outbox.undelivered()
    session.lost("cut", again=True)
    after = outbox.undelivered()
    assert after == before  # what is not in the kernel waits, what is there is unknown, and each is one of the two
    assert after.unsent == len(outbox.waiting)
    unknown += after.unknown
    session.opened()
    session.receive(WELCOME)
    write(session)
    assert outbox.undelivered() == (0, unknown + after.unsent)
