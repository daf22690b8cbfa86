"""The state table (K-1) and the handshake (section 5), as the bus sees them."""

from __future__ import annotations

import pytest

from ipcbus.protocol.addresses import BUS_SECRET
from ipcbus.protocol.auth import Secret, Secrets, proof
from ipcbus.protocol.connection import ALLOWED, Connection, State
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload
from tests.unit.test_framing import Router

SECRET = b"s" * 32
ADDRESSES = ("127.0.0.1:4222", "127.0.0.1:51000")


def unix() -> Connection:
    return Connection(Router(), Limits())


def tcp() -> Connection:
    return Connection(Router(), Limits(), secrets=Secrets({BUS_SECRET: Secret(SECRET)}, bytes(32)), addresses=ADDRESSES)


def hello(low: int = 1, high: int = 1, features: tuple[str, ...] = (), nonce: bytes | None = None) -> bytes:
    return encode(Kind.HELLO, 0, low, high, list(features), {"program": "p"}, nonce)


def refused(code: Code, call: object, *arguments: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code is code
    assert caught.value.text


def test_unix_hello_is_followed_by_welcome() -> None:
    connection = unix()
    frame = decode(hello(features=("nobody-knows-this",)))
    connection.check(frame)
    assert connection.hello(frame, b"") is None
    welcome = decode(connection.welcome(5, b"i" * 16, "ipcbus 1"))
    assert welcome.elements[:6] == (4, 0, 1, (), 5, b"i" * 16)
    assert welcome.elements[6]["max_frame_bytes"] == 16 * 1024 * 1024 + 65536
    assert connection.state is State.READY
    assert connection.info == {"program": "p"}


@pytest.mark.parametrize(("low", "high", "good"), [(1, 1, True), (1, 9, True), (2, 9, False), (3, 2, False), (1, 65535, True)])
def test_versions(low: int, high: int, good: bool) -> None:
    connection = unix()
    if good:
        connection.hello(decode(hello(low, high)), b"")
        assert connection.version == 1
    else:
        refused(Code.BAD_VERSION, connection.hello, decode(hello(low, high)), b"")


def test_the_nonce_belongs_to_tcp() -> None:
    refused(Code.BAD_STATE, unix().hello, decode(hello(nonce=b"n" * 32)), b"")
    refused(Code.BAD_STATE, tcp().hello, decode(hello()), b"r" * 32)


def test_tcp_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="secret"):
        Connection(Router(), Limits(), addresses=ADDRESSES)


def test_tcp_proof_both_ways() -> None:
    connection = tcp()
    first = hello(nonce=b"n" * 32)
    challenge = connection.hello(decode(first), b"r" * 32)
    assert challenge is not None
    elements = decode(challenge).elements
    transcript = (first[5:], 1, [], b"r" * 32, *ADDRESSES)
    assert elements == (2, 0, 1, (), b"r" * 32, proof(SECRET, "bus", *transcript))
    assert connection.state is State.PROOF
    refused(Code.BAD_STATE, connection.check, decode(encode(Kind.PING, 0, 1)))
    answer = decode(encode(Kind.PROOF, 0, proof(SECRET, "client", *transcript)))
    connection.check(answer)
    connection.prove(answer)


@pytest.mark.parametrize("change", ["role", "secret", "nonce", "hello", "bus address", "client address", "version"])
def test_a_wrong_proof(change: str) -> None:
    connection = tcp()
    first = hello(nonce=b"n" * 32)
    connection.hello(decode(first), b"r" * 32)
    wrong = proof(
        b"t" * 32 if change == "secret" else SECRET,
        "bus" if change == "role" else "client",
        hello(high=2, nonce=b"n" * 32)[5:] if change == "hello" else first[5:],
        2 if change == "version" else 1,
        [],
        b"q" * 32 if change == "nonce" else b"r" * 32,
        "127.0.0.1:4223" if change == "bus address" else ADDRESSES[0],
        "127.0.0.1:51001" if change == "client address" else ADDRESSES[1],
    )
    refused(Code.AUTH_FAILED, connection.prove, decode(encode(Kind.PROOF, 0, wrong)))


FRAMES = {
    Kind.HELLO: hello(),
    Kind.CHALLENGE: encode(Kind.CHALLENGE, 0, 1, [], b"n" * 32, b"p" * 32),
    Kind.PROOF: encode(Kind.PROOF, 0, b"p" * 32),
    Kind.WELCOME: encode(Kind.WELCOME, 0, 1, [], 1, b"i" * 16, {}),
    Kind.BYE: encode(Kind.BYE, 0, 0, ""),
    Kind.PING: encode(Kind.PING, 0, 1),
    Kind.PONG: encode(Kind.PONG, 0, 1),
    Kind.PUBLISH: encode_with_payload(b"", Kind.PUBLISH, 0, "a", None),
    Kind.RETAIN: encode_with_payload(b"", Kind.RETAIN, 0, "a", None),
    Kind.POST: encode_with_payload(b"", Kind.POST, 0, "a", None, None, False, None),
    Kind.SEND: encode_with_payload(b"", Kind.SEND, 0, "a", None),
    Kind.REQUEST: encode_with_payload(b"", Kind.REQUEST, 0, "a/m", 1, 1, None),
    Kind.REPLY: encode_with_payload(b"", Kind.REPLY, 0, ":1", 1, None),
    Kind.PART: encode_with_payload(b"", Kind.PART, 0, ":1", 1, 0, None),
    Kind.ERROR: encode_with_payload(b"", Kind.ERROR, 0, ":1", 1, "x", "", None),
    Kind.CANCEL: encode(Kind.CANCEL, 0, "a/m", 1),
    Kind.CREDIT: encode(Kind.CREDIT, 0, 1, 1, 1),
    Kind.ALLOW: encode(Kind.ALLOW, 0, ":1", 1, 1),
    Kind.LANE: encode(Kind.LANE, 0, 1),
    Kind.NOTICE: encode_with_payload(b"", Kind.NOTICE, 0, "lost", None),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", list(Kind))
def test_the_state_table(state: State, kind: Kind) -> None:
    connection = unix()
    connection.state = state
    if kind in ALLOWED[state]:
        connection.check(decode(FRAMES[kind]))
    else:
        refused(Code.BAD_STATE, connection.check, decode(FRAMES[kind]))


def test_the_state_table_names_what_a_client_may_send() -> None:
    never = {Kind.CHALLENGE, Kind.WELCOME, Kind.LANE, Kind.NOTICE}
    assert set().union(*ALLOWED.values()) == set(Kind) - never


def test_sender_zero_only_in_requests_to_the_bus() -> None:
    connection = unix()
    connection.hello(decode(hello()), b"")
    connection.welcome(5, b"i" * 16, "x")
    connection.check(decode(encode(Kind.PING, 5, 1)))
    connection.check(decode(encode_with_payload(b"", Kind.REQUEST, 0, "bus/ping", 1, 1, None)))
    refused(Code.FORGED_SENDER, connection.check, decode(encode(Kind.PING, 0, 1)))
    refused(Code.FORGED_SENDER, connection.check, decode(encode(Kind.PING, 6, 1)))
    refused(Code.FORGED_SENDER, connection.check, decode(encode_with_payload(b"", Kind.REQUEST, 0, "busy/ping", 1, 1, None)))
    refused(Code.FORGED_SENDER, connection.check, decode(encode_with_payload(b"", Kind.REQUEST, 6, "bus/ping", 1, 1, None)))


def test_closed_takes_nothing() -> None:
    connection = unix()
    connection.close()
    connection.close()
    refused(Code.BAD_STATE, connection.check, decode(hello()))
