"""The client's core: who a sender is (I-1), from notices in the stream, for messages, requests and answers, one bus after the other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgpack
import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import MAX_INTRODUCED
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus.protocol.payloads import MAX_ELEMENTS
from ipcbus_client import Credentials, Message, Request, Sender, aio, testing
from ipcbus_client._gather import Gathering, listed
from ipcbus_client._greeting import FEATURES
from ipcbus_client._lanes import INBOX, Lane
from ipcbus_client._message import LargeMessage, message_class, typed_message
from ipcbus_client._senders import Senders, credentials_of
from ipcbus_client._session import INBOX_MAX_BYTES, Session

LAMP = {
    "peer": 9, "transport": "unix", "program": "lamp", "pid": 900, "uid": 1000, "gid": 100, "groups": [4, 27], "unit": "lamp.service",
    "user_unit": "", "identity": "",
}  # fmt: skip
PANEL = dict.fromkeys(LAMP) | {"peer": 9, "transport": "tcp", "program": "panel", "identity": "default"}


def welcome(incarnation: bytes = b"i") -> bytes:
    return encode(Kind.WELCOME, 0, 1, list(FEATURES), 7, incarnation * 16, {"max_payload_bytes": 4_000_000})


def connected() -> Session:
    session = Session(program="p", library="l")
    session.services.request_class = ipcbus_client.Request  # as a shell does
    session.opened()
    session.receive(welcome())
    return session


def reconnected(session: Session, incarnation: bytes) -> None:
    session.lost("gone", again=True)
    session.opened()
    session.receive(welcome(incarnation))


def subscribed(session: Session, *, typed: Any = None, **options: Any) -> Lane:
    lane = Lane(session.new_id(), "a.>", window_bytes=10_000_000, **options)
    if typed is not None:
        lane.has_type(typed)
    session.declarations.subscribe(lane)
    return lane


def introduced(about: dict[str, Any] = LAMP, **other: Any) -> bytes:
    return encode_with_payload(msgpack.packb({**about, **other}), Kind.NOTICE, 0, "identity", None)


def message(lane: Lane, sender: int = 9, payload: bytes = b"\x01", kind: Kind = Kind.PUBLISH) -> bytes:
    return encode(Kind.LANE, 0, lane.number) + encode_with_payload(payload, kind, sender, "a.b", None)


def test_the_feature_is_offered() -> None:
    assert "identity" in FEATURES


def test_what_the_kernel_said_of_the_sender() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced() + message(lane) + message(lane, 8))
    known, unknown = lane.messages
    assert known.sender == 9
    assert known.sender.credentials == Credentials("unix", "lamp", 900, 1000, 100, (4, 27), "lamp.service", "", "")
    assert (unknown.sender, unknown.sender.credentials) == (8, None)
    session.receive(message(lane, 0))
    assert (lane.messages[2].sender, lane.messages[2].sender.credentials) == (0, None)  # the bus


def test_a_peer_on_tcp_has_the_name_of_its_secret_and_nothing_of_the_kernel() -> None:
    assert credentials_of(PANEL) == Credentials("tcp", "panel", None, None, None, (), "", "", "default")


def test_an_introduction_counts_for_what_comes_after_it_in_the_same_read_or_another() -> None:
    data = [introduced(peer=8), introduced(), *[encode_with_payload(b"", Kind.PUBLISH, 9, "a.b", None)] * 2]
    for splits in range(len(data)):
        session = connected()
        lane = subscribed(session)
        session.receive(encode(Kind.LANE, 0, lane.number))
        session.receive(b"".join(data[:splits]))
        session.receive(b"".join(data[splits:]))
        assert [one.sender.credentials and one.sender.credentials.uid for one in lane.messages] == [1000, 1000], splits


def test_a_sender_is_an_int_in_every_other_way() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced() + message(lane))
    sender = lane.messages[0].sender
    assert (sender, hash(sender), f":{sender}", str(sender), repr(sender), {9: "x"}[sender]) == (9, hash(9), ":9", "9", "9", "x")
    assert msgpack.packb(sender) == b"\x09"
    assert session.outbox.encode({"from": sender, "at": [sender]}, None) == (None, msgpack.packb({"from": 9, "at": [9]}))
    for plain in (copy.copy(sender), copy.deepcopy(sender), pickle.loads(pickle.dumps(sender))):
        assert type(plain) is int
        assert plain == 9


@pytest.mark.parametrize("payload", [b"\x01", b"\xdd\x00\x0f\x42\x41" + bytes(1_000_001)])
@pytest.mark.parametrize("typed", [None, list[int] | int])
def test_a_message_that_is_copied_or_pickled_is_a_plain_one(payload: bytes, typed: Any) -> None:
    session = connected()
    lane = subscribed(session, typed=typed)
    session.receive(introduced() + message(lane, payload=payload))
    (received,) = lane.messages
    for other in (copy.copy(received), copy.deepcopy(received), pickle.loads(pickle.dumps(received))):
        assert other == received
        assert type(other) is message_class(len(payload))  # so that S-2 holds for it, too
        assert (other.sender, other.sender.credentials) == (9, None)


def test_every_kind_of_message_has_its_sender() -> None:
    session = connected()
    plain, typed, group = subscribed(session), subscribed(session, typed=int), subscribed(session, group="g")
    session.inbox = Lane(INBOX, "inbox", window_bytes=INBOX_MAX_BYTES)
    session.receive(introduced() + message(plain) + message(typed, kind=Kind.RETAIN) + message(group))
    session.receive(encode_with_payload(b"\x01", Kind.SEND, 9, "me", None))
    large = b"\xdd\x00\x0f\x42\x41" + bytes(1_000_001)
    session.receive(message(plain, payload=large))
    session.receive(encode_with_payload(large, Kind.SEND, 9, "me", None))
    everything = [*plain.messages, *typed.messages, *group.messages, *session.inbox.messages]
    assert len(everything) == 6
    assert all(isinstance(one, Message) and one.sender.credentials == credentials_of(LAMP) for one in everything)
    assert typed.messages[0].data == 1
    for one in (plain.messages[1], session.inbox.messages[1]):
        with pytest.raises(ipcbus_client.PayloadError):
            _ = one.data  # S-2 holds for it


def test_what_waits_when_the_bus_is_another_keeps_its_sender_and_a_reused_id_is_not_taken_for_it() -> None:
    session = connected()
    lane, typed = subscribed(session), subscribed(session, typed=int)
    session.receive(introduced() + message(lane) + message(typed))
    reconnected(session, b"j")
    session.receive(message(lane) + message(typed))  # nobody was introduced to this connection
    for one in (lane, typed):
        assert [message.sender.credentials and message.sender.credentials.program for message in one.messages] == ["lamp", None]
    session.receive(introduced(uid=0, program="other"))  # an id is one peer's while the bus lives
    for one in (lane, typed):
        assert [message.sender.credentials and message.sender.credentials.program for message in one.messages] == ["lamp", "other"]
    later = subscribed(session)
    session.receive(message(later))
    assert later.messages[0].sender.credentials == credentials_of({**LAMP, "uid": 0, "program": "other"})


def test_over_a_reconnect_to_the_same_bus_who_was_known_stays_so() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced())
    reconnected(session, b"i")
    session.receive(message(lane))
    assert lane.messages[0].sender.credentials == credentials_of(LAMP)


@pytest.mark.parametrize(("others", "known"), [(MAX_INTRODUCED - 2, True), (MAX_INTRODUCED - 1, True), (MAX_INTRODUCED, False)])
def test_the_oldest_is_forgotten_as_the_bus_does(others: int, known: bool) -> None:
    senders = Senders()
    senders.introduce(LAMP)
    held = senders[9]
    for peer in range(100, 100 + others):
        senders.introduce({**LAMP, "peer": peer})
    assert len(senders) == min(others + 1, MAX_INTRODUCED)
    assert (senders[9].credentials is not None) is known
    assert senders[99 + others].credentials is not None
    assert held.credentials == credentials_of(LAMP)  # who holds it keeps it


def test_who_is_introduced_again_is_the_latest() -> None:
    senders = Senders()
    for peer in range(1, MAX_INTRODUCED + 1):
        senders.introduce({**LAMP, "peer": peer})
    senders.introduce({**LAMP, "peer": 1})  # as to a new connection
    senders.introduce({**LAMP, "peer": MAX_INTRODUCED + 1})
    assert senders[1].credentials is not None
    assert senders[2].credentials is None
    assert len(senders) == MAX_INTRODUCED


def test_a_message_costs_what_a_tuple_does() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced() + message(lane))
    cls: Any = type(lane.messages[0])
    assert (cls.__new__, cls.__init__) == (tuple.__new__, object.__init__)  # no Python call for each of a hundred thousand
    assert not hasattr(lane.messages[0], "__dict__")


def test_looking_somebody_up_remembers_nobody() -> None:
    senders = Senders()
    assert senders[5] == 5
    assert not senders


def test_of_a_sender_that_had_gone_nothing_is_known() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced(dict.fromkeys(LAMP) | {"peer": 9, "gone": True}) + message(lane))
    assert lane.messages[0].sender.credentials is None
    assert session.hangup is None


def test_what_was_known_of_a_sender_that_has_gone_stays() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(introduced())
    reconnected(session, b"i")
    session.receive(introduced(dict.fromkeys(LAMP) | {"peer": 9, "gone": True}) + message(lane))
    assert lane.messages[0].sender.credentials == credentials_of(LAMP)


def test_a_malformed_introduction_ends_the_connection() -> None:
    for about in ({}, {"peer": [1], "transport": "unix"}):
        session = connected()
        session.receive(encode_with_payload(msgpack.packb(about), Kind.NOTICE, 0, "identity", None))
        assert session.hangup is not None


def test_a_request_says_who_asks() -> None:
    session = connected()
    session.services.add("svc", "do", "handler")
    ask = encode_with_payload(b"\x05", Kind.REQUEST, 9, "svc/do", 1, 1500, None)
    session.receive(introduced() + ask)
    ((_, request),) = session.services.requests
    assert isinstance(request, Request)
    assert (request.sender, request.sender.credentials) == (9, credentials_of(LAMP))
    session.services.requests.clear()
    reconnected(session, b"j")
    session.receive(encode_with_payload(b"\x05", Kind.REQUEST, 9, "svc/do", 1, 1500, None))
    assert request.sender.credentials == credentials_of(LAMP)
    ((_, another),) = session.services.requests
    assert another.sender.credentials is None


def test_who_answered_one_of_many() -> None:
    session = connected()
    gathering = Gathering(session, listed(["one/do", "two/do"], session), by_name=True)
    gathering.ask(None, None, 1.0)
    first, second = session.calls
    session.receive(introduced() + encode_with_payload(b"\x01", Kind.REPLY, 9, ":7", first, None))
    session.receive(encode_with_payload(b"", Kind.ERROR, 0, ":7", second, Code.NO_SUCH_NAME.value, "nobody", None))
    known, nobody = gathering.answers(1.0)
    assert (known.peer, known.peer.credentials, known.data) == (9, credentials_of(LAMP), 1)
    assert (nobody.peer, nobody.peer.credentials) == (0, None)


def test_what_the_bus_kept_is_of_who_is_known_unless_it_is_another_bus_meanwhile() -> None:
    session = connected()
    session.receive(introduced())
    found = {"topic": "a", "sender": 9, "meta": None, "payload": b"\x01"}
    asked = session.told.senders
    for make in (None, typed_message(int)):
        kept = session.told.kept(found, make, asked)
        assert kept is not None
        assert (kept.sender, kept.sender.credentials, kept.data) == (9, credentials_of(LAMP), 1)
    assert type(session.told.kept(found, None, asked)) is type(session.told.kept(found, None, asked)), "no class is made for each"
    large = session.told.kept({**found, "payload": bytes(MAX_ELEMENTS + 1)}, None, asked)
    assert isinstance(large, LargeMessage)
    assert session.told.kept(None, None, asked) is None
    reconnected(session, b"j")
    session.receive(introduced(uid=0))
    for make in (None, typed_message(int)):
        kept = session.told.kept(found, make, asked)
        assert kept is not None
        assert (kept.sender, kept.sender.credentials) == (9, None)


def test_who_a_peer_is_is_not_asked_of_another_bus() -> None:
    """Its peers have the same ids."""
    with testing.FakeBus() as kit:
        lamp, asks = kit.connect(program="lamp"), kit.connect(program="panel")
        sub = asks.subscribe("a")
        lamp.publish("a")
        sender = sub.get(1).sender
        credentials = sender.credentials
        assert credentials is not None
        assert asks.identity(int(sender)) == asks.identity(sender) == credentials
        lamp.close()
        kit.kill()
        kit.call_later(1, kit.restart)
        with pytest.raises(ipcbus_client.NoSuchPeer, match=f"restarted: peer {int(sender)} "):
            asks.identity(int(sender))
        assert asks.peer_id == sender
        assert asks.identity(sender) == credentials
        assert asks.identity(int(sender)).program == "panel"


def test_without_a_bus_nothing_is_known() -> None:
    made = Message((Kind.PUBLISH.value, 9, "a", None, b"\x01"))
    assert isinstance(made.sender, Sender)
    assert (made.sender, made.sender.credentials) == (9, None)


@pytest.mark.parametrize("wrong", [None, "9", 9.0, True, ":9"])
def test_who_is_asked_for_is_an_int(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a peer of"):
        ipcbus_client._names.check_peer(wrong)  # type: ignore[attr-defined]
    assert aio.Credentials is Credentials
