"""The client's core: what is retained, confirmed, bound or has a time to live, wills, and what a bus gets again after a reconnect."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode
from ipcbus.protocol.payloads import PayloadError
from ipcbus_client import _posts
from ipcbus_client._errors import BadName, Closed, ConnectionLost, Expired, OutboxFull, Refused
from ipcbus_client._posts import ARGUMENT_BYTES, TTL_MAX_S
from ipcbus_client._session import Session
from ipcbus_client._state import State
from ipcbus_client._waiting import Waiting

from .test_session import elements, error, reply, sent

INFO = {"software": "test", "max_frame_bytes": 4_000_000, "max_payload_bytes": 3_000_000}


class Program:
    """A session with a clock that is moved by hand, and a bus that says what the test says."""

    def __init__(self, waiting: Waiting | None = None) -> None:
        self.now = 100.0
        self.session = Session(program="p", library="l", waiting=waiting)
        self.session.use_clock(lambda: self.now)
        self.peer = 6

    def connect(self, incarnation: bytes = b"i", features: tuple[str, ...] = ("post", "wills")) -> list[tuple[Any, ...]]:
        """The next connection: what is said after HELLO."""
        self.peer += 1
        self.session.opened()
        self.session.receive(encode(Kind.WELCOME, 0, 1, list(features), self.peer, incarnation * 16, INFO))
        assert self.session.state is State.CONNECTED
        hello, *rest = elements(self.session)
        assert hello[0] == Kind.HELLO
        return rest

    def lost(self) -> None:
        self.session.lost("cut", again=True)

    def put(self, topic: str = "t", data: Any = b"v", retain: bool = False, headers: Any = None, **options: Any) -> bool:
        posts = self.session.posts
        return posts.put(posts.make(topic, data, retain, headers, **options))

    def said(self) -> list[tuple[Any, ...]]:
        """What went out: bus requests as (method, arguments), all else as it is."""
        return [as_said(element) for element in elements(self.session)]

    def flush(self) -> None:
        """Everything that was said arrived."""
        ping = self.session.ping()
        sent(self.session)
        self.session.receive(encode(Kind.PONG, 0, ping.id))

    def answer(self, *results: Any) -> None:
        """The bus answers the requests in flight, in order."""
        for number, result in zip(list(self.session.calls), results, strict=False):
            self.session.receive(reply(number, result))


def as_said(element: tuple[Any, ...]) -> tuple[Any, ...]:
    if element[0] == Kind.REQUEST:
        return element[2], msgpack.unpackb(element[6])
    return element


def connected(**options: Any) -> Program:
    program = Program(**options)
    assert program.connect() == []
    return program


def restore(topic: str, payload: bytes, was: list[int], meta: Any = 1, ttl_ms: int | None = None) -> tuple[Any, ...]:
    return "bus/restore", {"topic": topic, "payload": payload, "meta": meta, "ttl_ms": ttl_ms, "was": was}


# --- what goes out --------------------------------------------------------------------------------


def test_forms_on_the_wire() -> None:
    program = connected()
    assert program.put(data={"a": 1}, headers={"h": 1})
    program.put(retain=True)
    program.put(ttl=1.5)
    program.put(ttl=60, retain=True, headers={"h": 1})
    assert program.said() == [
        (Kind.PUBLISH, 7, "t", {"h": 1}, msgpack.packb({"a": 1})),
        (Kind.RETAIN, 7, "t", 1, b"v"),
        (Kind.POST, 7, "t", None, 1500, False, 1, b"v"),
        (Kind.POST, 7, "t", None, 60_000, True, {"encoding": 1, "h": 1}, b"v"),
    ]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), TTL_MAX_S + 1])
def test_illegal_times_to_live(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        connected().put(ttl=ttl)


@pytest.mark.parametrize("ttl", ["1", True, [1]])
def test_what_is_no_time_to_live(ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        connected().put(ttl=ttl)


@pytest.mark.parametrize(("ttl", "ttl_ms"), [(0.0001, 1), (0.001, 1), (TTL_MAX_S, 2**32 - 1)])
def test_the_shortest_and_the_longest_time_to_live(ttl: float, ttl_ms: int) -> None:
    program = Program()
    program.now = 0.0
    program.connect()
    program.put(ttl=ttl)
    assert program.said()[0][4] == ttl_ms


def test_what_cannot_be_published() -> None:
    program = connected()
    with pytest.raises(BadName):
        program.put("a.*", retain=True)
    with pytest.raises(ValueError, match="retain=True"):
        program.put(bound=True)
    with pytest.raises(PayloadError):
        program.put(data=bytes(3_000_001), retain=True)
    assert program.said() == []
    assert program.session.stats()["remembered"] == 0


@pytest.mark.parametrize(("size", "fits"), [(ARGUMENT_BYTES - 1, True), (ARGUMENT_BYTES, True), (ARGUMENT_BYTES + 1, False)])
def test_bound_values_and_wills_fit_into_a_request_to_the_bus(size: int, fits: bool) -> None:
    program = connected()
    if fits:
        program.put(data=bytes(size), retain=True, bound=True)
        program.session.posts.will("w", bytes(size), False, None)
        program.lost()
        assert all(len(element[-1]) <= 1 << 20 for element in program.connect())
    else:
        with pytest.raises(PayloadError, match="bound value"):
            program.put(data=bytes(size), retain=True, bound=True)
        with pytest.raises(PayloadError, match="will"):
            program.session.posts.will("w", bytes(size), False, None)


def test_a_bus_that_is_older_than_the_library() -> None:
    program = Program()
    program.connect(features=())
    for options in ({"ttl": 1.0}, {"ttl": 1.0, "retain": True}):
        with pytest.raises(Refused, match="older than this library"):
            program.put(**options)
    with pytest.raises(Refused, match="older than this library"):
        program.session.posts.confirm(program.session.posts.make("t", 1, False, None))
    program.put(retain=True)
    assert [element[0] for element in program.said()] == [Kind.RETAIN]


# --- confirm --------------------------------------------------------------------------------------


def confirm(program: Program, **options: Any) -> Any:
    posts = program.session.posts
    return posts.confirm(posts.make("t", b"v", options.pop("retain", False), None, **options))


def test_confirm_gives_the_number_of_lanes() -> None:
    program = connected()
    program.session.outbox.publish("before", 1, False, None)
    call = confirm(program, ttl=2.0)
    (_, post) = program.said()
    assert post == (Kind.POST, 7, "t", call.id, 2000, False, 1, b"v")
    assert program.session.undelivered().unknown == 1
    program.session.receive(reply(call.id, 3))
    assert call.result() == 3
    assert program.session.undelivered().unknown == 0  # it is a fence for what was before


def test_confirm_of_what_is_not_kept() -> None:
    program = connected()
    call = confirm(program, retain=True)
    program.session.receive(error(call.id, Code.OVER_LIMIT, "full"))
    with pytest.raises(Refused, match="full"):
        call.result()


@pytest.mark.parametrize("written", [False, True])
def test_a_confirmed_one_fails_with_its_connection_and_is_not_sent_again(written: bool) -> None:
    program = connected()
    call = confirm(program)
    if written:
        sent(program.session)
    program.lost()
    with pytest.raises(ConnectionLost, match="t: cut"):
        call.result()
    assert program.connect() == []


def test_confirm_of_what_became_too_old_while_it_waited_for_a_connection() -> None:
    program = connected()
    post = program.session.posts.make("t", b"v", False, None, ttl=1.0)
    program.now += 1.0
    with pytest.raises(Expired):
        program.session.posts.confirm(post)
    assert program.said() == []


# --- the outbox -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_s", "left_ms"), [(0.5, 1500), (1.999, 1), (2.0, None), (5.0, None)])
def test_what_waits_keeps_its_time(after_s: float, left_ms: int | None) -> None:
    program = Program()
    program.put(ttl=2.0)
    program.put("u")
    program.now += after_s
    said = program.connect()
    assert [(element[2], element[4]) for element in said[:-1]] == ([] if left_ms is None else [("t", left_ms)])
    assert said[-1][:3] == (Kind.PUBLISH, 7, "u")
    assert program.session.stats()["outbox_expired"] == (left_ms is None)
    assert program.session.undelivered() == ((1, 1) if left_ms is None else (0, 2))


def test_what_was_encoded_and_not_written_keeps_its_time_too() -> None:
    program = connected()
    program.put("written", ttl=9.0)
    sent(program.session)
    program.put("a", ttl=1.0)
    confirm(program, ttl=9.0)
    program.put("b", ttl=3.0, retain=True)
    program.session.outbox.publish("c", 1, False, None)
    program.now += 1.0
    program.lost()
    program.now += 0.5
    assert [element[:6] for element in program.connect(b"j")[:1]] == [(Kind.POST, 8, "b", None, 1500, True)]
    assert program.session.stats()["outbox_expired"] == 1


@pytest.mark.parametrize("blocked", [False, True])
def test_times_to_live_are_forgotten_with_what_was_written(blocked: bool) -> None:
    """A program whose buffer is never empty when it publishes something with a time to live."""
    program = connected()
    outbox = program.session.outbox
    for n in range(10_000):
        program.put("plain")
        program.put("mortal", ttl=1.0 + n)
        if not blocked:
            outbox.begin()
            outbox.wrote(len(outbox.chunk()))
        elif n == 5_000:
            outbox.begin()
            outbox.wrote(1)
    assert len(outbox._deadlines) <= (25_000 if blocked else 1000)
    program.lost()
    said = [element[4] for element in program.connect() if element[0] == Kind.POST]
    assert said == [n * 1000 for n in range(1, 10_001) if blocked]


def test_a_full_outbox_gives_up_what_is_too_old_first() -> None:
    program = Program(waiting=Waiting("raise", max_messages=2))
    program.put("old", ttl=1.0)
    program.put("kept")
    with pytest.raises(OutboxFull):
        program.put("no")
    program.now += 1.0
    program.put("new", ttl=1.0)
    with pytest.raises(OutboxFull):
        program.put("no")
    assert [item[1] for item in program.session.outbox.waiting.items] == ["kept", "new"]
    assert program.session.stats()["outbox_expired"] == 1


def test_after_the_end_nothing_is_published() -> None:
    program = connected()
    program.session.close()
    for options in ({"retain": True}, {"ttl": 1.0}, {"retain": True, "bound": True}):
        with pytest.raises(Closed):
            program.put(**options)


# --- wills and bound values -----------------------------------------------------------------------


def test_wills_are_declared_after_welcome_and_again() -> None:
    program = Program()
    call = program.session.posts.will("w", b"gone", True, {"h": 1})
    expected = ("bus/will", {"topic": "w", "meta": {"encoding": 1, "h": 1}, "payload": b"gone", "retain": True})
    program.session.opened()
    assert [element[0] for element in elements(program.session)] == [Kind.HELLO]  # its sender must be known
    program.session.receive(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, INFO))
    assert program.said() == [expected]
    program.answer({})
    assert call.result() == {}
    program.lost()
    program.peer = 7
    assert [as_said(element) for element in program.connect()] == [expected]
    program.session.declarations.withdraw("will", "w")
    assert program.said() == [("bus/will", {"topic": "w"})]
    program.lost()
    assert program.connect() == []


def test_a_value_is_bound_before_it_is_published_and_unbound_with_it() -> None:
    program = connected()
    for _ in range(2):
        program.put(retain=True, bound=True)
    assert [element[0] for element in program.said()] == ["bus/bind", Kind.RETAIN, Kind.RETAIN]
    program.put(retain=True)
    assert program.said() == [("bus/unbind", {"topic": "t"}), (Kind.RETAIN, 7, "t", 1, b"v")]
    program.put(retain=True, bound=True)
    program.said()
    program.put(data=b"", retain=True, bound=True)
    assert program.said() == [("bus/unbind", {"topic": "t"}), (Kind.RETAIN, 7, "t", 1)]
    program.lost()
    assert program.connect(b"j") == []


def test_a_refused_bind_is_said() -> None:
    program = connected()
    program.put(retain=True, bound=True)
    (number,) = program.session.calls
    program.session.receive(error(number, Code.OVER_LIMIT, "too many"))
    assert any("not bound" in remark.text for remark in program.session.remarks)


# --- what a bus gets again ------------------------------------------------------------------------


def test_a_bus_that_was_restarted_has_everything_again_in_order() -> None:
    program = connected()
    program.put("a", b"1", retain=True)
    program.put("b", b"2", retain=True, ttl=10.0)
    program.put("c", b"3", retain=True, bound=True)
    program.put("a", b"4", retain=True)
    program.put("gone", b"5", retain=True)
    program.put("gone", b"", retain=True)
    program.put("short", b"6", retain=True, ttl=1.0)
    program.session.posts.will("w", b"7", False, None)
    program.said()
    program.lost()
    program.put("late")
    program.now += 4.0
    assert [as_said(element) for element in program.connect(b"j")] == [
        ("bus/bind", {"topic": "c"}),
        ("bus/will", {"topic": "w", "meta": 1, "payload": b"7", "retain": False}),
        restore("b", b"2", [], ttl_ms=6000),
        restore("c", b"3", []),
        restore("a", b"4", []),
        (Kind.PUBLISH, 8, "late", 1, b"v"),
    ]


def test_the_same_bus_has_it_still_but_for_what_went_with_the_connection() -> None:
    program = connected()
    program.put("plain", retain=True)
    program.put("bound", retain=True, bound=True)
    program.put("status", b"online", retain=True)
    program.session.posts.will("status", b"offline", True, None)
    program.flush()
    program.lost()
    said = [as_said(element) for element in program.connect()]
    assert said[2:] == [restore("bound", b"v", [7]), restore("status", b"online", [7])]
    program.lost()
    program.lost()
    assert restore("bound", b"v", [7, 8]) in [as_said(element) for element in program.connect()]


def test_the_same_bus_gets_what_may_have_been_lost_on_the_way() -> None:
    program = connected()
    program.put("certain", retain=True)
    program.flush()
    program.put("unknown", b"1", retain=True)
    sent(program.session)
    program.put("unwritten", b"2", retain=True)
    program.lost()
    program.put("waiting", b"3", retain=True)
    said = [as_said(element) for element in program.connect()]
    assert [said[0], *(element[-1] for element in said[1:])] == [restore("unknown", b"1", [7]), b"2", b"3"]
    program.answer({"restored": True})
    program.lost()
    said = [as_said(element) for element in program.connect()]
    assert said == [restore("unwritten", b"2", [7, 8]), restore("waiting", b"3", [7, 8])]
    program.answer({"restored": True}, {"restored": True})
    program.lost()
    assert program.connect() == []


def test_what_was_not_answered_is_restored_again() -> None:
    program = connected()
    program.put(retain=True)
    program.said()
    program.lost()
    assert [as_said(element) for element in program.connect(b"j")] == [restore("t", b"v", [])]
    program.lost()
    assert [as_said(element) for element in program.connect(b"j")] == [restore("t", b"v", [8])]
    program.answer({"restored": True})
    program.lost()
    assert program.connect(b"j") == []


def test_what_another_has_published_since_is_left_alone_and_forgotten() -> None:
    program = connected()
    program.put(retain=True)
    program.said()
    program.lost()
    program.connect(b"j")
    program.answer({"restored": False})
    assert any("newer value" in remark.text for remark in program.session.remarks)
    assert program.session.stats()["remembered"] == 0


def test_a_value_that_was_published_since_is_not_forgotten_for_an_old_answer() -> None:
    program = connected()
    program.put(retain=True)
    program.said()
    program.lost()
    program.connect(b"j")
    program.put(data=b"newer", retain=True)
    program.said()
    program.answer({"restored": False})
    program.lost()
    assert [as_said(element) for element in program.connect(b"k")] == [restore("t", b"newer", [])]


def test_what_waits_in_the_outbox_comes_from_there_alone() -> None:
    program = connected()
    program.put(data=b"1", retain=True)
    program.said()
    program.lost()
    program.put(data=b"2", retain=True)
    program.put("u", b"3", retain=True, ttl=5.0)
    assert [(element[0], element[-1]) for element in program.connect(b"j")] == [(Kind.RETAIN, b"2"), (Kind.POST, b"3")]
    program.answer()
    program.lost()
    said = [as_said(element) for element in program.connect(b"k")]
    assert said == [restore("t", b"2", []), restore("u", b"3", [], ttl_ms=5000)]


def test_a_large_value_is_published_again_as_it_was() -> None:
    program = connected()
    program.put(data=bytes(ARGUMENT_BYTES + 1), retain=True)
    sent(program.session)
    program.lost()
    (again,) = program.connect(b"j")
    assert (again[0], len(again[-1])) == (Kind.RETAIN, ARGUMENT_BYTES + 1)


@pytest.mark.parametrize(("count", "fits"), [(2, True), (3, True), (4, False)])
def test_so_many_values_are_remembered(monkeypatch: pytest.MonkeyPatch, count: int, fits: bool) -> None:
    monkeypatch.setattr(_posts, "REMEMBERED_VALUES", 3)
    program = connected()
    for number in range(count):
        program.put(f"t{number}", retain=True)
    stats = program.session.stats()
    assert (stats["remembered"], stats["not_remembered"]) == (min(count, 3), count - min(count, 3))
    assert len(program.session.remarks) == (not fits)
    program.put("t0", b"", retain=True)
    program.put("late", retain=True)
    assert program.session.stats()["remembered"] == min(count, 3)


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
def test_so_many_bytes_are_remembered(monkeypatch: pytest.MonkeyPatch, more: int, fits: bool) -> None:
    monkeypatch.setattr(_posts, "REMEMBERED_BYTES", 1000)
    program = connected()
    program.put("t", bytes(1000 - 1 - 200 + more), retain=True)
    assert (program.session.stats()["remembered"] == 1) is fits
    program.put("t", b"", retain=True)
    assert program.session.stats()["remembered_bytes"] == 0


def test_a_value_that_does_not_fit_takes_the_older_one_along() -> None:
    program = connected()
    program.put("t", b"old", retain=True)
    for topic in "uvw":
        program.put(topic, bytes(_posts.REMEMBERED_BYTES // 4), retain=True)
    program.put("t", bytes(3_000_000), retain=True)
    assert program.session.stats()["not_remembered"] == 1
    sent(program.session)
    program.lost()
    assert all(element[2] != "t" for element in program.connect(b"j"))


@pytest.mark.parametrize("online", [False, True])
def test_what_has_no_room_is_neither_bound_nor_remembered(online: bool) -> None:
    program = connected(waiting=Waiting("raise", max_bytes=0))
    program.put("t", b"old", retain=True)
    sent(program.session)
    if online:
        program.session.outbox.publish("u", 1, False, None)
        program.session.outbox.begin()
        program.session.outbox.stalled()
    else:
        program.lost()
    with pytest.raises(OutboxFull):
        program.put("t", b"new", retain=True, bound=True)
    assert program.session.declarations.declared("bind", "t") is None
    if online:
        assert [element[0] for element in program.said()] == [Kind.PUBLISH]
        program.lost()
    assert [as_said(element) for element in program.connect(b"j")][:1] == [restore("t", b"old", [])]


def test_a_value_that_the_outbox_dropped_is_restored() -> None:
    program = connected(waiting=Waiting("drop_oldest", max_messages=1))
    program.put("t", b"1", retain=True)
    program.flush()
    program.lost()
    program.put("t", b"2", retain=True)
    program.put("u", b"3")  # takes its place
    assert [as_said(element) for element in program.connect()] == [restore("t", b"2", [7]), (Kind.PUBLISH, 8, "u", 1, b"3")]


def test_a_will_that_was_taken_back_without_a_connection_was_published_all_the_same() -> None:
    program = connected()
    program.put("status", b"online", retain=True)
    program.session.posts.will("status", b"offline", True, None)
    program.flush()
    program.lost()
    program.session.declarations.withdraw("will", "status")
    assert [as_said(element) for element in program.connect()] == [restore("status", b"online", [7])]


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
def test_what_is_over_a_later_busses_limit_is_not_said_to_it(monkeypatch: pytest.MonkeyPatch, more: int, fits: bool) -> None:
    """A frame over its limit would be the end of the connection, and of the bus object."""
    program = connected()
    program.put("t", bytes(5000 + more), retain=True)
    sent(program.session)
    program.lost()
    monkeypatch.setitem(INFO, "max_payload_bytes", 5000)
    assert [element[0] for element in program.connect(b"j")] == [Kind.REQUEST] * fits
    assert any("over this bus's payload limit" in remark.text for remark in program.session.remarks) is not fits


@pytest.mark.parametrize(("limit", "fits"), [(5100, True), (4900, False)])
def test_a_will_over_a_later_busses_limit_is_given_up_loudly(monkeypatch: pytest.MonkeyPatch, limit: int, fits: bool) -> None:
    program = connected()
    program.session.posts.will("w", bytes(5000), False, None)
    program.said()
    program.answer({})
    program.lost()
    monkeypatch.setitem(INFO, "max_payload_bytes", limit)
    assert len(program.connect(b"j")) == fits
    assert any("payload limit; given up" in remark.text for remark in program.session.remarks) is not fits
    assert (program.session.declarations.declared("will", "w") is not None) is fits
    assert all(len(remark.text) < 300 for remark in program.session.remarks)  # without its payload
