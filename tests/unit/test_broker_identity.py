"""Who a sender is: what the bus knows of its peers, and whom it tells (I-1 to I-4)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ipcbus.broker import Broker, Credentials, introductions
from ipcbus.broker.inflow import DIRECT_FREE_BYTES
from ipcbus.broker.lanes import OUTPUT_HIGH_BYTES
from ipcbus.protocol.auth import Secret, Secrets, proof
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload

from .harness import Bus, Client, publication

ASKS = ("identity", "parts", "post", "wills")
ADDRESSES = ("127.0.0.1:1", "127.0.0.1:2")
REMEMBERED = 8  #: senders, by each receiver, and of those that went; thousands would take seconds


@pytest.fixture(autouse=True)
def few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introductions, "MAX_INTRODUCED", REMEMBERED)
    monkeypatch.setattr(introductions, "_DEPARTED_MAX", REMEMBERED)


def seen(client: Client) -> list[Any]:
    """What *client* got: the sender of each message, and ``("who", n)`` for NOTICE identity about n. The bus's own frames are left out."""
    found: list[Any] = []
    for envelope in client.read():
        if envelope[0] == Kind.NOTICE and envelope[2] == "identity":
            found.append(("who", msgpack.unpackb(envelope[-1])["peer"]))
        elif envelope[1]:
            found.append(envelope[1])
    return found


def told(client: Client) -> dict[str, Any]:
    """The one NOTICE identity that *client* got."""
    (notice,) = (msgpack.unpackb(each[-1]) for each in client.read() if each[0] == Kind.NOTICE and each[2] == "identity")
    return notice


def tcp_peer(broker: Broker, secret: bytes, features: tuple[str, ...] = ()) -> Any:
    peer = broker.connect(0.0, transport="tcp", addresses=ADDRESSES)
    hello = encode(Kind.HELLO, 0, 1, 1, features, {"program": "panel"}, b"n" * 32)
    broker.receive(peer, hello, 0.0)
    assert (peer.identity, peer.credentials) == ("", None)
    answer = proof(secret, "client", hello[5:], 1, list(features), b"r" * 32, *ADDRESSES)
    broker.receive(peer, encode(Kind.PROOF, 0, answer), 0.0)
    assert msgpack.unpackb(peer.out[-1][5:])[0] == Kind.WELCOME
    return peer


# --- what is told ---------------------------------------------------------------------------------


def test_a_notice_says_what_the_kernel_said() -> None:
    bus = Bus()
    receiver = bus.peer(features=ASKS)
    receiver.subscribe("t")
    who = Credentials(7, 8, 9, (3, 4, 9), "lights.service", "")
    sender = Client(bus, bus.broker.connect(bus.now, credentials=who))
    sender.write(encode(Kind.HELLO, 0, 1, 1, (), {"program": "lights"}, None))
    sender.publish("t")
    notice = told(receiver)
    assert notice == {
        "peer": 2, "transport": "unix", "program": "lights", "pid": 7, "uid": 8, "gid": 9, "groups": [3, 4, 9],
        "unit": "lights.service", "user_unit": "", "identity": "",
    }  # fmt: skip
    assert receiver.ask("identity", peer=2) == notice
    (item,) = (item for item in receiver.ask("peers")["items"] if item["peer"] == 2)
    assert {key: item[key] for key in notice} == notice


def test_a_tcp_peer_is_who_it_has_proved_to_be() -> None:
    secret = b"s" * 32
    secrets = Secrets({"default": Secret(secret)}, bytes(32))
    broker = Broker(incarnation=b"i" * 16, random_bytes=lambda size: b"r" * size, now=0.0, limits=Limits(), secrets=secrets)
    peer = tcp_peer(broker, secret)
    assert (peer.identity, peer.credentials) == ("default", None)
    assert msgpack.unpackb(peer.origin.said) == {
        "peer": 1, "transport": "tcp", "program": "panel", "pid": None, "uid": None, "gid": None, "groups": None,
        "unit": None, "user_unit": None, "identity": "default",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [0, 2, 2**53 - 1])
def test_nobody_knows_who_that_is(wrong: int) -> None:
    code, text = Bus().peer().ask("identity", peer=wrong)
    assert code == Code.NO_SUCH_PEER
    assert f"peer {wrong}" in text


# --- who is told, and when ------------------------------------------------------------------------


def test_who_does_not_ask_is_told_nothing() -> None:
    bus = Bus()
    sender, receiver = bus.peer(features=ASKS), bus.peer()
    receiver.subscribe("t")
    sender.publish("t")
    sender.write(encode_with_payload(b"", Kind.SEND, sender.id, f":{receiver.id}", None))
    assert seen(receiver) == [1, 1]


def test_each_sender_is_introduced_once_and_before_its_first_publication() -> None:
    bus = Bus()
    receiver, one, two = bus.peer(features=ASKS), bus.peer(), bus.peer()
    receiver.subscribe("t.*")
    one.publish("t.1", b"1", b"2")
    two.publish("t.1")
    one.publish("t.2", kind=Kind.RETAIN)
    one.write(publication(one.id, "t.1", meta={"a": 1}))
    assert seen(receiver) == [("who", 2), 2, 2, ("who", 3), 3, 2, 2]


def test_itself_is_a_sender_too() -> None:
    receiver = Bus().peer(features=ASKS)
    receiver.subscribe("t")
    receiver.publish("t")
    assert seen(receiver) == [("who", 1), 1]


def test_a_subscription_that_comes_later_gets_its_introduction() -> None:
    """Though the publisher's route was found before: of a topic of its own, and of a pattern."""
    bus = Bus()
    sender, one, two = bus.peer(), bus.peer(features=ASKS), bus.peer(features=ASKS)
    sender.publish("t")
    one.subscribe("t")
    sender.publish("t")
    two.subscribe(">")
    sender.publish("t")
    assert seen(one) == [("who", 1), 1, 1]
    assert seen(two) == [("who", 1), 1]
    one.ask("unsubscribe", lane=1)
    one.subscribe("t", lane=2)
    sender.publish("t")
    assert seen(one) == [1]


def test_what_waits_for_credit_comes_after_the_introduction() -> None:
    bus = Bus()
    sender, receiver = bus.peer(), bus.peer(features=ASKS)
    receiver.subscribe("t", credit=0)
    sender.publish("t")
    assert seen(receiver) == [("who", 1)]
    sender.leave()
    receiver.credit(1, 1000)
    assert seen(receiver) == [1]


@pytest.mark.parametrize("kind", ["post", "restored", "will", "removal", "expiry"])
def test_what_is_no_run_is_introduced_too(kind: str) -> None:
    bus = Bus()
    sender, receiver = bus.peer(features=ASKS), bus.peer(features=ASKS)
    if kind == "removal":
        sender.publish("t", kind=Kind.RETAIN)
        sender.ask("bind", topic="t")
    elif kind == "expiry":
        sender.write(encode_with_payload(b"x", Kind.POST, 1, "t", None, 1000, True, None))
    elif kind == "will":
        sender.ask("will", topic="t", payload=b"gone")
    receiver.subscribe("t", retained=False)
    if kind == "post":
        sender.write(encode_with_payload(b"x", Kind.POST, 1, "t", None, None, False, None))
    elif kind == "restored":
        sender.ask("restore", topic="t", payload=b"x")
    elif kind == "expiry":
        sender.leave()
        bus.advance(1.0)
    else:
        sender.leave()
    assert seen(receiver) == [("who", 1), 1]


def test_a_send_a_request_and_its_answers_are_introduced() -> None:
    bus = Bus()
    caller, callee = bus.peer(features=ASKS), bus.peer(features=ASKS)
    callee.serve("s", "m")
    one = caller.request("s/m")
    assert seen(callee) == [("who", 1), 1]
    caller.write(encode(Kind.ALLOW, 1, "s/m", one, 1000))
    callee.write(encode_with_payload(b"", Kind.PART, 2, ":1", one, 0, None))
    callee.reply(caller, one)
    assert seen(callee) == [1]
    assert seen(caller) == [("who", 2), 2, 2]
    two = caller.request("s/m")
    callee.write(encode_with_payload(b"", Kind.ERROR, 2, ":1", two, "No", "", None))
    assert seen(caller) == [2]
    other = bus.peer()
    other.write(encode_with_payload(b"", Kind.SEND, 3, "s", None))
    other.write(encode_with_payload(b"", Kind.SEND, 3, "s", None))
    assert seen(callee) == [1, ("who", 3), 3, 3]


def test_an_answer_of_the_bus_introduces_nobody() -> None:
    bus = Bus()
    caller = bus.peer(features=ASKS)
    caller.subscribe("$bus.names.>")
    caller.serve("s", "m")
    caller.request("nobody/m")
    assert seen(caller) == []


# --- what is left behind --------------------------------------------------------------------------


def test_who_published_what_is_kept_is_known_when_it_has_gone() -> None:
    bus = Bus()
    sender = bus.peer("thermometer", pid=77)
    sender.publish("t.1", kind=Kind.RETAIN)
    sender.publish("t.2", kind=Kind.RETAIN)
    sender.leave()
    for _ in range(REMEMBERED + 1):  # nobody remembers it but what is kept
        other = bus.peer()
        other.publish("else")
        other.leave()
    receiver, getter = bus.peer(features=ASKS), bus.peer(features=ASKS)
    receiver.request("bus/subscribe", msgpack.packb({"pattern": "t.*", "lane": 1, "credit": 1000}))
    notice = told(receiver)
    assert (notice["peer"], notice["program"], notice["pid"]) == (1, "thermometer", 77)
    assert "gone" not in notice
    getter.request("bus/get", msgpack.packb({"topic": "t.2"}))
    first, reply = getter.read()
    assert msgpack.unpackb(first[-1]) == notice
    assert msgpack.unpackb(reply[-1])["sender"] == 1
    getter.request("bus/get", msgpack.packb({"topic": "t.1"}))
    assert [each[0] for each in getter.read()] == [Kind.REPLY]


def test_a_member_that_joins_while_something_waits_is_told_who_sent_it() -> None:
    """The routes of these messages were found without it, by senders that are here, have gone, or have long gone."""
    bus = Bus()
    first = bus.peer()
    first.subscribe("jobs", group="g", credit=0)
    old, recent, present = bus.peer("old"), bus.peer("recent"), bus.peer("present")
    for sender in (old, recent, present, first):
        sender.publish("jobs", sender.peer.program.encode())
    old.leave()
    for _ in range(REMEMBERED - 2):
        other = bus.peer()
        other.publish("else")
        other.leave()
    recent.leave()
    assert bus.broker._delivery.origin_of(old.id) is not None
    other = bus.peer()
    other.publish("else")
    other.leave()
    assert bus.broker._delivery.origin_of(old.id) is None
    late = bus.peer(features=ASKS)
    late.request("bus/subscribe", msgpack.packb({"pattern": "jobs", "lane": 1, "credit": 1 << 20, "group": "g", "messages": 2}))
    envelopes = late.read()
    notices = [msgpack.unpackb(each[-1]) for each in envelopes if each[0] == Kind.NOTICE]
    assert notices[0] == {
        "peer": 2, **dict.fromkeys(("transport", "program", "pid", "uid", "gid", "groups", "unit", "user_unit", "identity")), "gone": True,
    }  # fmt: skip
    assert (notices[1]["peer"], notices[1]["program"]) == (3, "recent")
    late.credit(1, 0, messages=10)
    assert seen(late) == [("who", 4), 4, ("who", 1), 1]
    present.publish("jobs")  # nothing waits any more: it is as for everybody
    assert seen(late) == [4]


@pytest.mark.parametrize("way", ["taken", "lost"])
def test_who_joined_is_looked_at_no_more_when_what_waited_then_has_gone(way: str) -> None:
    """The queue of busy workers is never empty: each message to one that joined late would cost a look."""
    bus = Bus()
    first, one, two = bus.peer(), bus.peer(), bus.peer()
    first.subscribe("jobs", group="g", credit=0, policy="drop_oldest", limits={"soft": 20_000, "hard": 20_000})
    one.publish("jobs", bytes(8_000))
    late = bus.peer(features=ASKS)
    late.subscribe("jobs", group="g", credit=1 << 20, messages=0)
    two.publish("jobs", bytes(8_000))
    (lane,) = late.peer.grouped or ()
    assert lane.group is not None
    backlog = lane.group.backlog
    assert backlog is not None
    assert backlog.strangers == {late.peer}
    if way == "taken":
        late.credit(1, 0, messages=1)
        assert seen(late) == [("who", two.id), ("who", one.id), one.id]
    else:
        two.publish("jobs", bytes(8_000))
    assert backlog.pieces
    assert backlog.strangers is None
    assert backlog.last_strange is None
    late.credit(1, 0, messages=1)
    assert seen(late)[-1] == two.id


def test_who_joins_and_leaves_again_is_not_remembered_as_long_as_something_waits() -> None:
    """Else a program that does that all day would fill the bus's memory; with another lane in the group it stays a member."""
    bus = Bus()
    first, sender = bus.peer(), bus.peer()
    first.subscribe("jobs", group="g", credit=0)
    sender.publish("jobs")
    (lane,) = first.peer.grouped or ()
    assert lane.group is not None
    backlog = lane.group.backlog
    assert backlog is not None
    for way in ("unsubscribe", "leave"):
        passer_by = bus.peer(features=ASKS)
        for number in (1, 2):
            passer_by.subscribe("jobs", lane=number, group="g", credit=0)
        passer_by.ask("unsubscribe", lane=1)
        assert backlog.strangers == {passer_by.peer}
        if way == "leave":
            passer_by.leave()
        else:
            passer_by.ask("unsubscribe", lane=2)
        assert not backlog.strangers


def test_what_the_bus_itself_sends_to_a_late_member_has_no_sender() -> None:
    bus = Bus()
    first, late = bus.peer(), bus.peer(features=ASKS)
    first.subscribe("$bus.names.s", group="g", credit=0)
    assert isinstance(first.ask("own", name="s"), dict)
    late.subscribe("$bus.names.s", group="g")
    assert late.notices() == []
    assert late.peer.delivered == 1


def test_a_peer_that_sent_nothing_is_not_remembered() -> None:
    bus = Bus()
    one, two = bus.peer(), bus.peer()
    two.publish("t")
    one.leave()
    two.leave()
    third = bus.peer()
    assert third.ask("identity", peer=1)[0] == Code.NO_SUCH_PEER
    assert third.ask("identity", peer=2)["peer"] == 2


@pytest.mark.parametrize(("groups", "weight"), [(63, 0), (64, 0), (65, 5), (1000, 4680)])
def test_of_who_has_gone_little_is_kept_and_many_groups_are_charged(groups: int, weight: int) -> None:
    """A thousand groups take 45 KB as objects: a hundred thousand kept messages of peers that come and go would be gigabytes."""
    bus = Bus()
    asks, receiver = bus.peer(), bus.peer(features=ASKS)
    who = Credentials(7, 8, 9, tuple(range(70_000, 70_000 + groups)))
    sender = Client(bus, bus.broker.connect(bus.now, credentials=who))
    sender.write(encode(Kind.HELLO, 0, 1, 1, (), {}, None))
    sender.publish("t", kind=Kind.RETAIN)
    frame = len(publication(sender.id, "t", kind=Kind.RETAIN))
    assert bus.broker.retained.bytes == frame + weight
    before = asks.ask("identity", peer=sender.id)
    assert before["groups"] == list(who.groups)
    sender.leave()
    origin = bus.broker.retained.origin("t")
    assert origin is not None
    assert origin.credentials is None
    assert asks.ask("identity", peer=sender.id) == before
    receiver.subscribe("t", retained=False)
    receiver.request("bus/get", msgpack.packb({"topic": "t"}))
    assert told(receiver) == before
    asks.publish("t", b"", kind=Kind.RETAIN)
    assert bus.broker.retained.bytes == 0


# --- how many a receiver remembers ----------------------------------------------------------------


@pytest.mark.parametrize(("others", "again"), [(REMEMBERED - 1, False), (REMEMBERED, True), (REMEMBERED + 1, True)])
def test_who_was_forgotten_is_told_again(others: int, again: bool) -> None:
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer()
    receiver.serve("s", "m")
    number = sender.request("s/m", timeout_ms=100_000)
    assert seen(receiver) == [("who", 2), 2]
    receiver.reply(sender, number)
    for count in range(others):
        other = bus.peer(pid=1000 + count)
        other.write(encode_with_payload(b"", Kind.SEND, other.id, "s", None))
        other.leave()
    receiver.read()
    assert receiver.peer.introduced is not None
    assert len(receiver.peer.introduced) == min(others + 1, REMEMBERED)
    sender.request("s/m")
    assert seen(receiver) == ([("who", 2), 2] if again else [2])
    assert len(receiver.peer.introduced) <= REMEMBERED


def test_a_forgotten_publisher_is_told_again_where_its_route_is_found_anew() -> None:
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer()
    receiver.subscribe("t")
    sender.publish("t")
    for _ in range(REMEMBERED):
        other = bus.peer()
        other.publish("t")
        other.leave()
    receiver.read()
    sender.publish("t")
    assert seen(receiver) == [2]  # I-3: a message costs no look
    bus.peer().subscribe("other.*")
    sender.publish("t")
    assert seen(receiver) == [("who", 2), 2]


@pytest.mark.parametrize(("limit", "told_again"), [(6, True), (7, True), (8, False), (9, False)])
def test_what_is_remembered_in_all_is_limited(limit: int, told_again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two receivers with four senders each: at the limit they remember fewer, and are told again."""
    monkeypatch.setattr(introductions, "_REMEMBERED_MAX", limit)
    monkeypatch.setattr(introductions, "_REMEMBERED_MIN", 2)
    bus = Bus()
    receivers = [bus.peer(features=ASKS), bus.peer(features=ASKS)]
    senders = [bus.peer() for _ in range(4)]
    for receiver in receivers:
        receiver.serve(f"n{receiver.id}", "m")
        for sender in senders:
            sender.write(encode_with_payload(b"", Kind.SEND, sender.id, f":{receiver.id}", None))
        receiver.read()
    remembered = [len(receiver.peer.introduced or ()) for receiver in receivers]
    assert sum(remembered) == bus.broker._delivery._remembered <= limit
    assert min(remembered) >= 2
    senders[0].write(encode_with_payload(b"", Kind.SEND, senders[0].id, ":2", None))
    assert seen(receivers[1]) == [("who", 3), 3] if told_again else [3]
    for receiver in receivers:
        receiver.leave()
    assert bus.broker._delivery._remembered == 0


# --- who does not read ----------------------------------------------------------------------------


def test_who_comes_and_goes_does_not_fill_the_output_of_one_that_does_not_read() -> None:
    """Publications wait for room in the output, and so do their introductions: the first messages of all that are still remembered come
    behind their notices, the oldest as from somebody unknown (I-3)."""
    bus = Bus()
    receiver, group_member, big = bus.peer(features=ASKS), bus.peer(features=ASKS), bus.peer()
    receiver.subscribe("t", credit=1 << 26, policy="drop_oldest")
    group_member.subscribe("t", credit=1 << 26, group="g", messages=100)
    for stuck in (receiver, group_member):
        big.write(encode_with_payload(bytes(OUTPUT_HIGH_BYTES), Kind.SEND, big.id, f":{stuck.id}", None))
    before = receiver.peer.out_bytes, group_member.peer.out_bytes
    ids = []
    for _ in range(REMEMBERED + 3):
        sender = bus.peer("passer-by")
        sender.publish("t")
        ids.append(sender.id)
        sender.leave()
    assert (receiver.peer.out_bytes, group_member.peer.out_bytes) == before
    assert len(receiver.peer.unintroduced or ()) == REMEMBERED
    for stuck in (receiver, group_member):
        assert seen(stuck) == [("who", big.id), big.id]
        assert stuck.peer.unintroduced is None
        told = ids[-REMEMBERED:]
        assert seen(stuck) == [*(("who", number) for number in told), *ids]
    late = bus.peer()
    late.publish("t")
    assert seen(receiver) == [("who", late.id), late.id]


def test_who_is_told_meanwhile_is_told_once() -> None:
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer()
    receiver.subscribe("t", credit=1 << 26)
    receiver.write(encode_with_payload(bytes(OUTPUT_HIGH_BYTES), Kind.SEND, receiver.id, f":{receiver.id}", None))
    sender.publish("t")
    sender.write(encode_with_payload(b"", Kind.SEND, sender.id, f":{receiver.id}", None))
    assert seen(receiver) == [("who", 1), 1, ("who", 2), 2]
    assert seen(receiver) == [2]


def test_nothing_follows_the_end_of_one_that_did_not_read() -> None:
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer()
    receiver.subscribe("t", credit=1 << 26)
    receiver.write(encode_with_payload(bytes(OUTPUT_HIGH_BYTES), Kind.SEND, receiver.id, f":{receiver.id}", None))
    sender.publish("t")
    receiver.write(b"no frame")
    assert [each[0] for each in receiver.read()][-1] == Kind.BYE
    assert receiver.read() == []


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.REQUEST])
def test_an_introduction_is_charged_to_whom_it_is_about(kind: Kind) -> None:
    """As the direct message that it comes with (Q-5)."""
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer(pid=11)
    receiver.serve("s", "m")
    receiver.write(encode_with_payload(bytes(DIRECT_FREE_BYTES), Kind.SEND, receiver.id, f":{receiver.id}", None))
    before = receiver.peer.out_bytes
    if kind is Kind.SEND:
        sender.write(encode_with_payload(b"", Kind.SEND, sender.id, "s", None))
    else:
        sender.request("s/m")
    assert receiver.peer.inflow is not None
    assert receiver.peer.inflow.direct[sender.peer.account] == receiver.peer.out_bytes - before


def test_an_introduction_costs_who_causes_it() -> None:
    bus = Bus()
    receiver, quiet, sender = bus.peer(features=ASKS), bus.peer(), bus.peer()
    spent = []
    for who in (quiet, receiver):
        who.subscribe("t")
        before = bus.broker.effort.spent
        sender.publish("t")
        spent.append(bus.broker.effort.spent - before)
    assert spent[1] > spent[0] + 10


def test_nobody_is_introduced_to_who_goes() -> None:
    """Nothing follows BYE (H-10)."""
    bus = Bus()
    receiver, sender = bus.peer(features=ASKS), bus.peer()
    receiver.serve("s", "m")
    receiver.subscribe("t")
    number = sender.request("s/m")
    receiver.read()
    receiver.peer.introduced = {}  # as if it had never been told
    receiver.write(b"no frame")
    sender.publish("t")
    sender.write(encode(Kind.CANCEL, sender.id, "s/m", number))
    assert [each[0] for each in receiver.read()][-1] == Kind.BYE
