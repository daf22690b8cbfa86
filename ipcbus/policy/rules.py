"""One rule: whom it concerns, which actions, on what. Which of several rules decides is `rights`' matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .actions import EVERY_ACTION, OF_NAMES, OF_TOPICS, Action
from .subjects import Subject


class Named(NamedTuple):
    """A user or group that a rule names: its number, None where the system knows no such name (it then matches nobody)."""

    name: str
    number: int | None


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a rule concerns: every field that is not None must fit, any value of it will do."""

    uids: frozenset[int] | None = None
    gids: frozenset[int] | None = None  #: primary or supplementary
    users: tuple[Named, ...] | None = None
    groups: tuple[Named, ...] | None = None  #: primary or supplementary
    units: tuple[str, ...] | None = None  #: exact, or with one "*"
    user_units: tuple[str, ...] | None = None  #: exact, or with one "*"
    identities: tuple[str, ...] | None = None

    def concerns(self, subject: Subject) -> bool:
        """Whether a rule for these applies to *subject*. What is not known of a subject fits nothing."""
        uid, unit, user_unit = subject.uid, subject.unit, subject.user_unit
        return (
            (self.uids is None or uid in self.uids)
            and (self.users is None or (uid is not None and any(named.number == uid for named in self.users)))
            and (self.gids is None or _has_group(subject, self.gids))
            and (self.groups is None or _has_group(subject, (named.number for named in self.groups)))
            and (self.units is None or any(fits(pattern, unit) for pattern in self.units))
            and (self.user_units is None or any(fits(pattern, user_unit) for pattern in self.user_units))
            and (self.identities is None or (subject.identity != "" and subject.identity in self.identities))
        )

    def __str__(self) -> str:
        parts = [
            f"{key} {', '.join(map(str, sorted(numbers)))}"
            for key, numbers in (("uid", self.uids), ("gid", self.gids))
            if numbers is not None
        ]
        parts += [
            f"{key} {', '.join(named.name for named in names)}"
            for key, names in (("user", self.users), ("group", self.groups))
            if names is not None
        ]
        parts += [
            f"{key} {', '.join(texts)}"
            for key, texts in (("unit", self.units), ("user_unit", self.user_units), ("identity", self.identities))
            if texts is not None
        ]
        return " and ".join(parts) or "everybody"


def _has_group(subject: Subject, gids: Iterable[int | None]) -> bool:
    return any(gid is not None and (gid == subject.gid or gid in subject.groups) for gid in gids)


def fits(pattern: str, unit: str) -> bool:
    """Whether a unit's name is *pattern*, in which one ``*`` may stand for any text (also none). An unknown unit fits nothing."""
    if unit == "":
        return False
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == unit
    return len(unit) >= len(head) + len(tail) and unit.startswith(head) and unit.endswith(tail)


EVERYBODY = Who()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. *names* and *topics* are patterns (T-2), with their placeholders not filled in yet; None is every one.

    *names* limits own, send and call, *methods* call, *topics* publish, subscribe and monitor; nothing limits connect and admin.
    """

    allow: bool
    actions: frozenset[Action] = EVERY_ACTION
    who: Who = EVERYBODY
    names: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    topics: tuple[str, ...] | None = None
    where: str = "a rule without a place"  #: for people: "rule 3 of /etc/ipcbus/policy.toml, line 12"
    comment: str = ""

    def targets(self, action: Action) -> tuple[str, ...] | None:
        """The patterns that limit *action*; None: it is allowed or denied on everything (methods apart)."""
        if action in OF_NAMES:
            return self.names
        return self.topics if action in OF_TOPICS else None

    def __str__(self) -> str:
        actions = "everything" if self.actions == EVERY_ACTION else ", ".join(action for action in Action if action in self.actions)
        limits = [
            f"{key} {', '.join(texts)}"
            for key, texts in (("names", self.names), ("methods", self.methods), ("topics", self.topics))
            if texts is not None
        ]
        on = f" on {' and '.join(limits)}" if limits else ""
        return f"{'allow' if self.allow else 'deny'} {actions} for {self.who}{on}"
