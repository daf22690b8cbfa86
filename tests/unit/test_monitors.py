"""Monitors: what they see, what they must not see, and that they cost nobody else anything (section 14)."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from ipcbus.broker.effort import ENDS_AT_ONCE, WILDCARD_CHANGE
from ipcbus.broker.monitors import KINDS
from ipcbus.policy.redaction import Redaction
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import MONITOR_NAMES, MONITOR_PAYLOAD_BYTES, READ_BYTES
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication


def watch(client: Client, lane: int = 1, credit: int = 1 << 26, **more: Any) -> None:
    assert client.ask("monitor", lane=lane, credit=credit, **more) == {"policy": "drop_oldest"}


def seen(client: Client, *, of_bus: bool = False) -> list[dict[str, Any]]:
    """The copies that wait for a monitor, those of what is asked of the bus only with *of_bus*; whatever else waits is taken too."""
    envelopes = [envelope for envelope in client.read() if envelope[0] == Kind.PUBLISH]
    assert all(envelope[1:4] == [0, "$bus.monitor", None] for envelope in envelopes)
    copies = [msgpack.unpackb(envelope[-1]) for envelope in envelopes]
    return [copy for copy in copies if of_bus or not copy["to"].startswith("bus/")]


def brief(client: Client) -> list[tuple[str, str]]:
    return [(copy["kind"], copy["to"]) for copy in seen(client, of_bus=True)]


def balanced(bus: Bus) -> dict[str, int]:
    """The books, which add up (B-4)."""
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values())
    return {"offered": offered, **ends}


# --- publications -----------------------------------------------------------------------------------


def test_a_publication_is_seen_with_all_that_is_on_it() -> None:
    bus = Bus()
    a, b, c, m = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    b.subscribe("room.*")
    c.subscribe("room.>", group="g")
    watch(m, pattern="room.>")
    bus.now += 2.5
    a.write(publication(a.id, "room.kitchen", b"hot", meta={"unit": "C"}))
    assert seen(m) == [
        {
            "at_s": 2.5, "kind": "publish", "sender": a.id, "to": "room.kitchen", "meta": {"unit": "C"}, "size": 3, "redacted": False,
            "receivers": 2, "payload": b"hot", "clipped": False,
        }
    ]  # fmt: skip
    assert b.read_payloads() == [b"hot"]
    assert c.read_payloads() == [b"hot"]
    assert balanced(bus) | {"offered": 3, "delivered": 3} == balanced(bus)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("subscribed", [False, True])
def test_runs_are_seen_frame_by_frame_whoever_else_gets_them(subscribed: bool, groups: bool) -> None:
    bus = Bus()
    a, b, m = bus.peer(), bus.peer(), bus.peer()
    if subscribed:
        b.subscribe("t.>", group="g" if groups else None, messages=100)
    watch(m, pattern="t.*")
    payloads = [b"%d" % n * n for n in range(20)]
    frames = [publication(a.id, topic, payload) for payload in payloads for topic in ("t.a", "t.b", "u")]
    a.write(b"".join(frames))
    copies = seen(m)
    assert [(copy["to"], copy["payload"]) for copy in copies] == [(topic, p) for p in payloads for topic in ("t.a", "t.b")]
    assert {copy["receivers"] for copy in copies} == {int(subscribed)}
    assert len(b.read_payloads()) == 40 * subscribed
    assert balanced(bus)["queued"] == 0
    assert bus.broker.counters.no_subscriber == (20 if subscribed else 60)  # a monitor is nobody that a message is for


def test_kept_posted_and_left_publications_are_seen() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m, pattern="t.>")
    a.publish("t.kept", b"1", kind=Kind.RETAIN)
    a.write(encode_with_payload(b"2", Kind.POST, a.id, "t.post", None, None, False, {"h": 1}))
    a.write(encode_with_payload(b"3", Kind.POST, a.id, "t.both", 7, None, True, None))
    a.ask("restore", topic="t.restored", payload=b"4")
    a.ask("will", topic="t.will", payload=b"5")
    a.ask("bind", topic="t.kept")
    a.leave()
    copies = seen(m)
    assert [(copy["kind"], copy["to"], copy["payload"]) for copy in copies] == [
        ("retain", "t.kept", b"1"), ("publish", "t.post", b"2"), ("retain", "t.both", b"3"), ("retain", "t.restored", b"4"),
        ("retain", "t.kept", b""), ("publish", "t.will", b"5"),
    ]  # fmt: skip
    assert {copy["sender"] for copy in copies} == {a.id}
    assert copies[1]["meta"] == {"h": 1}
    assert balanced(bus)["offered"] == 6


def test_what_is_kept_does_not_come_first_and_what_the_bus_lists_does_not_change() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    a.publish("t", b"1", kind=Kind.RETAIN)
    watch(m, pattern="t")
    assert seen(m) == []
    assert a.ask("patterns")["items"] == []
    assert a.ask("receivers", topic="t")["items"] == []
    a.write(encode_with_payload(b"2", Kind.POST, a.id, "t", 1, None, False, None))
    assert a.answer(a.read().pop()) == 0


def test_monitors_see_no_copies_of_each_other_and_no_topic_of_the_bus_by_a_wildcard() -> None:
    bus = Bus()
    a, m, n = bus.peer(), bus.peer(), bus.peer()
    watch(m, pattern=">")
    watch(n, pattern="$bus.>")
    watch(n, lane=2, pattern="$bus.monitor")
    a.subscribe("$bus.monitor")
    a.publish("t")
    assert a.read() == []
    assert [(kind, to) for kind, to in brief(m) if kind == "publish"] == [("publish", "t")]
    assert brief(n) == []


def test_a_monitor_that_ends_sees_nothing_more() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    a.subscribe(">")
    plain = dict(bus.broker._handlers)
    watch(m, lane=1)
    watch(m, lane=2, pattern="u")
    a.publish("t")
    assert m.ask("unsubscribe", lane=1) == {"dropped": 0}
    a.publish("t")
    a.publish("u")
    assert [copy["to"] for copy in seen(m)] == ["u"]
    m.leave()
    a.publish("u")
    assert bus.broker._handlers == plain
    assert a.read_payloads() == [b"x"] * 4
    assert balanced(bus)["queued"] == 0


def test_monitors_of_a_peer_that_goes_with_many_lanes_end_with_it() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    for lane in range(1, ENDS_AT_ONCE + 10):
        m.subscribe(f"t.{lane}", lane=lane)
    for lane in range(1000, 1003):
        watch(m, lane=lane)
    m.leave()
    bus.advance(1)
    assert len(bus.broker.monitors) == 0
    a.publish("t.5")
    watch(a)
    a.publish("t.5")
    assert [to for _, to in brief(a)] == ["t.5"]
    assert balanced(bus)["queued"] == 0


# --- directed frames ----------------------------------------------------------------------------------


def test_a_request_and_its_answer_are_seen() -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    s.serve("room.lights", "on")
    watch(m, pattern="room.>")
    number = a.request("room.lights/on", b"\x05")
    s.reply(a, number, b"ok")
    request, reply = seen(m)
    assert request == {
        "at_s": 0.0, "kind": "request", "sender": a.id, "to": "room.lights/on", "meta": None, "size": 1, "redacted": False,
        "id": number, "receiver": s.id, "payload": b"\x05", "clipped": False,
    }  # fmt: skip
    assert reply == {
        "at_s": 0.0, "kind": "reply", "sender": s.id, "to": f":{a.id}", "meta": None, "size": 2, "redacted": False,
        "id": number, "request": "room.lights/on", "payload": b"ok", "clipped": False,
    }  # fmt: skip
    assert [envelope[0] for envelope in s.read()] == [Kind.REQUEST]
    assert [envelope[0] for envelope in a.read()] == [Kind.REPLY]


def test_parts_errors_and_cancellations_are_seen() -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer("s", ("parts",)), bus.peer()
    s.serve("svc", "do")
    watch(m, pattern="svc")
    number = a.request("svc/do")
    a.write(encode(Kind.ALLOW, a.id, "svc/do", number, 1000))
    s.write(encode_with_payload(b"p", Kind.PART, s.id, f":{a.id}", number, 0, 1))
    s.write(encode_with_payload(b"trace", Kind.ERROR, s.id, f":{a.id}", number, "Broken", "a text", {"h": 1}))
    other = a.request("svc/do")
    a.write(encode(Kind.CANCEL, a.id, "svc/other", other))  # nobody's
    a.write(encode(Kind.CANCEL, a.id, "svc/do", other))
    copies = seen(m)
    assert [copy["kind"] for copy in copies] == ["request", "part", "error", "request", "cancel"]
    part, error, cancel = copies[1], copies[2], copies[4]
    assert (part["payload"], part["meta"], part["id"], part["request"]) == (b"p", 1, number, "svc/do")
    assert (error["code"], error["text"], error["payload"], error["meta"]) == ("Broken", "a text", b"trace", {"h": 1})
    assert (cancel["sender"], cancel["to"], cancel["id"]) == (a.id, "svc/do", other)


def test_what_the_bus_answers_with_an_error_is_seen_behind_what_it_answers() -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    s.serve("svc", "do")
    watch(m)
    a.request("nobody/do")
    slow = a.request("svc/do", timeout_ms=1000)
    bus.advance(2)
    died = a.request("svc/do")
    s.leave()
    a.write(publication(a.id, "a..b") * 3)
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, "nobody", None))
    s2 = bus.peer()
    s2.reply(a, 999, b"late")
    copies = seen(m)
    assert [(copy["kind"], copy["request" if copy["kind"] == "error" else "to"], copy.get("code")) for copy in copies] == [
        ("request", "nobody/do", None), ("error", "nobody/do", Code.NO_SUCH_NAME),
        ("request", "svc/do", None), ("error", "svc/do", Code.EXPIRED),
        ("request", "svc/do", None), ("error", "svc/do", Code.RESPONDER_DIED),
        ("error", "a..b", Code.BAD_TOPIC), ("error", "a..b", Code.BAD_TOPIC),
        ("send", "nobody", None), ("error", "nobody", Code.NO_SUCH_NAME),
        ("error", f":{a.id}", Code.NO_SUCH_REQUEST),
    ]  # fmt: skip
    errors = [copy for copy in copies if copy["kind"] == "error"]
    assert [copy["id"] for copy in errors[1:3]] == [slow, died]
    assert [copy["count"] for copy in errors[3:5]] == [1, 2]  # the first is looked at by itself, the rest is a run
    assert "a..b" in errors[3]["text"]
    assert all(copy["sender"] == 0 and copy["size"] == 0 and "payload" not in copy for copy in errors)


def test_sends_are_seen_by_the_name_or_by_all_names_of_the_peer() -> None:
    bus = Bus()
    a, s, anonymous, m = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    s.ask("own", name="room.lights")
    watch(m, lane=1, pattern="room.*", kinds=["send"])
    for to in ("room.lights", f":{s.id}", f":{anonymous.id}"):
        a.write(encode_with_payload(to.encode(), Kind.SEND, a.id, to, None) * 2)
    copies = seen(m)
    assert [(copy["to"], copy["receiver"]) for copy in copies] == [("room.lights", s.id)] * 2 + [(f":{s.id}", s.id)] * 2
    s.ask("own", name="secret")
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    assert seen(m) == []  # its peer has a name that this monitor must not know of
    watch(m, lane=2, pattern="*", kinds=["send"])
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{anonymous.id}", None))
    assert [copy["to"] for copy in seen(m)] == [f":{anonymous.id}"]
    assert balanced(bus)["queued"] == 5  # what was sent and not read


@pytest.mark.parametrize(("count", "who"), [(MONITOR_NAMES - 1, "both"), (MONITOR_NAMES, "both"), (MONITOR_NAMES + 1, "all")])
def test_a_peer_with_many_names_is_for_those_who_look_at_everything(count: int, who: str) -> None:
    bus = Bus()
    a, s, m, n = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    for number in range(count):
        s.ask("own", name=f"n.{number}")
    watch(m)
    watch(n, pattern="n.*")
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    assert len(seen(m)) == 1
    assert len(seen(n)) == (who == "both")
    bus.broker.monitors.redaction = Redaction(["other"])
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    assert [copy["redacted"] for copy in seen(m)] == [who != "both"]  # it may be one of those that were not looked at


@pytest.mark.parametrize("to", ["secret/get", ":2/get"])
@pytest.mark.parametrize("also", [None, "open"])
def test_an_answer_is_judged_as_its_request_was(to: str, also: str | None) -> None:
    """Else a service that gives up its names before it answers would show what is redacted, or not for all."""
    bus = Bus()
    a, s, m, n = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    bus.broker.monitors.redaction = Redaction(["secret"])
    watch(m, pattern=">")
    watch(n, pattern="open")
    s.serve("secret", "get")
    if also is not None:
        s.ask("own", name=also)
    first, second, third = a.request(to), a.request(to), a.request(to)
    s.reply(a, first, b"hunter2")
    s.ask("release", name="secret")
    s.reply(a, second, b"hunter2")
    s.ask("own", name="new")
    a.write(encode(Kind.CANCEL, a.id, to, third))
    assert [(copy["kind"], copy["id"], copy["redacted"]) for copy in seen(m)] == [
        *[("request", number, True) for number in (first, second, third)],
        *[("reply", number, True) for number in (first, second)], ("cancel", third, True),
    ]  # fmt: skip
    assert seen(n) == []


def test_an_answer_to_what_nobody_looked_at_is_seen_only_where_its_name_is_known() -> None:
    """At a peer address it could have been for a name that is redacted, and that the peer has given up since."""
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    s.serve("secret", "get")
    for to in ("secret/get", f":{s.id}/get"):
        first, second = a.request(to), a.request(to)
        watch(m, kinds=["reply"])
        s.ask("own", name="open")
        s.reply(a, first)
        s.ask("release", name="secret")
        s.reply(a, second)
        s.serve("secret", "get")
        assert [copy["id"] for copy in seen(m)] == ([first, second] if to == "secret/get" else [])
        m.ask("unsubscribe", lane=1)


def test_handshakes_control_frames_and_answers_of_the_bus_are_not_seen() -> None:
    bus = Bus()
    m = bus.peer()
    watch(m)
    a = bus.peer()
    a.write(encode(Kind.PING, a.id, 1))
    a.subscribe("t")
    a.credit(1, 5)
    a.leave()
    assert brief(m) == [("request", "bus/subscribe")]


def test_who_the_sender_is_comes_first() -> None:
    bus = Bus()
    a, s, m, n = bus.peer("one"), bus.peer("two"), bus.peer("three", ("identity",)), bus.peer()
    s.serve("svc", "do")
    watch(m, pattern="svc")
    watch(n, pattern="svc")
    a.publish("svc")
    s.reply(a, a.request("svc/do"))
    a.request("svc/other")
    frames = [envelope for envelope in m.read() if envelope[0] != Kind.LANE]
    told = [msgpack.unpackb(envelope[-1]).get("program", "a copy") for envelope in frames]
    assert told == ["one", "a copy", "a copy", "two", "a copy", "a copy", "a copy"]
    assert n.notices() == []


# --- what is asked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_kinds_that_are_wanted_are_seen(kind: str) -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer("s", ("parts",)), bus.peer()
    s.serve("t", "do")
    watch(m, pattern="t", kinds=[kind])
    a.publish("t")
    a.publish("t", kind=Kind.RETAIN)
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, "t", None))
    for _ in range(2):
        number = a.request("t/do")
    a.write(encode(Kind.ALLOW, a.id, "t/do", number, 1000))
    s.write(encode_with_payload(b"p", Kind.PART, s.id, f":{a.id}", number, 0, None))
    s.reply(a, number)
    a.write(encode(Kind.CANCEL, a.id, "t/do", number - 1))
    a.request("t/other")
    kinds = [copy["kind"] for copy in seen(m)]
    assert kinds == [kind] * (3 if kind == "request" else 1)
    assert balanced(bus)["dropped"] == 0


def test_without_payloads_there_is_only_their_size() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m, lane=1, payloads=False)
    watch(m, lane=2, payloads=True)
    a.publish("t", b"123")
    without, with_ = seen(m)
    assert with_.pop("payload") == b"123"
    assert with_.pop("clipped") is False
    assert with_ == without
    assert without["size"] == 3


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_of_a_payload_only_the_beginning_is_seen(more: int) -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    s.serve("svc", "do")
    watch(m)
    size = MONITOR_PAYLOAD_BYTES + more
    payload = bytes(n % 251 for n in range(size))
    a.publish("t", payload)
    a.request("svc/do", payload)
    for copy in seen(m):
        assert (copy["size"], copy["payload"], copy["clipped"]) == (size, payload[:MONITOR_PAYLOAD_BYTES], more > 0)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ({"credit": 1}, Code.BAD_ARGUMENT, "lane"),
        ({"lane": 2}, Code.BAD_ARGUMENT, "credit"),
        ({"lane": 1, "credit": 1}, Code.LANE_IN_USE, "lane 1"),
        ({"lane": 2, "credit": 1, "pattern": "a..b"}, Code.BAD_TOPIC, "a..b"),
        ({"lane": 2, "credit": 1, "pattern": ""}, Code.BAD_TOPIC, "0 bytes"),
        ({"lane": 2, "credit": 1, "kinds": []}, Code.BAD_ARGUMENT, "publish, retain, send"),
        ({"lane": 2, "credit": 1, "kinds": ["hello"]}, Code.BAD_ARGUMENT, "publish, retain, send"),
        ({"lane": 2, "credit": 1, "kinds": [["send"]]}, Code.BAD_ARGUMENT, "publish, retain, send"),
        ({"lane": 2, "credit": 1, "payloads": 1}, Code.BAD_ARGUMENT, "payloads"),
        ({"lane": 2, "credit": 1, "limits": {"soft": 0}}, Code.BAD_ARGUMENT, "limits.soft"),
        ({"lane": 2, "credit": 1, "policy": "block"}, Code.BAD_ARGUMENT, "policy"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing(arguments: dict[str, Any], code: Code, word: str) -> None:
    bus = Bus()
    m = bus.peer()
    m.subscribe("t")
    found, text = m.ask("monitor", **arguments)
    assert found == code
    assert word in text
    assert len(bus.broker.monitors) == 0
    assert list(m.peer.lanes or ()) == [1]


@pytest.mark.parametrize(("count", "fits"), [(1, True), (2, True), (3, False)])
def test_the_bus_has_a_limited_number_of_monitors(count: int, fits: bool) -> None:
    bus = Bus(max_monitors=2)
    peers = [bus.peer() for _ in range(count)]
    answers = [peer.ask("monitor", lane=1, credit=1) for peer in peers]
    assert (answers[-1] == {"policy": "drop_oldest"}) is fits
    if not fits:
        assert answers[-1][0] == Code.OVER_LIMIT
        assert "limits.max_monitors" in answers[-1][1]
        peers[0].leave()
        watch(peers[-1])


# --- redaction ----------------------------------------------------------------------------------------


def test_what_is_redacted_shows_that_it_was_and_how_much() -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    s.serve("secret.vault", "get")
    watch(m)
    bus.broker.monitors.redaction = Redaction(["secret.>", "key"])
    a.publish("key", b"hunter2")
    a.publish("key", b"hunter2", kind=Kind.RETAIN)
    a.write(publication(a.id, "key", b"hunter2", meta={"hint": "hunter2", "encoding": 2}))
    a.write(encode_with_payload(b"hunter2", Kind.POST, a.id, "key", None, None, False, {"hint": "hunter2"}))
    for to in ("secret.vault", f":{s.id}"):
        a.write(encode_with_payload(b"hunter2", Kind.SEND, a.id, to, None))
        number = a.request(f"{to}/get", b"hunter2")
        s.write(encode_with_payload(b"hunter2", Kind.ERROR, s.id, f":{a.id}", number, "Wrong", "not hunter2", {"hint": "hunter2"}))
        s.reply(a, a.request(f"{to}/get", b"hunter2"), b"hunter2")
        a.request(f"{to}/missing", b"hunter2")
    assert b"hunter2" not in b"".join(bytes(piece) for piece in m.peer.out)
    copies = seen(m)
    assert len(copies) == 4 + 2 * 7
    assert all(copy["redacted"] for copy in copies)
    assert not any({"payload", "text", "clipped"} & set(copy) for copy in copies)
    assert [copy["size"] for copy in copies[:4]] == [7] * 4
    assert [copy["meta"] for copy in copies[:4]] == [None, None, 2, None]
    assert [copy["code"] for copy in copies if copy["kind"] == "error"] == ["Wrong", Code.NO_SUCH_METHOD] * 2


@pytest.mark.parametrize("name", ["secret", "secret.safe"])
def test_what_was_sent_to_a_method_by_mistake_is_redacted_as_what_is_for_its_owner(name: str) -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    bus.broker.monitors.redaction = Redaction([name])
    watch(m)
    a.write(encode_with_payload(b"hunter2", Kind.SEND, a.id, f"{name}/unlock", None))
    assert [(copy["kind"], copy["redacted"], "payload" in copy, "text" in copy) for copy in seen(m)] == [
        ("send", True, False, False), ("error", True, False, False),
    ]  # fmt: skip


def test_what_is_not_redacted_is_shown_beside_what_is() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m)
    bus.broker.monitors.redaction = Redaction(["secret.>"])
    a.write(b"".join(publication(a.id, topic, b"p") for topic in ("secret", "secret.a", "open", "secret.a.b")))
    assert [(copy["to"], copy["redacted"], copy.get("payload")) for copy in seen(m)] == [
        ("secret", False, b"p"), ("secret.a", True, None), ("open", False, b"p"), ("secret.a.b", True, None),
    ]  # fmt: skip


def test_what_the_bus_is_asked_has_no_payload() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m)
    a.ask("will", topic="t", payload=b"hunter2")
    a.ask("restore", topic="bad..topic", payload=b"hunter2")
    a.ask("will", topic="t", payload="hunter2")
    assert b"hunter2" not in b"".join(bytes(piece) for piece in m.peer.out)
    copies = seen(m, of_bus=True)
    assert [(copy["kind"], copy["redacted"]) for copy in copies] == [
        ("request", True), ("request", True), ("error", True), ("request", True), ("error", True),
    ]  # fmt: skip


# --- it slows nobody ------------------------------------------------------------------------------------


def test_a_monitor_without_credit_holds_nobody_and_loses_the_oldest() -> None:
    bus = Bus()
    a, m = bus.peer("a", ("hold",)), bus.peer()
    watch(m, credit=0, limits={"soft": 1000, "hard": 2000})
    a.publish("t", *[b"%d" % n for n in range(100)])
    assert a.held == 0
    assert a.read() == []
    books = balanced(bus)
    assert books["offered"] == 100
    assert books["dropped"] > 0
    assert books["dropped"] + books["queued"] == 100
    m.read()
    m.credit(1, 1 << 20)
    envelopes = m.read()
    lost = [msgpack.unpackb(envelope[-1]) for envelope in envelopes if envelope[0] == Kind.NOTICE and envelope[2] == "lost"]
    copies = [msgpack.unpackb(envelope[-1])["payload"] for envelope in envelopes if envelope[0] == Kind.PUBLISH]
    assert sum(notice["count"] for notice in lost) == books["dropped"]
    assert copies == [b"%d" % n for n in range(books["dropped"], 100)]
    assert balanced(bus)["queued"] == 0


def test_a_monitor_costs_its_senders_nothing() -> None:
    spent = []
    for monitored in (False, True):
        bus = Bus()
        a, b, m = bus.peer(), bus.peer(), bus.peer()
        b.subscribe("t")
        if monitored:
            watch(m)
        begin = bus.broker.effort.spent
        for _ in range(10):
            a.publish("t", *[b"x"] * 50)
        spent.append(bus.broker.effort.spent - begin)
    assert spent[0] == spent[1]


@pytest.mark.parametrize(("count", "looked"), [(99, 99), (100, 100), (101, 100)])
def test_at_once_a_tenth_of_a_second_is_looked_at(count: int, looked: int) -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m = bus.peer(), bus.peer()
    watch(m)
    a.publish("t", *[b"x"] * count)
    assert len(seen(m)) == looked
    books = balanced(bus)
    assert (books["offered"], books["dropped"]) == (count, count - looked)
    bus.advance(1)
    assert [(notice["name"], notice["lane"], notice["count"], notice["why"]) for notice in m.notices()] == [
        ("lost", 1, count - looked, "too_slow")
    ][: count - looked]


def test_what_was_not_looked_at_is_told_before_the_next_copy() -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m = bus.peer(), bus.peer()
    watch(m)
    for _ in range(30):
        a.publish("t", *[b"x"] * 10)
    assert bus.broker.next_deadline() is not None
    first = m.read()
    assert [envelope[0] for envelope in first if envelope[0] != Kind.LANE] == [Kind.PUBLISH] * 100
    bus.now += 0.049
    a.publish("t", b"no")  # half of what it may have at once has not come back
    bus.now += 0.001
    a.publish("t", b"yes")
    notice, copy = m.read()
    assert msgpack.unpackb(notice[-1]) == {"lane": 1, "count": 201, "bytes": 200 * 17 + 18, "why": "too_slow"}
    assert msgpack.unpackb(copy[-1])["payload"] == b"yes"
    assert bus.broker.next_deadline() is None
    books = balanced(bus)
    assert (books["offered"], books["delivered"], books["dropped"]) == (302, 101, 201)
    losses = a.ask("losses")["items"]
    assert [(item["why"], item["count"], item["pattern"], item["peer"]) for item in losses] == [("too_slow", 201, ">", m.id)]
    assert "limits.max_monitor_rate" in losses[0]["about"]


def test_what_was_not_looked_at_behind_what_waits_is_told_in_its_place() -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m = bus.peer(), bus.peer()
    watch(m, credit=0)
    a.publish("t", *[b"%d" % n for n in range(150)])
    bus.advance(1)
    a.publish("t", b"later")
    assert [envelope for envelope in m.read() if envelope[0] != Kind.LANE] == []
    m.credit(1, 1 << 20)
    frames = [(envelope[0], msgpack.unpackb(envelope[-1])) for envelope in m.read() if envelope[0] != Kind.LANE]
    assert [kind for kind, _ in frames] == [Kind.PUBLISH] * 100 + [Kind.NOTICE, Kind.PUBLISH]
    assert frames[100][1]["count"] == 50
    assert frames[101][1]["payload"] == b"later"
    assert balanced(bus)["dropped"] == 50


def test_monitors_share_what_may_be_looked_at() -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m, n = bus.peer(), bus.peer(), bus.peer()
    watch(m, pattern="t")
    watch(n, pattern="t")
    a.publish("t", *[b"x"] * 200)
    assert (len(seen(m)), len(seen(n))) == (50, 50)
    n.leave()
    bus.advance(10)
    m.read()
    a.publish("t", *[b"x"] * 200)
    assert len(seen(m)) == 100


def test_even_the_lowest_rate_looks_at_a_frame_now_and_then() -> None:
    bus = Bus(max_monitor_rate=1)
    a, m = bus.peer(), bus.peer()
    watch(m)
    for _ in range(40):
        a.publish("t")
        bus.advance(0.25)
    assert len(seen(m)) == 10


def test_a_flood_is_told_a_few_times_a_second() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m)
    notices = 0
    for _ in range(1000):
        a.publish("t", *[b"x"] * 100)
        bus.advance(0.001)
        notices += len(m.notices())
    assert 1 <= notices <= 40
    books = balanced(bus)
    assert 9_000 <= books["delivered"] <= 11_000
    assert books["delivered"] + books["dropped"] == books["offered"] == 100_000


def test_what_many_monitors_do_not_look_at_is_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame of a flood would else cost everybody as much as hundreds do where nobody monitors."""
    bus = Bus(max_monitor_rate=64)
    a, monitors = bus.peer(), [bus.peer() for _ in range(64)]
    for monitor in monitors:
        watch(monitor, kinds=["publish"])
    booked = []
    record = bus.broker.losses.record
    monkeypatch.setattr(bus.broker.losses, "record", lambda why, *more, **about: (booked.append(why), record(why, *more, **about)))
    a.write(b"".join(publication(a.id, topic, b"x") for _ in range(100) for topic in ("t.a", "t.b")))  # a run each
    assert booked == []
    bus.advance(0.2)
    assert booked == ["too_slow"] * 64
    assert [notice["count"] for monitor in monitors for notice in monitor.notices()] == [199] * 64
    assert balanced(bus) | {"offered": 200 * 64, "dropped": 199 * 64} == balanced(bus)


def test_the_books_have_what_was_not_looked_at_before_it_is_told() -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m = bus.peer(), bus.peer()
    watch(m, kinds=["publish"])
    a.publish("t", *[b"x"] * 150)
    stats = a.ask("stats")
    assert (stats["offered"], stats["dropped"]) == (150, 50)
    a.publish("t", *[b"x"] * 7)
    bus.advance(0.2)
    assert [notice["count"] for notice in m.notices()] == [57]


def test_the_names_of_a_peer_are_compared_with_patterns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    a, s, m = bus.peer(), bus.peer(), bus.peer()
    for number in range(MONITOR_NAMES):
        s.ask("own", name=f"n.{number}")
    watch(m, kinds=["send"])
    asked: list[str] = []
    watching = bus.broker.routes.watching
    monkeypatch.setattr(bus.broker.routes, "watching", lambda name: (name != "bus" and asked.append(name), watching(name))[1])
    for _ in range(3):
        a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    assert [copy["receiver"] for copy in seen(m)] == [s.id] * 3
    assert len(asked) == MONITOR_NAMES
    s.ask("release", name="n.0")
    watch(m, lane=2, pattern="n.1", kinds=["send"])
    a.write(encode_with_payload(b"x", Kind.SEND, a.id, f":{s.id}", None))
    assert len(asked) == 2 * MONITOR_NAMES - 1
    assert [copy["receiver"] for copy in seen(m)] == [s.id]


def test_who_comes_and_goes_as_a_monitor_pays_for_what_all_publishers_have_to_find_out_again() -> None:
    bus = Bus()
    m = bus.peer()
    begin = bus.broker.effort.spent
    watch(m, pattern="t")
    assert bus.broker.effort.spent - begin >= WILDCARD_CHANGE
    begin = bus.broker.effort.spent
    m.ask("unsubscribe", lane=1)
    assert bus.broker.effort.spent - begin >= WILDCARD_CHANGE


def test_what_a_monitor_did_not_look_at_is_in_what_unsubscribe_says() -> None:
    bus = Bus(max_monitor_rate=1000)
    a, m = bus.peer(), bus.peer()
    watch(m, pattern="t")
    a.publish("t", *[b"x"] * 130)
    m.read()
    assert m.ask("unsubscribe", lane=1) == {"dropped": 30}
    assert bus.broker.next_deadline() is None
    bus.advance(1)
    assert m.read() == []


def test_pieces_of_copies_overdraw_the_credit_as_little_as_others() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m, credit=1)
    a.publish("t", *[bytes(MONITOR_PAYLOAD_BYTES)] * 500)
    assert m.peer.lanes is not None
    assert -READ_BYTES <= m.peer.lanes[1].credit < 0
    assert balanced(bus)["queued"] == 500


def test_other_limits_hold_at_once() -> None:
    bus = Bus()
    a, m = bus.peer(), bus.peer()
    watch(m)
    limits = Bus(max_monitor_rate=100, max_monitors=1).broker.limits
    bus.broker.reconfigure(limits, bus.now)
    a.publish("t", *[b"x"] * 100)
    assert len(seen(m)) == 10
    assert a.ask("monitor", lane=1, credit=1)[0] == Code.OVER_LIMIT


# --- nobody notices ---------------------------------------------------------------------------------------


def play(seed: int, monitors: int) -> tuple[list[Any], dict[str, int], list[int]]:
    """A random story of four peers: what they read, what the bus counted of it, and how many copies each monitor got."""
    rng = random.Random(seed)
    bus = Bus(lane_soft_bytes=200, lane_hard_bytes=400, max_monitor_rate=500)
    eyes = [bus.peer(f"eye {number}", pid=100) for number in range(2)]
    peers = [bus.peer(f"peer {number}", ("parts", "hold", "identity"), pid=number + 1) for number in range(4)]
    for number, peer in enumerate(peers):
        peer.serve(f"n.{number}", "do")
    for eye, pattern in zip(eyes[:monitors], (">", "t.*"), strict=False):
        watch(eye, pattern=pattern)
    told: list[Any] = []
    asked: list[tuple[Client, int, str]] = []
    topics, patterns = ["t.a", "t.b", "u", "a..b"], ["t.a", "t.*", ">", "u"]
    for _ in range(150):
        peer, other = rng.sample(peers, 2)
        topic = rng.choice(topics)
        target = rng.choice([f"n.{peers.index(other)}", f":{other.id}", "nobody"])
        match rng.randrange(11):
            case 0:
                peer.publish(topic, *[bytes(rng.randrange(60))] * rng.randrange(1, 5))
            case 1:
                peer.publish(topic, b"kept", kind=Kind.RETAIN)
            case 2:
                peer.write(encode_with_payload(b"p", Kind.POST, peer.id, topic, rng.choice([None, 7]), None, rng.random() < 0.5, None))
            case 3:
                peer.write(encode_with_payload(b"s", Kind.SEND, peer.id, target, None) * rng.randrange(1, 3))
            case 4:
                asked.append((peer, peer.request(f"{target}/{rng.choice(['do', 'not'])}", b"q"), target))
            case 5 if asked:
                requester, number, to = rng.choice(asked)
                if to != "nobody":
                    callee = peers[int(to[2:])] if to[0] == "n" else next(one for one in peers if to == f":{one.id}")
                    callee.reply(requester, number, b"r")
            case 6 if asked:
                requester, number, to = asked.pop(rng.randrange(len(asked)))
                requester.write(encode(Kind.CANCEL, requester.id, f"{to}/do", number))
            case 7:
                lane = {"pattern": rng.choice(patterns), "lane": rng.randrange(1, 5), "credit": rng.choice([0, 50, 10_000])}
                peer.request("bus/subscribe", msgpack.packb(lane | {"group": rng.choice([None, None, "g"])}))
            case 8:
                peer.request("bus/unsubscribe", msgpack.packb({"lane": rng.randrange(1, 5)}))
            case 9:
                peer.credit(rng.randrange(1, 5), 100, 1)
            case 10:
                bus.advance(rng.choice([0.001, 0.3]))
        told += [(reader.id, envelope) for reader in peers for envelope in reader.read()]
        balanced(bus)
    copies = [len(seen(eye, of_bus=True)) for eye in eyes]
    totals = bus.broker.totals()
    ours = {name: totals[name] for name in ("no_subscriber", "refused", "in_messages", "late_replies", "protocol_errors")}
    assert not ours["protocol_errors"]  # or there would not be much of a story
    for peer in (*peers, *eyes):
        peer.leave()
    assert balanced(bus)["queued"] == 0
    assert bus.broker.monitors.untold.earliest is None
    return told, ours, copies


@pytest.mark.parametrize("seed", range(12))
def test_to_everybody_else_it_is_as_if_nobody_monitored(seed: int) -> None:
    told, ours, copies = play(seed, 0)
    assert copies == [0, 0]
    for monitors in (1, 2):
        also_told, counted, copies = play(seed, monitors)
        assert also_told == told
        assert counted == ours | {"in_messages": ours["in_messages"] + monitors}
        assert all(copies[:monitors])
