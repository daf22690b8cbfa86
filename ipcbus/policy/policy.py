"""A policy: ordered rules and a default, and the rights that they give to each subject."""

from __future__ import annotations

from collections.abc import Sequence

from .rights import Rights
from .rules import Rule
from .subjects import Subject

_REMEMBERED = 1_024  # subjects whose rights are kept ready: programs of one user connect again and again


class Policy:
    """Rules in order; the first that concerns a subject, an action and a target decides, *default* where none does.

    *default* is for everybody and everything: only its `allow` and `where` count. Not thread-safe: it remembers rights.
    """

    def __init__(self, rules: Sequence[Rule], *, default: Rule) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._rights: dict[Subject, Rights] = {}

    def rights(self, subject: Subject) -> Rights:
        """What *subject* may do."""
        rights = self._rights.get(subject)
        if rights is None:
            if len(self._rights) >= _REMEMBERED:
                del self._rights[next(iter(self._rights))]
            rights = self._rights[subject] = Rights(subject, self.rules, self.default)
        return rights


#: Everybody may do everything.
EVERYTHING = Policy((), default=Rule(True, where="a bus without a policy"))
