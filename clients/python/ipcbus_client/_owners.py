"""Who owns a name, from what the bus tells of it (N-2, B-3): for wait_for_name(). Pure."""

from __future__ import annotations

from typing import Any

from ipcbus.protocol.payloads import PayloadError

from ._errors import Timeout
from ._message import Message


def owner_topic(name: str) -> str:
    """The topic that changes of ownership are published to."""
    return f"$bus.names.{name}"


def names_query(name: str) -> dict[str, Any]:
    """The arguments of ``names`` for a page that begins with *name* where it is owned: lists are sorted, and begin after a cursor."""
    return {"after": name[:-1] + chr(ord(name[-1]) - 1) + chr(0x10FFFF), "limit": 1}


def owner_in(page: Any, name: str) -> int | None:
    """The peer that owns *name* according to the answer to names_query()."""
    return next((_first(item) for item in page["items"] if item["name"] == name), None)


def owner_told(message: Message) -> int | None:
    """The peer that owns the name now, according to what was published to its topic."""
    try:
        return _first(message.data)
    except PayloadError:
        return None  # of a newer bus


def unowned(name: str, timeout: float | None, error: Timeout) -> Timeout:
    """Why wait_for_name() gave up: *error*, of the bus or of the wait for news, is what its time ended in."""
    silent = "" if error.what == "get" else f"; {error}"
    return Timeout(f"nobody owned {name!r} within {timeout:g} s{silent}", who=name, what="wait_for_name")


def _first(about: Any) -> int | None:
    owners = about.get("owners") if isinstance(about, dict) else None
    return owners[0] if owners else None
