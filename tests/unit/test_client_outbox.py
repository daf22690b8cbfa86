"""The client's outbox: the bytes of publications, and what becomes of them without a connection."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload
from ipcbus_client import BadName, Closed, OutboxFull, PayloadError
from ipcbus_client._frames import FLUSH_BYTES, envelopes_in
from ipcbus_client._heads import call_head
from ipcbus_client._outbox import Outbox
from ipcbus_client._waiting import Waiting


def outbox(peer: int = 7) -> Outbox:
    made = Outbox()
    made.opened(peer, 1000)
    return made


def written(made: Outbox) -> bytes:
    data = b""
    while made.unsent_bytes:
        chunk = bytes(made.chunk())
        made.wrote(len(chunk))
        data += chunk
    return data


@pytest.mark.parametrize(
    ("data", "options", "kind", "meta", "payload"),
    [
        (b"raw", {}, Kind.PUBLISH, 1, b"raw"),
        (b"", {}, Kind.PUBLISH, 1, b""),
        (bytearray(b"raw"), {}, Kind.PUBLISH, 1, b"raw"),
        (memoryview(b"raw"), {}, Kind.PUBLISH, 1, b"raw"),
        ({"a": [1, 2.5]}, {}, Kind.PUBLISH, None, msgpack.packb({"a": [1, 2.5]})),
        (None, {}, Kind.PUBLISH, None, b"\xc0"),
        ("text", {}, Kind.PUBLISH, None, b"\xa4text"),
        (b"kept", {"retain": True}, Kind.RETAIN, 1, b"kept"),
        (5, {"headers": {"h": 1}}, Kind.PUBLISH, {"h": 1}, b"\x05"),
        (b"x", {"headers": {"h": None}, "retain": True}, Kind.RETAIN, {"encoding": 1, "h": None}, b"x"),
        (5, {"headers": {}}, Kind.PUBLISH, None, b"\x05"),
    ],
)
def test_publish(data: Any, options: dict[str, Any], kind: Kind, meta: Any, payload: bytes) -> None:
    made = outbox()
    expected = encode_with_payload(payload, kind, 7, "a.b", meta)
    for times in (1, 2):  # the second comes from the cache
        assert made.publish("a.b", data, options.get("retain", False), options.get("headers"))
        assert made.unsent_bytes == times * len(expected)
    assert written(made) == expected * 2
    assert decode(expected).payload == payload


@pytest.mark.parametrize("topic", ["", "a..b", "a b", "*", "a.>", "$bus.x", "x" * 256, b"bytes", None, 5])
def test_illegal_topics(topic: Any) -> None:
    made = outbox()
    for retain in (False, True):
        with pytest.raises(BadName):
            made.publish(topic, 1, retain, None)
    assert made.unsent_bytes == 0


@pytest.mark.parametrize("data", [object(), {1: object}, 1j, 2**70, "\ud800", b"x" * 1001, "x" * 1001])
def test_illegal_payloads(data: Any) -> None:
    made = outbox()
    for headers in (None, {"h": 1}):
        with pytest.raises(PayloadError):
            made.publish("t", data, False, headers)
    assert made.publish("t", 1, False, None)
    assert made.unsent_bytes > 0


@pytest.mark.parametrize(
    "headers",
    [{"": 1}, {1: 1}, {"k": [1]}, {"k" * 65: 1}, {str(n): 1 for n in range(33)}, {"k": "v" * 5000}, {"encoding": 0}, {"k": 2**70}],
)
def test_illegal_headers(headers: Any) -> None:
    with pytest.raises(PayloadError):
        outbox().publish("t", 1, False, headers)


def test_send() -> None:
    made = outbox()
    made.send("name", 1, None)
    made.send(":42", b"x", {"h": 1})
    expected = encode_with_payload(b"\x01", Kind.SEND, 7, "name", None)
    assert written(made) == expected + encode_with_payload(b"x", Kind.SEND, 7, ":42", {"encoding": 1, "h": 1})
    for to in ("", "a/b", ":x", "bus", "bus.x", ":042"):
        with pytest.raises(BadName):
            made.send(to, 1, None)


def test_without_a_connection_values_wait_and_are_encoded_anew() -> None:
    made = Outbox()
    assert made.publish("a", b"1", False, None)  # the shell must look whether the bus is closed
    assert made.publish("b", 2, True, {"h": 1})
    made.send("n", 3, None)
    assert made.unsent_bytes == 0
    made.opened(300, 1000)
    expected = encode_with_payload(b"1", Kind.PUBLISH, 300, "a", 1) + encode_with_payload(b"\x02", Kind.RETAIN, 300, "b", {"h": 1})
    assert written(made) == expected + encode_with_payload(b"\x03", Kind.SEND, 300, "n", None)
    assert (len(made.waiting), made.waiting.bytes) == (0, 0)


def test_what_waits_is_bounded() -> None:
    made = Outbox()
    made.max_payload_bytes = 2 * made.waiting.max_bytes
    made.publish("a", bytes(made.waiting.max_bytes - 65), False, None)  # with its topic and 64 bytes
    for retain in (False, True):
        with pytest.raises(OutboxFull):
            made.publish("a", b"x", retain, None)
    assert made.opened(1, 1000) == 1  # too large for this bus
    made.publish("a", b"x", False, None)
    assert made.unsent_bytes > 0


def test_a_burst_is_left_alone_until_there_is_enough() -> None:
    made = outbox()
    made.max_payload_bytes = FLUSH_BYTES
    made.batching = True
    for payload in (b"x" * 100, "x" * 100, b"x" * 20_000, b"x" * FLUSH_BYTES):
        for way in (made.publish, lambda topic, data, *_: made.send("name", data, None)):
            count = 1
            while not way("topic", payload, False, None):
                count += 1
            assert count == 1 or FLUSH_BYTES * 0.6 < made.unsent_bytes <= FLUSH_BYTES
            written(made)
    made.batching = False
    assert made.publish("topic", b"x", False, None)


@pytest.mark.parametrize("identity", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**53 - 1])
@pytest.mark.parametrize("payload", [b"", b"x" * 300])
def test_heads_of_requests_and_replies_are_what_the_encoder_makes(identity: int, payload: bytes) -> None:
    for kind, to, rest in ((Kind.REQUEST, "a.name/method", (5000,)), (Kind.REPLY, ":300", ())):
        pack, before, lowest, highest, base, after, after_raw, note = call_head(identity, kind, 200, to, *rest, note=5.0)
        assert lowest <= identity <= highest
        assert note == 5.0
        for meta, end in ((None, after), (1, after_raw)):
            frame = pack(0xCE, base + len(payload), before, identity, end, len(payload)) + payload
            assert frame == encode_with_payload(payload, kind, 200, to, identity, *rest, meta)


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_what_the_kernel_never_had_is_sent_again_with_the_new_id(cut: int) -> None:
    made = outbox()
    made.put(encode(Kind.PING, 7, 1))
    for n in range(3):
        made.publish("t", bytes([n]), False, None)
    sizes = [len(encode(Kind.PING, 7, 1))] + [len(encode_with_payload(b"x", Kind.PUBLISH, 7, "t", 1))] * 3
    chunk = made.chunk()
    cut = min(cut, len(chunk) - 1)
    del chunk
    made.wrote(cut)
    made.publish("t", b"later", False, None)
    made.lost()
    assert made.unsent_bytes == 0
    made.publish("t", b"last", False, None)
    made.opened(200, 1000)
    begun = next(n for n in range(5) if sum(sizes[:n]) >= cut)  # frames of which the kernel had a byte
    again = [bytes([n]) for n in range(3)][max(begun - 1, 0) :]
    assert [envelope[-1] for envelope in envelopes_in(written(made), 0)] == [*again, b"later", b"last"]


def test_partial_writes() -> None:
    made = outbox()
    for n in range(50):
        made.publish("topic", bytes([n]) * n, False, None)
    whole = b"".join(made.out)
    data = b""
    while made.unsent_bytes:
        piece = bytes(made.chunk()[:17])
        made.wrote(len(piece))
        data += piece
        assert made.blocked or not made.unsent_bytes or made.out
    assert data == whole


def test_the_cache_of_heads_is_bounded_and_dropped_with_the_id() -> None:
    made = outbox()
    for n in range(9000):
        made.publish(f"t.{n}", b"x", False, None)
    assert made._heads_count <= 8192
    written(made)
    made.lost()
    made.opened(9, 1000)
    made.publish("t.8999", b"x", False, None)
    assert written(made) == encode_with_payload(b"x", Kind.PUBLISH, 9, "t.8999", 1)


def test_end_counts_what_was_never_sent() -> None:
    made = outbox()
    made.publish("t", 1, False, None)
    assert made.end(Closed("the end")) == 1
    assert made.end(Closed("the end")) == 0
    for late in (lambda: made.publish("t", 1, False, None), lambda: made.send("n", 1, None)):
        with pytest.raises(Closed, match="the end"):
            late()
    assert len(made.waiting) == 0


# --- a bus that does not read ---------------------------------------------------------------------

FRAME = len(encode_with_payload(bytes(100), Kind.PUBLISH, 7, "t", 1))
WAYS = {
    "publish": lambda made, size: made.publish("t", bytes(size), False, None),
    "retain": lambda made, size: made.publish("t", bytes(size), True, None),
    "send": lambda made, size: made.send("t", bytes(size), None),
}


def stuck(**limits: int) -> Outbox:
    """One of whose first message the kernel took a byte, and no more."""
    made = Outbox(Waiting("raise", **limits))
    made.opened(7, 100_000)
    made.publish("t", bytes(100), False, None)
    made.begin()
    made.wrote(1)
    made.stalled()
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("more", "fits"), [(-1, True), (0, True), (1, False)])
def test_bytes_for_a_bus_that_does_not_read_are_bounded(way: str, more: int, fits: bool) -> None:
    made = stuck(max_bytes=10 * FRAME - 1)
    for _ in range(8):
        made.publish("t", bytes(100), False, None)
        made.stalled()  # each finds the socket blocked
    assert made.unsent_bytes == 9 * FRAME - 1
    if fits:
        WAYS[way](made, FRAME + more)
    else:
        with pytest.raises(OutboxFull, match=f"does not read.*{FRAME + 1} bytes more") as caught:
            WAYS[way](made, FRAME + more)
        assert (caught.value.who, caught.value.what) == ("t", "send" if way == "send" else "publish")
        assert made.unsent_bytes == 9 * FRAME - 1
    assert made.undelivered().unsent == 8 + fits
    written(made)
    WAYS[way](made, 50_000)  # it reads: nothing is refused
    WAYS[way](made, 50_000)
    assert made.unsent_bytes > 100_000


@pytest.mark.parametrize(("count", "fits"), [(9, True), (10, True), (11, False)])
def test_messages_for_a_bus_that_does_not_read_are_bounded(count: int, fits: bool) -> None:
    made = stuck(max_messages=10)
    for _ in range(count - 2):
        made.publish("t", b"", False, None)
        made.stalled()
    if fits:
        made.publish("t", b"", False, None)
    else:
        with pytest.raises(OutboxFull, match="10 messages"):
            made.publish("t", b"", False, None)


def test_one_message_of_any_size_goes_to_a_bus_that_reads() -> None:
    made = Outbox(Waiting("raise", max_bytes=0, max_messages=0))
    made.opened(7, 100_000)
    for _ in range(3):
        made.publish("t", bytes(100_000), False, None)
        written(made)
    made.publish("t", b"", False, None)
    made.begin()
    made.stalled()
    with pytest.raises(OutboxFull):
        made.publish("t", b"", False, None)


def test_a_blocked_socket_alone_changes_nothing() -> None:
    made = stuck(max_bytes=100 * FRAME)
    made.publish("t", bytes(100), False, None)
    assert not made.tight
    assert made._heads_count
    made.lost()
    assert made.undelivered() == (1, 1)


def test_a_connection_that_ends_takes_the_bound_along() -> None:
    made = stuck(max_bytes=FRAME)
    assert made.tight
    made.lost()
    made.opened(8, 100_000)
    made.publish("t", bytes(100), False, None)
    made.publish("t", bytes(100), False, None)
    assert written(made) == encode_with_payload(bytes(100), Kind.PUBLISH, 8, "t", 1) * 2
