"""What goes into a payload besides msgpack's own types, and what is said of what cannot."""

from __future__ import annotations

import array
import ctypes
import dataclasses
import datetime
import decimal
import enum
import pathlib
import uuid
from typing import Any, NamedTuple

import msgpack
import pytest

from ipcbus.protocol.payloads import RAW, PayloadError
from ipcbus_client._outbox import Outbox
from ipcbus_client._packing import DEPTH_MAX, INT_MAX, INT_MIN, as_bytes, moment, pack_typed

UTC = datetime.timezone.utc  # noqa: UP017  # as users of older Pythons write it
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Mood(enum.Enum):
    GOOD = "good"
    LONG = uuid.UUID(int=7)


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Reading:
    room: str
    celsius: float
    more: Any = None
    made: int = dataclasses.field(default=3, init=False)


@dataclasses.dataclass(slots=True)
class Slotted:
    value: int


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(3, 4, 5, 6), "03:04:05.000006"),
        (datetime.timedelta(days=1, milliseconds=5), 86400.005),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.Path("/a/b"), "/a/b"),
        (Mood.GOOD, "good"),
        (Mood.LONG, "00000000-0000-0000-0000-000000000007"),
        (Level.LOW, 1),
        ({1}, [1]),
        (frozenset({"a"}), ["a"]),
        (Point(1, 2), [1, 2]),
        (Reading("hall", 21.5), {"room": "hall", "celsius": 21.5, "more": None, "made": 3}),
        (Slotted(2), {"value": 2}),
        ({"list": [Reading("a", 1.0, more={Slotted(1).value: (Mood.GOOD,)})]},
         {"list": [{"room": "a", "celsius": 1.0, "more": {1: ["good"]}, "made": 3}]}),
        (array.array("B", b"abc"), b"abc"),
        ([memoryview(b"abc")], [b"abc"]),
        ({Mood.GOOD: 1}, {"good": 1}),
    ],
)  # fmt: skip
def test_forms(value: Any, form: Any) -> None:
    assert msgpack.unpackb(pack_typed(value), strict_map_key=False) == form


@pytest.mark.parametrize(
    "when",
    [
        MOMENT,
        datetime.datetime(1960, 1, 1, 0, 0, 0, 500_001, tzinfo=UTC),
        datetime.datetime(1, 1, 1, tzinfo=UTC),
        datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=45))),
    ],
)
def test_an_aware_datetime_is_a_timestamp_to_the_microsecond(when: datetime.datetime) -> None:
    stamp = msgpack.unpackb(pack_typed([when]))[0]
    assert type(stamp) is msgpack.Timestamp
    assert moment(stamp) == when
    assert moment(stamp).tzinfo is UTC


def test_numbers_at_the_limits() -> None:
    for value in (INT_MIN, INT_MAX, float("nan"), float("inf"), -0.0):
        assert repr(msgpack.unpackb(pack_typed(value))) == repr(value)
    for value in (INT_MIN - 1, INT_MAX + 1, 10**30):
        with pytest.raises(PayloadError, match=rf"^\$\.x: cannot pack an int of {value.bit_length()} bits"):
            pack_typed({"x": value})
        with pytest.raises(PayloadError, match=r"^cannot pack an int"):
            pack_typed(value)


class Unset:
    __slots__ = ("value",)
    __dataclass_fields__ = Slotted.__dataclass_fields__


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), "cannot pack object"),
        ({"rooms": [1, 2, 3, {"sensor": object()}]}, "$.rooms[3].sensor: cannot pack object"),
        ([Reading("a", 1.0, more={3: {"a b": (1, object())}})], "$[0].more[3]['a b'][1]: cannot pack object"),
        ({"a": {1, object}}, "cannot pack type"),
        ({"when": datetime.datetime(2026, 1, 2)}, "$.when: cannot pack a datetime without a time zone"),
        ({"x": "\ud800"}, "$.x: cannot pack a str with surrogates"),
        ({"\ud800": 1}, "$ (key '\\ud800'): cannot pack a str with surrogates"),
        ([1j], "$[0]: cannot pack complex"),
        ([memoryview(b"abcdef")[::2]], "$[0]: cannot pack a memoryview that is not contiguous"),
        ([Unset()], "$[0]: cannot pack Unset: "),
    ],
)
def test_what_cannot_be_packed_is_named_with_its_path(value: Any, text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        pack_typed(value)
    assert text in str(caught.value)


def test_a_cycle_and_a_depth_are_named() -> None:
    cycle: list[Any] = [1]
    cycle.append({"again": cycle})
    with pytest.raises(PayloadError, match=r"^\$\[1\]\.again: cannot pack list: it contains itself"):
        pack_typed(cycle)
    reading = Reading("a", 1.0)
    reading.more = [reading]
    with pytest.raises(PayloadError, match=r"^\$\.more\[0\]: cannot pack Reading: it contains itself"):
        pack_typed(reading)
    deep: Any = 1
    for _ in range(DEPTH_MAX + 100):
        deep = [deep]
    with pytest.raises(PayloadError, match="cannot pack list: it is nested deeper than") as caught:
        pack_typed(deep)
    assert len(str(caught.value)) < 400  # the path is clipped
    shared = [1]
    assert msgpack.unpackb(pack_typed([shared, shared, {1}])) == [[1], [1], [1]]  # twice is no cycle


def test_a_view_of_whole_bytes_is_not_copied_and_anything_else_is() -> None:
    data = b"x" * 100
    assert as_bytes(memoryview(data)) is data
    for view in (memoryview(data)[1:], memoryview(bytearray(data)), memoryview(bytes(range(100)))[::-1]):
        assert as_bytes(view) == bytes(view)
    changing = bytearray(b"abc")
    kept = as_bytes(changing)
    changing[0] = 0
    assert kept == b"abc"


def outbox() -> Outbox:
    made = Outbox()
    made.opened(7, 1000)
    return made


def test_the_outbox_packs_them_on_each_of_its_ways() -> None:
    box = outbox()
    box.publish("t", Reading("a", 1.0), False, None)
    assert msgpack.unpackb(box.out[-1])["room"] == "a"
    box.publish("t", Reading("b", 1.0), True, {"k": 1})
    assert msgpack.unpackb(box.out[-1])["room"] == "b"
    box.send("name", [Mood.GOOD], None)
    assert msgpack.unpackb(box.out[-1]) == ["good"]
    assert box.encode(memoryview(b"raw"), None) == (RAW, b"raw")
    count = len(box.out)
    for headers in (None, {"k": 1}):
        with pytest.raises(PayloadError, match=r"^\$\.a: cannot pack object"):
            box.publish("t", {"a": object()}, False, headers)
        with pytest.raises(PayloadError, match=r"^\$\[0\]: cannot pack a memoryview"):
            box.publish("t", [memoryview(b"abc")[::2]], False, headers)
    assert len(box.out) == count  # nothing was sent


def test_code_of_a_user_that_runs_while_a_value_is_packed_may_publish() -> None:
    box = outbox()

    class Talks:
        def __fspath__(self) -> str:
            box.publish("inner", ["inner"], False, None)
            return "outer"

    box.publish("outer", [Talks()], False, None)
    assert [msgpack.unpackb(payload) for payload in box.out[1::2]][-1] == ["outer"]
    assert ["inner"] in [msgpack.unpackb(payload) for payload in box.out[1::2]]


def test_a_scalar_of_numpy_is_a_number_and_its_array_bytes() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    assert msgpack.unpackb(pack_typed([numpy.int64(3), numpy.float32(0.5)])) == [3, 0.5]
    assert msgpack.unpackb(pack_typed(numpy.arange(3, dtype="u1"))) == b"\0\1\2"


def test_the_bytes_of_a_buffer_of_objects_are_no_value() -> None:
    for kind in (ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)):
        with pytest.raises(PayloadError, match=r"^\$\.frame: cannot pack .*_Array_2 of objects"):
            pack_typed({"frame": (kind * 2)()})
    assert msgpack.unpackb(pack_typed((ctypes.c_uint8 * 2)(1, 2))) == b"\1\2"


@pytest.mark.parametrize("options", [{"retain": True}, {"headers": {"a": 1}}, {"retain": False, "headers": None}])
def test_a_value_is_packed_once_by_its_forms(options: dict[str, Any]) -> None:
    class Place:
        asked = 0

        def __fspath__(self) -> str:
            self.asked += 1
            return "/a"

    place = Place()
    outbox = Outbox()
    outbox.opened(7, 1 << 20)
    outbox.publish("a", [place], **{"retain": False, "headers": None, **options})
    assert place.asked == 1


class Detached(Exception):  # noqa: N818
    """What an object of a database raises when it is looked at too late."""

    def __str__(self) -> str:
        return "too late"


class Lazy(dict[str, Any]):
    def items(self) -> Any:
        raise Detached


@dataclasses.dataclass
class Row:
    name: str

    def __getattribute__(self, name: str) -> Any:
        if name == "name":
            raise Detached
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"row": Row("x")}, r"^\$\.row: cannot pack Row: too late$"),
        ([1, Lazy()], r"^cannot pack list: too late$"),
        (Lazy(), "^cannot pack Lazy: too late$"),
    ],
)
def test_user_code_that_fails_in_packing_is_a_payload_error(value: Any, text: str) -> None:
    outbox = Outbox()
    outbox.opened(7, 1 << 20)
    for retain in (False, True):
        with pytest.raises(PayloadError, match=text) as caught:
            outbox.publish("a", value, retain, None)
        assert isinstance(caught.value.__cause__, Detached)
    assert outbox.out == []
