"""What waits to be written, and what waits for a connection.

Owns the encoding of publications and direct messages: consecutive ones to a topic differ only in their payloads, so everything before the
payload is cached by topic and payload size. Every frame carries the sender's id, which a new connection changes; so what is made while
there is no connection waits as values, and what was encoded but not yet handed to the kernel when a connection ended is taken apart again
and waits too. What the kernel had is not sent again.

Knows no socket. The shell calls it under the lock of its bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import HEADER_BYTES
from ipcbus.protocol.messages import IN_RUNS, LAYOUTS, Kind, Meta, decode, encode_prefix
from ipcbus.protocol.payloads import RAW, PayloadError
from ipcbus.protocol.topics import check_name, check_topic, parse_peer

from ._errors import BadName, bad_name

#: Buffered publications are written when there are so many bytes of them: enough that the system call no longer matters.
FLUSH_BYTES = 65_536
#: A publication that follows another one within this time is part of a burst and waits as long for more.
BURST_S = 0.001
#: Publications that wait for a connection; above it publish() waits (PROTOCOL.md has no part in this).
WAITING_MAX_BYTES = 8 * 1024 * 1024
#: Cached heads of frames, of some 100 bytes each.
_HEADS_MAX = 8192

_PLAIN = {False: Kind.PUBLISH, True: Kind.RETAIN}
_is_meta = dict(LAYOUTS[Kind.PUBLISH])["meta"]

_Heads = dict[str, dict[int, bytes]]


class OutboxFullError(Exception):
    """There is no connection, and what waits for one is at its limit: the shell waits, then tries again."""


class Outbox:
    """The bytes that this connection still has to write, and the publications that wait for the next one."""

    __slots__ = (
        "_at", "_heads_count", "_pack", "_raw", "_sending", "_value", "max_payload_bytes", "out", "peer", "waiting", "waiting_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.out = bytearray()  #: whole frames, not begun
        self._sending = bytearray()  #: whole frames, written up to _at
        self._at = 0
        self.peer = 0  #: this connection's id; 0 while there is none
        self.waiting: deque[tuple[Kind, str, Meta, bytes]] = deque()  #: for the next connection
        self.waiting_bytes = 0
        self.max_payload_bytes = 16 * 1024 * 1024
        self._pack: Callable[[Any], bytes] = msgpack.Packer().pack
        self._raw: _Heads = {}  #: topic -> payload size -> all of a PUBLISH frame before its payload
        self._value: _Heads = {}
        self._heads_count = 0

    # --- what goes in ---

    def publish(self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None) -> int:
        """Encode one publication; returns how many bytes wait in ``out``, or 0 when it waits for a connection.

        Raises BadName, PayloadError or OutboxFullError; then nothing was sent.
        """
        if data.__class__ is bytes:
            payload = data
            heads = self._raw
        else:
            try:
                payload = self._pack(data) if data.__class__ not in _BYTES_LIKE else None
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise PayloadError(f"cannot pack {type(data).__name__}: {error}") from error
            heads = self._value
        if retain or headers is not None or payload is None:
            return self._publish_slowly(topic, data, _PLAIN[bool(retain)], headers)
        out = self.out
        try:
            out += heads[topic][len(payload)]
        except (KeyError, TypeError):
            meta = RAW if heads is self._raw else None
            self._cache(heads, topic, meta, len(payload))
            return self._put(Kind.PUBLISH, topic, meta, payload)
        out += payload  # nothing is called between the two, so no signal handler's exception can tear the frame
        return len(out)

    def put(self, frame: bytes) -> None:
        """Send a whole frame. (A method, so that *frame* is made before ``out`` is looked at: a signal handler may write in between.)"""
        self.out += frame

    def send(self, to: str, data: Any, headers: Mapping[str, Any] | None) -> int:
        """Encode one direct message, as publish() does a publication."""
        if parse_peer(to) is None:
            try:
                check_name(to)
            except ProtocolError as error:
                raise bad_name(error) from error
        meta, payload = self.encode(data, headers)
        return self._put(Kind.SEND, to, meta, payload)

    def _publish_slowly(self, topic: str, data: Any, kind: Kind, headers: Mapping[str, Any] | None) -> int:
        check_publication(topic)
        meta, payload = self.encode(data, headers)
        return self._put(kind, topic, meta, payload)

    def _put(self, kind: Kind, to: str, meta: Meta, payload: bytes) -> int:
        if not self.peer:
            return self._wait(kind, to, meta, payload)
        head = self._head(kind, to, meta, len(payload))
        self.out += head
        self.out += payload
        return len(self.out)

    def encode(self, data: Any, headers: Mapping[str, Any] | None) -> tuple[Meta, bytes]:
        """The meta and payload of *data* with *headers*. Raises PayloadError."""
        meta: Meta = None
        try:
            if isinstance(data, (bytes, bytearray, memoryview)):
                meta, payload = RAW, bytes(data)
            else:
                payload = self._pack(data)
            if headers:
                meta = dict(headers) if meta is None else {"encoding": meta, **headers}
                if not _is_meta(meta):
                    raise PayloadError(f"headers {headers!r:.200}: at most 32, each a str to None, bool, int, float, str or bytes (V-6)")
        except PayloadError:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PayloadError(f"cannot pack {type(data).__name__}: {error}") from error
        self._check_size(len(payload))
        return meta, payload

    def _check_size(self, size: int) -> None:
        if size > self.max_payload_bytes:
            raise PayloadError(f"payload of {size} bytes: this bus carries at most {self.max_payload_bytes}")

    def _head(self, kind: Kind, to: str, meta: Meta, size: int) -> bytes:
        prefix = encode_prefix(kind, self.peer, to, meta)
        return b"\xce" + (len(prefix) + 4 + size).to_bytes(4, "big") + prefix + size.to_bytes(4, "big")

    def _cache(self, heads: _Heads, topic: str, meta: Meta, size: int) -> None:
        """Make the head for a topic and size, after the checks that every later publication then passes; without a connection only the
        checks.
        """
        check_publication(topic)
        self._check_size(size)
        if not self.peer:
            return
        if self._heads_count >= _HEADS_MAX:
            self._forget_heads()
        self._heads_count += 1
        heads.setdefault(topic, {})[size] = self._head(Kind.PUBLISH, topic, meta, size)

    def _forget_heads(self) -> None:
        self._raw.clear()
        self._value.clear()
        self._heads_count = 0

    def _wait(self, kind: Kind, to: str, meta: Meta, payload: bytes) -> int:
        if self.waiting_bytes >= WAITING_MAX_BYTES:
            raise OutboxFullError
        self.waiting.append((kind, to, meta, payload))
        self.waiting_bytes += len(payload) + len(to) + 64
        return 0

    # --- the connection ---

    def opened(self, peer: int, max_payload_bytes: int) -> int:
        """A connection is ready: encode what waited for it. Returns how many messages are too large for this bus and were dropped."""
        self.peer = peer
        self.max_payload_bytes = max_payload_bytes
        dropped = 0
        waiting, self.waiting, self.waiting_bytes = self.waiting, deque(), 0
        for kind, to, meta, payload in waiting:
            if len(payload) > max_payload_bytes:
                dropped += 1
            else:
                self._put(kind, to, meta, payload)
        return dropped

    def lost(self) -> None:
        """The connection is gone. Publications and direct messages that the kernel never had wait for the next one, in order; everything
        else is void.
        """
        unsent = [*_frames(self._sending, self._at), *_frames(self.out, 0)]
        self.peer = 0
        self.out = bytearray()
        self._sending = bytearray()
        self._at = 0
        self._forget_heads()
        again = deque((frame.kind, frame.elements[2], frame.elements[3], frame.payload) for frame in unsent if frame.kind in IN_RUNS)
        self.waiting_bytes += sum(len(item[3]) + len(item[1]) + 64 for item in again)
        again.extend(self.waiting)
        self.waiting = again

    def end(self) -> int:
        """Nothing is sent any more; returns how many publications and direct messages were never handed to the kernel."""
        self.lost()
        count = len(self.waiting)
        self.waiting.clear()
        self.waiting_bytes = 0
        return count

    # --- what goes out ---

    def chunk(self) -> memoryview:
        """The bytes to write next; empty when there are none. Call wrote() with how many the kernel took."""
        if not self._sending:
            self._sending, self.out = self.out, bytearray()
        return memoryview(self._sending)[self._at :]

    def wrote(self, count: int) -> None:
        """The kernel took *count* bytes of chunk()."""
        self._at += count
        if self._at >= len(self._sending):
            self._sending = bytearray()
            self._at = 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes of this connection that the kernel does not have yet."""
        return len(self._sending) - self._at + len(self.out)

    @property
    def blocked(self) -> bool:
        """Whether the kernel took only a part: writing goes on when the socket is writable."""
        return bool(self._sending)


_BYTES_LIKE = frozenset({bytearray, memoryview})


def check_publication(topic: str) -> None:
    """Raise BadName unless a client may publish to *topic* (T-1, T-3)."""
    if not isinstance(topic, str):
        raise BadName(f"a topic is a str, not {type(topic).__name__}")
    try:
        check_topic(topic)
        if topic.startswith("$"):
            raise ProtocolError(Code.RESERVED, f"topic {topic!r}: topics that begin with '$' are the bus's own")
    except ProtocolError as error:
        raise bad_name(error) from error


def _frames(data: bytearray, begun: int) -> list[Any]:
    """The whole frames of *data* of which no byte was written, where *begun* bytes were."""
    frames = []
    at, end = 0, len(data)
    while at < end:
        size = HEADER_BYTES + int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
        if at >= begun:
            frames.append(decode(bytes(data[at : at + size])))
        at += size
    return frames
