"""The patterns of ordered rules in one tree of tokens.

Each node knows the first rule whose pattern ends there, the first one that has ``>`` there, and the first of all below it, so that
a walk leaves out what an earlier rule has decided already.
"""

from __future__ import annotations

from collections.abc import Sequence

NEVER = 1 << 62  #: the number of no rule


class Node:
    """What patterns have in common up to here."""

    __slots__ = ("children", "end", "lowest", "lowest_denying", "rest", "star")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.star: Node | None = None  #: where ``*`` leads
        self.end = NEVER  #: the first rule for a topic that ends here
        self.rest = NEVER  #: the first rule for every topic that goes on from here
        self.lowest = NEVER  #: the first of all rules here and below
        self.lowest_denying = NEVER  #: the first of those that deny

    def add(self, tokens: Sequence[str], index: int, *, allow: bool) -> None:
        """Put the pattern of the rule number *index* into the tree below this node; rules come in order."""
        node = self
        path = [node]
        rest = tokens[-1] == ">"
        for token in tokens[:-1] if rest else tokens:
            if token == "*":
                node.star = node.star or Node()
                node = node.star
            else:
                node = node.children.setdefault(token, Node())
            path.append(node)
        if rest:
            node.rest = min(node.rest, index)
        else:
            node.end = min(node.end, index)
        for node in path:
            node.lowest = min(node.lowest, index)
            if not allow:
                node.lowest_denying = min(node.lowest_denying, index)
