"""What every benchmark sends: 128 bytes with a sequence number and a known tail, as bytes or as a msgpack value."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

SIZE = 128
TAIL = b"the-tail"

#: One call checks the length (unpack takes exactly SIZE bytes) and takes out what else is checked.
_LAYOUT = struct.Struct(">Q112s8s")
_FILL = b"0123456789abcdef" * 7
unpack = struct.Struct(">Q112x8s").unpack

#: Numbers begin here, so that msgpack gives each the same width and every value is SIZE bytes long.
FIRST = 100_000
_PAD_BYTES = SIZE - len(msgpack.packb([FIRST, "x" * 64, TAIL.decode()])) + 64
PAD = ("0123456789abcdef" * 8)[:_PAD_BYTES]
TAIL_TEXT = TAIL.decode()


class MessageError(Exception):
    """A receiver got something else than the next message as it was sent: the run is void."""


def raw(number: int) -> bytes:
    """Message *number* as 128 bytes."""
    return _LAYOUT.pack(number, _FILL, TAIL)


def value(number: int) -> list[Any]:
    """Message *number* as a value whose msgpack form has 128 bytes."""
    return [FIRST + number, PAD, TAIL_TEXT]


def make(form: str, count: int) -> list[Any]:
    """The messages 0 … *count* − 1 in *form* ``bytes`` or ``msgpack``."""
    return [raw(number) for number in range(count)] if form == "bytes" else [value(number) for number in range(count)]


assert len(raw(0)) == SIZE == len(msgpack.packb(value(0)))
