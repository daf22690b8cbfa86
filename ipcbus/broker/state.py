"""What the bus knows: peers, subscriptions, names, requests, kept messages, accounts; and what its own methods do to that.

`broker` is this with the frames of peers, and their beginnings and ends.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from ..policy import Policy, Subject
from ..protocol.errors import ProtocolError
from ..protocol.limits import Limits
from ..protocol.messages import pack
from .accounts import Accounts
from .counters import ENDS, Counters, TopicCounters
from .delivery import Delivery
from .effort import ENDS_AT_ONCE, LOOK, Effort
from .lanes import Group, Lane
from .losses import Losses
from .monitors import Monitor, Monitors
from .names import Change, Names
from .peers import Peer
from .publications import Publications
from .quotas import LANES
from .requests import Requests
from .rights import Judge
from .routing import RouteTable
from .strangers import Strangers


class State:
    """The tables of the bus, and its books."""

    def __init__(
        self,
        limits: Limits,
        now: float,
        software: str,
        pid: int,
        owners: frozenset[int] | None,
        log: Callable[[int, str], None],
        gauges: Callable[[], dict[str, int]],
        policy: Policy,
        subject_of: Callable[[Peer], Subject],
    ) -> None:
        self.limits = limits
        self.now = now
        self.counters = Counters()
        self.topics = TopicCounters(self.limits.max_topic_counters, lambda: self.now)
        self.losses = Losses(self.counters, self.topics, self, log)
        self.effort = Effort()
        self.peers: dict[int, Peer] = {}
        self.judge = Judge(policy, subject_of, self.peers, self.effort)
        self.routes = RouteTable(self.topics, self.effort, self.limits.max_matches, self.judge)
        self.accounts = Accounts(self.limits, log, owners=owners)
        self.names = Names(self.limits, self.accounts)
        self.requests = Requests(self.accounts)
        self.started_at = now
        self.software = software
        self.pid = pid
        self.gauges = gauges  #: what else the daemon knows of itself (B-4)
        self._log = log
        self._delivery = Delivery(self.limits, self.losses, log, self.effort, self.peers)
        self.routes.introduce = self._delivery.introduce_all
        self.holds = self._delivery.holds
        self.monitors = Monitors(self.limits, self.routes, self._delivery, self.peers, now)
        self.publications = Publications(
            self.limits, self.losses, self.routes, self._delivery, self.accounts, log, self.effort, self.monitors, self.judge
        )
        self.retained = self.publications.retained
        self._unpublished: dict[str, None] = {}  #: names whose owners have changed, which is not published yet
        self._strangers = Strangers(self.limits.handshake_timeout_s, log)

    # --- gauges -----------------------------------------------------------------------------------

    @property
    def lane_count(self) -> int:
        """Subscriptions of all peers."""
        return self.routes.lanes

    def totals(self) -> dict[str, int]:
        """The counters of B-4; walks over the peers."""
        self.monitors.book_all()
        return self.counters.totals((*self.peers.values(), *self._strangers))

    def books(self) -> tuple[int, dict[str, int]]:
        """The books of B-4: how many messages were offered to lanes, groups and receivers of sends, and what became of them. The sum of
        the second is the first, at every moment. Walks over the peers and what waits for them."""
        totals = self.totals()
        return totals["offered"], {name: totals[name] for name in ENDS} | {"queued": self.queued()}

    def queued(self) -> int:
        """Messages that wait in outputs, and for credit; walks over them, at the expense of who asks."""
        count = 0
        groups: dict[Group | None, None] = {}
        for peer in self.peers.values():
            count += peer.given - peer.delivered
            count += sum(lane.backlog.count for lane in peer.waiting or () if lane.backlog is not None)
            groups.update((lane.group, None) for lane in peer.grouped or ())
            self.effort.spent += LOOK * (1 + len(peer.waiting or ()) + len(peer.grouped or ()))
        return count + sum(group.backlog.count for group in groups if group is not None and group.backlog is not None)

    def queued_bytes(self) -> int:
        """All that waits for peers; walks over them."""
        return sum(peer.queued_bytes + peer.parked_bytes for peer in self.peers.values())

    # --- what the bus's own methods use -----------------------------------------------------------

    def add_lane(self, lane: Lane, group: str | None) -> None:
        """A new subscription (L-1) or monitor (M-1), charged; `remove_lane` gives that back. Raises ``bad_topic``, ``over_limit``."""
        peer = lane.peer
        self.accounts.charge(peer.account, LANES, 1)
        try:
            if isinstance(lane, Monitor):
                self.monitors.add(lane)
            else:
                self.routes.add(lane, group)
        except ProtocolError:
            self.accounts.release(peer.account, LANES, 1)
            raise
        if peer.lanes is None:
            peer.lanes = {}
        peer.lanes[lane.number] = lane
        if group is not None:
            if peer.grouped is None:
                peer.grouped = {}
            peer.grouped[lane] = None

    def remove_lane(self, lane: Lane) -> int:
        """End a subscription or monitor: how many messages were lost with it, or before and not told yet."""
        peer = lane.peer
        dropped = self._delivery.abandon(lane.backlog) if lane.backlog is not None else 0
        if isinstance(lane, Monitor):
            dropped += self.monitors.remove(lane)
        else:
            self.routes.remove(lane)
        assert peer.lanes is not None
        del peer.lanes[lane.number]
        self.accounts.release(peer.account, LANES, 1)
        if peer.lane is lane:
            peer.lane = None
        if lane.group is not None:
            (peer.grouped or {}).pop(lane, None)
            return self._delivery.member_left(lane.group, peer)
        return dropped

    def announce(self, change: Change | None) -> None:
        """Tell who is concerned that a name has other owners (N-1, N-2)."""
        if change is not None:
            self._tell_owners(change)
            self._publish_owners(change.name.name)

    def announce_all(self, changes: list[Change]) -> None:
        """The same for many: most are published in the next rounds, by `publish_owners`, unless something else has happened to the name."""
        for change in changes:
            self._tell_owners(change)
            self._unpublished[change.name.name] = None
        self.publish_owners()

    def publish_owners(self) -> None:
        """Publish the owners of some names that have changed hands."""
        for name in tuple(islice(self._unpublished, ENDS_AT_ONCE)):
            self._publish_owners(name)

    def _tell_owners(self, change: Change) -> None:
        name = change.name.name
        if change.lost is not None:
            self._delivery.notice(change.lost, "name_lost", {"name": name})
        if change.acquired is not None:
            self._delivery.notice(change.acquired, "name_acquired", {"name": name})

    def _publish_owners(self, name: str) -> None:
        self._unpublished.pop(name, None)
        topic = f"$bus.names.{name}"
        if self.routes.match(topic):
            record = self.names.get(name)
            owners = [claim.peer.id for claim in record.owners] if record is not None else []
            self.publications.announce(topic, pack({"name": name, "owners": owners}))
