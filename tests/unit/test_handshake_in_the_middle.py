"""Who sits between a client and the bus on TCP and changes what they say of versions and features: neither side goes on (H-5).

The addresses are right here, as if the connection itself had been taken over; a relay on another port fails for these alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.auth import Secret, Secrets
from ipcbus.protocol.connection import FEATURES, Connection, State
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, decode, encode
from ipcbus_client._session import Session
from tests.unit.test_framing import Router
from tests.unit.test_session import sent

ENDS = ("127.0.0.1:4222", "127.0.0.1:51000")
KEY = Secret(b"s" * 32)
Change = Callable[[list[Any]], None]


def changed(data: bytes, change: Change) -> bytes:
    envelope = list(decode(data).elements)
    change(envelope)
    packed = msgpack.packb(envelope)
    return b"\xce" + len(packed).to_bytes(4, "big") + packed


def nothing(envelope: list[Any]) -> None:
    pass


def put(index: int, value: Any) -> Change:
    def change(envelope: list[Any]) -> None:
        envelope[index] = value

    return change


class Middle:
    """A client, a bus, and what is changed of HELLO, CHALLENGE, PROOF and WELCOME on the way."""

    def __init__(self, identity: str = "") -> None:
        self.client = Session(program="p", library="l")
        self.client.declarations.own("me", "exclusive", False, False)
        self.client.opened(secret=KEY, nonce=b"n" * 32, bus_address=ENDS[0], client_address=ENDS[1], identity=identity)
        self.bus = Connection(Router(), Limits(), secrets=Secrets({"default": KEY, "panel": Secret(b"p" * 32)}, bytes(32)), addresses=ENDS)

    def run(self, hello: Change = nothing, challenge: Change = nothing, welcome: Change = nothing) -> None:
        answer = self.bus.hello(decode(changed(self.sent(), hello)), b"m" * 32)
        assert answer is not None
        self.client.receive(changed(answer, challenge))
        if said := self.sent():
            frame = decode(said)
            assert frame.kind is Kind.PROOF
            self.bus.prove(frame)
            self.client.receive(changed(self.bus.welcome(7, b"i" * 16, "bus"), welcome))

    def sent(self) -> bytes:
        """All that the client wrote since the last call."""
        return b"".join(frame.raw for frame in sent(self.client))


def test_nobody_in_the_middle() -> None:
    both = Middle()
    both.run()
    assert both.client.hangup is None
    assert decode(both.sent()).elements[1:3] == (7, "bus/own")
    assert both.bus.features == both.client.features == FEATURES


CHANGES = {
    "no features asked for": {"hello": put(4, [])},
    "another version asked for": {"hello": put(3, 2)},
    "another program": {"hello": put(5, {"program": "root"})},
    "another identity": {"hello": put(5, {"program": "p", "library": "l", "identity": "panel"})},
    "another nonce of the client": {"hello": put(6, b"x" * 32)},
    "no features granted": {"challenge": put(3, [])},
    "one feature less": {"challenge": put(3, list(FEATURES[1:]))},
    "another order of features": {"challenge": put(3, list(reversed(FEATURES)))},
    "another nonce of the bus": {"challenge": put(4, b"x" * 32)},
    "another version granted": {"challenge": put(2, 2)},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_on_the_way_ends_it(what: str) -> None:
    both = Middle()
    both.run(**CHANGES[what])
    assert both.client.hangup is not None
    assert both.sent() == b"", "no proof, and nothing of what it declares"
    assert both.bus.state is State.PROOF, "and the bus lets nobody in"


@pytest.mark.parametrize("features", [[], list(FEATURES[1:]), [*FEATURES, "shm"], None, 7])
def test_a_welcome_with_other_features_than_were_proved(features: Any) -> None:
    both = Middle()
    both.run(welcome=put(3, features))
    assert both.client.hangup is not None
    assert both.sent() == b""


def test_a_version_that_is_not_there_any_more() -> None:
    both = Middle()
    with pytest.raises(ProtocolError) as caught:
        both.run(hello=lambda envelope: envelope.__setitem__(slice(2, 4), [2, 3]))
    assert caught.value.code is Code.BAD_VERSION


def test_the_client_s_own_proof_is_none_of_the_bus() -> None:
    """Reflected: what a client proves to one side is no answer to another client, nor to itself."""
    both = Middle()
    hello = both.sent()
    challenge = both.bus.hello(decode(hello), b"m" * 32)
    assert challenge is not None
    shown = decode(challenge).elements[5]
    with pytest.raises(ProtocolError) as caught:
        both.bus.prove(decode(encode(Kind.PROOF, 0, shown)))
    assert caught.value.code is Code.AUTH_FAILED
