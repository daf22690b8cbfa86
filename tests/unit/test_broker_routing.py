"""The index of subscriptions against the reference in protocol.topics."""

from __future__ import annotations

import random

import pytest

from ipcbus.broker.counters import TopicCounters
from ipcbus.broker.effort import Effort
from ipcbus.broker.lanes import Lane
from ipcbus.broker.rights import Judge, subject_of
from ipcbus.broker.routing import RouteTable
from ipcbus.broker.subscriptions import SubscriptionIndex
from ipcbus.policy import EVERYTHING
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.framing import Prefix
from ipcbus.protocol.limits import TOPIC_MAX_TOKENS
from ipcbus.protocol.messages import Kind
from ipcbus.protocol.topics import matches
from tests.unit.harness import Bus


def lanes_of(index: SubscriptionIndex, topic: str) -> list[str]:
    return sorted(lane.pattern for lane in index.receivers(topic)[0])


def test_the_index_agrees_with_the_reference_through_changes() -> None:
    tokens = ["a", "b", "$s", "*", "a*"]
    peer = Bus().peer().peer
    for seed in range(30):
        rng = random.Random(seed)
        index = SubscriptionIndex()
        lanes: list[Lane] = []
        for step in range(120):
            if lanes and rng.random() < 0.4:
                index.remove(lanes.pop(rng.randrange(len(lanes))))
            else:
                words = [rng.choice(tokens) for _ in range(rng.randint(1, 4))]
                if rng.random() < 0.3:
                    words[-1] = ">"
                lane = Lane(peer, step, ".".join(words), 0)
                index.add(lane, None)
                lanes.append(lane)
            topic = ".".join(rng.choice(["a", "b", "$s", "a*"]) for _ in range(rng.randint(1, 5)))
            assert lanes_of(index, topic) == sorted(lane.pattern for lane in lanes if matches(lane.pattern, topic)), (seed, topic)
        assert index.lanes == len(lanes)
        for lane in lanes:
            index.remove(lane)
        assert not index._literal
        assert index._root.empty


def test_every_change_is_a_generation() -> None:
    index = SubscriptionIndex()
    lane = Lane(Bus().peer().peer, 1, "a.*", 0)
    seen = [index.generation]
    index.add(lane, None)
    seen.append(index.generation)
    index.remove(lane)
    seen.append(index.generation)
    assert len(set(seen)) == 3


def test_an_illegal_pattern_changes_nothing() -> None:
    index = SubscriptionIndex()
    with pytest.raises(ProtocolError) as caught:
        index.add(Lane(Bus().peer().peer, 1, "a.>.b", 0), None)
    assert caught.value.code is Code.BAD_TOPIC
    assert (index.lanes, index.generation) == (0, 1)


def route_table(max_matches: int = 1000) -> RouteTable:
    return RouteTable(TopicCounters(2, float), Effort(), max_matches, Judge(EVERYTHING, subject_of, {}, Effort()))


def test_topics_with_the_same_receivers_share_a_route() -> None:
    table = route_table()
    table.add(Lane(Bus().peer().peer, 1, "a.*", 0), None)
    prefixes = [Prefix(Kind.PUBLISH, 1, to, None) for to in ("a.1", "a.2", "b", "c")]
    publisher = Bus().peer().peer
    routes = [table.resolve(prefix, publisher) for prefix in prefixes]
    assert routes[0] is routes[1]
    assert routes[2] is routes[3]
    assert routes[0] is not routes[2]
    assert prefixes[2].counter is prefixes[3].counter  # beyond two topics they are counted together
    retained = [table.resolve(Prefix(Kind.RETAIN, 1, to, None), publisher) for to in ("a.1", "a.2")]
    assert retained[0] is not retained[1]


def test_the_set_of_remembered_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.broker.routing._ROUTES_MAX", 2)
    table = route_table()
    peer = Bus().peer().peer
    for number in range(4):
        table.add(Lane(peer, number + 1, f"t{number}", 0), None)
    for number in range(4):
        table.resolve(Prefix(Kind.PUBLISH, 1, f"t{number}", None), peer)
    assert len(table._routes) <= 2


@pytest.mark.parametrize("last", ["*", ">", "x"])
def test_the_deepest_pattern_of_wildcards_costs_its_depth(last: str) -> None:
    """A chain of `*` was gone through anew from each of its nodes, twice: the bus stood still for hours."""
    index = SubscriptionIndex()
    lane = Lane(Bus().peer().peer, 1, ".".join(["*"] * (TOPIC_MAX_TOKENS - 1) + [last]), 1)
    index.add(lane, None)
    topic = ".".join(["x"] * TOPIC_MAX_TOKENS)
    assert [list(found.lanes) for found in index.match(topic)] == [[lane]]
    assert [pattern for pattern, _ in index.patterns()] == [lane.pattern]
    index.remove(lane)
    assert index.match(topic) == []
    assert list(index.patterns()) == []
