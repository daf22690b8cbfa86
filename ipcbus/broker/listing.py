"""Lists in pages, and what their items say (B-2, B-3)."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import PAGE_BYTES, PAGE_ITEMS
from ..protocol.messages import brief, pack
from .names import Name
from .peers import Peer


def page(keys: list[Any], item: Callable[[Any], Any], arguments: dict[str, Any], cursor: type) -> dict[str, Any]:
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
        "held": peer.held,
    }
