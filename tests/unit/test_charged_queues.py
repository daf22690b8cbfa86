"""What waits is charged in the round in which it began to, wherever it waits: the cap of all that waits is one (Q-3)."""

from __future__ import annotations

import pytest

from ipcbus.broker.peers import BYTES_FREE
from ipcbus.broker.quotas import BYTES
from ipcbus.protocol.messages import Kind, decode
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
