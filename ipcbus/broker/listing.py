"""What the bus says about itself: lists in pages, what their items say, and its counters and gauges (B-2, B-3, B-4)."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import HOLDING_ITEMS, PAGE_BYTES, PAGE_ITEMS
from ..protocol.messages import brief, pack
from .accounts import Program, User
from .counters import OTHER
from .names import Name
from .peers import Peer

if TYPE_CHECKING:
    from .broker import Broker

Arguments = dict[str, Any]


class Lists:
    """The methods of the bus that only look."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def names(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the names."""
        names = self._broker.names

        def item(key: str) -> dict[str, Any] | None:
            name = names.get(key)
            return describe_name(name) if name is not None else None

        return page(sorted(name.name for name in names), item, arguments, str)

    def peers(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the peers."""
        peers, now = self._broker.peers, self._broker.now
        return page(
            sorted(key for key, peer in peers.items() if not peer.closing), lambda key: describe_peer(peers[key], now), arguments, int
        )

    def accounts(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        """A page of the accounts (Q-1): the bus, its users, each before its programs."""
        accounts = self._broker.accounts
        names: dict[Program, set[str]] = {}
        for one in self._broker.peers.values():
            names.setdefault(one.account, set()).add(one.program)
        items: list[dict[str, Any]] = [{"level": "bus", "uid": None, "pid": None, "programs": [], "resources": accounts.of_bus()}]
        user: User | None = None
        for program in accounts.programs():
            if program.user is not user:
                user = program.user
                items.append(_account("user", user, None, [], accounts.of_user(user)))
            items.append(_account("program", user, program.pid, sorted(names.get(program, ())), accounts.of_program(program)))
        for user in accounts.users.values():
            if not user.programs:  # all of it has gone, and left what it retained
                items.append(_account("user", user, None, [], accounts.of_user(user)))
        return page(list(range(1, len(items) + 1)), lambda key: items[key - 1], arguments, int)

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
            }

        return page(sorted(counters), item, arguments, str)

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
            "retained": len(broker.retained),
            "retained_bytes": broker.retained.bytes,
            "requests": len(broker.requests),
            "queued_bytes": broker.queued_bytes(),
            "held": broker.holds.publishers,
            "holding": broker.holds.items(HOLDING_ITEMS),
            **broker.totals(),
            **broker.gauges(),
        }


def _account(level: str, user: User, pid: int | None, programs: list[str], resources: dict[str, Any]) -> dict[str, Any]:
    return {"level": level, "uid": user.uid, "pid": pid, "programs": programs, "resources": resources}


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


def describe_peer(peer: Peer, now: float) -> dict[str, Any]:
    """An item of ``peers``."""
    who = peer.credentials
    return {
        "peer": peer.id,
        "program": peer.program,
        "library": peer.connection.info.get("library", ""),
        "transport": peer.transport,
        "pid": who.pid if who else None,
        "uid": who.uid if who else None,
        "gid": who.gid if who else None,
        "names": sorted(peer.claims or ()),
        "lanes": len(peer.lanes or ()),
        "connected_s": round(now - peer.connected_at, 3),
        "in_messages": peer.in_messages,
        "in_bytes": peer.in_bytes,
        "out_messages": peer.delivered + peer.forwarded,
        "out_bytes": peer.written_bytes,
        "queued_bytes": peer.queued_bytes,
        "receiving_bytes": peer.connection.scanner.held_bytes,
        "parked_bytes": peer.parked_bytes,
        "held": len(peer.holds or ()),
    }
