"""The books: every message that was offered ends in one counted way, at the bus, at the peer and at its topic (B-4, B-5)."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest

from ipcbus.broker.counters import ENDS, TURN_S, TopicCounters
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import CHECKPOINT_BYTES, EPISODE_PAUSE_S, LOSS_EPISODES, LOSS_LOG_S, LOSS_WALK_MAX, LOSS_WALK_S, Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication


def books(bus: Bus) -> dict[str, int]:
    """What became of what was offered, without the zeros; the sum has to be right."""
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values()), (offered, ends)
    assert [*ends] == [*ENDS, "queued"]
    return {name: count for name, count in ends.items() if count}


def losses(client: Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.ask("losses")["items"]
    return items


def send(client: Client, to: str, payload: bytes = b"x") -> None:
    client.write(publication(client.id, to, payload, Kind.SEND))


def post(client: Client, topic: str, ttl_ms: int | None, payload: bytes = b"x", *, retain: bool = False) -> None:
    client.write(encode_with_payload(payload, Kind.POST, client.id, topic, None, ttl_ms, retain, None))


# --- the equation ---------------------------------------------------------------------------------


def test_what_waits_in_an_output_is_queued_and_what_the_kernel_took_is_delivered() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x")
    a.publish("x", b"1", b"2")
    assert books(bus) == {"queued": 2}
    b.read()
    assert books(bus) == {"delivered": 2}


def test_each_lane_and_each_group_is_offered_a_message_once() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.subscribe("x", 1)
    b.subscribe(">", 2)
    b.subscribe("x", 3, group="g")
    c.subscribe("x", 1, group="g")
    a.publish("x")
    assert bus.broker.counters.offered == 3
    assert books(bus) == {"queued": 3}


def test_sends_posts_retained_ones_and_the_bus_s_own_are_offered_too() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("$bus.names.>")
    b.serve("svc", "m")
    send(a, "svc")
    send(a, "nobody")
    post(a, "r", None, retain=True)
    b.subscribe("r", 2)
    b.subscribe("r", 3, credit=0)
    assert bus.broker.counters.offered == 4  # the name's change, the SEND, and what is kept for two lanes
    assert books(bus) == {"delivered": 3, "queued": 1}
    assert bus.broker.counters.refused == 1


@pytest.mark.parametrize("end", ["unsubscribe", "bye", "half", "gone", "stop", "expel"])
def test_what_waits_for_a_lane_that_ends_is_evicted(end: str) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", credit=0)
    a.publish("x", b"1", b"2", b"3")
    if end == "unsubscribe":
        assert b.ask("unsubscribe", lane=1) == {"dropped": 3}
    elif end == "bye":
        b.write(encode(Kind.BYE, b.id, 0, ""))
    elif end == "half":
        bus.broker.half_close(b.peer, bus.now)
    elif end == "gone":
        b.leave()
    elif end == "stop":
        bus.broker.shut_down(bus.now)
    else:
        b.write(b"garbage")
    assert books(bus) == {"evicted": 3}
    assert bus.broker.counters.lost == 3


def test_what_waits_for_a_group_is_evicted_with_its_last_member() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    for member in (b, c):
        member.subscribe("x", group="g", messages=0)
    a.publish("x", b"1", b"2")
    b.leave()
    assert books(bus) == {"queued": 2}
    c.leave()
    assert books(bus) == {"evicted": 2}
    (item,) = losses(a)
    assert (item["why"], item["count"], item["pattern"], item["group"], item["topic"]) == ("evicted", 2, "x", "g", "x")


def test_what_is_too_slow_is_dropped_and_what_is_replaced_is_counted_apart() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("old", 1, credit=0, policy="drop_oldest", limits={"soft": 100, "hard": 100})
    b.subscribe("last", 2, credit=0, policy="latest", limits={"soft": 1000, "hard": 1000})
    for _ in range(10):
        a.publish("old", b"." * 30)
        a.publish("last", b"." * 30)
    ends = books(bus)
    assert ends["replaced"] == 9
    assert ends["dropped"] + ends["queued"] == 11
    assert bus.broker.counters.lost == ends["dropped"] + 9
    found = {item["why"]: item for item in losses(a)}
    assert found["too_slow"]["policy"] == "drop_oldest"
    assert found["too_slow"]["limits"] == {"soft": 100, "hard": 100, "seconds": Limits().lane_stall_s}
    assert (found["replaced"]["topic"], found["replaced"]["peer"], found["replaced"]["lane"]) == ("last", b.id, 2)


def test_what_waited_past_its_time_is_expired() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", credit=0)
    post(a, "x", 1000)
    post(a, "x", None)
    bus.advance(1.5)
    b.credit(1, 1000)
    assert books(bus) == {"expired_messages": 1, "queued": 1}
    b.read()
    assert books(bus) == {"expired_messages": 1, "delivered": 1}
    assert bus.broker.counters.lost == 0


# --- unknown --------------------------------------------------------------------------------------


def rounds(bus: Bus, peer: Client, publisher: Client, sizes: list[int]) -> None:
    """Publish one message of each size, each in a round of its own; the kernel takes nothing."""
    for size in sizes:
        publisher.publish("x", b"." * size)
        bus.broker.take_touched()


@pytest.mark.parametrize(("spare", "delivered"), [(1, 0), (0, 1)])
def test_a_message_is_delivered_when_its_last_byte_was_written(spare: int, delivered: int) -> None:
    """Where its end is known: after each 64 KiB."""
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x")
    rounds(bus, b, a, [CHECKPOINT_BYTES] * 2)
    first = len(publication(a.id, "x", b"." * CHECKPOINT_BYTES)) + len(encode(Kind.LANE, 0, 1))
    bus.broker.wrote(b.peer, first - spare, bus.now)
    assert b.peer.delivered == delivered
    b.leave()
    assert books(bus) == {"delivered": delivered, "unknown": 2 - delivered} if delivered else {"unknown": 2}
    (item,) = losses(a)
    assert (item["why"], item["count"], item["peer"], item["program"]) == ("unknown", 2 - delivered, b.id, "test")
    assert item["bytes"] == (2 - delivered) * len(publication(a.id, "x", b"." * CHECKPOINT_BYTES))


def test_what_is_not_known_to_be_written_is_never_said_to_be_delivered() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x")
    size = len(publication(a.id, "x", b"." * 1000))
    rounds(bus, b, a, [1000] * 200)
    bus.broker.wrote(b.peer, 150 * size, bus.now)
    known = b.peer.delivered
    assert 150 - 2 * (CHECKPOINT_BYTES // size + 2) < known <= 150
    b.leave()
    assert books(bus) == {"delivered": known, "unknown": 200 - known}


def test_an_output_that_was_written_whole_is_delivered_whatever_its_size() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x")
    rounds(bus, b, a, [10, CHECKPOINT_BYTES, 10])
    b.read()
    assert b.peer.marks is None
    b.leave()
    assert books(bus) == {"delivered": 3}


def test_marks_are_bounded_by_what_waits() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", credit=1 << 30)
    rounds(bus, b, a, [10] * 50 + [CHECKPOINT_BYTES] + [1000] * 500)
    assert b.peer.marks is not None
    assert len(b.peer.marks) <= b.peer.out_bytes // CHECKPOINT_BYTES + 1


def test_sends_in_an_output_that_goes_are_unknown() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    send(a, f":{b.id}")
    b.leave()
    assert books(bus) == {"unknown": 1}


# --- by peer --------------------------------------------------------------------------------------


def test_peers_have_books_of_their_own() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", 1, credit=1)
    b.subscribe("y", 2, credit=0)
    b.subscribe("z", 3, credit=0, policy="drop_newest", limits={"soft": 20, "hard": 20})
    a.publish("x", b"1")
    b.read()
    a.publish("x", b"2")
    a.publish("y", b"3")
    post(a, "z", None, b"4")
    post(a, "z", None, b"5")
    a.publish("a..b")
    a.read()
    found = {item["peer"]: item for item in a.ask("peers")["items"]}
    of_b = {name: found[b.id][name] for name in ("offered", *ENDS[:-1], "queued", "refused")}
    assert of_b == {
        "offered": 5, "delivered": 1, "dropped": 1, "replaced": 0, "expired_messages": 0, "evicted": 0, "over_quota": 0, "queued": 3,
        "refused": 0,
    }  # fmt: skip
    assert (found[a.id]["offered"], found[a.id]["refused"]) == (0, 1)


# --- by topic -------------------------------------------------------------------------------------


def topics(client: Client) -> dict[str, dict[str, Any]]:
    return {item["topic"]: item for item in client.ask("topics")["items"]}


def test_topics_that_nobody_wants_are_told_apart() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("wanted")
    a.publish("one")
    a.publish("two", b"1", b"2")
    a.publish("one", kind=Kind.RETAIN)
    a.publish("wanted")
    post(a, "two", None)
    bus.advance(3)
    found = topics(a)
    assert {topic: item["no_subscriber"] for topic, item in found.items()} == {"one": 2, "two": 3, "wanted": 0}
    assert (found["one"]["no_subscriber_s"], found["wanted"]["no_subscriber_s"]) == (3, None)
    b.subscribe("one", 2)
    a.publish("one")
    assert topics(a)["one"]["no_subscriber"] == 2
    b.ask("unsubscribe", lane=2)
    a.publish("one")
    assert topics(a)["one"]["no_subscriber"] == 3
    assert bus.broker.counters.no_subscriber == 6


def test_losses_are_said_at_their_topics() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe(">", credit=0)
    for topic in ("a", "b", "a"):
        a.publish(topic, b"1", b"2")
    post(a, "late", 100)
    bus.advance(1)
    b.credit(1, 1)  # one piece goes out, what is late is lost when credit comes again
    b.ask("unsubscribe", lane=1)
    found = topics(a)
    assert sum(item["lost"] + item["expired"] for item in found.values()) == bus.broker.counters.lost + bus.broker.counters.expired_messages
    assert found["late"]["lost"] + found["late"]["expired"] == 1


@pytest.mark.parametrize("count", [LOSS_WALK_MAX - 1, LOSS_WALK_MAX, LOSS_WALK_MAX + 1])
def test_a_flood_of_losses_is_not_looked_at_frame_by_frame(count: int) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("x", credit=0)
    a.write(publication(a.id, "x") * count)
    b.ask("unsubscribe", lane=1)
    found = topics(a)
    assert found["x"]["lost"] == min(count, LOSS_WALK_MAX)
    assert found.get("(all others)", {"lost": 0})["lost"] == count - min(count, LOSS_WALK_MAX)
    bus.advance(1)  # all at once again
    b.subscribe("x", credit=0)
    a.write(publication(a.id, "x") * 2 * LOSS_WALK_MAX)
    b.ask("unsubscribe", lane=1)
    assert topics(a)["x"]["lost"] == min(count, LOSS_WALK_MAX) + LOSS_WALK_MAX
    bus.advance(10.5 / LOSS_WALK_S)  # and 10 after as much of a second
    b.subscribe("x", credit=0)
    a.write(publication(a.id, "x") * 100)
    b.ask("unsubscribe", lane=1)
    assert topics(a)["x"]["lost"] == min(count, LOSS_WALK_MAX) + LOSS_WALK_MAX + 10


def test_a_full_table_of_topics_makes_room_for_busy_ones() -> None:
    bus = Bus(max_topic_counters=4)
    a = bus.peer()
    for number in range(4):
        a.publish(f"junk.{number}")
    a.publish("junk.3", *[b"x"] * 5)
    a.publish("busy", b"x", b"x")
    assert "busy" not in topics(a)
    bus.advance(TURN_S)
    a.publish("new")  # the table is looked through when somebody asks for a counter
    a.publish("busy", *[b"x"] * 7)
    found = topics(a)
    assert {topic: item["messages"] for topic, item in found.items() if not topic.startswith("junk")} == {
        "(all others)": 2 + 2, "busy": 7, "new": 1
    }  # fmt: skip
    assert found["junk.3"]["messages"] == 6
    assert sum(item["messages"] for item in found.values()) == 19
    assert sum(item["no_subscriber"] for item in found.values()) == bus.broker.counters.no_subscriber


def test_topics_that_change_without_end_do_not_cost_a_look_for_each() -> None:
    now, looks = [0.0], []
    counters = TopicCounters(4, lambda: now[0])
    counters.retiring = lambda: looks.append(now[0])
    for number in range(1000):
        now[0] += 1
        counters.of(f"t{number}").messages += 1
    assert 1000 / TURN_S - 2 <= len(looks) <= 1000 / TURN_S
    assert sum(counter.messages for _, counter in counters.items()) == 1000
    assert len(counters.items()) <= 4 + 1


# --- episodes -------------------------------------------------------------------------------------


def lose(bus: Bus, publisher: Client, receiver: Client, topic: str = "x", lane: int = 1) -> None:
    """A message waits when its lane ends."""
    receiver.subscribe(topic, lane, credit=0)
    publisher.publish(topic)
    receiver.ask("unsubscribe", lane=lane)


@pytest.mark.parametrize(("pause_s", "episodes"), [(EPISODE_PAUSE_S - 1, 1), (EPISODE_PAUSE_S, 1), (EPISODE_PAUSE_S + 1, 2)])
def test_an_episode_ends_with_a_pause(pause_s: float, episodes: int) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    lose(bus, a, b)
    bus.advance(pause_s)
    lose(bus, a, b)
    items = losses(a)
    assert [item["count"] for item in items] == ([2] if episodes == 1 else [1, 1])
    assert (items[0]["first_s"], items[-1]["last_s"]) == (pause_s, 0)


@pytest.mark.parametrize(("pause_s", "lines"), [(LOSS_LOG_S - 1, 1), (LOSS_LOG_S, 2), (LOSS_LOG_S + 1, 2)])
def test_the_log_tells_of_a_place_again_after_a_while(pause_s: float, lines: int) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    lose(bus, a, b)
    bus.advance(pause_s)
    lose(bus, a, b)
    assert len([text for _, text in bus.log if "ended while messages waited" in text]) == lines


def test_a_trickle_neither_fills_the_log_nor_pushes_out_what_was_lost_elsewhere() -> None:
    """One message now and then is an episode each time."""
    bus = Bus()
    a, b, other = bus.peer(), bus.peer(), bus.peer("other")
    lose(bus, a, other)
    times = LOSS_EPISODES + 10
    for _ in range(times):
        bus.advance(EPISODE_PAUSE_S + 1)
        lose(bus, a, b)
    assert bus.broker.counters.evicted == times + 1
    assert "other" in {item["program"] for item in losses(a)}
    lines = [text for _, text in bus.log if "ended while messages waited" in text]
    assert len(lines) == 1 + 1 + int(times * (EPISODE_PAUSE_S + 1) // LOSS_LOG_S)


def test_requests_without_an_answer_now_and_then_are_not_logged_each_time() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "m")
    for _ in range(5):
        bus.advance(EPISODE_PAUSE_S + 1)
        a.request("svc/m", timeout_ms=1)
        bus.advance(0.1)
    assert len([text for _, text in bus.log if "did not answer in time" in text]) == 1
    assert [item["count"] for item in losses(a) if item["why"] == "timed_out"] == [1] * 5


def test_the_log_says_who_whom_what_and_why() -> None:
    bus = Bus()
    a, b = bus.peer("sensors"), bus.peer("dash")
    b.subscribe("x.*", 7, credit=0, policy="drop_newest", limits={"soft": 10, "hard": 10})
    a.publish("x.y", b"1", b"2")
    a.publish("x.y", b"3")
    lines = [(level, text) for level, text in bus.log if level >= logging.WARNING]
    assert len(lines) == 1
    for part in ("lane 7", "'x.*'", "'dash'", "pid 10", "'x.y'", "'sensors'", "limits.lane_soft_bytes"):
        assert part in lines[0][1]


def test_episodes_are_bounded_by_kind() -> None:
    bus = Bus()
    a = bus.peer()
    first = bus.peer()
    first.publish("a..b")
    for number in range(LOSS_EPISODES + 10):
        other = bus.peer(f"p{number}")
        lose(bus, a, other)
        other.leave()
    items = losses(a)
    assert [item["why"] for item in items].count("evicted") == LOSS_EPISODES
    assert [item["why"] for item in items].count("refused") == 1  # of another kind: it stays
    assert {item["program"] for item in items if item["why"] == "evicted"} == {f"p{number}" for number in range(10, LOSS_EPISODES + 10)}
    assert len(bus.broker.losses._current) == len(bus.broker.losses._places) == LOSS_EPISODES + 1


def test_an_episode_that_goes_on_is_not_the_one_that_is_forgotten() -> None:
    bus = Bus()
    a = bus.peer()
    steady = bus.peer("steady")
    lose(bus, a, steady)
    for number in range(LOSS_EPISODES + 5):
        other = bus.peer(f"p{number}")
        lose(bus, a, other)
        other.leave()
        lose(bus, a, steady)
    assert [item["count"] for item in losses(a) if item["program"] == "steady"] == [LOSS_EPISODES + 6]


def test_many_lanes_of_one_peer_share_an_episode() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in range(1, 101):
        b.subscribe(f"x.{lane}", lane, credit=0)
        a.publish(f"x.{lane}")
    b.leave()
    items = losses(a)
    assert sum(item["count"] for item in items) == 100
    assert len(items) < 12
    assert [(item["pattern"], item["lane"]) for item in items].count((None, None)) == 1


def test_what_else_does_not_arrive_is_remembered() -> None:
    bus = Bus(max_retained_topics=1)
    a, b = bus.peer("asker"), bus.peer("server")
    b.serve("svc", "m")
    a.request("svc/none")
    a.request("svc/m", timeout_ms=500)
    bus.advance(1)
    a.request("svc/m")
    b.leave()
    send(a, "svc")
    a.publish("kept", kind=Kind.RETAIN)
    a.publish("kept.not", kind=Kind.RETAIN)
    other = bus.peer("bad")
    other.write(b"no frame")
    a.read()
    found = {(item["why"], item["topic"]): item for item in losses(a)}
    assert [*found] == [
        ("refused", "svc/none"), ("timed_out", "svc/m"), ("responder_died", "svc/m"), ("refused", "svc"), ("not_kept", "kept.not"),
        ("closed", ""),
    ]  # fmt: skip
    assert bus.broker.counters.refused == 3, "what is not kept was answered too, and is told once: it was delivered"
    assert (found["timed_out", "svc/m"]["program"], found["timed_out", "svc/m"]["sender_program"]) == ("server", "asker")
    assert (found["refused", "svc"]["kind"], found["refused", "svc"]["code"]) == ("SEND", "no_such_name")
    assert "limits.max_retained_topics" in found["not_kept", "kept.not"]["about"]
    assert (found["closed", ""]["program"], found["closed", ""]["code"]) == ("bad", Code.BAD_FRAME.label)
    assert (bus.broker.counters.not_kept, topics(a)["kept.not"]["not_kept"]) == (1, 1)


def test_a_will_that_is_not_kept_is_counted() -> None:
    bus = Bus(max_retained_topics=1)
    a, b = bus.peer(), bus.peer()
    a.publish("kept", kind=Kind.RETAIN)
    assert b.ask("will", topic="gone", payload=b"x", retain=True) == {}
    b.leave()
    assert bus.broker.counters.not_kept == 1
    assert [(item["why"], item["topic"]) for item in losses(a)] == [("not_kept", "gone")]


def test_what_is_remembered_keeps_no_peer_alive() -> None:
    class Link:
        """What the daemon hangs on a peer."""

    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.peer.link = Link()
    link = weakref.ref(b.peer.link)
    lose(bus, a, b)
    b.leave()
    bus.broker.take_touched()
    b.peer = a.peer
    gc.collect()
    assert len(losses(a)) == 1
    assert link() is None


# --- who gets it ----------------------------------------------------------------------------------


def test_receivers_tell_what_waits_and_for_whom() -> None:
    bus = Bus()
    a, b, c = bus.peer("pub"), bus.peer("slow"), bus.peer("member")
    b.subscribe("x.*", 4, credit=0, policy="drop_oldest")
    c.subscribe("x.>", 1, group="g")
    a.publish("x.y", b"1", b"2")
    items = a.ask("receivers", topic="x.y")["items"]
    assert [(item["pattern"], item["group"], item["policy"], item["queued"]) for item in items] == [
        ("x.*", None, "drop_oldest", 2), ("x.>", "g", Limits().lane_policy, 1)
    ]  # fmt: skip
    assert items[0]["members"] == [{"peer": b.id, "lane": 4, "program": "slow", "pid": 10, "uid": 20, "credit": False}]
    assert a.ask("receivers", topic="y")["items"] == []
    page = a.ask("receivers", topic="x.y", limit=1)
    assert [item["group"] for item in a.ask("receivers", topic="x.y", after=page["next"])["items"]] == ["g"]
    assert a.ask("receivers", topic="x.*")[0] == Code.BAD_TOPIC


def test_patterns_are_those_that_somebody_subscribes_to() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    patterns = ["x", "x.y", "*", ">", "x.*", "x.*.z", "x.y.>", "*.y"]
    for lane, pattern in enumerate(patterns, 1):
        a.subscribe(pattern, lane)
        b.subscribe(pattern, lane, group="g")
    items = a.ask("patterns")["items"]
    assert items == [{"pattern": pattern, "lanes": 1, "groups": ["g"]} for pattern in sorted(patterns)]
    for lane in range(1, len(patterns) + 1):
        a.ask("unsubscribe", lane=lane)
        b.ask("unsubscribe", lane=lane)
    assert a.ask("patterns")["items"] == []


def test_a_page_of_a_long_list_is_paid_for_by_who_asks() -> None:
    """What is sorted and left out is work, too; and lanes are counted only for what is on the page."""
    bus = Bus()
    a = bus.peer()
    for lane in range(1, 501):
        a.subscribe(f"t.{lane}", lane, credit=0)
        a.ask("own", name=f"n{lane}")
        bus.peer(pid=100 + lane)
    for method in ("patterns", "names", "peers", "accounts"):
        before = bus.broker.effort.spent
        a.ask(method, limit=1)
        assert bus.broker.effort.spent - before > 500, method
    before = bus.broker.effort.spent
    a.ask("stats")
    assert bus.broker.effort.spent - before > 500
