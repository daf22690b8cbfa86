"""Names, sends and requests (section 7), and the bus as a service (section 8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from ipcbus.broker import Broker
from ipcbus.protocol.auth import Secret, Secrets
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import MAX_ID, Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication


def notices(client: Client) -> list[tuple[str, Any]]:
    return [(e[2], msgpack.unpackb(e[-1])) for e in client.read() if e[0] == Kind.NOTICE]


def owners(bus: Bus, name: str) -> list[int]:
    record = bus.broker.names.get(name)
    return [claim.peer.id for claim in record.owners] if record else []


# --- ownership ------------------------------------------------------------------------------------


def test_exclusive() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    assert a.ask("own", name="svc") == {"owner": True, "position": 0}
    assert a.ask("own", name="svc") == {"owner": True, "position": 0}
    code, text = b.ask("own", name="svc")
    assert code == Code.NAME_TAKEN
    assert f"peer {a.id}" in text
    assert a.ask("release", name="svc") == {}
    assert a.ask("release", name="svc")[0] == Code.NOT_OWNER
    assert b.ask("own", name="svc")["owner"] is True


def test_queue() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    a.ask("own", name="svc", mode="queue")
    assert b.ask("own", name="svc", mode="queue") == {"owner": False, "position": 1}
    assert c.ask("own", name="svc", mode="queue") == {"owner": False, "position": 2}
    b.ask("release", name="svc")
    assert c.ask("own", name="svc", mode="queue") == {"owner": False, "position": 1}
    a.leave()
    assert owners(bus, "svc") == [c.id]
    assert notices(c) == [("name_acquired", {"name": "svc"})]


def test_another_mode_for_who_has_the_name() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.ask("own", name="svc")
    assert a.ask("own", name="svc", mode="queue")["owner"] is True
    assert a.ask("names")["items"][0]["mode"] == "queue"
    assert a.ask("own", name="svc", mode="shared")[0] == Code.NAME_TAKEN
    b.ask("own", name="all", mode="shared")
    assert b.ask("own", name="all")[0] == Code.NAME_TAKEN


def test_replace() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    a.ask("own", name="svc")
    assert b.ask("own", name="svc", replace=True)[0] == Code.NAME_TAKEN
    a.ask("own", name="svc", allow_replace=True)
    assert b.ask("own", name="svc", replace=True, mode="queue", allow_replace=True)["owner"] is True
    assert notices(a) == [("name_lost", {"name": "svc"})]
    assert a.ask("release", name="svc")[0] == Code.NOT_OWNER
    c.ask("own", name="svc", replace=True)
    assert notices(b) == [("name_lost", {"name": "svc"})]
    c.leave()  # b waited first in line, because its mode was queue
    assert owners(bus, "svc") == [b.id]


def test_who_is_replaced_waits_before_those_who_came_earlier() -> None:
    bus = Bus()
    a, waiting, taker = bus.peer(), bus.peer(), bus.peer()
    a.ask("own", name="svc", mode="queue", allow_replace=True)
    assert waiting.ask("own", name="svc", mode="queue") == {"owner": False, "position": 1}
    assert taker.ask("own", name="svc", replace=True) == {"owner": True, "position": 0}
    assert a.ask("own", name="svc", mode="queue") == {"owner": False, "position": 1}
    taker.leave()
    assert owners(bus, "svc") == [a.id]


def test_shared() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    a.ask("own", name="svc", mode="shared")
    assert b.ask("own", name="svc", mode="shared") == {"owner": True, "position": 0}
    assert c.ask("own", name="svc", mode="queue")[0] == Code.NAME_TAKEN
    a.leave()
    assert owners(bus, "svc") == [b.id]
    c.ask("own", name="other")
    assert b.ask("own", name="other", mode="shared")[0] == Code.NAME_TAKEN


@pytest.mark.parametrize(("name", "code"), [("bus", Code.RESERVED), ("bus.x", Code.RESERVED), ("a b", Code.BAD_NAME), ("", Code.BAD_NAME)])
def test_names_that_nobody_can_own(name: str, code: Code) -> None:
    assert Bus().peer().ask("own", name=name)[0] == code


def test_the_limit_of_names() -> None:
    a = Bus(max_names=2).peer()
    assert [type(a.ask("own", name=f"n{i}")) for i in range(3)] == [dict, dict, tuple]
    assert a.ask("own", name="n3")[0] == Code.OVER_LIMIT


def test_changes_are_published() -> None:
    bus = Bus()
    a, b, watcher = bus.peer(), bus.peer(), bus.peer()
    watcher.subscribe("$bus.names.svc")
    watcher.subscribe("$bus.>", 2, group="g", messages=100)
    a.ask("own", name="svc", mode="queue")
    b.ask("own", name="svc", mode="queue")
    a.leave()
    b.leave()
    got = [msgpack.unpackb(payload)["owners"] for payload in watcher.read_payloads()]
    assert got == [[a.id], [a.id], [b.id], [b.id], [], []]


# --- sends ----------------------------------------------------------------------------------------


def test_send_to_a_name_and_to_a_peer() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.ask("own", name="svc")
    data = publication(a.id, "svc", b"1", Kind.SEND) + publication(a.id, f":{b.id}", b"2", Kind.SEND)
    a.write(data * 2)
    assert b.read_payloads(Kind.SEND) == [b"1", b"2", b"1", b"2"]
    assert a.read() == []


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("nobody", Code.NO_SUCH_NAME),
        (":99", Code.NO_SUCH_PEER),
        (":x", Code.BAD_NAME),
        (":01", Code.BAD_NAME),
        ("a b", Code.BAD_NAME),
        (f":{MAX_ID + 1}", Code.BAD_NAME),
        ("bus", Code.RESERVED),
    ],
)
def test_send_to_nowhere(to: str, code: Code) -> None:
    a = Bus().peer()
    a.write(publication(a.id, to, b"1", Kind.SEND))
    (error,) = a.read()
    assert (error[3], error[4]) == (0, code)
    assert msgpack.unpackb(error[-1]) == {"kind": Kind.SEND, "to": to, "count": 1}


def test_send_to_a_shared_name_goes_to_the_one_with_the_least_output() -> None:
    bus = Bus()
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    b.ask("own", name="svc", mode="shared")
    c.ask("own", name="svc", mode="shared")
    for _ in range(4):
        a.write(publication(a.id, "svc", b"1", Kind.SEND))
    assert (len(b.read()), len(c.read())) == (2, 2)


def test_send_to_who_does_not_read_is_refused_at_the_limit() -> None:
    bus = Bus(max_output_bytes=1000)
    a, b = bus.peer(), bus.peer()
    frame = publication(a.id, ":2", b"x" * 480, Kind.SEND)
    a.write(frame)
    a.write(frame)
    assert a.read() == []
    a.write(frame)
    assert [e[4] for e in a.read()] == [Code.OVERLOADED]
    bus.broker.take_touched()
    assert len(b.read()) == 2


# --- requests -------------------------------------------------------------------------------------


def test_request_and_reply() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.request("svc/get", b"ask", id=5, timeout_ms=250)
    assert b.read() == [[Kind.REQUEST, a.id, "svc/get", 5, 250, None, b"ask"]]
    b.reply(a, 5, b"answer")
    assert a.read() == [[Kind.REPLY, b.id, f":{a.id}", 5, None, b"answer"]]
    assert len(bus.broker.requests) == 0
    a.request(f":{b.id}/get", id=5)
    assert len(b.read()) == 1


def test_a_service_s_error_passes_with_its_own_code() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    b.write(encode_with_payload(b"", Kind.ERROR, b.id, f":{a.id}", id, "too_hot", "it burns", None))
    assert a.read() == [[Kind.ERROR, b.id, f":{a.id}", id, "too_hot", "it burns", None, b""]]


def test_a_service_cannot_say_a_bus_code() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    b.write(encode_with_payload(b"", Kind.ERROR, b.id, f":{a.id}", id, 24, "", None))
    assert b.read()[-1][:3] == [Kind.BYE, 0, Code.BAD_ENVELOPE]
    assert a.read()[-1][4] == Code.RESPONDER_DIED


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("nobody/get", Code.NO_SUCH_NAME),
        ("svc/other", Code.NO_SUCH_METHOD),
        (":2/other", Code.NO_SUCH_METHOD),
        (":9/get", Code.NO_SUCH_PEER),
        ("svc", Code.BAD_NAME),
        ("svc/", Code.BAD_NAME),
        ("svc/1x", Code.BAD_NAME),
        ("a b/get", Code.BAD_NAME),
        (":x/get", Code.BAD_NAME),
        ("bus/nothing", Code.NO_SUCH_METHOD),
        ("bus/monitor", Code.BAD_ARGUMENT),
        ("bus.x/get", Code.RESERVED),
    ],
)
def test_requests_that_fail_at_once(to: str, code: Code) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request(to)
    (error,) = a.read()
    assert error[:5] == [Kind.ERROR, 0, f":{a.id}", id, code]
    assert b.read() == []


def test_any_method_and_unserve() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "*", "get")
    a.request("svc/whatever")
    assert len(b.read()) == 1
    assert b.ask("unserve", name="svc", methods=["*"]) == {}
    a.request("svc/whatever")
    assert a.read()[0][4] == Code.NO_SUCH_METHOD
    a.request("svc/get")
    assert len(b.read()) == 1
    assert b.ask("unserve", name="else", methods=["*"])[0] == Code.NOT_OWNER
    assert b.ask("serve", name="else", methods=["m"])[0] == Code.NOT_OWNER
    assert b.ask("serve", name="svc", methods=["1"])[0] == Code.BAD_NAME


def test_the_limit_of_methods() -> None:
    b = Bus(max_methods=2).peer()
    b.serve("svc", "a", "b")
    assert b.ask("serve", name="svc", methods=["a"]) == {}
    assert b.ask("serve", name="svc", methods=["c"])[0] == Code.OVER_LIMIT


def test_a_shared_name_s_requests_go_to_the_least_loaded_that_serves_the_method() -> None:
    bus = Bus()
    a, b, c, d = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    b.serve("svc", "get", mode="shared")
    c.serve("svc", "get", mode="shared")
    d.serve("svc", "set", mode="shared")
    for _ in range(4):
        a.request("svc/get")
    assert (len(b.read()), len(c.read()), len(d.read())) == (2, 2, 0)


def test_the_responder_dies() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    b.leave()
    assert [e[:5] for e in a.read()] == [[Kind.ERROR, 0, f":{a.id}", id, Code.RESPONDER_DIED]]


def test_expiry_tells_both_and_a_late_reply_is_refused() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get", timeout_ms=500)
    b.read()
    assert bus.broker.next_deadline() == bus.now + 0.5
    bus.advance(0.499)
    assert a.read() == []
    bus.advance(0.001)
    assert a.read()[0][3:5] == [id, Code.EXPIRED]
    assert b.read() == [[Kind.CANCEL, a.id, "svc/get", id]]
    b.reply(a, id)
    assert b.read()[0][3:5] == [0, Code.NO_SUCH_REQUEST]
    assert a.read() == []
    assert (bus.broker.counters.expired, bus.broker.counters.late_replies) == (1, 1)


def test_cancel_is_authoritative() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    a.write(encode(Kind.CANCEL, a.id, "svc/other", id))  # not that request
    a.write(encode(Kind.CANCEL, a.id, "svc/get", id + 1))
    assert len(b.read()) == 1
    a.write(encode(Kind.CANCEL, a.id, "svc/get", id))
    a.write(encode(Kind.CANCEL, a.id, "svc/get", id))
    assert b.read() == [[Kind.CANCEL, a.id, "svc/get", id]]
    b.reply(a, id)
    bus.advance(10)
    assert a.read() == []


def test_the_requester_goes() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    b.read()
    a.leave()
    assert b.read() == [[Kind.CANCEL, a.id, "svc/get", id]]
    b.write(encode_with_payload(b"", Kind.REPLY, b.id, f":{a.id}", id, None))
    assert b.read()[0][4] == Code.NO_SUCH_REQUEST


def test_a_second_reply_is_refused_and_one_to_somebody_else_s_request_is_fatal() -> None:
    bus = Bus()
    a, b, thief = bus.peer(), bus.peer(), bus.peer()
    b.serve("svc", "get")
    id = a.request("svc/get")
    thief.reply(a, id, b"mine")
    assert thief.read()[-1][:3] == [Kind.BYE, 0, Code.BAD_REPLY]
    assert thief.peer.closing
    b.reply(a, id)
    b.reply(a, id)
    assert len(a.read()) == 1
    assert [e[4] for e in b.read() if e[0] == Kind.ERROR] == [Code.NO_SUCH_REQUEST]


@pytest.mark.parametrize("to", [":99", "svc", ":x"])
def test_replies_to_nowhere(to: str) -> None:
    a = Bus().peer()
    a.write(encode_with_payload(b"", Kind.REPLY, a.id, to, 1, None))
    assert a.read()[0][3:5] == [0, Code.NO_SUCH_REQUEST]


def test_an_id_in_flight_cannot_be_used_again() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.request("svc/get", id=5)
    a.request("svc/get", id=5)
    assert a.read()[-1][:3] == [Kind.BYE, 0, Code.DUPLICATE_ID]
    assert b.read()[-1][0] == Kind.CANCEL


@pytest.mark.parametrize(("timeout_ms", "good"), [(0, False), (1, True), (86_400_000, True), (86_400_001, False)])
def test_the_limits_of_timeout_ms(timeout_ms: int, good: bool) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.request("svc/get", timeout_ms=timeout_ms)
    assert len(b.read()) == good
    assert [e[4] for e in a.read()] == ([] if good else [Code.BAD_ARGUMENT])


def test_the_limits_of_requests_in_flight() -> None:
    bus = Bus(max_requests=2, max_callee_requests=3)
    a, b, c = bus.peer(), bus.peer(), bus.peer()
    c.serve("svc", "get")
    for _ in range(3):
        a.request("svc/get")
    assert [e[4] for e in a.read()] == [Code.OVER_LIMIT]
    b.request("svc/get")
    assert b.read() == []
    b.request("svc/get")
    assert [e[4] for e in b.read()] == [Code.OVERLOADED]


def test_a_callee_that_does_not_read_is_overloaded() -> None:
    bus = Bus(max_output_bytes=500)
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.request("svc/get", b"x" * 400)
    assert a.read() == []
    a.request("svc/get", b"x" * 400)
    assert [e[4] for e in a.read()] == [Code.OVERLOADED]


def test_settled_requests_leave_the_heap_of_deadlines() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    for index in range(1, 3000):
        a.request("svc/get", id=index)
        b.reply(a, index)
    a.read()
    assert len(bus.broker.requests._heap) <= 1001
    assert bus.broker.next_deadline() is None


# --- the bus as a service -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "code"),
    [
        ("ping", {"x": 1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "credit": 1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "lane": 0, "credit": 1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "lane": True, "credit": 1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "lane": 1, "credit": -1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": 5, "lane": 1, "credit": 1}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "lane": 1, "credit": 1, "policy": "never"}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a", "lane": 1, "credit": 1, "limits": []}, Code.BAD_ARGUMENT),
        ("subscribe", {"pattern": "a..", "lane": 1, "credit": 1}, Code.BAD_TOPIC),
        ("subscribe", {"pattern": "a", "lane": 1, "credit": 1, "group": "a b"}, Code.BAD_NAME),
        ("own", {"name": "a", "mode": "mine"}, Code.BAD_ARGUMENT),
        ("own", {}, Code.BAD_ARGUMENT),
        ("serve", {"name": "a", "methods": "m"}, Code.BAD_ARGUMENT),
        ("names", {"limit": 0}, Code.BAD_ARGUMENT),
        ("names", {"limit": 10_001}, Code.BAD_ARGUMENT),
        ("names", {"after": 5}, Code.BAD_ARGUMENT),
        ("peers", {"after": "x"}, Code.BAD_ARGUMENT),
        ("introspect", {"name": "nobody"}, Code.NO_SUCH_NAME),
    ],
)
def test_arguments_are_checked(method: str, arguments: dict[str, Any], code: Code) -> None:
    got, text = Bus().peer().ask(method, **arguments)
    assert got == code
    assert text


@pytest.mark.parametrize(
    ("payload", "good"), [(b"", True), (b"\xc0", True), (b"\x80", True), (b"\x90", False), (b"\xc1", False), (b"\x81\x01\x01", False)]
)
def test_the_payload_of_a_request_to_the_bus(payload: bytes, good: bool) -> None:
    a = Bus().peer()
    a.request("bus/ping", payload)
    assert (a.read()[0][0] == Kind.REPLY) is good


def test_a_lane_in_use_and_the_limit_of_lanes() -> None:
    a = Bus(max_lanes=2).peer()
    a.subscribe("x", 1)
    assert a.ask("subscribe", pattern="y", lane=1, credit=1)[0] == Code.LANE_IN_USE
    a.subscribe("y", 2)
    assert a.ask("subscribe", pattern="z", lane=3, credit=1)[0] == Code.OVER_LIMIT
    assert a.ask("unsubscribe", lane=1) == {"dropped": 0}
    a.subscribe("z", 3)


def test_an_illegal_group_or_pattern_leaves_nothing() -> None:
    bus = Bus()
    a = bus.peer()
    a.ask("subscribe", pattern="a", lane=1, credit=1, group="a b")
    a.ask("subscribe", pattern="a.>.b", lane=1, credit=1)
    assert bus.broker.lane_count == 0
    a.subscribe("a", 1)


def test_lists_are_paged() -> None:
    bus = Bus()
    a = bus.peer("prog")
    for name in ("c", "a", "b"):
        a.ask("own", name=name)
        a.publish(f"topic.{name}")
    page = a.ask("names", limit=2)
    assert [item["name"] for item in page["items"]] == ["a", "b"]
    assert page["next"] == "b"
    page = a.ask("names", limit=2, after="b")
    assert ([item["name"] for item in page["items"]], page["next"]) == (["c"], None)
    assert [item["topic"] for item in a.ask("topics", limit=2)["items"]] == ["topic.a", "topic.b"]
    bus.peer()
    page = a.ask("peers", limit=1)
    assert (page["items"][0]["program"], page["items"][0]["pid"], page["next"]) == ("prog", 10, 1)
    assert a.ask("peers", after=1)["items"][0]["peer"] == 2


def test_topics_beyond_the_limit_are_counted_together() -> None:
    bus = Bus(max_topic_counters=2)
    a = bus.peer()
    for topic in ("a", "b", "c", "d"):
        a.publish(topic, b"1", b"2")
    items = {item["topic"]: item["messages"] for item in a.ask("topics")["items"]}
    assert items == {"a": 2, "b": 2, "(all others)": 4}


def test_topics_tell_receivers_and_retained() -> None:
    bus = Bus()
    a = bus.peer()
    a.subscribe("s.*", 1)
    a.subscribe("s.one", 2, group="g")
    a.publish("s.one", b"1", kind=Kind.RETAIN)
    a.read()
    nothing_lost = {"no_subscriber": 0, "no_subscriber_s": None, "lost": 0, "expired": 0, "not_kept": 0}
    assert a.ask("topics")["items"] == [{"topic": "s.one", "messages": 1, "bytes": 21, "lanes": 2, "retained": True} | nothing_lost]


def test_stats_ping_and_introspection() -> None:
    bus = Bus()
    a = bus.peer()
    a.serve("svc", "get", "set")
    bus.now += 2
    stats = a.ask("stats")
    assert stats["uptime_s"] == 2
    assert (stats["peers"], stats["names"], stats["lanes"], stats["requests"], stats["pid"]) == (1, 1, 0, 0, 4242)
    assert a.ask("ping") == {"now_s": 2}
    assert a.ask("introspect", name="svc") == {"name": "svc", "methods": {"get": {}, "set": {}}}
    methods = a.ask("introspect")["methods"]
    assert "pattern" in methods["subscribe"]["arguments"]
    assert "will" in methods
    assert "monitor" in methods


ABOUT = {"doc": "Get it.", "arguments": {"x": {"type": "int", "required": True}}}


def test_what_a_peer_says_about_its_methods_is_what_introspection_gives() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.ask("own", name="svc", mode="shared")
    b.ask("own", name="svc", mode="shared")
    a.ask("serve", name="svc", methods=["get", "set"], about={"get": ABOUT})
    b.ask("serve", name="svc", methods=["get", "other"], about={"get": {"doc": "of another"}, "other": {"doc": "o"}})
    assert b.ask("introspect", name="svc")["methods"] == {"get": ABOUT, "other": {"doc": "o"}, "set": {}}
    a.ask("serve", name="svc", methods=["get"])  # nothing said: what was said stays
    assert b.ask("introspect", name="svc")["methods"]["get"] == ABOUT
    a.ask("serve", name="svc", methods=["get"], about={"get": {"doc": "new"}})
    assert b.ask("introspect", name="svc")["methods"]["get"] == {"doc": "new"}
    a.ask("unserve", name="svc", methods=["get"])
    assert b.ask("introspect", name="svc")["methods"]["get"] == {"doc": "of another"}
    a.ask("serve", name="svc", methods=["get"])
    assert b.ask("introspect", name="svc")["methods"]["get"] == {"doc": "of another"}  # not what a said before
    b.ask("release", name="svc")
    assert a.ask("introspect", name="svc")["methods"] == {"get": {}, "set": {}}


@pytest.mark.parametrize(
    "about",
    [3, [], {"get": 3}, {"get": None}, {"other": {}}, {1: {}}],
)
def test_what_is_said_has_to_be_maps_of_methods_that_are_served(about: Any) -> None:
    a = Bus().peer()
    a.ask("own", name="svc")
    answer = a.ask("serve", name="svc", methods=["get"], about=about)
    assert answer[0] == Code.BAD_ARGUMENT
    assert a.ask("introspect", name="svc") == {"name": "svc", "methods": {}}


def test_what_is_said_is_bounded_by_method_and_by_peer() -> None:
    bus = Bus()
    a = bus.peer()
    a.ask("own", name="svc")
    a.ask("own", name="two")

    def said(size: int) -> dict[str, str]:
        return {"doc": "x" * (size - 8)}  # 1 for the map, 4 for the key, 3 for the length of the text

    for size, good in ((65_535, True), (65_536, True), (65_537, False)):
        answer = a.ask("serve", name="svc", methods=["m"], about={"m": said(size)})
        assert answer == {} if good else answer[0] == Code.OVER_LIMIT, size
    for number in range(7):  # with m: 8 of the 16 that fit
        assert a.ask("serve", name="svc", methods=[f"a{number}"], about={f"a{number}": said(65_536)}) == {}
    for number in range(8):
        assert a.ask("serve", name="two", methods=[f"b{number}"], about={f"b{number}": said(65_536)}) == {}
    assert a.ask("serve", name="two", methods=["b0"], about={"b0": said(65_536)}) == {}  # in the place of what was said
    assert a.ask("serve", name="two", methods=["c"], about={"c": {}})[0] == Code.OVER_LIMIT
    assert a.ask("introspect", name="two")["methods"]["b7"] == said(65_536)
    assert "c" not in a.ask("introspect", name="two")["methods"]  # refused as a whole
    a.ask("unserve", name="svc", methods=["m"])
    assert a.ask("serve", name="two", methods=["c"], about={"c": {}}) == {}


def test_introspection_of_a_name_whose_owners_say_much_leaves_the_rest_out() -> None:
    bus = Bus()
    peers = [bus.peer() for _ in range(3)]
    for at, peer in enumerate(peers):
        peer.ask("own", name="svc", mode="shared")
        for number in range(8):
            method = f"m{at}{number}"
            peer.ask("serve", name="svc", methods=[method], about={method: {"doc": "x" * 65_000}})
    methods = peers[0].ask("introspect", name="svc")["methods"]
    assert len(methods) == 24
    assert [bool(methods[name]) for name in sorted(methods)] == [True] * 16 + [False] * 8


# --- connections ----------------------------------------------------------------------------------


def test_half_close_delivers_what_is_due_and_then_ends() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.ask("own", name="mine")
    a.subscribe("x")
    id = a.request("svc/get")
    bus.broker.half_close(a.peer, bus.now)
    bus.broker.half_close(a.peer, bus.now)
    assert not a.peer.closing
    assert (owners(bus, "mine"), bus.broker.lane_count) == ([], 0)
    b.write(publication(b.id, f":{a.id}", b"", Kind.SEND))
    assert b.read()[-1][4] == Code.NO_SUCH_PEER
    b.reply(a, id, b"due")
    assert a.read_payloads(Kind.REPLY) == [b"due"]
    assert a.peer.closing


def test_half_close_with_nothing_due_ends_at_once() -> None:
    bus = Bus()
    a = bus.peer()
    bus.broker.half_close(a.peer, bus.now)
    assert a.peer.closing
    stranger = bus.broker.connect(bus.now)
    bus.broker.half_close(stranger, bus.now)
    assert stranger.closing


def test_half_close_does_not_last_for_ever() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "get")
    a.request("svc/get", timeout_ms=60_000)
    b.read()
    bus.broker.half_close(a.peer, bus.now)
    bus.advance(9.9)
    assert not a.peer.closing
    bus.advance(0.2)
    assert a.peer.closing
    assert b.read()[0][0] == Kind.CANCEL


def test_bye_ends() -> None:
    bus = Bus()
    a = bus.peer()
    a.ask("own", name="svc")
    a.write(encode(Kind.BYE, a.id, 0, "") + encode(Kind.PING, a.id, 1))
    assert a.peer.closing
    assert a.read() == []
    a.write(encode(Kind.PING, a.id, 1))
    assert a.read() == []
    bus.broker.disconnect(a.peer, bus.now)
    bus.broker.disconnect(a.peer, bus.now)
    assert (len(bus.broker.peers), len(bus.broker.names)) == (0, 0)


def test_a_handshake_that_does_not_end() -> None:
    bus = Bus()
    stranger = bus.broker.connect(bus.now)
    bus.advance(9.9)
    assert not stranger.closing
    bus.advance(0.1)
    assert stranger.closing
    assert bytes(stranger.out[0])[8] == Code.HANDSHAKE_TIMEOUT
    assert "H-9" in bus.log[-1][1]


def test_a_fatal_error_is_logged_once_and_hurts_nobody_else() -> None:
    bus = Bus()
    a, b = bus.peer("bad"), bus.peer()
    b.subscribe("x")
    a.write(publication(a.id, "x", b"1") + publication(b.id, "x", b"forged") + publication(a.id, "x", b"2"))
    assert a.read()[-1][:3] == [Kind.BYE, 0, Code.FORGED_SENDER]
    assert b.read_payloads() == [b"1"]
    assert len([text for level, text in bus.log if level >= 30]) == 1
    assert "bad" in bus.log[-1][1]
    assert bus.broker.counters.protocol_errors == 1


def test_who_does_not_read_is_closed() -> None:
    bus = Bus(max_output_bytes=1000)
    a = bus.peer()
    for index in range(1, 100):
        a.write(encode(Kind.PING, a.id, index))
    assert bus.broker.take_touched()
    assert not a.peer.closing
    for index in range(100, 200):
        a.write(encode(Kind.PING, a.id, index))
    touched = bus.broker.take_touched()
    assert a.peer in touched
    assert a.peer.closing
    assert a.read()[-1][:3] == [Kind.BYE, 0, Code.SLOW_READER]


def test_credit_for_a_callee_that_does_not_read_is_bounded() -> None:
    """R-6: an ALLOW that would go over what may wait for the callee settles the request; one that just fits is forwarded."""
    allow = encode(Kind.ALLOW, 2, "n/m", 7, 1000)
    for room, refused in ((len(allow) - 1, True), (len(allow), False), (len(allow) + 1, False)):
        bus = Bus()
        callee, requester = bus.peer(features=("parts",)), bus.peer()
        callee.serve("n", "m")
        requester.request("n/m", id=7)
        bus.broker.reconfigure(replace(bus.broker.limits, max_output_bytes=callee.peer.out_bytes + room), bus.now)
        requester.write(allow)
        kinds = [envelope[0] for envelope in callee.read()]
        assert kinds == [Kind.REQUEST, Kind.CANCEL if refused else Kind.ALLOW]
        assert [envelope[3:5] for envelope in requester.read()] == ([[7, Code.OVERLOADED]] if refused else [])


def test_ping_is_answered_and_pong_ignored() -> None:
    a = Bus().peer()
    a.write(encode(Kind.PONG, a.id, 3) + encode(Kind.PING, a.id, 4))
    assert a.read() == [[Kind.PONG, 0, 4]]


def test_too_many_peers() -> None:
    bus = Bus(max_peers=2)
    bus.peer()
    bus.broker.connect(bus.now)
    with pytest.raises(ProtocolError) as caught:
        bus.broker.connect(bus.now)
    assert caught.value.code is Code.TOO_MANY_PEERS


def test_shut_down_says_goodbye_to_all() -> None:
    bus = Bus()
    a = bus.peer()
    stranger = bus.broker.connect(bus.now)
    b = bus.peer()
    b.write(encode(Kind.BYE, b.id, 0, ""))
    bus.broker.shut_down(bus.now)
    assert [e[:3] for e in a.read()] == [[Kind.BYE, 0, Code.SHUTTING_DOWN]]
    assert bytes(stranger.out[0])[8] == Code.SHUTTING_DOWN
    assert b.read() == []
    assert a.peer.closing


def test_shut_down_in_the_middle_of_a_stream() -> None:
    """What was sent comes, then BYE, and nothing after it (H-10): neither PARTs, nor errors for what was in flight."""
    bus = Bus()
    a, b = bus.peer(features=("parts",)), bus.peer(features=("parts",))
    b.serve("svc", "list")
    id = a.request("svc/list")
    a.write(encode(Kind.ALLOW, a.id, "svc/list", id, 10_000))
    part, late = (encode_with_payload(b"v", Kind.PART, b.id, f":{a.id}", id, sequence, None) for sequence in (0, 1))
    b.write(part)
    bus.broker.shut_down(bus.now)
    b.write(late)
    a.write(encode(Kind.ALLOW, a.id, "svc/list", id, 10_000))
    bus.advance(100.0)
    assert [envelope[0] for envelope in a.read()] == [Kind.PART, Kind.BYE]
    assert [envelope[0] for envelope in b.read()] == [Kind.REQUEST, Kind.ALLOW, Kind.BYE]
    assert len(bus.broker.requests) == 0
    a.leave()
    b.leave()
    assert (bus.broker.peers, bus.broker.queued_bytes()) == ({}, 0)


def test_a_program_s_name_cannot_carry_control_characters_to_others() -> None:
    bus = Bus()
    a, b = bus.peer("\x1b[2J\nx"), bus.peer()
    a.ask("own", name="svc")
    _, text = b.ask("own", name="svc")
    assert text.isprintable()


def test_the_bus_takes_msgpack_of_a_bounded_size() -> None:
    a = Bus().peer()
    for meta, payload, good in ((3, b"{}", False), (1, b"", False), (None, bytes(1_048_577), False), (None, b"\x80", True)):
        a.write(encode_with_payload(payload, Kind.REQUEST, a.id, "bus/ping", 1, 1000, meta))
        assert (a.read()[0][0] == Kind.REPLY) is good


def test_the_bus_answers_whatever_the_longest_timeout_of_requests_is() -> None:
    a = Bus(max_timeout_ms=1000).peer()
    a.request("bus/ping", timeout_ms=86_400_001)
    assert a.read()[0][0] == Kind.REPLY


def test_a_page_ends_before_it_outgrows_a_frame() -> None:
    bus = Bus()
    a = bus.peer()
    methods = [f"m{index:0126}" for index in range(100)]  # three of them are over 32 KiB
    for index in range(33):
        a.serve(f"n{index:02}", *methods)
    seen: list[str] = []
    pages, after = 0, None
    while True:
        page = a.ask("names", after=after)
        seen += [item["name"] for item in page["items"]]
        pages, after = pages + 1, page["next"]
        if after is None:
            break
    assert seen == [f"n{index:02}" for index in range(33)]
    assert pages == 11


def test_other_limits_from_now_on() -> None:
    bus = Bus()
    a = bus.peer()
    a.ask("own", name="one")
    bus.broker.reconfigure(Limits(max_names=1, max_lanes=1, max_retained_topics=0, lane_stall_s=1, max_requests=0), bus.now)
    assert a.ask("own", name="two")[0] == Code.OVER_LIMIT
    a.publish("t", b"1", kind=Kind.RETAIN)
    assert a.read()[0][4] == Code.OVER_LIMIT
    a.subscribe("x", 1)
    assert a.ask("subscribe", pattern="y", lane=2, credit=0)[0] == Code.OVER_LIMIT
    a.request("one/m")
    assert a.read()[0][4] == Code.OVER_LIMIT


def test_expel_from_outside() -> None:
    bus = Bus()
    a = bus.peer()
    bus.broker.expel(a.peer, Code.INTERNAL, "a fault", bus.now)
    bus.broker.expel(a.peer, Code.INTERNAL, "a fault", bus.now)
    assert [e[:3] for e in a.read()] == [[Kind.BYE, 0, Code.INTERNAL]]


def test_tcp_handshake_through_the_broker() -> None:
    secrets = Secrets({"default": Secret(b"s" * 32)}, bytes(32))
    broker = Broker(incarnation=b"i" * 16, random_bytes=lambda n: b"r" * n, now=0.0, secrets=secrets)
    peer = broker.connect(0.0, transport="tcp", addresses=("127.0.0.1:1", "127.0.0.1:2"))
    broker.receive(peer, encode(Kind.HELLO, 0, 1, 1, [], {}, b"n" * 32), 0.0)
    assert len(peer.out) == 1
    assert peer.id == 0
    broker.receive(peer, encode(Kind.PROOF, 0, b"p" * 32), 0.0)
    assert peer.closing
    assert str(peer) == "peer 0 ('', tcp)"


def test_nothing_is_left_when_all_have_gone() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.serve("svc", "get", mode="queue")
    b.ask("own", name="svc", mode="queue")
    b.subscribe(">", 1, credit=0)
    a.subscribe("x", 1, group="g")
    b.request("svc/get")
    b.publish("x", b"1", b"2")
    a.leave()
    b.leave()
    broker = bus.broker
    assert (len(broker.peers), len(broker.names), broker.lane_count, len(broker.requests), broker.queued_bytes()) == (0, 0, 0, 0, 0)
    assert broker.next_deadline() is None
