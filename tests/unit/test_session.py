"""The client's core, driven with literal frames: what the bus would send goes in, what is in the outbox is compared byte for byte."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.auth import proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Frame, Kind, decode, encode, encode_with_payload
from ipcbus.protocol.payloads import PayloadError
from ipcbus_client._errors import Closed, ConnectError, ConnectionLost, Expired, NoSuchName, RequestError, ServiceError
from ipcbus_client._greeting import FEATURES
from ipcbus_client._lanes import INBOX, Lane
from ipcbus_client._message import Request
from ipcbus_client._refusal import refusal
from ipcbus_client._session import INBOX_MAX_BYTES, Session
from ipcbus_client._state import State

INFO = {"software": "test", "max_frame_bytes": 100_000, "max_payload_bytes": 50_000, "max_timeout_ms": 60_000}
WELCOME = encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, INFO)


def frames(data: bytes | bytearray) -> list[Frame]:
    found = []
    at = 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        found.append(decode(bytes(data[at:end])))
        at = end
    return found


def sent(session: Session) -> list[Frame]:
    """All that waits to be written, taken out."""
    data = b""
    while session.outbox.unsent_bytes:
        chunk = bytes(session.outbox.chunk())
        data += chunk
        session.outbox.wrote(len(chunk))
    return frames(data)


def elements(session: Session) -> list[tuple[Any, ...]]:
    return [(*frame.elements, *([frame.payload] if frame.payload_size else [])) for frame in sent(session)]


def connected(welcome: bytes = WELCOME) -> Session:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(welcome)
    sent(session)
    assert session.state is State.CONNECTED
    return session


def subscribed(session: Session, pattern: str = "a.>", **options: Any) -> Lane:
    lane = Lane(session.new_id(), pattern, **{"window_bytes": 1000, **options})
    session.declarations.subscribe(lane)
    (request,) = sent(session)
    session.receive(reply(request.elements[3], {"retained": 0}))
    return lane


def reply(identity: int, value: Any = None, meta: Any = None) -> bytes:
    return encode_with_payload(msgpack.packb(value), Kind.REPLY, 0, ":7", identity, meta)


def error(identity: int, code: int | str, text: str = "why", value: Any = None, sender: int = 0) -> bytes:
    return encode_with_payload(b"" if value is None else msgpack.packb(value), Kind.ERROR, sender, ":7", identity, code, text, None)


def message(topic: str, payload: bytes, kind: Kind = Kind.PUBLISH, meta: Any = 1) -> bytes:
    return encode_with_payload(payload, kind, 9, topic, meta)


# --- handshake ---


def test_unix_hello_and_declarations_are_one_write() -> None:
    session = Session(program="prog", library="lib")
    own = session.declarations.own("me", "exclusive", False, False)
    lane = Lane(session.new_id(), "t", window_bytes=100)
    subscribe = session.declarations.subscribe(lane)
    session.opened()
    hello, first, second = sent(session)
    assert hello.elements == (1, 0, 1, 1, FEATURES, {"program": "prog", "library": "lib"}, None)
    assert first.elements[1:3] == (0, "bus/own")
    assert second.elements[1:3] == (0, "bus/subscribe")
    assert msgpack.unpackb(second.payload) == {"pattern": "t", "lane": lane.number, "retained": True, "credit": 100}
    session.receive(WELCOME + reply(first.elements[3], {"owner": True, "position": 0}) + reply(second.elements[3], {"retained": 0}))
    assert session.state is State.CONNECTED
    assert session.peer == 7
    assert own.done
    assert own.result() == {"owner": True, "position": 0}
    assert subscribe.done


def test_tcp_proves_both_sides_and_declares_after_welcome() -> None:
    session = Session(program="p", library="l")
    session.declarations.own("me", "exclusive", False, False)
    secret, nonce, theirs = b"s" * 32, b"n" * 32, b"m" * 32
    session.opened(secret=secret, nonce=nonce, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
    (hello,) = sent(session)
    envelope = hello.raw[5:]
    bus = proof(secret, "bus", envelope, 1, [], theirs, "127.0.0.1:1", "127.0.0.1:2")
    session.receive(encode(Kind.CHALLENGE, 0, 1, [], theirs, bus))
    (answer,) = sent(session)
    assert answer.elements == (3, 0, proof(secret, "client", envelope, 1, [], theirs, "127.0.0.1:1", "127.0.0.1:2"))
    session.receive(WELCOME)
    (own,) = sent(session)
    assert own.elements[1:3] == (7, "bus/own")


def test_wrong_proof_ends_the_bus_and_says_nothing() -> None:
    session = Session(program="p", library="l")
    session.opened(secret=b"s" * 32, nonce=b"n" * 32, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
    sent(session)
    session.receive(encode(Kind.CHALLENGE, 0, 1, [], b"m" * 32, b"x" * 32))
    assert sent(session) == []
    assert session.hangup is not None
    session.lost(session.hangup, again=session.error is None)
    assert session.state is State.CLOSED
    with pytest.raises(ConnectError, match="secret"):
        session.check_open()


def test_who_lets_us_in_without_its_proof_is_refused_at_once_and_after_a_reconnect_waited_for() -> None:
    session = on_tcp()
    session.receive(WELCOME)
    assert session.hangup is not None
    session.lost(session.hangup, again=session.error is None)
    with pytest.raises(ConnectError, match="without showing that it holds the secret") as caught:
        session.check_open()
    assert caught.value.reason == "secret"

    session = connected()
    session.remarks.clear()
    for times in (1, 2):
        session.lost("cut", again=True)
        session.opened(secret=b"s" * 32, nonce=b"n" * 32, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
        session.receive(WELCOME)
        assert session.hangup is not None
        session.lost(session.hangup, again=session.error is None)
        assert (session.state, times) == (State.RECONNECTING, times)
    assert [remark.text for remark in session.remarks if "another program has this address" in remark.text][1:] == []
    session.opened()
    session.receive(WELCOME)
    assert session.state is State.CONNECTED


def test_challenge_on_unix_is_the_end_of_the_connection() -> None:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(encode(Kind.CHALLENGE, 0, 1, [], b"m" * 32, b"x" * 32))
    assert session.hangup is not None


def on_tcp() -> Session:
    session = Session(program="p", library="l")
    session.declarations.own("me", "exclusive", False, False)
    session.outbox.publish("secret.topic", b"private", False, None)
    session.opened(secret=b"s" * 32, nonce=b"n" * 32, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
    sent(session)
    return session


def on_unix() -> Session:
    session = Session(program="p", library="l")
    session.opened()
    sent(session)
    return session


def challenge() -> bytes:
    hello = encode(Kind.HELLO, 0, 1, 1, FEATURES, {"program": "p", "library": "l"}, b"n" * 32)[5:]
    shown = proof(b"s" * 32, "bus", hello, 1, [], b"m" * 32, "127.0.0.1:1", "127.0.0.1:2")
    return encode(Kind.CHALLENGE, 0, 1, [], b"m" * 32, shown)


OF_A_READY_BUS = {
    "ping": encode(Kind.PING, 0, 1),
    "pong": encode(Kind.PONG, 0, 1),
    "publish": encode_with_payload(b"x", Kind.PUBLISH, 9, "t", 1),
    "retain": encode_with_payload(b"x", Kind.RETAIN, 9, "t", 1),
    "send": encode_with_payload(b"x", Kind.SEND, 9, "me", 1),
    "request": encode_with_payload(b"x", Kind.REQUEST, 9, "me/do", 1, 1000, 1),
    "reply": encode_with_payload(b"", Kind.REPLY, 0, ":7", 1, None),
    "error": encode_with_payload(b"", Kind.ERROR, 0, ":7", 1, 20, "", None),
    "cancel": encode(Kind.CANCEL, 9, "me/do", 1),
    "lane": encode(Kind.LANE, 0, 1),
    "notice": encode_with_payload(b"\x80", Kind.NOTICE, 0, "lost", None),
    "unknown kind": b"\xce\x00\x00\x00\x03\x92\x63\x00",
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("frame", OF_A_READY_BUS.values(), ids=OF_A_READY_BUS)
@pytest.mark.parametrize("begun", ["unix", "tcp", "proved"])
def test_before_welcome_the_bus_has_nothing_to_say(begun: str, frame: bytes, times: int) -> None:
    session = on_unix() if begun == "unix" else on_tcp()
    if begun == "proved":
        session.receive(challenge())
        assert [kind for kind, *_ in elements(session)] == [Kind.PROOF]
    called: list[int] = []
    session.on_requests = lambda: called.append(1)
    session.receive(frame * times + WELCOME)
    assert session.hangup is not None
    assert session.state is State.CONNECTING
    assert (elements(session), called, session.inbox, len(session.services.requests)) == ([], [], None, 0)
    assert len(session.outbox.waiting) == (0 if begun == "unix" else 1)


@pytest.mark.parametrize("split", [False, True])
def test_on_tcp_a_welcome_without_a_challenge_gets_nothing(split: bool) -> None:
    session = on_tcp()
    for part in (WELCOME[:9], WELCOME[9:]) if split else (WELCOME,):
        session.receive(part)
    assert session.hangup is not None
    assert "H-5" in session.hangup
    assert session.state is State.CONNECTING
    assert elements(session) == []


def test_on_tcp_challenge_and_welcome_may_come_in_one_read() -> None:
    session = on_tcp()
    session.receive(challenge() + WELCOME + encode(Kind.PING, 0, 5))
    assert session.hangup is None
    assert [frame[0] for frame in elements(session)] == [Kind.PROOF, Kind.REQUEST, Kind.PUBLISH, Kind.PONG]


def test_a_second_challenge_is_the_end_of_the_connection() -> None:
    session = on_tcp()
    session.receive(challenge())
    sent(session)
    session.receive(challenge())
    assert session.hangup is not None
    assert elements(session) == []


def test_bye_may_come_at_any_time() -> None:
    for session in (on_unix(), on_tcp()):
        session.receive(encode(Kind.BYE, 0, Code.TOO_MANY_PEERS.value, "full"))
        assert session.hangup == "the bus said too_many_peers: full"
        assert session.said_bye == Code.TOO_MANY_PEERS


@pytest.mark.parametrize("frame", [WELCOME, encode(Kind.CHALLENGE, 0, 1, [], b"m" * 32, b"x" * 32)], ids=["welcome", "challenge"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_handshake_is_over_after_welcome(frame: bytes, times: int) -> None:
    session = connected()
    session.receive(frame * times)
    assert session.hangup is not None
    assert session.epoch == 0


@pytest.mark.parametrize(
    "elements_of",
    [(0, 1, [], 0, b"i" * 16, {}), (0, 1, [], "7", b"i" * 16, {}), (0, 1, [], 7, "i", {}), (0, 1, [], 7, b"i" * 16, []), (0, 1)],
)
def test_a_malformed_welcome_is_the_end_of_the_connection(elements_of: tuple[Any, ...]) -> None:
    session = on_unix()
    envelope = msgpack.packb([4, *elements_of])
    session.receive(b"\xce" + len(envelope).to_bytes(4, "big") + envelope)
    assert session.hangup is not None
    assert session.state is State.CONNECTING


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        (Code.SHUTTING_DOWN, False),
        (Code.SLOW_READER, False),
        (Code.OVER_QUOTA, False),
        (Code.BAD_VERSION, True),
        (Code.FORGED_SENDER, True),
        (Code.AUTH_FAILED, False),  # H-14: the secret was replaced, and its file is read again
    ],
)
def test_bye(code: Code, ends: bool) -> None:
    session = connected()
    session.receive(encode(Kind.BYE, 0, code.value, "text"))
    assert session.hangup is not None
    assert (session.error is not None) is ends


def test_who_does_not_get_in_does_not_try_again() -> None:
    session = on_tcp()
    session.receive(encode(Kind.BYE, 0, Code.AUTH_FAILED.value, "text"))
    assert isinstance(session.error, ConnectError)
    assert session.error.reason == "secret"


@pytest.mark.parametrize("code", [Code.AUTH_FAILED, Code.DENIED, Code.BAD_VERSION, 99])
def test_who_took_the_port_of_our_bus_cannot_end_us_by_bye(code: int) -> None:
    """On TCP, before its proof: it may be anybody, and the bus may come back. After the proof it is the bus."""
    session = connected()
    session.remarks.clear()
    for _ in range(2):
        session.lost("cut", again=True)
        session.opened(secret=b"s" * 32, nonce=b"n" * 32, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
        session.receive(encode(Kind.BYE, 0, int(code), "go"))
        assert session.hangup is not None
        assert session.error is None
        session.lost(session.hangup, again=True)
        assert session.state is State.RECONNECTING
    assert len([remark.text for remark in session.remarks if "looking again until the bus is back" in remark.text]) == 1

    secret, nonce, theirs = b"s" * 32, b"n" * 32, b"m" * 32
    session.opened(secret=secret, nonce=nonce, bus_address="127.0.0.1:1", client_address="127.0.0.1:2")
    hello = sent(session)[-1].raw[5:]
    shown = proof(secret, "bus", hello, 1, [], theirs, "127.0.0.1:1", "127.0.0.1:2")
    session.receive(encode(Kind.CHALLENGE, 0, 1, [], theirs, shown))
    session.receive(encode(Kind.BYE, 0, int(code), "go"))
    assert isinstance(session.error, ConnectError)


# --- receiving ---


def stream(session: Session) -> tuple[Lane, Lane, bytes]:
    one, two = subscribed(session, "a.>"), subscribed(session, "b")
    data = encode(Kind.LANE, 0, one.number) + b"".join(message("a.x", bytes([n])) for n in range(40))
    data += encode(Kind.LANE, 0, two.number) + message("b", b"!", Kind.RETAIN) + encode(Kind.LANE, 0, one.number)
    data += message("a.y", b"x" * 300, meta={"h": 1, "encoding": 1}) + encode(Kind.PING, 0, 5)
    data += message("a.z", msgpack.packb([1]), meta=None)
    return one, two, data


def check_stream(session: Session, one: Lane, two: Lane) -> None:
    assert [m.payload for m in one.messages] == [bytes([n]) for n in range(40)] + [b"x" * 300, b"\x91\x01"]
    assert [(m.topic, m.sender, m.retained) for m in two.messages] == [("b", 9, True)]
    assert one.messages[40].headers == {"h": 1}
    assert one.messages[40].data == b"x" * 300
    assert one.messages[41].data == [1]
    assert one.messages[41].encoding is None
    assert (6 + 1, 7, 5) in elements(session)
    assert session.hangup is None


def test_lanes_whole() -> None:
    session = connected()
    one, two, data = stream(session)
    session.receive(data)
    check_stream(session, one, two)


def test_lanes_byte_by_byte() -> None:
    session = connected()
    one, two, data = stream(session)
    for n in range(len(data)):
        session.receive(data[n : n + 1])
    check_stream(session, one, two)


@pytest.mark.parametrize("seed", range(20))
def test_lanes_at_random_splits(seed: int) -> None:
    session = connected()
    one, two, data = stream(session)
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size = dice.randint(1, 400)
        session.receive(data[at : at + size])
        at += size
    check_stream(session, one, two)


def test_frames_that_come_one_by_one() -> None:
    session = connected()
    one, two = subscribed(session, "a.>"), subscribed(session, "b")
    call = session.request("svc/do", 1, None, 1.0)
    for frame in (
        encode(Kind.LANE, 0, one.number), message("a.x", b"1"), message("a.x", b"2", Kind.RETAIN), reply(call.id, "answer"),
        encode(Kind.LANE, 0, two.number), message("b", b"3"), encode(Kind.LANE, 0, 99), message("b", b"4"), message("b", b"5") * 2,
    ):  # fmt: skip
        session.receive(frame)
    assert [m.payload for m in one.messages] == [b"1", b"2"]
    assert [m.payload for m in two.messages] == [b"3"]
    assert call.result() == "answer"
    assert session.hangup is None
    assert session.counters["received"] == 3 + 10


def test_reads_with_many_lanes_give_each_its_own_and_what_it_costs() -> None:
    session = connected()
    lanes = [subscribed(session, f"t.{n}", window_bytes=10_000) for n in range(5)]
    data, cost = b"", [0] * 5
    for n in range(200):
        data += encode(Kind.LANE, 0, lanes[n % 5].number)
        for _ in range(1 + n % 3):
            frame = message("t", bytes([n]) * n)
            data += frame
            cost[n % 5] += len(frame)
    session.receive(data)
    for number, lane in enumerate(lanes):
        wanted = [bytes([n]) * n for n in range(number, 200, 5) for _ in range(1 + n % 3)]
        assert [m.payload for m in lane.messages] == wanted
        assert lane.held_bytes == cost[number]
    assert elements(session) == []
    lanes[2].messages.clear()
    session.grant(lanes[2])
    assert elements(session) == [(17, 7, lanes[2].number, cost[2], 0)]


def test_what_comes_between_publications_is_done_in_its_place() -> None:
    session = connected()
    lane = subscribed(session)
    call = session.ping()
    seen: list[int] = []
    call.notify = lambda: seen.append(len(lane.messages))
    session.receive(
        encode(Kind.LANE, 0, lane.number) + message("a.b", b"1") + encode(Kind.PONG, 0, call.id) + message("a.b", b"2") * 2
    )
    assert seen == [1]
    assert len(lane.messages) == 3


def test_a_large_payload_is_counted_before_it_is_decoded() -> None:
    session = connected(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"software": "t"}))
    lane = subscribed(session, window_bytes=10_000_000)
    bomb = b"\xdd" + (1_000_001).to_bytes(4, "big") + b"\x80" * 1_000_001
    data = encode(Kind.LANE, 0, lane.number) + message("a.b", bomb, meta=None) + message("a.b", b"\x05", meta=None)
    assert session.incoming.read_bytes == 65_536
    session.receive(data[:100_000])
    assert session.incoming.read_bytes == 262_144
    session.receive(data[100_000:])
    assert session.incoming.read_bytes == 65_536
    one, two = lane.messages
    with pytest.raises(PayloadError, match="1000000 elements"):
        _ = one.data
    assert two.data == 5


@pytest.mark.parametrize("frame", [b"\x91\x13", b"\x93\x13\x00\x81\x01\x02"])
def test_a_bad_lane_frame_ends_the_connection(frame: bytes) -> None:
    for times in (1, 2):
        session = connected()
        session.receive((b"\xce" + len(frame).to_bytes(4, "big") + frame) * times + (message("t", b"x") if times > 1 else b""))
        session.receive(message("t", b"x"))
        assert session.hangup is not None


def test_ids_and_timeouts_of_requests() -> None:
    session = connected()
    expected = []
    for start in (1, 126, 127, 128, 255, 65_535, 65_536):
        session._next_id = start - 1
        for timeout in (1.0, 1.0, 2.5):
            session.request("svc/do", b"raw", None, timeout)
            expected.append((12, 7, "svc/do", session._next_id, int(timeout * 1000), 1, b"raw"))
    session.request("svc/do", 5, {"h": 1}, 0.0)
    expected.append((12, 7, "svc/do", session._next_id, 1, {"h": 1}, b"\x05"))
    assert elements(session) == expected
    with pytest.raises(PayloadError, match="carries at most"):
        session.request("svc/do", b"x" * 50_001, None, 1.0)


def test_a_new_connection_has_new_heads() -> None:
    session = connected()
    session.services.add("svc", "do", "h")
    session.request("svc/do", None, None, 1.0)
    session.receive(incoming("svc/do", 200))
    session.services.answer(session.services.requests.popleft()[1], 1)
    sent(session)
    session.lost("gone", again=True)
    session.opened()
    sent(session)
    session.receive(encode(Kind.WELCOME, 0, 1, [], 300, b"j" * 16, INFO))
    session.request("svc/do", None, None, 1.0)
    session.receive(incoming("svc/do", 300))
    session.services.answer(session.services.requests.popleft()[1], 1)
    assert [frame[1] for frame in elements(session)] == [300, 300]


def test_messages_of_no_lane_are_dropped() -> None:
    session = connected()
    session.receive(encode(Kind.LANE, 0, 99) + message("t", b"x"))
    assert session.hangup is None


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"\xce\x00\x00\x00\x01\x05", id="int instead of an array"),
        pytest.param(b"\xce\x00\x00\x00\x01\x90", id="empty array"),
        pytest.param(b"\xce\x00\x00\x00\x01\xc1", id="not msgpack"),
        pytest.param(b"\xce\x00\x00\x00\x09" + encode(Kind.PING, 0, 1)[5:], id="length that disagrees"),
        pytest.param(b"\xce\xff\xff\xff\xff", id="length over the limit"),
        pytest.param(b"\xa1x" + encode(Kind.PING, 0, 1)[5:], id="length that is no int"),
        pytest.param(encode(Kind.LANE, 0, 1)[:5] + b"\x93\x63\x00\x01", id="unknown kind"),
        pytest.param(b"\xce\x00\x00\x00\x02\x91\x07", id="too few elements"),
    ],
)
def test_a_bad_stream_ends_the_connection(bad: bytes) -> None:
    session = connected()
    session.receive(bad + message("t", b"x") * 3)
    assert session.hangup is not None
    session.receive(message("t", b"x"))  # ignored
    session.lost(session.hangup, again=True)
    assert session.state is State.RECONNECTING


def test_a_forged_frame_in_a_payload_stays_a_payload() -> None:
    session = connected()
    lane = subscribed(session)
    forged = message("a.forged", b"x")
    session.receive(encode(Kind.LANE, 0, lane.number) + message("a.true", forged) * 2)
    assert [m.payload for m in lane.messages] == [forged, forged]


# --- credit ---


def test_credit_is_granted_when_half_of_the_window_was_consumed() -> None:
    session = connected()
    lane = subscribed(session, window_bytes=100)
    frame = message("a.b", b"x" * 20)
    session.receive(encode(Kind.LANE, 0, lane.number) + frame)
    lane.messages.clear()
    session.grant(lane)
    assert elements(session) == []
    session.receive(frame)
    assert elements(session) == []
    lane.messages.clear()
    session.grant(lane)
    assert elements(session) == [(17, 7, lane.number, 2 * len(frame), 0)]
    session.grant(lane)
    assert elements(session) == []


def test_a_batch_that_was_consumed_in_part_is_not_granted() -> None:
    session = connected()
    lane = subscribed(session, window_bytes=10)
    session.receive(encode(Kind.LANE, 0, lane.number) + message("a.b", b"x" * 20) * 2)
    lane.messages.popleft()
    session.grant(lane)
    assert elements(session) == []


def test_a_group_is_granted_messages_that_were_handled() -> None:
    session = connected()
    lane = subscribed(session, group="g", prefetch=4, window_bytes=10_000)
    frame = message("a.b", b"")
    session.receive(encode(Kind.LANE, 0, lane.number) + frame * 4)
    for _ in range(3):
        lane.messages.popleft()
    lane.handled()
    session.grant(lane)
    assert elements(session) == []
    session.grant(lane, idle=True)
    assert elements(session) == [(17, 7, lane.number, 0, 1)]
    lane.handled()
    lane.handled()
    session.grant(lane)
    assert [frame[4] for frame in elements(session)] == [2]


def test_after_a_reconnect_credit_is_less_what_is_still_here() -> None:
    session = connected()
    lane = subscribed(session, group="g", prefetch=4, window_bytes=1000)
    frame = message("a.b", b"x")
    session.receive(encode(Kind.LANE, 0, lane.number) + frame * 3)
    lane.messages.popleft()
    lane.handled()
    session.lost("gone", again=True)
    session.opened()
    _, again = sent(session)
    arguments = msgpack.unpackb(again.payload)
    assert arguments["credit"] == 1000 - 3 * len(frame)  # the batch is granted as a whole
    assert arguments["messages"] == 2


def test_after_a_reconnect_what_overdrew_the_credit_is_not_granted_again() -> None:
    """Else the window would grow by an overdraft (L-5: up to 256 KiB) with each reconnect."""
    session = connected()
    lane = subscribed(session, window_bytes=100)
    session.receive(encode(Kind.LANE, 0, lane.number) + message("a.b", b"x" * 150))
    for _ in range(2):  # the second time nothing new is granted, and nothing old is forgotten
        session.lost("gone", again=True)
        session.opened()
        _, again = sent(session)
        assert msgpack.unpackb(again.payload)["credit"] == 0
    lane.messages.clear()
    assert lane.grant(idle=True) == (100, 0)


# --- requests ---


def test_request_reply_and_errors() -> None:
    session = connected()
    calls = [session.request("svc/do", n, None, 2.0) for n in range(4)]
    out = elements(session)
    assert out[1] == (12, 7, "svc/do", calls[1].id, 2000, None, b"\x01")
    notified: list[int] = []
    for n, call in enumerate(calls):
        call.notify = lambda n=n: notified.append(n)  # type: ignore[misc]
    session.receive(reply(calls[1].id, {"x": 1}) + error(calls[0].id, Code.NO_SUCH_NAME.value) + error(calls[2].id, "Hot", "text", 5, 9))
    session.receive(reply(calls[1].id, "late") + error(calls[3].id, 999))
    assert notified == [1, 0, 2, 3]
    assert calls[1].result() == {"x": 1}
    with pytest.raises(NoSuchName) as caught:
        calls[0].result()
    assert (caught.value.code, caught.value.to, str(caught.value)) == (Code.NO_SUCH_NAME, "svc/do", "svc/do: no_such_name: why")
    with pytest.raises(ServiceError, match="Hot: text"):
        calls[2].result()
    with pytest.raises(RequestError, match="code 999"):
        calls[3].result()
    assert session.stats()["late_replies"] == 1
    assert session.stats()["requests"] == 0


def test_cancel_and_disconnect() -> None:
    session = connected()
    one, two = session.request("svc/do", None, None, 1e9), session.ping()
    first, _ = elements(session)
    assert first[4] == 60_000
    session.cancel(one)
    session.cancel(one)
    assert elements(session) == [(16, 7, "svc/do", one.id)]
    session.lost("gone", again=True)
    with pytest.raises(ConnectionLost, match="ping: gone"):
        two.result()
    assert not one.done


def test_pong() -> None:
    session = connected()
    call = session.ping()
    session.receive(encode(Kind.PONG, 0, call.id) + encode(Kind.PONG, 0, 1234))
    assert call.done


# --- services ---


def incoming(to: str, identity: int = 3) -> bytes:
    return encode_with_payload(b"\x05", Kind.REQUEST, 9, to, identity, 1500, None)


def test_requests_find_their_handlers() -> None:
    session = connected()
    calls: list[int] = []
    session.on_requests = lambda: calls.append(len(session.services.requests))
    session.services.add("svc", "do", "exact")
    session.services.add("svc", "*", "any")
    session.receive(incoming("svc/do", 1) + incoming("svc/else", 2) + incoming(":7/do", 3) + incoming("other/do", 4))
    assert calls == [3]
    found = [(handler, request.method, request.id) for handler, request in session.services.requests]
    assert found == [("exact", "do", 1), ("any", "else", 2), ("exact", "do", 3)]
    request = session.services.requests[0][1]
    assert (request.data, request.sender, request.timeout, request.headers, request.to) == (5, 9, 1.5, {}, "svc/do")
    assert elements(session) == [(15, 7, ":9", 4, "NoSuchMethod", "other/do is not served any more", None)]


def test_methods_are_said_to_the_bus_with_their_name_at_once_and_taken_back_so() -> None:
    session = connected()
    services, declarations = session.services, session.declarations
    calls = services.begin("svc", {"do": {"doc": "Do."}, "undo": None}, "h", "exclusive")
    said = [(frame[2], msgpack.unpackb(frame[-1])) for frame in elements(session)]
    assert said == [
        ("bus/own", {"name": "svc", "mode": "exclusive", "replace": False, "allow_replace": False}),
        ("bus/serve", {"name": "svc", "methods": ["do"], "about": {"do": {"doc": "Do."}}}),
        ("bus/serve", {"name": "svc", "methods": ["undo"]}),
    ]
    assert [call.to for call in calls] == ["bus/own", "bus/serve", "bus/serve"]
    services.begin("svc", {"undo": None}, "other", None)  # another handler takes one of them over
    elements(session)
    assert [call.to for call in services.end("svc", ["do", "undo"], "h", True)] == ["bus/unserve"]  # and the name stays, for it
    assert services.find("svc/undo") == "other"
    assert services.end("svc", ["do", "undo"], "h", True) == []
    assert [call.to for call in services.end("svc", ["undo"], "other", True)] == ["bus/release"]
    assert declarations.declared("own", "svc") is None
    assert services.find("svc/undo") is None
    with pytest.raises(PayloadError):
        services.begin("svc", {"do": None, "undo": {"doc": object()}}, "h", "exclusive")
    assert [call.to for call in services.end("svc", ["do", "undo"], "h", True)] == ["bus/release"]
    assert declarations.declared("serve", "svc", "do") is None
    services.begin("svc", {"do": None}, "h", "exclusive")
    session.bye()
    session.lost("gone", again=False)
    assert services.end("svc", ["do"], "h", True) == []


def refused(session: Session, request: Request, error: BaseException) -> str | None:
    return session.services.refuse(request, refusal(request, error))


def test_answers() -> None:
    session = connected()
    session.services.add("svc", "do", "h")
    session.receive(b"".join(incoming("svc/do", n) for n in range(1, 7)))
    requests = [request for _, request in session.services.requests]
    services = session.services
    assert services.answer(requests[0], [1]) is None
    assert services.answer(requests[0], [2]) is None  # once only
    assert refused(session, requests[1], KeyError("k")) == "handler of svc/do raised KeyError"
    assert refused(session, requests[2], ServiceError("too_hot", "text")) is None
    unsendable = services.answer(requests[3], object())
    assert unsendable is not None
    assert refused(session, requests[3], unsendable) == "handler of svc/do raised PayloadError"
    services.fail(requests[4], "not a code!", "x" * 5000)
    session.receive(encode(Kind.CANCEL, 9, "svc/do", 6) + encode(Kind.CANCEL, 9, "svc/do", 6))
    assert requests[5].cancelled
    services.answer(requests[5], 1)
    out = elements(session)
    assert out[0] == (13, 7, ":9", 1, None, b"\x91\x01")
    assert [frame[4] for frame in out[1:]] == ["KeyError", "too_hot", "PayloadError", "Error"]
    assert len(out[4][5].encode()) <= 1024
    assert session.counters["handler_errors"] == 2
    assert services.at_work == 0


def test_an_answer_does_not_cross_a_reconnect() -> None:
    session = connected()
    session.services.add("svc", "do", "h")
    session.receive(incoming("svc/do"))
    _, request = session.services.requests[0]
    told: list[int] = []
    request.notify = lambda: told.append(1)
    session.lost("gone", again=True)
    assert request.cancelled
    assert told == [1]
    session.opened()
    session.receive(WELCOME)
    sent(session)
    session.services.answer(request, 1)
    assert sent(session) == []


# --- declarations ---


def answer_all(session: Session, **special: bytes) -> list[str]:
    """Answer what is asked of the bus; returns the methods."""
    asked = []
    for frame in sent(session):
        if frame.kind is Kind.REQUEST:
            method = frame.elements[2].removeprefix("bus/")
            asked.append(method)
            how = special.get(method)
            session.receive(error(frame.elements[3], int(how)) if how else reply(frame.elements[3], {"owner": True}))
    return asked


def test_replay_in_the_order_made_and_the_epoch_grows() -> None:
    session = connected()
    session.declarations.own("me", "exclusive", False, False)
    session.declarations.serve("me", "m")
    subscribed_lane = Lane(session.new_id(), "x", window_bytes=10)
    session.declarations.subscribe(subscribed_lane)
    session.declarations.own("gone", "exclusive", False, False)
    assert answer_all(session) == ["own", "serve", "subscribe", "own"]
    assert session.declarations.withdraw("own", "gone") is not None
    answer_all(session)
    session.lost("gone", again=True)
    assert session.state is State.RECONNECTING
    session.opened()
    session.receive(encode(Kind.WELCOME, 0, 1, [], 8, b"j" * 16, INFO))
    assert answer_all(session) == ["own", "serve", "subscribe"]
    assert (session.epoch, subscribed_lane.gaps, session.peer, session.counters["reconnects"]) == (1, 1, 8, 1)


def test_the_first_no_is_the_callers() -> None:
    session = connected()
    lane = Lane(session.new_id(), "x", window_bytes=10)
    call = session.declarations.subscribe(lane)
    answer_all(session, subscribe=str(Code.DENIED.value).encode())
    with pytest.raises(RequestError, match="denied"):
        call.result()
    assert session.lanes == {}
    assert session.declarations.withdraw("subscribe", lane.number) is None


def test_a_no_on_replay_is_tried_again_or_given_up() -> None:
    session = connected()
    own = session.declarations.own("me", "exclusive", False, False)
    lane = Lane(session.new_id(), "x", window_bytes=10)
    session.declarations.subscribe(lane)
    answer_all(session)
    session.lost("gone", again=True)
    session.opened()
    session.receive(WELCOME)
    answer_all(session, own=str(Code.NAME_TAKEN.value).encode(), subscribe=str(Code.DENIED.value).encode())
    assert own.error is None
    assert lane.closed
    assert isinstance(lane.error, RequestError)
    assert session.declarations.tick(10.0) == 11.0
    assert session.declarations.tick(10.5) == 11.0
    assert sent(session) == []
    assert session.declarations.tick(11.0) is None
    assert answer_all(session) == ["own"]
    assert len([r for r in session.remarks if "trying again" in r.text]) == 1
    assert len([r for r in session.remarks if "given up" in r.text]) == 1


def refused_after_a_restart() -> tuple[Session, list[str]]:
    """A session whose name another peer took meanwhile; it serves a method under it."""
    session = connected()
    session.declarations.own("me", "exclusive", False, False)
    session.declarations.serve("me", "m")
    answer_all(session)
    session.lost("gone", again=True)
    session.opened()
    session.receive(WELCOME)
    asked = answer_all(session, own=b"%d" % Code.NAME_TAKEN, serve=b"%d" % Code.NOT_OWNER)
    assert session.declarations.tick(10.0) == 11.0
    return session, asked


def test_a_refused_name_can_be_withdrawn_with_its_methods() -> None:
    session, _ = refused_after_a_restart()
    assert session.declarations.withdraw("own", "me") is None  # the bus said that it is not ours: there is nothing to tell it
    assert session.declarations.tick(100.0) is None
    assert sent(session) == []


def test_a_refused_method_can_be_withdrawn_alone() -> None:
    session, _ = refused_after_a_restart()
    session.declarations.withdraw("serve", "me", "m")
    session.declarations.tick(100.0)
    assert answer_all(session) == ["own"]


def test_a_refused_name_that_is_declared_anew_is_said_once() -> None:
    session, _ = refused_after_a_restart()
    session.declarations.own("me", "queue", False, False)
    session.declarations.tick(100.0)
    assert sorted(answer_all(session)) == ["own", "serve"]


def test_a_refusal_is_logged_once_an_episode() -> None:
    session, _ = refused_after_a_restart()
    taken = b"%d" % Code.NAME_TAKEN

    def warnings() -> int:
        return len([remark for remark in session.remarks if "bus/own: name_taken" in remark.text])

    for now in range(20, 200, 10):
        session.declarations.tick(float(now))
        answer_all(session, own=taken)
    assert warnings() == 1
    for now in range(200, 220, 5):
        session.declarations.tick(float(now))
        answer_all(session)
    session.lost("gone", again=True)
    session.opened()
    session.receive(WELCOME)
    answer_all(session, own=taken)
    assert warnings() == 2


def test_what_is_withdrawn_while_somebody_waits_for_it_settles() -> None:
    session = connected()
    session.lost("gone", again=True)
    lane = Lane(session.new_id(), "x", window_bytes=10)
    waits = [session.declarations.subscribe(lane), session.declarations.own("n", "exclusive", False, False)]
    waits.append(session.declarations.serve("n", "m"))
    told: list[int] = []
    for call in waits:
        call.notify = lambda: told.append(1)
    session.declarations.withdraw("subscribe", lane.number)
    session.declarations.withdraw("own", "n")
    assert told == [1, 1, 1]
    for call in waits:
        with pytest.raises(Closed):
            call.result()


def test_what_is_withdrawn_in_flight_settles_once() -> None:
    session = connected()
    call = session.declarations.own("n", "exclusive", False, False)
    (request,) = sent(session)
    session.declarations.withdraw("own", "n")
    assert isinstance(call.error, Closed)
    session.receive(reply(request.elements[3], {"owner": True}))
    assert isinstance(call.error, Closed)


@pytest.mark.parametrize("online", [False, True])
def test_what_is_declared_anew_settles_for_both_who_wait(online: bool) -> None:
    session = connected()
    if not online:
        session.lost("gone", again=True)
    one = session.declarations.own("n", "exclusive", False, False)
    two = session.declarations.own("n", "queue", False, False)
    if online:
        session.lost("gone", again=True)
    session.opened()
    session.receive(WELCOME)
    assert answer_all(session) == ["own"]
    assert one.result() == two.result() == {"owner": True}


def test_timeouts_up_to_for_ever() -> None:
    session = connected()
    for timeout in (1e7, 1e300, float("inf")):
        session.request("a/b", None, None, timeout)
        session.request("a/b", None, {"h": 1}, timeout)
    assert [frame[4] for frame in elements(session)] == [60_000] * 6
    early = Session(program="p", library="l")
    early.opened()
    early.request("bus/ping", None, None, float("inf"))
    assert elements(early)[1][4] == 86_400_000


def test_a_credit_above_the_busses_limit_is_just_said() -> None:
    session = connected(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {**INFO, "max_credit_bytes": 1000}))
    session.declarations.subscribe(Lane(session.new_id(), "x", window_bytes=64 * 1024 * 1024))
    (frame,) = sent(session)
    assert msgpack.unpackb(frame.payload)["credit"] == 64 * 1024 * 1024


def test_a_declaration_in_flight_is_replayed_not_failed() -> None:
    session = connected()
    call = session.declarations.own("me", "exclusive", False, False)
    sent(session)
    session.lost("gone", again=True)
    assert not call.done
    session.opened()
    session.receive(WELCOME)
    answer_all(session)
    assert call.result() == {"owner": True}


def test_ownership_notices() -> None:
    session = connected()
    session.declarations.own("queued", "queue", False, False)
    session.declarations.own("mine", "exclusive", False, True)
    answer_all(session)

    def notice(name: str, about: dict[str, Any]) -> bytes:
        return encode_with_payload(msgpack.packb(about), Kind.NOTICE, 0, name, None)

    session.receive(notice("name_lost", {"name": "queued"}) + notice("name_lost", {"name": "mine"}) + notice("unknown", {}))
    session.receive(notice("name_acquired", {"name": "queued"}) + notice("name_lost", {"name": "never"}))
    queued = session.declarations.declared("own", "queued")
    assert queued is not None
    assert queued.owner
    assert session.declarations.declared("own", "mine") is None
    assert sent(session) == []


# --- notices, refusals, the inbox ---


def test_lost_is_counted_where_it_belongs() -> None:
    session = connected()
    lane = subscribed(session)
    about = msgpack.packb({"lane": lane.number, "count": 5, "bytes": 10, "why": "slow"})
    session.receive(encode_with_payload(about, Kind.NOTICE, 0, "lost", None) * 2)
    assert (lane.lost, session.counters["lost"]) == (10, 10)
    assert len(session.remarks) == 1


def test_refused_publications_are_counted() -> None:
    session = connected()
    session.receive(error(0, Code.OVER_LIMIT.value, "full", {"kind": 9, "to": "t", "count": 3}))
    session.receive(error(0, Code.NO_SUCH_REQUEST.value) + encode_with_payload(b"\xc1", Kind.ERROR, 0, ":7", 0, 25, "", None))
    assert (session.counters["refused"], session.counters["late_replies"]) == (4, 1)
    assert "'t'" in session.remarks[0].text


def test_inbox() -> None:
    session = connected()
    direct = encode_with_payload(b"x" * 100, Kind.SEND, 9, "me", 1)
    session.receive(direct)
    assert session.counters["unclaimed"] == 1
    inbox = session.inbox = Lane(INBOX, "inbox", window_bytes=300)
    session.receive(direct * 4)
    assert (len(inbox.messages), inbox.lost) == (2, 2)
    inbox.messages.clear()
    session.grant(inbox)
    session.receive(direct)
    assert (len(inbox.messages), inbox.lost) == (1, 2)
    assert elements(session) == []
    assert INBOX_MAX_BYTES > 0


# --- the end ---


def test_close_settles_everything_once() -> None:
    session = connected()
    lane = subscribed(session)
    session.inbox = Lane(INBOX, "inbox", window_bytes=1)
    call = session.request("a/b", None, None, 1.0)
    own = session.declarations.own("me", "exclusive", False, False)
    changes: list[State] = []
    session.on_state = lambda: changes.append(session.state)
    session.bye()
    assert [frame.kind for frame in sent(session)][-1] is Kind.BYE
    session.close()
    session.close()
    session.lost("late", again=True)
    assert changes == [State.CLOSED]
    assert lane.closed
    assert session.inbox.closed
    for one in (call, own):
        with pytest.raises(Closed):
            one.result()
    session.receive(message("a.b", b"x"))
    assert not lane.messages


def test_without_reconnect_a_lost_connection_is_the_end() -> None:
    session = connected()
    session.lost("gone", again=False)
    with pytest.raises(ConnectionLost):
        session.check_open()


def test_expired_is_a_timeout() -> None:
    assert issubclass(Expired, TimeoutError)
