"""Publications, lanes, credit, groups, retained messages (section 6)."""

from __future__ import annotations

import msgpack
import pytest

from ipcbus.broker.backlogs import GATHER_BYTES, pins
from ipcbus.broker.lanes import OUTPUT_HIGH_BYTES
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode_with_payload
from tests.unit.harness import Bus, Client, publication


def cost(client: Client, topic: str, payload: bytes = b"x") -> int:
    return len(publication(client.id, topic, payload))


def notice(envelope: list[object]) -> dict[str, object]:
    assert envelope[0] == Kind.NOTICE
    return {"name": envelope[2], **msgpack.unpackb(envelope[-1])}


def test_each_matching_lane_gets_a_message_once_and_unchanged() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("room.*", 1)
    b.subscribe("room.>", 2)
    b.subscribe("room.kitchen", 3)
    b.subscribe("hall", 4)
    a.subscribe(">", 9)
    a.publish("room.kitchen", b"1")
    message = [Kind.PUBLISH, a.id, "room.kitchen", None, b"1"]
    got = b.read()
    assert sorted(e[2] for e in got if e[0] == Kind.LANE) == [1, 2, 3]
    assert [e for e in got if e[0] != Kind.LANE] == [message] * 3
    assert a.read() == [[Kind.LANE, 0, 9], message]


def test_lane_is_announced_only_when_it_changes() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1)
    b.subscribe("y", 2)
    a.publish("x", b"1")
    a.publish("x", b"2", b"3")
    a.publish("y", b"4")
    b.ask("ping")  # a control frame in between changes nothing
    a.publish("y", b"5")
    a.publish("x", b"6")
    bus2 = [e[2] if e[0] == Kind.LANE else e[-1] for e in b.read()]
    assert bus2 == [b"5", 1, b"6"]


def test_a_lane_that_was_closed_is_announced_again() -> None:
    bus = Bus()
    a = bus.peer()
    a.subscribe("x", 1)
    a.publish("x", b"1")
    a.read()
    a.ask("unsubscribe", lane=1)
    a.subscribe("x", 1)
    a.publish("x", b"2")
    assert [e[0] for e in a.read()] == [Kind.LANE, Kind.PUBLISH]


def test_the_bus_s_topics_need_their_first_token_written_out() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane, pattern in enumerate([">", "*.names.>", "$bus.>", "$bus.names.svc", "$bus.*.*"], 1):
        b.subscribe(pattern, lane)
    a.ask("own", name="svc")
    got = b.read()
    assert sorted(e[2] for e in got if e[0] == Kind.LANE) == [3, 4, 5]
    assert all(msgpack.unpackb(e[-1]) == {"name": "svc", "owners": [a.id]} for e in got if e[0] == Kind.PUBLISH)
    a.publish("$bus.names.svc")
    assert [(e[0], e[3], e[4]) for e in a.read()] == [(Kind.ERROR, 0, Code.RESERVED)]


def test_an_illegal_topic_is_refused_once_for_a_run() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    a.publish("x", b"1")
    a.publish("a..b", b"1", b"2")  # the first is decoded, the second known: two runs
    a.publish("a..b", *[b"3"] * 5)
    a.publish("x", b"2")
    errors = a.read()
    assert [(e[4], msgpack.unpackb(e[-1])["count"]) for e in errors] == [(Code.BAD_TOPIC, 1), (Code.BAD_TOPIC, 1), (Code.BAD_TOPIC, 5)]
    assert b.read_payloads() == [b"1", b"2"]
    assert bus.broker.counters.refused == 7
    assert len([line for line in bus.log if "bad_topic" in line[1]]) == 1


def test_nobody_subscribed_is_counted() -> None:
    bus = Bus()
    a = bus.peer()
    a.publish("x", b"1", b"2")
    assert a.read() == []
    assert bus.broker.counters.no_subscriber == 2


# --- credit ---------------------------------------------------------------------------------------


def test_without_credit_nothing_is_sent_and_credit_releases_in_order() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    a.publish("x", *[b"%d" % i for i in range(5)])
    assert b.read() == []
    b.credit(1, 1)
    first = b.read_payloads()
    assert first == [b"0", b"1", b"2", b"3", b"4"]  # what waited is one small piece: the credit is overdrawn by it (L-5)
    a.publish("x", b"5")
    assert b.read() == []
    b.credit(1, 5 * cost(a, "x") - 1)
    assert b.read() == []  # the debt is paid, no more
    b.credit(1, 1)
    assert b.read_payloads() == [b"5"]


def test_a_lane_with_a_backlog_does_not_let_new_messages_overtake() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    a.publish("x", b"a" * GATHER_BYTES)
    a.publish("x", b"b" * GATHER_BYTES)
    b.credit(1, 1)
    a.publish("x", b"c")
    assert [p[:1] for p in b.read_payloads()] == [b"a"]
    b.credit(1, 10 * GATHER_BYTES)
    assert [p[:1] for p in b.read_payloads()] == [b"b", b"c"]


def test_control_frames_overtake_what_waits_for_credit() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    a.publish("x", b"1")
    assert "now_s" in b.ask("ping")


def test_credit_stays_at_the_limit() -> None:
    bus = Bus(max_credit_bytes=100)
    b = bus.peer()
    b.subscribe("x", 1, credit=100)
    for _ in range(3):
        b.credit(1, 2**32 - 1)
    assert b.peer.lanes is not None
    assert b.peer.lanes[1].credit == 100
    b.credit(77, 5)  # an unknown lane is ignored
    for lane, credit in ((2, 99), (3, 100), (4, 101)):
        b.subscribe("y", lane, credit=credit)
        assert b.peer.lanes[lane].credit == min(credit, 100)


def test_waiting_output_stops_publications_but_not_replies() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=64 << 20)
    for _ in range(2):
        a.publish("x", b"z" * (OUTPUT_HIGH_BYTES // 2))
    before = b.peer.out_bytes
    a.publish("x", b"later")
    assert b.peer.out_bytes == before >= OUTPUT_HIGH_BYTES
    assert b.peer.queued_bytes == before + cost(a, "x", b"later")
    bus.broker.wrote(b.peer, 3, bus.now)
    bus.broker.wrote(b.peer, OUTPUT_HIGH_BYTES // 2, bus.now)
    assert b.peer.out_bytes == before - 3 - OUTPUT_HIGH_BYTES // 2 + cost(a, "x", b"later")


# --- backlogs (L-7) -------------------------------------------------------------------------------


def full(bus: Bus, publisher: Client, size: int = 50_000, count: int = 21, topic: str = "x") -> None:
    """Publish over a MiB to x, or to *topic*."""
    for index in range(count):
        publisher.publish(topic, b"%03d" % index + b"." * size)


def test_a_full_backlog_holds_its_publisher_until_half_of_it_is_gone() -> None:
    bus = Bus()
    a, b, innocent = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    innocent.publish("x", b"small")
    full(bus, a)
    assert a.held == 1
    assert innocent.held == 0
    b.credit(1, 400_000)
    b.read()
    assert a.held == 1
    b.credit(1, 400_000)
    b.read()
    assert a.held == 0
    b.credit(1, 4_000_000)
    b.read()
    assert b.peer.lanes is not None
    assert b.peer.lanes[1].backlog is None
    assert bus.broker.counters.lost == 0


@pytest.mark.parametrize(("waiting", "held"), [(999, 0), (1000, 0), (1001, 1)])
def test_the_limit_of_a_backlog(waiting: int, held: int) -> None:
    bus = Bus(lane_soft_bytes=1000)
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    a.publish("x", b"." * (waiting - cost(a, "x", b"")))
    assert a.held == held


def test_a_lane_that_stalls_its_publishers_loses_its_oldest_and_is_told_where() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    full(bus, a)
    bus.advance(4.9)
    assert a.held == 1
    bus.advance(0.2)
    assert a.held == 0
    full(bus, a, count=3)
    assert a.held == 0
    lost = bus.broker.counters.lost
    b.credit(1, 64 << 20)
    got = [e for e in b.read() if e[0] != Kind.LANE and e[2] != "lagging"]
    size = cost(a, "x", b"..." + b"." * 50_000)
    assert notice(got[0]) == {"name": "lost", "lane": 1, "count": lost, "bytes": lost * size, "why": "too_slow"}
    assert notice(got[-1]) == {"name": "caught_up", "lane": 1, "lost": lost}
    payloads = [e[-1][:3] for e in got[1:-1]]
    assert len(payloads) + lost == 24
    assert payloads == ([b"%03d" % i for i in range(21)] + [b"000", b"001", b"002"])[lost:]
    assert sum("dropped and counted" in text for _, text in bus.log) == 1
    full(bus, a, count=2)  # it has caught up
    assert len(b.read_payloads()) == 2


def test_own_publications_never_hold_a_peer_but_are_bounded() -> None:
    bus = Bus(max_payload_bytes=100_000, lane_soft_bytes=100_000, lane_hard_bytes=200_000)
    a = bus.peer()
    a.subscribe("x", 1, credit=0)
    for _ in range(12):
        a.publish("x", b"." * 50_000)
    assert a.held == 0
    assert a.peer.backlog_bytes <= 200_000
    assert bus.broker.counters.lost == 12 - 3


def test_a_publisher_that_goes_is_held_no_more() -> None:
    bus = Bus()
    a, other, b = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    full(bus, a)
    full(bus, other, count=1)
    a.leave()
    assert a.held == 0
    assert other.held == 1
    other.leave()
    bus.advance(6)
    assert bus.broker.counters.lost == 0


def test_a_subscriber_that_goes_lets_its_publishers_go() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    full(bus, a)
    b.leave()
    assert a.held == 0
    assert bus.broker.counters.lost == 21
    assert bus.broker.next_deadline() is None


def test_unsubscribe_says_how_much_waited() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    a.publish("x", b"1", b"2", b"3")
    assert b.ask("unsubscribe", lane=1) == {"dropped": 3}
    assert b.ask("unsubscribe", lane=1)[0] == Code.NO_SUCH_LANE


def test_small_slices_do_not_pin_a_read() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    c.subscribe("y", 1)
    message, other = publication(a.id, "x", b"." * 8000), publication(a.id, "y", b"." * 100_000)
    a.write(message + other + message + other)
    assert b.peer.lanes is not None
    backlog = b.peer.lanes[1].backlog
    assert backlog is not None
    assert not any(pins(entry.piece) for entry in backlog.pieces)
    assert not pins(b"x")
    assert pins(memoryview(b"x" * 100)[:49])
    assert not pins(memoryview(b"x" * 100)[:50])


# --- groups (L-6) ---------------------------------------------------------------------------------


def test_a_group_divides_a_run_by_frame_to_the_least_loaded() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="workers", messages=10)
    c.subscribe("jobs", 1, group="workers", messages=10)
    a.publish("jobs", *[b"%d" % i for i in range(6)])
    one, two = b.read_payloads(), c.read_payloads()
    assert sorted(one + two) == [b"%d" % i for i in range(6)]
    assert len(one) == len(two) == 3
    b.credit(1, 0, 3)  # b has handled its three
    a.publish("jobs", *[b"n%d" % i for i in range(3)])
    assert len(b.read_payloads()) == 3
    assert c.read_payloads() == []


def test_a_group_s_message_credit_is_never_overdrawn_and_starts_with_one() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="workers")
    a.publish("jobs", b"1", b"2", b"3")
    assert b.read_payloads() == [b"1"]
    b.credit(1, 0, 1)
    assert b.read_payloads() == [b"2"]
    b.credit(1, 0, 5)
    assert b.read_payloads() == [b"3"]


def test_a_stuck_member_takes_no_more_than_its_credit() -> None:
    bus = Bus()
    a, stuck, good = bus.peer(), bus.peer(), bus.peer()
    stuck.subscribe("jobs", 1, group="w", messages=2)
    good.subscribe("jobs", 1, group="w", messages=2)
    a.publish("jobs", *[b"%d" % i for i in range(10)])
    done = []
    while True:
        got = good.read_payloads()
        if not got:
            break
        done += got
        good.credit(1, 0, len(got))
    assert len(done) == 8
    assert len(stuck.read_payloads()) == 2


def test_groups_and_plain_lanes_beside_each_other() -> None:
    bus = Bus()
    a, b, c, d = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="one", messages=9)
    c.subscribe("jobs", 1, group="two", messages=9)
    d.subscribe("jobs", 1)
    a.publish("jobs", b"1")
    assert (b.read_payloads(), c.read_payloads(), d.read_payloads()) == ([b"1"], [b"1"], [b"1"])


def test_joining_a_group_gets_its_backlog() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="w", messages=0)
    a.publish("jobs", b"1", b"2")
    c.request("bus/subscribe", msgpack.packb({"pattern": "jobs", "lane": 1, "credit": 1000, "group": "w", "messages": 5}))
    assert c.read_payloads() == [b"1", b"2"]


def test_the_last_member_leaves_and_what_waited_is_counted_as_lost() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="w", messages=0)
    a.publish("jobs", b"1", b"2")
    b.leave()
    assert bus.broker.counters.lost == 2
    a.publish("jobs", b"3")
    assert bus.broker.counters.no_subscriber == 1


def test_a_member_leaves_and_the_group_goes_on() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="w", messages=0)
    c.subscribe("jobs", 1, group="w", messages=0)
    a.publish("jobs", b"1", b"2")
    assert b.ask("unsubscribe", lane=1) == {"dropped": 0}
    c.credit(1, 0, 2)
    assert c.read_payloads() == [b"1", b"2"]


def test_a_group_s_backlog_holds_and_stalls_like_a_lane_s() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, group="w", messages=0)
    full(bus, a)
    assert a.held == 1
    bus.advance(5.1)
    assert a.held == 0
    lost = bus.broker.counters.lost
    assert lost > 0
    b.credit(1, 0, 1)
    got = [e for e in b.read() if e[0] != Kind.LANE and e[2] != "lagging"]
    assert notice(got[0])["count"] == lost
    assert got[1][-1][:3] == b"%03d" % lost


def test_a_group_member_whose_output_is_full_gets_its_turn_later() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("big", 2, credit=64 << 20)
    b.subscribe("jobs", 1, group="w", messages=9, credit=64 << 20)
    a.publish("big", b"z" * OUTPUT_HIGH_BYTES)
    a.publish("jobs", b"1")
    got = b.read()
    assert [e[0] for e in got] == [Kind.LANE, Kind.PUBLISH]
    assert b.read_payloads() == [b"1"]


# --- retained (L-8) -------------------------------------------------------------------------------


def test_retained_messages_come_first_in_order_and_count() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.publish("s.one", b"1", kind=Kind.RETAIN)
    a.publish("s.two", b"2", kind=Kind.RETAIN)
    a.publish("s.one", b"3", kind=Kind.RETAIN)
    a.publish("t", b"4", kind=Kind.RETAIN)
    id = b.request("bus/subscribe", msgpack.packb({"pattern": "s.*", "lane": 1, "credit": 1000}))
    got = b.read()
    assert got[:3] == [[Kind.LANE, 0, 1], [Kind.RETAIN, a.id, "s.two", None, b"2"], [Kind.RETAIN, a.id, "s.one", None, b"3"]]
    assert got[3][3] == id
    assert msgpack.unpackb(got[3][-1]) == {"retained": 2, "policy": "block"}
    a.publish("s.one", b"5", kind=Kind.RETAIN)
    assert b.read() == [[Kind.RETAIN, a.id, "s.one", None, b"5"]]


def test_retained_can_be_declined_and_groups_get_none() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.publish("s", b"1", kind=Kind.RETAIN)
    assert b.ask("subscribe", pattern="s", lane=1, credit=1000, retained=False)["retained"] == 0
    assert b.ask("subscribe", pattern="s", lane=2, credit=1000, group="g")["retained"] == 0
    assert b.ask("subscribe", pattern="other", lane=3, credit=1000)["retained"] == 0


def test_an_empty_payload_removes_and_one_that_looks_empty_does_not() -> None:
    bus = Bus()
    a = bus.peer()
    a.publish("s", b"\xc6\x00\x00\x00\x00", kind=Kind.RETAIN)
    assert len(bus.broker.retained) == 1
    a.publish("s", b"", kind=Kind.RETAIN)
    assert (len(bus.broker.retained), bus.broker.retained.bytes) == (0, 0)


def test_a_run_keeps_its_last_message() -> None:
    bus = Bus()
    a = bus.peer()
    a.publish("s", b"0", kind=Kind.RETAIN)
    a.publish("s", b"1", b"2", b"3", kind=Kind.RETAIN)
    a.publish("s", b"4", b"55", kind=Kind.RETAIN)
    a.subscribe("nothing")
    a.request("bus/subscribe", msgpack.packb({"pattern": "s", "lane": 5, "credit": 1000}))
    assert a.read_payloads(Kind.RETAIN) == [b"55"]


def test_retained_survives_its_publisher() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.publish("s", b"1", kind=Kind.RETAIN)
    a.leave()
    b.request("bus/subscribe", msgpack.packb({"pattern": ">", "lane": 5, "credit": 1000}))
    assert b.read_payloads(Kind.RETAIN) == [b"1"]


@pytest.mark.parametrize(("topics", "refused"), [(2, 0), (3, 0), (4, 1)])
def test_the_limit_of_retained_topics(topics: int, refused: int) -> None:
    bus = Bus(max_retained_topics=3)
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    for index in range(topics):
        a.publish(f"t{index}", b"1", kind=Kind.RETAIN)
    errors = a.read()
    assert [e[4] for e in errors] == [Code.OVER_LIMIT] * refused
    assert len(b.read_payloads(Kind.RETAIN)) == topics  # delivered all the same


@pytest.mark.parametrize(("extra", "refused"), [(-1, 0), (0, 0), (1, 1)])
def test_the_limit_of_retained_bytes(extra: int, refused: int) -> None:
    bus = Bus(max_retained_bytes=1000)
    a = bus.peer()
    a.publish("a", b"x" * (500 - cost(a, "a", b"")), kind=Kind.RETAIN)
    a.publish("b", b"x" * (500 + extra - cost(a, "b", b"")), kind=Kind.RETAIN)
    assert [e[4] for e in a.read()] == [Code.OVER_LIMIT] * refused
    assert bus.broker.retained.bytes == (500 if refused else 1000 + extra)


def test_retained_on_an_illegal_topic() -> None:
    bus = Bus()
    a = bus.peer()
    a.publish("a.*", b"1", kind=Kind.RETAIN)
    assert [e[4] for e in a.read()] == [Code.BAD_TOPIC]
    assert len(bus.broker.retained) == 0


# --- what waits for one peer (L-7, slow_reader) ---------------------------------------------------


def test_all_that_waits_for_one_peer_is_bounded() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    a, greedy, other = bus.peer(), bus.peer(), bus.peer()
    other.subscribe("t")
    for lane in range(1, 101):
        greedy.subscribe("t", lane, credit=0)
    for _ in range(10):
        a.publish("t", b"." * 9_000)
    assert greedy.peer.backlog_bytes <= 1_000_000 + 10_000
    assert greedy.peer in bus.broker.take_touched()
    assert greedy.peer.closing
    assert greedy.read()[-1][:3] == [Kind.BYE, 0, Code.SLOW_READER]
    assert (greedy.peer.backlog_bytes, bus.broker.counters.lost) == (0, 1000)
    assert len(other.read_payloads()) == 10


def test_a_group_s_backlog_is_charged_to_one_member_and_then_the_next() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("jobs", 1, group="w", messages=0)
    c.subscribe("jobs", 1, group="w", messages=0)
    a.publish("jobs", b"1", b"2")
    waiting = 2 * cost(a, "jobs", b"1")
    assert (b.peer.queued_bytes, c.peer.queued_bytes) == (waiting, 0)
    assert bus.broker.queued_bytes() == waiting
    b.leave()
    assert (b.peer.queued_bytes, c.peer.queued_bytes) == (0, waiting)
    c.credit(1, 0, 2)
    c.read()
    assert c.peer.queued_bytes == 0


def test_a_member_that_publishes_to_its_own_group_is_not_held() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, group="w", messages=0)
    a.subscribe("x", 1, group="w", messages=0)
    full(bus, a)
    assert a.held == 0
    assert bus.broker.counters.lost == 0


def test_retained_messages_are_not_lost_for_want_of_credit() -> None:
    bus = Bus(max_payload_bytes=200_000, lane_soft_bytes=100_000)
    a, b = bus.peer(), bus.peer()
    for index in range(30):
        a.publish(f"s.{index:02}", b"." * 100_000, kind=Kind.RETAIN)
    assert b.ask("subscribe", pattern="s.*", lane=1, credit=0)["retained"] == 30
    b.credit(1, 64 << 20)
    assert len(b.read_payloads(Kind.RETAIN)) == 30
    assert bus.broker.counters.lost == 0


def test_unsubscribing_tells_what_was_lost_before() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    full(bus, a)
    bus.advance(5.1)
    assert bus.broker.counters.lost > 0
    assert b.ask("unsubscribe", lane=1) == {"dropped": 21}


def test_a_shorter_stall_time_holds_for_who_waits_already() -> None:
    bus = Bus(lane_stall_s=86_400)
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0)
    full(bus, a)
    bus.broker.reconfigure(Limits(lane_stall_s=5), bus.now)
    bus.advance(5)
    assert a.held == 0


def test_nothing_follows_the_bye_of_a_bus_that_stops() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=64 << 20)
    b.serve("svc", "get")
    a.request("svc/get", timeout_ms=100)
    a.publish("x", b"." * OUTPUT_HIGH_BYTES)
    a.publish("x", b"later")
    bus.broker.shut_down(bus.now)
    bus.advance(10)
    assert b.read()[-1][0] == Kind.BYE
    assert b.read() == []
    assert a.read()[-1][0] == Kind.BYE


def test_publishers_are_held_while_much_waits_for_one_peer_over_many_lanes() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    a, b = bus.peer(), bus.peer()
    for lane in range(1, 101):
        b.subscribe("t", lane, credit=0)
    a.publish("t", b"." * 4_000)
    assert a.held == 0
    a.publish("t", b"." * 4_000)
    assert a.held > 0
    assert not bus.broker.take_touched()[0].closing
    for lane in range(1, 101):
        b.credit(lane, 20_000)
        b.read()
    assert a.held == 0
    assert (b.peer.backlog_bytes, bus.broker.counters.lost) == (0, 0)


def test_retained_messages_cannot_make_the_bus_hold_more_than_a_peer_may_have() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    a, b = bus.peer(), bus.peer()
    for index in range(200):
        a.publish(f"s.{index}", b"." * 1000, kind=Kind.RETAIN)
    requests = b"".join(
        encode_with_payload(
            msgpack.packb({"pattern": "s.*", "lane": lane, "credit": 0}), Kind.REQUEST, 0, "bus/subscribe", lane, 1000, None
        )
        for lane in range(1, 101)
    )
    b.write(requests)
    assert b.peer.closing
    assert b.read()[-1][:3] == [Kind.BYE, 0, Code.SLOW_READER]
    assert b.peer.backlog_bytes == 0


def test_a_group_s_message_is_not_lost_because_one_member_has_too_much() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    for lane in range(1, 101):
        b.subscribe("t", lane, credit=0)
    b.subscribe("jobs", 500, group="w", messages=0)
    c.subscribe("jobs", 1, group="w", messages=100)
    a.publish("t", *[b"." * 9_000] * 2)
    a.publish("jobs", b"1", b"2")
    assert c.read_payloads() == [b"1", b"2"]


def test_who_loses_what_is_too_large_for_the_rest_of_its_limit_was_told_before_that_it_lags() -> None:
    """Policy drop_newest: within its soft limit the whole time, because what comes is lost (L-7)."""
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=0, policy="drop_newest", limits={"soft": 300, "hard": 500})
    a.publish("x", b"small")
    assert b.notices() == []
    a.publish("x", bytes(600))
    assert [(content["name"], content.get("dropping")) for content in b.notices()] == [("lagging", False)]
    b.credit(1, 1000)
    told = b.notices()
    assert [(content["name"], content.get("count", content.get("lost"))) for content in told] == [("lost", 1), ("caught_up", 1)]
