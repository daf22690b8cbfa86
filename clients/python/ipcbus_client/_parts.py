"""Replies in parts (R-6), at both ends: what the requester takes and gives credit for, and what the callee may send. Part of the session:
same lock, no I/O.

A stream's credit is a lane's (_lanes.py): what the callee may still send and what came and was not granted again add up to the window. At
the callee a generator goes on only while there is credit, so no value waits there to be sent; the shells drive it (_producing.py and
_aio_producing.py), in the session it is opaque.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import msgpack

from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import HEADER_BYTES
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import MAX_ELEMENTS, PayloadError, decode_value
from ipcbus.protocol.topics import peer_address

from ._calls import Call
from ._errors import Closed, Refused
from ._frames import FLUSH_BYTES
from ._lanes import Lane

if TYPE_CHECKING:
    from ._message import Request
    from ._session import Session

FEATURE = "parts"  #: H-3
HEADER = "stream"  #: of a REQUEST whose sender wants parts


class Parted(Call):
    """A request whose answer comes in parts: they wait in ``lane.messages`` as (meta, payload); it is done when the final answer came."""

    def __init__(self, identity: int, to: str, window_bytes: int, convert: Callable[[Any], Any] | None = None) -> None:
        super().__init__(identity, to)
        self._convert = convert
        self.lane = Lane(identity, to, window_bytes=window_bytes)

    def next_part(self) -> Any:
        """What the next value is made of, or None where none is here."""
        try:
            return self.lane.messages.popleft()
        except IndexError:
            return None

    def value_of(self, part: Any) -> Any:
        """The value of a part. Raises PayloadError where it cannot be decoded."""
        try:
            value = decode_value(*part)
            return value if self._convert is None else self._convert(value)
        except PayloadError as error:
            error.about(who=self.to)
            raise


class Streams:
    """The requests of one session that are answered in parts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def open(
        self,
        to: str,
        data: Any,
        headers: Mapping[str, Any] | None,
        timeout_s: float,
        window_bytes: int,
        convert: Callable[[Any], Any] | None = None,
    ) -> Parted:
        """Send a REQUEST with credit for its parts; *to* is checked already, there is a connection. Raises PayloadError, Refused where
        the bus is too old.
        """
        session = self._session
        if FEATURE not in session.features:
            raise Refused(Code.UNSUPPORTED, "this bus has no streamed replies (feature `parts`); use request(), or update it", to)
        meta, payload = session.outbox.encode(data, {**(headers or {}), HEADER: True}, to, "stream")
        window = min(window_bytes, session.limits.get("max_credit_bytes", window_bytes))
        call = Parted(session.new_id(), to, window, convert)
        try:
            session.put_request(call, meta, payload, timeout_s)
            self._allow(call, call.lane.window_bytes)
        except BaseException:  # of a signal handler: nobody has the call, so nobody else can end it
            session.cancel(call)
            raise
        return call

    def take(self, envelope: tuple[Any, ...]) -> None:
        """A PART came."""
        call = self._session.calls.get(envelope[3])
        if not isinstance(call, Parted):
            self._session.counters["late_replies"] += 1  # cancelled while it was on its way
            return
        lane = call.lane
        lane.messages.append((envelope[5], envelope[6]))  # type: ignore[arg-type]  # a lane of parts
        if lane.arrived(1, len(pack(envelope[:6])) + 2 * HEADER_BYTES + len(envelope[6])):  # all of the frame
            self.grant(call)

    def grant(self, call: Parted) -> None:
        """Renew the credit of *call* where it is worth a frame."""
        size, _ = call.lane.grant()
        if size and not call.done:
            self._allow(call, size)

    def close(self, call: Parted) -> None:
        """Nobody wants the rest: CANCEL where it has not ended, and what is here is dropped. Idempotent."""
        self._session.cancel(call)
        call.lane.messages.clear()
        call.settle(error=Closed(f"the stream from {call.to} was closed"))

    def disown(self) -> None:
        """In the child of a fork: the values that are here are the parent's."""
        for call in self._session.calls.values():
            if isinstance(call, Parted):
                call.lane.messages.clear()

    def _allow(self, call: Parted, size: int) -> None:
        self._session.outbox.put(encode(Kind.ALLOW, self._session.peer, call.to, call.id, size))


class Production:
    """What a generator gives as the answer to one request: PARTs where the requester wants them, else one list."""

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._request = request
        self._streams = type(request.meta) is dict and request.meta.get(HEADER) is True
        self._sequence = 0
        self._values: list[bytes] = []  #: packed, where they become one list
        self.held_bytes = 0  #: of them
        self.credit = 0  #: bytes; below 0 by what the last part overdrew
        self.wake: Callable[[], None] | None = None  #: told when there is credit, or the request is cancelled

    @property
    def ready(self) -> bool:
        """Whether the next value may be made."""
        return self.credit > 0 or not self._streams

    def allow(self, size: int) -> None:
        """ALLOW came."""
        self.credit += size
        if self.wake is not None:
            self.wake()

    def put(self, value: Any) -> bool:
        """The next value; whether the shell has to look after it, as after a publication. Does nothing where nobody waits for it. Raises
        PayloadError.
        """
        session, request = self._session, self._request
        if not session.services.wants(request):
            return False
        if not self._streams:
            self._keep(value)
            return False
        outbox = session.outbox
        meta, payload = outbox.encode(value, None, request.to, "reply")
        frame = encode_with_payload(payload, Kind.PART, session.peer, peer_address(request.peer), request.id, self._sequence, meta)
        self._sequence += 1
        self.credit -= len(frame)
        outbox.put(frame)
        return not outbox.batching or len(outbox.out) * len(frame) >= FLUSH_BYTES

    def _keep(self, value: Any) -> None:
        meta, packed = self._session.outbox.encode(value, None)
        if meta is not None:
            packed = pack(packed)
        self._values.append(packed)
        self.held_bytes += len(packed)
        self._session.services.keep(len(packed), self._request.to)
        limit = self._session.outbox.max_payload_bytes - HEADER_BYTES  # an array's header
        if self.held_bytes > limit or len(self._values) >= MAX_ELEMENTS:
            how_much = f"{len(self._values)} values of {self.held_bytes} bytes"
            raise PayloadError(f"{how_much} are more than one reply carries ({limit} bytes, {MAX_ELEMENTS} elements): ask with stream()")

    def end(self, result: Any) -> BaseException | None:
        """The generator returned *result*: the final answer. Returns why that cannot be sent, for Services.refuse()."""
        services = self._session.services
        if self._streams:
            return services.answer(self._request, result)
        services.reply_packed(self._request, msgpack.Packer().pack_array_header(len(self._values)) + b"".join(self._values))
        return None


def is_generator(value: Any) -> bool:
    """Whether a handler returned *value* to have its values as the answer."""
    return isinstance(value, (Generator, AsyncGenerator))
