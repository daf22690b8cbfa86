"""Frames of messages in the outbox: what is before the payload, how many are worth writing, and how those not written are read back."""

from __future__ import annotations

from typing import Any

import msgpack

from ipcbus.protocol.limits import HEADER_BYTES
from ipcbus.protocol.messages import IN_RUNS, Kind, encode_prefix

from ._waiting import Item

#: Buffered publications are written when there are so many bytes of them: enough that the system call no longer matters.
FLUSH_BYTES = 65_536
_KINDS = {kind.value: kind for kind in (*IN_RUNS, Kind.POST)}  #: what waits for the next connection


def head_of(kind: Kind, sender: int, elements: tuple[Any, ...], size: int) -> bytes:
    """All of a frame with *elements* before its payload of *size* bytes."""
    prefix = encode_prefix(kind, sender, *elements)
    return b"\xce" + (len(prefix) + 4 + size).to_bytes(4, "big") + prefix + size.to_bytes(4, "big")


def enough_parts(frame_bytes: int) -> int:
    """How many parts, two of a frame, FLUSH_BYTES are, where the frames are as large as this one."""
    return 2 * max(FLUSH_BYTES // frame_bytes, 1)


def messages_in(data: bytes, begun: int) -> list[Item]:
    """The publications and direct messages of *data* of which no byte was written, where *begun* bytes were."""
    items: list[Item] = []
    for envelope in envelopes_in(data, begun):
        kind = _KINDS.get(envelope[0])
        if kind is Kind.POST:
            if envelope[3] is None:  # one that is confirmed is its caller's
                items.append((kind, envelope[2], envelope[6], envelope[7], envelope[5]))
        elif kind is not None:
            _, _, to, meta, payload = envelope
            items.append((kind, to, meta, payload))
    return items


def envelopes_in(data: bytes, begun: int) -> list[tuple[Any, ...]]:
    """The envelopes of *data* of which no byte was written, where *begun* bytes were. They are our own: nothing has to be checked, and
    there may be a hundred thousand, for which an event loop stands still.
    """
    envelopes = []
    at, end = 0, len(data)
    while at < end:
        size = HEADER_BYTES + int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
        if at >= begun:
            envelopes.append(msgpack.unpackb(data[at + HEADER_BYTES : at + size], use_list=False))
        at += size
    return envelopes
