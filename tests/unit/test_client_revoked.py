"""The client's core where the policy says no, or not any more: streams end at their place, names and wills are gone (P-2, P-8)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgpack
import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client._lanes import Lane
from ipcbus_client._session import Session
from ipcbus_client._state import State

from .test_session import WELCOME, answer_all, connected, reply, sent, subscribed

WHY = "rule 3 of /etc/ipcbus/policy.toml, line 12 denies subscribe to 'a.>'"


def revoked(what: str, **about: Any) -> bytes:
    return encode_with_payload(msgpack.packb({"what": what, "why": WHY, **about}), Kind.NOTICE, 0, "revoked", None)


def message(lane: Lane, payload: bytes) -> bytes:
    return encode(Kind.LANE, 0, lane.number) + encode_with_payload(payload, Kind.PUBLISH, 9, "a.b", 1)


def reconnect(session: Session) -> None:
    session.lost("gone", again=True)
    session.opened()
    session.receive(WELCOME)


def told(session: Session) -> list[str]:
    return [remark.text for remark in session.remarks if WHY in remark.text]


def test_a_subscription_ends_at_its_place() -> None:
    session = connected()
    lane, other = subscribed(session), subscribed(session)
    heard: list[int] = []
    lane.notify = lambda: heard.append(len(lane.messages))
    gone = revoked("subscribe", lane=lane.number, pattern="a.>")
    session.receive(message(lane, b"1") + message(other, b"2") + message(lane, b"3") + gone + message(other, b"4"))
    assert [one.payload for one in lane.messages] == [b"1", b"3"]
    assert [one.payload for one in other.messages] == [b"2", b"4"]
    assert (lane.closed, other.closed, heard) == (True, False, [2, 2])
    assert list(session.lanes) == [other.number]
    with pytest.raises(ipcbus_client.Denied) as caught:
        raise lane.ended()
    assert (caught.value.why, caught.value.code, caught.value.who, caught.value.what) == (WHY, Code.DENIED, "a.>", "get")
    assert told(session) == [f"the bus's policy was changed, and ended this: subscribe 'a.>': {WHY}"]
    assert session.declarations.withdraw("subscribe", lane.number) is None  # closing it tells the bus nothing
    assert sent(session) == []
    reconnect(session)
    assert answer_all(session) == ["subscribe"]


@pytest.mark.parametrize("what", ["subscribe", "monitor"])
def test_a_monitor_is_a_subscription_that_is_revoked_by_its_own_name(what: str) -> None:
    session = connected()
    lane = Lane(session.new_id(), "a.>", window_bytes=1000)
    session.declarations.subscribe(lane) if what == "subscribe" else session.declarations.monitor(lane, ["publish"], False)
    (request,) = sent(session)
    session.receive(reply(request.elements[3], {"retained": 0}))
    session.receive(revoked(what, lane=lane.number, pattern="a.>"))
    assert isinstance(lane.error, ipcbus_client.Denied)
    assert told(session) == [f"the bus's policy was changed, and ended this: {what} 'a.>': {WHY}"]


def test_what_was_taken_back_already_is_not_told() -> None:
    session = connected()
    lane = subscribed(session)
    session.declarations.withdraw("subscribe", lane.number)
    for gone in (revoked("subscribe", lane=lane.number), revoked("own", name="x"), revoked("publish", topic="t"), revoked("new thing")):
        session.receive(gone)
    assert lane.error is None
    assert told(session) == []
    assert session.state is State.CONNECTED


def test_a_name_goes_with_what_is_served_under_it() -> None:
    session = connected()
    for name in ("me", "you"):
        session.declarations.own(name, "queue", False, False)
        session.declarations.serve(name, "m")
        session.declarations.serve(name, "n")
    answer_all(session)
    session.receive(revoked("own", name="me"))
    assert session.declarations.declared("own", "me") is None
    assert session.declarations.declared("serve", "me", "m") is None
    assert session.declarations.declared("own", "you") is not None
    assert len(told(session)) == 1
    assert sent(session) == []
    reconnect(session)
    assert answer_all(session) == ["own", "serve", "serve"]


def test_a_name_that_is_denied_after_a_reconnect_goes_with_what_is_served_under_it() -> None:
    session = connected()
    session.declarations.own("me", "exclusive", False, False)
    session.declarations.serve("me", "m")
    session.declarations.own("you", "exclusive", False, False)
    answer_all(session)
    reconnect(session)
    answer_all(session, own=b"%d" % Code.DENIED, serve=b"%d" % Code.NOT_OWNER)
    assert session.declarations.tick(10.0) is None  # there is nothing to be tried again
    assert session.declarations.declared("serve", "me", "m") is None
    reconnect(session)
    assert answer_all(session) == []


def test_methods_that_were_refused_first_are_not_tried_again_without_their_name() -> None:
    session = connected()
    session.declarations.own("me", "exclusive", False, False)
    session.declarations.serve("me", "m")
    answer_all(session)
    reconnect(session)
    answer_all(session, serve=b"%d" % Code.OVERLOADED)
    session.receive(revoked("own", name="me"))
    assert session.declarations.tick(10.0) is None
    assert session.declarations.tick(20.0) is None
    assert sent(session) == []


def test_a_will_and_a_bound_value_are_not_said_again() -> None:
    session = connected()
    posts = session.posts
    posts.will("t", "crashed", False, None)
    posts.put(posts.make("t", "here", True, None, bound=True))
    posts.put(posts.make("u", "here", True, None, bound=True))
    answer_all(session)
    session.receive(revoked("publish", topic="t"))
    assert session.declarations.declared("will", "t") is None
    assert session.declarations.declared("bind", "t") is None
    assert len(told(session)) == 2
    assert sent(session) == []
    session.lost("gone", again=True)
    session.opened()
    session.receive(encode(Kind.WELCOME, 0, 1, [], 8, b"j" * 16, {}))
    assert answer_all(session) == ["bind", "restore"]  # of the other


def test_who_still_waits_for_a_declaration_is_told() -> None:
    session = connected()
    own = session.declarations.own("me", "exclusive", False, False)
    session.receive(revoked("own", name="me"))
    with pytest.raises(ipcbus_client.Denied, match="rule 3"):
        own.result()


def test_a_denied_says_why_wherever_it_comes_from() -> None:
    error = ipcbus_client.Denied(Code.DENIED, WHY, "svc/do")
    assert error.why == WHY
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error)), error.again(who="x")):
        assert isinstance(other, ipcbus_client.Denied)
        assert other.why == WHY


def test_a_bus_that_does_not_let_this_program_in_is_not_asked_again() -> None:
    for session in (connected(), Session(program="p", library="l")):
        if session.state is not State.CONNECTED:
            session.opened()
        session.receive(encode(Kind.BYE, 0, Code.DENIED, "rule 1 denies connect"))
        session.lost(session.hangup or "", again=session.error is None)
        assert session.state is State.CLOSED
        with pytest.raises(ipcbus_client.ConnectError, match="rule 1 denies connect") as caught:
            session.check_open()
        assert (caught.value.reason, caught.value.hint) == ("refused", ipcbus_client.Denied.hint)


def test_a_publication_that_is_denied_is_told_once_for_many() -> None:
    session = connected()
    about = msgpack.packb({"kind": 8, "to": "a.b", "count": 3})
    session.receive(encode_with_payload(about, Kind.ERROR, 0, ":7", 0, Code.DENIED.value, WHY, None))
    assert session.counters["refused"] == 3
    assert told(session) == [f"the bus refused 3 message(s) to 'a.b': denied: {WHY}"]
