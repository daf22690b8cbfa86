"""Who may do what (section 13), at every place where the broker asks: allowed, denied, and what a denial is."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.broker import Broker, Credentials
from ipcbus.broker.rights import subject_of
from ipcbus.policy import EVERYTHING, Policy, Rights, Rule, Subject, parse
from ipcbus.protocol.auth import Secret, Secrets, proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication

#: Of the peers in these tests who has no right but what a rule gives; the harness's other peers have uid 20.
GUEST = 7


def policy(text: str, *, default: bool = False) -> Policy:
    """The rules of *text* for the guest, everything for uid 20; else *default*."""
    parsed = parse(text, "rules.toml", users=lambda name: None, groups=lambda name: None)
    assert not parsed.errors
    owner = parse('[[rule]]\nallow = "*"\nuid = 20\n', "owner.toml", users=lambda name: None, groups=lambda name: None)
    return Policy((*owner.rules, *parsed.rules), default=Rule(default, where="the default"))


def rules(*lines: str) -> Policy:
    """A rule for each line, a TOML table with ``;`` between its keys; the guest may connect."""
    return policy("".join(f"[[rule]]\n{line.replace('; ', chr(10))}\n" for line in ('allow = "connect"', *lines)))


def guest(bus: Bus, **more: Any) -> Client:
    return bus.peer("guest", uid=GUEST, **more)


def errors(client: Client) -> list[tuple[int, int, str, Any]]:
    """Code, id, text and content of the ERRORs that wait for it, and of nothing else."""
    envelopes = client.read()
    assert {envelope[0] for envelope in envelopes} <= {Kind.ERROR}
    return [(each[4], each[3], each[5], msgpack.unpackb(each[-1]) if each[-1] else None) for each in envelopes]


def denied(answer: Any) -> bool:
    """Whether an answer of the bus is a denial that names its rule."""
    return isinstance(answer, tuple) and answer[0] == Code.DENIED and ("rules.toml" in answer[1] or "the default" in answer[1])


# --- publish (P-3) --------------------------------------------------------------------------------


PUBLISHER = rules('allow = "publish"; topics = ["mine.>"]')


@pytest.mark.parametrize("kind", [Kind.PUBLISH, Kind.RETAIN])
def test_publications(kind: Kind) -> None:
    bus = Bus(policy=PUBLISHER)
    watcher, client = bus.peer(), guest(bus)
    watcher.subscribe(">")
    client.publish("mine.a", b"1", kind=kind)
    client.publish("theirs", b"2", b"3", kind=kind)
    client.publish("mine.b", b"4", kind=kind)
    assert watcher.read_payloads(kind) == [b"1", b"4"]
    assert [(code, id, content["count"]) for code, id, _, content in errors(client)] == [(25, 0, 1), (25, 0, 1)]
    assert bus.broker.retained.get("theirs", bus.now) is None
    assert (bus.broker.counters.denied, bus.broker.counters.refused) == (2, 2)
    assert (client.peer.denied, client.peer.refused) == (2, 2)


def test_a_denial_names_the_rule_and_is_one_answer_for_a_run() -> None:
    bus = Bus(policy=rules('deny = "publish"; topics = ["secret.*"]', 'allow = "publish"'))
    client = guest(bus)
    client.publish("secret.x", b"1")
    errors(client)
    client.publish("secret.x", *[b"2"] * 5)
    [(code, id, text, content)] = errors(client)
    assert (code, id, content) == (Code.DENIED, 0, {"kind": Kind.PUBLISH, "to": "secret.x", "count": 5})
    assert text == "rule 2 of rules.toml, line 3 denies publish to 'secret.x'"
    warnings = [line for _, line in bus.log if "denied" in line]
    assert len(warnings) == 1
    assert "PUBLISH refused: denied: rule 2 of rules.toml, line 3" in warnings[0]
    [episode] = bus.peer().ask("losses")["items"]
    assert (episode["why"], episode["code"], episode["count"], episode["topic"]) == ("refused", "denied", 6, "secret.x")
    assert episode["about"] == text
    [item] = [item for item in bus.peer().ask("peers")["items"] if item["peer"] == client.id]
    assert (item["denied"], item["refused"]) == (6, 6)
    assert bus.peer().ask("stats")["denied"] == 6


def test_publications_are_judged_where_their_route_is_found_and_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(policy=PUBLISHER)
    client = guest(bus)
    asked: list[str] = []
    real = Rights.publish
    monkeypatch.setattr(Rights, "publish", lambda self, topic: asked.append(topic) or real(self, topic))  # type: ignore[func-returns-value]
    for _ in range(5):
        client.publish("mine.a", b"1", b"2")
        client.publish("theirs", b"1", b"2")
    assert asked == ["mine.a", "theirs"]


@pytest.mark.parametrize("retain", [False, True])
def test_posts(retain: bool) -> None:
    bus = Bus(policy=PUBLISHER)
    watcher, client = bus.peer(), guest(bus)
    watcher.subscribe(">")
    for topic, id in (("mine.a", 5), ("theirs", 6), ("theirs", None)):
        client.write(encode_with_payload(b"x", Kind.POST, client.id, topic, id, None, retain, None))
    answers = client.read()
    assert [(answer[0], answer[3]) for answer in answers] == [(Kind.REPLY, 5), (Kind.ERROR, 6), (Kind.ERROR, 0)]
    assert [answer[4] for answer in answers[1:]] == [Code.DENIED, Code.DENIED]
    assert [envelope[2] for envelope in watcher.read() if envelope[0] in (Kind.PUBLISH, Kind.RETAIN)] == ["mine.a"]
    assert [topic for topic in ("mine.a", "theirs") if topic in bus.broker.retained] == (["mine.a"] if retain else [])


def test_what_is_left_on_a_topic() -> None:
    bus = Bus(policy=PUBLISHER)
    client = guest(bus)
    for topic in ("mine.a", "theirs"):
        leave = {"will": {"payload": b"gone"}, "bind": {}, "restore": {"payload": b"back"}}
        for method, more in leave.items():
            assert denied(client.ask(method, topic=topic, **more)) == (topic == "theirs"), method
        assert client.ask("will", topic=topic) == {}  # taking back needs no right
        assert client.ask("unbind", topic=topic) == {}
    assert "mine.a" in bus.broker.retained
    assert "theirs" not in bus.broker.retained
    assert (client.peer.wills, client.peer.bound) == ({}, {})


def test_a_denied_will_leaves_none() -> None:
    bus = Bus(policy=EVERYTHING)
    client = guest(bus)
    assert client.ask("will", topic="theirs", payload=b"gone") == {}
    client.peer.rights = PUBLISHER.rights(subject_of(client.peer))
    assert denied(client.ask("will", topic="theirs", payload=b"gone"))
    assert client.peer.wills == {}


def test_the_bus_s_own_topics_stay_its_own() -> None:
    bus = Bus(policy=rules('allow = "publish"; topics = ["$bus.>", ">"]'))
    client = guest(bus)
    client.publish("$bus.names.x")
    assert [code for code, *_ in errors(client)] == [Code.RESERVED]


# --- subscribe (P-4) ------------------------------------------------------------------------------


SUBSCRIBER = rules('deny = "subscribe"; topics = ["room.safe"]', 'allow = "subscribe"; topics = ["room.>", "$bus.names.lights"]')


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("room.door", True),
        ("room.safe", False),
        ("room.*", False),
        ("room.>", False),
        ("room.*.x", True),
        (">", False),
        ("room", False),
        ("$bus.names.lights", True),
        ("$bus.names.>", False),
    ],
)
def test_subscriptions(pattern: str, allowed: bool, group: str | None) -> None:
    bus = Bus(policy=SUBSCRIBER)
    client = guest(bus)
    answer = client.ask("subscribe", pattern=pattern, lane=1, credit=1000, group=group)
    assert isinstance(answer, dict) if allowed else denied(answer)
    assert bus.broker.lane_count == len(client.peer.lanes or ()) == allowed


def test_a_denied_pattern_is_told_by_a_topic_that_it_also_matches() -> None:
    bus = Bus(policy=SUBSCRIBER)
    client = guest(bus)
    assert client.ask("subscribe", pattern="room.*", lane=1, credit=1000)[1] == (
        "rule 2 of rules.toml, line 3 denies subscribe to 'room.*', which would also match 'room.safe'"
    )


def test_what_is_kept_is_read_with_the_right_to_subscribe() -> None:
    bus = Bus(policy=SUBSCRIBER)
    owner, client = bus.peer(), guest(bus)
    owner.publish("room.door", b"open", kind=Kind.RETAIN)
    owner.publish("room.safe", b"1234", kind=Kind.RETAIN)
    assert client.ask("get", topic="room.door")["payload"] == b"open"
    assert denied(client.ask("get", topic="room.safe"))
    assert denied(client.ask("get", topic="elsewhere"))  # whether anything is kept there is not told


def test_what_is_no_pattern_is_told_first() -> None:
    bus = Bus(policy=SUBSCRIBER)
    client = guest(bus)
    assert client.ask("subscribe", pattern="a.>.b", lane=1, credit=1)[0] == Code.BAD_TOPIC
    assert client.ask("get", topic="a.*")[0] == Code.BAD_TOPIC
    assert client.ask("own", name="a b")[0] == Code.BAD_NAME
    assert client.ask("own", name="bus.x")[0] == Code.RESERVED


def test_judging_a_pattern_costs_who_asks_what_it_takes() -> None:
    many = ", ".join(f'"t{number}.*"' for number in range(300))
    bus = Bus(policy=rules(f'deny = "subscribe"; topics = [{many}]', 'allow = "subscribe"'))
    client = guest(bus)
    spent = []
    for lane, pattern in enumerate(("other.x", "*.a.b")):
        before = bus.broker.effort.spent
        client.subscribe(pattern, lane + 1)
        spent.append(bus.broker.effort.spent - before)
    assert spent[1] > spent[0] + 300


# --- own, send, call (P-5, P-6) -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exclusive", "queue", "shared"])
def test_names(mode: str) -> None:
    bus = Bus(policy=rules('allow = "own"; names = ["home.*"]'))
    client = guest(bus)
    assert client.ask("own", name="home.lights", mode=mode) == {"owner": True, "position": 0}
    assert client.ask("serve", name="home.lights", methods=["on"]) == {}
    assert denied(client.ask("own", name="home.lights.deep", mode=mode))
    assert denied(client.ask("own", name="home", mode=mode))


def test_waiting_for_a_name_takes_the_right_to_own_it() -> None:
    bus = Bus(policy=rules('allow = "own"; names = ["home.*"]'))
    owner, client = bus.peer(), guest(bus)
    for name in ("home.a", "work"):
        owner.ask("own", name=name, mode="queue")
    assert client.ask("own", name="home.a", mode="queue") == {"owner": False, "position": 1}
    assert denied(client.ask("own", name="work", mode="queue"))


def send(client: Client, to: str, *payloads: bytes) -> None:
    client.write(b"".join(publication(client.id, to, payload, Kind.SEND) for payload in payloads or (b"x",)))


SENDER = rules('deny = "send"; names = ["home.safe"]', 'allow = "send"; names = ["home.>"]')


def test_sends_to_names() -> None:
    bus = Bus(policy=SENDER)
    service, client = bus.peer(), guest(bus)
    for name in ("home.lights", "home.safe", "work"):
        service.ask("own", name=name)
    send(client, "home.lights", b"1", b"2")
    send(client, "home.safe", b"3", b"4")
    send(client, "work", b"5")
    send(client, "home.nobody")
    send(client, "work.nobody")
    assert service.read_payloads(Kind.SEND) == [b"1", b"2"]
    told = [(code, content["to"], content["count"]) for code, _, _, content in errors(client)]
    assert told == [
        (25, "home.safe", 1),
        (25, "home.safe", 1),
        (25, "work", 1),
        (Code.NO_SUCH_NAME, "home.nobody", 1),
        (25, "work.nobody", 1),  # whether somebody has it is not looked at
    ]
    assert bus.broker.counters.offered == 2


@pytest.mark.parametrize("to", ["a b", "bus", "bus.x", "", ":x", ":99"])
def test_sends_to_what_nobody_can_be(to: str) -> None:
    """What a peer without limits is told, one with limits is told too."""
    bus = Bus(policy=SENDER)
    told = []
    for client in (bus.peer(), guest(bus)):
        send(client, to)
        told.append(errors(client)[0][:3])
    assert told[0] == told[1]
    assert told[0][0] in (Code.BAD_NAME, Code.RESERVED, Code.NO_SUCH_PEER)


def test_an_address_is_judged_by_the_names_there_as_they_are() -> None:
    bus = Bus(policy=SENDER)
    service, client = bus.peer(), guest(bus)
    to = f":{service.id}"
    send(client, to)
    assert [text for _, _, text, _ in errors(client)] == ["the default denies send to a peer without a name"]
    service.ask("own", name="home.lights")
    send(client, to, b"1")
    send(client, to, b"2", b"3")
    assert service.read_payloads(Kind.SEND) == [b"1", b"2", b"3"]
    service.ask("own", name="home.safe")
    send(client, to, b"4")
    assert [text for _, _, text, _ in errors(client)] == ["rule 2 of rules.toml, line 3 denies send to 'home.safe'"]
    service.ask("release", name="home.safe")
    send(client, to, b"5")
    assert errors(client) == []
    assert service.read_payloads(Kind.SEND) == [b"5"]


def test_a_name_that_is_waited_for_counts_for_its_address() -> None:
    bus = Bus(policy=SENDER)
    owner, service, client = bus.peer(), bus.peer(), guest(bus)
    owner.ask("own", name="home.safe", mode="queue")
    service.ask("own", name="home.lights")
    service.ask("own", name="home.safe", mode="queue")
    send(client, f":{service.id}")
    assert [code for code, *_ in errors(client)] == [Code.DENIED]


@pytest.mark.parametrize(("names", "allowed"), [(2, True), (3, True), (4, False)])
def test_an_address_with_many_names_is_not_judged(names: int, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message to it would cost so much."""
    monkeypatch.setattr("ipcbus.broker.rights.ADDRESS_NAMES_MAX", 3)
    bus = Bus(policy=rules('allow = ["send", "call"]; names = [">"]'))
    service, client = bus.peer(), guest(bus)
    for number in range(names):
        service.serve(f"n{number}", "all", f"only{number}")
    service.read()
    send(client, f":{service.id}")
    client.request(f":{service.id}/all")
    client.request(f":{service.id}/only1")
    said = client.read()
    assert [(each[0], each[4]) for each in said] == ([] if allowed else [(Kind.ERROR, Code.DENIED)] * 2)
    assert all("of its 4 names: at most 3 may be" in each[5] for each in said)
    assert [envelope[2] for envelope in service.read()][-1] == f":{service.id}/only1"


def test_peers_without_names_are_the_name_colon() -> None:
    bus = Bus(policy=rules('allow = "send"; names = [":"]'))
    nobody, service, client = bus.peer(), bus.peer(), guest(bus)
    service.ask("own", name="x")
    send(client, f":{nobody.id}", b"1")
    send(client, f":{service.id}", b"2")
    assert [content["to"] for _, _, _, content in errors(client)] == [f":{service.id}"]
    assert nobody.read_payloads(Kind.SEND) == [b"1"]


CALLER = rules(
    'deny = "call"; names = ["home.lights"]; methods = ["explode"]',
    'allow = "call"; names = ["home.lights", "home.heat"]',
    'allow = "call"; names = ["work"]; methods = ["ask"]',
)


def call(client: Client, to: str) -> Any:
    """The code of the bus's answer, None where the request went on."""
    client.request(to)
    answers = client.read()
    return answers[0][4] if answers else None


def test_calls_of_names() -> None:
    bus = Bus(policy=CALLER)
    service, client = bus.peer(), guest(bus)
    for name in ("home.lights", "home.heat", "work"):
        service.serve(name, "*")
    service.read()
    assert call(client, "home.lights/on") is None
    assert call(client, "home.lights/explode") == Code.DENIED
    assert call(client, "home.heat/explode") is None
    assert call(client, "work/ask") is None
    assert call(client, "work/stop") == Code.DENIED
    assert call(client, "elsewhere/on") == Code.DENIED  # whether somebody has it is not looked at
    assert call(client, "a b/on") == Code.BAD_NAME
    assert call(client, "home.lights/on") is None
    assert [each[2] for each in service.read()] == ["home.lights/on", "home.heat/explode", "work/ask", "home.lights/on"]
    assert (bus.broker.counters.denied, client.peer.denied) == (3, 3)


def test_answers_need_no_right() -> None:
    bus = Bus(policy=rules('allow = "own"'))
    client, service = bus.peer("client", ("parts",)), guest(bus, features=("parts",))
    service.serve("work", "ask")
    id = client.request("work/ask")
    client.write(encode(Kind.ALLOW, client.id, "work/ask", id, 1000))
    service.write(encode_with_payload(b"p", Kind.PART, service.id, f":{client.id}", id, 0, None))
    service.reply(client, id, b"r")
    other = client.request("work/ask")
    service.write(encode_with_payload(b"", Kind.ERROR, service.id, f":{client.id}", other, "Broken", "no", None))
    assert [envelope[0] for envelope in client.read()] == [Kind.PART, Kind.REPLY, Kind.ERROR]
    assert bus.broker.counters.denied == 0


def test_calls_of_an_address_are_judged_by_the_names_that_serve_the_method() -> None:
    bus = Bus(policy=CALLER)
    service, client = bus.peer(), guest(bus)
    to = f":{service.id}/ask"
    assert call(client, to) == Code.DENIED  # a peer without a name
    service.serve("work", "ask", "stop")
    assert call(client, to) is None
    service.serve("other", "more")  # does not serve that method
    assert call(client, to) is None
    service.serve("home.lights", "on")
    assert call(client, f":{service.id}/stop") == Code.DENIED
    assert call(client, f":{service.id}/on") is None
    service.serve("secret", "ask")
    assert call(client, to) == Code.DENIED  # though it was allowed before
    assert call(client, ":99/ask") == Code.NO_SUCH_PEER


def test_calls_are_judged_once_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.broker.rights.CALLS_REMEMBERED", 2)
    bus = Bus(policy=CALLER)
    service, client = bus.peer(), guest(bus)
    service.serve("home.heat", "*")
    asked: list[str] = []
    real = Rights.call
    monkeypatch.setattr(Rights, "call", lambda self, name, method: asked.append(method) or real(self, name, method))  # type: ignore[func-returns-value]
    for method in "abab":
        assert call(client, f"home.heat/{method}") is None
    assert asked == ["a", "b"]
    assert call(client, "home.heat/c") is None  # one too many: it begins again
    assert call(client, "home.heat/c") is None
    assert call(client, "home.heat/a") is None
    assert asked == ["a", "b", "c", "a"]
    assert len(client.peer.may_call or ()) == 2


# --- the bus (P-7), connect (P-2) -----------------------------------------------------------------


ADMIN = {"accounts": {}, "topics": {}, "patterns": {}, "receivers": {"topic": "x"}, "losses": {}}
FREE = {"names": {}, "peers": {}, "stats": {}, "ping": {}, "introspect": {}, "identity": {"peer": 1}}


def test_the_books_of_the_bus_take_the_right_admin() -> None:
    bus = Bus(policy=rules())
    client = guest(bus)
    for method, arguments in ADMIN.items():
        assert denied(client.ask(method, **arguments)), method
    for method, arguments in FREE.items():
        assert isinstance(client.ask(method, **arguments), dict), method
    bus = Bus(policy=rules('allow = "admin"'))
    client = guest(bus)
    for method, arguments in ADMIN.items():
        assert isinstance(client.ask(method, **arguments), dict), method


@pytest.mark.parametrize("admin", [False, True])
def test_the_patterns_of_others_are_not_in_the_counters_that_everybody_may_see(admin: bool) -> None:
    bus = Bus(policy=rules('allow = "admin"') if admin else rules(), lane_soft_bytes=1_000)
    source, slow, client = bus.peer(pid=1), bus.peer(pid=2), guest(bus, pid=3)
    slow.subscribe("secret.>", credit=0)
    source.publish("secret.plan", bytes(2_000))
    assert [item["pattern"] for item in source.ask("stats")["holding"]] == ["secret.>"]
    stats = client.ask("stats")
    assert stats["held"] == 1
    assert [item["pattern"] for item in stats["holding"]] == ["secret.>"] * admin


def test_seeing_what_others_send_takes_the_right_monitor() -> None:
    bus = Bus(policy=rules('allow = "subscribe"', 'deny = "monitor"; topics = ["room.safe"]', 'allow = "monitor"; topics = ["room.>"]'))
    client = guest(bus)
    assert denied(client.ask("monitor", lane=1, credit=1000))
    assert denied(client.ask("monitor", lane=1, credit=1000, pattern="room.*"))
    assert client.ask("monitor", lane=1, credit=1000, pattern="a.>.b")[0] == Code.BAD_TOPIC
    assert isinstance(client.ask("monitor", lane=1, credit=1000, pattern="room.door"), dict)
    assert len(client.peer.lanes or ()) == len(bus.broker.monitors) == 1


def test_every_method_of_the_bus_was_thought_of() -> None:
    """Which right a method takes is written in PROTOCOL.md; a new one has to be added there and here."""
    judged = {"subscribe", "own", "get", "will", "bind", "restore"}
    taking_back = {"unsubscribe", "release", "serve", "unserve", "unbind"}
    known = {*ADMIN, *FREE, *judged, *taking_back}
    assert {*Bus().peer().ask("introspect")["methods"]} == known | {"monitor"}


def test_who_may_not_connect_is_told_before_it_is_anybody() -> None:
    bus = Bus(policy=policy(""))
    peer = bus.broker.connect(bus.now, credentials=Credentials(1, GUEST, 1))
    client = Client(bus, peer)
    client.write(encode(Kind.HELLO, 0, 1, 1, [], {}, None) + encode_with_payload(b"", Kind.REQUEST, 0, "bus/ping", 1, 1000, None))
    assert client.read() == [[Kind.BYE, 0, Code.DENIED, "the default denies connect"]]
    assert (peer.closing, peer.id) == (True, 0)
    assert bus.broker.peers == {}
    assert bus.peer().id == 1


def test_who_may_not_connect_ends_nobody_s_session() -> None:
    bus = Bus(policy=policy(""))
    hello = encode(Kind.HELLO, 0, 1, 1, [], {"session": "s"}, None)
    first = Client(bus, bus.broker.connect(bus.now, credentials=Credentials(1, 20, 1)))
    first.write(hello)
    second = Client(bus, bus.broker.connect(bus.now, credentials=Credentials(1, GUEST, 1)))
    second.write(hello)
    assert second.peer.closing
    assert not first.peer.closing


def tcp(rule: str) -> list[int]:
    """The kinds of frames that a TCP peer gets which proves the bus's secret under the policy of *rule*."""
    secret, addresses = b"s" * 32, ("127.0.0.1:1", "127.0.0.1:2")
    secrets = Secrets({"default": Secret(secret)}, bytes(32))
    broker = Broker(incarnation=b"i" * 16, random_bytes=lambda n: b"r" * n, now=0.0, secrets=secrets, policy=policy(rule))
    peer = broker.connect(0.0, transport="tcp", addresses=addresses)
    hello = encode(Kind.HELLO, 0, 1, 1, [], {}, b"n" * 32)
    broker.receive(peer, hello, 0.0)
    broker.receive(peer, encode(Kind.PROOF, 0, proof(secret, "client", hello[5:], 1, [], b"r" * 32, *addresses)), 0.0)
    unpacker = msgpack.Unpacker()
    unpacker.feed(b"".join(peer.out))
    return [envelope[0] for envelope in list(unpacker)[1::2]]


def test_a_tcp_peer_is_judged_by_what_it_proved() -> None:
    assert tcp('[[rule]]\nallow = "connect"\nidentity = "default"\n') == [Kind.CHALLENGE, Kind.WELCOME]
    assert tcp('[[rule]]\nallow = "connect"\nidentity = "panel"\n') == [Kind.CHALLENGE, Kind.BYE]
    assert tcp('[[rule]]\nallow = "connect"\nuid = 0\n') == [Kind.CHALLENGE, Kind.BYE]


def test_a_peer_is_the_subject_that_the_kernel_says() -> None:
    bus = Bus()
    peer = bus.broker.connect(bus.now, credentials=Credentials(1, 2, 3, (4, 5), "a.service", "b.scope"))
    assert subject_of(peer) == Subject(uid=2, gid=3, groups=frozenset({4, 5}), unit="a.service", user_unit="b.scope")


def test_who_may_do_everything_is_never_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(policy=rules())
    client = bus.peer()  # uid 20
    assert client.peer.rights is None
    for name in ("publish", "subscribe", "own", "send", "call", "admin"):
        monkeypatch.delattr(Rights, name)
    client.subscribe(">")
    client.serve("x", "m")
    client.publish("a", b"1")
    assert client.ask("topics")["items"]
    client.read()
    client.request("x/m")
    send(client, "x")
    assert [envelope[0] for envelope in client.read()] == [Kind.REQUEST, Kind.SEND]
    assert bus.broker.counters.refused == 0


def test_a_bus_without_a_policy_judges_nobody() -> None:
    assert Bus().peer().peer.rights is None
