"""Who uses how much: programs, under users, under the bus (Q-1 … Q-4).

A program is a (uid, pid); where no pid is known each connection is one. All programs of a uid are one user, those on TCP are the user
``tcp``. A charge goes up the whole chain or is refused by one level of it, and then nothing is charged. What is charged has one place that
gives it back, named at each `charge`; a program whose last connection has gone has nothing left but what it retained, which is its user's
from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..protocol.errors import Code
from ..protocol.limits import Limits
from .quotas import BYTES, PEERS, RESOURCES, RETAINED, RETAINED_BYTES, Cap, OverQuota, caps, fair_share, may_add, reserve

if TYPE_CHECKING:
    from .peers import Peer

_COUNT = len(RESOURCES)

#: What a refused charge is answered with; what waits (BYTES) ends a connection.
_CODES = tuple(
    {BYTES: Code.OVER_QUOTA, PEERS: Code.TOO_MANY_PEERS}.get(resource, Code.OVER_LIMIT) for resource in range(_COUNT)
)

Uid = int | str  #: a user's uid, or "tcp"


class User:
    """All programs of one uid."""

    __slots__ = ("actors", "direct", "leaving", "logged", "own", "programs", "uid", "used")

    def __init__(self, uid: Uid, own: bool) -> None:
        self.uid = uid
        self.own = own  #: the bus is this user's own (or root's): what remains of it is for them
        self.used = [0] * _COUNT
        self.actors = [0] * _COUNT  #: programs that have a share
        self.programs: dict[int, Program] = {}  #: by pid; those without one have keys below 0
        self.leaving = 0  #: bytes of peers that are being closed for them
        self.direct: dict[Program | User, int] = {}  #: bytes of direct messages that wait for its peers, by the sender's user
        self.logged: dict[int, int] = {}  #: resources that were refused: the episode ends below so much of them

    def __str__(self) -> str:
        return f"uid {self.uid}" if self.uid != "tcp" else "the clients on TCP"

    def under(self) -> Iterable[Program]:
        """The programs whose use is use of this level."""
        return self.programs.values()


class Program:
    """All connections of one process."""

    __slots__ = ("direct", "gone", "key", "leaving", "logged", "name", "pid", "used", "user", "waiting")

    def __init__(self, user: User, key: int, pid: int) -> None:
        self.user = user
        self.key = key
        self.pid = pid  #: 0 where it is not known
        self.name = "one connection"  #: what it is called where its pid is not known
        self.used = [0] * _COUNT
        self.gone = False  #: its last connection has ended
        self.leaving = 0
        self.direct: dict[Program | User, int] = {}
        self.logged: dict[int, int] = {}
        self.waiting: dict[Peer, None] = {}  #: its connections for which bytes are charged

    def __str__(self) -> str:
        return f"pid {self.pid} of {self.user}" if self.pid else f"{self.name} of {self.user}"

    def under(self) -> Iterable[Program]:
        """Itself."""
        return (self,)


class Accounts:
    """The tree of accounts. *owners*: the uids whose bus it is, None: everybody's."""

    def __init__(
        self,
        limits: Limits,
        log: Callable[[int, str], None] = lambda level, text: None,
        *,
        owners: frozenset[int] | None = None,
    ) -> None:
        self.caps: tuple[Cap, ...] = caps(limits)
        self.users: dict[Uid, User] = {}
        self.used = [0] * _COUNT
        self.actors = [0] * _COUNT  #: users that have a share
        self.leaving = 0
        self._owners = owners
        self._limits = limits
        self._descriptors: int | None = None
        self._log = log
        self._nameless = 0

    def reconfigure(self, limits: Limits) -> None:
        """Other limits from now on. What is charged stays."""
        self._limits = limits
        self.caps = caps(limits, self._descriptors)

    def have_descriptors(self, count: int) -> None:
        """The process has file descriptors for *count* connections, whatever limits.max_peers says."""
        self._descriptors = count
        self.reconfigure(self._limits)

    # --- who --------------------------------------------------------------------------------------

    def enter(self, uid: Uid, pid: int) -> Program:
        """The account of a new connection, charged for it; `leave` gives it back. Raises OverQuota ``too_many_peers``."""
        user = self.users.get(uid)
        if user is None:
            own = self._owners is None or uid in self._owners
            user = User(uid, own)
        program = user.programs.get(pid) if pid else None
        if program is None:
            if pid <= 0:
                self._nameless -= 1
            program = Program(user, pid if pid > 0 else self._nameless, pid)
        self.charge(program, PEERS, 1)
        self.users[uid] = user
        user.programs[program.key] = program
        return program

    def leave(self, program: Program) -> None:
        """A connection has gone, and everything else that it was charged for was given back."""
        self.release(program, PEERS, 1)
        if program.used[PEERS]:
            return
        program.gone = True
        user = program.user
        del user.programs[program.key]
        for resource in (RETAINED, RETAINED_BYTES):
            if program.used[resource]:
                user.actors[resource] -= 1  # what it leaves is its user's own: a program that starts often is not many
        self._forget(user)

    def _forget(self, user: User) -> None:
        if not user.programs and not any(user.used):
            self.users.pop(user.uid, None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is charged to anybody but for what users retain."""
        return not self.leaving and not any(
            user.programs or user.leaving or user.direct or any(_passing(user.used)) or any(user.actors) for user in self.users.values()
        ) and not any(_passing(self.used)) and not any(_passing(self.actors))

    # --- charges ----------------------------------------------------------------------------------

    def charge(self, program: Program, resource: int, amount: int) -> None:
        """Charge *program*, its user and the bus; `release` gives it back. Raises OverQuota, with who, what, how much and which option."""
        refused = self._full(program, resource, amount) or self._unfair(program, resource, amount)
        if refused is not None:
            raise self._refusal(program, resource, amount, *refused)
        self.add(program, resource, amount)

    def add(self, program: Program, resource: int, amount: int) -> None:
        """Charge without asking."""
        user = program.user
        if not program.used[resource]:
            user.actors[resource] += 1
        if not user.used[resource]:
            self.actors[resource] += 1
        program.used[resource] += amount
        user.used[resource] += amount
        self.used[resource] += amount

    def release(self, program: Program, resource: int, amount: int) -> None:
        """Give back what was charged."""
        user = program.user
        program.used[resource] -= amount
        user.used[resource] -= amount
        self.used[resource] -= amount
        if not program.used[resource] and not program.gone:
            user.actors[resource] -= 1
        if not user.used[resource]:
            self.actors[resource] -= 1
            if program.gone:
                self._forget(user)
        if program.logged and program.used[resource] < program.logged.get(resource, 0):
            del program.logged[resource]
        if user.logged and user.used[resource] < user.logged.get(resource, 0):
            del user.logged[resource]

    def admits(self, program: Program, resource: int, amount: int) -> bool:
        """Whether `charge` would take so much."""
        return self._full(program, resource, amount) is None and self._unfair(program, resource, amount) is None

    def _full(self, program: Program, resource: int, amount: int) -> tuple[str, int, str] | None:
        """Which level has not so much left: its name, limit and option; None: each has."""
        cap, user = self.caps[resource], program.user
        if resource == BYTES:
            left, of_user, of_program = self.leaving, user.leaving, program.leaving
        else:
            left = of_user = of_program = 0
        if self.used[resource] - left + amount > cap.bus:
            return "bus", cap.bus, cap.bus_option
        if user.used[resource] - of_user + amount > cap.user:
            return "user", cap.user, cap.user_option
        if program.used[resource] - of_program + amount > cap.program:
            return "program", cap.program, cap.program_option
        return None

    def _unfair(self, program: Program, resource: int, amount: int) -> tuple[str, int, str] | None:
        """At which level it would be more than its share (Q-2); None: at none."""
        cap, user = self.caps[resource], program.user
        used, share = user.used[resource], program.used[resource]
        asked_from = cap.user - reserve(cap.user) if RESOURCES[resource].reserved else 0
        if used + amount > asked_from:
            users = user.actors[resource] + (not share)
            if not may_add(cap.user, used, users, share, amount):
                return "share", cap.user, cap.user_option
        if not user.own:
            share = user.used[resource]
            if not may_add(cap.bus, self.used[resource], self.actors[resource] + (not share), share, amount):
                return "user share", cap.bus, cap.bus_option
        return None

    def is_full(self, program: Program, resource: int, amount: int = 0) -> bool:
        """Whether some level has not so much left, or more than all in use."""
        return self._full(program, resource, amount) is not None

    def overdraft(self, program: Program) -> int:
        """By how many bytes the levels of *program* are over what they may have, what leaves soon left out; below 0 where they are not."""
        cap, user = self.caps[BYTES], program.user
        return max(
            program.used[BYTES] - program.leaving - cap.program,
            user.used[BYTES] - user.leaving - cap.user,
            self.used[BYTES] - self.leaving - cap.bus,
        )

    def full_level(self, program: Program) -> Level | None:
        """The highest level of *program* at which more bytes wait than may; None: none."""
        full = self._full(program, BYTES, 0)
        if full is None:
            return None
        return self if full[0] == "bus" else program.user if full[0] == "user" else program

    def under(self) -> Iterable[Program]:
        """All programs."""
        return (program for user in self.users.values() for program in user.programs.values())

    def leave_soon(self, program: Program, amount: int) -> None:
        """*amount* of the bytes charged to *program* are on their way out (below 0: have left): they stand in nobody's way."""
        program.leaving += amount
        program.user.leaving += amount
        self.leaving += amount

    def is_fair(self, program: Program, resource: int, amount: int = 0) -> bool:
        """Whether the program would be within its share with *amount* more."""
        return self._unfair(program, resource, amount) is None

    def excess(self, program: Program, resource: int) -> int:
        """How much less the program would have to have to be within its share; 0 where it is."""
        cap, user = self.caps[resource], program.user
        over = _excess(cap.user, user.used[resource], user.actors[resource], program.used[resource])
        if not user.own:
            over = max(over, _excess(cap.bus, self.used[resource], self.actors[resource], user.used[resource]))
        return over

    def share(self, program: Program, resource: int) -> int:
        """The most that the program may come to, as things are."""
        cap, user = self.caps[resource], program.user
        share = program.used[resource]
        fair = fair_share(cap.user, user.used[resource], user.actors[resource] + (not share), share)
        if RESOURCES[resource].reserved:
            fair = max(fair, cap.user - reserve(cap.user) - user.used[resource] + share)
        return min(fair, cap.program, self.user_share(user, resource))

    def user_share(self, user: User, resource: int) -> int:
        """The most that the user may come to, as things are."""
        cap, share = self.caps[resource], user.used[resource]
        if user.own:
            return min(cap.user, cap.bus - self.used[resource] + share)
        return min(cap.user, fair_share(cap.bus, self.used[resource], self.actors[resource] + (not share), share))

    # --- refusals (Q-4) ---------------------------------------------------------------------------

    def refusal(self, program: Program, resource: int, amount: int = 0) -> OverQuota:
        """The error for a charge that is not admitted, or without *amount* for what was charged all the same."""
        refused = self._full(program, resource, amount) or self._unfair(program, resource, amount)
        assert refused is not None
        return self._refusal(program, resource, amount, *refused)

    def _refusal(self, program: Program, resource: int, amount: int, level: str, limit: int, option: str) -> OverQuota:
        words, user = RESOURCES[resource].words, program.user
        if level == "program":
            text = f"{program} has {program.used[resource]} of {limit} {words}"
        elif level == "user":
            text = f"{user} has {user.used[resource]} of {limit} {words}, {program} {program.used[resource]} of them"
        elif level == "bus":
            text = f"there are {self.used[resource]} of {limit} {words}, {program.used[resource]} of them of {program}"
        elif level == "share":
            may = self.share(program, resource) if amount else program.used[resource] - self.excess(program, resource)
            text = (
                f"{program} has {program.used[resource]} {words}, and its share is {may} of the {limit} that"
                f" {user} may have: {user.used[resource]} are in use"
            )
        else:
            may = self.user_share(user, resource) if amount else user.used[resource] - self.excess(program, resource)
            text = (
                f"{user} has {user.used[resource]} {words}, and its share is {may} of the bus's {limit}:"
                f" {self.used[resource]} are in use"
            )
        text += f"; {amount} more are not admitted ({option})" if amount else f" ({option})"
        of_bus = level == "bus"
        if resource != BYTES and (resource != PEERS or not of_bus):  # those two are logged by who ends a connection, or admits none
            self._log_first(program if level in ("program", "share") else user, resource, text)
        return OverQuota(_CODES[resource], text, of_bus=of_bus)

    def log_loss(self, program: Program, text: str) -> None:
        """Say that what waited was lost, once an episode."""
        self._log_first(program, BYTES, text)

    def _log_first(self, account: Program | User, resource: int, text: str) -> None:
        """One line for the first refusal of an episode; it ends when the account's usage is below half of what it was."""
        if resource in account.logged:
            return
        account.logged[resource] = max(account.used[resource] // 2, 1)
        self._log(logging.WARNING, f"over quota: {text}; further refusals are only counted until half of it is free again")

    # --- lists ------------------------------------------------------------------------------------

    def of_bus(self) -> dict[str, dict[str, int]]:
        """By resource: what is in use, and its limit."""
        return {kind.name: {"used": self.used[at], "limit": self.caps[at].bus} for at, kind in enumerate(RESOURCES)}

    def of_user(self, user: User) -> dict[str, dict[str, int]]:
        """By resource: what is in use, its limit, and how much it may come to as things are."""
        return {
            kind.name: {"used": user.used[at], "limit": self.caps[at].user, "share": self.user_share(user, at)}
            for at, kind in enumerate(RESOURCES)
        }

    def of_program(self, program: Program) -> dict[str, dict[str, int]]:
        """The same of a program."""
        return {
            kind.name: {"used": program.used[at], "limit": self.caps[at].program, "share": self.share(program, at)}
            for at, kind in enumerate(RESOURCES)
        }


Level = Accounts | User | Program  #: the bus, a user, a program


def _passing(figures: list[int]) -> list[int]:
    """What ends with connections: all but kept messages."""
    return [figure for resource, figure in enumerate(figures) if resource not in (RETAINED, RETAINED_BYTES)]


def _excess(limit: int, used: int, users: int, share: int) -> int:
    """The least that *share* has to become smaller by until `may_add` holds for it."""
    return max(-((limit - used - users * share) // (users + 1)), 0)
