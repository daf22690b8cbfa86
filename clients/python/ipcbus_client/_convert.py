"""From what a payload decodes to, to what a program's hints say: ``converter(Reading)({"room": "hall", "celsius": 21.5})``.

Owns the reading of type hints, the counterpart of _packing.py. Strict: a str is not an int, and a bool neither; only an int is taken where
a float is expected. Keys of a map that a dataclass or TypedDict does not have are left out, so that a sender may add fields. Services check
their arguments with the same converters.

Pure: the classes that it makes come with the hints, so it imports none of their modules.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgpack

from ipcbus.protocol.payloads import PayloadError

from ._hints import UNIONS, WRAPPERS, MismatchError, expected, text_of
from ._packing import CANNOT, moment, plain

Convert = Callable[[Any], Any]

_CACHE_MAX = 1024


def converter(hint: Any) -> Convert:
    """What makes a value of *hint* out of a decoded payload. It raises PayloadError, with the path to what is not as the hint says and what
    was expected there.

    Raises TypeError for a hint that no payload can become.
    """
    convert = checker(hint)

    def convert_payload(value: Any) -> Any:
        try:
            return convert(value)
        except MismatchError as error:
            raise PayloadError(error.describe("$")) from error.__cause__
        except RecursionError as error:
            raise PayloadError(f"the payload is nested too deeply for {text_of(hint)}") from error

    return convert_payload


def checker(hint: Any) -> Convert:
    """As converter(), but it raises MismatchError."""
    try:
        found = _made.get(hint)
    except TypeError:  # not hashable: an Annotated with a list, for example
        return _make(hint)
    if found is None:
        if len(_made) >= _CACHE_MAX:
            _made.clear()
        found = _made[hint] = _make(hint)
    return found


_made: dict[Any, Convert] = {}


# --- hints ---

def _make(hint: Any) -> Convert:
    if hint is Any or hint is object:
        return _anything
    if hint is None:
        return _exactly(type(None), "None")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin in WRAPPERS:
        return checker(arguments[0])
    if origin in UNIONS:
        return _union(hint, arguments)
    if origin is typing.Literal:
        return _literal(arguments)
    if isinstance(hint, typing.TypeVar):
        return checker(hint.__bound__ or Any)
    if hasattr(hint, "__supertype__"):  # a NewType
        return checker(hint.__supertype__)
    if hasattr(hint, "__value__"):  # type X = …, which may contain itself
        return lambda value: checker(hint.__value__)(value)
    cls = origin or hint
    if not isinstance(cls, type):
        raise TypeError(f"{text_of(hint)} is no type that a payload can become")
    return _of_class(cls, arguments, hint)


def _of_class(cls: type, arguments: tuple[Any, ...], hint: Any) -> Convert:
    if cls in _PLAIN:
        return _PLAIN[cls]
    for base in cls.__mro__:
        make = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if make is not None:
            return make(cls)
    if typing.is_typeddict(cls):
        return _typed_dict(cls)
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls)
    if issubclass(cls, tuple):
        return _named_tuple(cls) if hasattr(cls, "_fields") else _tuple(arguments)
    if hasattr(cls, "__fspath__"):
        return _made_from(cls, (str,))
    for abstract, concrete in _ARRAYS.items():
        if cls is abstract or cls is concrete:
            return _array(concrete, checker(arguments[0]) if arguments else _anything, text_of(hint))
    if cls is dict or (cls.__module__ == "collections.abc" and issubclass(cls, Mapping)):
        key, item = map(checker, arguments) if len(arguments) == 2 else (_anything, _anything)
        return _map(key, item, text_of(hint))
    if cls in (msgpack.Timestamp, msgpack.ExtType):
        return _exactly(cls, cls.__name__)
    raise TypeError(
        f"{text_of(hint)} is no type that a payload can become: use a dataclass, NamedTuple, TypedDict, Enum or what msgpack has"
    )


def _anything(value: Any) -> Any:
    return value


def _exactly(cls: type, what: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(what, value)
        return value

    return convert


def _float(value: Any) -> Any:
    if type(value) is float:
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return float(value)
    raise expected("float", value)


def _bytes_as(cls: Callable[[bytes], Any], what: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not bytes:
            raise expected(what, value)
        return cls(value)

    return convert


_PLAIN: dict[type, Convert] = {
    type(None): _exactly(type(None), "None"),
    bool: _exactly(bool, "bool"),
    int: _exactly(int, "int"),
    float: _float,
    str: _exactly(str, "str"),
    bytes: _exactly(bytes, "bytes"),
    bytearray: _bytes_as(bytearray, "bytes"),
    memoryview: _bytes_as(memoryview, "bytes"),
}


def _made_from(cls: Callable[[Any], Any], forms: tuple[type, ...], make: Callable[[Any], Any] | None = None) -> Convert:
    """A class whose values come as one of the plain *forms*."""
    name = text_of(cls)
    what = f"{name} (as {' or '.join(form.__name__ for form in forms)})"
    build = make or cls

    def convert(value: Any) -> Any:
        if type(value) not in forms:
            raise expected(what, value)
        try:
            return build(value)
        except Exception as error:  # each class has its own: decimal.InvalidOperation is no ValueError
            raise MismatchError(f"expected {what}, got {value!r:.60}: {error or type(error).__name__}") from error

    return convert


def _datetime(cls: Any) -> Convert:
    def build(value: Any) -> Any:
        found = moment(value) if type(value) is msgpack.Timestamp else cls.fromisoformat(value)
        if found.utcoffset() is None:
            raise ValueError("it has no time zone")
        return found

    return _made_from(cls, (msgpack.Timestamp, str), build)


def _seconds(cls: Any) -> Convert:
    return _made_from(cls, (float, int), lambda value: cls(seconds=value))


def _iso(cls: Any) -> Convert:
    return _made_from(cls, (str,), cls.fromisoformat)


def _enum(cls: Any) -> Convert:
    if issubclass(cls, enum.Flag):
        return _made_from(cls, (int,))
    forms = [(member, _form(member.value)) for member in cls]
    what = f"{text_of(cls)} ({', '.join(repr(form) for _, form in forms[:20])}{', …' if len(forms) > 20 else ''})"

    def convert(value: Any) -> Any:
        for member, form in forms:
            if value == form and isinstance(value, bool) == isinstance(form, bool):
                return member
        raise expected(what, value)

    return convert


def _form(value: Any) -> Any:
    """An Enum's value, as it comes out of a payload."""
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_form(item) for item in value]
    try:
        return plain(value)
    except CANNOT:
        return value


_BY_NAME: dict[str, Callable[[Any], Convert]] = {
    "datetime.datetime": _datetime,
    "datetime.date": _iso,
    "datetime.time": _iso,
    "datetime.timedelta": _seconds,
    "decimal.Decimal": lambda cls: _made_from(cls, (str, int)),
    "uuid.UUID": lambda cls: _made_from(cls, (str,)),
    "enum.Enum": _enum,
}


def _union(hint: Any, arguments: tuple[Any, ...]) -> Convert:
    exact = {argument for argument in arguments if argument in _PLAIN}
    others = [checker(argument) for argument in arguments if argument is not type(None)]
    nil = type(None) in arguments
    what = text_of(hint)

    def convert(value: Any) -> Any:
        if type(value) in exact:
            return value
        if len(others) == 1 and nil:
            return others[0](value)  # an Optional: its own error says more
        for other in others:
            try:
                return other(value)
            except MismatchError:
                pass
        raise expected(what, value)

    return convert


def _literal(arguments: tuple[Any, ...]) -> Convert:
    plain_of = [(item, item.value if isinstance(item, enum.Enum) else item) for item in arguments]
    what = " | ".join(map(repr, arguments))

    def convert(value: Any) -> Any:
        for item, form in plain_of:
            if type(value) is type(form) and value == form:
                return item
        raise expected(what, value)

    return convert


# --- arrays and maps ---

_ARRAYS: dict[Any, type] = {
    **dict.fromkeys(
        (getattr(typing, name).__origin__ for name in ("Sequence", "MutableSequence", "Collection", "Iterable", "Iterator")), list
    ),
    list: list,
    set: set,
    frozenset: frozenset,
    AbstractSet: set,
    typing.MutableSet.__origin__: set,  # type: ignore[attr-defined]  # typing's aliases have it
}


def _array(cls: type, item: Convert, what: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise expected(what, value)
        if item is _anything and cls is list:
            return value
        found = _items(value, item)
        try:
            return found if cls is list else cls(found)
        except TypeError as error:
            raise MismatchError(f"expected {what}: {error}") from error

    return convert


def _items(values: list[Any], item: Convert) -> list[Any]:
    found: list[Any] = []
    try:
        found.extend(map(item, values))
    except MismatchError as error:
        error.path.append(len(found))
        raise
    return found


def _tuple(arguments: tuple[Any, ...]) -> Convert:
    if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _array(tuple, checker(arguments[0]) if arguments else _anything, "tuple")
    items = [checker(argument) for argument in arguments if argument != ()]
    what = f"tuple[{', '.join(map(text_of, arguments))}]"

    def convert(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            raise expected(f"{what}, {len(items)} items", value)
        return tuple(_at(number, item, one) for number, (item, one) in enumerate(zip(items, value, strict=True)))

    return convert


def _at(key: Any, convert: Convert, value: Any) -> Any:
    try:
        return convert(value)
    except MismatchError as error:
        error.path.append(key)
        raise


def _map(key: Convert, item: Convert, what: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise expected(what, value)
        if key is _anything and item is _anything:
            return value
        if key is _anything:
            return {name: _at(name, item, one) for name, one in value.items()}
        found = [(_at(name, key, _as_item(name)), _at(name, item, one)) for name, one in value.items()]
        try:
            return dict(found)
        except TypeError as error:
            raise MismatchError(f"expected {what}: {error}") from error

    return convert


def _as_item(key: Any) -> Any:
    """A map's key as it would be anywhere else: an array came as a tuple there."""
    return list(map(_as_item, key)) if type(key) is tuple else key


# --- classes with fields ---


def _fields(cls: Any, names: list[str]) -> Callable[[], dict[str, Convert]]:
    """The converters of the fields, made at once where they can be: a class may contain itself."""
    made: dict[str, Convert] = {}

    def fields() -> dict[str, Convert]:
        if not made:
            hints = _hints(cls)
            made.update({name: checker(hints.get(name, Any)) for name in names})
        return made

    return fields


def _whole(cls: Any, convert: Convert, fields: Callable[[], dict[str, Convert]]) -> Convert:
    """*convert*, after its fields are known to be good hints; while they are looked at, the class itself is known already."""
    _made[cls] = convert
    try:
        fields()
    except BaseException:
        _made.pop(cls, None)
        raise
    return convert


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(f"{text_of(cls)}: {error}") from error


def _dataclass(cls: Any) -> Convert:
    known = [field for field in dataclasses.fields(cls) if field.init]
    fields = _fields(cls, [field.name for field in known])
    needed = {field.name for field in known if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING}
    return _whole(cls, _from_map(cls, fields, needed, cls), fields)


def _typed_dict(cls: Any) -> Convert:
    fields = _fields(cls, [*cls.__required_keys__, *cls.__optional_keys__])
    needed = set(cls.__required_keys__)
    for name, hint in _hints(cls).items():  # (the class itself did not see those in text)
        origin = typing.get_origin(hint)
        if origin in (typing.Required, typing.NotRequired):
            (needed.add if origin is typing.Required else needed.discard)(name)
    return _whole(cls, _from_map(cls, fields, needed, dict), fields)


def _from_map(cls: Any, fields: Callable[[], dict[str, Convert]], needed: set[str], build: Callable[..., Any]) -> Convert:
    name = text_of(cls)

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise expected(f"{name} (a map)", value)
        found = {key: _at(key, field, value[key]) for key, field in fields().items() if key in value}
        if not needed <= found.keys():
            missing = next(key for key in fields() if key in needed and key not in found)
            raise MismatchError(f"expected {name}, whose {missing!r} is missing")
        return _build(name, build, found)

    return convert


def _build(name: str, build: Callable[..., Any], found: dict[str, Any]) -> Any:
    try:
        return build(**found)
    except Exception as error:  # a __post_init__ refuses with whatever its author likes
        raise MismatchError(f"{name} refuses it: {error or type(error).__name__}") from error


def _named_tuple(cls: Any) -> Convert:
    names = list(cls._fields)
    fields = _fields(cls, names)
    needed = set(names) - set(cls._field_defaults)
    from_map = _from_map(cls, fields, needed, cls)

    def convert(value: Any) -> Any:
        if type(value) is list:
            if not len(needed) <= len(value) <= len(names):
                raise expected(f"{text_of(cls)}, {len(names)} items", value)
            return from_map(dict(zip(names, value, strict=False)))
        return from_map(value)

    return _whole(cls, convert, fields)
