"""Values as JSON text, in and out, with a rendering for what JSON lacks.

Owns the rendering, which `ipcbus --help` describes: it loses nothing and cannot be taken for another value.
Knows nothing about the bus.
"""

from __future__ import annotations

import binascii
import json
from typing import Any

from .failures import usage
from .text import safe

#: The keys of the renderings. A map that has one of them as its only key is itself rendered as ``$map``.
TAGS = frozenset({"$text-bytes", "$base64", "$time", "$ext", "$map", "$float", "$undecodable"})

RENDERING = """values that JSON lacks are printed as
  {"$text-bytes": "abc"}     bytes that are printable UTF-8 text
  {"$base64": "/wA="}        other bytes
  {"$time": "2026-01-02T03:04:05.000000006Z"}   a timestamp
  {"$ext": [5, "/wA="]}      another msgpack extension: its type, its bytes in base64
  {"$map": [[1, "one"]]}     a map with keys that are not strings
  {"$float": "nan"}          nan, inf, -inf
  {"$undecodable": "/wA="}   a payload that is not what its sender said; stderr says why"""


def parse(text: str | bytes, where: str = "VALUE") -> Any:
    """The value of a JSON *text*; a CommandError that says what to do otherwise. *where* names the text in it."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise usage(f"{where} is nested too deeply") from None
    except ValueError as error:
        start = text[:40] if isinstance(text, str) else text[:40].decode(errors="replace")
        raise usage(
            f"{where} is not JSON: {start!r} ({error}); use --raw to send it as it is, or quote it as JSON: '\"text\"'"
        ) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"{text} is too large for a number")
    return value


def render(value: Any) -> str:
    """*value* as JSON on one line, without a character that could act on a terminal.

    Raises RecursionError where it is nested too deeply, and nothing else for what a payload decodes to.
    """
    return dump(plain(value))


def dump(value: Any) -> str:
    """What `plain` returned, or a map of such, as `render` does."""
    return safe(json.dumps(value, ensure_ascii=False))


def plain(value: Any) -> Any:
    """*value* with every part that JSON lacks replaced by its rendering."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if value - value == 0 else {"$float": str(value)}
        case bytes() | bytearray() | memoryview():
            return _plain_bytes(bytes(value))
        case list() | tuple() if type(value) in (list, tuple):  # (an extension is a tuple of another class)
            return [plain(item) for item in value]
        case dict():
            if all(isinstance(key, str) for key in value) and not (len(value) == 1 and TAGS & value.keys()):
                return {key: plain(item) for key, item in value.items()}
            return {"$map": [[plain(key), plain(item)] for key, item in value.items()]}
    return _plain_extension(value)


def undecodable(payload: bytes) -> dict[str, str]:
    """The rendering of a payload that cannot be decoded, for `dump`."""
    return {"$undecodable": _base64(payload)}


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _plain_bytes(value: bytes) -> dict[str, str]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character in "\t\n\r" for character in text):
        return {"$text-bytes": text}
    return {"$base64": _base64(value)}


def _plain_extension(value: Any) -> Any:
    import msgpack

    if isinstance(value, msgpack.Timestamp):
        return {"$time": _timestamp(value.seconds, value.nanoseconds)}
    return {"$ext": [value.code, _base64(value.data)]}  # msgpack decodes to nothing else


def _timestamp(seconds: int, nanoseconds: int) -> str:
    import datetime

    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{nanoseconds:09d}"  # outside the years 1 to 9999: seconds since 1970
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
