"""What a program sends, as meta and payload, within what the bus carries: the same for publications, direct messages and requests.

Pure: knows no connection but the limit that it said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ipcbus.protocol.errors import ProtocolError
from ipcbus.protocol.messages import LAYOUTS, Kind, Meta
from ipcbus.protocol.payloads import RAW, PayloadError
from ipcbus.protocol.topics import check_publication

from ._errors import BadName, bad_name
from ._packing import CANNOT, as_bytes, pack_typed

_is_meta = dict(LAYOUTS[Kind.PUBLISH])["meta"]


class Encoding:
    """How values become payloads."""

    __slots__ = ("max_payload_bytes", "pack")

    def __init__(self) -> None:
        self.max_payload_bytes = 16 * 1024 * 1024
        self.pack: Callable[[Any], bytes] = msgpack.Packer().pack

    def encode(self, data: Any, headers: Mapping[str, Any] | None, who: str = "", what: str = "encode") -> tuple[Meta, bytes]:
        """The meta and payload of *data* with *headers*, which are for *who* in *what*. Raises PayloadError."""
        meta: Meta = None
        if isinstance(data, (bytes, bytearray, memoryview)):
            meta, payload = RAW, as_bytes(data)
        else:
            try:
                payload = self.pack(data)
            except CANNOT:
                payload = pack_for(data, who, what)
        if headers:
            try:
                meta = dict(headers) if meta is None else {"encoding": meta, **headers}
                good = _is_meta(meta)
            except CANNOT:
                good = False  # an int of over 64 bits, for example
            if not good:
                text = f"headers {headers!r:.200}: at most 32, each a str to None, bool, int, float, str or bytes (V-6)"
                raise PayloadError(text, who=who, what=what)
        self.check_size(len(payload), who, what)
        return meta, payload

    def check_size(self, size: int, who: str = "", what: str = "encode") -> None:
        """Raise PayloadError where a payload of *size* bytes is over the bus's limit."""
        if size > self.max_payload_bytes:
            text = f"payload of {size} bytes: this bus carries at most {self.max_payload_bytes} (limits.max_payload_bytes)"
            raise PayloadError(text, who=who, what=what, hint="Send it in parts, or where it is, or have the bus allow more.")


def pack_for(data: Any, who: str, what: str = "publish") -> bytes:
    """Pack what plain msgpack cannot. Raises PayloadError, about *who* in *what*."""
    try:
        return pack_typed(data)
    except PayloadError as error:
        error.about(who=who, what=what)
        raise


def check_topic(topic: str, what: str = "publish") -> None:
    """Raise BadName unless a client may publish to *topic* (T-1, T-3)."""
    if not isinstance(topic, str):
        raise BadName(f"a topic is a str, not {type(topic).__name__}", what=what)
    try:
        check_publication(topic)
    except ProtocolError as error:
        raise bad_name(error, topic, what) from error
