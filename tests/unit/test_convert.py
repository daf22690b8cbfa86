"""From payloads to what type hints say, and what is said of payloads that are something else."""

from __future__ import annotations

import collections.abc as cab
import dataclasses
import datetime
import decimal
import enum
import pathlib
import pickle
import typing
import uuid
from typing import Any, NamedTuple, TypedDict

import msgpack
import pytest

from ipcbus.protocol.messages import Kind
from ipcbus.protocol.payloads import PayloadError, decode_value
from ipcbus_client._convert import converter
from ipcbus_client._hints import text_of
from ipcbus_client._lanes import Lane
from ipcbus_client._message import LargeMessage, Message
from ipcbus_client._packing import pack_typed

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


class Mood(enum.Enum):
    GOOD = "good"
    TWO = 2
    PAIR = (1, 2)


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Node:
    value: int
    children: list[Node] = dataclasses.field(default_factory=list)
    mood: Mood | None = None
    label: str = dataclasses.field(default="made", init=False)


@dataclasses.dataclass(frozen=True)
class Positive:
    value: float

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError("not positive")


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    a: typing.Required[int]
    b: str


@dataclasses.dataclass
class Misnamed:
    value: Nowhere  # type: ignore[name-defined]  # noqa: F821


UserId = typing.NewType("UserId", int)

SAME: list[tuple[Any, Any]] = [
    (None, None), (bool, True), (int, 1), (float, 1.5), (str, "a"), (bytes, b"a"), (Any, [1]), (object, {"a": 1}),
    (list, [1, "a"]), (list[int], [1, 2]), (typing.Sequence[int], [1]), (cab.Iterable[str], ["a"]), (dict, {1: 2}),
    (dict[str, Point], {"a": Point(1.0, 2.0)}), (cab.Mapping[str, int], {"a": 1}), (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}),
    (set[int], {1, 2}), (frozenset[str], frozenset({"a"})), (tuple, (1, "a")), (tuple[int, ...], (1, 2)),
    (tuple[int, str], (1, "a")), (tuple[()], ()), (Point, Point(1.0, 2.0)), (Options, {"a": 1, "b": "x"}), (Options, {"a": 1}),
    (Node, Node(1, [Node(2, mood=Mood.PAIR), Node(3)], Mood.GOOD)), (list[Node], [Node(1)]), (Mood, Mood.TWO), (Flags, Flags.A | Flags.B),
    (datetime.datetime, NOW), (datetime.date, NOW.date()), (datetime.time, datetime.time(1, 2, 3)),
    (datetime.timedelta, datetime.timedelta(days=2, microseconds=3)), (decimal.Decimal, decimal.Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=9)), (pathlib.Path, pathlib.Path("/a")), (pathlib.PurePosixPath, pathlib.PurePosixPath("b")),
    (typing.Literal["a", 1, None], 1), (int | str | None, None), (int | str | None, "a"), (typing.Optional[Node], Node(1)),  # noqa: UP045
    (float | int, 1), (int | float, 1.0), (typing.Annotated[int, ["unhashable"]], 3), (UserId, 4), (bytearray, bytearray(b"x")),
    (memoryview, memoryview(b"x")), (list[Node | int], [1, Node(2)]), (msgpack.Timestamp, msgpack.Timestamp(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "value"), SAME, ids=lambda item: text_of(item).partition(" at 0x")[0][:40])
def test_what_was_packed_comes_back(hint: Any, value: Any) -> None:
    found = converter(hint)(msgpack.unpackb(pack_typed(value), strict_map_key=False))
    assert found == value
    assert type(found) is type(value)


def test_what_other_languages_write() -> None:
    assert converter(float)(3) == 3.0
    assert type(converter(float)(3)) is float
    assert converter(datetime.datetime)("2026-01-02T03:04:05.678901Z") == NOW
    assert converter(Point)({"x": 1}) == Point(1.0)
    assert converter(Point)([1]) == Point(1.0)
    assert converter(Node)({"value": 1, "new_field": "of a newer sender"}) == Node(1)
    assert converter(decimal.Decimal)(3) == 3
    assert converter(datetime.timedelta)(3) == datetime.timedelta(seconds=3)


WRONG: list[tuple[Any, Any, str]] = [
    (int, "1", "expected int, got str '1'"),
    (int, True, "expected int, got bool True"),
    (int, 1.0, "expected int, got float 1.0"),
    (int, None, "expected int, got None"),
    (bool, 1, "expected bool, got int 1"),
    (float, "1", "expected float, got str '1'"),
    (float, True, "expected float, got bool True"),
    (float, 2**64, "expected float, got int"),
    (str, b"a", "expected str, got bytes b'a'"),
    (bytes, "a", "expected bytes, got str 'a'"),
    (memoryview, "a", "expected bytes, got str 'a'"),
    (list[int], [1, "x"], "$[1]: expected int"),
    (list[int], {"a": 1}, "expected list[int], got dict"),
    (dict[str, list[int]], {"a b": [1, None]}, "$['a b'][1]: expected int, got None"),
    (dict[str, int], {1: 1}, "$[1]: expected str, got int 1"),
    (dict[str, int], [], "expected dict[str, int], got list []"),
    (tuple[int, str], [1], "expected tuple[int, str], 2 items, got list [1]"),
    (tuple[int, str], [1, 2], "$[1]: expected str"),
    (set[int], [[1]], "$[0]: expected int"),
    (set, [[1]], "expected set: "),
    (Node, {"value": 1, "children": [{"value": 1}, {"value": "x"}]}, "$.children[1].value: expected int, got str 'x'"),
    (Node, {}, "expected Node, whose 'value' is missing"),
    (Node, [1], "expected Node (a map), got list [1]"),
    (typing.Optional[Node], {"value": None}, "$.value: expected int, got None"),  # noqa: UP045
    (Node | int, "x", "expected Node | int, got str 'x'"),
    (Positive, {"value": -1}, "Positive refuses it: not positive"),
    (list[Positive], [{"value": 1}, {"value": 0}], "$[1]: Positive refuses it: not positive"),
    (Point, [1, 2, 3], "expected Point, 2 items, got list [1, 2, 3]"),
    (Point, ["x"], "$.x: expected float"),
    (Options, {"b": "x"}, "expected Options, whose 'a' is missing"),
    (Mood, "bad", "expected Mood ('good', 2, [1, 2]), got str 'bad'"),
    (Mood, True, "expected Mood"),
    (Flags, 64, "expected Flags (as int), got 64"),
    (typing.Literal["a", 1], True, "expected 'a' | 1, got bool True"),
    (datetime.datetime, "2026-01-02T03:04:05", "it has no time zone"),
    (datetime.datetime, 5, "expected datetime (as Timestamp or str), got int 5"),
    (datetime.datetime, msgpack.Timestamp(2**60, 0), "expected datetime"),
    (datetime.date, "tomorrow", "expected date (as str), got 'tomorrow'"),
    (datetime.timedelta, 1e300, "expected timedelta"),
    (decimal.Decimal, "x", "expected Decimal (as str or int), got 'x'"),
    (decimal.Decimal, 1.5, "expected Decimal (as str or int), got float 1.5"),
    (uuid.UUID, "x", "expected UUID (as str), got 'x'"),
    (pathlib.Path, 1, "expected Path (as str), got int 1"),
]


@pytest.mark.parametrize(("hint", "value", "text"), WRONG, ids=lambda item: str(item)[:40])
def test_what_is_something_else_is_named_with_its_path(hint: Any, value: Any, text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        converter(hint)(value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "hint", [3, "int", print, complex, type("Plain", (), {}), list[complex], dict[str, complex], int | complex, Misnamed]
)
def test_a_hint_that_no_payload_can_become_is_refused_at_once(hint: Any) -> None:
    for _ in range(2):  # nothing of the first attempt is remembered
        with pytest.raises(TypeError):
            converter(hint)


def test_a_payload_that_is_deeper_than_python_goes_is_an_error_of_its_own() -> None:
    deep: dict[str, Any] = {"value": 1}
    for _ in range(600):
        deep = {"value": 1, "children": [deep]}
    with pytest.raises(PayloadError, match="nested too deeply for Node"):
        converter(Node)(deep)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"), (None, "None"), (type(None), "None"), (Any, "Any"), (list[int], "list[int]"), (typing.List[int], "list[int]"),  # noqa: UP006
        (typing.Optional[str], "str | None"), (int | None, "int | None"), (dict[str, list[Node]], "dict[str, list[Node]]"),  # noqa: UP045
        (typing.Literal["a", 2], "'a' | 2"), (tuple[int, ...], "tuple[int, ...]"), (typing.Annotated[int, 1], "int"), ("int", "'int'"),
    ],
)  # fmt: skip
def test_hints_as_text(hint: Any, text: str) -> None:
    assert text_of(hint) == text


def test_a_typed_lane_makes_messages_that_convert_and_others_are_untouched() -> None:
    plain, typed = Lane(1, "t", window_bytes=100), Lane(2, "t", window_bytes=100)
    typed.has_type(Point)
    assert (plain.make, plain.make_large) == (Message, LargeMessage)
    envelope = (Kind.PUBLISH.value, 3, "t", None, msgpack.packb([1, 2]))
    message = typed.make(envelope)
    assert isinstance(message, Message)
    assert (message.data, message.topic, message.payload) == (Point(1.0, 2.0), "t", envelope[4])
    assert plain.make(envelope).data == [1, 2]
    again = pickle.loads(pickle.dumps(message))
    assert (type(again), again.data, tuple(again)) == (Message, [1, 2], envelope)
    assert plain.make(envelope).as_type(tuple[int, int]) == (1, 2)
    with pytest.raises(PayloadError, match=r"^\$\[0\]: expected str, got int 1$"):
        plain.make(envelope).as_type(list[str])
    with pytest.raises(TypeError):
        plain.has_type(complex)


class Corner(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (dict[tuple[int, int], str], {(1, 2): "a"}),
        (dict[Corner, Any], {Corner(1, 2): [3]}),
        (dict[tuple[tuple[int, ...], str], int], {((1, 2), "a"): 3}),
        (dict[frozenset[int], list[int]], {frozenset({1, 2}): [3]}),
        (dict[Any, int], {(1, 2): 3}),
        (dict, {(1, 2): 3}),
    ],
)
def test_keys_that_are_arrays(hint: Any, value: Any) -> None:
    found = converter(hint)(decode_value(None, pack_typed(value)))
    assert found == value
    assert [type(key) for key in found] == [type(key) for key in value]


def test_keys_that_cannot_be_keys() -> None:
    with pytest.raises(PayloadError, match=r"expected dict\[list\[int\], int\]: unhashable"):
        converter(dict[list[int], int])({(1,): 1})
    with pytest.raises(PayloadError, match="expected int, got str"):
        converter(dict[tuple[int, int], str])({(1, "a"): "b"})


class Unknown(typing.TypedDict):
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


def test_a_typed_dict_with_unknown_names_is_no_good_hint() -> None:
    with pytest.raises(TypeError, match="Unknown: name 'Nowhere' is not defined"):
        converter(Unknown)


class RefusedError(Exception):
    """Of a user's own."""


@dataclasses.dataclass
class Checked:
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise RefusedError("below zero")


def test_a_class_refuses_with_what_it_likes() -> None:
    assert converter(list[Checked])([{"x": 1}]) == [Checked(1)]
    with pytest.raises(PayloadError, match=r"^\$\[1\]: Checked refuses it: below zero$"):
        converter(list[Checked])([{"x": 1}, {"x": -1}])
