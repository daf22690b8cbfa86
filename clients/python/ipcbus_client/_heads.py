"""The part of REQUEST and REPLY frames before the payload, made by one call of a struct.

Frames to one place differ in their id, which stands in the middle, and in their payload. A head is what does not change between them, with
the struct that puts the rest in. Knows nothing of connections: who keeps heads drops them when the sender's id changes.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from ipcbus.protocol.messages import Kind, pack

#: pack, everything before the id, lowest and highest id that it is for (V-2: the shortest form), N without the payload, everything between
#: the id and the payload's length for msgpack and for raw bytes, and what the maker wants to remember.
#: ``pack(0xCE, N + size, before, id, after, size)`` is the frame without its payload.
Head = tuple[Callable[..., bytes], bytes, int, int, int, bytes, bytes, float]

#: How msgpack writes an unsigned int: highest value, format of struct, marker.
_WIDTHS = ((0x7F, "B", b""), (0xFF, "B", b"\xcc"), (0xFFFF, "H", b"\xcd"), (0xFFFF_FFFF, "I", b"\xce"), (2**64 - 1, "Q", b"\xcf"))
#: Heads that one session keeps, of each kind.
HEADS_MAX = 1024


def call_head(identity: int, kind: Kind, sender: int, to: str, *rest: Any, note: float = 0.0) -> Head:
    """The head for `[kind, sender, to, id, …rest, meta, payload]` with ids of the width of *identity*."""
    width = next(number for number, (highest, _, _) in enumerate(_WIDTHS) if identity <= highest)
    highest, form, marker = _WIDTHS[width]
    lowest = _WIDTHS[width - 1][0] + 1 if width else 0
    before = bytes((0x90 + 6 + len(rest),)) + b"".join(map(pack, (kind.value, sender, to))) + marker
    after = b"".join(map(pack, rest))
    layout = Struct(f">BI{len(before)}s{form}{len(after) + 2}sI")
    return layout.pack, before, lowest, highest, layout.size - 5, after + b"\xc0\xc6", after + b"\x01\xc6", note
