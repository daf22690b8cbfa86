"""Which member of a group gets the next message: the one that a look at all of them would find, without that look."""

from __future__ import annotations

import random

import pytest

from ipcbus.broker.delivery import Delivery
from ipcbus.broker.lanes import _STALE_MIN, OUTPUT_HIGH_BYTES, Group, Lane
from ipcbus.broker.terms import NO_TERMS
from tests.unit.harness import Bus


def found_by_looking(group: Group) -> Lane | None:
    """What `Group.next_member` is a quick way to."""
    able = [lane for lane in group.members if lane.messages > 0 and lane.credit > 0 and lane.peer.out_bytes < OUTPUT_HIGH_BYTES]
    return min(able, key=lambda lane: (lane.load, lane.turn), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_least_loaded_and_longest_waiting(seed: int) -> None:
    dice = random.Random(seed)
    bus = Bus()
    peers = [bus.peer().peer for _ in range(4)]
    group = Group("t", "g", NO_TERMS)
    given = 0
    for number in range(1, 1500):
        members = list(group.members)
        what = dice.choice(("join", "leave", "give", "give", "give", "grant", "grant", "block", "unblock"))
        if what == "join" and len(members) < 12:
            lane = Lane(dice.choice(peers), number, "t", dice.choice((0, 2, 1000)))
            lane.messages = dice.choice((0, 1, 3))
            lane.peer.grouped = (lane.peer.grouped or {}) | {lane: None}
            group.add(lane)
        elif what == "leave" and members:
            group.remove(dice.choice(members))
        elif what == "grant" and members:
            lane = dice.choice(members)
            lane.credit += dice.choice((0, 2))
            back = dice.choice((0, 1, 3))
            lane.messages += back
            lane.load = max(lane.load - back, 0)
            group.ready(lane)
        elif what in ("block", "unblock"):
            peer = dice.choice(peers)
            peer.out_bytes = OUTPUT_HIGH_BYTES if what == "block" else 0
            for lane in members:
                if what == "unblock" and lane.peer is peer:
                    group.ready(lane)
        elif what == "give":
            expected = found_by_looking(group)
            assert group.next_member() is expected
            if expected is not None:
                expected.credit -= 1
                group.gave(expected)
                given += 1
        assert len(group._ranks) <= 2 * len(group.members) + _STALE_MIN + 1
    assert given > 50


def test_who_cannot_get_a_message_is_not_looked_at_again() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    count = 100
    for lane in range(1, count + 1):
        b.subscribe("t", lane=lane, group="g", messages=1, credit=1000)
    a.publish("t", *[b"%d" % number for number in range(count + 5)])
    group = (b.peer.lanes or {})[1].group
    assert group is not None
    assert group.backlog is not None
    assert group.backlog.count == 5
    assert not group._ranks
    assert sorted(b.read_payloads(), key=int) == [b"%d" % number for number in range(count)]
    b.credit(7, 0, 1)
    assert b.read_payloads() == [b"100"]
    assert not group._ranks


def test_entries_of_the_past_do_not_pile_up() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in (1, 2, 3):
        b.subscribe("t", lane=lane, group="g", messages=1, credit=1 << 20)
    group = (b.peer.lanes or {})[1].group
    assert group is not None
    for number in range(10 * _STALE_MIN):
        a.publish("t")
        b.credit(1 + number % 3, 100, 1)
    b.read()
    assert len(group._ranks) <= 6 + _STALE_MIN
    for lane in (1, 2, 3):
        assert b.ask("unsubscribe", lane=lane) == {"dropped": 0}


def test_a_peer_that_reads_again_makes_each_of_its_groups_go_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in range(1, 51):
        b.subscribe("t", lane=lane, group="g", messages=100)
        b.subscribe("u", lane=100 + lane, group="g", messages=100)
    b.peer.out_bytes += OUTPUT_HIGH_BYTES  # as if its kernel buffer were full
    a.publish("t")
    a.publish("u")
    assert b.peer.out == []
    b.peer.out_bytes -= OUTPUT_HIGH_BYTES
    done: list[Group] = []
    dispatch = Delivery.dispatch
    monkeypatch.setattr(Delivery, "dispatch", lambda self, group: (done.append(group), dispatch(self, group)))
    bus.broker._delivery.output_shrank(b.peer)
    assert [group.pattern for group in done] == ["t", "u"]
    assert len(b.read_payloads()) == 2
