"""Annotated functions as methods of a service: which are served, what is said of them, and how payloads become their arguments."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import sys
import threading
import typing
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.messages import Kind
from ipcbus.protocol.payloads import encode_value
from ipcbus_client import BadArguments, Request
from ipcbus_client._arguments import arguments_of, payload_of
from ipcbus_client._methods import Method, methods_of, returns_of


@dataclasses.dataclass
class Room:
    name: str
    floor: int = 0


class Mode(enum.Enum):
    ECO = "eco"
    BOOST = "boost"


class Thermostat:
    """What is served in these tests."""

    untouched = 3

    def set_target(self, target: float, mode: Mode = Mode.ECO) -> float:
        """Set the target.

        In degrees Celsius.
        """
        return target

    def rooms(self, first: Room, *others: Room, request: Request, sort: bool = False, **named: Room) -> list[Room]:
        return [first, *others, *named.values()]

    def asks(self, request: Request, /, x: int, y: int = 2) -> Any:
        return request, x, y

    def only(self, x: int, /, *, y: int) -> int:
        return x + y

    async def later(self) -> None: ...

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    async def count_later(self, to: int) -> AsyncIterator[int]:
        yield to

    @staticmethod
    def static(data: bytes) -> int:
        return len(data)

    @classmethod
    def of_class(cls, anything: Any = math.inf) -> str:
        return cls.__name__

    def _hidden(self) -> None: ...

    @property
    def fails(self) -> int:
        raise AssertionError("serve() has looked at a property")


METHODS = {method.name: method for method in methods_of(Thermostat())}


def request(value: Any) -> Request:
    return Request((Kind.REQUEST.value, 3, "t/m", 1, 1000, *encode_value(value)), 0)


def test_which_methods_are_served() -> None:
    assert sorted(METHODS) == [
        "asks", "count", "count_later", "later", "of_class", "only", "rooms", "set_target", "static",
    ]  # fmt: skip
    assert {name for name, method in METHODS.items() if method.streams} == {"count", "count_later"}
    assert {name for name, method in METHODS.items() if method.is_async} == {"later", "count_later"}


def public_function(x: int) -> int:
    return x + 1


def test_a_module_is_served_with_what_it_defines() -> None:
    names = [method.name for method in methods_of(sys.modules[__name__])]
    assert "public_function" in names
    assert "methods_of" not in names  # imported
    assert "Thermostat" not in names


class Nothing:
    def unannotated(self):  # type: ignore[no-untyped-def]
        pass


class Wrong:
    def method(self, x: complex) -> None: ...


class Unknown:
    def method(self, x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class Foreign:
    def größe(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("service", "text"),
    [
        (Thermostat, "Thermostat is a class: serve an instance of it"),
        (Nothing(), "no public method with annotations"),
        (None, "no public method with annotations"),
        (Wrong(), "method: parameter 'x': complex is no type that a payload can become"),
        (Unknown(), "method: its annotations cannot be read here"),
        (Foreign(), "größe: a method's name is"),
    ],
)
def test_what_cannot_be_served_is_a_type_error(service: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        methods_of(service)


def test_what_introspection_says() -> None:
    about = METHODS["set_target"].about()
    assert about == {
        "signature": "set_target(target: float, mode: Mode = <Mode.ECO: 'eco'>) -> float",
        "doc": "Set the target.\n\nIn degrees Celsius.",
        "arguments": {"target": {"type": "float", "required": True}, "mode": {"type": "Mode", "required": False, "default": "eco"}},
        "returns": "float",
    }
    assert METHODS["rooms"].signature == "rooms(first: Room, *others: Room, sort: bool = False, **named: Room) -> list[Room]"
    assert METHODS["rooms"].about()["arguments"]["others"] == {"type": "*Room", "required": False}
    assert METHODS["asks"].signature == "asks(x: int, y: int = 2) -> Any"
    assert METHODS["count"].about()["streams"] is True


@pytest.mark.parametrize(("length", "kept"), [(11_999, 11_999), (12_000, 12_000), (12_001, 12_001), (50_000, 12_001)])
def test_a_docstring_is_cut_below_what_the_bus_keeps(length: int, kept: int) -> None:
    def documented() -> None: ...

    documented.__doc__ = "é" * length
    said = Method("documented", documented).about()["doc"]
    assert len(said) == kept
    assert said.endswith("…") is (length > 12_000)


def test_a_default_that_is_large_or_no_payload_is_left_out() -> None:
    def defaults(a: Any = object, b: str = "x" * 2000, c: str = "short") -> None: ...

    arguments = Method("defaults", defaults).about()["arguments"]
    assert [("default" in one, one["required"]) for one in arguments.values()] == [(False, False), (False, False), (True, False)]


GOOD: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = [
    ("set_target", [21], (21.0,), {}),
    ("set_target", 21.5, (21.5,), {}),
    ("set_target", {"target": 1}, (1.0,), {}),
    ("set_target", {"mode": "boost", "target": 1}, (1.0, Mode.BOOST), {}),
    ("set_target", {"*": [1], "mode": "boost"}, (1.0, Mode.BOOST), {}),
    ("only", {"*": [1], "y": 2}, (1,), {"y": 2}),
    ("later", None, (), {}),
    ("later", {}, (), {}),
    ("later", [], (), {}),
    ("static", b"raw", (b"raw",), {}),
    ("static", [b"in an array"], (b"in an array",), {}),
    ("of_class", {"*": [{"a": 1}]}, ({"a": 1},), {}),
]


@pytest.mark.parametrize(("name", "payload", "arguments", "named"), GOOD)
def test_payloads_become_arguments(name: str, payload: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    assert METHODS[name].bind(request(payload)) == (arguments, named)


def test_the_request_is_given_where_a_method_takes_it() -> None:
    asked = request([1])
    assert METHODS["asks"].handler(None)(asked) == (asked, 1, 2)
    assert METHODS["asks"].handler(None)(request({"x": 5}))[1:] == (5, 2)
    asked = request({"*": [{"name": "a"}, {"name": "b"}], "c": {"name": "c"}})
    assert METHODS["rooms"].bind(asked) == ((Room("a"), Room("b")), {"request": asked, "c": Room("c")})


BAD: list[tuple[str, Any, str]] = [
    ("set_target", None, "missing a required argument: 'target'"),
    ("set_target", "warm", "target: expected float, got str 'warm'"),
    ("set_target", {"target": 1, "mode": "off"}, "mode: expected Mode ('eco', 'boost'), got str 'off'"),
    ("set_target", {"target": 1, "speed": 2}, "got an unexpected keyword argument 'speed'"),
    ("set_target", {"*": [1], "target": 1}, "multiple values for argument 'target'"),
    ("set_target", [1, "eco", 3], "too many positional arguments"),
    ("set_target", {1: 1}, "arguments are a map with names as keys"),
    ("set_target", {"*": 1}, "arguments are a map with names as keys"),
    ("rooms", [{"name": "a"}, {"name": 1}], "others[0].name: expected str, got int 1"),
    ("rooms", {"first": {"name": "a"}, "x": {"floor": 1}}, "x: expected Room, whose 'name' is missing"),
    ("rooms", {"first": {"name": "a"}, "request": {"name": "forged"}}, "got an unexpected keyword argument 'request'"),
    ("asks", {"x": 1, "request": 1}, "got an unexpected keyword argument 'request'"),
    ("later", [1], "too many positional arguments"),
    ("only", {"x": 1, "y": 2}, "positional"),
]


@pytest.mark.parametrize(("name", "payload", "text"), BAD)
def test_wrong_arguments_are_told_with_the_signature(name: str, payload: Any, text: str) -> None:
    with pytest.raises(BadArguments) as caught:
        METHODS[name].bind(request(payload))
    assert caught.value.text.startswith(f"{METHODS[name].signature}: ")
    assert text in caught.value.text
    assert isinstance(caught.value, TypeError)


def test_a_payload_that_cannot_be_decoded_is_wrong_arguments_too() -> None:
    asked = Request((Kind.REQUEST.value, 3, "t/m", 1, 1000, None, b"\xc1"), 0)
    with pytest.raises(BadArguments, match="payload cannot be decoded"):
        METHODS["set_target"].bind(asked)


@pytest.mark.parametrize(
    ("arguments", "named", "payload"),
    [
        ((), {}, None),
        ((1,), {}, [1]),
        ((None,), {}, [None]),
        (({"a": 1},), {}, [{"a": 1}]),
        (([1],), {}, [[1]]),
        ((b"raw",), {}, b"raw"),
        ((b"raw", 1), {}, [b"raw", 1]),
        ((), {"a": 1}, {"a": 1}),
        ((1, 2), {"a": 3}, {"*": [1, 2], "a": 3}),
    ],
)
def test_what_a_proxy_sends_is_what_a_service_reads(arguments: tuple[Any, ...], named: dict[str, Any], payload: Any) -> None:
    assert payload_of(arguments, named) == payload
    sent = payload if isinstance(payload, bytes) else msgpack.unpackb(msgpack.packb(payload))
    assert arguments_of(sent) == ([*arguments], named)


class Interface:
    """As a stub of a service: nothing here is a generator function."""

    def count(self, to: int) -> Iterator[int]: ...  # type: ignore[empty-body]

    def one(self) -> Room: ...  # type: ignore[empty-body]


def test_what_an_interface_says_of_results() -> None:
    assert returns_of(Thermostat, "rooms") == (list[Room], None)
    assert returns_of(Thermostat, "count") == (list[int], int)
    assert returns_of(Thermostat, "count_later") == (list[int], int)
    assert returns_of(Forgetful, "later") == (None, None)
    assert returns_of(Interface, "count") == (list[int], int)
    assert returns_of(Interface, "one") == (Room, None)
    with pytest.raises(AttributeError):
        returns_of(Thermostat, "missing")


class Forgetful:
    def now(self) -> str:
        return "now"

    @functools.cache  # noqa: B019  # what is decorated is served too
    def slow(self, x: int) -> int:
        return 2 * x

    @functools.wraps(now)
    def wrapped(self, *arguments: Any) -> Any:
        return self.now(*arguments)

    def later(self):  # type: ignore[no-untyped-def]
        return "later"

    def _own(self):  # type: ignore[no-untyped-def]
        return "own"


class Thread(threading.Thread):
    def now(self) -> str:
        return "now"


def test_what_has_no_annotations_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"^later of <.*Forgetful object.*> will not be served: annotate .*-> None") as caught:
        assert [method.name for method in methods_of(Forgetful())] == ["now", "slow", "wrapped"]
    assert len(caught) == 1
    served = [method.name for method in methods_of(Thread())]  # what it inherits is not its own, and nobody is warned
    assert "now" in served
    assert "join" not in served


def test_decorated_methods() -> None:
    with pytest.warns(UserWarning, match="later"):
        methods = {method.name: method for method in methods_of(Forgetful())}
    assert methods["slow"].signature == "slow(x: int) -> int"
    assert methods["slow"].handler(None)(request([4])) == 8
    assert methods["wrapped"].signature == "wrapped() -> str"


def test_iterators_that_do_not_say_of_what() -> None:
    class Streams:
        def typed(self) -> typing.Iterator: ...  # type: ignore[type-arg,empty-body]
        def plain(self) -> Iterator: ...  # type: ignore[type-arg,empty-body]
        def of_ints(self) -> Iterator[int]: ...  # type: ignore[empty-body]
        def none(self) -> None: ...

    assert returns_of(Streams, "typed") == returns_of(Streams, "plain") == (list[Any], Any)
    assert returns_of(Streams, "of_ints") == (list[int], int)
    assert returns_of(Streams, "none") == (type(None), None)
    assert [(method.name, method.streams) for method in methods_of(Streams())] == [
        ("none", False), ("of_ints", True), ("plain", True), ("typed", True),
    ]  # fmt: skip


def test_a_long_signature_leaves_room_for_what_is_wrong() -> None:
    class Long:
        def say(self, text: str = "x" * 100_000, more: typing.Literal[tuple(map(str, range(1000)))] = "1") -> None:  # type: ignore[valid-type]
            """Say it."""

    (method,) = methods_of(Long())
    assert method.signature.startswith(f"say(text: str = '{'x' * 59}…, more: '0' | '1' | ")
    assert len(encode_value({"say": method.about()})[1]) < 65_536
    with pytest.raises(BadArguments) as caught:
        method.bind(request([3]))
    assert len(caught.value.text) < 600
    assert caught.value.text.endswith("…: text: expected str, got int 3")


@pytest.mark.parametrize("hint", [Request, Request | None, typing.Optional[Request], typing.Annotated[Request, "of the bus"]])  # noqa: UP045
def test_a_method_may_take_the_request_or_nothing(hint: Any) -> None:
    class Asked:
        def who(self, x: int = 1, request=None) -> Any:  # type: ignore[no-untyped-def]
            return x, request

    Asked.who.__annotations__["request"] = hint
    (method,) = methods_of(Asked())
    assert method.signature == "who(x: int = 1) -> Any"
    for value, x in ((None, 1), ([3], 3)):
        asked = request(value)
        assert method.handler(None)(asked) == (x, asked)
    with pytest.raises(BadArguments, match="unexpected keyword argument 'request'"):
        method.bind(request({"request": None}))
