"""What one subject may do: the rules that concern it, in order, made ready to be asked often.

The first rule that concerns the subject, has the action and matches the target decides; where none does, the policy's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .actions import OF_NAMES, Action
from .limits import POLICY_WALK_MAX
from .ordered import Ordered, TooComplexError
from .placeholders import fill
from .rules import Rule
from .subjects import Subject

NO_NAME = ":"  #: stands for the name of a peer that owns none


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something is allowed, by which rule, and a line that tells a person so."""

    allowed: bool
    rule: Rule
    why: str


class Rights:
    """What one subject may do under one policy. Targets have to be legal: topics T-1, patterns T-2, names T-5 or ":"."""

    __slots__ = ("_calls", "_default", "_methods", "_ordered", "_rules", "_subject", "unrestricted")

    def __init__(self, subject: Subject, rules: Sequence[Rule], default: Rule) -> None:
        self._subject = subject
        self._rules = [rule for rule in rules if rule.who.concerns(subject)]
        self._default = default
        self._ordered: dict[Action, Ordered] = {}
        self._methods = frozenset(method for rule in self._rules for method in rule.methods or ())
        self._calls: dict[str | None, Ordered] = {}  # by a method that rules mention, or None for all others
        #: Whether everything is allowed: who has such rights need not be judged.
        self.unrestricted = all(self._allows_all(action) for action in Action)

    def _allows_all(self, action: Action) -> bool:
        first = next((rule for rule in self._rules if action in rule.actions), self._default)
        limited = first is not self._default and (
            first.targets(action) is not None or (action is Action.CALL and first.methods is not None)
        )
        return first.allow and not limited

    def connect(self) -> Verdict:
        """Whether the subject may use the bus."""
        return self._verdict(Action.CONNECT, self._of(Action.CONNECT).decide(""), "")

    def admin(self) -> Verdict:
        """Whether it may see the bus's books."""
        return self._verdict(Action.ADMIN, self._of(Action.ADMIN).decide(""), "")

    def own(self, name: str) -> Verdict:
        """Whether it may own *name*."""
        return self._verdict(Action.OWN, self._of(Action.OWN).decide(name), f" of {name!r}")

    def send(self, name: str) -> Verdict:
        """Whether it may send to the owner of *name*; ":" is a peer without names."""
        return self._verdict(Action.SEND, self._of(Action.SEND).decide(name), f" to {_named(name)}")

    def call(self, name: str, method: str) -> Verdict:
        """Whether it may call *method* of the owner of *name*; ":" is a peer without names."""
        key = method if method in self._methods else None
        ordered = self._calls.get(key)
        if ordered is None:
            ordered = self._calls[key] = Ordered(self._applied(Action.CALL, key))
        return self._verdict(Action.CALL, ordered.decide(name), f" of {method!r} of {_named(name)}")

    def publish(self, topic: str) -> Verdict:
        """Whether it may publish to *topic*."""
        return self._verdict(Action.PUBLISH, self._of(Action.PUBLISH).decide(topic), f" to {topic!r}")

    def subscribe(self, pattern: str) -> Verdict:
        """Whether it may receive everything that *pattern* can match."""
        return self._of_pattern(Action.SUBSCRIBE, pattern, "to")

    def monitor(self, pattern: str) -> Verdict:
        """Whether it may see what others publish to any topic that *pattern* can match."""
        return self._of_pattern(Action.MONITOR, pattern, "of")

    def _of_pattern(self, action: Action, pattern: str, preposition: str) -> Verdict:
        ordered = self._of(action)
        target = f" {preposition} {pattern!r}"
        try:
            denied = ordered.first_denied(pattern)
        except TooComplexError:
            why = f"{action}{target} is too complex to judge under {POLICY_WALK_MAX} steps: a pattern with fewer wildcards can be judged"
            return Verdict(False, self._default, why)
        if denied is None:
            example = ".".join("x" if token in ("*", ">") else token for token in pattern.split("."))
            return self._verdict(action, ordered.decide(example), target)
        rule, topic = denied
        return self._verdict(action, rule, target if topic == pattern else f"{target}, which would also match {topic!r}")

    def _verdict(self, action: Action, rule: Rule, target: str) -> Verdict:
        return Verdict(rule.allow, rule, f"{rule.where} {'allows' if rule.allow else 'denies'} {action}{target}")

    def _of(self, action: Action) -> Ordered:
        ordered = self._ordered.get(action)
        if ordered is None:
            ordered = self._ordered[action] = Ordered(self._applied(action, None))
        return ordered

    def _applied(self, action: Action, method: str | None) -> Iterator[tuple[Rule, Sequence[str] | None]]:
        """The rules that decide *action* in order, with the patterns that they are for this subject."""
        for rule in self._rules:
            if action not in rule.actions or (action is Action.CALL and rule.methods is not None and method not in rule.methods):
                continue
            patterns = rule.targets(action)
            if patterns is None:
                yield rule, None
            else:
                filled = (fill(text, self._subject, allow=rule.allow, of_names=action in OF_NAMES) for text in patterns)
                yield rule, [pattern for pattern in filled if pattern is not None]
        yield self._default, None


def _named(name: str) -> str:
    return "a peer without a name" if name == NO_NAME else repr(name)
