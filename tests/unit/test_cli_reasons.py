"""ipcbus.cli.reasons: what became of messages, in words."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.broker.losses import COUNTER_OF
from ipcbus.cli.reasons import (
    concerns,
    explain_holding,
    explain_loss,
    explain_peer,
    explain_receiver,
    explain_topic,
    explain_unwanted,
    nearest,
    summary,
)
from tests.unit.harness import Bus

WHYS = [*COUNTER_OF, "refused", "not_kept", "timed_out", "responder_died", "closed"]


def episode(why: str, **more: Any) -> dict[str, Any]:
    """An item of ``bus/losses``."""
    return {
        "number": 1, "why": why, "count": 3, "bytes": 2048, "first_s": 9.0, "last_s": 4.0, "pattern": "room.*", "group": None, "lane": 1,
        "peer": 7, "program": "dash", "pid": 42, "uid": 0, "policy": "drop_oldest", "limits": {"soft": 1024, "hard": 2048, "seconds": 5.0},
        "topic": "room.kitchen", "sender": 2, "sender_program": "sensors", "sender_pid": 41, "kind": "", "code": "", "about": "", **more,
    }  # fmt: skip


@pytest.mark.parametrize("why", WHYS)
def test_every_way_of_the_bus_has_words(why: str) -> None:
    reason = explain_loss(episode(why, code="overloaded", kind="REQUEST"))
    assert f": {why}" not in reason.what  # which is said where nothing is known
    assert "3" in reason.what or why == "closed"
    assert "dash" in reason.what
    assert reason.do
    assert reason.lines()[0].startswith("4.0 s ago: ")


def test_a_slow_subscription() -> None:
    assert explain_loss(episode("too_slow")).lines() == [
        "4.0 s ago: the subscription 'room.*' of dash (peer 7, pid 42) lost 3 messages (2.0 KiB): it did not keep up",
        "    the first was on 'room.kitchen', from sensors (peer 2, pid 41)",
        "    its policy is drop_oldest (soft 1.0 KiB, hard 2.0 KiB, 5 s): beyond these the oldest went",
        "    it went on for 5.0 s",
        "    → let it take messages faster (concurrency=, a group of several), subscribe with policy latest, or raise "
        "limits.lane_soft_bytes, limits.lane_hard_bytes or limits.lane_stall_s",
    ]


def test_a_group_and_a_peer_from_tcp() -> None:
    assert explain_loss(episode("evicted", group="g")).what == "the group 'g' on 'room.*' ended while 3 messages (2.0 KiB) waited for it"
    nobody = {"pattern": None, "lane": None, "policy": None, "limits": None, "topic": "", "sender": None, "pid": None, "program": ""}
    gone = explain_loss(episode("unknown", **nobody, count=1, bytes=0, first_s=4.0))
    assert gone.what == "a program (peer 7) went with 1 message in its output: whether they arrived is not known"
    assert gone.more == ["which ones they were is not known"]


@pytest.mark.parametrize(
    ("code", "topic", "advice"),
    [
        ("no_such_name", "thermostt/set", "did you mean 'thermostat'?"),
        ("no_such_name", "x", "start the service that owns the name; wait_for_name() waits for it"),
        ("bad_topic", "a..b", "a topic is tokens with '.' between them, without wildcards (PROTOCOL.md, T-1)"),
        ("code 99", "x", ""),
    ],
)
def test_what_to_do_about_a_refusal(code: str, topic: str, advice: str) -> None:
    reason = explain_loss(episode("refused", code=code, topic=topic, kind="REQUEST", count=1, about="because"), ["thermostat", "camera"])
    assert reason.what.endswith(f"1 request of the subscription 'room.*' of dash (peer 7, pid 42) to {topic!r} was refused: {code}")
    assert reason.more[0] == "because"
    assert reason.do == advice


def test_who_was_denied_and_what_to_do_about_it() -> None:
    denied = episode("refused", code="denied", topic="room.a", kind="PUBLISH", count=1, about="rule 1 of x denies it", uid=1001)
    reason = explain_loss(denied | {"pattern": None, "policy": None, "sender": None, "last_s": 9.0})
    assert reason.more == ["rule 1 of x denies it", "it asked as uid 1001"]
    assert "before that one" in reason.do
    assert "`ipcbus policy test`" in reason.do
    assert explain_loss(denied | {"uid": None}).more[1:2] != ["it asked as uid None"]  # it came by TCP


def test_nobody_subscribed() -> None:
    item = {"topic": "romo.kitchen", "no_subscriber": 1, "no_subscriber_s": 2.0, "lanes": 0, "retained": False}
    meant = explain_unwanted(item, ["room.*", "hall", "room.kitchen"])
    assert meant.lines() == [
        "2.0 s ago: 1 message on 'romo.kitchen' went to nobody: nobody subscribed to it (did you mean 'room.*' or 'room.kitchen'?)"
    ]
    assert "retain" in explain_unwanted(item, []).do
    kept = explain_unwanted({**item, "retained": True}, [])
    assert kept.what.endswith("nobody subscribed to it; the last is kept for those who subscribe later")
    assert kept.do == "", "it was published with retain"
    late = explain_unwanted({**item, "lanes": 1}, ["room.*"])
    assert late.what.endswith("nobody subscribed to it then; now somebody does")
    assert "retain" in late.do


@pytest.mark.parametrize(
    ("text", "candidates", "found"),
    [
        ("room.kichen", ["room.kitchen", "hall"], ["room.kitchen"]),
        ("romo.kitchen", ["room.*"], ["room.*"]),
        ("romo.kitchen.temp", ["room.>"], ["room.>"]),
        ("room.kitchen", ["room.*", "room.kitchen", ">"], []),  # these are no slips: they match
        ("room.kitchen.x", ["room.kitchen"], ["room.kitchen"]),
        ("a", ["b", "c"], []),
        ("job.1", ["job.2", "job.3", "job.4", "job.5"], ["job.2", "job.3", "job.4"]),
    ],
)
def test_what_was_probably_meant(text: str, candidates: list[str], found: list[str]) -> None:
    assert nearest(text, candidates) == found


def receiver(**more: Any) -> dict[str, Any]:
    members = [{"peer": 7, "lane": 1, "program": "dash", "pid": 42, "uid": 0, "credit": False}]
    return {"pattern": "x", "group": None, "members": members, "policy": "block", "queued": 0, "queued_bytes": 0, "dropping": False, **more}


def test_who_gets_a_topic() -> None:
    assert explain_receiver(receiver()) == "'x' of dash (peer 7, pid 42), policy block: nothing waits"
    slow = explain_receiver(receiver(queued=1, queued_bytes=9, dropping=True))
    assert slow.endswith(": 1 message waits (9 B), for it has not handled what it got; it has not kept up, and loses messages")
    many = receiver(group="g", members=receiver()["members"] * 4)
    assert explain_receiver(many).startswith("'x' of the group 'g' (dash (peer 7, pid 42), ")
    assert " and others), policy block: " in explain_receiver(many)


def test_one_topic() -> None:
    counted = {"messages": 5, "bytes": 100, "no_subscriber": 1, "lost": 2, "expired": 0, "not_kept": 0, "retained": True}
    assert explain_topic("x", counted, None, [receiver()], [], []) == [
        "5 messages (100 B) published to 'x': 1 wanted by nobody, 2 lost; the last is kept",
        "who gets it now:",
        "    'x' of dash (peer 7, pid 42), policy block: nothing waits",
    ]
    assert explain_topic("y", None, None, [], ["x"], ["z", "w"]) == [
        "nothing was published to 'y'; did you mean 'z' or 'w'?",
        "nobody subscribes to it; did you mean 'x'?",
    ]


@pytest.mark.parametrize(
    ("lost", "expired", "said"),
    [
        (0, 0, "1 wanted by nobody, 2 lost, 3 expired"),
        (1, 0, "1 wanted by nobody, at least 2 lost, 3 expired"),
        (0, 1, "1 wanted by nobody, 2 lost, at least 3 expired"),
    ],
)
def test_what_is_counted_among_the_others_may_have_been_of_this_topic(lost: int, expired: int, said: str) -> None:
    counted = {"messages": 9, "bytes": 100, "no_subscriber": 1, "lost": 2, "expired": 3, "not_kept": 0, "retained": False}
    others = {**counted, "lost": lost, "expired": expired}
    assert explain_topic("x", counted, others, [receiver()], [], [])[0] == f"9 messages (100 B) published to 'x': {said}"


def test_the_books_of_a_peer_and_of_the_bus() -> None:
    ends = {"delivered": 3, "queued": 2, "dropped": 1, "replaced": 0, "expired_messages": 0, "evicted": 0, "over_quota": 0, "unknown": 0}
    peer = {"peer": 7, "program": "dash", "pid": 42, "names": ["n"], "offered": 6, "refused": 1, **ends}
    assert explain_peer(peer) == (
        "dash (peer 7, pid 42) owns or waits for 'n' and was offered 6 messages: 3 delivered, 2 waiting, 1 lost, because it was slow; "
        "1 of its own was refused"
    )
    idle = {**peer, **dict.fromkeys(ends, 0), "offered": 0, "names": [], "refused": 0}
    assert explain_peer(idle) == "dash (peer 7, pid 42) was offered no messages"
    line = summary({**ends, "offered": 6, "uptime_s": 3.0, "no_subscriber": 4, "refused": 0})
    assert line == (
        "since the bus started, 3.0 s ago: 6 offered to receivers = 3 delivered + 1 lost by slow subscribers + 2 waiting; "
        "besides 4 for nobody"
    )


def test_who_holds_whom() -> None:
    bus = Bus()
    publisher, slow = bus.peer(features=("hold",)), bus.peer("dash")
    slow.subscribe("x", credit=0, limits={"soft": 100, "hard": 200, "seconds": 60})
    publisher.publish("x", b"." * 300)
    bus.now += 2
    publisher.read()
    (item,) = publisher.ask("stats")["holding"]
    reason = explain_holding(item)
    assert reason.what == f"1 publisher is held by 'x' of dash (peer {slow.id}, pid 10), for 2.0 s now"
    assert reason.more == [f"{item['bytes']} B wait for it; nothing of it is lost"]
    assert concerns(item, "x", set())
    assert explain_holding({**item, "group": "g", "publishers": 2}).what.startswith("2 publishers are held by 'x' (group 'g') of dash (")


@pytest.mark.parametrize(
    ("what", "peers", "yes"),
    [
        ("room.kitchen", set(), True),
        ("room.*", set(), True),
        (">", set(), True),
        ("room.hall", set(), True),  # its pattern would have matched it
        ("hall", set(), False),
        ("hall", {7}, True),
        ("hall", {2}, True),
        (":7", {7}, True),
        (":8", {8}, False),
        ("dash", set(), True),
        ("sensors", set(), True),
    ],
)
def test_what_an_episode_has_to_do_with(what: str, peers: set[int], yes: bool) -> None:
    assert concerns(episode("too_slow"), what, peers) is yes


def test_a_request_is_no_topic() -> None:
    refused = episode("refused", topic="room.kitchen/set", pattern=None, program="a", sender_program="b")
    assert concerns(refused, "room.kitchen", set())
    assert not concerns(refused, "room.*", set())


def test_a_request_to_the_bus_is_about_what_its_answer_names() -> None:
    said = "nobody owns the name 'thermostt'"
    asked = episode("refused", topic="bus/introspect", code="no_such_name", kind="REQUEST", about=said, pattern=None)
    assert concerns(asked, "thermostt", set())
    assert not concerns(asked, "thermost", set())
    assert explain_loss(asked, ["thermostat"]).do == "did you mean 'thermostat'?"
