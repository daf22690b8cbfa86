"""What a program receives: messages and requests. A message is the envelope itself, so making one costs a tenth of a microsecond; all
else is done on access. Who its sender is, is known to its class: there is one for each incarnation of the bus (of_senders()).
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgpack

from ipcbus.protocol.messages import Kind, Meta
from ipcbus.protocol.payloads import MAX_ELEMENTS, RAW, PayloadError, decode_value, encoding_of

from ._senders import NOBODY, Sender, Senders

if TYPE_CHECKING:
    from ._parts import Production

_Received = TypeVar("_Received")
_unpack = msgpack.unpackb
_RETAIN = Kind.RETAIN.value


class Message(tuple[Any, ...]):
    """One publication or direct message: the envelope ``[kind, sender, to, meta, payload]`` as it came. Immutable."""

    __slots__ = ()
    _senders: ClassVar[Senders] = NOBODY

    topic: str = property(itemgetter(2))  # type: ignore[assignment]  # a property in C: the fastest field there is
    meta: Meta = property(itemgetter(3))  # type: ignore[assignment]
    payload: bytes = property(itemgetter(4))  # type: ignore[assignment]

    @property
    def sender(self) -> Sender:
        """Who sent it: a peer id, with ``credentials``. 0 is the bus."""
        return self._senders[self[1]]

    @property
    def data(self) -> Any:
        """The decoded payload, decoded anew at each access. Raises PayloadError, which concerns this message only (S-2)."""
        meta = self[3]
        if meta is None:  # most messages: nothing between the reader and the decoder (a LargeMessage checks first)
            try:
                return _unpack(self[4], strict_map_key=False)
            except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
                pass  # once more, for the error, or for None where it is empty
        elif meta == RAW:
            return self[4]
        return _decoded(self)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the sender gave (V-6); empty without any."""
        return headers_of(self[3])

    @property
    def encoding(self) -> int | None:
        """How the payload is encoded (V-6): None is msgpack, 1 raw bytes, 2 text, 3 JSON."""
        return encoding_of(self[3])

    @property
    def retained(self) -> bool:
        """Whether it is of the kind that the bus keeps (RETAIN, L-8)."""
        return bool(self[0] == _RETAIN)

    def as_type(self, hint: Any) -> Any:
        """``data`` as a type hint says: a dataclass, NamedTuple, TypedDict, Enum, datetime, …, also within lists, maps and unions.

        Raises PayloadError, which names the path to what is not as the hint says; TypeError for a hint that no payload can become.
        """
        return _decoded(self, converter(hint))

    def __reduce__(self) -> tuple[Any, ...]:
        return message_class(len(self[4])), (tuple(self),)  # in another process it is a plain one: its class is of this one's bus

    def __repr__(self) -> str:
        return f"<Message {self[2]!r} from :{self[1]}, {len(self[4])} B>"


class LargeMessage(Message):
    """One whose payload may have more elements than S-2 allows: only what is over a million bytes can."""

    __slots__ = ()

    @property
    def data(self) -> Any:
        """As a Message's; counts before it decodes."""
        return _decoded(self)


def _decoded(message: Message, convert: Callable[[Any], Any] | None = None) -> Any:
    """The payload of *message*, as *convert* makes it. Raises PayloadError, which says of which topic it was."""
    try:
        value = decode_value(message[3], message[4])
        return value if convert is None else convert(value)
    except PayloadError as error:
        error.about(who=message[2])
        raise


def message_class(size_bytes: int) -> type[Message]:
    """What messages of *size_bytes* together are made as."""
    return Message if size_bytes <= MAX_ELEMENTS else LargeMessage


def converter(hint: Any, who: str = "") -> Callable[[Any], Any]:
    """_convert.converter(), whose errors are about *who*: the reading of hints is loaded where the first one is."""
    from ._convert import converter

    convert = converter(hint)

    def convert_of(value: Any) -> Any:
        try:
            return convert(value)
        except PayloadError as error:
            error.about(who=who)
            raise

    return convert_of if who else convert


def typed_message(convert: Callable[[Any], Any]) -> type[Message]:
    """A class of messages whose ``data`` is what *convert* makes of it: one for each subscription with a type."""

    def data(self: Message) -> Any:
        return _decoded(self, convert)

    return type("Message", (Message,), {"__slots__": (), "__doc__": Message.__doc__, "data": property(data)})


def of_senders(cls: type[_Received], senders: Senders) -> type[_Received]:
    """*cls*, of messages or requests, with *senders* to look theirs up in."""
    return type(cls.__name__, (cls,), {"__slots__": (), "__doc__": cls.__doc__, "_senders": senders})


def headers_of(meta: Meta) -> dict[str, Any]:
    """The headers of *meta* without ``encoding``, which is not the sender's word but the payload's form."""
    if isinstance(meta, dict):
        return {key: value for key, value in meta.items() if key != "encoding"}
    return {}


class Request:
    """A request to be answered by a handler."""

    __slots__ = ("cancelled", "epoch", "id", "meta", "notify", "payload", "peer", "production", "timeout", "to", "trace")
    _senders: ClassVar[Senders] = NOBODY

    def __init__(self, envelope: tuple[Any, ...], epoch: int) -> None:
        # ``peer`` is the sender as a plain int, which the session counts with
        _, self.peer, self.to, self.id, timeout_ms, self.meta, self.payload = envelope
        self.timeout: float = timeout_ms / 1000  #: seconds that the requester gave, counted by the bus from when it read the request
        self.cancelled = False  #: the requester gave up, died, or the time passed: the answer would go nowhere
        self.epoch = epoch  #: the connection that it came on; an answer on another one means nothing
        self.notify: Callable[[], object] | None = None  #: told when it is cancelled
        self.production: Production | None = None  #: of a generator's values, from the first credit for them on
        self.trace: Callable[[BaseException], str] | None = None  #: where the requester shall see the traceback of what its handler raises

    @property
    def sender(self) -> Sender:
        """Who asks: a peer id, with ``credentials``."""
        return self._senders[self.peer]

    @property
    def method(self) -> str:
        """The method that was asked for."""
        to: str = self.to
        return to.partition("/")[2]

    @property
    def data(self) -> Any:
        """The decoded payload. Raises PayloadError."""
        return self.payload if self.meta == RAW else decode_value(self.meta, self.payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers that the requester gave (V-6); empty without any."""
        return headers_of(self.meta)

    def when_cancelled(self, notify: Callable[[], object]) -> None:
        """Have *notify* called when it is cancelled, besides who is told already."""
        before = self.notify
        if before is None:
            self.notify = notify
        else:
            self.notify = lambda: (notify(), before())

    def cancel(self) -> None:
        """Mark it as not wanted any more. For the session."""
        if not self.cancelled:
            self.cancelled = True
            if self.notify is not None:
                self.notify()
            if self.production is not None and self.production.wake is not None:
                self.production.wake()

    def __repr__(self) -> str:
        return f"<Request {self.to!r} from :{self.peer}{', cancelled' if self.cancelled else ''}>"
