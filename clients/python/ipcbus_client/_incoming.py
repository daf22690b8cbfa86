"""What comes from the bus, from bytes to filled lanes and settled calls. Part of the session: same lock, no I/O.

A frame's way in: until WELCOME through the handshake (_greeting.py). Then receive() decodes a read that is one whole frame by itself, for
requests and replies come so, and each function called on their way is called with cold caches. Other reads it decodes as one msgpack
stream (S-1). A read with nothing but publications of one lane goes there in a few calls that run in C; in other reads they are gathered
by lane. The rest goes frame by frame through the session's ``handlers``.
"""

from __future__ import annotations

from collections import defaultdict
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any

import msgpack

from ipcbus.protocol.limits import HEADER_BYTES, READ_BYTES
from ipcbus.protocol.messages import Kind
from ipcbus.protocol.payloads import MAX_ELEMENTS

from ._greeting import GREETING_MAX_BYTES
from ._state import State

if TYPE_CHECKING:
    from ._session import Session

_CONNECTED, _CLOSED = State.CONNECTED, State.CLOSED
_first = itemgetter(0)
_frame_head = Struct(">BI").unpack_from
_unpack = msgpack.unpackb
#: Kinds as plain ints, for what runs per frame: an enum's member costs a lookup in its class, its value two calls.
_REPLY, _LANE = Kind.REPLY.value, Kind.LANE.value
_PUBLISHES = {Kind.PUBLISH.value}
_PUBLICATIONS = (Kind.PUBLISH.value, Kind.RETAIN.value)
#: A read: some hundred messages, so that they are consumed, and their memory is used again, before the garbage collector looks at them.
_READ_BYTES = 65_536
#: What decoding raises for bytes that are no frames, and what looking into a malformed frame raises.
_NO_STREAM = (ValueError, TypeError, LookupError, msgpack.UnpackException)
_NO_FRAME = (LookupError, TypeError, ValueError, AttributeError)


class Incoming:
    """The stream of frames from the bus, one connection's after the other's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.begin()

    def begin(self) -> None:
        """A new connection, and so a new stream."""
        self.max_frame = 2**32 - 1  #: F-3, from WELCOME on; before, the handshake's
        # F-3 is checked by the lengths. (A larger read_size, the decoder's own buffer, would only spread what is read over more memory.)
        self._unpacker = msgpack.Unpacker(use_list=False, read_size=READ_BYTES, max_buffer_size=2**31 - 1)
        self._length: int | None = None  #: a length whose envelope is not whole yet
        self._position = 0  #: bytes of the decoder's stream in whole frames
        self._whole = True  #: everything that came was whole frames
        self.lane = 0  #: L-3: the number of the lane whose publications come
        self.read_bytes = _READ_BYTES  #: how much to read next; more in the middle of a large frame

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """What came from the bus. Never raises for it: what is wrong ends in ``hangup``."""
        session = self._session
        if session.state is not _CONNECTED or session.hangup is not None:
            self._greet(data)
            return
        try:
            size = len(data)
            if self._whole and size > HEADER_BYTES:
                mark, length = _frame_head(data)
                if length + HEADER_BYTES == size and mark == 0xCE and length <= self.max_frame:
                    self._one(_unpack(data[HEADER_BYTES:], use_list=False), size)
                    return
            lengths, envelopes, kinds = self._decode(data)
        except _NO_STREAM as error:
            session.hangup = _not_a_stream(error)
            return
        count = len(envelopes)
        size = sum(lengths) + HEADER_BYTES * count
        counters = session.counters
        counters["received"] += count
        counters["received_bytes"] += size
        if kinds == _PUBLISHES:
            lane = session.lanes.get(self.lane)
            if lane is not None:
                lane.messages.extend(map(lane.make if size <= MAX_ELEMENTS else lane.make_large, envelopes))
                if lane.arrived(count, size):
                    session.grant(lane)
        elif count:
            self._mixed(lengths, envelopes, size)
            if session.services.requests:
                session.on_requests()

    def _greet(self, data: bytes | bytearray | memoryview) -> None:
        """What came before WELCOME was accepted, and what came in the same read after it."""
        session = self._session
        if session.hangup is not None or session.state is _CLOSED:
            return
        try:
            lengths, envelopes, _ = self._decode(data)
        except _NO_STREAM as error:
            session.hangup = _not_a_stream(error)
            return
        size = sum(lengths) + HEADER_BYTES * len(lengths)
        session.counters["received"] += len(envelopes)
        session.counters["received_bytes"] += size
        for at, envelope in enumerate(envelopes, 1):
            try:
                session.greeting.take(envelope)
            except _NO_FRAME as error:
                session.hangup = f"the bus began with {error}"
            if session.hangup is not None:
                return
            if session.state is _CONNECTED:
                self._mixed(lengths[at:], envelopes[at:], size)
                if session.services.requests:
                    session.on_requests()
                break
        if (self._length or 0) > (self.max_frame if session.state is _CONNECTED else GREETING_MAX_BYTES):
            session.hangup = "a frame's length is over the limit"

    def _one(self, envelope: tuple[Any, ...], size: int) -> None:
        """One frame, which was a whole read."""
        session = self._session
        counters = session.counters
        counters["received"] += 1
        counters["received_bytes"] += size
        kind = envelope[0]
        if kind in _PUBLICATIONS:
            lane = session.lanes.get(self.lane)
            if lane is not None:
                lane.messages.append(lane.make(envelope))
                if lane.arrived(1, size):
                    session.grant(lane)
        else:
            self._handle(kind, envelope)
            if session.services.requests:
                session.on_requests()

    def _handle(self, kind: int, envelope: tuple[Any, ...]) -> None:
        """A frame that is no publication."""
        session = self._session
        try:
            if kind != _REPLY:
                session.handlers[kind](envelope)
                return
            call = session.calls.pop(envelope[3], None)
            if call is None or call.mark is not None:
                session.settle(call, envelope[4], envelope[5], None, envelope[1])
            else:  # what settle() does; the call is in `calls`, so it is not done
                call.meta, call.payload = envelope[4], envelope[5]
                call.done = True
                if call.notify is not None:
                    call.notify()
        except _NO_FRAME as error:
            session.hangup = f"the bus sent a frame that is not in PROTOCOL.md: {error!r}"

    def _decode(self, data: bytes | bytearray | memoryview) -> tuple[list[int], list[tuple[Any, ...]], set[int]]:
        """The lengths and envelopes that are whole now, and the envelopes' kinds. Raises where it is no stream of frames."""
        unpacker = self._unpacker
        unpacker.feed(data)
        objects: list[Any] = list(unpacker)
        length = self._length
        if length is not None:
            objects.insert(0, length)
        self._length = length = objects.pop() if len(objects) & 1 else None
        lengths, envelopes = objects[::2], objects[1::2]
        kinds = set(map(_first, envelopes))  # raises for an int where an array should be
        self._position += sum(lengths) + HEADER_BYTES * len(lengths)
        # S-1: the decoder must stand where the lengths say, or a payload was taken for a frame.
        ahead: int = unpacker.tell() - self._position
        if length is None:
            agrees = 0 <= ahead < HEADER_BYTES
            self._whole = not ahead
            self.read_bytes = _READ_BYTES
        else:
            if type(length) is not int or length > self.max_frame:
                raise ValueError("a frame's length is over the limit")
            agrees = HEADER_BYTES <= ahead < HEADER_BYTES + max(length, 1)
            self._whole = False
            self.read_bytes = _READ_BYTES if length < READ_BYTES else READ_BYTES
        if not agrees:
            raise ValueError("lengths and envelopes disagree")
        return lengths, envelopes, kinds

    def _mixed(self, lengths: list[int], envelopes: list[tuple[Any, ...]], size: int) -> None:
        """Frames of all kinds. Publications are gathered by lane, and given to it before anything else is done and at the end."""
        session = self._session
        gathered: defaultdict[int, list[Any]] = defaultdict(list)  #: lane: length, envelope, length, envelope, …
        into = gathered[self.lane]
        try:
            for frame in zip(lengths, envelopes, strict=True):
                envelope = frame[1]
                kind = envelope[0]
                if kind in _PUBLICATIONS:
                    into += frame
                elif kind == _LANE:
                    self.lane = number = envelope[2]
                    into = gathered[number]
                else:
                    self._deliver(gathered, size <= MAX_ELEMENTS)
                    self._handle(kind, envelope)
                    if session.hangup is not None:
                        return
                    into = gathered[self.lane]
        except (IndexError, TypeError) as error:
            session.hangup = f"the bus sent a LANE that is not in PROTOCOL.md: {error!r}"
        self._deliver(gathered, size <= MAX_ELEMENTS)

    def _deliver(self, gathered: defaultdict[int, list[Any]], small: bool) -> None:
        session = self._session
        for number, frames in gathered.items():
            lane = session.lanes.get(number)
            if frames and lane is not None:
                envelopes = frames[1::2]
                lane.messages.extend(map(lane.make if small else lane.make_large, envelopes))
                count = len(envelopes)
                if lane.arrived(count, sum(frames[::2]) + HEADER_BYTES * count):
                    session.grant(lane)
        gathered.clear()


def _not_a_stream(error: Exception) -> str:
    return f"what came from the bus is not a stream of frames: {error or type(error).__name__}"
