"""What goes wrong in a story: connections stall, trickle, die; the daemon freezes, ends, comes back; the clock jumps; strangers call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .network import Link, World


@dataclass(frozen=True)
class Fault:
    """One of them: what, when, and the dice that say how."""

    kind: str
    after_s: float
    dice: random.Random

    def strike(self, world: World) -> None:
        """Let it happen."""
        if not world.quiet:
            _KINDS[self.kind][0](world, self.dice)

    def __str__(self) -> str:
        return f"{self.kind} after {self.after_s:.2f} s"


def plan_faults(dice: random.Random, until: float) -> Iterator[Fault]:
    """What a seed plans, in any order of time."""
    for kind, (_, most) in _KINDS.items():
        for _ in range(max(0, dice.randint(-most, most))):
            yield Fault(kind, dice.uniform(0.3, until), random.Random(dice.random()))


def _victim(world: World, dice: random.Random) -> Link | None:
    return dice.choice(world.links) if world.links else None


def _stall(world: World, dice: random.Random) -> None:
    """Nothing moves on a connection for a while, in one direction."""
    link = _victim(world, dice)
    if link is not None:
        direction = dice.choice(["up", "down"])
        world.note(f"{link.model} stalls ({direction})")
        link.stall(direction, dice.uniform(0.1, 4.0))


def _trickle(world: World, dice: random.Random) -> None:
    """A few bytes at a time go through from now on."""
    link = _victim(world, dice)
    if link is not None:
        world.note(f"{link.model} trickles")
        link.widest = dice.randint(8, 300)


def _cut(world: World, dice: random.Random) -> None:
    link = _victim(world, dice)
    if link is None:
        return
    if dice.random() < 0.5:
        world.note(f"{link.model} is cut")
        link.die()
    else:  # what the client had written comes late, while it is back already
        world.note(f"{link.model} is left")
        link.stall("up", dice.uniform(0.0, 2.0))
        link.abandon()


def _cut_all(world: World, dice: random.Random) -> None:
    world.note("all connections are cut")
    for link in tuple(world.links):
        link.die()


def _restart(world: World, dice: random.Random) -> None:
    world.kill_bus(orderly=dice.random() < 0.5)

    def start() -> None:
        if world.broker is None:
            world.start_bus()

    world.after(dice.uniform(0.0, 0.5), start)


def _jump(world: World, dice: random.Random) -> None:
    """The clock is ahead of where it was, for everybody at once: as if the machine had been stopped."""
    world.jump(dice.choice([0.5, 3.0, 20.0, 100_000.0]))


def _freeze(world: World, dice: random.Random) -> None:
    """The daemon stands still; its clients do not, and some lose their patience."""
    world.freeze(dice.uniform(0.1, 4.0))


class _Stranger:
    """Somebody who connects and never becomes a peer."""

    def __init__(self, words: bytes) -> None:
        self.words = words

    def connected(self, link: Link) -> None:
        if self.words:
            link.send(self.words)

    def received(self, data: bytes) -> None:
        """BYE, if anything."""

    def disconnected(self) -> None:
        """As it should be."""


def _stranger(world: World, dice: random.Random) -> None:
    words = dice.choice([b"", b"\xce", b"\xce\x00\x00\x00\x08\x97\x01", b"GET / HTTP/1.1\r\n\r\n"])
    world.note(f"a stranger says {words!r}")
    world.connect(_Stranger(words), f"stranger/{dice.random():.9f}")


_KINDS: dict[str, tuple[Callable[[World, random.Random], None], int]] = {
    "stall": (_stall, 4),
    "trickle": (_trickle, 2),
    "cut": (_cut, 3),
    "cut_all": (_cut_all, 1),
    "restart": (_restart, 1),
    "jump": (_jump, 1),
    "freeze": (_freeze, 1),
    "stranger": (_stranger, 2),
}  #: each with how many there are at most
