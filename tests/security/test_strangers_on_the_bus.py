"""What a user without rights tries on the bus itself, by hand on raw sockets: to read, to be and to answer what is another's."""

from __future__ import annotations

import contextlib

import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Frame, Kind, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import decode_value
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon
from tests.security.people import MALLORY, Stranger, needs_users
from tests.wire import Wire

pytestmark = needs_users


def refusal(wire: Wire, method: str, **arguments: object) -> str:
    """The error that the bus answers to a request to it."""
    wire.request(f"bus/{method}", pack(arguments))
    return Code(wire.expect(Kind.ERROR).elements[4]).label


def all_until_pong(wire: Wire) -> list[Frame]:
    """What has come, up to the answer to a PING."""
    wire.send(encode(Kind.PING, wire.peer, 99))
    frames = []
    while (frame := wire.receive()) is not None and frame.kind is not Kind.PONG:
        frames.append(frame)
    assert frame is not None, frames
    return frames


def vault(alice: Stranger, bus: RunningDaemon) -> Wire:
    """alice, who serves the vault."""
    wire = alice.join(bus, "vault")
    wire.call("own", name="vault")
    wire.call("serve", name="vault", methods=["*"])
    return wire


# --- reading another's messages by wildcard ---


@pytest.mark.parametrize("pattern", ["private.code", "private.*", "private.>", "*.code", "*.*", ">", "*.>", "open*.code", "$bus.>"])
def test_reading_messages_of_another_by_wildcard(pattern: str, bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    with alice.join(bus) as owner, mallory.join(bus) as wire:
        assert refusal(wire, "subscribe", pattern=pattern, lane=1, credit=1000) == "denied"
        assert refusal(wire, "subscribe", pattern=pattern, lane=2, credit=1000, group="all") == "denied"
        assert refusal(wire, "monitor", pattern=pattern, lane=3, credit=1000) == "denied"
        owner.publish("private.code", b"1234")
        owner.ping()
        assert all_until_pong(wire) == []


def test_reading_what_is_kept_or_counted_for_another(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    with alice.join(bus) as owner, mallory.join(bus) as wire:
        owner.send(encode_with_payload(b"1234", Kind.RETAIN, owner.peer, "private.kept", 1))
        owner.ping()
        assert refusal(wire, "get", topic="private.kept") == "denied"
        assert refusal(wire, "get", topic="private.never") == "denied"  # the same for what is not there: it tells nothing
        assert refusal(wire, "restore", topic="private.kept", payload=b"mine", was=[owner.peer]) == "denied"
        assert refusal(wire, "bind", topic="private.kept") == "denied"
        assert refusal(wire, "will", topic="private.kept", payload=b"mine") == "denied"
        for method in ("topics", "patterns", "losses", "accounts"):
            assert refusal(wire, method) == "denied"
        assert refusal(wire, "receivers", topic="private.kept") == "denied"
        assert owner.call("get", topic="private.kept")["payload"] == b"1234"
        owner.send(encode_with_payload(b"", Kind.RETAIN, owner.peer, "private.kept", 1))


# --- owning a reserved name, being another ---


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("bus", "reserved"), ("bus.names", "reserved"), ("vault", "denied"), ("vault.x", "denied"), ("Bus", "denied"), ("bus-", "denied"),
        ("guest", "denied"), (":1", "bad_name"), ("guest.a/b", "bad_name"), ("guest.*", "bad_name"), ("guest.\n", "bad_name"),
        ("guest.\u0430", "bad_name"), ("guest..a", "bad_name"),
    ],
)  # fmt: skip
def test_owning_a_reserved_name(name: str, code: str, bus: RunningDaemon, mallory: Stranger) -> None:
    with mallory.join(bus) as wire:
        for mode in ("exclusive", "queue", "shared"):
            assert refusal(wire, "own", name=name, mode=mode, replace=True) == code
        assert refusal(wire, "serve", name=name, methods=["*"]) == "not_owner"


def test_taking_a_name_from_its_owner(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """Where a right is not what stops it: the owner did not offer the name."""
    with alice.join(bus) as owner, mallory.join(bus) as wire:
        owner.call("own", name="guest.book")
        for mode in ("exclusive", "shared"):
            assert refusal(wire, "own", name="guest.book", mode=mode, replace=True) == "name_taken"
        assert wire.call("own", name="guest.book", mode="queue", replace=True) == {"owner": False, "position": 1}
        assert refusal(wire, "serve", name="vault", methods=["public"]) == "not_owner"
        assert all_until_pong(owner) == []


def test_impersonating_by_a_forged_sender(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    with alice.join(bus) as owner:
        owner.subscribe("open.>")
        forgeries = [
            lambda me: encode_with_payload(b"x", Kind.PUBLISH, owner.peer, "open.door", 1),
            lambda me: encode_with_payload(b"x", Kind.PUBLISH, 0, "open.door", 1),
            lambda me: encode_with_payload(b"x", Kind.PUBLISH, me + 1, "open.door", 1),
            lambda me: encode_with_payload(b"x", Kind.SEND, owner.peer, f":{owner.peer}", 1),
            lambda me: encode_with_payload(b"x", Kind.REQUEST, 0, "vault/public", 1, 1000, None),
            lambda me: encode_with_payload(pack({}), Kind.REQUEST, owner.peer, "bus/ping", 1, 1000, None),
            lambda me: encode(Kind.CANCEL, owner.peer, "vault/public", 1),
            lambda me: encode(Kind.BYE, owner.peer, 0, ""),
        ]
        for forge in forgeries:
            with mallory.join(bus) as wire:
                honest = encode_with_payload(b"-", Kind.PUBLISH, wire.peer, "open.door", 1)
                wire.send(honest + forge(wire.peer) + honest)
                wire.expect_bye(Code.FORGED_SENDER)
        got = [frame for frame in all_until_pong(owner) if frame.kind is not Kind.LANE]
        assert [frame.payload for frame in got] == [b"-"] * len(forgeries)
        assert owner.peer not in {frame.elements[1] for frame in got}


def test_impersonating_by_what_one_says_of_oneself(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """Everything but the program's name, which anybody may choose, is the kernel's."""
    with alice.join(bus, features=("identity",)) as owner, mallory.connect(bus) as wire:
        claims = {"program": "vault", "uid": "0", "pid": "1", "unit": "vault.service", "identity": "default", "peer": str(owner.peer)}
        wire.send(encode(Kind.HELLO, 0, 1, 1, ["identity"], claims, None))
        wire.peer = wire.expect(Kind.WELCOME).elements[4]
        owner.subscribe("open.>")
        wire.publish("open.door", b"x")
        told = owner.expect(Kind.NOTICE)
        about = decode_value(told.elements[-1], told.payload)
    assert about == {
        "peer": wire.peer, "transport": "unix", "program": "vault", "pid": mallory.pid, "uid": MALLORY, "gid": MALLORY, "groups": [],
        "unit": about["unit"], "user_unit": about["user_unit"], "identity": "",
    }  # fmt: skip
    assert "vault" not in about["unit"]


def test_a_sender_id_is_never_used_again(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    with alice.join(bus) as owner:
        gone = owner.peer
    for _ in range(20):
        with mallory.join(bus) as wire:
            assert wire.peer > gone
            assert refusal(wire, "identity", peer=wire.peer + 1) == "no_such_peer"


def test_ending_the_connection_of_another_by_its_session(bus: RunningDaemon, alice: Stranger, mallory: Stranger) -> None:
    """H-13, by who has seen the session of another, in a core dump perhaps."""
    hello = encode(Kind.HELLO, 0, 1, 1, [], {"program": "x", "session": "f00-1"}, None)
    with alice.connect(bus) as owner, mallory.connect(bus) as wire:
        owner.send(hello)
        owner.peer = owner.expect(Kind.WELCOME).elements[4]
        wire.send(hello)
        wire.peer = wire.expect(Kind.WELCOME).elements[4]
        wire.ping()
        owner.ping()
        with alice.connect(bus) as again:
            again.send(hello)
            again.expect(Kind.WELCOME)
            assert owner.receive() is None
            wire.ping()


# --- answers ---


def test_guessing_request_ids_to_inject_replies(bus: RunningDaemon, alice: Stranger, bob: Stranger, mallory: Stranger) -> None:
    """R-4: an answer is matched against requester, id and callee."""
    with vault(alice, bus) as callee, bob.join(bus) as caller:
        number = caller.request("vault/public")
        asked = callee.expect(Kind.REQUEST)
        to = f":{caller.peer}"
        answers = [
            lambda me, id: encode_with_payload(b"forged", Kind.REPLY, me, to, id, 1),
            lambda me, id: encode_with_payload(b"forged", Kind.ERROR, me, to, id, "no", "forged", None),
            lambda me, id: encode_with_payload(b"forged", Kind.PART, me, to, id, 0, 1),
        ]
        for answer in answers:
            with mallory.join(bus) as wire:
                for guess in (number + 1, number + 2, 2**53 - 1):
                    wire.send(answer(wire.peer, guess))
                    assert wire.expect(Kind.ERROR).elements[4] == Code.NO_SUCH_REQUEST
                wire.send(answer(wire.peer, number))
                wire.expect_bye(Code.BAD_REPLY)
        with mallory.join(bus) as wire:  # nor can it end, or pay for, the request of another
            wire.send(encode(Kind.CANCEL, wire.peer, "vault/public", number) + encode(Kind.ALLOW, wire.peer, "vault/public", number, 1000))
            wire.ping()
        assert all_until_pong(callee) == []
        assert all_until_pong(caller) == []
        callee.send(encode_with_payload(b"true", Kind.REPLY, callee.peer, to, asked.elements[3], 1))
        reply = caller.expect(Kind.REPLY)
        assert (reply.elements[1], reply.payload) == (callee.peer, b"true")


def test_answering_what_was_cancelled_has_expired_or_is_answered(bus: RunningDaemon, bob: Stranger, mallory: Stranger) -> None:
    with mallory.join(bus, features=("parts",)) as callee, bob.join(bus) as caller:
        callee.call("own", name="guest.mallory")
        callee.call("serve", name="guest.mallory", methods=["*"])

        def late(number: int) -> None:
            for kind, *between in ((Kind.REPLY, 1), (Kind.ERROR, "no", "late", None), (Kind.PART, 0, 1)):
                callee.send(encode_with_payload(b"late", kind, callee.peer, f":{caller.peer}", number, *between))
                assert callee.expect(Kind.ERROR).elements[4] == Code.NO_SUCH_REQUEST

        number = caller.request("guest.mallory/slow")
        callee.expect(Kind.REQUEST)
        caller.send(encode(Kind.CANCEL, caller.peer, "guest.mallory/slow", number))
        callee.expect(Kind.CANCEL)
        late(number)
        number = caller.request("guest.mallory/slow", timeout_ms=1)
        callee.expect(Kind.REQUEST)
        callee.expect(Kind.CANCEL)
        assert caller.expect(Kind.ERROR).elements[4] == Code.EXPIRED
        late(number)
        number = caller.request("guest.mallory/twice")
        callee.expect(Kind.REQUEST)
        callee.send(encode_with_payload(b"once", Kind.REPLY, callee.peer, f":{caller.peer}", number, 1))
        assert caller.expect(Kind.REPLY).payload == b"once"
        late(number)
        caller.request("guest.mallory/parts")
        number = callee.expect(Kind.REQUEST).elements[3]
        callee.send(encode_with_payload(b"unasked", Kind.PART, callee.peer, f":{caller.peer}", number, 0, 1))  # without credit
        callee.expect_bye(Code.BAD_REPLY)
        assert caller.expect(Kind.ERROR).elements[4] == Code.RESPONDER_DIED
        assert all_until_pong(caller) == []


# --- speaking as the bus ---


def test_sending_what_only_the_bus_says(bus: RunningDaemon, bob: Stranger, mallory: Stranger) -> None:
    said = {
        "notice": encode_with_payload(pack({"name": "vault"}), Kind.NOTICE, 0, "name_lost", None),
        "lane": encode(Kind.LANE, 0, 1),
        "welcome": encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {}),
        "challenge": encode(Kind.CHALLENGE, 0, 1, [], b"n" * 32, b"p" * 32),
        "hello again": encode(Kind.HELLO, 0, 1, 1, [], {}, None),
        "proof": encode(Kind.PROOF, 0, b"p" * 32),
    }
    for name, data in said.items():
        with mallory.join(bus) as wire:
            wire.send(data)
            wire.expect_bye(Code.BAD_STATE)
            assert name
    with mallory.join(bus) as callee, bob.join(bus) as caller:
        callee.call("own", name="guest.mallory")
        callee.call("serve", name="guest.mallory", methods=["*"])
        number = caller.request("guest.mallory/x")
        callee.expect(Kind.REQUEST)
        # E-1: an int is a code of the bus, and no client's
        callee.send(encode_with_payload(b"", Kind.ERROR, callee.peer, f":{caller.peer}", number, Code.DENIED.value, "by the bus", None))
        callee.expect_bye(Code.BAD_ENVELOPE)
        settled = caller.expect(Kind.ERROR)
        assert (settled.elements[1], settled.elements[4]) == (0, Code.RESPONDER_DIED)


@pytest.mark.parametrize("topic", ["$bus.names.vault", "$bus.monitor", "$anything"])
def test_publishing_to_topics_of_the_bus(topic: str, bus: RunningDaemon, mallory: Stranger) -> None:
    with mallory.join(bus) as wire:
        for kind in (Kind.PUBLISH, Kind.RETAIN):
            wire.send(encode_with_payload(b"x", kind, wire.peer, topic, 1))
            assert wire.expect(Kind.ERROR).elements[4] == Code.RESERVED
        for method in ("will", "restore"):
            assert refusal(wire, method, topic=topic, payload=b"x") == "reserved"


# --- what is another's share ---


def test_exhausting_the_quota_of_another(daemon_factory: DaemonFactory, alice: Stranger, mallory: Stranger) -> None:
    """Whatever is full, and however much of it mallory took, somebody else still gets something."""
    limits = "max_bus_lanes = 2000\nmax_bus_names = 2000\nmax_retained_topics = 2000\nmax_peers = 40\n"
    daemon = daemon_factory(config=f'socket_mode = "0666"\n[limits]\n{limits}')
    for directory in (daemon.directory, daemon.directory.parent):
        directory.chmod(0o711)
    taken = [mallory.connect(daemon) for _ in range(41)]
    try:
        greetings = []
        for wire in taken:
            with contextlib.suppress(OSError):  # of one that was refused already
                wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
            said = wire.receive()
            if said is not None and said.kind is Kind.WELCOME:
                wire.peer = said.elements[4]
                greetings.append(wire)
            else:
                assert said is None or said.elements[2] == Code.TOO_MANY_PEERS
        assert 10 < len(greetings) < 40
        greedy = greetings[0]
        for method, argument in (("subscribe", "lane"), ("own", "name")):
            for number in range(1, 2002):
                said = {"lane": number, "pattern": f"a.b{number}", "credit": 1} if argument == "lane" else {"name": f"n{number}"}
                greedy.request(f"bus/{method}", pack(said))
            answers = [greedy.receive() for _ in range(2001)]
            refused = [frame for frame in answers if frame is not None and frame.kind is Kind.ERROR]
            assert refused
            assert {frame.elements[4] for frame in refused} == {Code.OVER_LIMIT}
            assert f"uid {MALLORY}" in refused[0].elements[5]
        with alice.join(daemon) as wire:
            wire.subscribe("mine")
            wire.call("own", name="mine")
            wire.send(encode_with_payload(b"x", Kind.RETAIN, wire.peer, "mine", 1))
            frames = all_until_pong(wire)
            assert [frame.payload for frame in frames if frame.kind is Kind.RETAIN] == [b"x"]
            assert wire.call("get", topic="mine")["sender"] == wire.peer
    finally:
        for wire in taken:
            wire.sock.close()


def test_filling_what_waits_for_another(bus: RunningDaemon, alice: Stranger, bob: Stranger, mallory: Stranger) -> None:
    """Q-5: a flood of sends to who does not read is charged to who sends it, and leaves room for others."""
    with alice.join(bus) as owner, mallory.join(bus) as wire, bob.join(bus) as friend:
        owner.call("own", name="guest.inbox")
        one = encode_with_payload(bytes(1 << 20), Kind.SEND, wire.peer, "guest.inbox", 1)
        for _ in range(140):
            wire.send(one)
        wire.send(encode(Kind.PING, wire.peer, 5))
        said = wire.receive()
        assert said is not None
        assert (said.kind, said.elements[4]) == (Kind.ERROR, Code.OVERLOADED)
        friend.send(encode_with_payload(b"hello", Kind.SEND, friend.peer, "guest.inbox", 1))
        assert all_until_pong(friend) == []
        while (frame := owner.receive()) is None or frame.elements[1] != friend.peer:
            assert frame is not None
        assert frame.payload == b"hello"
