"""What one subject may do: the rules that concern it, in order, made ready to be asked often.

The first rule that concerns the subject, has the action and matches the target decides; where none does, the policy's default.
"""

from __future__ import annotations

from dataclasses import dataclass

from .actions import Action
from .limits import POLICY_WALK_MAX
from .ordered import Ordered, TooComplexError
from .rules import Rule
from .selection import Selection
from .subjects import Subject

NO_NAME = ":"  #: stands for the name of a peer that owns none
_NOTHING = ("",)  # the target of what is done to the bus itself
_LIMIT = Rule(False, where="the limit of what is judged")
_SHOWN = 200  # characters of a target in a line for people


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something is allowed, by which rule, and a line that tells a person so."""

    allowed: bool
    rule: Rule
    why: str


class Rights:
    """What one subject may do under one policy. Targets have to be legal: topics T-1, patterns T-2, names T-5 or ":"."""

    __slots__ = ("_ordered", "_selection", "_subject", "unrestricted")

    def __init__(self, subject: Subject, selection: Selection) -> None:
        self._subject = subject
        self._selection = selection
        self._ordered: dict[Action, Ordered] = {}
        #: Whether everything is allowed: who has such rights need not be judged.
        self.unrestricted = selection.unrestricted

    @property
    def walked(self) -> int:
        """The steps that all patterns together have taken so far (POLICY_WALK_MAX): who asks pays for them."""
        return sum(ordered.steps for ordered in self._ordered.values())

    def connect(self) -> Verdict:
        """Whether the subject may use the bus."""
        return self._verdict(Action.CONNECT, self._of(Action.CONNECT).decide(_NOTHING), "")

    def admin(self) -> Verdict:
        """Whether it may see the bus's books."""
        return self._verdict(Action.ADMIN, self._of(Action.ADMIN).decide(_NOTHING), "")

    def own(self, name: str) -> Verdict:
        """Whether it may own *name*."""
        return self._verdict(Action.OWN, self._of(Action.OWN).decide(name.split(".")), f" of {_quoted(name)}")

    def send(self, name: str) -> Verdict:
        """Whether it may send to the owner of *name*; ":" is a peer without names."""
        return self._verdict(Action.SEND, self._of(Action.SEND).decide(name.split(".")), f" to {_named(name)}")

    def call(self, name: str, method: str) -> Verdict:
        """Whether it may call *method* of the owner of *name*; ":" is a peer without names."""
        rule = self._of(Action.CALL).decide((method, *name.split(".")))
        return self._verdict(Action.CALL, rule, f" of {_quoted(method)} of {_named(name)}")

    def publish(self, topic: str) -> Verdict:
        """Whether it may publish to *topic*."""
        return self._verdict(Action.PUBLISH, self._of(Action.PUBLISH).decide(topic.split(".")), f" to {_quoted(topic)}")

    def subscribe(self, pattern: str) -> Verdict:
        """Whether it may receive everything that *pattern* can match."""
        return self._of_pattern(Action.SUBSCRIBE, pattern, "to")

    def monitor(self, pattern: str) -> Verdict:
        """Whether it may see what others publish to any topic that *pattern* can match."""
        return self._of_pattern(Action.MONITOR, pattern, "of")

    def _of_pattern(self, action: Action, pattern: str, preposition: str) -> Verdict:
        ordered = self._of(action)
        target = f" {preposition} {_quoted(pattern)}"
        try:
            denied = ordered.first_denied(pattern.split("."))
        except TooComplexError:
            why = f"{action}{target} is too complex to judge under {POLICY_WALK_MAX} steps: a pattern with fewer wildcards can be judged"
            return Verdict(False, _LIMIT, why)
        if denied is None:
            example = ["x" if token in ("*", ">") else token for token in pattern.split(".")]
            return self._verdict(action, ordered.decide(example), target)
        rule, topic = denied
        return self._verdict(action, rule, target if topic == pattern else f"{target}, which would also match {_quoted(topic)}")

    def _verdict(self, action: Action, rule: Rule, target: str) -> Verdict:
        return Verdict(rule.allow, rule, f"{rule.where} {'allows' if rule.allow else 'denies'} {action}{target}")

    def _of(self, action: Action) -> Ordered:
        ordered = self._ordered.get(action)
        if ordered is None:
            ordered = self._ordered[action] = self._selection.ordered(action, self._subject)
        return ordered


def _quoted(target: str) -> str:
    """A target in a line for people: without control characters, and short."""
    shown = repr(target)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _named(name: str) -> str:
    return "a peer without a name" if name == NO_NAME else _quoted(name)
