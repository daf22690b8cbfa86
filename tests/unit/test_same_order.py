"""What the bus and a session do does not depend on where their objects lie in memory, nor on how a str is hashed: what has no other order
is in the order in which it came. (`tests/sim/test_sim.py` plays stories with other hashes.)"""

from __future__ import annotations

import pytest

from ipcbus.protocol.errors import Code
from ipcbus_client._session import Session
from ipcbus_client._state import State, StateFeed
from tests.unit.harness import Bus, publication

MANY = 24  #: in an order by chance they would never be right


@pytest.mark.parametrize("group", [None, "g"])
def test_of_queues_that_are_equally_long_the_first_loses_first(group: str | None) -> None:
    bus = Bus()
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    topics = [f"t.{number:02d}" for number in range(MANY)]
    for lane, topic in enumerate(topics):
        reader.subscribe(topic, lane=1 + lane, credit=0, **({"group": group, "messages": 0} if group else {}))
    for topic in topics * 2:
        publisher.publish(topic, bytes(5_000))
    size = len(publication(publisher.id, topics[0], bytes(5_000)))
    bus.broker._delivery.shed(reader.peer, MANY // 2 * size, "full")
    lanes = list((reader.peer.lanes or {}).values())
    assert [backlog.count for lane in lanes if (backlog := (lane.group or lane).backlog)] == [1] * (MANY // 2) + [2] * (MANY // 2)


def test_of_many_methods_that_are_none_the_first_is_named() -> None:
    peer = Bus().peer()
    peer.ask("own", name="svc")
    for first in range(MANY):
        code, text = peer.ask("serve", name="svc", methods=["*", "fine", *(f"bad method {first + more}" for more in range(MANY))])
        assert code == Code.BAD_NAME
        assert f"'bad method {first}'" in text
    assert peer.ask("serve", name="svc", methods=["*", "fine"]) == {}


def test_who_watches_a_state_longest_hears_first() -> None:
    session = Session(program="p", library="l")
    told: list[int] = []
    feeds = [session.watch_state(StateFeed()) for _ in range(MANY)]
    for number, feed in enumerate(feeds):
        feed.notify = lambda number=number: told.append(number)  # type: ignore[misc]
    session._change(State.CONNECTED)
    assert told == list(range(MANY))
