"""Redaction: topics whose payloads and headers no monitor sees."""

from __future__ import annotations

from collections.abc import Iterable

from .ordered import Ordered
from .rules import Rule
from .tree import Node

_HIDDEN = Rule(False, where="redaction")
_SHOWN = Rule(True, where="redaction")


class Redaction:
    """The topics that `[redact]` of the policy files names."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        root = Node()
        for pattern in self.patterns:
            root.add(pattern.split("."), 0, allow=False)
        self._ordered = Ordered((_HIDDEN, _SHOWN), (root,))

    def hides(self, topic: str) -> bool:
        """Whether a legal *topic* is one of them."""
        return self._ordered.decide(topic.split(".")) is _HIDDEN
