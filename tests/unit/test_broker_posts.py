"""POST, wills, bound values and what is kept for a time: the limits and the corners (L-11, W-1, W-2, H-13)."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.broker.accounts import Accounts
from ipcbus.broker.origins import Origin
from ipcbus.broker.retained import _STALE_MIN, Retained
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack

from .harness import Bus, Client, publication


def post(client: Client, topic: str, payload: bytes = b"x", **options: Any) -> None:
    elements = (client.id, topic, options.get("id"), options.get("ttl_ms"), options.get("retain", False), options.get("meta"))
    client.write(encode_with_payload(payload, Kind.POST, *elements))


def will(client: Client, topic: str, payload: bytes | None = b"gone", **more: Any) -> Any:
    return client.ask("will", topic=topic, payload=payload, **more)


def expired(client: Client) -> list[tuple[int, str]]:
    """The losses that *client* is told of, and nothing else."""
    return [(notice["count"], notice["why"]) for notice in client.notices() if notice["name"] == "lost"]


# --- wills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fits"), [(2, True), (3, True), (4, False)])
def test_wills_of_a_peer_are_limited_in_number(count: int, fits: bool) -> None:
    a = Bus(max_wills=3).peer()
    answers = [will(a, f"t{n}") for n in range(count)]
    assert answers[:3] == [{}] * min(count, 3)
    assert (answers[-1] == {}) is fits
    if not fits:
        assert answers[-1][0] == Code.OVER_LIMIT
        assert "limits.max_wills" in answers[-1][1]
        assert will(a, "t0", None) == {}
        assert will(a, "late") == {}


@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
def test_wills_of_a_peer_are_limited_in_bytes(more: int, fits: bool) -> None:
    bus = Bus(max_will_bytes=1000)
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    head = len(publication(a.id, "x", b""))
    assert will(a, "x", bytes(300)) == {}
    answer = will(a, "y", bytes(1000 - 300 - 2 * head + more))
    assert (answer == {}) is fits
    if not fits:
        assert answer[0] == Code.OVER_LIMIT
        assert "limits.max_will_bytes" in answer[1]
    a.leave()
    assert len(b.read_payloads()) == 1 + fits


def test_a_refused_will_leaves_none_on_its_topic() -> None:
    bus = Bus(max_will_bytes=100)
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    assert will(a, "t", b"old") == {}
    assert will(a, "t", bytes(100))[0] == Code.OVER_LIMIT
    a.leave()
    assert b.read_payloads() == []


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
def test_no_will_is_larger_than_a_payload_may_be(size: int, fits: bool) -> None:
    a = Bus(max_payload_bytes=100).peer()
    assert (will(a, "t", bytes(size)) == {}) is fits
    assert (a.ask("restore", topic="t", payload=bytes(size)) == {"restored": True}) is fits


def test_a_will_that_cannot_be_kept_is_published_and_logged() -> None:
    bus = Bus(max_retained_topics=0)
    a, b = bus.peer(), bus.peer()
    b.subscribe("t")
    assert will(a, "t", retain=True) == {}
    a.leave()
    assert b.read_payloads(Kind.RETAIN) == [b"gone"]
    assert any("limits.max_retained_topics" in text for _, text in bus.log)


def test_a_bus_that_stops_publishes_no_wills() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    will(a, "t")
    bus.broker.shut_down(bus.now)
    a.leave()
    assert [envelope[0] for envelope in b.read()] == [Kind.BYE]


def test_the_will_of_who_is_expelled_as_a_slow_reader() -> None:
    bus = Bus(max_output_bytes=10_000)
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    will(a, "t")
    a.subscribe("big", credit=1 << 20)
    b.subscribe("t")
    c.publish("big", bytes(6000))
    c.publish("big", bytes(6000))
    bus.broker.take_touched()
    assert a.peer.closing
    assert b.read_payloads() == [b"gone"]


def test_a_long_row_of_slow_readers_each_ended_by_the_will_of_the_one_before() -> None:
    bus = Bus(max_output_bytes=1000)
    source = bus.peer()
    row = [bus.peer() for _ in range(1500)]
    for at, peer in enumerate(row):
        peer.subscribe(f"t{at}")
        assert will(peer, f"t{at + 1}", bytes(300)) == {}
        source.publish(f"t{at}", bytes(900))
    bus.broker.take_touched()
    source.publish("t0", bytes(300))
    touched = bus.broker.take_touched()
    assert all(peer.peer.closing for peer in row)
    assert {peer.peer for peer in row} <= set(touched)
    assert bus.broker.take_touched() == []


def test_a_half_closed_peer_leaves_one_will_and_waits_for_its_answers() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t")
    b.serve("svc", "m", mode="exclusive")
    will(a, "t")
    a.request("svc/m")
    bus.broker.half_close(a.peer, bus.now)
    assert b.read_payloads() == [b"gone"]
    a.leave()
    assert b.read_payloads() == []


# --- bound values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fits"), [(1, True), (2, True), (3, False)])
def test_bound_topics_are_limited(count: int, fits: bool) -> None:
    a = Bus(max_bound=2).peer()
    answers = [a.ask("bind", topic=f"t{n}") for n in range(count)]
    assert (answers[-1] == {}) is fits
    if not fits:
        assert answers[-1][0] == Code.OVER_LIMIT
        assert "limits.max_bound" in answers[-1][1]
    assert a.ask("bind", topic="t0") == {}  # what is bound already is no more
    assert a.ask("unbind", topic="t0") == {}
    assert a.ask("bind", topic="late") == {}


def test_the_same_session_again_ends_a_held_connection_before_it_is_read() -> None:
    """What the old connection had sent and the bus had not read, because it was held, must not undo what the new one publishes."""
    bus = Bus(lane_soft_bytes=1000)
    slow = bus.peer()
    slow.subscribe("flood", credit=0)
    watcher = bus.peer()
    watcher.subscribe("p", 7)

    def connect() -> Client:
        client = Client(bus, bus.broker.connect(bus.now))
        client.write(encode(Kind.HELLO, 0, 1, 1, [], {"session": "secret"}, None))
        assert [envelope[0] for envelope in client.read()] == [Kind.WELCOME]
        return client

    old = connect()
    old.ask("bind", topic="p")
    will(old, "p", b"gone", retain=True)
    old.publish("p", b"v1", kind=Kind.RETAIN)
    old.publish("flood", bytes(2000))
    assert old.held
    new = connect()
    assert old.peer.closing
    assert not old.held
    new.publish("p", b"v2", kind=Kind.RETAIN)
    old.write(publication(old.id, "p", b"stale", Kind.RETAIN))
    old.leave()
    assert watcher.read_payloads(Kind.RETAIN) == [b"v1", b"", b"gone", b"v2"]
    assert watcher.ask("get", topic="p")["payload"] == b"v2"
    new.leave()
    assert watcher.ask("get", topic="p")["sender"] == new.id  # it had bound nothing


# --- time to live ---------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "g"])
def test_what_has_credit_goes_at_once_whatever_its_time(group: str | None) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", group=group)
    post(a, "t", ttl_ms=0)
    assert b.read_payloads() == [b"x"]
    assert bus.broker.counters.expired_messages == 0


@pytest.mark.parametrize(("after_s", "delivered"), [(0.499, True), (0.5, True), (0.501, False)])
def test_the_moment_at_which_a_message_has_waited_too_long(after_s: float, delivered: bool) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", credit=0)
    post(a, "t", ttl_ms=500)
    bus.advance(after_s)
    b.credit(1, 1000)
    assert [envelope[0] for envelope in b.read()] == ([Kind.LANE, Kind.PUBLISH] if delivered else [Kind.NOTICE])
    assert bus.broker.counters.expired_messages == (not delivered)
    assert bus.broker.queued_bytes() == 0


def test_small_ones_with_the_same_time_are_gathered_and_others_are_not() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", credit=0)
    for ttl_ms in (500, 500, 900, None, None):
        post(a, "t", ttl_ms=ttl_ms)
    assert b.peer.lanes is not None
    backlog = b.peer.lanes[1].backlog
    assert backlog is not None
    assert [entry.count for entry in backlog.pieces] == [2, 1, 2]
    bus.advance(0.6)
    b.credit(1, 1000)
    kinds = [envelope[0] for envelope in b.read()]
    assert kinds == [Kind.NOTICE, Kind.LANE, Kind.PUBLISH, Kind.PUBLISH, Kind.PUBLISH]


def test_what_is_too_old_holds_nobody() -> None:
    bus = Bus(lane_soft_bytes=1000)
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", credit=0)
    post(a, "t", bytes(900), ttl_ms=100)
    bus.advance(0.2)
    a.publish("t", bytes(900))
    assert not a.held
    a.publish("t", bytes(900))
    assert a.held
    b.credit(1, 10_000)
    assert expired(b) == [(1, "expired")]


def test_two_reasons_are_two_notices_before_the_next_message() -> None:
    bus = Bus(lane_soft_bytes=1000, lane_stall_s=1.0)
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", credit=0)
    a.publish("t", bytes(900))
    post(a, "t", bytes(5), ttl_ms=2000)
    a.publish("t", bytes(800))
    bus.advance(1.0)  # the lane has held its publisher for too long: its oldest goes
    bus.advance(1.5)
    b.credit(1, 10_000)
    assert expired(b) == [(1, "too_slow"), (1, "expired")]


def test_a_group_whose_messages_all_expired() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("jobs", credit=1000, group="g", messages=0)
    post(a, "jobs", ttl_ms=100)
    post(a, "jobs", ttl_ms=100)
    bus.advance(0.2)
    b.credit(1, 0, 1)
    assert expired(b) == [(2, "expired")]
    a.publish("jobs")
    assert len(b.read_payloads()) == 1  # the credit of messages was not used up
    assert bus.broker.queued_bytes() == 0


def test_unsubscribing_counts_what_expired_and_was_not_told() -> None:
    bus = Bus(lane_soft_bytes=100)
    a, b = bus.peer(), bus.peer()
    b.subscribe("t", credit=0)
    post(a, "t", bytes(90), ttl_ms=100)
    bus.advance(0.2)
    post(a, "t", bytes(90))
    assert b.ask("unsubscribe", lane=1) == {"dropped": 2}
    assert (bus.broker.counters.lost, bus.broker.counters.expired_messages) == (1, 1)


# --- what is kept ---------------------------------------------------------------------------------


def test_confirm_of_what_is_delivered_but_not_kept() -> None:
    bus = Bus(max_retained_topics=1)
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    post(a, "t", id=3, retain=True)
    post(a, "u", id=4, retain=True)
    assert [envelope[0] for envelope in a.read()] == [Kind.REPLY, Kind.ERROR]
    assert len(b.read_payloads(Kind.RETAIN)) == 2
    assert a.ask("restore", topic="v", payload=b"x")[0] == Code.OVER_LIMIT


def test_what_is_past_its_time_is_not_given_out_before_the_timer_came() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    post(a, "t", ttl_ms=100, retain=True)
    assert bus.broker.next_deadline() == bus.now + 0.1
    bus.now += 0.1
    assert b.ask("get", topic="t") is None
    post(a, "t", ttl_ms=100, retain=True)
    bus.now += 0.1
    b.subscribe("t")
    assert b.read() == []
    assert a.ask("stats")["retained"] == 0
    assert bus.broker.next_deadline() is None


@pytest.mark.parametrize("method", ["get", "introspect", "names"])
def test_what_the_bus_answers_within_a_read_is_bounded_by_what_may_wait_for_a_peer(method: str) -> None:
    bus = Bus(max_output_bytes=100_000)
    a = bus.peer()
    a.publish("t", bytes(30_000), kind=Kind.RETAIN)
    a.serve("svc", *(f"m{number:029}" for number in range(1000)))
    arguments = {"get": {"topic": "t"}, "introspect": {"name": "svc"}, "names": {}}[method]
    request = encode_with_payload(pack(arguments), Kind.REQUEST, a.id, f"bus/{method}", 1, 1000, None)
    a.write(request * 100)
    assert a.peer.closing
    assert a.peer.out_bytes < 200_000
    assert a.read()[-1][:3] == [Kind.BYE, 0, Code.SLOW_READER]


def test_restored_with_other_headers_is_something_else() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t")
    for count, meta in ((1, {"n": 1}), (0, {"n": 1}), (1, {"n": True}), (1, None), (0, None)):
        assert a.ask("restore", topic="t", payload=b"x", meta=meta, was=[a.id]) == {"restored": True}
        assert len(b.read_payloads(Kind.RETAIN)) == count, meta


def test_topics_that_were_restored_or_left_are_listed() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.ask("restore", topic="restored", payload=b"x")
    will(a, "will", retain=True)
    a.ask("bind", topic="bound")
    post(a, "bound", retain=True)
    a.leave()
    listed = {item["topic"]: (item["messages"], item["retained"]) for item in b.ask("topics")["items"]}
    assert listed == {"restored": (1, True), "will": (1, True), "bound": (2, False)}


def test_deadlines_that_were_replaced_do_not_pile_up() -> None:
    limits = Limits()
    accounts = Accounts(limits)
    kept, publisher = Retained(limits, accounts), Origin(1, accounts.enter(1000, 10), "unix", "", None, "")
    for n in range(5 * _STALE_MIN):
        kept.keep("t", b"x", publisher, float(n))
    assert len(kept._heap) <= _STALE_MIN + 3
    assert kept.due(10.0, 10) == []
    assert kept.due(5.0 * _STALE_MIN, 10) == [("t", publisher)]
    assert (len(kept), kept.bytes, kept.earliest) == (0, 0, None)


def test_a_kept_message_that_is_refused_leaves_no_deadline() -> None:
    limits = Limits(max_retained_bytes=5)
    accounts = Accounts(limits)
    kept, publisher = Retained(limits, accounts), Origin(1, accounts.enter(1000, 10), "unix", "", None, "")
    kept.keep("t", b"x", publisher, 1.0)
    with pytest.raises(ProtocolError):
        kept.keep("t", bytes(6), publisher, 2.0)
    assert kept.due(3.0, 10) == []
    assert kept.earliest is None
