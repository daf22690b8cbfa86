"""What the bus publishes for a peer, removals and wills, holds nobody: the oldest messages of a full queue go (L-11, L-12, W-1)."""

from __future__ import annotations

import pytest

from ipcbus.protocol.messages import Kind, encode_with_payload
from tests.unit.harness import Bus, Client, publication

BODY = bytes(980)
SIZE = len(publication(1, "t.0", BODY))
COUNT = 6


def scene(hard_bytes: int) -> tuple[Bus, Client, Client]:
    """A publisher whose values are kept for a second, and a subscriber to them that takes nothing: all of them wait for it (L-8)."""
    bus = Bus()
    a, b = bus.peer(features=("hold",), pid=1), bus.peer(pid=2)
    for number in range(COUNT):
        a.write(encode_with_payload(BODY, Kind.POST, a.id, f"t.{number}", None, None if number else 1_000, True, None))
    b.subscribe("t.*", credit=0, limits={"soft": SIZE, "hard": hard_bytes})
    assert (b.peer.backlog_bytes, bus.broker.counters.dropped, a.held) == (COUNT * SIZE, 0, 0)
    return bus, a, b


@pytest.mark.parametrize("way", ["removal", "will"])
@pytest.mark.parametrize(("less", "dropped"), [(-1, 0), (0, 0), (1, 1)])
def test_what_the_bus_publishes_holds_nobody(way: str, less: int, dropped: int) -> None:
    removal = len(publication(1, "t.0", b"", Kind.RETAIN))
    bus, a, b = scene(COUNT * SIZE + removal - less)
    if way == "removal":
        bus.advance(1.0)
    else:
        c = bus.peer(pid=3)
        assert c.ask("will", topic="t.0", payload=b"") == {}
        c.leave()
    assert a.held == 0
    assert bus.broker.counters.dropped == dropped
    assert b.peer.backlog_bytes == COUNT * SIZE + removal - dropped * SIZE
    a.publish("t.0")
    assert a.held == 1
