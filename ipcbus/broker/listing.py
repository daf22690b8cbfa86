"""What the bus says about itself: lists in pages, what their items say, and its counters and gauges (B-2, B-3, B-4)."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import HOLDING_ITEMS, MAX_ID, MEMBERS_MAX, PAGE_BYTES, PAGE_ITEMS
from ..protocol.messages import brief, pack
from ..protocol.topics import check_topic
from .accounts import Program, User
from .counters import ENDS, OTHER
from .effort import LOOK
from .lanes import Group, Lane
from .names import Name
from .origins import describe_credentials
from .peers import Peer

if TYPE_CHECKING:
    from .state import State

Arguments = dict[str, Any]


class Lists:
    """The methods of the bus that only look. What they look at costs who asks, whatever the answer has of it."""

    def __init__(self, broker: State) -> None:
        self._broker = broker

    def names(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the names."""
        names = self._broker.names

        def item(key: str) -> dict[str, Any] | None:
            name = names.get(key)
            return describe_name(name) if name is not None else None

        return self._page(sorted(name.name for name in names), item, arguments, str)

    def peers(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the peers."""
        peers, now, effort = self._broker.peers, self._broker.now, self._broker.effort

        def item(key: int) -> dict[str, Any]:
            effort.spent += LOOK * (len(peers[key].waiting or ()) + len(peers[key].grouped or ()))
            return describe_peer(peers[key], now)

        return self._page(sorted(key for key, peer in peers.items() if not peer.closing), item, arguments, int)

    def accounts(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the accounts (Q-1): the bus, its users, each before its programs."""
        accounts = self._broker.accounts
        self._broker.effort.spent += LOOK * len(self._broker.peers)
        names: dict[Program, set[str]] = {}
        alone: dict[Program, int] = {}  #: the one connection of those without a pid
        for one in self._broker.peers.values():
            names.setdefault(one.account, set()).add(one.program)
            if not one.account.pid:
                alone[one.account] = one.id
        listed: dict[str, User | Program | None] = {"": None}  #: the bus; by what sorts them, whoever comes and goes between two pages
        for user in accounts.users.values():
            under = f"{user.uid:010d}" if isinstance(user.uid, int) else user.uid
            listed[under] = user
            listed |= {f"{under}.{program.key + MAX_ID:017d}": program for program in user.programs.values()}

        def item(key: str) -> dict[str, Any]:
            account = listed[key]
            if account is None:
                return {"level": "bus", "uid": None, "pid": None, "programs": [], "peer": None, "resources": accounts.of_bus()}
            if isinstance(account, User):
                who: dict[str, Any] = {"level": "user", "uid": account.uid, "pid": None, "programs": [], "peer": None}
                return {**who, "resources": accounts.of_user(account)}
            who = {"level": "program", "uid": account.user.uid, "pid": account.pid, "programs": sorted(names.get(account, ()))}
            return {**who, "peer": alone.get(account), "resources": accounts.of_program(account)}

        return self._page(sorted(listed), item, arguments, str)

    def topics(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the topics that have a counter."""
        broker = self._broker
        counters = dict(broker.topics.items())

        def item(topic: str) -> dict[str, Any]:
            counter = counters[topic]
            lanes, groups = broker.routes.receivers(topic) if topic != OTHER else ((), ())
            receivers = len(lanes) + sum(len(group.members) for group in groups)
            return {
                "topic": topic,
                "messages": counter.messages,
                "bytes": counter.bytes,
                "lanes": receivers,
                "retained": topic in broker.retained,
                "no_subscriber": counter.no_subscriber,
                "no_subscriber_s": round(broker.now - counter.unwanted_at, 3) if counter.no_subscriber else None,
                "lost": counter.lost,
                "expired": counter.expired,
                "not_kept": counter.not_kept,
            }

        return self._page(sorted(counters), item, arguments, str)

    def patterns(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the patterns that somebody subscribes to."""
        patterns = {
            pattern: subscribers
            for pattern, subscribers in self._broker.routes.patterns()
            if subscribers.groups or any(lane.peer.lanes is not None for lane in subscribers.lanes)
        }

        def item(pattern: str) -> dict[str, Any]:
            subscribers = patterns[pattern]
            self._broker.effort.spent += LOOK * len(subscribers.lanes)
            lanes = sum(lane.peer.lanes is not None for lane in subscribers.lanes)  # those of a peer that went are taken out later
            return {"pattern": pattern, "lanes": lanes, "groups": sorted(subscribers.groups or ())}

        return self._page(sorted(patterns), item, arguments, str)

    def receivers(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the lanes and groups that get what is published to a topic."""
        check_topic(arguments["topic"])
        lanes, groups = self._broker.routes.receivers(arguments["topic"])
        found, policy = [*lanes, *groups], self._broker.limits.lane_policy
        return self._page(list(range(len(found))), lambda number: describe_receiver(found[number], policy), arguments, int)

    def losses(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the recent episodes in which messages ended that nobody got."""
        broker = self._broker
        episodes = broker.losses.episodes()
        return self._page(sorted(episodes), lambda number: episodes[number].describe(broker.now), arguments, int)

    def _page(self, keys: list[Any], item: Callable[[Any], Any], arguments: Arguments, cursor: type) -> dict[str, Any]:
        """A page of something that had to be sorted."""
        self._broker.effort.spent += LOOK * len(keys)
        return page(keys, item, arguments, cursor)

    def stats(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """Counters and gauges (B-4)."""
        broker = self._broker
        return {
            "uptime_s": round(broker.now - broker.started_at, 3),
            "version": broker.software,
            "pid": broker.pid,
            "peers": len(broker.peers),
            "names": len(broker.names),
            "lanes": broker.lane_count,
            "monitors": len(broker.monitors),
            "retained": len(broker.retained),
            "retained_bytes": broker.retained.bytes,
            "requests": len(broker.requests),
            "queued_bytes": broker.queued_bytes(),
            "held": broker.holds.publishers,
            "holding": broker.holds.items(HOLDING_ITEMS) if broker.judge.is_admin(peer) else [],  # it has patterns in it (P-7)
            "queued": broker.queued(),
            **broker.totals(),
            **broker.gauges(),
        }


def page(keys: list[Any], item: Callable[[Any], Any], arguments: Arguments, cursor: type) -> dict[str, Any]:
    """One page of a sorted list of keys."""
    after, limit = arguments.get("after"), arguments.get("limit", PAGE_ITEMS)
    if after is not None and type(after) is not cursor:
        raise ProtocolError(Code.BAD_ARGUMENT, f"after must be a cursor that this list gave, not {brief(after)}")
    start = 0 if after is None else bisect.bisect_right(keys, after)
    items: list[Any] = []
    size = 0
    for key in keys[start : start + limit]:
        items.append(item(key))
        size += len(pack(items[-1]))
        if size > PAGE_BYTES:
            break
    end = start + len(items)
    return {"items": items, "next": keys[end - 1] if items and end < len(keys) else None}


def describe_name(name: Name) -> dict[str, Any]:
    """An item of ``names``."""
    return {
        "name": name.name,
        "mode": name.mode,
        "owners": [claim.peer.id for claim in name.owners],
        "waiting": [claim.peer.id for claim in name.waiting],
        "methods": sorted(name.methods()),
    }


def describe_receiver(receiver: Lane | Group, policy: str) -> dict[str, Any]:
    """An item of ``receivers``: who takes from one queue, and what waits there. *policy* is that of the bus."""
    lanes = [receiver] if isinstance(receiver, Lane) else list(receiver.members)[:MEMBERS_MAX]
    backlog = receiver.backlog
    return {
        "pattern": receiver.pattern,
        "group": None if isinstance(receiver, Lane) else receiver.name,
        "members": [
            {"peer": lane.peer.id, "lane": lane.number, **describe_program(lane.peer), "credit": lane.credit > 0} for lane in lanes
        ],
        "policy": receiver.terms.policy or policy,
        "queued": backlog.count if backlog is not None else 0,
        "queued_bytes": backlog.bytes if backlog is not None else 0,
        "dropping": backlog is not None and backlog.dropping,
    }


def describe_peer(peer: Peer, now: float) -> dict[str, Any]:
    """An item of ``peers``."""
    delivered, queued, lost = peer.delivered, queued_of(peer), peer.lost or {}
    return {
        "peer": peer.id,
        "program": peer.program,
        "library": peer.connection.info.get("library", ""),
        "transport": peer.transport,
        **describe_credentials(peer.credentials),
        "identity": peer.identity,
        "names": sorted(peer.claims or ()),
        "lanes": len(peer.lanes or ()),
        "connected_s": round(now - peer.connected_at, 3),
        "in_messages": peer.in_messages,
        "in_bytes": peer.in_bytes,
        "out_messages": peer.given + peer.forwarded,
        "out_bytes": peer.written_bytes,
        "queued_bytes": peer.queued_bytes,
        "receiving_bytes": peer.connection.scanner.held_bytes,
        "parked_bytes": peer.parked_bytes,
        "held": len(peer.holds or ()),
        "offered": delivered + queued + sum(lost.values()),
        "delivered": delivered,
        "queued": queued,
        **{name: lost.get(name, 0) for name in ENDS[1:-1]},
        "refused": peer.refused,
        "denied": peer.denied,
    }


def queued_of(peer: Peer) -> int:
    """Messages that wait for a peer: in its output, for the credit of its lanes, and of the groups that it pays for."""
    groups = dict.fromkeys(lane.group.backlog for lane in peer.grouped or () if lane.group is not None)
    backlogs = [lane.backlog for lane in peer.waiting or ()] + [backlog for backlog in groups if backlog and backlog.payer is peer]
    return peer.given - peer.delivered + sum(backlog.count for backlog in backlogs if backlog is not None)


def describe_program(peer: Peer) -> dict[str, Any]:
    """Whose connection it is."""
    who = peer.credentials
    return {"program": peer.program, "pid": who.pid if who else None, "uid": who.uid if who else None}
