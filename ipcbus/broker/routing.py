"""The routes of envelope prefixes: where the frames of a publisher that begin alike go.

What the index of subscriptions found for a topic is kept in the prefixes of the publishers' scanners as a route. A change of a
subscription with wildcards makes all routes void: the generation grows. A change of one to a single topic makes void only the routes to
that topic, so that who comes and goes costs the publishers to other topics nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ..protocol.errors import Code, ProtocolError
from ..protocol.framing import Prefix
from ..protocol.messages import Kind
from ..protocol.topics import check_publication
from .counters import TopicCounter, TopicCounters
from .effort import LITERAL_CHANGE, LOOK, REFUSED, RESOLVE, RUN, WILDCARD_CHANGE, Effort
from .lanes import Group, Lane
from .origins import Origin
from .peers import Peer
from .rights import Judge
from .subscriptions import SubscriptionIndex

if TYPE_CHECKING:
    from .monitors import Monitor

#: Sets of receivers that are remembered at once; beyond it they are found again.
_ROUTES_MAX = 10_000
#: Prefixes whose routes can be made void one by one; where there are more, every change makes all void.
_TRACKED_MAX = 8_192


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
        self._changed(monitor.pattern, literal=False)

    def unwatch(self, monitor: Monitor) -> None:
        """Let it look at nothing any more."""
        self._monitors.remove(monitor)
        self._changed(monitor.pattern, literal=False)

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
