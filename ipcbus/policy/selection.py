"""The rules that concern a subject, made ready once for all subjects that the same rules concern.

A bus has thousands of peers and few kinds of them: what a rule says without placeholders is put into trees here, and a subject's
rights add only what the placeholders are for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .actions import OF_NAMES, Action
from .ordered import Ordered
from .placeholders import fill, is_personal
from .rules import Rule
from .subjects import Subject
from .tree import Node

Tokens = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """The rules of one action up to the first that decides everything."""

    rules: Sequence[Rule]
    common: Node  #: patterns that are the same for every subject
    personal: Sequence[tuple[int, Tokens]]  #: the others: a rule's number, the tokens with their placeholders


class Selection:
    """The rules of a policy that concern some subjects, in order, and its default."""

    __slots__ = ("_default", "_parts", "_rules", "personal", "unrestricted")

    def __init__(self, rules: Sequence[Rule], default: Rule) -> None:
        self._rules = rules
        self._default = default
        self._parts: dict[Action, _Part] = {}
        #: Whether rights differ between subjects that the same rules concern.
        self.personal = any(is_personal(text) for rule in rules for texts in (rule.names, rule.topics) for text in texts or ())
        #: Whether everything is allowed.
        self.unrestricted = all(self._allows_all(action) for action in Action)

    def _allows_all(self, action: Action) -> bool:
        first = next((rule for rule in self._rules if action in rule.actions), None)
        return self._default.allow if first is None else first.allow and patterns_of(first, action) is None

    def ordered(self, action: Action, subject: Subject) -> Ordered:
        """The rules of *action* as they are for *subject*."""
        part = self._parts.get(action)
        if part is None:
            part = self._parts[action] = self._part(action)
        if not part.personal:
            return Ordered(part.rules, (part.common,))
        own = Node()
        for index, tokens in part.personal:
            allow = part.rules[index].allow
            filled = [fill(token, subject, allow=allow, of_names=action in OF_NAMES) for token in tokens]
            if None not in filled:
                own.add([token for token in filled if token is not None], index, allow=allow)
        return Ordered(part.rules, (part.common, own))

    def _part(self, action: Action) -> _Part:
        rules: list[Rule] = []
        common = Node()
        personal: list[tuple[int, Tokens]] = []
        for rule in self._rules:
            if action not in rule.actions:
                continue
            index = len(rules)
            rules.append(rule)
            patterns = patterns_of(rule, action)
            if patterns is None:
                return _Part(rules, common, personal)  # what comes after decides nothing
            for tokens in patterns:
                if any(is_personal(token) for token in tokens):
                    personal.append((index, tokens))
                else:
                    common.add([token.replace("%%", "%") for token in tokens], index, allow=rule.allow)
        return _Part([*rules, self._default], common, personal)


def patterns_of(rule: Rule, action: Action) -> Iterable[Tokens] | None:
    """The tokens of what limits *action* in *rule*; None: nothing does. Of a call the first token is the method."""
    texts = rule.targets(action)
    if action is Action.CALL:
        if texts is None and rule.methods is None:
            return None
        names = (">",) if texts is None else texts
        methods = ("*",) if rule.methods is None else rule.methods
        return ((method, *name.split(".")) for name in names for method in methods)
    return None if texts is None else (tuple(text.split(".")) for text in texts)
