"""What all of the simulation shares: how a broken promise is said, and how bytes are read as frames."""

from __future__ import annotations

from functools import lru_cache

from ipcbus.protocol import topics
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.messages import Frame, decode


class ViolationError(AssertionError):
    """The bus broke a promise."""


def check(good: bool, peer: object, frame: Frame, why: str) -> None:
    """*peer* got or sent *frame*, which must be *good*."""
    if not good:
        raise ViolationError(f"{peer} and {frame}: {why}")


def frames_in(buffer: bytearray) -> list[bytes]:
    """Take the whole frames out of *buffer*."""
    total = len(buffer)
    if total < 5 or total < 5 + int.from_bytes(buffer[1:5], "big"):
        return []
    data = bytes(buffer)
    found, at = [], 0
    while at + 5 <= total and data[at] == 0xCE:
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > total:
            break
        found.append(data[at:end])
        at = end
    del buffer[:at]
    return found


def refusal_of(topic: str) -> Code | None:
    """Why a client may not publish to *topic* (T-3, T-4)."""
    try:
        topics.check_topic(topic)
    except ProtocolError as error:
        return error.code
    return Code.RESERVED if topic.startswith("$") else None


#: A frame goes by several times: into the bus, out of it to each receiver, into the program. Nobody changes one.
frame_of = lru_cache(4096)(decode)
matches = lru_cache(4096)(topics.matches)
