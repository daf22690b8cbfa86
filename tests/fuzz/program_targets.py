"""What must hold for any configuration of the daemon, and for any payload that a program reads with a type of its own."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import os
import pathlib
import random
import typing
import uuid
from functools import cache
from typing import Any

import msgpack

from ipcbus.daemon.config import ConfigError, as_toml, conflicts, load
from ipcbus.daemon.options import OPTIONS
from ipcbus.protocol.payloads import PayloadError, decode_value
from ipcbus_client._convert import converter
from ipcbus_client._packing import pack_typed

from . import grammar
from .engine import Target, mark, mark_error

# --- configuration ---


@cache
def _file() -> int:
    """A file without a name, whose path is that of its descriptor."""
    return os.memfd_create("ipcbusd.toml")


def _written(data: bytes) -> str:
    descriptor = _file()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)
    return f"/proc/self/fd/{descriptor}"


_ENVIRONMENT = {"XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/home/nobody"}
_NAMED = [option for option in OPTIONS if option.env is not None and option.flag is not None]


def read_config(data: bytes) -> None:
    """A file, variables and flags: ConfigError with words, or a configuration that printed and read again is the same one."""
    text, *others = data.split(b"\0")
    environ, flags = dict(_ENVIRONMENT), {}
    for number, other in enumerate(others[:6]):
        option, given = _NAMED[(other[0] if other else 0) % len(_NAMED)], other[1:].decode(errors="surrogateescape")
        if number % 2:
            environ[option.env or ""] = given
        else:
            flags[option.name] = [given] if option.name == "listen" else given
    try:
        config = load(flags=flags, environ=environ, path=_written(text))
    except ConfigError as error:
        assert error.errors
        assert all(type(line) is str and line and "\n" not in line for line in error.errors), error.errors
        for line in error.errors:
            mark(*(option.name for option in OPTIONS if option.name in line))
        return
    mark(*sorted(name for name, source in config.sources.items() if source != "default"))
    assert conflicts(config.limits) == []
    try:
        printed = as_toml(config).encode()
    except UnicodeEncodeError:
        mark("a path of bytes that are not UTF-8, which TOML cannot say")
        return
    again = load(flags={}, environ=_ENVIRONMENT, path=_written(printed))
    assert again.values == config.values, (again.values, config.values)


_WORDS = ("default", "lab", "epoll", "select", "info", "debug", "json", "0660", "0777", "unix:/run/x.sock", "tcp:127.0.0.1:0", "/tmp/s", "",
          "root", "nogroup?", "a b", "ä", "\\u0000")  # fmt: skip
_NUMBERS = ("0", "1", "-1", "5.5", "nan", "inf", "1e400", "0x10", "9007199254740991", "9007199254740992", "16777216", "2024-01-01", "true")


def _make_config(chance: random.Random) -> bytes:
    lines: list[str] = []
    table = ""
    for option in sorted(chance.sample(OPTIONS, chance.choice((0, 1, 2, 5))), key=lambda option: option.name.startswith("limits.")):
        name = option.name.removeprefix("limits.")
        if option.name.startswith("limits.") and not table:
            table = "[limits]"
            lines.append(table)
        legal = None if option.default is None else option.type.to_toml(option.default)
        given = chance.choice((legal, legal, json.dumps(chance.choice(_WORDS)), chance.choice(_NUMBERS), '["unix:/run/y.sock"]'))
        lines.append(f"{name} = {given or chance.choice(_NUMBERS)}")
    rest = [chance.randbytes(1) + chance.choice((*_WORDS, *_NUMBERS)).encode() for _ in range(chance.choice((0, 0, 1, 3)))]
    return b"\0".join(("\n".join(lines).encode(), *rest))


# --- typed payloads ---


class Colour(enum.Enum):
    RED = "red"
    NONE = None
    PAIR = (1, 2)


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    label: str | None = None


@dataclasses.dataclass
class Tree:
    value: Any
    children: list[Tree] = dataclasses.field(default_factory=list)


class Pair(typing.NamedTuple):
    left: int
    right: bytes = b""


class Options(typing.TypedDict, total=False):
    name: typing.Required[str]
    size: int


HINTS: tuple[Any, ...] = (
    int, float, str, bytes, bool, None, list[int], dict[str, int], dict[tuple[int, int], str], set[int], frozenset[str], tuple[int, str],
    tuple[int, ...], int | str | None, list[Point] | Point, Point, Tree, Pair, Options, Colour, typing.Literal["a", 1, None], uuid.UUID,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction, pathlib.Path,
    ipaddress.IPv4Address, typing.Any, bytearray, memoryview, complex, object,
)  # fmt: skip


@cache
def _converters() -> list[tuple[Any, Any]]:
    """A converter for each of the hints; those that no payload can become say so when it is made."""
    found = []
    for hint in HINTS:
        try:
            found.append((hint, converter(hint)))
        except TypeError as error:
            assert str(error)
    return found


def convert_payload(data: bytes) -> None:
    """Whatever a payload holds, it becomes a value of the type or a PayloadError with words; that value, sent, becomes an equal one."""
    hints = _converters()
    hint, convert = hints[(data[0] if data else 0) % len(hints)]
    try:
        value = convert(decode_value(None, data[1:]))
    except PayloadError as error:
        assert len(str(error)) < 2000, "the text grows with what came"
        mark_error(error)
        mark(hint)
        return
    mark(str(hint), type(value))
    try:
        packed = pack_typed(value)
    except PayloadError as error:
        mark_error(error)
        return
    again = convert(decode_value(None, packed))
    assert again == value or repr(again) == repr(value), (again, value)  # (a NaN is not equal to itself)


_SIMPLE: tuple[Any, ...] = (
    {"x": 1, "y": 2.5}, {"x": 1, "label": None, "more": 1}, {"value": 1, "children": [{"value": 2}]}, {"name": "a", "size": 1}, {"a": 1},
    [1, b"x"], [1], [1, 2], [1.0, 2.0], "red", "a", "2026-01-31", "2026-01-31T12:00:00+01:00", "12:30", "1/3", "1.50", "127.0.0.1", "/tmp",
    "12345678123456781234567812345678", b"x" * 16, None, 90.5, float("nan"), 2**63, 10**15,
    msgpack.Timestamp(5, 7), msgpack.Timestamp(2**40),
)  # fmt: skip


def _make_typed(chance: random.Random) -> bytes:
    simple = chance.choice(_SIMPLE)
    return chance.randbytes(1) + bytes(msgpack.packb(simple if chance.random() < 0.7 else grammar.value(chance)))


TARGETS = (
    Target(
        "config", "the daemon's configuration: file, environment, flags", read_config, _make_config,
        (b"[limits]\n", b"\nlisten = [", b'"', b"'''", b" = ", b"max_payload_bytes", b"\0", b"inf", b"\xff", b"\\u0000", b"unix:/"),
    ),
    Target("convert", "payloads that are read with a type", convert_payload, _make_typed),
)  # fmt: skip
