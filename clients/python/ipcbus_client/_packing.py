"""Values that msgpack does not know, as values that it does, and what to say of those that nothing can pack.

Owns the forms in which the types of Python's library travel: plain msgpack that a program in any language reads. They come back as what
they were only where the receiver says so (_convert.py). A form is found by the names of a value's classes, so nothing is imported for it.

    aware datetime     msgpack's timestamp (extension -1), to the microsecond; one without a time zone names no moment and is an error
    date, time         ISO 8601 text
    timedelta          seconds, a float
    Decimal, UUID, Path (all that is os.PathLike)    text
    Enum               its value
    dataclass          a map of its fields
    set, frozenset     an array
    buffer (array, numpy, ctypes, …)    its bytes; a scalar of numpy is the number

The outbox comes here only after its packer refused a value: plain values pay nothing, and no code of a user runs while that packer is at
work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import msgpack

from ipcbus.protocol.payloads import PayloadError

#: What packing raises for what it cannot pack: user code is in it (a property, a dict's own items()), which may raise anything.
CANNOT = Exception
DEPTH_MAX = 1024  #: containers within each other: what msgpack's decoder takes (its older packers take 511)
INT_MIN, INT_MAX = -(2**63), 2**64 - 1

EPOCH = msgpack.Timestamp(0, 0).to_datetime()  #: 1970, in UTC
_timedelta = type(EPOCH - EPOCH)
_PATH_MAX = 200  #: characters of a path in an error's text
_FORMS_MAX = 1024

Form = Callable[[Any], Any]


def pack_typed(value: Any) -> bytes:
    """*value* as msgpack, whatever of the above is in it. Raises PayloadError, which names the path to what cannot be packed."""
    try:
        packed: bytes = msgpack.Packer(default=plain).pack(value)
    except CANNOT as error:
        raise PayloadError(_fault_in(value) or f"cannot pack {type(value).__name__}: {error}") from error
    return packed


def plain(value: Any) -> Any:
    """*value* in its form. Raises PayloadError where it has none."""
    form = _forms.get(type(value))
    if form is None:
        if len(_forms) >= _FORMS_MAX:
            _forms.clear()
        form = _forms[type(value)] = _find_form(type(value))
    return form(value)


def moment(timestamp: msgpack.Timestamp) -> Any:
    """The aware datetime, in UTC, of a msgpack timestamp. Raises OverflowError outside of the years 1 to 9999."""
    return EPOCH + _timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanoseconds // 1000)


def as_bytes(buffer: bytes | bytearray | memoryview) -> bytes:
    """The bytes of a buffer as they are now, for its owner may change it. A view of whole bytes is not copied, for these never change."""
    if type(buffer) is memoryview and type(buffer.obj) is bytes and buffer.c_contiguous and buffer.nbytes == len(buffer.obj):
        return buffer.obj
    return bytes(buffer)


# --- the forms ---


def _find_form(cls: type) -> Form:
    if cls is int:
        return _large_int
    for base in cls.__mro__:
        form = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if form is not None:
            return form
    if hasattr(cls, "__dataclass_fields__"):
        return _fields_of(cls)
    if hasattr(cls, "__fspath__"):
        return lambda value: value.__fspath__()
    return _buffer


def _large_int(value: int) -> Any:
    raise PayloadError(f"cannot pack an int of {value.bit_length()} bits: msgpack has {INT_MIN} to {INT_MAX}")


def _timestamp(value: Any) -> msgpack.Timestamp:
    if value.utcoffset() is None:
        raise PayloadError("cannot pack a datetime without a time zone: it names no moment; use datetime.now(timezone.utc), for example")
    since = value - EPOCH
    return msgpack.Timestamp(since.days * 86_400 + since.seconds, since.microseconds * 1000)


def _member(value: Any) -> Any:
    inner = value.value
    return plain(inner) if type(inner) not in _NATIVE else inner


def _fields_of(cls: type) -> Form:
    import dataclasses  # here: a program without any never pays for it

    names = tuple(field.name for field in dataclasses.fields(cls))
    return lambda value: {name: getattr(value, name) for name in names}


def _buffer(value: Any) -> Any:
    try:
        view = memoryview(value)
    except TypeError:
        raise PayloadError(f"cannot pack {type(value).__name__}") from None
    if view.format.lstrip("<>=@!^")[:1] in _ADDRESSES:
        raise PayloadError(f"cannot pack {type(value).__name__} of objects: its bytes are addresses in this program")
    if not view.ndim and hasattr(value, "item"):
        return value.item()  # a number of numpy
    return view if view.c_contiguous else view.tobytes()


_ADDRESSES = frozenset("O&PzX")  #: buffer formats of objects, and of C's pointers
_NATIVE = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, msgpack.Timestamp, msgpack.ExtType})
_BY_NAME: dict[str, Form] = {
    "datetime.datetime": _timestamp,
    "datetime.date": lambda value: value.isoformat(),
    "datetime.time": lambda value: value.isoformat(),
    "datetime.timedelta": lambda value: value.total_seconds(),
    "decimal.Decimal": str,
    "uuid.UUID": str,
    "enum.Enum": _member,
    "builtins.set": list,
    "builtins.frozenset": list,
}
_forms: dict[type, Form] = {}


# --- what cannot be packed ---


def step(path: str, key: Any) -> str:
    """The path to what is at *key* of what is at *path*: ``$.rooms[3].sensor``."""
    if type(key) is str and key.isidentifier():
        return f"{path}.{key}"
    return f"{path}[{key!r:.60}]"


def at(path: str, text: str) -> str:
    """*text* about what is at *path*; the whole value needs no path."""
    if path == "$":
        return text
    return f"{path if len(path) <= _PATH_MAX else '…' + path[-_PATH_MAX:]}: {text}"


def _fault_in(value: Any) -> str | None:
    try:
        return _fault(value)
    except CANNOT:
        return None  # it cannot even be looked at


def _fault(value: Any) -> str | None:
    """Where in *value* is the first thing that cannot be packed, and what it is."""
    above = [id(value)]
    left = [_inside(value, "$")]  #: of each of ``above`` what is in it and was not looked at
    if type(left[0]) is str:
        return left[0]
    while left:
        item, path = next(left[-1], (_END, ""))  # type: ignore[arg-type]  # strings were returned
        if item is _END:
            left.pop()
            above.pop()
            continue
        name = type(item).__name__
        if id(item) in above:
            return at(path, f"cannot pack {name}: it contains itself")
        if len(above) > DEPTH_MAX:
            return at(path, f"cannot pack {name}: it is nested deeper than {DEPTH_MAX} levels")
        inside = _inside(item, path)
        if type(inside) is str:
            return inside
        left.append(inside)
        above.append(id(item))
    return None


_END = object()


def _inside(value: Any, path: str) -> Iterator[tuple[Any, str]] | str:
    """What is in *value*, with the paths to it; or a text where it cannot be packed itself."""
    if isinstance(value, dict):
        return chain.from_iterable(
            ((key, f"{path} (key {key!r:.60})"), (item, step(path, key))) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)) and not isinstance(value, msgpack.ExtType):
        return ((item, f"{path}[{number}]") for number, item in enumerate(value))
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        return at(path, f"cannot pack an int of {int(value).bit_length()} bits: msgpack has {INT_MIN} to {INT_MAX}")
    try:
        msgpack.packb(value)
    except CANNOT:
        pass
    else:
        return iter(())
    if isinstance(value, str):
        return at(path, "cannot pack a str with surrogates: it is no UTF-8")
    if isinstance(value, memoryview):
        return at(path, "cannot pack a memoryview that is not contiguous: bytes(view) is a copy that is")
    try:
        return iter([(plain(value), path)])
    except PayloadError as error:
        return at(path, str(error))
    except CANNOT as error:  # the border to user code: a field that is not set, or a property that fails
        return at(path, f"cannot pack {type(value).__name__}: {error}")
