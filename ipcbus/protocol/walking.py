"""Walking over frames that were checked: where each ends, and what a publication's topic is. Nothing is decoded.

For queues of whole frames of PUBLISH and RETAIN. Whoever calls this has bytes from `framing` or `messages`, which are in their one encoding
(V-2), so every length is where it must be.
"""

from __future__ import annotations

import msgpack

from .limits import HEADER_BYTES
from .messages import ENVELOPE_HEAD_BYTES, Meta

Frames = bytes | bytearray | memoryview

#: Bytes of the integers of msgpack in shortest form, by their first byte; below 0x80 it is the integer itself.
_INT_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_STR_8 = 0xD9


def frame_end(frames: Frames, at: int) -> int:
    """Where the frame that begins *at* ends."""
    return at + HEADER_BYTES + int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")


def frames_within(frames: Frames, room: int) -> tuple[int, int]:
    """The longest beginning of whole frames of at most *room* bytes: its size, and how many frames it has."""
    size = count = 0
    total = len(frames)
    while size < total:
        end = frame_end(frames, size)
        if end > room:
            break
        size = end
        count += 1
    return size, count


def sender_of(frames: Frames, at: int = 0) -> int:
    """The sender of the frame that begins *at*."""
    at += HEADER_BYTES + 2  # the array's header and the kind are a byte each
    first = frames[at]
    return int.from_bytes(frames[at + 1 : at + _INT_BYTES[first]], "big") if first in _INT_BYTES else first


def topic_of(frames: Frames, at: int = 0) -> bytes:
    """The topic of the PUBLISH or RETAIN that begins *at*: `[kind, sender, topic, meta, payload]`."""
    at += HEADER_BYTES + 2  # the array's header and the kind are a byte each
    at += _INT_BYTES.get(frames[at], 1)
    first = frames[at]
    if first == _STR_8:
        return bytes(frames[at + 2 : at + 2 + frames[at + 1]])
    return bytes(frames[at + 1 : at + 1 + (first & 0x1F)])


def head_of(frames: Frames, at: int = 0) -> tuple[int, int, str, Meta, int]:
    """Kind, sender, topic or name, and meta of the PUBLISH, RETAIN or SEND that begins *at*, and how far behind that its payload begins."""
    unpacker = msgpack.Unpacker(use_list=False)
    unpacker.feed(frames[at + HEADER_BYTES : at + HEADER_BYTES + ENVELOPE_HEAD_BYTES])
    unpacker.read_array_header()
    kind, sender, to, meta = (unpacker.unpack() for _ in range(4))
    return kind, sender, to, meta, 2 * HEADER_BYTES + unpacker.tell()
