"""A story: what a seed makes happen, and which parts of it are left out. Playing the same story twice gives the same bytes.

Every actor, connection and fault has dice of its own, so leaving out one of them changes what the others decide as little as it can:
that is what makes shrinking work.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from .faults import Fault, plan_faults
from .model_client import ModelClient
from .network import World
from .session_client import SessionClient

QUIET_S = 20.0  #: longer than any timeout of the simulation


@dataclass(frozen=True)
class Story:
    """A seed, and the limits on what happens; None is: as the seed says."""

    seed: int
    clients: tuple[int, ...] | None = None  #: which of the model clients are there
    programs: tuple[int, ...] | None = None  #: which of the real sessions
    faults: tuple[int, ...] | None = None  #: which of the planned faults happen
    until: float | None = None  #: how many seconds everybody acts
    without: tuple[str, ...] = ()  #: actions that nobody does

    def __str__(self) -> str:
        """The options of pytest that tell it again."""
        said = [(field.name, getattr(self, field.name)) for field in _LIMITS if getattr(self, field.name) != field.default]
        limits = ",".join(f"{name}={_text(value)}" for name, value in said)
        return f"--seed {self.seed}" + (f" --story {limits}" if limits else "")


_LIMITS = fields(Story)[1:]


def _text(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def parse(seed: int, text: str) -> Story:
    """A story from ``--seed`` and ``--story clients=0+2,programs=,faults=0-2,until=3.2,without=call+send``."""
    limits: dict[str, object] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name in ("clients", "programs", "faults"):
            limits[name] = tuple(number for some in filter(None, value.split("+")) for number in _numbers(some))
        elif name == "until":
            limits[name] = float(value)
        elif name == "without":
            limits[name] = tuple(filter(None, value.split("+")))
        else:
            raise ValueError(f"a story has no {name!r}: {', '.join(field.name for field in _LIMITS)}")
    return Story(seed, **limits)  # type: ignore[arg-type]


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@dataclass
class Cast:
    """What of a seed's story there is to leave out, written in full."""

    clients: tuple[int, ...]
    programs: tuple[int, ...]
    faults: tuple[Fault, ...]
    until: float

    def full(self, story: Story) -> Story:
        """*story* with every limit said."""
        return Story(
            story.seed,
            self.clients if story.clients is None else story.clients,
            self.programs if story.programs is None else story.programs,
            tuple(range(len(self.faults))) if story.faults is None else story.faults,
            self.until if story.until is None else story.until,
            story.without,
        )


def cast(seed: int) -> Cast:
    """What the seed says."""
    dice = World.dice_of(seed, "cast")
    until = dice.choice([1.0, 2.0, 3.0, 6.0])
    clients, programs = dice.randint(1, 4), dice.randint(1, 3)
    return Cast(tuple(range(clients)), tuple(range(programs)), tuple(plan_faults(dice, until)), until)


def play(story: Story | int) -> World:
    """Clients act at random among faults, then all becomes quiet, then everybody leaves. Raises what went wrong, with the story's log."""
    if isinstance(story, int):
        story = Story(story)
    world = World(story.seed, story.without)
    try:
        _tell(world, story)
    except Exception as error:
        error.add_note("\n".join(world.log))
        raise
    return world


def _tell(world: World, story: Story) -> None:
    whole = cast(story.seed)
    told = whole.full(story)
    assert told.clients is not None
    assert told.programs is not None
    assert told.faults is not None
    assert told.until is not None
    clients = [ModelClient(world, f"client{number}") for number in told.clients]
    programs = [SessionClient(world, f"program{number}") for number in told.programs]
    for number in told.faults:
        fault = whole.faults[number]
        world.after(fault.after_s, lambda fault=fault: fault.strike(world))  # type: ignore[misc]
    world.run(told.until)

    world.settle()
    for client in clients:
        client.settle()
    for program in programs:
        program.settle()
    world.run(QUIET_S)
    for program in programs:
        program.rest()
    world.run(1.0)
    world.oracle.check_quiet()
    for program in programs:
        program.check()
    world.auditor.check_quiet()

    world.closing = True
    for link in tuple(world.links):
        link.die()
    world.run(QUIET_S)
    for program in programs:
        program.check_left()
    world.auditor.check_empty()
