"""What every benchmark sends: 128 bytes with a sequence number, a tag and a known tail, as bytes or as a msgpack value.

Every receiver checks number, tag, length and tail of every message, the controls as ours.
"""

from __future__ import annotations

from typing import Any

import msgpack

SIZE = 128
TAG = b"ipcbench"
TAIL = b"the-tail"
_FILL = (b"0123456789abcdef" * 7)[: SIZE - 8 - len(TAG) - len(TAIL)]

#: Numbers begin here, so that msgpack gives each the same width and every value is SIZE bytes long.
FIRST = 100_000
_TAG_TEXT, _TAIL_TEXT = TAG.decode(), TAIL.decode()
_TEXT_SIZE = SIZE - len(msgpack.packb([FIRST, _TAG_TEXT, "x" * 64])) + 64
_TEXT = ("0123456789abcdef" * 8)[: _TEXT_SIZE - len(_TAIL_TEXT)] + _TAIL_TEXT


class MessageError(Exception):
    """A receiver got something else than the next message as it was sent: the run is void."""


def raw(number: int) -> bytes:
    """Message *number* as 128 bytes."""
    return number.to_bytes(8, "big") + TAG + _FILL + TAIL


def value(number: int) -> list[Any]:
    """Message *number* as a value whose msgpack form has 128 bytes."""
    return [FIRST + number, _TAG_TEXT, _TEXT]


def check_raw(data: bytes, number: int) -> None:
    """Raise MessageError unless *data* is message *number* as bytes."""
    if int.from_bytes(data[:8], "big") != number or data[8:16] != TAG or len(data) != SIZE or data[-8:] != TAIL:
        raise MessageError(f"message {number} came as {data!r}")


def check_value(data: Any, number: int) -> None:
    """Raise MessageError unless *data* is message *number* as a value."""
    sequence, tag, text = data
    if sequence != FIRST + number or tag != _TAG_TEXT or len(text) != _TEXT_SIZE or text[-8:] != _TAIL_TEXT:
        raise MessageError(f"message {number} came as {data!r}")


def make(form: str, count: int) -> list[Any]:
    """The messages 0 … *count* − 1 in *form* ``bytes`` or ``msgpack``."""
    return [raw(number) for number in range(count)] if form == "bytes" else [value(number) for number in range(count)]


assert len(raw(0)) == SIZE == len(msgpack.packb(value(0)))
