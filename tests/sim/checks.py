"""What must be true of the bus as a whole when all is quiet: its books add up, and nothing is left behind."""

from __future__ import annotations

from .models import ViolationError
from .network import World


def check_books(world: World) -> None:
    """B-4: every pair of message and lane was delivered or is counted as lost, and what nobody wanted too; nothing waits any more."""
    assert world.broker is not None
    queued = world.broker.queued_bytes()
    if queued:
        raise ViolationError(f"{queued} bytes still wait after everybody gave credit")
    broker = world.broker
    offered, ends = broker.books()
    if world.oracle.offered != offered or ends["queued"]:
        raise ViolationError(f"{world.oracle.offered} were offered, the bus says {offered}: {ends}")
    unwanted = broker.counters.no_subscriber
    if world.oracle.unwanted != unwanted:
        raise ViolationError(f"{world.oracle.unwanted} publications to nobody, {unwanted} counted")
    topics = [counter for _, counter in broker.topics.items()]
    sums = [sum(getattr(counter, name) for counter in topics) for name in ("no_subscriber", "lost", "expired")]
    if sums != [unwanted, broker.counters.lost, broker.counters.expired_messages]:
        raise ViolationError(f"the topics say {sums}, the bus {[unwanted, broker.counters.lost, broker.counters.expired_messages]}")


def check_empty(world: World) -> None:
    """Nothing is left in the bus after everybody left."""
    broker = world.broker
    assert broker is not None
    left = {
        "peers": len(broker.peers),
        "names": len(broker.names),
        "lanes": broker.lane_count,
        "requests": len(broker.requests),
        "queued bytes": broker.queued_bytes(),
        "deadline": broker.next_deadline() or 0,
        "sessions": len(broker._sessions),
        "charges": not broker.accounts.is_empty,
    }
    if any(left.values()):
        raise ViolationError(f"left behind: { ({what: count for what, count in left.items() if count}) }")
