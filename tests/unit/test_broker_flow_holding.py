"""Publishers that are held: what they are told, what they park, and for how long a program may hold them (L-12)."""

from __future__ import annotations

import logging
from typing import Any

import msgpack
import pytest

from ipcbus.broker.holding import HOLD_LOG_S
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication

BODY = bytes(980)
SIZE = len(publication(1, "x", BODY))
SOFT = 4 * SIZE


def scene(**limits: Any) -> tuple[Bus, Client, Client]:
    """A publisher that understands hold, and a subscriber to x of another program that takes nothing."""
    bus = Bus(**{"lane_soft_bytes": SOFT, "max_parked_bytes": 4 * SIZE, **limits})
    a, b = bus.peer("pub", features=("hold",), pid=1), bus.peer("slow", pid=2)
    b.subscribe("x", credit=0)
    return bus, a, b


def fill(publisher: Client, count: int = 5, topic: str = "x", body: bytes = BODY) -> None:
    for _ in range(count):
        publisher.publish(topic, body)


def names(client: Client) -> list[str]:
    return [each["name"] for each in client.notices()]


def take(b: Client, count: int = 1000, lane: int = 1) -> int:
    """Have *b* take *count* messages; how many came."""
    b.credit(lane, count * SIZE)
    return len(b.read_payloads())


# --- who is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "held"), [(1, 0), (0, 0), (-1, 1)])
def test_a_publisher_is_held_above_the_soft_limit(extra: int, held: int) -> None:
    _, a, _ = scene(lane_soft_bytes=4 * SIZE + extra)
    fill(a, 4)
    assert a.held == held
    assert names(a) == ["hold"] * held


def test_what_hold_and_resume_say() -> None:
    _, a, b = scene()
    fill(a)
    said = {"name": "hold", "id": 1, "pattern": "x", "group": None, "peer": b.id, "program": "slow", "bytes": 5 * SIZE}
    assert a.notices() == [said]
    take(b, 3)
    assert a.notices() == [{"name": "resume", "id": 1}]
    fill(a)
    assert [(each["name"], each["id"]) for each in a.notices()] == [("hold", 2)]


@pytest.mark.parametrize(("taken", "resumed"), [(2, False), (3, True)])
def test_publishers_go_on_at_half_of_the_soft_limit(taken: int, resumed: bool) -> None:
    """Pieces that are gathered go together, so these are not."""
    body = bytes(5_000)
    size = len(publication(1, "x", body))
    _, a, b = scene(lane_soft_bytes=4 * size)
    for _ in range(5):
        a.publish("x", body)
    b.credit(1, taken * size)
    assert ("resume" in names(a)) is resumed


def test_each_publisher_is_told_once_and_who_does_not_understand_it_never() -> None:
    bus, a, b = scene()
    other, old = bus.peer("other", features=("hold",), pid=3), bus.peer("old", pid=4)
    fill(a)
    fill(other, 2)
    fill(old, 2)
    fill(a, 2)
    assert (names(a), names(other), names(old)) == (["hold"], ["hold"], [])
    assert (a.held, other.held, old.held) == (1, 1, 1)
    assert take(b) == 11
    assert (names(a), names(other), names(old)) == (["resume"], ["resume"], [])
    assert (a.held, other.held, old.held) == (0, 0, 0)


def test_what_held_publishers_publish_keeps_its_place_in_the_order() -> None:
    bus, a, b = scene()
    c = bus.peer("other", features=("hold",), pid=3)
    fill(a)
    for number in range(6):
        (a, c)[number % 2].publish("x", b"%d" % number)
    b.credit(1, 1 << 20)
    assert b.read_payloads() == [BODY] * 5 + [b"%d" % number for number in range(6)]


@pytest.mark.parametrize("parked", [0, 1])
def test_no_time_runs_once_the_last_publisher_that_was_held_has_gone(parked: int) -> None:
    bus, a, b = scene()
    fill(a, 5 + parked)
    a.leave()
    assert bus.broker.next_deadline() is None
    bus.advance(10)
    assert [each["dropping"] for each in b.notices()] == [False]
    assert bus.broker.counters.lost == 0


def test_a_held_publisher_is_told_when_its_end_of_file_ends_the_hold() -> None:
    bus, a, b = scene()
    b.serve("slow", "get")
    fill(a)
    a.request("slow/get")  # it stays for the answer
    bus.broker.half_close(a.peer, bus.now)
    assert names(a) == ["hold", "resume"]


def test_who_joins_the_group_that_holds_it_goes_on() -> None:
    """It may be the one that takes what waits there."""
    bus = Bus(lane_soft_bytes=SOFT)
    a, b, c = bus.peer(features=("hold",), pid=1), bus.peer(pid=2), bus.peer(features=("hold",), pid=3)
    b.subscribe("x", group="g", messages=0)
    fill(a, 6)
    fill(c, 1)
    a.subscribe("x", group="g", messages=0)
    assert (a.held, a.peer.parked_bytes, c.held) == (0, 0, 1)
    c.subscribe("x", group="g", messages=0)
    assert (c.held, bus.broker.next_deadline()) == (0, None)


def test_a_publisher_to_another_topic_is_not_held() -> None:
    bus, a, _b = scene()
    c = bus.peer(features=("hold",), pid=3)
    fill(a)
    c.publish("y", BODY)
    assert c.held == 0


def test_a_peer_s_own_publications_and_the_bus_s_hold_nobody() -> None:
    bus, _, b = scene(lane_hard_bytes=8 * SIZE)
    fill(b, 12)
    assert b.held == 0
    assert b.peer.backlog_bytes == 8 * SIZE
    assert bus.broker.counters.dropped == 4
    b.subscribe("$bus.names.*", 2, credit=0, limits={"soft": 1, "hard": 200})
    for number in range(20):
        b.ask("own", name=f"n{number}")
    assert b.peer.backlog_bytes <= 8 * SIZE + 200


@pytest.mark.parametrize(("more", "lost"), [(0, 0), (1, 1)])
def test_what_a_program_publishes_to_itself_may_wait_up_to_the_largest_message(more: int, lost: int) -> None:
    limits = Limits()
    assert limits.lane_hard_bytes >= limits.max_payload_bytes
    bus = Bus()
    b = bus.peer(pid=1)
    b.subscribe("x", credit=0)
    piece = bytes(1 << 20)
    fill(b, limits.lane_hard_bytes // len(publication(1, "x", piece)) + more, body=piece)
    assert bus.broker.counters.dropped == lost


def test_a_member_that_publishes_to_its_group_is_not_held_and_others_are() -> None:
    bus = Bus(lane_soft_bytes=SOFT)
    a, b = bus.peer(features=("hold",), pid=1), bus.peer(pid=2)
    b.subscribe("x", group="g", messages=0)
    fill(b, 6)
    fill(a, 1)
    assert (a.held, b.held) == (1, 0)
    assert [(each["group"], each["pattern"], each["peer"]) for each in a.notices()] == [("g", "x", b.id)]


# --- a held publisher is read ---------------------------------------------------------------------


def test_a_held_publisher_s_replies_credit_and_pings_work() -> None:
    _, a, b = scene()
    a.serve("svc", "get")
    a.subscribe("news", 5, credit=0)
    fill(a)
    a.read()
    id = b.request("svc/get")
    assert [each[0] for each in a.read()] == [Kind.REQUEST]
    a.reply(b, id, b"done")
    assert b.read()[-1][-1] == b"done"
    b.publish("news", b"n")
    a.credit(5, 1000)
    assert a.read_payloads() == [b"n"]
    a.write(encode(Kind.PING, a.id, 77))
    assert a.read() == [[Kind.PONG, 0, 77]]
    assert a.peer.held == 0


def test_a_handler_calls_while_its_own_lane_is_full() -> None:
    """The subscriber's callback, which takes nothing meanwhile, asks somebody: requests and replies need no credit of a lane."""
    bus, a, b = scene()
    service = bus.peer(pid=3)
    service.serve("svc", "get")
    fill(a)
    id = b.request("svc/get")
    service.read()
    service.reply(b, id, b"answer")
    assert [each[-1] for each in b.read() if each[0] == Kind.REPLY] == [b"answer"]


def test_a_full_subscriber_calls_the_very_publisher_that_waits_for_it() -> None:
    _, a, b = scene()
    a.serve("pub", "slower")
    fill(a)
    assert a.held == 1
    id = b.request("pub/slower")
    assert [each[0] for each in a.read()] == [Kind.NOTICE, Kind.REQUEST]
    a.reply(b, id, b"yes")
    assert [each[-1] for each in b.read() if each[0] == Kind.REPLY] == [b"yes"]
    assert take(b) == 5
    assert a.held == 0


# --- parking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "held"), [(1, 0), (0, 0), (-1, 1)])
def test_who_parks_too_much_is_read_no_more(extra: int, held: int) -> None:
    _, a, b = scene(max_parked_bytes=3 * SIZE + extra)
    fill(a)
    assert (a.peer.parked_bytes, b.peer.backlog_bytes) == (0, 5 * SIZE)
    fill(a, 3)
    assert (a.peer.parked_bytes, b.peer.backlog_bytes) == (3 * SIZE, 5 * SIZE)
    assert a.peer.held == held


@pytest.mark.parametrize("queues", [1, 2])
def test_one_large_message_that_was_under_way_is_parked_and_its_publisher_read_on(queues: int) -> None:
    bus, a, b = scene()
    if queues == 2:
        bus.peer(pid=3).subscribe("x", credit=0)
    fill(a)
    a.publish("x", bytes(20 * SIZE))
    assert a.peer.parked_bytes > queues * 20 * SIZE
    assert a.peer.held == 0
    assert a.ask("ping") == {"now_s": 0.0}
    take(b, 1)
    assert a.peer.held == 0
    a.publish("x", BODY)
    assert a.peer.held == 1


def test_who_was_read_no_more_is_read_again_below_half() -> None:
    body = bytes(5_000)
    size = len(publication(1, "x", body))
    _, a, b = scene(lane_soft_bytes=size, max_parked_bytes=4 * size)
    for _ in range(7):
        a.publish("x", body)
    assert a.peer.held == 1
    b.credit(1, 4 * size)
    assert (a.peer.parked_bytes, a.peer.held) == (3 * size, 1)
    b.credit(1, size)
    assert (a.peer.parked_bytes, a.peer.held, a.held) == (2 * size, 0, 1)
    b.credit(1, 2 * size)
    assert (a.peer.parked_bytes, a.held) == (0, 0)


def test_what_is_parked_in_several_queues_counts_together() -> None:
    bus, a, b = scene()
    c = bus.peer(pid=3)
    c.subscribe("y", credit=0)
    fill(a, 7)
    fill(a, 7, "y")
    assert (a.held, a.peer.parked_bytes) == (2, 4 * SIZE)
    assert a.peer.held == 0
    fill(a, 1)
    assert a.peer.held == 1
    take(b)
    assert (a.held, a.peer.parked_bytes, a.peer.held) == (1, 2 * SIZE, 0)


def test_parked_messages_are_not_counted_by_the_hard_limit() -> None:
    bus, a, b = scene(lane_hard_bytes=5 * SIZE)
    fill(a, 20)
    assert bus.broker.counters.lost == 0
    assert take(b) == 20


def test_a_publisher_that_goes_leaves_what_it_parked_to_the_queue_s_payer() -> None:
    bus, a, b = scene()
    fill(a, 8)
    a.leave()
    assert (a.peer.parked_bytes, a.held, b.peer.backlog_bytes) == (0, 0, 8 * SIZE)
    assert bus.broker.next_deadline() is None
    assert take(b) == 8
    assert bus.broker.queued_bytes() == 0


@pytest.mark.parametrize("count", [1, 4])
def test_publishers_that_come_publish_and_go_do_not_close_the_subscriber(count: int) -> None:
    """The first message of each is not parked, for it is the one that holds it."""
    bus, _, b = scene(lane_hard_bytes=10 * SIZE, max_output_bytes=100 * SIZE)
    for _ in range(120):
        passing = bus.peer(pid=1)
        fill(passing, count)
        passing.leave()
    bus.broker.take_touched()
    assert not b.peer.closing
    assert b.peer.backlog_bytes <= 10 * SIZE


def test_a_group_s_parked_bytes_stay_where_they_are_when_its_payer_leaves() -> None:
    bus = Bus(lane_soft_bytes=SOFT)
    a, b, c = bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3)
    b.subscribe("x", group="g", messages=0)
    c.subscribe("x", group="g", messages=0)
    fill(a, 7)
    b.leave()
    assert (b.peer.backlog_bytes, c.peer.backlog_bytes, a.peer.parked_bytes) == (0, 5 * SIZE, 2 * SIZE)
    c.credit(1, 0, 100)
    assert len(c.read_payloads()) == 7
    assert (c.peer.backlog_bytes, a.peer.parked_bytes, a.held) == (0, 0, 0)


def test_what_a_full_account_takes_is_the_payer_s_and_not_what_others_parked() -> None:
    body = bytes(5_000)  # a piece of its own
    size = len(publication(1, "x", body))
    bus, a, b = scene(lane_soft_bytes=size, max_parked_bytes=10 * size)
    for _ in range(6):
        a.publish("x", body)
    assert (b.peer.backlog_bytes, a.peer.parked_bytes) == (2 * size, 4 * size)
    bus.broker._delivery.shed(b.peer, 100 * size, "full")
    assert (b.peer.backlog_bytes, a.peer.parked_bytes) == (0, 4 * size)
    assert bus.broker.counters.over_quota == 2
    b.credit(1, 1 << 20)
    assert len(b.read_payloads()) == 4


def test_a_subscriber_that_goes_lets_everybody_go() -> None:
    bus, a, b = scene()
    fill(a, 12)
    assert a.peer.held == 1
    b.leave()
    assert (a.held, a.peer.held, a.peer.parked_bytes) == (0, 0, 0)
    assert names(a) == ["hold", "resume"]
    assert bus.broker.counters.evicted == 12
    assert bus.broker.next_deadline() is None


# --- the stall budget -----------------------------------------------------------------------------


@pytest.mark.parametrize(("after_s", "cut"), [(4.99, False), (5.0, True), (5.01, True)])
def test_how_long_a_queue_may_hold(after_s: float, cut: bool) -> None:
    bus, a, b = scene()
    fill(a, 6)
    bus.advance(after_s)
    assert a.held == (not cut)
    assert names(a) == ["hold", *["resume"] * cut]
    assert [each["dropping"] for each in b.notices() if each["name"] == "lagging"] == [False, *[True] * cut]
    assert (b.peer.backlog_bytes <= SOFT) is cut
    assert a.peer.parked_bytes == (0 if cut else SIZE)


def test_a_subscription_s_own_seconds() -> None:
    bus, a, b = scene()
    b.ask("unsubscribe", lane=1)
    b.subscribe("x", credit=0, limits={"seconds": 1})
    fill(a)
    bus.advance(0.99)
    assert a.held == 1
    bus.advance(0.01)
    assert a.held == 0


def test_after_the_cut_it_drops_its_oldest_until_it_has_caught_up() -> None:
    bus, a, b = scene()
    fill(a)
    bus.advance(5)
    fill(a, 20)
    assert a.held == 0
    assert b.peer.backlog_bytes <= SOFT
    lost = bus.broker.counters.dropped
    b.credit(1, 1 << 20)
    got = b.notices()
    assert [(each["name"], each.get("count", each.get("lost"))) for each in got[2:]] == [("lost", lost), ("caught_up", lost)]


def test_who_stalls_is_cut_reconnects_and_stalls_again_does_not_hold_for_ever() -> None:
    """In a minute a program holds its publishers for five seconds, however often it comes back."""
    bus, a, _ = scene()
    held_s = 0.0
    for _ in range(120):
        slow = bus.peer("slow", pid=2)
        slow.subscribe("x", credit=0)
        fill(a, 6)
        for _ in range(5):
            bus.advance(0.1)
            held_s += 0.1 * bool(a.held)
        slow.leave()
    assert held_s <= 5 + 5 * 60 / 60 + 0.5


@pytest.mark.parametrize(("pid", "held"), [(2, 0), (3, 1)])
def test_the_budget_is_a_program_s(pid: int, held: int) -> None:
    bus, a, _b = scene()
    fill(a)
    bus.advance(5)
    other = bus.peer(pid=pid)
    other.subscribe("y", credit=0)
    fill(a, 6, "y")
    assert a.held == held


def test_several_queues_drain_the_budget_no_faster_than_one() -> None:
    bus, a, b = scene()
    b.subscribe("y", 2, credit=0)
    fill(a)
    bus.advance(2)
    fill(a, 5, "y")
    assert a.held == 2
    bus.advance(2.9)
    assert a.held == 2
    bus.advance(0.2)  # the program's five seconds are over, for the second queue too
    assert a.held == 0


@pytest.mark.parametrize(("rest_s", "held"), [(5.9, 0), (6.0, 1)])
def test_the_budget_comes_back_while_nobody_is_held(rest_s: float, held: int) -> None:
    """A tenth of it at least, or it would hold for a moment again and again."""
    bus, a, b = scene()
    fill(a)
    bus.advance(5)
    assert take(b)
    bus.advance(rest_s + 1e-6)
    b.subscribe("y", 2, credit=0)
    fill(a, 5, "y")
    assert a.held == held
    bus.advance(0.6)
    assert a.held == 0


def test_a_full_budget_is_five_seconds_however_long_it_rested() -> None:
    bus, a, _b = scene()
    bus.advance(10_000)
    fill(a)
    bus.advance(5)
    assert a.held == 0


def test_time_that_runs_backwards_gives_nothing_back() -> None:
    bus, a, _b = scene()
    fill(a)
    bus.advance(3)
    bus.advance(-2)
    bus.advance(4)
    assert a.held == 0


def test_a_group_uses_the_time_of_the_member_that_has_most_left() -> None:
    bus, a, b = scene()
    good = bus.peer(pid=3)
    b.subscribe("g", 2, group="w", messages=0)
    good.subscribe("g", 1, group="w", messages=0)
    fill(a)
    bus.advance(5)
    fill(a, 5, "g")
    assert a.held == 1


def test_budgets_that_are_full_again_are_forgotten() -> None:
    bus, a, _ = scene()
    for pid in range(2, 2_600):
        slow = bus.peer(pid=pid)
        slow.subscribe("y", credit=0)
        fill(a, 5, "y")
        slow.leave()
        bus.advance(0.1)
    assert len(bus.broker.holds._budgets) <= 2_000


def test_less_time_holds_for_who_waits_already_and_more_for_the_next() -> None:
    bus, a, _b = scene()
    fill(a)
    bus.advance(1)
    bus.broker.reconfigure(Limits(lane_soft_bytes=SOFT, lane_stall_s=2), bus.now)
    bus.advance(1.9)
    assert a.held == 1
    bus.advance(0.1)
    assert a.held == 0


def test_a_larger_limit_lets_who_is_held_go() -> None:
    bus, a, _b = scene()
    fill(a, 6)
    bus.broker.reconfigure(Limits(lane_soft_bytes=20 * SIZE), bus.now)
    assert a.held == 0
    assert bus.broker.counters.lost == 0


# --- what is said ---------------------------------------------------------------------------------


def test_stats_say_who_holds_whom() -> None:
    bus, a, b = scene()
    assert (a.ask("stats")["held"], a.ask("stats")["holding"]) == (0, [])
    other = bus.peer(pid=3)
    fill(a, 6)
    fill(other, 1)
    bus.now += 1.5
    a.read()
    b.read()
    stats = bus.peer().ask("stats")
    assert stats["held"] == 2
    item = {"id": 1, "pattern": "x", "group": None, "peer": b.id, "program": "slow", "pid": 2, "publishers": 2, "bytes": 7 * SIZE}
    assert stats["holding"] == [item | {"held_s": 1.5}]
    assert stats["queued_bytes"] == 7 * SIZE


def test_stats_name_twenty_queues_at_most() -> None:
    bus, a, _ = scene()
    for lane in range(2, 32):
        slow = bus.peer(pid=100 + lane)
        slow.subscribe("y", credit=0)
    fill(a, 5, "y")
    assert len(bus.peer().ask("stats")["holding"]) == 20


def test_the_log_says_who_holds_whom_and_for_how_long() -> None:
    bus, a, b = scene()
    fill(a, 7)
    bus.advance(1)
    take(b)
    began = [text for _, text in bus.log if "holds its publishers" in text]
    assert len(began) == 1
    for word in ("'slow'", f"peer {b.id} ", "'x'", "'pub'", f"{5 * SIZE} bytes", "limits.lane_soft_bytes", "limits.lane_stall_s"):
        assert word in began[0]
    assert sum("held 1 publisher for 1.0 s" in text for _, text in bus.log) == 1


@pytest.mark.parametrize(("pause_s", "lines"), [(HOLD_LOG_S - 1.0, 1), (HOLD_LOG_S, 2), (HOLD_LOG_S + 1.0, 2)])
def test_who_holds_others_again_and_again_is_logged_once_a_minute(pause_s: float, lines: int) -> None:
    """Short holds are how a fast publisher and a busy subscriber keep in step."""
    bus, a, b = scene()
    began = bus.now
    fill(a, 6)
    take(b, 6)
    bus.advance(began + pause_s - bus.now)
    fill(a, 6)
    take(b, 6)
    assert len([text for level, text in bus.log if level == logging.WARNING and "holds its publishers" in text]) == lines
    assert len([text for level, text in bus.log if level == logging.INFO and "lets them go" in text]) == lines


def test_a_will_of_a_held_publisher_comes_after_what_it_parked() -> None:
    _bus, a, b = scene()
    a.ask("will", topic="x", payload=b"gone")
    fill(a, 6)
    a.leave()
    b.credit(1, 1 << 20)
    assert b.read_payloads() == [BODY] * 6 + [b"gone"]


def test_a_post_of_a_held_publisher_is_parked_and_answered() -> None:
    _, a, _b = scene()
    fill(a)
    a.read()
    a.write(encode_with_payload(b"p", Kind.POST, a.id, "x", 9, None, False, None))
    answer = a.read()[-1]
    assert (answer[0], answer[3], msgpack.unpackb(answer[-1])) == (Kind.REPLY, 9, 1)
    assert a.peer.parked_bytes == len(publication(a.id, "x", b"p"))


def test_a_request_that_is_held_up_by_nothing_of_this_leaves_no_charge() -> None:
    bus, a, b = scene()
    fill(a, 9)
    take(b)
    a.leave()
    b.leave()
    assert bus.broker.queued_bytes() == 0
    assert bus.broker.next_deadline() is None
    assert len(bus.broker.holds) == 0
    assert bus.broker.holds.publishers == 0
