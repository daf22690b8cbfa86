"""What a monitor shows: one frame of somebody else's, from the copy that the bus made of it (section 14). Pure values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ipcbus.protocol.errors import code_label
from ipcbus.protocol.messages import Meta
from ipcbus.protocol.payloads import decode_value

from ._calls import map_of
from ._message import Message, headers_of
from ._senders import Sender

#: What may be looked at (M-2).
KINDS = ("publish", "retain", "send", "request", "reply", "part", "error", "cancel")


class Seen(NamedTuple):
    """One frame that somebody sent. What it does not have is None."""

    at: float  #: seconds since the bus began
    kind: str  #: ``publish``, ``retain``, ``send``, ``request``, ``reply``, ``part``, ``error`` or ``cancel``
    sender: Sender  #: 0 is the bus, whose errors are seen
    to: str  #: the topic; or whom it is for: a name or a peer address, of a request with the method
    size: int  #: bytes of its payload
    payload: bytes | None  #: the first 4096 of them; None where they were not asked for, or are ``redacted``
    clipped: bool  #: there are more
    redacted: bool  #: the bus's policy keeps payload and headers, and the text of an error, to itself
    meta: Meta  #: how the payload is encoded, and headers (V-6)
    id: int | None  #: of the request that it is, or that it answers or takes back
    request: str | None  #: what answers: the ``to`` of the request; an error of the bus: that of what was refused
    code: int | str | None  #: of an error: the bus's are ints
    text: str | None  #: of an error
    receiver: int | None  #: of a message or request to one peer: which it was given to
    receivers: int | None  #: of a publication: how many subscriptions it was for (a group is one)
    frames: int | None  #: an error of the bus: how many frames it answers

    @property
    def data(self) -> Any:
        """The decoded payload; None without one. Raises PayloadError, also where only the beginning of it is there."""
        return None if self.payload is None else decode_value(self.meta, self.payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the sender gave (V-6); empty without any, and where they are redacted."""
        return headers_of(self.meta)

    @property
    def label(self) -> str | None:
        """The name of an error's ``code``."""
        return code_label(self.code) if isinstance(self.code, int) else self.code


def seen(item: Any) -> Any:
    """What the next *item* of a monitor's stream shows; a notice as it is."""
    if not isinstance(item, Message):
        return item
    about = map_of(item.meta, item.payload)
    get = about.get
    return Seen(
        get("at_s", 0.0),
        get("kind", ""),
        item._senders[get("sender", 0)],
        get("to", ""),
        get("size", 0),
        get("payload"),
        get("clipped", False),
        get("redacted", False),
        get("meta"),
        get("id"),
        get("request"),
        get("code"),
        get("text"),
        get("receiver"),
        get("receivers"),
        get("count"),
    )


def check_kinds(kinds: Iterable[str] | None) -> list[str] | None:
    """*kinds* as the bus takes them. Raises ValueError or TypeError."""
    if kinds is None:
        return None
    if isinstance(kinds, str):
        raise TypeError(f"kinds={kinds!r:.50}: they are several: a list of {', '.join(KINDS)}")
    said = list(dict.fromkeys(kinds))
    for kind in said:
        if kind not in KINDS:
            raise ValueError(f"kinds: there is no {kind!r:.50}; there are {', '.join(KINDS)}")
    if not said:
        raise ValueError(f"no kinds: give some of {', '.join(KINDS)}, or None for all")
    return said
