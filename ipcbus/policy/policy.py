"""A policy: ordered rules and a default, and the rights that they give to each subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rights import Rights
from .rules import Rule
from .selection import Selection
from .subjects import Subject

_SUBJECTS = 1_024  # whose rights are kept ready: programs of one user connect again and again
_KINDS = 64  # kinds of subjects whose rules are kept ready; peers keep their own besides


class Policy:
    """Rules in order; the first that concerns a subject, an action and a target decides, *default* where none does.

    *default* is for everybody and everything: only its `allow` and `where` count. Not thread-safe: it remembers rights.
    """

    def __init__(self, rules: Sequence[Rule], *, default: Rule) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._rights: dict[Subject, Rights] = {}
        self._kinds: dict[tuple[int, ...], tuple[Selection, Rights]] = {}

    def rights(self, subject: Subject) -> Rights:
        """What *subject* may do. Subjects whom the same rules concern share it, unless a rule has placeholders."""
        rights = self._rights.get(subject)
        if rights is None:
            selection, rights = self._kind(subject)
            if selection.personal:
                rights = Rights(subject, selection)
            _make_room(self._rights, _SUBJECTS)
            self._rights[subject] = rights
        return rights

    def _kind(self, subject: Subject) -> tuple[Selection, Rights]:
        """The rules that concern *subject*, and the rights of one subject whom they concern."""
        concerned = tuple(index for index, rule in enumerate(self.rules) if rule.who.concerns(subject))
        kind = self._kinds.get(concerned)
        if kind is None:
            selection = Selection([self.rules[index] for index in concerned], self.default)
            _make_room(self._kinds, _KINDS)
            kind = self._kinds[concerned] = selection, Rights(subject, selection)
        return kind


def _make_room(table: dict[Any, Any], limit: int) -> None:
    """Forget the oldest where there are *limit*."""
    if len(table) >= limit:
        del table[next(iter(table))]


#: Everybody may do everything.
EVERYTHING = Policy((), default=Rule(True, where="a bus without a policy"))
