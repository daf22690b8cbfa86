"""The reference models by hand, where it matters that they allow no more, and no less, than the clauses."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.broker.effort import UNLIMITED
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack

from .network import Link, World
from .oracle import Oracle
from .queues_model import LaneModel, TermsModel
from .violations import ViolationError

FRAME = encode_with_payload(bytes(100), Kind.PUBLISH, 2, "t", None)
HARD = 3 * len(FRAME)


class Hand:
    """A client that says what it is told to."""

    def __init__(self, world: World, label: str) -> None:
        self.link: Link
        assert world.connect(self, label)
        self.link.send(encode(Kind.HELLO, 0, 1, 1, ["hold"], {}, None))

    def connected(self, link: Link) -> None:
        self.link = link

    def received(self, data: bytes) -> None:
        """The oracle judges it."""

    def disconnected(self) -> None:
        """As it should be."""

    def ask(self, method: str, number: int, **arguments: Any) -> None:
        self.link.send(encode_with_payload(pack(arguments), Kind.REQUEST, 0, f"bus/{method}", number, 10_000, None))

    def post(self, peer: int, topic: str, payload: bytes, ttl_ms: int | None) -> None:
        self.link.send(encode_with_payload(payload, Kind.POST, peer, topic, None, ttl_ms, True, None))


def lagging_lane(policy: str = "block") -> LaneModel:
    lane = LaneModel("lane", 1, "t", TermsModel(policy, len(FRAME), HARD, 1.0), None, 0, 0)
    lane.lagging = True
    return lane


@pytest.mark.parametrize(("frames", "more", "allowed"), [(4, 0, True), (3, 0, False), (2, 0, False), (3, 1, True)])
@pytest.mark.parametrize("nobody_to_hold", [True, False])
def test_block_may_lose_only_above_hard_and_where_nobody_is_to_be_held(frames: int, more: int, allowed: bool, nobody_to_hold: bool) -> None:
    """L-12. What others publish may wait above it: they are held, and what they park is not counted."""
    lane = lagging_lane()
    for _ in range(frames - 1):
        lane.offer(FRAME)
    lane.offer(FRAME + bytes(more), nobody_to_hold=nobody_to_hold)
    if allowed and nobody_to_hold:
        lane.told_lost("too_slow", 1, len(FRAME))
    else:
        with pytest.raises(ViolationError, match="though it holds its publishers"):
            lane.told_lost("too_slow", 1, len(FRAME))


def kept_for(world: World, ttl_ms: int | None) -> Oracle:
    """A peer's values are kept, one of them for *ttl_ms*, and another peer's queue is over hard with them (L-8)."""
    publisher, reader = Hand(world, "publisher/0"), Hand(world, "reader/0")
    world.run(1.0)
    for number in range(4):
        publisher.post(publisher.link.peer.id, f"t.{number}", bytes(100), None if number else ttl_ms)
    world.run(1.0)
    reader.ask("subscribe", 1, pattern="t.*", lane=1, credit=0, policy="block", limits={"soft": 200, "hard": 300})
    world.run(3.0)
    reader.link.send(encode(Kind.CREDIT, reader.link.peer.id, 1, 10_000, 0))
    world.run(1.0)
    world.oracle.check_quiet()
    return world.oracle


@pytest.mark.parametrize("ttl_ms", [None, 2_500])
def test_a_removal_holds_nobody_though_its_sender_is_here(ttl_ms: int | None) -> None:
    """L-11, L-12: the bus publishes it, so the oldest messages go."""
    assert bool(kept_for(World(0), ttl_ms).checked["too_slow"]) is (ttl_ms is not None)


@pytest.mark.parametrize("joins", [True, False])
def test_a_subscription_whose_terms_are_refused_removes_nothing_that_is_kept(joins: bool) -> None:
    """L-11: what is kept for no time at all is there until the bus looks at what it keeps."""
    world = World(0)
    watcher, publisher = Hand(world, "watcher/0"), Hand(world, "publisher/0")
    world.run(1.0)
    watcher.ask("subscribe", 1, pattern="t", lane=1, credit=10_000, group="g", messages=10, policy="drop_oldest")
    world.run(1.0)
    link = publisher.link
    world.quiet, link._work = True, UNLIMITED  # both come in one read, and are worked off together
    publisher.post(link.peer.id, "t", b"x", 0)
    publisher.ask("subscribe", 1, pattern="t", lane=1, credit=10_000, group="g", policy="drop_oldest" if joins else "drop_newest")
    link._move_up()
    assert not link.up
    assert world.broker is not None
    assert world.broker.books()[0] == world.oracle.offered == (2 if joins else 1)
    world.run(1.0)
    world.oracle.check_quiet()
    assert world.oracle.retained.frames == {}


def test_a_read_that_is_not_worked_off_waits() -> None:
    """Q-1: it is charged whole until all of it is."""
    world = World(0)
    publisher = Hand(world, "publisher/0")
    world.run(1.0)
    link = publisher.link
    link._work = 1
    for _ in range(3):
        publisher.post(link.peer.id, "t", bytes(100), None)
    before = link.model.waiting_bytes()
    size = len(link.up)
    world.quiet = True  # one read
    while not link.rest:
        world.run(0.0005)
    assert link.model.waiting_bytes() - before >= size
    world.run(1.0)
    assert (link.model.unread_bytes, bytes(link.rest)) == (0, b"")
