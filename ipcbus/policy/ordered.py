"""Rules in order over patterns: which one decides a topic, and whether all topics of a pattern are allowed.

The patterns of all rules share one tree of tokens. Each node knows the first rule whose pattern ends there, the first one that has
``>`` there, and the first of all below it, so that a walk leaves out what an earlier rule has decided already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..protocol.limits import TOPIC_MAX_TOKENS
from .limits import POLICY_WALK_MAX
from .rules import Rule

_NEVER = 1 << 62  #: the index of no rule


class TooComplexError(Exception):
    """Judging a pattern takes more than POLICY_WALK_MAX steps."""


class _Node:
    __slots__ = ("children", "end", "lowest", "lowest_denying", "rest", "star")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.star: _Node | None = None
        self.end = self.rest = _NEVER  #: the first rule that matches a topic ending here; every topic that goes on from here
        self.lowest = self.lowest_denying = _NEVER  #: the first rule here and below; the first of those that deny


class Ordered:
    """Rules of one action, in order, each with the patterns it applies to (None: everything); the last has to apply to everything."""

    def __init__(self, rules: Iterable[tuple[Rule, Sequence[str] | None]]) -> None:
        self._root = _Node()
        self._rules: list[Rule] = []
        for rule, patterns in rules:
            index = len(self._rules)
            self._rules.append(rule)
            if patterns is None:
                break  # what comes after decides nothing
            for pattern in patterns:
                self._add(pattern, index, rule.allow)
        self._last = len(self._rules) - 1

    @property
    def unconditional(self) -> Rule | None:
        """The rule that decides everything, where there is but one."""
        return self._rules[0] if self._last == 0 else None

    def _add(self, pattern: str, index: int, allow: bool) -> None:
        node = self._root
        path = [node]
        tokens = pattern.split(".")
        rest = tokens[-1] == ">"
        for token in tokens[:-1] if rest else tokens:
            if token == "*":
                node.star = node = node.star or _Node()
            else:
                node = node.children.setdefault(token, _Node())
            path.append(node)
        if rest:
            node.rest = min(node.rest, index)
        else:
            node.end = min(node.end, index)
        for node in path:
            node.lowest = min(node.lowest, index)
            if not allow:
                node.lowest_denying = min(node.lowest_denying, index)

    def decide(self, target: str) -> Rule:
        """The rule that decides a legal topic, or a name."""
        best = self._last
        nodes = [self._root]
        wild = not target.startswith("$")  # T-3: a wildcard that begins a pattern is not for the bus's topics
        for token in target.split("."):
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

    def first_denied(self, pattern: str) -> tuple[Rule, str] | None:
        """The rule that denies a topic that a legal *pattern* can match, and that topic; None where all of them are allowed.

        Exact for topics of up to 32 tokens of any length: that a topic is of at most 255 bytes is not taken into account. Raises
        TooComplexError where more than POLICY_WALK_MAX steps would be needed.
        """
        found = _Walk(self._rules, pattern).visit([self._root], self._last, [])
        return None if found is None else (self._rules[found[0]], ".".join(found[1]))


class _Walk:
    """A search for a topic that a pattern matches and a rule denies, over all tokens that rules mention and one that none does."""

    def __init__(self, rules: Sequence[Rule], pattern: str) -> None:
        self._rules = rules
        self._wanted = pattern.split(".")
        self._open = self._wanted[-1] == ">"
        self._seen: set[tuple[frozenset[_Node], int, int]] = set()
        self._steps = 0

    def visit(self, nodes: list[_Node], best: int, topic: list[str]) -> tuple[int, list[str]] | None:
        """Look at *topic*, and at all that goes on from it; *best* is the first rule that decides those whatever comes."""
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
            return None  # nothing before it denies
        state = frozenset(nodes), best, depth
        if state in self._seen:
            return None
        self._seen.add(state)
        for token in self._tokens(nodes, depth):
            self._steps += 1 + len(nodes)
            if self._steps > POLICY_WALK_MAX:
                raise TooComplexError
            found = self.visit(*_step(nodes, best, token, wild=depth > 0 or not token.startswith("$")), [*topic, token])
            if found is not None:
                return found
        return None

    def _tokens(self, nodes: list[_Node], depth: int) -> list[str]:
        """The tokens that may stand at *depth* and lead to different places."""
        wanted = self._wanted[min(depth, len(self._wanted) - 1)]
        if wanted not in ("*", ">"):
            return [wanted]
        known = {token for node in nodes for token in node.children}
        if depth == 0:
            known = {token for token in known if not token.startswith("$")}
        fresh = "x"
        while fresh in known:
            fresh += "x"
        return [*sorted(known), fresh]


def _step(nodes: list[_Node], best: int, token: str, *, wild: bool) -> tuple[list[_Node], int]:
    """Where *token* leads from *nodes*, without what *best* decides before."""
    if wild:
        best = min(best, *(node.rest for node in nodes)) if nodes else best
    found = [node.star for node in nodes if wild and node.star is not None]
    found += [node.children[token] for node in nodes if token in node.children]
    return [node for node in found if node.lowest < best], best
