"""Payloads: values in, (meta, bytes) out, and back with limits (V-6, S-2). The bus itself uses this for its own methods only."""

from __future__ import annotations

from typing import Any

import msgpack

from .failures import BusError
from .messages import Meta

RAW, TEXT, JSON = 1, 2, 3  #: V-6: the encodings besides msgpack (nil)

#: S-2: what a decoded payload may have. 16 MiB of empty maps would otherwise become a GiB of objects.
MAX_ELEMENTS = 1_000_000

_unpack = msgpack.unpackb


class PayloadError(BusError, ValueError):
    """A payload that cannot be encoded or decoded; the text says why. It concerns one message only."""

    what = "decode"
    hint = "Send what the bus can carry: the text says what is wrong, and where."


def encode_value(value: Any) -> tuple[Meta, bytes]:
    """The meta and payload of *value*: bytes-like objects go raw (1), everything else as msgpack (nil).

    Raises PayloadError for what msgpack cannot carry.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return RAW, bytes(value)
    try:
        return None, msgpack.packb(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(f"cannot pack {type(value).__name__}: {error}") from error


def encoding_of(meta: Meta) -> int | None:
    """The encoding that *meta* names: None is msgpack."""
    return meta.get("encoding") if isinstance(meta, dict) else meta


def decode_value(meta: Meta, payload: bytes, max_elements: int = MAX_ELEMENTS) -> Any:
    """The value of a payload. An empty msgpack payload is None; arrays are lists, but tuples where they are keys of maps.

    Raises PayloadError where the bytes are not what *meta* says, are nested too deeply, or have over *max_elements*.
    """
    encoding = meta.get("encoding") if isinstance(meta, dict) else meta
    if encoding == RAW:
        return payload
    try:
        if encoding is None:
            if len(payload) > max_elements and _has_more_elements(payload, max_elements):
                raise PayloadError(f"payload has more than {max_elements} elements")
            if not payload:
                return None
            try:
                return _unpack(payload, strict_map_key=False)
            except TypeError:  # a map's key is a list; looked for only here, for a hook costs every map
                return _unpack(payload, strict_map_key=False, object_pairs_hook=_map_of)
        if encoding == TEXT:
            return payload.decode()
        if encoding == JSON:
            # Each element but the first follows one of these; those in strings are counted too, which a million allows.
            if len(payload) > max_elements and sum(map(payload.count, (b",", b"[", b"{", b":"))) >= max_elements:
                raise PayloadError(f"payload has more than {max_elements} elements")
            import json  # here: most programs never meet any

            return json.loads(payload)
    except PayloadError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PayloadError(f"payload cannot be decoded: {error or type(error).__name__}") from error
    raise PayloadError(f"payload has encoding {encoding}, which this program does not know; its bytes are in .payload")


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    if type(key) is list:
        return tuple(map(_key, key))
    if type(key) is dict:
        raise ValueError("a map has a map as a key")
    return key


def _has_more_elements(payload: bytes, limit: int) -> bool:
    """Whether a msgpack object has more than *limit* elements, by walking its headers without making objects."""
    at, left, size = 0, 1, len(payload)
    for _ in range(limit + 1):
        if left == 0 or at >= size:
            return False
        left -= 1
        first = payload[at]
        at += 1
        if first < 0x80 or first >= 0xE0 or 0xC0 <= first <= 0xC3:
            continue
        if first < 0x90:
            left += 2 * (first & 15)
        elif first < 0xA0:
            left += first & 15
        elif first < 0xC0:
            at += first & 31
        elif first in _FIXED:
            at += _FIXED[first]
        else:
            width, unit, extra = _COUNTED[first]
            count = int.from_bytes(payload[at : at + width], "big")
            at += width
            if unit:
                left += unit * count
            else:
                at += count + extra
    return True


_FIXED = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
#: header byte: (width of the count, elements per count or 0 for bytes, bytes besides)
_COUNTED = {
    0xC4: (1, 0, 0),
    0xC5: (2, 0, 0),
    0xC6: (4, 0, 0),
    0xC7: (1, 0, 1),
    0xC8: (2, 0, 1),
    0xC9: (4, 0, 1),
    0xD9: (1, 0, 0),
    0xDA: (2, 0, 0),
    0xDB: (4, 0, 0),
    0xDC: (2, 1, 0),
    0xDD: (4, 1, 0),
    0xDE: (2, 2, 0),
    0xDF: (4, 2, 0),
}
