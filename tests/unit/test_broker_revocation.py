"""Another policy while peers have what it does not allow (P-8)."""

from __future__ import annotations

import msgpack
import pytest

from ipcbus.broker import Credentials
from ipcbus.broker.effort import JUDGE
from ipcbus.policy import EVERYTHING
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode
from tests.unit.harness import Bus, Client, publication
from tests.unit.test_broker_rights import GUEST, denied, errors, guest, policy, rules, send

NOTHING = rules()  # the guest may connect, and that is all


def set_policy(bus: Bus, text: str | None = None) -> list[str]:
    """The rules of *text* for the guest; None: it may only connect."""
    return bus.broker.set_policy(NOTHING if text is None else rules(text), bus.now)


def test_publications_are_judged_by_the_policy_of_their_time() -> None:
    bus = Bus(policy=EVERYTHING)
    watcher, client = bus.peer(), guest(bus)
    watcher.subscribe("*")
    client.publish("a", b"1")
    set_policy(bus)
    client.publish("a", b"2")
    assert [code for code, *_ in errors(client)] == [Code.DENIED]
    set_policy(bus, 'allow = "publish"; topics = ["a"]')
    client.publish("a", b"3")
    client.publish("b", b"4")
    assert [code for code, *_ in errors(client)] == [Code.DENIED]
    bus.broker.set_policy(EVERYTHING, bus.now)
    assert client.peer.rights is None
    client.publish("b", b"5")
    assert watcher.read_payloads() == [b"1", b"3", b"5"]
    assert {item["topic"]: item["messages"] for item in watcher.ask("topics")["items"]} == {"a": 2, "b": 1}  # what was denied is none


def test_sends_and_calls_are_judged_by_the_policy_of_their_time() -> None:
    bus = Bus(policy=EVERYTHING)
    service, client = bus.peer(), guest(bus)
    service.serve("x", "m")
    service.read()
    for allowed in (True, False, True):
        bus.broker.set_policy(rules('allow = ["send", "call"]') if allowed else NOTHING, bus.now)
        for _ in range(2):
            send(client, "x")
            client.request("x/m")
        assert [envelope[0] for envelope in service.read()] == [Kind.SEND, Kind.REQUEST] * 2 * allowed
        assert [code for code, *_ in errors(client)] == [Code.DENIED] * 4 * (not allowed)


def test_a_run_that_is_half_read_is_judged_anew() -> None:
    bus = Bus(policy=EVERYTHING)
    watcher, client = bus.peer(), guest(bus)
    watcher.subscribe("*")
    client.publish("a", b"1")
    bus.broker.receive(client.peer, encode(Kind.PING, client.id, 1) + publication(client.id, "a") * 3, bus.now, 1)
    assert client.peer.unread is not None
    set_policy(bus)
    while client.peer.unread is not None:
        bus.broker.resume(client.peer, bus.now)
    assert watcher.read_payloads() == [b"1"]
    assert [each[4] for each in client.read() if each[0] == Kind.ERROR] == [Code.DENIED]


# --- subscriptions --------------------------------------------------------------------------------


def test_a_subscription_ends_after_what_it_had() -> None:
    bus = Bus(policy=EVERYTHING)
    source, client = bus.peer(), guest(bus)
    client.subscribe("room.*", 1)
    client.subscribe("hall.*", 2)
    client.subscribe("room.*", 3, credit=1)
    source.publish("room.a", b"1")
    source.publish("room.a", b"2")
    lines = set_policy(bus, 'deny = "subscribe"; topics = ["room.safe"]\n[[rule]]\nallow = "subscribe"')
    source.publish("room.a", b"3")
    source.publish("hall.a", b"4")
    why = "rule 2 of rules.toml, line 3 denies subscribe to 'room.*', which would also match 'room.safe'"
    seen = [each[-1] if each[0] == Kind.PUBLISH else each[2] for each in client.read() if each[0] != Kind.LANE]
    assert seen == [b"1", b"1", b"2", "revoked", "revoked", b"4"]
    assert lines == [f"{client.peer} loses its subscription to 'room.*': {why}"] * 2
    assert [*(client.peer.lanes or ())] == [2]
    assert bus.broker.lane_count == 1
    offered, ends = bus.broker.books()
    assert offered == sum(ends.values())
    assert ends["evicted"] == 1  # it waited for the credit of lane 3
    assert client.ask("unsubscribe", lane=1)[0] == Code.NO_SUCH_LANE


def test_the_notice_says_what_was_taken() -> None:
    bus = Bus(policy=EVERYTHING)
    client = guest(bus)
    client.subscribe("room.*", 7)
    client.ask("own", name="lights")
    client.ask("will", topic="gone", payload=b"x")
    set_policy(bus)
    by_default = "the default denies"
    assert client.notices() == [
        {
            "name": "revoked",
            "what": "subscribe",
            "lane": 7,
            "pattern": "room.*",
            "why": f"{by_default} subscribe to 'room.*', which would also match 'room.x'",
        },
        {"name": "revoked", "what": "publish", "topic": "gone", "why": f"{by_default} publish to 'gone'"},
        {"name": "lights", "what": "own", "why": f"{by_default} own of 'lights'"},
    ]


@pytest.mark.parametrize(("most", "judged"), [(JUDGE, 1), (JUDGE + 1, 2), (2 * JUDGE, 2), (2 * JUDGE + 1, 3)])
def test_judging_the_patterns_of_one_user_is_bounded(most: int, judged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus does nothing else meanwhile: thousands of complex patterns of one user held everybody up for minutes."""
    monkeypatch.setattr("ipcbus.broker.revocation.REJUDGE_WORK_MAX", most)
    bus = Bus(policy=EVERYTHING)
    many, other = guest(bus), bus.peer("other", uid=8)
    for lane, pattern in enumerate(("a.*", "b.*", "c.*", "a.*"), 1):
        many.subscribe(pattern, lane)
    other.subscribe("d.*")
    lines = set_policy(bus, 'allow = "subscribe"')
    assert [*(many.peer.lanes or ())] == [*range(1, judged + 1), 4]  # the fourth is as the first, and costs nothing
    why = "the patterns of uid 7 are too many and too complex to judge them all anew at once: subscribe again"
    assert [notice["why"] for notice in many.notices()] == [why] * (3 - judged)
    assert lines == [f"{many.peer} loses its subscription to {pattern!r}: {why}" for pattern in ("b.*", "c.*")[judged - 1 :]]
    assert [*(other.peer.lanes or ())] == [1]
    many.subscribe("c.*", 9)


def test_a_monitor_ends_too() -> None:
    bus = Bus(policy=EVERYTHING)
    source, client = bus.peer(), guest(bus)
    for lane, pattern in ((1, "a"), (2, ">")):
        assert isinstance(client.ask("monitor", lane=lane, credit=10_000, pattern=pattern), dict)
    lines = set_policy(bus, 'allow = "monitor"; topics = ["a"]')
    assert [line.split(" loses ")[1].split(":")[0] for line in lines] == ["its monitor of '>'"]
    assert [(notice["what"], notice["lane"]) for notice in client.notices()] == [("monitor", 2)]
    assert len(bus.broker.monitors) == 1
    source.publish("a", b"1")
    source.publish("b", b"2")
    assert len(client.read_payloads()) == 1


def test_what_waits_for_a_group_goes_to_who_stays() -> None:
    bus = Bus(policy=EVERYTHING)
    source, client, other = bus.peer(), guest(bus), bus.peer()
    for member in (client, other):
        member.subscribe("jobs", 1, group="g", messages=0)
    source.publish("jobs", b"1", b"2")
    set_policy(bus)
    other.credit(1, 1000, 5)
    assert other.read_payloads() == [b"1", b"2"]
    assert client.read_payloads() == []


def test_what_a_new_policy_makes_others_publish_is_for_nobody_who_may_not_have_it() -> None:
    """Wills of who is closed, and the owners of names: whoever is judged later had it else, also one that is closed itself."""
    bus = Bus(policy=EVERYTHING)
    staying, leaving, closed, loser = guest(bus), bus.peer(uid=8), bus.peer(uid=8), guest(bus)
    for one in (staying, closed):
        for lane, pattern in enumerate((">", "$bus.names.>"), 1):
            one.subscribe(pattern, lane)
        assert isinstance(one.ask("monitor", lane=3, credit=10_000), dict)
    leaving.publish("kept", b"kept", kind=Kind.RETAIN)
    leaving.ask("bind", topic="kept")
    leaving.ask("will", topic="last", payload=b"will")
    loser.ask("own", name="x")
    for one in (staying, closed):
        one.read()
    lines = bus.broker.set_policy(policy('[[rule]]\nallow = "connect"\nuid = 7\n[[rule]]\nallow = "publish"\n'), bus.now)
    assert len(lines) == 4
    assert [envelope[0] for envelope in staying.read()] == [Kind.NOTICE] * 3
    assert [envelope[0] for envelope in closed.read()] == [Kind.BYE]
    assert not bus.broker.retained


# --- names ----------------------------------------------------------------------------------------


def owners(bus: Bus, name: str) -> list[int]:
    record = bus.broker.names.get(name)
    return [claim.peer.id for claim in record.owners] if record else []


def test_a_name_goes_to_the_next_who_may_have_it() -> None:
    bus = Bus(policy=EVERYTHING)
    first, second, third = guest(bus), guest(bus), bus.peer()
    watcher = bus.peer()
    for client in (first, second, third):
        client.ask("own", name="x", mode="queue")
    first.ask("serve", name="x", methods=["m"])
    watcher.subscribe("$bus.names.x")
    lines = set_policy(bus)
    assert owners(bus, "x") == [third.id]
    assert [notice["what"] for notice in first.notices()] == ["own"]
    assert [notice["what"] for notice in second.notices()] == ["own"]
    assert [notice["name"] for notice in third.notices()] == ["x"]  # name_acquired
    assert len(watcher.read_payloads()) == 1
    assert [line.split(" loses ")[1] for line in lines] == [
        "its place in line for the name 'x': the default denies own of 'x'",
        "the name 'x': the default denies own of 'x'",
    ]
    assert denied(first.ask("own", name="x", mode="queue"))


def test_a_name_never_passes_through_the_hands_of_who_may_not_be_here() -> None:
    bus = Bus(policy=EVERYTHING)
    first, second, third, watcher = guest(bus), guest(bus), bus.peer(), bus.peer()
    for client in (first, second, third):
        client.ask("own", name="x", mode="queue")
    watcher.subscribe("$bus.names.x")
    assert bus.broker.set_policy(policy(""), bus.now) == []
    assert [msgpack.unpackb(payload)["owners"] for payload in watcher.read_payloads()] == [[third.id]]
    assert [each[0] for each in second.read()] == [Kind.BYE]


def test_the_same_pattern_may_be_subscribed_to_and_not_monitored() -> None:
    bus = Bus(policy=EVERYTHING)
    client = guest(bus)
    client.subscribe("a", 1)
    assert isinstance(client.ask("monitor", lane=2, credit=1000, pattern="a"), dict)
    set_policy(bus, 'allow = "subscribe"')
    assert [*(client.peer.lanes or {})] == [1]


def test_a_request_in_flight_is_still_answered() -> None:
    bus = Bus(policy=EVERYTHING)
    client, service = guest(bus), guest(bus)
    service.serve("x", "m")
    service.read()
    id = client.request("x/m")
    set_policy(bus)
    service.reply(client, id, b"late")
    assert [envelope[-1] for envelope in client.read() if envelope[0] == Kind.REPLY] == [b"late"]


# --- what a peer leaves, connections --------------------------------------------------------------


def test_wills_and_bound_topics() -> None:
    bus = Bus(policy=EVERYTHING)
    watcher, client = bus.peer(), guest(bus)
    for topic in ("a", "b"):
        client.publish(topic, b"kept", kind=Kind.RETAIN)
        client.ask("will", topic=topic, payload=b"will of " + topic.encode())
        client.ask("bind", topic=topic)
    lines = set_policy(bus, 'allow = "publish"; topics = ["a"]')
    assert len(lines) == 1
    assert [notice["topic"] for notice in client.notices()] == ["b"]
    watcher.subscribe("*", retained=False)
    client.leave()
    assert [(each[2], each[-1]) for each in watcher.read() if each[0] in (Kind.PUBLISH, Kind.RETAIN)] == [("a", b""), ("a", b"will of a")]
    assert "b" in bus.broker.retained  # what is kept stays


def test_who_may_not_connect_any_more_is_closed() -> None:
    bus = Bus(policy=EVERYTHING)
    watcher, client, half = bus.peer(), guest(bus), guest(bus)
    watcher.subscribe("*")
    watcher.serve("x", "m")
    for topic in ("a", "b"):
        client.ask("will", topic=topic, payload=topic.encode())
    client.ask("own", name="theirs")
    half.request("x/m")
    bus.broker.half_close(half.peer, bus.now)
    watcher.read()
    kept_for = guest(bus)
    kept_for.ask("own", name="theirs", mode="queue")
    kept_for.read()
    for topic in ("a", "b"):
        kept_for.publish(topic, b"kept", kind=Kind.RETAIN)
        kept_for.ask("bind", topic=topic)
    assert watcher.read_payloads(Kind.RETAIN) == [b"kept"] * 2
    assert bus.broker.set_policy(policy('[[rule]]\nallow = "publish"\ntopics = ["a"]\n'), bus.now) == []
    for one in (client, half, kept_for):
        [bye] = one.read()
        assert bye == [Kind.BYE, 0, Code.DENIED, "the default denies connect"]
        assert one.peer.closing
    assert [(each[0], each[-1]) for each in watcher.read() if each[0] in (Kind.PUBLISH, Kind.RETAIN)] == [
        (Kind.PUBLISH, b"a"),
        (Kind.RETAIN, b""),
    ]
    assert "b" in bus.broker.retained
    assert owners(bus, "theirs") == []
    assert sum("closed: denied" in line for _, line in bus.log) == 3
    assert sum("is not published: denied: the default denies publish to 'b'" in line for _, line in bus.log) == 2


def test_a_stranger_is_judged_by_the_policy_of_its_hello() -> None:
    bus = Bus(policy=EVERYTHING)
    stranger = Client(bus, bus.broker.connect(bus.now, credentials=Credentials(1, GUEST, 1)))
    bus.broker.set_policy(policy(""), bus.now)
    stranger.write(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
    assert [envelope[0] for envelope in stranger.read()] == [Kind.BYE]


def test_what_is_allowed_stays_and_nothing_is_told() -> None:
    bus = Bus(policy=EVERYTHING)
    client, owner = guest(bus), bus.peer()
    for one in (client, owner):
        one.subscribe("a.>")
        one.ask("own", name=f"n{one.id}")
        one.ask("will", topic="a.b", payload=b"x")
    assert set_policy(bus, 'allow = ["own", "subscribe", "publish"]') == []
    assert client.peer.rights is not None
    assert client.read() == owner.read() == []
    assert (bus.broker.lane_count, len(bus.broker.names)) == (2, 2)


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_the_lines_are_bounded(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.broker.revocation.LINES_MAX", 3)
    bus = Bus(policy=EVERYTHING)
    client = guest(bus)
    for lane in range(lanes):
        client.subscribe("a", lane + 1)
    lines = set_policy(bus)
    assert len(lines) == min(lanes, 4)
    assert lines[3:] == ["and 1 more"] * (lanes > 3)
    assert len(client.notices()) == lanes
