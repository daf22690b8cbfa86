"""What a program receives: messages and requests. A message is the envelope itself, so making one costs a tenth of a microsecond; all
else is done on access.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import msgpack

from ipcbus.protocol.messages import Kind, Meta
from ipcbus.protocol.payloads import MAX_ELEMENTS, RAW, decode_value, encoding_of

_unpack = msgpack.unpackb
_RETAIN = Kind.RETAIN.value


class Message(tuple[Any, ...]):
    """One publication or direct message: the envelope ``[kind, sender, to, meta, payload]`` as it came. Immutable."""

    __slots__ = ()

    sender: int = property(itemgetter(1))  # type: ignore[assignment]  # a property in C: the fastest field there is
    topic: str = property(itemgetter(2))  # type: ignore[assignment]
    meta: Meta = property(itemgetter(3))  # type: ignore[assignment]
    payload: bytes = property(itemgetter(4))  # type: ignore[assignment]

    @property
    def data(self) -> Any:
        """The decoded payload, decoded anew at each access. Raises PayloadError, which concerns this message only (S-2)."""
        meta, payload = self[3], self[4]
        if meta == RAW:
            return payload
        if meta is None and 0 < len(payload) <= MAX_ELEMENTS:
            try:
                return _unpack(payload, strict_map_key=False)
            except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
                pass  # once more, for the error
        return decode_value(meta, payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the sender gave (V-6); empty without any."""
        return headers_of(self[3])

    @property
    def encoding(self) -> int | None:
        """How the payload is encoded (V-6): None is msgpack, 1 raw bytes, 2 text, 3 JSON."""
        return encoding_of(self[3])

    @property
    def retained(self) -> bool:
        """Whether it is of the kind that the bus keeps (RETAIN, L-8)."""
        return bool(self[0] == _RETAIN)

    def __repr__(self) -> str:
        return f"<Message {self.topic!r} from :{self.sender}, {len(self.payload)} B>"


def headers_of(meta: Meta) -> dict[str, Any]:
    """The headers of *meta* without ``encoding``, which is not the sender's word but the payload's form."""
    if isinstance(meta, dict):
        return {key: value for key, value in meta.items() if key != "encoding"}
    return {}


class Request:
    """A request to be answered by a handler."""

    __slots__ = ("cancelled", "epoch", "id", "meta", "method", "notify", "payload", "sender", "timeout", "to")

    def __init__(self, envelope: tuple[Any, ...], epoch: int) -> None:
        _, self.sender, self.to, self.id, timeout_ms, self.meta, self.payload = envelope
        self.method: str = self.to.partition("/")[2]
        self.timeout: float = timeout_ms / 1000  #: seconds that the requester gave, counted by the bus from when it read the request
        self.cancelled = False  #: the requester gave up, died, or the time passed: the answer would go nowhere
        self.epoch = epoch  #: the connection that it came on; an answer on another one means nothing
        self.notify: Callable[[], None] | None = None  #: told when it is cancelled

    @property
    def data(self) -> Any:
        """The decoded payload. Raises PayloadError."""
        return decode_value(self.meta, self.payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the requester gave (V-6); empty without any."""
        return headers_of(self.meta)

    def cancel(self) -> None:
        """Mark it as not wanted any more. For the session."""
        if not self.cancelled:
            self.cancelled = True
            if self.notify is not None:
                self.notify()

    def __repr__(self) -> str:
        return f"<Request {self.to!r} from :{self.sender}{', cancelled' if self.cancelled else ''}>"
