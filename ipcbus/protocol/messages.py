"""Kinds, the shapes of their envelopes, and the one encoding of each (sections 2 and 3).

Owns the table of section 3. Frames are decoded here once, at the border; what comes out is trusted further in. Canonical form (V-2) is
checked by encoding again and comparing bytes, so there is no second list of rules that could drift from the encoder's.
"""

from __future__ import annotations

import enum
import reprlib
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from .errors import Code, ProtocolError
from .limits import (
    ENCODING_MAX,
    ERROR_CODE_MAX_BYTES,
    ERROR_TEXT_MAX_BYTES,
    FEATURE_MAX_BYTES,
    FEATURES_MAX_COUNT,
    HEADER_BYTES,
    HEADER_KEY_MAX_BYTES,
    HEADERS_MAX_BYTES,
    HEADERS_MAX_COUNT,
    INCARNATION_BYTES,
    INFO_KEY_MAX_BYTES,
    INFO_MAX_COUNT,
    INFO_VALUE_MAX_BYTES,
    MAX_ID,
    NONCE_BYTES,
)
from .topics import is_name

Meta = int | dict[str, Any] | None  #: V-6

#: What an envelope without its payload can need at most, with room: names, a text and headers are far below it.
ENVELOPE_HEAD_BYTES = 8192
#: Up to this size a frame is decoded in one call, payload included; above it only its head is.
_SMALL_FRAME_BYTES = 4096


class Kind(enum.IntEnum):
    """The first element of an envelope (section 3)."""

    __hash__ = int.__hash__  # Enum's is a Python function; kinds are looked up for every frame

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    BYE = 5
    PING = 6
    PONG = 7
    PUBLISH = 8
    RETAIN = 9
    POST = 10
    SEND = 11
    REQUEST = 12
    REPLY = 13
    PART = 14
    ERROR = 15
    CANCEL = 16
    CREDIT = 17
    ALLOW = 18
    LANE = 19
    NOTICE = 20


# --- what each element may be ---------------------------------------------------------------------


def _fail(text: str) -> ProtocolError:
    return ProtocolError(Code.BAD_ENVELOPE, text)


def _uint(maximum: int, minimum: int = 0) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return type(value) is int and minimum <= value <= maximum

    return check


def _str(max_bytes: int) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return type(value) is str and (len(value) * 4 <= max_bytes or len(value.encode()) <= max_bytes)

    return check


def _bin(size: int) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return type(value) is bytes and len(value) == size

    return check


def _is_features(value: Any) -> bool:
    name = _str(FEATURE_MAX_BYTES)
    return (
        type(value) is tuple
        and len(value) <= FEATURES_MAX_COUNT
        and all(name(item) and item for item in value)
        and len(set(value)) == len(value)
    )


def _is_hello_info(value: Any) -> bool:
    key, text = _str(INFO_KEY_MAX_BYTES), _str(INFO_VALUE_MAX_BYTES)
    return type(value) is dict and len(value) <= INFO_MAX_COUNT and all(key(k) and k and text(v) for k, v in value.items())


def _is_welcome_info(value: Any) -> bool:
    return type(value) is dict and all(type(k) is str and type(v) in (int, str) for k, v in value.items())


def _is_nonce(value: Any) -> bool:
    return value is None or _bin(NONCE_BYTES)(value)


def _is_code(value: Any) -> bool:
    return _uint(65535)(value) or (_str(ERROR_CODE_MAX_BYTES)(value) and is_name(value))


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def is_meta(value: Any) -> bool:
    """Whether *value* is a meta (V-6)."""
    if value is None:
        return True
    if type(value) is int:
        return 1 <= value <= ENCODING_MAX
    if type(value) is not dict or len(value) > HEADERS_MAX_COUNT:
        return False
    key = _str(HEADER_KEY_MAX_BYTES)
    if not all(key(k) and k and type(v) in _HEADER_VALUES for k, v in value.items()):
        return False
    if "encoding" in value and not (type(value["encoding"]) is int and 1 <= value["encoding"] <= ENCODING_MAX):
        return False
    return len(pack(value)) <= HEADERS_MAX_BYTES


_HEADER_VALUES = (type(None), bool, int, float, str, bytes)

_PEER = ("sender", _uint(MAX_ID))
_TO = ("to", _str(512))
_ID = ("id", _uint(MAX_ID))
_REQUEST_ID = ("id", _uint(MAX_ID, 1))
_LANE = ("lane", _uint(MAX_ID, 1))
_META = ("meta", is_meta)
_U32 = _uint(2**32 - 1)
_VERSION = _uint(65535, 1)

#: Section 3: the elements after the kind, before the payload.
LAYOUTS: dict[Kind, tuple[tuple[str, Callable[[Any], bool]], ...]] = {
    Kind.HELLO: (
        _PEER,
        ("min_version", _VERSION),
        ("max_version", _VERSION),
        ("features", _is_features),
        ("info", _is_hello_info),
        ("nonce", _is_nonce),
    ),
    Kind.CHALLENGE: (_PEER, ("version", _VERSION), ("features", _is_features), ("nonce", _bin(NONCE_BYTES)), ("proof", _bin(32))),
    Kind.PROOF: (_PEER, ("proof", _bin(32))),
    Kind.WELCOME: (
        _PEER,
        ("version", _VERSION),
        ("features", _is_features),
        ("peer", _uint(MAX_ID, 1)),
        ("incarnation", _bin(INCARNATION_BYTES)),
        ("info", _is_welcome_info),
    ),
    Kind.BYE: (_PEER, ("code", _uint(65535)), ("text", _str(ERROR_TEXT_MAX_BYTES))),
    Kind.PING: (_PEER, _REQUEST_ID),
    Kind.PONG: (_PEER, _REQUEST_ID),
    Kind.PUBLISH: (_PEER, _TO, _META),
    Kind.RETAIN: (_PEER, _TO, _META),
    Kind.POST: (_PEER, _TO, ("id", _optional(_uint(MAX_ID, 1))), ("ttl_ms", _optional(_U32)), ("retain", _is_bool), _META),
    Kind.SEND: (_PEER, _TO, _META),
    Kind.REQUEST: (_PEER, _TO, _REQUEST_ID, ("timeout_ms", _U32), _META),
    Kind.REPLY: (_PEER, _TO, _REQUEST_ID, _META),
    Kind.PART: (_PEER, _TO, _REQUEST_ID, ("sequence", _uint(MAX_ID)), _META),
    Kind.ERROR: (_PEER, _TO, _ID, ("code", _is_code), ("text", _str(ERROR_TEXT_MAX_BYTES)), _META),
    Kind.CANCEL: (_PEER, _TO, _REQUEST_ID),
    Kind.CREDIT: (_PEER, _LANE, ("bytes", _U32), ("messages", _U32)),
    Kind.ALLOW: (_PEER, _TO, _REQUEST_ID, ("bytes", _U32)),
    Kind.LANE: (_PEER, _LANE),
    Kind.NOTICE: (_PEER, ("name", _str(64)), _META),
}

#: V-3: the kinds whose last element is a payload.
WITH_PAYLOAD = frozenset({Kind.PUBLISH, Kind.RETAIN, Kind.POST, Kind.SEND, Kind.REQUEST, Kind.REPLY, Kind.PART, Kind.ERROR, Kind.NOTICE})

#: The same by number, ready for `decode`: kind, first byte of the array, elements before the payload, whether it has one.
_SHAPES: dict[int, tuple[Kind, int, int, bool]] = {
    kind.value: (kind, 0x90 + 1 + len(layout) + (kind in WITH_PAYLOAD), 1 + len(layout), kind in WITH_PAYLOAD)
    for kind, layout in LAYOUTS.items()
}

_NONE = type(None)
#: How the elements of the kinds that come one by one in numbers usually look: their types, and whether their values are in range. What
#: is not
#: usual is checked element by element; this only saves calls, which is what a request costs.
_USUAL: dict[int, tuple[tuple[type, ...], Callable[[tuple[Any, ...]], bool]]] = {
    Kind.REQUEST.value: (
        (int, int, str, int, int, _NONE),
        lambda e: 0 <= e[1] <= MAX_ID and len(e[2]) <= 128 and 1 <= e[3] <= MAX_ID and 0 <= e[4] < 2**32,
    ),
    Kind.REPLY.value: (
        (int, int, str, int, _NONE),
        lambda e: 0 <= e[1] <= MAX_ID and len(e[2]) <= 128 and 1 <= e[3] <= MAX_ID,
    ),
    Kind.CREDIT.value: (
        (int, int, int, int, int),
        lambda e: 0 <= e[1] <= MAX_ID and 1 <= e[2] <= MAX_ID and 0 <= e[3] < 2**32 and 0 <= e[4] < 2**32,
    ),
}

#: The kinds of the shape [kind, sender, to, meta, payload]: their frames come in runs.
IN_RUNS = frozenset({Kind.PUBLISH, Kind.RETAIN, Kind.SEND})

# --- encoding -------------------------------------------------------------------------------------

_unpack = msgpack.unpackb
pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack


def pack_map_head(count: int) -> bytes:
    """The beginning of a map whose *count* keys and values follow, packed each."""
    if count < 16:
        return bytes((0x80 | count,))
    return struct.pack(">BH", 0xDE, count) if count < 65536 else struct.pack(">BI", 0xDF, count)


_frame_head = struct.Struct(">BI").pack
_payload_head = struct.Struct(">BI").pack


def encode(kind: Kind, *elements: Any) -> bytes:
    """The whole frame of a kind without payload."""
    envelope = pack((kind.value, *elements))
    return _frame_head(0xCE, len(envelope)) + envelope


def encode_prefix(kind: Kind, *elements: Any) -> bytes:
    """The envelope of a kind with payload up to and with the payload's 0xc6: what the frames of a run share."""
    head = pack((kind.value, *elements))
    return bytes((head[0] + 1,)) + head[1:] + b"\xc6"


def encode_with_payload(payload: bytes | bytearray | memoryview, kind: Kind, *elements: Any) -> bytes:
    """The whole frame of a kind with payload (V-3). *payload* is the encoded bytes; nothing here looks at them."""
    prefix = encode_prefix(kind, *elements)
    size = len(payload)
    return b"".join((_frame_head(0xCE, len(prefix) + 4 + size), prefix, size.to_bytes(4, "big"), payload))


def error_frame(to: str, request: int, code: Code, text: str, payload: bytes = b"") -> bytes:
    """An ERROR of the bus (E-3, E-4)."""
    return encode_with_payload(payload, Kind.ERROR, 0, to, request, code.value, clip_text(text), None)


def clip_text(text: str) -> str:
    """*text* cut to what an ERROR or BYE may carry (E-1), never in the middle of a character."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= ERROR_TEXT_MAX_BYTES:
        return encoded.decode()
    return encoded[: ERROR_TEXT_MAX_BYTES - 3].decode(errors="ignore") + "…"


# --- decoding -------------------------------------------------------------------------------------


class Frame:
    """One validated frame: ``kind``, ``elements`` (all of the envelope, kind included, the payload as None), ``raw`` (the whole frame as
    it came)
    and ``payload_size``. ``payload`` copies the payload out."""

    __slots__ = ("elements", "kind", "payload_size", "raw")

    def __init__(self, kind: Kind, elements: tuple[Any, ...], raw: bytes, payload_size: int) -> None:
        self.kind = kind
        self.elements = elements
        self.raw = raw
        self.payload_size = payload_size

    @property
    def payload(self) -> bytes:
        """The payload's bytes; empty where the kind has none."""
        return self.raw[len(self.raw) - self.payload_size :]

    def __repr__(self) -> str:
        return f"<Frame {self.kind.name} {self.elements[1:]} +{self.payload_size} B>"


def decode(raw: bytes) -> Frame:
    """Decode and validate one whole frame (its 5 bytes of length included, already checked against ``len(raw)``).

    Raises ProtocolError: ``unknown_kind`` (V-8) or ``bad_envelope`` (V-1 … V-9).
    """
    elements = _elements(raw)
    number = elements[0]
    shape = _SHAPES.get(number) if type(number) is int else None
    if shape is None:
        if type(number) is not int:
            raise _fail("the kind is not an integer")
        raise ProtocolError(Code.UNKNOWN_KIND, f"kind {number} is not one of this protocol")
    kind, head_byte, named, has_payload = shape
    if raw[HEADER_BYTES] != head_byte:
        raise _fail(f"{kind.name} has {named + has_payload} elements, in a one-byte array header")
    if has_payload:
        elements = elements[:named]
    usual = _USUAL.get(number)
    if usual is None or tuple(map(type, elements)) != usual[0] or not usual[1](elements):
        _check_each(kind, elements)
    head = pack(elements)
    end = HEADER_BYTES + len(head)
    if raw[HEADER_BYTES + 1 : end] != head[1:]:
        raise _fail(f"{kind.name} is not in its one encoding (shortest form)")
    if not has_payload:
        if len(raw) != end:
            raise _fail(f"{kind.name} is {len(raw) - HEADER_BYTES} bytes long, its elements need {len(head)}")
        return Frame(kind, elements, raw, 0)
    size = len(raw) - end - HEADER_BYTES
    if size < 0 or raw[end : end + HEADER_BYTES] != _payload_head(0xC6, size):
        raise _fail(f"{kind.name}: payload is not a bin 32 that ends with its frame")
    return Frame(kind, elements, raw, size)


def _check_each(kind: Kind, elements: tuple[Any, ...]) -> None:
    """Every element by the table; raises for the first that is wrong."""
    for (name, check), value in zip(LAYOUTS[kind], elements[1:], strict=True):
        if not check(value):
            raise _fail(f"{name} of {kind.name} is wrong: {brief(value)}")


def _elements(raw: bytes) -> tuple[Any, ...]:
    """The envelope's elements as msgpack gives them. A large frame is not decoded whole: only its head, so that what lies behind costs
    nothing."""
    try:
        if len(raw) <= _SMALL_FRAME_BYTES:
            whole = _unpack(raw[HEADER_BYTES:], use_list=False, max_map_len=64, max_ext_len=0)
            if type(whole) is not tuple or not whole:
                raise _fail("the envelope is not an array with elements")
            return whole
        unpacker = msgpack.Unpacker(use_list=False, max_map_len=64, max_ext_len=0, max_array_len=64)
        unpacker.feed(raw[HEADER_BYTES : HEADER_BYTES + ENVELOPE_HEAD_BYTES])
        count = unpacker.read_array_header()
        if not 1 <= count <= 15:
            raise _fail(f"an envelope of {count} elements")
        kind = unpacker.unpack()
        named = _SHAPES[kind][2] - 1 if type(kind) is int and kind in _SHAPES else 0
        return (kind, *(unpacker.unpack() for _ in range(min(named, count - 1))))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _fail(f"not msgpack: {error or type(error).__name__}") from error


#: repr() of what a peer nested a thousand deep would end in a RecursionError, and of what it made large in a large text.
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80


def brief(value: Any) -> str:
    """A value that a peer sent, for an error's text: short, whatever its size and depth."""
    return _brief.repr(value)
