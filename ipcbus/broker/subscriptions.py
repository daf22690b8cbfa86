"""The index of subscriptions: which lanes and groups a topic reaches. Knows nothing of routes, which `routing` makes of what is found here.

Literal patterns stand in a dict, patterns with wildcards in a trie with children of their own for `*` and `>`, so the cost of a look-up
depends on the depth of the topic and not on the number of unrelated subscriptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..protocol.topics import is_literal, split_pattern
from .lanes import Group, Lane


class Subscribers:
    """The subscriptions of one pattern."""

    __slots__ = ("groups", "lanes")

    def __init__(self) -> None:
        self.lanes: dict[Lane, None] = {}
        self.groups: dict[str, Group] | None = None

    def __bool__(self) -> bool:
        return bool(self.lanes or self.groups)


class _Node:
    """A token's place in the trie of wildcard patterns."""

    __slots__ = ("any", "children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.any: _Node | None = None  #: `*`
        self.rest: Subscribers | None = None  #: `>`
        self.here: Subscribers | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is under it. What is empty is pruned, so that it looks no deeper than one step: a chain of `*` would be gone
        through again and again."""
        return not self.children and self.any is None and self.rest is None and self.here is None


class SubscriptionIndex:
    """All subscriptions of the bus by pattern. ``generation`` grows when what was found for any topic may hold no more."""

    def __init__(self) -> None:
        self.generation = 1
        self.lanes = 0  #: how many there are
        self.looked = 0  #: at so many nodes of the trie, in all
        self.leaving: list[Lane] = []  #: of peers that went with many: nothing reaches them, and they are taken out bit by bit
        self._literal: dict[str, Subscribers] = {}
        self._root = _Node()

    def add(self, lane: Lane, group: str | None) -> None:
        """Add a lane under its pattern; raises ``bad_topic``."""
        tokens = split_pattern(lane.pattern)
        subscribers = self._place(lane.pattern, tokens)
        if group is None:
            subscribers.lanes[lane] = None
        else:
            if subscribers.groups is None:
                subscribers.groups = {}
            record = subscribers.groups.get(group)
            if record is None:
                record = subscribers.groups[group] = Group(lane.pattern, group, lane.terms)
            record.add(lane)
        self.lanes += 1
        self._changed(lane.pattern, literal=is_literal(tokens))

    def group(self, pattern: str, name: str) -> Group | None:
        """The group of that name on a pattern, if it has members; raises ``bad_topic``."""
        tokens = split_pattern(pattern)
        place = self._literal.get(pattern) if is_literal(tokens) else self._find_place(tokens)
        return (place.groups or {}).get(name) if place is not None else None

    def _find_place(self, tokens: list[str]) -> Subscribers | None:
        """The subscribers of a pattern with wildcards, where there are any."""
        node: _Node | None = self._root
        for token in tokens:
            if node is None:
                return None
            if token == ">":
                return node.rest
            node = node.any if token == "*" else (node.children or {}).get(token)
        return node.here if node is not None else None

    def remove(self, lane: Lane) -> None:
        """Remove a lane that was added, and what of the index only it needed."""
        literal = self._take_out(lane)
        self.lanes -= 1
        self._changed(lane.pattern, literal=literal)

    def leave(self, lanes: Iterable[Lane]) -> None:
        """Let nothing reach *lanes* any more, all at once. They are in no group, and their peer will have no ``lanes`` when the next route
        is made; `clean` takes them out."""
        before = len(self.leaving)
        self.leaving += lanes
        self.lanes -= len(self.leaving) - before
        self.generation += 1

    def clean(self, count: int) -> None:
        """Take out up to *count* of the lanes that leave. No route has them, so none becomes void."""
        for lane in self.leaving[-count:]:
            self._take_out(lane)
        del self.leaving[-count:]

    def _take_out(self, lane: Lane) -> bool:
        """Take a lane out of the index; whether its pattern is literal."""
        tokens = split_pattern(lane.pattern)
        subscribers = self._place(lane.pattern, tokens)
        if lane.group is None:
            del subscribers.lanes[lane]
        else:
            lane.group.remove(lane)
            if not lane.group.members and subscribers.groups is not None:
                del subscribers.groups[lane.group.name]
        literal = is_literal(tokens)
        if not subscribers:
            if literal:
                del self._literal[lane.pattern]
            else:
                self._prune(self._root, tokens, 0)
        return literal

    def _changed(self, pattern: str, *, literal: bool) -> None:
        """A subscription came or went."""
        self.generation += 1

    def _place(self, pattern: str, tokens: list[str]) -> Subscribers:
        """The subscribers of a pattern, made where there are none yet."""
        if is_literal(tokens):
            found = self._literal.get(pattern)
            if found is None:
                found = self._literal[pattern] = Subscribers()
            return found
        node = self._root
        for token in tokens:
            if token == ">":
                if node.rest is None:
                    node.rest = Subscribers()
                return node.rest
            if token == "*":
                if node.any is None:
                    node.any = _Node()
                node = node.any
            else:
                if node.children is None:
                    node.children = {}
                found_node = node.children.get(token)
                if found_node is None:
                    found_node = node.children[token] = _Node()
                node = found_node
        if node.here is None:
            node.here = Subscribers()
        return node.here

    def _prune(self, node: _Node, tokens: list[str], depth: int) -> None:
        """Remove the empty nodes of one pattern, deepest first. The depth is bounded by T-1."""
        if depth == len(tokens):
            if not node.here:
                node.here = None
            return
        token = tokens[depth]
        if token == ">":
            if not node.rest:
                node.rest = None
        elif token == "*":
            if node.any is not None:
                self._prune(node.any, tokens, depth + 1)
                if node.any.empty:
                    node.any = None
        elif node.children is not None and token in node.children:
            self._prune(node.children[token], tokens, depth + 1)
            if node.children[token].empty:
                del node.children[token]

    def match(self, topic: str) -> list[Subscribers]:
        """The subscribers of every pattern that matches a legal *topic* (T-2, T-3)."""
        found = [self._literal[topic]] if topic in self._literal else []
        tokens = topic.split(".")
        root = self._root
        if tokens[0].startswith("$"):  # T-3: not matched by a leading wildcard
            node = root.children.get(tokens[0]) if root.children else None
            level, tokens = ([node] if node is not None else []), tokens[1:]
        else:
            level = [root]
        for token in tokens:
            following: list[_Node] = []
            for node in level:
                if node.rest:
                    found.append(node.rest)
                if node.any is not None:
                    following.append(node.any)
                if node.children and token in node.children:
                    following.append(node.children[token])
            level = following
            self.looked += len(level)
            if not level:
                return found
        found.extend(node.here for node in level if node.here)
        return found

    def patterns(self) -> Iterator[tuple[str, Subscribers]]:
        """Every pattern with its subscribers, in no particular order."""
        yield from self._literal.items()
        nodes: list[tuple[str, _Node]] = [("", self._root)]
        while nodes:
            path, node = nodes.pop()
            if node.here:
                yield path[:-1], node.here
            if node.rest:
                yield f"{path}>", node.rest
            if node.any is not None:
                nodes.append((f"{path}*.", node.any))
            nodes.extend((f"{path}{token}.", child) for token, child in (node.children or {}).items())

    def receivers(self, topic: str) -> tuple[tuple[Lane, ...], tuple[Group, ...]]:
        """The lanes and groups that get a message on *topic*."""
        found = self.match(topic)
        if not found:
            return (), ()
        lanes = tuple(lane for subscribers in found for lane in subscribers.lanes)
        if self.leaving:
            lanes = tuple(lane for lane in lanes if lane.peer.lanes is not None)
        groups = tuple(group for subscribers in found for group in (subscribers.groups or {}).values())
        return lanes, groups
