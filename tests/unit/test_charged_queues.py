"""What waits is charged in the round in which it began to, wherever it waits: the cap of all that waits is one (Q-3)."""

from __future__ import annotations

import dataclasses

import pytest

from ipcbus.broker.charges import Charges
from ipcbus.broker.peers import BYTES_FREE
from ipcbus.broker.quotas import BYTES
from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication

SIZE = 10_000


def used(client: Client) -> int:
    return client.peer.account.used[BYTES]


@pytest.mark.parametrize(
    ("policy", "group"),
    [
        *((policy, None) for policy in ("block", "drop_oldest", "drop_newest", "latest", "disconnect")),
        *((policy, "g") for policy in ("block", "drop_oldest", "drop_newest", "latest")),
    ],
)
def test_the_queue_of_who_gives_no_credit(policy: str, group: str | None) -> None:
    """Nothing is written to such a peer, so nothing else would have the bus look at it."""
    bus = Bus()
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t.>", credit=0, policy=policy, **({"group": group, "messages": 0} if group else {}))
    bus.broker.take_touched()
    for number in range(20):
        publisher.publish(f"t.{number}", bytes(SIZE))
        bus.broker.take_touched()
        waits = reader.peer.queued_bytes
        assert waits > number * SIZE
        assert used(reader) == (waits if waits > BYTES_FREE else 0)


def test_what_a_held_publisher_parked() -> None:
    bus = Bus(lane_soft_bytes=SIZE)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2, features=("hold",))
    reader.subscribe("t", credit=0)
    for _ in range(20):
        publisher.publish("t", bytes(SIZE))
        bus.broker.take_touched()
    assert publisher.peer.parked_bytes > BYTES_FREE
    assert used(publisher) == publisher.peer.waiting_bytes


@pytest.mark.parametrize("limit", ["max_program_bytes", "max_output_bytes"])
def test_who_is_closed_for_what_waits_takes_none_of_it_along(limit: str) -> None:
    """Only the piece that is on its way is written to its end, and BYE follows it; the books balance."""
    bus = Bus(**{limit: 600_000}, **({"max_output_bytes": 1 << 24} if limit != "max_output_bytes" else {}))
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=1 << 24)
    publisher.publish("t", bytes(SIZE))
    bus.broker.wrote(reader.peer, len(reader.peer.out[0]) + 100, bus.now)  # LANE, and the beginning of the message
    for _ in range(61):
        publisher.publish("t", bytes(SIZE))
        bus.broker.take_touched()
        if reader.peer.closing:
            break
    assert reader.peer.closing
    assert reader.peer.queued_bytes < 2 * SIZE
    assert used(reader) == 0
    rest = b"".join(reader.peer.out)
    frame = publication(publisher.id, "t", bytes(SIZE))
    assert rest.startswith(frame[100:])
    assert decode(rest[len(frame) - 100 :]).kind is Kind.BYE
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values())
    bus.broker.wrote(reader.peer, len(rest), bus.now)
    reader.leave()
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values())
    assert ends["delivered"] == 0
    assert ends["unknown"] > 0


# --- what the limits hold for, too ----------------------------------------------------------------


def test_the_rest_of_a_read_is_charged_until_it_is_worked_off() -> None:
    """A read of which a slice was too much stays whole, up to 256 KiB of each connection."""
    bus = Bus()
    client = bus.peer()
    data = publication(client.id, "t", bytes(300)) + encode(Kind.PING, client.id, 1) * 20_000
    bus.broker.receive(client.peer, data, bus.now, 1)
    assert client.peer.unread is not None
    assert used(client) == len(data) == client.peer.waiting_bytes
    bus.broker.resume(client.peer, bus.now, 1)
    assert used(client) >= len(data), "all of it is kept as long as something of it is"
    while client.peer.unread is not None:
        bus.broker.resume(client.peer, bus.now, 1000)
    client.read()
    assert used(client) == 0
    bus.broker.receive(client.peer, data, bus.now, 1)
    client.leave()
    assert bus.broker.accounts.is_empty


def test_who_waits_for_the_bus_does_not_stand_still() -> None:
    bus = Bus(max_user_bytes=300_000, quota_grace_s=1.0)
    client = bus.peer()
    bus.broker.receive(client.peer, encode(Kind.PING, client.id, 1) * 20_000, bus.now, 1)
    assert not bus.broker.accounts.is_fair(client.peer.account, BYTES)
    bus.advance(3)
    assert not client.peer.closing
    client.leave()


@pytest.mark.parametrize(("limit", "lost"), [(500_000, True), (2_000_000, False)])
@pytest.mark.parametrize("level", ["max_program_bytes", "max_user_bytes", "max_queued_bytes"])
def test_a_limit_that_becomes_smaller_holds_for_what_waits(level: str, limit: int, lost: bool) -> None:
    """Also where nobody's charge grows any more: they all are stuck."""
    bus = Bus(lane_soft_bytes=8_000_000)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=0)
    for _ in range(10):
        publisher.publish("t", bytes(100_000))
    bus.broker.take_touched()
    bus.broker.reconfigure(dataclasses.replace(bus.broker.limits, **{level: limit}), bus.now)
    assert (used(reader) <= limit and reader.peer.backlog_bytes < 1_000_000) is lost
    assert not reader.peer.closing


def test_a_share_that_becomes_smaller_is_enforced_after_its_time() -> None:
    bus = Bus(lane_soft_bytes=8_000_000, quota_grace_s=1.0)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=0)
    for _ in range(10):
        publisher.publish("t", bytes(100_000))
    bus.broker.take_touched()
    bus.broker.reconfigure(dataclasses.replace(bus.broker.limits, max_user_bytes=1_500_000), bus.now)
    assert used(reader) > 1_000_000
    bus.advance(1.1)
    assert used(reader) <= 750_000


def test_of_a_program_beyond_its_share_the_largest_that_stands_still_loses() -> None:
    """It was filled while there was room; what put the program beyond its share came last, and is little."""
    bus = Bus(max_user_bytes=2_000_000, lane_soft_bytes=8_000_000, quota_grace_s=1.0)
    large, small, publisher = bus.peer(pid=1), bus.peer(pid=1), bus.peer(pid=2)
    large.subscribe("large", credit=0)
    small.subscribe("small", credit=0)
    publisher.publish("large", *[bytes(98_000)] * 10)
    bus.broker.take_touched()
    assert bus.broker.accounts.is_fair(large.peer.account, BYTES)
    publisher.publish("small", bytes(100_000))
    bus.broker.take_touched()
    bus.advance(1.1)
    assert small.peer.backlog_bytes > 100_000
    assert large.peer.backlog_bytes < 980_000
    assert not large.peer.closing


def test_who_is_going_and_does_not_read_costs_nobody_else_a_connection() -> None:
    """What waits for a connection that ended by itself is its program's use, and goes before others lose anything."""
    bus = Bus(max_user_bytes=1_000_000, quota_grace_s=10)
    sender, going, innocent = bus.peer(pid=1), bus.peer(pid=1), bus.peer(pid=2)
    for _ in range(60):
        sender.write(encode_with_payload(bytes(SIZE), Kind.SEND, sender.id, f":{going.id}", None))
    bus.broker.take_touched()
    going.write(encode(Kind.BYE, going.id, 0, ""))
    assert going.peer.closing
    waits = used(going)
    assert waits > 600_000
    sender.write(encode_with_payload(bytes(1_000_000 - waits + 10), Kind.SEND, sender.id, f":{innocent.id}", None))
    bus.broker.take_touched()
    assert not innocent.peer.closing
    assert going.peer.out_bytes < 2 * SIZE
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values())
    for client in (sender, going, innocent):
        client.leave()
    assert bus.broker.accounts.is_empty


def test_many_who_grow_while_a_level_is_full_are_not_compared_with_all_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(max_queued_bytes=20_000_000, lane_soft_bytes=8_000_000)
    readers = [bus.peer(pid=pid) for pid in range(1, 201)]
    publisher = bus.peer(pid=1000)
    for reader in readers:
        reader.subscribe("t", credit=0)
    publisher.publish("t", *[bytes(20_000)] * 4)
    bus.broker.take_touched()
    looks = []
    rank = Charges._rank
    monkeypatch.setattr(Charges, "_rank", lambda self, peer: looks.append(peer) or rank(self, peer))
    for _ in range(3):
        publisher.publish("t", bytes(20_000))
        bus.broker.take_touched()
        assert bus.broker.accounts.used[BYTES] <= 20_000_000
    assert len(looks) < 3 * 10 * len(readers), "200 are compared with 200 once a round, not 200 times"
    assert not any(reader.peer.closing for reader in readers)
