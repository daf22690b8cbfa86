"""Which lanes a topic reaches: the index of subscriptions, and the routes of envelope prefixes.

Literal patterns stand in a dict, patterns with wildcards in a trie with children of their own for `*` and `>`, so the cost of a look-up
depends on the depth of
the topic and not on the number of unrelated subscriptions. What was found is kept in the prefixes of the publishers' scanners as a
route. A change of a subscription with wildcards makes all routes void: the generation grows. A change of one to a single topic makes
void only the routes to that topic, so that who comes and goes costs the publishers to other topics nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from ..protocol.errors import Code, ProtocolError
from ..protocol.framing import Prefix
from ..protocol.messages import Kind
from ..protocol.topics import check_publication, is_literal, split_pattern
from .counters import TopicCounter, TopicCounters
from .effort import LITERAL_CHANGE, LOOK, REFUSED, RESOLVE, RUN, WILDCARD_CHANGE, Effort
from .lanes import Group, Lane
from .origins import Origin
from .peers import Peer
from .rights import Judge

if TYPE_CHECKING:
    from .monitors import Monitor

#: Sets of receivers that are remembered at once; beyond it they are found again.
_ROUTES_MAX = 10_000
#: Prefixes whose routes can be made void one by one; where there are more, every change makes all void.
_TRACKED_MAX = 8_192


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


# --- routes ---------------------------------------------------------------------------------------


class PublishRoute:
    """To these lanes and groups. One object for each set of receivers, so that runs go on across topics; where nobody is to receive, one
    for each counter."""

    __slots__ = ("generation", "groups", "lanes", "monitors", "nobody", "work")

    def __init__(
        self,
        generation: int,
        lanes: tuple[Lane, ...],
        groups: tuple[Group, ...],
        counter: TopicCounter,
        monitors: tuple[Monitor, ...] = (),
    ) -> None:
        self.generation = generation
        self.monitors = monitors
        self.lanes = lanes
        self.groups = groups
        self.work = RUN + len(lanes) + RUN * len(groups)  #: what a run to them costs, besides its messages
        self.nobody = None if lanes or groups else counter  #: what counts that nobody wanted it (L-10)


class MonitoredRoute(PublishRoute):
    """The same, and monitors look at it (section 14). One object for each prefix, so that a run is to one topic of one sender."""

    __slots__ = ()


class RetainRoute(PublishRoute):
    """The same, and the last message is kept. One object for each prefix."""

    __slots__ = ("span", "topic")

    def __init__(
        self,
        generation: int,
        lanes: tuple[Lane, ...],
        groups: tuple[Group, ...],
        prefix: Prefix,
        monitors: tuple[Monitor, ...],
    ) -> None:
        super().__init__(generation, lanes, groups, prefix.counter, monitors)
        self.topic = prefix.to
        self.span = prefix.span  #: the size of a frame without payload bytes


class SendRoute:
    """To the owner of a name, or to a peer; looked up for each run, because names change hands."""

    __slots__ = ("generation", "to")
    work = RUN

    def __init__(self, generation: int, to: str) -> None:
        self.generation = generation
        self.to = to


class Refusal:
    """Nowhere: these frames are answered with an error (L-9)."""

    __slots__ = ("error", "generation", "kind", "to")
    work = REFUSED

    def __init__(self, generation: int, kind: Kind, to: str, error: ProtocolError) -> None:
        self.generation = generation
        self.kind = kind
        self.to = to
        self.error = error


AnyRoute = PublishRoute | SendRoute | Refusal

_NEVER = 0  #: the generation of no time: a prefix with such a route finds it anew
_VOID = PublishRoute(_NEVER, (), (), TopicCounter())


class RouteTable(SubscriptionIndex):
    """The index as the router of all scanners (`protocol.framing.Router`)."""

    def __init__(self, topics: TopicCounters, effort: Effort, max_matches: int, judge: Judge) -> None:
        super().__init__()
        self.topics = topics
        self.max_matches = max_matches
        self._crowded: dict[Peer, tuple[str, int]] = {}  #: who has more subscriptions to one topic than max_matches: which, and how many
        self._effort = effort
        self._judge = judge
        self.uncounted = TopicCounter()  #: for what is not published to a topic, and for the bus's own
        self._routes: dict[tuple[tuple[Lane, ...], tuple[Group, ...]] | TopicCounter, PublishRoute] = {}
        self._routes_generation = 0
        self._monitors = SubscriptionIndex()  #: of monitors, which receive nothing
        self._users: dict[str, list[Prefix]] = {}  #: the prefixes that have a route of this generation, by topic
        self._users_generation = 0
        self._tracked = 0  #: how many they are; above _TRACKED_MAX they are not kept
        self.introduce: Callable[[Origin, tuple[Lane, ...], tuple[Group, ...]], None] = lambda origin, lanes, groups: None  #: I-1
        topics.retiring = self._forget_counters

    def _forget_counters(self) -> None:
        self.generation += 1

    def resolve(self, prefix: Prefix, owner: Peer) -> AnyRoute:
        """The route of a prefix that *owner* uses, in the present generation."""
        prefix.route = route = self._find(prefix, owner)
        return route

    def _find(self, prefix: Prefix, owner: Peer) -> AnyRoute:
        if prefix.kind is Kind.SEND:
            prefix.counter = self.uncounted
            self._effort.spent += RESOLVE
            return self._find_send(prefix, owner)
        try:
            check_publication(prefix.to)
            if owner.rights is not None:
                self._judge.publish(owner, prefix.to)
        except ProtocolError as error:
            prefix.counter = self.uncounted
            return Refusal(self.generation, prefix.kind, prefix.to, error.with_traceback(None))  # kept, and the scanner's frames not
        if prefix.counter is None or prefix.counter.retired or prefix.counter in (self.topics.other, self.uncounted):
            prefix.counter = self.topics.of(prefix.to)
        generation = self.generation
        lanes, groups = self.receivers(prefix.to)
        self.introduce(owner.origin, lanes, groups)
        monitors = self.watching(prefix.to)
        used_again = prefix.meta.__class__ is not dict
        if used_again:
            self._track(prefix)
        if prefix.kind is Kind.RETAIN:
            return RetainRoute(generation, lanes, groups, prefix, monitors)
        if monitors:
            return MonitoredRoute(generation, lanes, groups, prefix.counter, monitors)
        if not used_again:
            return PublishRoute(generation, lanes, groups, prefix.counter)
        if self._routes_generation != generation or len(self._routes) >= _ROUTES_MAX:
            self._routes = {}
            self._routes_generation = generation
        key = (lanes, groups) if lanes or groups else prefix.counter
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = PublishRoute(generation, lanes, groups, prefix.counter)
        return route

    def _find_send(self, prefix: Prefix, owner: Peer) -> SendRoute | Refusal:
        if owner.rights is None:
            return SendRoute(self.generation, prefix.to)
        # What a peer may send to an address depends on the names there, which change: such a route is for one run.
        generation = _NEVER if prefix.to.startswith(":") else self.generation
        try:
            self._judge.send(owner, prefix.to)
        except ProtocolError as error:
            return Refusal(generation, prefix.kind, prefix.to, error.with_traceback(None))
        return SendRoute(generation, prefix.to)

    def receivers(self, topic: str) -> tuple[tuple[Lane, ...], tuple[Group, ...]]:
        """The lanes and groups that get a message on *topic*. Who has too many of them is noted (L-1)."""
        looked = self.looked
        lanes, groups = super().receivers(topic)
        members = sum(len(group.members) for group in groups)
        self._effort.spent += RESOLVE + LOOK * (self.looked - looked + len(lanes) + members)
        if len(lanes) + members > self.max_matches:
            matches = Counter(lane.peer for lane in lanes)
            for group in groups:
                matches.update(lane.peer for lane in group.members)
            for peer, count in matches.items():
                if count > self.max_matches:
                    self._crowded[peer] = topic, count
        return lanes, groups

    def take_crowded(self) -> list[tuple[Peer, ProtocolError]]:
        """Whom to close because one message is for too many of its subscriptions: each would cost every publisher so much (L-1)."""
        if not self._crowded:
            return []
        crowded, self._crowded = self._crowded, {}
        limit = f"at most {self.max_matches} may be (limits.max_matches)"
        return [
            (peer, ProtocolError(Code.OVER_QUOTA, f"a message to {topic!r} is for {count} subscriptions of this peer, {limit}"))
            for peer, (topic, count) in crowded.items()
        ]

    # --- monitors (section 14) ----------------------------------------------------------------------

    def watch(self, monitor: Monitor) -> None:
        """Let *monitor* look at the publications of its pattern; raises ``bad_topic``."""
        self._monitors.add(monitor, None)
        self.generation += 1

    def unwatch(self, monitor: Monitor) -> None:
        """Let it look at nothing any more."""
        self._monitors.remove(monitor)
        self.generation += 1

    def watching(self, topic: str) -> tuple[Monitor, ...]:
        """The monitors that look at what is published to *topic*."""
        if not self._monitors.lanes:
            return ()
        found = (lane for subscribers in self._monitors.match(topic) for lane in subscribers.lanes)
        return cast("tuple[Monitor, ...]", tuple(found))

    # --- what becomes void ----------------------------------------------------------------------------

    def _track(self, prefix: Prefix) -> None:
        """Remember that *prefix* has a route of this generation."""
        if self._users_generation != self.generation:
            self._users_generation = self.generation
            self._users.clear()
            self._tracked = 0
        self._tracked += 1
        if self._tracked <= _TRACKED_MAX:
            self._users.setdefault(prefix.to, []).append(prefix)
        else:
            self._users.clear()

    def _changed(self, pattern: str, *, literal: bool) -> None:
        """Make the routes void that a subscription of *pattern* concerns: all, or those of the one topic that it is."""
        self._effort.spent += LITERAL_CHANGE if literal else WILDCARD_CHANGE
        if not literal or self._tracked > _TRACKED_MAX:
            self.generation += 1
            return
        users = self._users.pop(pattern, ())
        self._tracked -= len(users)
        for prefix in users:
            route = prefix.route
            if route.generation == self._routes_generation:
                self._routes.pop((route.lanes, route.groups), None)  # nothing here may keep a lane alive that has ended
            prefix.route = _VOID
