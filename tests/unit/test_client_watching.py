"""The state of a watch, from streams by hand; and how its lane begins anew in a session."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client import _watching
from ipcbus_client._lanes import Lane
from ipcbus_client._message import Message
from ipcbus_client._notices import Lost, Reconnected, Snapshot
from ipcbus_client._owners import names_query, owner_in, owner_told
from ipcbus_client._session import Session
from ipcbus_client._watching import Watching

WELCOME = encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"software": "test"})


def kept(topic: str, payload: bytes, sender: int = 9) -> Message:
    return Message((Kind.RETAIN.value, sender, topic, 1, payload))


def changes(watching: Watching) -> list[tuple[str, Any, str]]:
    """Topic, value, and how it is marked."""
    found = [(one.topic, one.data, "removed" if one.removed else "initial" if one.initial else "") for one in watching.changes]
    watching.changes.clear()
    return found


def watched(*items: Any, epoch: int = 0) -> Watching:
    watching = Watching(epoch)
    for item in items:
        watching.take(item)
    return watching


@pytest.mark.parametrize("answer_at", [0, 1, 2])
def test_it_is_complete_when_all_that_is_kept_came(answer_at: int) -> None:
    """The answer comes after, between or (where the window is small) before what it counts."""
    items: list[Any] = [kept("a", b"1"), kept("b", b"2")]
    items.insert(answer_at, Snapshot(0, 2))
    watching = Watching(0)
    for item in items:
        assert not watching.complete
        watching.take(item)
    assert watching.complete
    assert changes(watching) == [("a", b"1", "initial"), ("b", b"2", "initial")]
    watching.take(kept("a", b"1"))
    assert changes(watching) == [("a", b"1", "")]  # published again: that is told


def test_nothing_kept_is_complete_at_the_answer() -> None:
    assert watched(Snapshot(0, 0)).complete


def test_only_what_is_kept_counts() -> None:
    watching = watched(Snapshot(0, 0), Message((Kind.PUBLISH.value, 9, "a", 1, b"x")), kept("b", b""))
    assert (changes(watching), watching.state) == ([], {})


def test_after_a_reconnect_the_difference() -> None:
    watching = watched(*(kept(topic, b"1") for topic in "abc"), Snapshot(0, 3))
    changes(watching)
    watching.take(Reconnected(1, True, ">"))
    for item in (kept("c", b"1", sender=5), kept("d", b"4"), kept("a", b"5")):
        watching.take(item)
    assert changes(watching) == [("d", b"4", ""), ("a", b"5", "")]
    assert set(watching.state) == {"a", "b", "c", "d"}
    watching.take(Snapshot(1, 3))
    assert changes(watching) == [("b", None, "removed")]
    assert watching.state["c"].sender == 5
    watching.take(kept("b", b"6"))
    assert changes(watching) == [("b", b"6", "")]


def test_the_answer_of_an_earlier_connection_means_nothing() -> None:
    watching = watched(kept("a", b"1"), Snapshot(0, 1), Reconnected(2, False, ">"), Snapshot(1, 0))
    assert set(watching.state) == {"a"}
    watching.take(Snapshot(2, 0))
    assert watching.state == {}


def test_a_loss_makes_it_uncertain_until_it_begins_anew() -> None:
    watching = watched(kept("a", b"1"), Snapshot(0, 1))
    watching.take(Lost(3, "too_slow", ">"))
    assert watching.uncertain
    watching.begin(0)
    assert not watching.uncertain
    changes(watching)
    watching.take(kept("b", b"2"))
    watching.take(Snapshot(0, 1))
    assert changes(watching) == [("b", b"2", ""), ("a", None, "removed")]


def test_a_removal_among_what_came_meanwhile() -> None:
    watching = watched(kept("a", b"1"), Snapshot(0, 1))
    changes(watching)
    watching.take(kept("a", b""))
    watching.take(kept("a", b""))
    assert (changes(watching), watching.state) == ([("a", None, "removed")], {})


def test_a_state_that_outgrows_what_is_kept_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "_SPARE_TOPICS", 10)
    for topics in (13, 14, 15):  # kept at the beginning: 2; so 2 * 2 + 10 may be
        watching = watched(kept("a", b"1"), kept("b", b"2"), Snapshot(0, 2))
        for n in range(topics - 2):
            assert not watching.uncertain
            watching.take(kept(f"t.{n}", b"x"))
        assert watching.uncertain is (topics > 14)


def test_a_state_that_outgrows_it_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "_SPARE_BYTES", 10_000)
    watching = watched(Snapshot(0, 0))
    for _ in range(1000):
        watching.take(kept("a", bytes(500)))  # changes, but no more state
    assert not watching.uncertain
    for n in range(100):
        watching.take(kept(f"t.{n}", bytes(500)))
    assert watching.uncertain


# --- in a session ---


def frames(session: Session) -> list[tuple[Any, ...]]:
    unpacker = msgpack.Unpacker(use_list=False)
    while session.outbox.unsent_bytes:
        chunk = bytes(session.outbox.chunk())
        unpacker.feed(chunk)
        session.outbox.wrote(len(chunk))
    return list(unpacker)[1::2]


def reply(frame: tuple[Any, ...], value: Any) -> bytes:
    return encode_with_payload(msgpack.packb(value), Kind.REPLY, 0, ":7", frame[3], None)


def session_with_lane() -> tuple[Session, Lane]:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(WELCOME)
    frames(session)
    lane = Lane(session.new_id(), "a.>", window_bytes=1000, notices=True)
    lane.snapshots = True
    session.declarations.subscribe(lane)
    (subscribe,) = frames(session)
    session.receive(encode(Kind.LANE, 0, lane.number) + message("a.b") + reply(subscribe, {"retained": 1}))
    return session, lane


def message(topic: str) -> bytes:
    return encode_with_payload(b"x" * 100, Kind.RETAIN, 9, topic, 1)


def test_the_answer_stands_in_the_stream() -> None:
    session, lane = session_with_lane()
    assert [isinstance(item, Message) for item in lane.messages] == [True, False]
    assert lane.messages[1] == Snapshot(0, 1)  # type: ignore[comparison-overlap]
    for epoch in range(1, 100):
        session.lost("gone", again=True)
        session.opened()
        session.receive(WELCOME)
        (subscribe,) = [frame for frame in frames(session) if frame[0] == Kind.REQUEST]
        session.receive(reply(subscribe, {"retained": epoch}))
    assert list(lane.messages)[1:] == [Snapshot(0, 1), Reconnected(99, False, "a.>"), Snapshot(99, 99)]


def test_a_lane_begins_anew() -> None:
    session, lane = session_with_lane()
    old = lane.number
    session.declarations.subscribe_anew(lane)
    unsubscribe, subscribe = frames(session)
    assert (unsubscribe[2], msgpack.unpackb(unsubscribe[-1])) == ("bus/unsubscribe", {"lane": old})
    about = msgpack.unpackb(subscribe[-1])
    assert (about["lane"], about["credit"], about["retained"]) == (lane.number, 1000, True)
    assert lane.number != old
    session.receive(encode(Kind.LANE, 0, old) + message("a.old") + encode(Kind.LANE, 0, lane.number) + message("a.new"))
    session.receive(reply(unsubscribe, {"dropped": 0}) + reply(subscribe, {"retained": 1}))
    assert [getattr(item, "topic", item) for item in lane.messages] == ["a.new", Snapshot(0, 1)]
    assert not lane.closed
    assert list(session.lanes) == [lane.number]
    session.declarations.withdraw("subscribe", lane.number)
    assert lane.closed
    assert session.lanes == {}


def test_a_lane_begins_anew_without_a_connection() -> None:
    session, lane = session_with_lane()
    session.lost("gone", again=True)
    session.declarations.subscribe_anew(lane)
    session.opened()
    hello, subscribe = frames(session)
    assert hello[0] == Kind.HELLO
    assert msgpack.unpackb(subscribe[-1])["lane"] == lane.number
    session.receive(WELCOME + reply(subscribe, {"retained": 0}))
    assert list(lane.messages) == [Reconnected(1, False, "a.>"), Snapshot(1, 0)]


def test_a_lane_that_cannot_begin_anew_ends() -> None:
    session, lane = session_with_lane()
    session.declarations.subscribe_anew(lane)
    _, subscribe = frames(session)
    session.receive(encode_with_payload(b"", Kind.ERROR, 0, ":7", subscribe[3], Code.OVER_LIMIT.value, "full", None))
    assert lane.closed
    assert "full" in str(lane.error)


# --- names ---


def test_the_page_begins_with_the_name() -> None:
    names = sorted(["mm", "na", "nam", "namd", "namdzz", "name", "name-", "name.x", "nameless", "namf", "-", "z"])
    for name in names:
        after = names_query(name)["after"]
        assert next(other for other in names if other > after) == name


def test_owners() -> None:
    page = {"items": [{"name": "a", "owners": [3, 4]}], "next": None}
    assert (owner_in(page, "a"), owner_in(page, "b")) == (3, None)
    assert owner_in({"items": [{"name": "a", "owners": []}]}, "a") is None
    for data, owner in (({"name": "a", "owners": [5]}, 5), ({"name": "a", "owners": []}, None), ("odd", None)):
        assert owner_told(Message((Kind.PUBLISH.value, 0, "$bus.names.a", None, msgpack.packb(data)))) == owner
    assert owner_told(Message((Kind.PUBLISH.value, 0, "$bus.names.a", None, b"\xc1"))) is None
