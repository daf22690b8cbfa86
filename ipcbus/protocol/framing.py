"""Cuts a peer's byte stream into runs and frames (section 1).

Owns the bytes of the one frame that is not whole yet, and the envelope prefixes that this peer has used and that were found valid. It
knows nothing of
peers, topics or lanes: where the frames of a prefix go is an opaque *route* that the router passed in gives.

A read goes through `Scanner.scan` once. The frames of PUBLISH, RETAIN and SEND all look like

    0xce length | array header, kind, sender, to, meta, 0xc6 | length of the payload, payload

and in a stream of messages to one place the part between the bars repeats. Such a prefix is decoded and validated once; after that a
frame with the same
bytes is checked by arithmetic alone: its two lengths must agree. Consecutive frames whose prefixes have the same route become one run,
which goes on
as a slice of the read: no object is made per frame. Everything else is decoded and yielded as a `Frame`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from struct import Struct
from typing import Any, Protocol

from .errors import Code, ProtocolError
from .limits import HEADER_BYTES, HELLO_MAX_BYTES
from .messages import IN_RUNS, Frame, Kind, decode, encode_prefix, pack

_length = Struct(">BI").unpack_from

_KIND_AT = HEADER_BYTES + 1  #: behind the one-byte array header

#: Chunks of an unfinished frame below this size are gathered in one buffer: a frame that comes byte by byte must not cost an object per
#: byte.
_SMALL_CHUNK_BYTES = 4096
#: How many of the oldest prefixes go where there is no room for one more: to free all of them in one go takes 20 ms.
_EVICTED = 32
#: The longest `to` of a cached prefix (msgpack str 8); longer ones are illegal anyway.
_CACHED_TO_BYTES = 255


class Counter(Protocol):
    """What counts the traffic of a prefix."""

    messages: int
    bytes: int


class Route(Protocol):
    """Where the frames of a prefix go: opaque here but for the generation in which it holds."""

    @property
    def generation(self) -> int: ...


class Router(Protocol):
    """Gives prefixes their routes. A route is good for as long as its generation is the router's."""

    @property
    def generation(self) -> int: ...

    def resolve(self, prefix: Prefix, owner: Any) -> Route:
        """The route of *prefix*, which *owner* uses, in the present generation; sets ``prefix.route`` and ``prefix.counter``."""
        ...


#: A run: route, buffer, start, end, offset of its last frame, number of frames.
Run = tuple[Any, bytes, int, int, int, int]


class Prefix:
    """A validated envelope prefix of one sender: everything of its frames but lengths and payload."""

    __slots__ = ("counter", "extra", "key", "kind", "lengths", "meta", "route", "span", "to")

    def __init__(self, kind: Kind, sender: int, to: str, meta: Any) -> None:
        self.kind = kind
        self.to = to
        self.meta = meta
        self.key = encode_prefix(kind, sender, to, meta)
        size = len(self.key)
        self.span = HEADER_BYTES + size + 4  #: bytes of a frame before its payload
        self.extra = size + 4  #: what N is more than the payload's length (V-3)
        self.lengths = Struct(f">BI{size}xI").unpack_from
        self.route: Any = None
        self.counter: Any = None


class Scanner:
    """The receiving half of one connection. Not thread-safe; `scan` is used to its end before it is called again, unless the connection
    ends."""

    __slots__ = ("_chunks", "_limit", "_prefixes", "_prefixes_max", "_router", "_sender", "_to_at", "held_bytes", "owner")

    def __init__(self, router: Router, *, prefixes_max: int) -> None:
        self._router = router
        self.owner: Any = None  #: whose connection it is: opaque here, for the router
        self._prefixes_max = prefixes_max
        self._prefixes: dict[bytes, Prefix] | None = None
        self._chunks: list[bytes | bytearray] | None = None
        self.held_bytes = 0  #: of the frame that is not whole yet; written here only
        self._limit = HELLO_MAX_BYTES
        self._sender = 0
        self._to_at = 0  #: offset of `to` in a frame in a run; 0 until the sender is known

    def open(self, sender: int, limit: int) -> None:
        """WELCOME was given: from now on frames up to *limit* bytes, and runs of *sender*, are accepted (F-3, V-4)."""
        self._sender = sender
        self._limit = limit
        self._to_at = HEADER_BYTES + 2 + len(pack(sender))

    def scan(self, data: bytes) -> Iterable[Run | Frame]:
        """The runs and frames that *data* completes, in order; what remains is kept for the next read.

        The consumer may change routes, and `open` the scanner, between two items. Raises ProtocolError, always fatal, after the items
        before it.
        """
        if not self.held_bytes:
            size = len(data)
            if size > _KIND_AT and self._to_at and data[_KIND_AT] not in IN_RUNS:
                first, length = _length(data)
                if first == 0xCE and size == HEADER_BYTES + length and length <= self._limit:
                    return (decode(data),)  # one whole frame in one read, as requests and replies mostly come
            return self._walk(data, 0)
        frame, at = self._complete(data)
        if frame is None:
            return ()
        return self._walk_two(frame, data, at)

    def _walk_two(self, frame: bytes, data: bytes, at: int) -> Iterator[Run | Frame]:
        yield from self._walk(frame, 0)
        yield from self._walk(data, at)

    def _walk(self, data: bytes, at: int) -> Iterator[Run | Frame]:
        """The hot path. *at* is the boundary of a frame."""
        size = len(data)
        startswith = data.startswith
        router = self._router
        run: Any = None
        start = last = at
        count = 0
        prefixes, to_at = self._prefixes, self._to_at
        while at < size:
            prefix = None
            mark = at + to_at
            if prefixes is not None and mark + 1 < size:
                # `to` is a fixstr or a str 8; its length gives the prefix's, whose bytes must be known ones.
                first = data[mark]
                if 0xA0 <= first < 0xC0:
                    prefix = prefixes.get(data[at + HEADER_BYTES : mark + first - 0x9D])
                elif first == 0xD9:
                    prefix = prefixes.get(data[at + HEADER_BYTES : mark + data[mark + 1] + 4])
            if prefix is None:
                if count:
                    yield run, data, start, at, last, count
                    run, count = None, 0
                raw = self._cut(data, at, size)
                if raw is None:
                    break
                at += len(raw)
                frame = decode(raw)
                if self._to_at == 0 or frame.kind not in IN_RUNS:
                    yield frame
                    to_at = self._to_at
                    continue
                prefix = self._learn(frame)
                prefixes = self._prefixes
                route = router.resolve(prefix, self.owner)
                prefix.counter.messages += 1
                prefix.counter.bytes += len(raw)
                yield route, raw, 0, len(raw), 0, 1
                continue
            route = prefix.route
            if route.generation != router.generation:
                route = router.resolve(prefix, self.owner)
            if route is not run:
                if count:
                    yield run, data, start, at, last, count
                    route = prefix.route  # whoever took the run may have changed subscriptions
                    if route.generation != router.generation:
                        route = router.resolve(prefix, self.owner)
                run, count, start = route, 0, at
            begin, before = at, count
            key, span, lengths = prefix.key, prefix.span, prefix.lengths
            whole = True
            while True:
                if at + span > size:
                    whole = False
                    break
                first, total, body = lengths(data, at)
                end = at + HEADER_BYTES + total
                if first != 0xCE or total > self._limit or end > size or total != body + prefix.extra:
                    whole = False
                    break
                last, step, at = at, end - at, end
                count += 1
                if not startswith(key, at + HEADER_BYTES):
                    break
                # The same prefix again: as long as the lengths repeat too, one comparison checks all of a frame's head.
                head, room = data[last : last + span], size - step
                while at <= room and startswith(head, at):
                    last = at
                    at += step
                    count += 1
                if not startswith(key, at + HEADER_BYTES):
                    break
            counter = prefix.counter
            counter.messages += count - before
            counter.bytes += at - begin
            if not whole:
                if count:
                    yield run, data, start, at, last, count
                    run, count = None, 0
                if at == size or self._cut(data, at, size) is None:
                    break
                raise ProtocolError(Code.BAD_ENVELOPE, f"{prefix.kind.name} to {prefix.to!r}: its length and its payload's disagree (V-3)")
        if count:
            yield run, data, start, at, last, count
        if at < size:
            self._chunks = [data[at:] if at else data]
            self.held_bytes = size - at

    def _learn(self, frame: Frame) -> Prefix:
        """The prefix of a decoded frame, kept for its successors where it can be found by its bytes."""
        _, sender, to, meta = frame.elements
        check_sender(self._sender, frame)
        prefix = Prefix(frame.kind, sender, to, meta)
        if meta.__class__ is not dict and len(to.encode()) <= _CACHED_TO_BYTES:
            prefixes = self._prefixes
            if prefixes is None:
                prefixes = self._prefixes = {}
            elif len(prefixes) >= self._prefixes_max:
                for key in tuple(islice(prefixes, _EVICTED)):
                    del prefixes[key]
            prefixes[prefix.key] = prefix
        return prefix

    def _cut(self, data: bytes, at: int, size: int) -> bytes | None:
        """The whole frame at *at*, or None while it is not whole; raises what its first bytes already give away (F-2)."""
        if data[at] != 0xCE:
            raise ProtocolError(Code.BAD_FRAME, f"a frame begins with 0xce, not {data[at]:#04x} (F-1); is this an ipcbus client?")
        if size - at < HEADER_BYTES:
            return None
        end = at + HEADER_BYTES + self._checked_length(data, at)
        return data[at:end] if end <= size else None

    def _checked_length(self, data: bytes | bytearray, at: int) -> int:
        _, length = _length(data, at)
        if length > self._limit:
            what = "before WELCOME" if self._to_at == 0 else "(limits.max_payload_bytes raises it)"
            raise ProtocolError(Code.TOO_LARGE, f"a frame of {length} bytes: at most {self._limit} are accepted {what}")
        if length < 2:
            raise ProtocolError(Code.BAD_FRAME, f"a frame of {length} bytes has no room for an envelope (F-2)")
        return int(length)

    def _complete(self, data: bytes) -> tuple[bytes | None, int]:
        """Add *data* to the unfinished frame: the frame, once it is whole, and how much of *data* it took."""
        chunks = self._chunks or []
        at = 0
        if self.held_bytes < HEADER_BYTES:
            at = min(HEADER_BYTES - self.held_bytes, len(data))
            chunks = [b"".join((*chunks, data[:at]))]
            self.held_bytes += at
            self._chunks = chunks
            if self.held_bytes < HEADER_BYTES:
                return None, at
            data = data[at:]
        missing = HEADER_BYTES + self._checked_length(chunks[0], 0) - self.held_bytes
        if len(data) < missing:
            if len(data) >= _SMALL_CHUNK_BYTES:
                chunks.append(data)
            elif chunks[-1].__class__ is bytearray:
                chunks[-1] += data
            else:
                chunks.append(bytearray(data))
            self.held_bytes += len(data)
            return None, at
        frame = b"".join((*chunks, data[:missing]))
        self._chunks = None
        self.held_bytes = 0
        return frame, at + missing


def check_sender(sender: int, frame: Frame) -> None:
    """Raise ``forged_sender`` unless *frame* was written in the name of *sender* (V-4)."""
    if frame.elements[1] != sender:
        raise ProtocolError(
            Code.FORGED_SENDER, f"{frame.kind.name} says it is from peer {frame.elements[1]}, but this is peer {sender} (V-4)"
        )
