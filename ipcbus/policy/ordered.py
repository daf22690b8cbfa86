"""Ordered rules over targets: which one decides a topic or a name, and whether every topic of a pattern is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol.limits import TOPIC_MAX_TOKENS
from .limits import POLICY_WALK_MAX
from .rules import Rule
from .tree import Node


class TooComplexError(Exception):
    """Judging a pattern takes more than POLICY_WALK_MAX steps."""


class Ordered:
    """Rules in order, and the trees that hold their patterns by the rules' numbers. The last rule decides what no pattern matches."""

    __slots__ = ("_roots", "_rules", "steps")

    def __init__(self, rules: Sequence[Rule], roots: Sequence[Node]) -> None:
        self._rules = rules
        self._roots = roots
        self.steps = 0  #: of all walks so far

    def decide(self, target: Sequence[str]) -> Rule:
        """The rule that decides a target, of whose tokens at least one is given."""
        best = len(self._rules) - 1
        nodes = self._roots
        wild = not target[0].startswith("$")  # T-3: no pattern that begins with a wildcard matches a topic of the bus's own
        for token in target:
            following = []
            for node in nodes:
                if wild:
                    if node.rest < best:
                        best = node.rest
                    if node.star is not None and node.star.lowest < best:
                        following.append(node.star)
                child = node.children.get(token)
                if child is not None and child.lowest < best:
                    following.append(child)
            if not following:
                return self._rules[best]
            nodes = following
            wild = True
        return self._rules[min(best, *(node.end for node in nodes))]

    def first_denied(self, pattern: Sequence[str]) -> tuple[Rule, str] | None:
        """The rule that denies a topic that a legal *pattern*, its tokens, can match, and that topic; None where all are allowed.

        Exact for topics of at most 32 tokens (T-1), whatever they weigh: that all of one has to fit 255 bytes is left out. Raises
        TooComplexError where more than POLICY_WALK_MAX steps would be needed.
        """
        walk = _Walk(self._rules, pattern)
        try:
            found = walk.visit(self._roots, len(self._rules) - 1, ())
        finally:
            self.steps += walk.steps
        return None if found is None else (self._rules[found[0]], ".".join(found[1]))


class _Walk:
    """A search for a topic that a pattern matches and a rule denies.

    It goes through all topics at once: at each place only the tokens that patterns mention there lead to different ends, and one
    that none mentions stands for all others. What it knows of a topic's beginning are the nodes that it has reached and the first
    rule that decides whatever follows; beginnings that agree in that are looked at once.
    """

    def __init__(self, rules: Sequence[Rule], pattern: Sequence[str]) -> None:
        self._rules = rules
        self._wanted = pattern
        self._open = self._wanted[-1] == ">"
        self._seen: set[tuple[frozenset[Node], int, int]] = set()
        self.steps = 0

    def visit(self, nodes: Sequence[Node], best: int, topic: tuple[str, ...]) -> tuple[int, tuple[str, ...]] | None:
        """Look at *topic* and at all that goes on from it: the number of the denying rule and the topic, or None."""
        depth = len(topic)
        if depth >= len(self._wanted):
            decided = min(best, *(node.end for node in nodes)) if nodes else best
            if not self._rules[decided].allow:
                return decided, topic
            if not self._open:
                return None
        if depth == TOPIC_MAX_TOKENS:
            return None
        if self._rules[best].allow and all(node.lowest_denying >= best for node in nodes):
            return None
        state = frozenset(nodes), best, depth
        if state in self._seen:
            return None
        self._seen.add(state)
        for token in self._tokens(nodes, depth):
            self.steps += 1 + len(nodes)
            if self.steps > POLICY_WALK_MAX:
                raise TooComplexError
            found = self.visit(*_step(nodes, best, token, wild=depth > 0 or not token.startswith("$")), (*topic, token))
            if found is not None:
                return found
        return None

    def _tokens(self, nodes: Sequence[Node], depth: int) -> list[str]:
        """The tokens that may stand at *depth* and lead to different ends; first the one that no pattern mentions."""
        wanted = self._wanted[min(depth, len(self._wanted) - 1)]
        if wanted not in ("*", ">"):
            return [wanted]
        known = {token for node in nodes for token in node.children}
        if depth == 0:
            known = {token for token in known if not token.startswith("$")}  # T-3
        fresh = "x"
        while fresh in known:
            fresh += "x"
        return [fresh, *sorted(known)]


def _step(nodes: Sequence[Node], best: int, token: str, *, wild: bool) -> tuple[list[Node], int]:
    """Where *token* leads from *nodes*, without what *best* decides before, and the new *best*."""
    found = []
    for node in nodes:
        if wild:
            best = min(best, node.rest)
            if node.star is not None:
                found.append(node.star)
        child = node.children.get(token)
        if child is not None:
            found.append(child)
    return [node for node in found if node.lowest < best], best
