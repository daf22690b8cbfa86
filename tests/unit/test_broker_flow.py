"""Policies and limits of subscriptions, and what a program is told of its slowness (L-7)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode_with_payload
from tests.unit.harness import Bus, Client, publication

COST = len(publication(1, "x", b"00"))  #: of each message here
DROPPING = ["drop_oldest", "drop_newest"]


def texts(count: int, start: int = 0) -> list[bytes]:
    return [b"%02d" % number for number in range(start, start + count)]


def pair(policy: str, *, group: str | None = None, **limits: Any) -> tuple[Bus, Client, Client]:
    """A publisher, and a subscriber to x that takes nothing."""
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    b.subscribe("x", credit=0, policy=policy, limits=limits, **({} if group is None else {"group": group, "messages": 0}))
    return bus, a, b


def everything(b: Client, group: str | None = None) -> list[Any]:
    """What *b* gets when it takes all: payloads, and of each notice what it says."""
    b.credit(1, 64 << 20, 1000 if group is not None else 0)
    seen: list[Any] = []
    for envelope in b.read():
        if envelope[0] == Kind.NOTICE:
            said = Client.answer([Kind.REPLY, *envelope[1:]])
            seen.append({"lost": (said.get("count"), said.get("why")), "caught_up": said.get("lost")}.get(envelope[2], envelope[2]))
        elif envelope[0] in (Kind.PUBLISH, Kind.RETAIN):
            seen.append(envelope[-1])
    return seen


def told(b: Client) -> list[tuple[str, bool | int]]:
    """The notices that wait for *b*, in short."""
    return [(each["name"], each.get("dropping", each.get("lost", 0))) for each in b.notices()]


# --- episodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(("extra", "lags"), [(1, False), (0, False), (-1, True)])
def test_an_episode_begins_above_the_soft_limit_and_ends_where_nothing_waits(extra: int, lags: bool, group: str | None) -> None:
    _, a, b = pair("drop_oldest", group=group, soft=3 * COST + extra)
    a.publish("x", *texts(3))
    assert told(b) == ([("lagging", False)] if lags else [])
    assert everything(b, group) == [*texts(3), *([0] if lags else [])]
    a.publish("x", b"09")
    assert told(b) == []


def test_what_a_lagging_notice_says() -> None:
    _, a, b = pair("drop_newest", soft=COST, hard=5 * COST, seconds=2.5)
    a.publish("x", *texts(2))
    assert b.notices() == [
        {
            "name": "lagging", "lane": 1, "bytes": 2 * COST, "count": 2, "policy": "drop_newest", "soft": COST, "hard": 5 * COST,
            "seconds": 2.5, "dropping": False,
        }
    ]  # fmt: skip


def test_each_member_of_a_group_is_told_of_its_queue_with_its_own_lane() -> None:
    bus, a, b = pair("drop_oldest", group="g", soft=COST)
    c = bus.peer(pid=3)
    c.subscribe("x", 7, credit=1000, group="g", messages=0)
    a.publish("x", *texts(2))
    assert [each["lane"] for each in (*b.notices(), *c.notices())] == [1, 7]
    c.credit(7, 0, 2)
    assert [each["name"] for each in (*b.notices(), *c.notices())] == ["caught_up", "caught_up"]


def test_a_group_whose_members_take_a_message_at_once_does_not_lag() -> None:
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    b.subscribe("x", group="g", messages=9, policy="drop_newest", limits={"soft": 1, "hard": 1})
    a.publish("x", *texts(5))
    assert b.read_payloads() == texts(5)
    assert bus.broker.counters.dropped == 0


def test_the_log_has_a_line_when_an_episode_begins_and_one_when_it_ends() -> None:
    bus, a, b = pair("drop_oldest", soft=COST, hard=2 * COST)
    a.publish("x", *texts(5))
    everything(b)
    lines = [text for _, text in bus.log]
    assert sum("lags" in line and "policy drop_oldest" in line for line in lines) == 1
    assert sum("has caught up; 3 messages were lost" in line for line in lines) == 1


# --- the hard limit -------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("policy", DROPPING)
@pytest.mark.parametrize(("extra", "lost"), [(1, 0), (0, 0), (-1, 1)])
def test_the_hard_limit(policy: str, extra: int, lost: int, group: str | None) -> None:
    bus, a, b = pair(policy, group=group, soft=COST, hard=4 * COST + extra)
    for text in texts(4):
        a.publish("x", text)
    gap = [(lost, "too_slow")] * bool(lost)
    stays = texts(4 - lost, lost) if policy == "drop_oldest" else texts(4 - lost)
    expected = [*gap, *stays] if policy == "drop_oldest" else [*stays, *gap]
    assert [each for each in everything(b, group) if each != "lagging"] == [*expected, lost]
    assert bus.broker.counters.dropped == lost


def test_a_gap_of_drop_newest_stands_where_the_lost_would_have_stood() -> None:
    _, a, b = pair("drop_newest", soft=2 * COST, hard=2 * COST)
    a.publish("x", *texts(3))
    b.credit(1, COST)  # what waits is one piece: it goes, and the gap with it
    a.publish("x", *texts(2, 3))
    assert everything(b) == ["lagging", *texts(2), (1, "too_slow"), 1, *texts(2, 3)]


def test_gaps_between_what_waits_stay_between() -> None:
    big = [b"%02d" % number + bytes(20_000) for number in range(6)]
    size = len(publication(1, "x", big[0]))
    _, a, b = pair("drop_newest", soft=size, hard=2 * size)
    for each in big[:3]:
        a.publish("x", each)
    b.credit(1, 1)  # one goes: there is room for another behind the gap
    a.publish("x", big[3], big[4])
    seen = [each[:2] if isinstance(each, bytes) else each for each in everything(b)]
    assert seen == ["lagging", b"00", b"01", (1, "too_slow"), b"03", (1, "too_slow"), 2]


@pytest.mark.parametrize("policy", [*DROPPING, "latest", "block"])
def test_one_message_that_is_larger_than_the_limits_waits(policy: str) -> None:
    bus, a, b = pair(policy, soft=10, hard=20)
    a.publish("x", bytes(100_000))
    assert everything(b) == ["lagging", bytes(100_000), 0]
    assert bus.broker.counters.lost == 0


@pytest.mark.parametrize("policy", DROPPING)
def test_a_run_is_cut_at_a_frame(policy: str) -> None:
    bus, a, b = pair(policy, soft=COST, hard=3 * COST)
    a.publish("x", *texts(10))
    stays = texts(3, 7) if policy == "drop_oldest" else texts(3)
    assert [each for each in everything(b) if isinstance(each, bytes)] == stays
    assert bus.broker.counters.dropped == 7


def test_what_came_together_is_lost_together_but_never_more_than_half() -> None:
    """A flood to who is stuck costs a step for each run, not one for each message."""
    bus, a, b = pair("drop_oldest", soft=COST, hard=2000 * COST)
    for start in range(4):
        a.publish("x", *[b"%d" % start + b"."] * 1000)
    assert b.peer.lanes is not None
    backlog = b.peer.lanes[1].backlog
    assert backlog is not None
    assert 1000 * COST <= backlog.bytes <= 2000 * COST
    assert bus.broker.counters.dropped == 4000 - backlog.count


def test_so_it_is_where_all_that_waits_for_the_peer_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(max_output_bytes=8_000 * COST)
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    for lane in range(1, 6):
        b.subscribe("x", lane, credit=0, policy="drop_oldest")
    steps: list[int] = []
    record = bus.broker.losses.record
    monkeypatch.setattr(bus.broker.losses, "record", lambda *about: (steps.append(about[2]), record(*about)))
    for _ in range(30):
        a.publish("x", *texts(100))
    assert 3_500 * COST <= b.peer.backlog_bytes <= 4_000 * COST + 5 * 100 * COST
    assert sum(steps) == bus.broker.counters.dropped > 10_000
    assert len(steps) <= 30 * 5 * 2


@pytest.mark.parametrize("policy", DROPPING)
@pytest.mark.parametrize("limit", [1, 2, COST])
def test_of_a_run_one_message_stays_where_the_limit_is_smaller(policy: str, limit: int) -> None:
    _, a, b = pair(policy, soft=1, hard=limit)
    a.publish("x", *texts(5))
    assert [each for each in everything(b) if isinstance(each, bytes)] == ([b"04"] if policy == "drop_oldest" else [b"00"])


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", DROPPING)
@pytest.mark.parametrize(("after_s", "cut"), [(1.99, False), (2.0, True), (2.01, True)])
def test_over_the_soft_limit_for_too_long(policy: str, after_s: float, cut: bool) -> None:
    bus, a, b = pair(policy, soft=2 * COST, seconds=2)
    a.publish("x", *texts(4))
    assert told(b) == [("lagging", False)]
    bus.advance(after_s)
    assert told(b) == ([("lagging", True)] if cut else [])
    stays = texts(4)
    if policy == "drop_newest":
        a.publish("x", b"04")
        stays = texts(4 if cut else 5)
    elif cut:
        stays = texts(2, 2)
    assert [each for each in everything(b) if isinstance(each, bytes)] == stays


@pytest.mark.parametrize(("frees", "again"), [(1, False), (2, True)])
def test_only_half_of_the_soft_limit_begins_the_time_anew(frees: int, again: bool) -> None:
    """Pieces of their own, so that one credit frees one of them."""
    body = bytes(5_000)
    size = len(publication(1, "x", body))
    bus, a, b = pair("drop_oldest", soft=2 * size, seconds=2)
    a.publish("x", body)
    a.publish("x", body)
    a.publish("x", body)
    bus.advance(1.5)
    b.credit(1, frees * size)
    b.read()
    a.publish("x", body)
    a.publish("x", body)
    bus.advance(0.6)
    assert ("lagging", True) not in told(b) if again else ("lagging", True) in told(b)


def test_half_of_the_soft_limit_is_half_also_where_a_loss_brought_it_there() -> None:
    body = bytes(5_000)
    size = len(publication(1, "x", body))
    bus, a, b = pair("drop_oldest", soft=4 * size, hard=7 * size, seconds=2)
    for each in (bytes(30_000), body):
        a.publish("x", each)
    bus.advance(1.5)
    a.publish("x", body)  # over the hard limit: the large one goes
    bus.advance(1)
    assert told(b) == [("lagging", False)]


def test_after_the_cut_the_soft_limit_holds_until_it_has_caught_up() -> None:
    bus, a, b = pair("drop_oldest", soft=2 * COST, hard=100 * COST, seconds=1)
    a.publish("x", *texts(3))
    bus.advance(1)
    for text in texts(5, 3):
        a.publish("x", text)
    assert everything(b) == ["lagging", "lagging", (6, "too_slow"), *texts(2, 6), 6]
    b.credit(1, 0)
    assert b.peer.lanes is not None
    b.peer.lanes[1].credit = 0
    a.publish("x", *texts(4))  # a new episode: up to the hard limit again
    assert everything(b) == ["lagging", *texts(4), 0]


def test_nothing_is_due_once_nobody_lags() -> None:
    bus, a, b = pair("drop_oldest", soft=COST)
    a.publish("x", *texts(3))
    assert bus.broker.next_deadline() == bus.now + 5
    everything(b)
    assert bus.broker.next_deadline() is None


# --- latest ---------------------------------------------------------------------------------------


def test_latest_keeps_one_for_each_topic_at_its_place() -> None:
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    b.subscribe("t.>", credit=0, policy="latest")
    for topic, text in (("t.x", b"1"), ("t.y", b"2"), ("t.x", b"3"), ("t.z", b"4"), ("t.y", b"5"), ("t.x", b"6")):
        a.publish(topic, text)
    assert everything(b) == [(3, "replaced"), b"6", b"5", b"4"]
    assert bus.broker.queued_bytes() == 0
    a.publish("t.x", b"7", b"8")
    assert b.read_payloads() == [b"7", b"8"]  # what need not wait is not replaced


@pytest.mark.parametrize("topic", ["t", "t" * 31, "t" * 32, "t" * 255])
@pytest.mark.parametrize("sender", [1, 127, 128, 256, 70_000])
def test_latest_finds_the_topic_whatever_stands_before_it(topic: str, sender: int) -> None:
    bus = Bus()
    bus.broker._last_peer = sender - 1
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    b.subscribe(topic, credit=0, policy="latest")
    a.write(b"".join(publication(a.id, topic, text, kind) for text, kind in ((b"1", Kind.PUBLISH), (b"2", Kind.RETAIN))))
    assert a.id == sender
    assert everything(b) == [(1, "replaced"), b"2"]


def test_latest_within_a_run_and_across_sizes_and_lifetimes() -> None:
    bus, a, b = pair("latest")
    a.publish("x", b"1", bytes(9_000), b"3")
    a.write(encode_with_payload(b"4", Kind.POST, a.id, "x", None, 100, False, None))
    bus.advance(0.2)
    a.publish("x", b"5")
    assert everything(b) == [(4, "replaced"), b"5"]
    assert b.peer.backlog_bytes == 0


@pytest.mark.parametrize(("extra", "lost"), [(1, 0), (0, 0), (-1, 1)])
def test_latest_above_its_hard_limit_loses_the_oldest(extra: int, lost: int) -> None:
    size = len(publication(1, "t.0", b"0"))
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    b.subscribe("t.*", credit=0, policy="latest", limits={"soft": 1, "hard": 3 * size + extra})
    for number in range(3):
        a.publish(f"t.{number}", b"%d" % number)
    a.publish("t.2", b"9")
    seen = [each for each in everything(b) if each != "lagging"]
    gap = [(lost, "too_slow")] * bool(lost)
    assert seen == [*gap, (1, "replaced"), *[b"0", b"1"][lost:], b"9", 1 + lost]


def test_latest_of_a_group_and_of_retained_values() -> None:
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    a.publish("s", b"old", kind=Kind.RETAIN)
    b.subscribe("s", credit=0, policy="latest")
    a.publish("s", b"new", kind=Kind.RETAIN)
    assert everything(b) == [(1, "replaced"), b"new"]
    b.subscribe("j", 2, credit=1000, group="g", messages=0, policy="latest")
    a.publish("j", b"1")
    a.publish("j", b"2")
    b.credit(2, 0, 5)
    assert b.read_payloads() == [b"2"]


# --- disconnect -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "closed"), [(1, False), (0, False), (-1, True)])
def test_disconnect_above_the_hard_limit(extra: int, closed: bool) -> None:
    bus, a, b = pair("disconnect", soft=COST, hard=3 * COST + extra)
    a.publish("x", *texts(3))
    bus.broker.take_touched()
    assert b.peer.closing is closed
    if closed:
        bye = b.read()[-1]
        assert (bye[0], bye[2]) == (Kind.BYE, Code.SLOW_READER)
        assert "policy disconnect" in bye[3]
        a.publish("x", b"00")  # nobody is there any more
        assert bus.broker.counters.no_subscriber == 1


@pytest.mark.parametrize(("after_s", "closed"), [(0.99, False), (1.0, True)])
def test_disconnect_after_its_time(after_s: float, closed: bool) -> None:
    bus, a, b = pair("disconnect", soft=COST, seconds=1)
    a.publish("x", *texts(2))
    bus.advance(after_s)
    bus.broker.take_touched()
    assert b.peer.closing is closed


def test_what_comes_for_who_is_about_to_be_closed_is_counted_and_kept_nowhere() -> None:
    bus, a, b = pair("disconnect", soft=COST, hard=COST)
    a.publish("x", *texts(2))
    a.publish("x", *texts(5))
    assert b.peer.backlog_bytes == 2 * COST
    bus.broker.take_touched()
    assert bus.broker.counters.evicted == 7
    assert b.peer.backlog_bytes == 0


# --- what is said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy": "never"}, {"policy": 1}, {"policy": ["block"]}, {"limits": 1}, {"limits": {"soft": 0}}, {"limits": {"soft": 2**53}},
        {"limits": {"hard": 1.5}}, {"limits": {"hard": None}}, {"limits": {"seconds": -0.1}}, {"limits": {"seconds": 86_400.1}},
        {"limits": {"seconds": float("nan")}}, {"limits": {"low": 1}}, {"limits": {1: 1}}, {"limits": {"soft": 2, "hard": 1}},
        {"policy": "disconnect", "group": "g"},
    ],
)  # fmt: skip
def test_terms_that_are_none(arguments: dict[str, Any]) -> None:
    code, text = Bus().peer().ask("subscribe", pattern="x", lane=1, credit=1, **arguments)
    assert code == Code.BAD_ARGUMENT, text


@pytest.mark.parametrize("limits", [{"soft": 1, "hard": 1}, {"soft": 2**53 - 1}, {"seconds": 0}, {"seconds": 86_400}, {}, None])
def test_terms_at_their_limits(limits: dict[str, Any] | None) -> None:
    assert Bus().peer().ask("subscribe", pattern="x", lane=1, credit=1, limits=limits, policy=None) == {"retained": 0, "policy": "block"}


@pytest.mark.parametrize(
    ("stated", "soft", "hard"),
    [
        ({}, 1000, 4000), ({"hard": 999}, 999, 999), ({"hard": 1000}, 1000, 1000), ({"hard": 1001}, 1000, 1001),
        ({"soft": 3999}, 3999, 4000), ({"soft": 4001}, 4001, 4001), ({"soft": 2, "hard": 3}, 2, 3),
    ],
)  # fmt: skip
def test_a_limit_that_is_stated_holds_and_the_other_yields(stated: dict[str, int], soft: int, hard: int) -> None:
    bus = Bus(lane_soft_bytes=1000, lane_hard_bytes=4000)
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", credit=0, policy="drop_oldest", limits=stated)
    a.publish("x", *(bytes(10) for _ in range(400)))
    (notice,) = b.notices()
    assert (notice["soft"], notice["hard"]) == (soft, hard)


def test_later_members_of_a_group_say_the_same_or_nothing() -> None:
    bus = Bus(lane_hard_bytes=9_000)
    a, b = bus.peer(), bus.peer()
    a.subscribe("x.*", group="g", policy="latest", limits={"soft": 500})
    assert b.ask("subscribe", pattern="x.*", lane=1, credit=1, group="g")["policy"] == "latest"
    good = {"policy": "latest", "limits": {"soft": 500, "hard": 9_000, "seconds": 5}}
    assert b.ask("subscribe", pattern="x.*", lane=2, credit=1, group="g", **good)["policy"] == "latest"
    for bad in ({"policy": "block"}, {"limits": {"soft": 501}}, {"limits": {"hard": 9_001}}, {"limits": {"seconds": 4}}):
        code, text = b.ask("subscribe", pattern="x.*", lane=3, credit=1, group="g", **bad)
        assert code == Code.BAD_ARGUMENT, text
    a.leave()
    b.leave()
    c = bus.peer()
    c.subscribe("x.*", group="g", policy="drop_oldest")  # the group had ended


def test_the_bus_s_own_limits_hold_where_nothing_is_said_and_change_while_something_waits() -> None:
    body = bytes(5_000)  # a piece of its own
    size = len(publication(1, "x", body))
    bus = Bus(lane_policy="drop_oldest", lane_soft_bytes=2 * size, lane_hard_bytes=3 * size)
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    assert b.ask("subscribe", pattern="x", lane=1, credit=0)["policy"] == "drop_oldest"
    for _ in range(4):
        a.publish("x", body)
    assert bus.broker.counters.dropped == 1
    bus.broker.reconfigure(Limits(lane_policy="block", lane_soft_bytes=4 * size, lane_hard_bytes=5 * size, lane_stall_s=1), bus.now)
    for _ in range(2):
        a.publish("x", body)
    assert bus.broker.counters.dropped == 1
    bus.advance(1)
    assert bus.broker.counters.dropped == 2


@pytest.mark.parametrize(
    ("policy", "lost", "closed"), [("drop_oldest", 2, False), ("drop_newest", 2, False), ("disconnect", 0, True), ("block", 0, False)]
)
def test_a_smaller_limit_holds_at_once(policy: str, lost: int, closed: bool) -> None:
    bus, a, b = pair(policy)
    a.publish("x", *texts(4))
    assert told(b) == []
    bus.broker.reconfigure(Limits(lane_soft_bytes=COST, lane_hard_bytes=2 * COST, lane_stall_s=1), bus.now)
    bus.broker.take_touched()
    assert (bus.broker.counters.dropped, b.peer.closing) == (lost, closed)
    if lost:
        assert told(b) == [("lagging", False)]
        bus.advance(1)
        assert told(b) == [("lagging", True)]


@pytest.mark.parametrize("policy", DROPPING)
def test_the_queues_of_a_peer_lose_before_the_peer_is_closed(policy: str) -> None:
    bus = Bus(max_output_bytes=100_000)
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    for lane in range(1, 31):
        b.subscribe("x", lane, credit=0, policy=policy)
    for _ in range(100):
        a.publish("x", bytes(1_000))
    bus.broker.take_touched()
    assert not b.peer.closing
    assert b.peer.backlog_bytes <= 50_000 + 30 * 1_100


@pytest.mark.parametrize("limits", [{}, {"soft": 1 << 40}, {"hard": 1 << 40}])
@pytest.mark.parametrize("policy", [*DROPPING, "block"])
def test_no_limit_of_a_group_closes_its_members(policy: str, limits: dict[str, int]) -> None:
    """The first would be closed for what waits, then the next, who pays for it from then on."""
    bus = Bus(max_output_bytes=100 * COST)
    a, b, c = bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3)
    for member in (b, c):
        member.subscribe("x", group="g", messages=0, policy=policy, limits=limits)
    for text in (b"%02d" % (number % 100) for number in range(200)):
        a.publish("x", text)
    bus.broker.take_touched()
    assert not b.peer.closing
    assert b.peer.backlog_bytes <= 51 * COST
    same = {"policy": policy, "limits": {"soft": Limits().lane_soft_bytes, "hard": Limits().lane_hard_bytes, **limits}}
    same["limits"]["hard"] = max(same["limits"].values())
    c.subscribe("x", 2, group="g", **same)  # who says the same still says the same


def test_who_has_lost_something_for_being_closed_is_closed() -> None:
    """Also where less waits at the end of the round: a loss without its notice is only for who is not there any more."""
    bus = Bus(max_output_bytes=100_000)
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    a.publish("x", bytes(60_000), kind=Kind.RETAIN)
    bus.broker.take_touched()
    for lane in (1, 2):
        b.request("bus/subscribe", msgpack.packb({"pattern": "x", "lane": lane, "credit": 0}))
    a.publish("x", b"lost")
    assert bus.broker.counters.evicted == 2
    b.credit(1, 1 << 20)
    b.read()
    assert b.peer.queued_bytes < 100_000
    bus.broker.take_touched()
    assert b.peer.closing
