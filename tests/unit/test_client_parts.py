"""The core of streamed replies in the client: credit at both ends, and what bounds memory there. Literal frames, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Frame, Kind, decode, encode, encode_with_payload
from ipcbus.protocol.payloads import MAX_ELEMENTS, PayloadError
from ipcbus_client._errors import Closed, ConnectionLost, Refused, ServiceError
from ipcbus_client._greeting import FEATURES
from ipcbus_client._message import Request
from ipcbus_client._parts import Parted, is_generator
from ipcbus_client._refusal import refusal
from ipcbus_client._session import Session

INFO = {"software": "test", "max_frame_bytes": 100_000, "max_payload_bytes": 50_000, "max_credit_bytes": 10_000, "max_timeout_ms": 60_000}


def take(call: Any) -> Any:
    return call.value_of(call.next_part())


def connected(features: tuple[str, ...] = FEATURES, **info: Any) -> Session:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(encode(Kind.WELCOME, 0, 1, features, 7, b"i" * 16, {**INFO, **info}))
    sent(session)
    return session


def sent(session: Session) -> list[Frame]:
    """All that waits to be written, taken out."""
    data = b""
    while session.outbox.unsent_bytes:
        chunk = bytes(session.outbox.chunk())
        data += chunk
        session.outbox.wrote(len(chunk))
    found, at = [], 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        found.append(decode(data[at:end]))
        at = end
    return found


def part(call: Parted, sequence: int, payload: bytes = b"x", meta: Any = 1) -> bytes:
    return encode_with_payload(payload, Kind.PART, 9, ":7", call.id, sequence, meta)


def request(session: Session, meta: Any = None, payload: bytes = b"\xc0", identity: int = 5) -> Request:
    """A request that came, to svc/m, whose handler is found."""
    session.services.add("svc", "m", "handler")
    session.receive(encode_with_payload(payload, Kind.REQUEST, 9, "svc/m", identity, 1000, meta))
    return session.services.requests.pop()[1]


STREAM = {"stream": True}


def allow(size: int, identity: int = 5) -> bytes:
    return encode(Kind.ALLOW, 9, "svc/m", identity, size)


# --- the requester ---


def test_the_request_says_that_it_wants_parts_and_gives_credit_in_one_write() -> None:
    session = connected()
    call = session.streams.open("svc/m", {"a": 1}, {"k": 2}, 3.0, 1000)
    first, second = sent(session)
    assert first.elements == (Kind.REQUEST, 7, "svc/m", call.id, 3000, {"k": 2, "stream": True})
    assert msgpack.unpackb(first.payload) == {"a": 1}
    assert second.elements == (Kind.ALLOW, 7, "svc/m", call.id, 1000)


@pytest.mark.parametrize(("window", "credit"), [(9_999, 9_999), (10_000, 10_000), (10_001, 10_000)])
def test_the_window_is_at_most_what_the_bus_allows(window: int, credit: int) -> None:
    session = connected()
    session.streams.open("svc/m", None, None, 3.0, window)
    assert sent(session)[1].elements[4] == credit


def test_a_bus_without_parts_is_a_clear_error() -> None:
    session = connected(())
    with pytest.raises(Refused, match="feature `parts`") as caught:
        session.streams.open("svc/m", None, None, 3.0, 1000)
    assert caught.value.code == Code.UNSUPPORTED
    assert sent(session) == []
    assert session.calls == {}


@pytest.mark.parametrize("meta", [None, 1, {"encoding": 1}, {"k": "v" * 100}])
@pytest.mark.parametrize("sequence", [0, 127, 128, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_part_counts_as_much_as_its_frame(meta: Any, sequence: int, size: int) -> None:
    """Were it one byte more or less, the credit of a long stream would grow without end, or run out."""
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 1_000_000)
    frame = part(call, sequence, bytes(size), meta)
    session.receive(frame)
    assert call.lane.held_bytes == len(frame)


def test_credit_is_renewed_when_half_of_the_window_was_taken() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 4 * len(part(Parted(1, "", 1), 0)))
    sent(session)
    granted = 0
    for sequence in range(40):
        frame = part(call, sequence)
        session.receive(frame)
        assert take(call) == b"x"
        session.streams.grant(call)
        granted += sum(frame.elements[4] for frame in sent(session))
        assert 0 <= (sequence + 1) * len(frame) - granted < call.lane.window_bytes / 2
    call.lane.messages.clear()


def test_nothing_is_granted_while_nothing_is_taken() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 100)
    sent(session)
    for sequence in range(20):
        session.receive(part(call, sequence))
        session.streams.grant(call)
    assert sent(session) == []


def test_the_end_comes_after_the_values() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 1000)
    told: list[bool] = []
    call.notify = call.lane.notify = lambda: told.append(call.done)
    session.receive(part(call, 0, b"a") + part(call, 1, msgpack.packb([2]), None))
    session.receive(encode_with_payload(msgpack.packb("result"), Kind.REPLY, 9, ":7", call.id, None))
    assert told == [False, False, True]
    assert [take(call), take(call)] == [b"a", [2]]
    assert call.next_part() is None
    assert call.result() == "result"
    sent(session)
    session.streams.grant(call)
    assert sent(session) == []  # it has ended: no credit any more


def test_a_value_that_cannot_be_decoded_is_an_error_of_its_own() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 1000, lambda value: value + 1)
    session.receive(part(call, 0, b"\xc1", None) + part(call, 1, b"\x05", None))
    with pytest.raises(PayloadError):
        take(call)
    assert take(call) == 6


def test_close_cancels_once_and_late_parts_are_counted() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 1000)
    session.receive(part(call, 0))
    sent(session)
    session.streams.close(call)
    session.streams.close(call)
    assert [frame.elements for frame in sent(session)] == [(Kind.CANCEL, 7, "svc/m", call.id)]
    assert not call.lane.messages
    with pytest.raises(Closed):
        call.result()
    session.receive(part(call, 1))
    assert session.counters["late_replies"] == 1
    assert not call.lane.messages


def test_a_lost_connection_ends_it_at_once_and_what_came_stays() -> None:
    session = connected()
    call = session.streams.open("svc/m", None, None, 3.0, 1000)
    session.receive(part(call, 0))
    session.lost("cut", again=True)
    assert isinstance(call.error, ConnectionLost)
    assert take(call) == b"x"
    session.streams.close(call)
    assert session.outbox.unsent_bytes == 0


# --- the callee ---


def test_a_value_needs_credit_and_takes_as_much_as_its_frame() -> None:
    session = connected()
    production = session.services.production(request(session, STREAM))
    woken: list[int] = []
    production.wake = lambda: woken.append(production.credit)
    assert not production.ready
    session.receive(allow(10))
    assert production.ready
    assert production.put(b"v" * 100)
    (frame,) = sent(session)
    assert (frame.elements, frame.payload) == ((Kind.PART, 7, ":9", 5, 0, 1), b"v" * 100)
    assert production.credit == 10 - len(frame.raw)
    assert not production.ready
    session.receive(allow(len(frame.raw) - 10))
    assert not production.ready  # a debt paid to 0
    session.receive(allow(1))
    assert production.ready
    production.put({"n": 1})
    (frame,) = sent(session)
    assert frame.elements[4:] == (1, None)
    assert len(woken) == 3
    assert production.end("result") is None
    (frame,) = sent(session)
    assert (frame.elements, msgpack.unpackb(frame.payload)) == ((Kind.REPLY, 7, ":9", 5, None), "result")
    assert session.services.at_work == 0


def test_credit_may_come_before_the_handler_began_and_after_the_end() -> None:
    session = connected()
    session.receive(allow(100))  # for nothing that is known
    asked = request(session, STREAM)
    session.receive(allow(100))
    assert session.services.production(asked).ready
    session.services.reply(asked, 1)
    session.receive(allow(100))
    assert session.services.at_work == 0


@pytest.mark.parametrize("end", ["cancel", "lost", "stop"])
def test_whoever_makes_values_is_woken_when_nobody_wants_them(end: str) -> None:
    session = connected()
    asked = request(session, STREAM)
    production = session.services.production(asked)
    woken: list[bool] = []
    production.wake = lambda: woken.append(session.services.wants(asked))
    if end == "cancel":
        session.receive(encode(Kind.CANCEL, 9, "svc/m", 5))
    elif end == "lost":
        session.lost("cut", again=True)
    else:
        session.services.stop_producing()
    assert woken == [False]
    assert asked.cancelled
    assert not production.put(1)
    assert production.end(2) is None
    assert session.outbox.unsent_bytes == 0


def test_values_that_nobody_asked_for_one_by_one_are_one_list() -> None:
    session = connected()
    production = session.services.production(request(session))
    assert production.ready
    for value in (1, b"raw", {"a": None}, bytearray(b"more"), "text"):
        assert not production.put(value)
    assert session.outbox.unsent_bytes == 0
    production.end("ignored")
    (frame,) = sent(session)
    assert (frame.kind, msgpack.unpackb(frame.payload)) == (Kind.REPLY, [1, b"raw", {"a": None}, b"more", "text"])


@pytest.mark.parametrize(("last", "fits"), [(989, True), (990, True), (991, False)])
def test_the_list_is_bounded_by_what_a_reply_carries(last: int, fits: bool) -> None:
    """1000 bytes of payload, 5 of them for the array's header; a bin over 255 bytes has 3 of header."""
    session = connected(max_payload_bytes=1000)
    production = session.services.production(request(session))
    production.put(0)
    production.put(0)
    if fits:
        production.put(bytes(last))
        production.end(None)
        (frame,) = sent(session)
        assert frame.payload_size <= 1000
    else:
        with pytest.raises(PayloadError, match=r"995 bytes.*ask with stream\(\)"):
            production.put(bytes(last))


@pytest.mark.parametrize(("count", "fits"), [(MAX_ELEMENTS - 2, True), (MAX_ELEMENTS - 1, True), (MAX_ELEMENTS, False)])
def test_the_list_has_no_more_elements_than_a_requester_takes(count: int, fits: bool) -> None:
    session = connected(max_payload_bytes=16 << 20, max_frame_bytes=17 << 20)
    production = session.services.production(request(session))
    production._values = [b"\x00"] * (count - 1)
    if fits:
        production.put(0)
        production.end(None)
        (frame,) = sent(session)
        assert Request((0, 0, "", 0, 0, None, frame.payload), 0).data == [0] * count
    else:
        with pytest.raises(PayloadError, match="ask with"):
            production.put(0)


def test_what_cannot_be_sent_is_an_error_of_the_value() -> None:
    session = connected()
    production = session.services.production(request(session, STREAM))
    production.allow(1000)
    with pytest.raises(PayloadError):
        production.put(object())
    assert production.credit == 1000


def test_a_generator_is_told_from_other_answers() -> None:
    def values() -> Iterator[int]:
        yield 1

    async def more() -> Any:
        yield 1

    assert [is_generator(value) for value in (values(), more(), [1], iter([1]), "text", range(3), None)] == [True, True, *[False] * 5]
    session = connected()
    made: list[Any] = []
    session.services.on_generator = lambda asked, generator: made.append((asked.id, list(generator)))
    assert session.services.answer(request(session), values()) is None
    assert made == [(5, [1])]
    assert session.services.answer(request(session, identity=6), iter([1])) is not None


# --- how much may wait for handlers ---


@pytest.mark.parametrize(("size", "refused"), [(299, False), (300, False), (301, True)])
def test_requests_that_wait_are_bounded_in_bytes(size: int, refused: bool) -> None:
    session = connected(max_payload_bytes=500)
    session.services.max_bytes = 1000
    first = request(session, 1, bytes(700), 1)
    session.receive(encode_with_payload(bytes(size), Kind.REQUEST, 9, "svc/m", 2, 1000, 1))
    assert session.counters["overloaded"] == refused
    answers = sent(session)
    if not refused:
        assert answers == []
        return
    (frame,) = answers
    assert (frame.kind, frame.elements[3:5]) == (Kind.ERROR, (2, "overloaded"))
    assert "1001 at work" in frame.elements[5]
    assert not session.services.requests
    session.services.reply(first, None)
    sent(session)  # there is room again
    assert request(session, 1, bytes(1000), 3).id == 3
    assert session.counters["overloaded"] == 1


@pytest.mark.parametrize(("size", "refused"), [(-1, False), (0, False), (1, True)])
def test_answers_that_the_bus_does_not_take_count_too(size: int, refused: bool) -> None:
    session = connected(max_payload_bytes=5000)
    session.services.max_bytes = 10_000
    session.services.reply(request(session, 1, b"", 1), bytes(4000))
    session.receive(encode_with_payload(bytes(6000 + size), Kind.REQUEST, 9, "svc/m", 2, 1000, 1))
    assert session.counters["overloaded"] == refused
    assert len(session.services.requests) == (not refused)
    sent(session)
    session.services.lost()
    assert request(session, 1, bytes(9000), 3).id == 3  # it was taken


@pytest.mark.parametrize(("size", "refused"), [(299, False), (300, False), (301, True)])
def test_lists_of_values_that_are_being_made_count_too(size: int, refused: bool) -> None:
    session = connected(max_payload_bytes=500)
    session.services.max_bytes = 1000
    first, second = (session.services.production(request(session, None, b"\xc0", identity)) for identity in (1, 2))
    first.put(bytes(397))  # packed, 400
    second.put(bytes(295))  # 298, and the two requests' payloads, of a byte each
    third = session.services.production(request(session, None, b"", 3))
    if refused:
        with pytest.raises(ServiceError, match="overloaded"):
            third.put(bytes(size - 3))
    else:
        third.put(bytes(size - 3))
    assert session.counters["overloaded"] == refused


@pytest.mark.parametrize(("size", "refused"), [(599, False), (600, False), (601, True)])
def test_two_of_the_largest_requests_may_always_wait(size: int, refused: bool) -> None:
    session = connected(max_payload_bytes=600)
    session.services.max_bytes = 1000
    request(session, 1, bytes(600), 1)
    session.receive(encode_with_payload(bytes(size), Kind.REQUEST, 9, "svc/m", 2, 1000, 1))
    assert session.counters["overloaded"] == refused


def test_what_was_answered_does_not_count() -> None:
    session = connected(max_payload_bytes=500)
    session.services.max_bytes = 1000
    for identity in range(1, 20):
        session.services.reply(request(session, 1, bytes(900), identity), None)
        sent(session)
    for identity in range(20, 30):
        asked = request(session, 1, bytes(900), identity)
        session.services.refuse(asked, refusal(asked, ServiceError("no", "no")))
        sent(session)
    for identity in range(30, 40):
        request(session, 1, bytes(900), identity)
        session.receive(encode(Kind.CANCEL, 9, "svc/m", identity))
    assert session.counters["overloaded"] == 0
