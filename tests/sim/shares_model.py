"""The reference model of accounts: who may have how much more (Q-1, Q-2). Written from the clauses: it counts what there is each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ipcbus.protocol.limits import Limits

OWNER = 0  #: the uid whose bus it is
UNDIVIDED = 1000

#: The options of each resource: for a program, a user, the bus.
OPTIONS = {
    "peers": ("max_program_peers", "max_user_peers", "max_peers"),
    "lanes": ("max_program_lanes", "max_user_lanes", "max_bus_lanes"),
    "names": ("max_program_names", "max_user_names", "max_bus_names"),
    "retained": ("max_retained_topics",) * 3,
    "retained_bytes": ("max_retained_bytes",) * 3,
}
RESERVED = {"peers", "retained", "retained_bytes"}  #: of these a program may take all but the last eighth without being judged


@dataclass(eq=False, slots=True)
class ProgramModel:
    """A process, as long as it is connected."""

    uid: int
    pid: int
    connections: int = 0

    def __repr__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"


def admits(limits: Limits, resource: str, used: Iterable[tuple[ProgramModel, int]], program: ProgramModel, amount: int = 1) -> bool:
    """Whether *program* may have *amount* more, where *used* is what there is and whose."""
    of_program, of_user = Counter[ProgramModel](), Counter[int]()
    for one, size in used:
        of_program[one] += size
        of_user[one.uid] += size
    bus, user, mine = of_user.total(), of_user[program.uid], of_program[program]
    caps = [getattr(limits, option) for option in OPTIONS[resource]]
    most_bus, most_user, most_program = caps[2], min(caps[1:]), min(caps)
    if bus + amount > most_bus or user + amount > most_user or mine + amount > most_program:
        return False
    free = most_user - (most_user // 8 if most_user > UNDIVIDED else 0) if resource in RESERVED else 0
    if user + amount > free:
        programs = sum(size > 0 and one.uid == program.uid and one.connections > 0 for one, size in of_program.items())
        if not _fair(most_user - user, programs, mine, amount):
            return False
    return program.uid == OWNER or _fair(most_bus - bus, sum(size > 0 for size in of_user.values()), user, amount)


def _fair(remains: int, sharers: int, share: int, amount: int) -> bool:
    """Q-2: *sharers* have a share; who asks for the first time is one more."""
    sharers += not share
    return (sharers + 1) * (share + amount) - share <= remains
