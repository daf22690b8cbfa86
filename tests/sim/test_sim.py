"""Seeded runs of the whole bus on the fake network. A failing seed says how to run it again."""

from __future__ import annotations

from .model_client import ModelClient
from .models import ViolationError
from .network import World
from .session_client import SessionClient

BUSY_S = 8.0
QUIET_S = 40.0  #: longer than any timeout of the simulation


def play(seed: int) -> World:
    """One story: clients act at random among faults, then all becomes quiet, then everybody leaves. Raises ViolationError."""
    world = World(seed)
    try:
        _tell(world)
    except ViolationError as error:
        error.add_note("\n".join(world.log))
        raise
    return world


def _tell(world: World) -> None:
    clients = [ModelClient(world, f"client{number}") for number in range(world.random.randint(1, 4))]
    programs = [SessionClient(world, f"program{number}") for number in range(world.random.randint(1, 3))]
    _plan_faults(world)
    world.run(world.now + BUSY_S)

    world.quiet = True
    if world.broker is None:
        world.start_bus()
    for client in clients:
        client.settle()
    for program in programs:
        program.settle()
    world.run(world.now + QUIET_S)
    world.oracle.check_quiet()
    for program in programs:
        program.check()
    _check_books(world)

    world.closing = True
    for link in tuple(world.links):
        link.die()
    world.run(world.now + QUIET_S)
    _check_empty(world)


def _plan_faults(world: World) -> None:
    chance = world.random

    def stall() -> None:
        if world.links and not world.quiet:
            link = chance.choice(world.links)
            direction = chance.choice(["up", "down"])
            world.note(f"{link.model} stalls ({direction})")
            link.stall(direction, chance.uniform(0.1, 4.0))

    def cut() -> None:
        if world.links and not world.quiet:
            link = chance.choice(world.links)
            if chance.random() < 0.5:
                world.note(f"{link.model} is cut")
                link.die()
            else:  # what the client had written comes late, while it is back already
                world.note(f"{link.model} is left")
                link.stall("up", chance.uniform(0.0, 2.0))
                link.abandon()

    def restart() -> None:
        if not world.quiet:
            world.kill_bus(orderly=chance.random() < 0.5)
            world.after(chance.uniform(0.0, 0.5), start)

    def start() -> None:
        if world.broker is None:
            world.start_bus()

    for fault, most in ((stall, 4), (cut, 3), (restart, 1)):
        for _ in range(chance.randint(0, most)):
            world.after(chance.uniform(0.5, BUSY_S), fault)


def _check_books(world: World) -> None:
    """B-4: every pair of message and lane was delivered or is counted as lost, and what nobody wanted too; nothing waits any more."""
    assert world.broker is not None
    counters = world.broker.counters
    queued = world.broker.queued_bytes()
    if queued:
        raise ViolationError(f"{queued} bytes still wait after everybody gave credit")
    delivered = world.broker.totals()["delivered"]
    lost, expired = counters.lost, counters.expired_messages
    if world.oracle.offered != delivered + lost + expired:
        raise ViolationError(f"{world.oracle.offered} offered, {delivered} delivered + {lost} lost + {expired} expired")
    if world.oracle.unwanted != counters.no_subscriber:
        raise ViolationError(f"{world.oracle.unwanted} publications to nobody, {counters.no_subscriber} counted")


def _check_empty(world: World) -> None:
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
    }
    if any(left.values()):
        raise ViolationError(f"left behind: { ({what: count for what, count in left.items() if count}) }")


def test_promises_hold(seed: int) -> None:
    play(seed)


def test_a_seed_is_one_story() -> None:
    """The same seed gives the same run, or a failing one could not be looked at again."""
    first, second = play(7), play(7)
    assert first.log == second.log
    assert [oracle.checked for oracle in first.oracles] == [oracle.checked for oracle in second.oracles]


def test_the_simulation_sees_all_that_it_judges() -> None:
    """A model that nothing reaches would find nothing: over some seeds every kind of event happens."""
    seen: set[str] = set()
    losses = 0
    for seed in range(12):
        world = play(seed)
        seen |= {kind for oracle in world.oracles for kind in oracle.checked}
        losses += world.broker.counters.lost if world.broker is not None else 0
    assert seen >= {"PUBLISH", "RETAIN", "SEND", "REQUEST", "REPLY", "ERROR", "CANCEL", "PART", "ALLOW", "NOTICE", "LANE", "PONG", "BYE"}
    assert seen >= {"will", "bound value", "expired", "ended by its session"}
    assert losses > 0
