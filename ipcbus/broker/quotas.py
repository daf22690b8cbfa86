"""How much of what one may have when somebody else asks for it too: the formula of shares, and the limits of each resource (Q-1, Q-2).

Pure arithmetic and a table. Who is who, and what is charged when, is in `accounts`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits

#: What is accounted (Q-1), as an index into an account's figures.
BYTES, PEERS, LANES, NAMES, REQUESTS, RETAINED, RETAINED_BYTES = range(7)

#: Limits up to this are too small to be divided.
UNDIVIDED = 1000


@dataclass(frozen=True, slots=True)
class Resource:
    """One row of the table: its name, its unit in a sentence, and the options that limit it for a program, a user and the bus."""

    name: str
    words: str
    program: str
    user: str
    bus: str
    reserved: bool = False  #: a program may take all but the last eighth of its user's before the formula begins


RESOURCES = (
    Resource("bytes", "bytes that wait", "max_program_bytes", "max_user_bytes", "max_queued_bytes"),
    Resource("peers", "connections", "max_program_peers", "max_user_peers", "max_peers", reserved=True),
    Resource("lanes", "subscriptions", "max_program_lanes", "max_user_lanes", "max_bus_lanes"),
    Resource("names", "names", "max_program_names", "max_user_names", "max_bus_names"),
    Resource("requests", "requests in flight", "max_program_requests", "max_user_requests", "max_bus_requests"),
    Resource("retained", "retained topics", "max_retained_topics", "max_retained_topics", "max_retained_topics", reserved=True),
    Resource("retained_bytes", "retained bytes", "max_retained_bytes", "max_retained_bytes", "max_retained_bytes", reserved=True),
)


class OverQuota(ProtocolError):  # noqa: N818 - it is named as its code
    """An account has no room. ``of_bus``: it is the bus itself that is full, for everybody."""

    def __init__(self, code: Code, text: str, *, of_bus: bool) -> None:
        super().__init__(code, text)
        self.of_bus = of_bus


def may_add(limit: int, used: int, users: int, share: int, amount: int) -> bool:
    """Whether somebody who has *share* of what *users* (that one included) use of *limit* may add *amount* (Q-2).

    With n users each gets between 1/n and 1/n² of what there is, whoever comes first, and something is always left for the next one. (The
    formula is that of dbus-broker, src/util/user.c, without its division.)
    """
    return (users + 1) * (share + amount) - share <= limit - used


def fair_share(limit: int, used: int, users: int, share: int) -> int:
    """The most that `may_add` lets it come to, as things are."""
    return max(share, (limit - used + share) // (users + 1))


def reserve(limit: int) -> int:
    """What a program may not take of its user's without asking how many others there are."""
    return limit // 8 if limit > UNDIVIDED else 0


@dataclass(frozen=True, slots=True)
class Cap:
    """The limits of one resource in force, and the option that says each: a level never has more than the one above it."""

    program: int
    user: int
    bus: int
    program_option: str
    user_option: str
    bus_option: str


def caps(limits: Limits, descriptors: int | None = None) -> tuple[Cap, ...]:
    """The caps of all resources. *descriptors*: connections that the process has file descriptors for."""
    made = []
    for resource in RESOURCES:
        bus, bus_option = getattr(limits, resource.bus), f"limits.{resource.bus}"
        if resource.name == "peers" and descriptors is not None and descriptors < bus:
            bus, bus_option = descriptors, "the bus's limit of open files: ulimit -n, LimitNOFILE="
        user, user_option = getattr(limits, resource.user), f"limits.{resource.user}"
        if user >= bus:
            user, user_option = bus, bus_option
        program, program_option = getattr(limits, resource.program), f"limits.{resource.program}"
        if program >= user:
            program, program_option = user, user_option
        made.append(Cap(program, user, bus, program_option, user_option, bus_option))
    return tuple(made)
