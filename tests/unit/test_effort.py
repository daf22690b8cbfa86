"""Slices of work: a read that is expensive is worked off in turns, in order, and what a peer costs the others is bounded."""

from __future__ import annotations

import msgpack
import pytest

from ipcbus.broker import Broker
from ipcbus.broker.effort import CLAIM_WORK, ENDS_AT_ONCE, FRAME, LITERAL_CHANGE, RUN, TOLD, WILDCARD_CHANGE
from ipcbus.broker.quotas import LANES, REQUESTS
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import ARGUMENTS_MAX_ELEMENTS
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack_map_head
from tests.unit.harness import Bus, Client, publication


def pings(client: Client, count: int) -> bytes:
    return b"".join(encode(Kind.PING, client.id, number) for number in range(1, count + 1))


def pongs(client: Client) -> list[int]:
    return [envelope[2] for envelope in client.read() if envelope[0] == Kind.PONG]


def receive(bus: Bus, client: Client, data: bytes, work: int) -> int:
    return bus.broker.receive(client.peer, data, bus.now, work)


def test_a_read_is_worked_off_in_slices_and_in_order() -> None:
    bus = Bus()
    a = bus.peer()
    assert receive(bus, a, pings(a, 10), 4 * FRAME) == 4 * FRAME
    assert pongs(a) == [1, 2, 3, 4]
    assert a.peer.unread is not None
    assert bus.broker.resume(a.peer, bus.now, 4 * FRAME) == 4 * FRAME
    assert pongs(a) == [5, 6, 7, 8]
    assert bus.broker.resume(a.peer, bus.now, 4 * FRAME) == 2 * FRAME
    assert pongs(a) == [9, 10]
    assert a.peer.unread is None
    assert bus.broker.resume(a.peer, bus.now) == 0


@pytest.mark.parametrize(("work", "left"), [(3 * FRAME - 1, 0), (3 * FRAME, 0), (2 * FRAME, 1), (2 * FRAME + 1, 0)])
def test_the_slice_ends_with_the_frame_that_uses_it_up(work: int, left: int) -> None:
    bus = Bus()
    a = bus.peer()
    receive(bus, a, pings(a, 3), work)
    assert len(pongs(a)) == 3 - left
    bus.broker.resume(a.peer, bus.now)
    assert len(pongs(a)) == left


def claims(client: Client, methods: int) -> bytes:
    """A name, and methods served under it one by one."""
    told = [("bus/own", {"name": "n"}), *(("bus/serve", {"name": "n", "methods": [f"m{number}"]}) for number in range(methods))]
    return b"".join(
        encode_with_payload(msgpack.packb(arguments), Kind.REQUEST, 0, to, number, 1000, None)
        for number, (to, arguments) in enumerate(told, 1)
    )


def test_a_slice_does_not_end_between_a_name_and_its_methods() -> None:
    """Who sees the name may call at once."""
    bus = Bus()
    a = bus.peer()
    assert receive(bus, a, claims(a, 20) + pings(a, 2), FRAME) > 21 * FRAME
    name = bus.broker.names.get("n")
    assert name is not None
    assert len(name.methods()) == 20
    assert pongs(a) == [1]  # and ends with the next frame of another kind
    assert a.peer.unread is not None


def test_it_ends_between_them_when_it_was_very_long() -> None:
    bus = Bus()
    a = bus.peer()
    assert CLAIM_WORK <= receive(bus, a, claims(a, 300), FRAME) < CLAIM_WORK + 1000
    assert a.peer.unread is not None


def test_without_a_slice_all_of_a_read_is_worked_off() -> None:
    bus = Bus()
    a = bus.peer()
    bus.broker.receive(a.peer, pings(a, 1000), bus.now)
    assert a.peer.unread is None
    assert len(pongs(a)) == 1000


def test_what_is_left_of_a_read_follows_the_end_of_an_unfinished_frame() -> None:
    bus = Bus()
    a = bus.peer()
    data = pings(a, 6)
    receive(bus, a, data[:3], FRAME)
    receive(bus, a, data[3:-2], FRAME)
    assert pongs(a) == [1]
    while a.peer.unread is not None:
        bus.broker.resume(a.peer, bus.now, FRAME)
    receive(bus, a, data[-2:], FRAME)
    assert pongs(a) == [2, 3, 4, 5, 6]


def test_a_fatal_frame_ends_it_in_its_turn() -> None:
    bus = Bus()
    a = bus.peer()
    receive(bus, a, pings(a, 2) + b"garbage", FRAME)
    assert not a.peer.closing
    bus.broker.resume(a.peer, bus.now, FRAME)
    bus.broker.resume(a.peer, bus.now, FRAME)
    assert a.peer.closing
    assert a.peer.unread is None
    kinds = [envelope[0] for envelope in a.read()]
    assert kinds == [Kind.PONG, Kind.PONG, Kind.BYE]
    assert bus.broker.resume(a.peer, bus.now) == 0


def test_what_is_left_goes_with_its_peer() -> None:
    bus = Bus()
    a = bus.peer()
    receive(bus, a, pings(a, 5), FRAME)
    a.leave()
    assert a.peer.unread is None
    assert bus.broker.resume(a.peer, bus.now) == 0


def test_a_subscription_that_ends_between_two_slices_gets_no_more() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t")
    # with the prefix known, the scanner waits in the middle of its walk for the next turn
    a.publish("t", b"0")
    assert b.read_payloads() == [b"0"]
    ping = encode(Kind.PING, a.id, 1)
    receive(bus, a, publication(a.id, "t", b"1") + ping + publication(a.id, "t", b"2") + publication(a.id, "u", b"3"), RUN)
    assert b.ask("unsubscribe", lane=1) == {"dropped": 0}
    while a.peer.unread is not None:
        bus.broker.resume(a.peer, bus.now, 1)
    assert b.read_payloads() == []


def test_a_run_costs_its_messages_and_whom_it_reaches() -> None:
    bus = Bus()
    a = bus.peer()
    receivers = [bus.peer() for _ in range(7)]
    for receiver in receivers:
        receiver.subscribe("t")
    a.publish("t", b"x")
    spent = receive(bus, a, publication(a.id, "t") * 100, 1 << 60)
    assert spent == RUN + len(receivers) + 100


# --- what changes of subscriptions cost others ------------------------------------------------------------------------------------------


def resolved(bus: Bus, client: Client, *topics: str) -> int:
    """How often finding out whom a topic reaches was needed for one message to each of *topics*."""
    routes = bus.broker.routes
    with pytest.MonkeyPatch.context() as patch:
        found: list[str] = []
        patch.setattr(routes, "_find", lambda prefix, owner, find=routes._find: found.append(prefix.to) or find(prefix, owner))
        for topic in topics:
            client.publish(topic)
    return len(found)


@pytest.mark.parametrize("group", [None, "g"])
def test_a_subscription_to_one_topic_leaves_the_routes_to_others_alone(group: str | None) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe(">")
    topics = [f"t.{number}" for number in range(5)]
    assert resolved(bus, a, *topics) == 5
    assert resolved(bus, a, *topics) == 0
    generation = bus.broker.routes.generation
    b.subscribe("t.1", lane=2, **({"group": group, "messages": 100} if group else {}))
    assert bus.broker.routes.generation == generation
    assert resolved(bus, a, *topics) == 1
    b.read()
    a.publish("t.1", b"both")
    assert b.read_payloads() == [b"both"] * 2
    assert b.ask("unsubscribe", lane=2) == {"dropped": 0}
    assert resolved(bus, a, *topics) == 1
    b.read()
    a.publish("t.1", b"one")
    assert b.read_payloads() == [b"one"]


def test_a_retained_topic_is_found_anew_too() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.publish("t", b"1", kind=Kind.RETAIN)
    b.subscribe("t")
    a.publish("t", b"2", kind=Kind.RETAIN)
    assert b.read_payloads(Kind.RETAIN) == [b"2"]  # the first came with the subscription
    b.ask("unsubscribe", lane=1)
    a.publish("t", b"3", kind=Kind.RETAIN)
    assert b.read() == []


def test_a_wildcard_makes_all_routes_void() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    resolved(bus, a, "t.1", "u")
    b.subscribe("t.*")
    assert resolved(bus, a, "t.1", "u") == 2
    assert b.read_payloads() == [b"x"]


def test_with_too_many_prefixes_every_change_makes_all_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.broker.routing._TRACKED_MAX", 3)
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    topics = ["a", "b", "c"]
    resolved(bus, a, *topics)
    b.subscribe("a")
    assert resolved(bus, a, *topics) == 1  # at the limit
    resolved(bus, a, "d")
    b.subscribe("b", lane=2)
    assert resolved(bus, a, *topics) == 3  # above it
    b.subscribe("c", lane=3)
    assert resolved(bus, a, *topics) == 1  # and below it again
    b.read()
    a.publish("c", b"last")
    assert b.read_payloads() == [b"last"]


def test_routes_keep_no_subscription_alive_that_has_ended() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.subscribe("t")
    a.publish("t")
    b.leave()
    assert not [route for route in bus.broker.routes._routes.values() if route.lanes]


def test_changes_cost_who_makes_them() -> None:
    bus = Bus()
    a = bus.peer()
    spent = []
    for lane, pattern in enumerate(("t.1", "t.*"), 1):
        before = bus.broker.effort.spent
        a.subscribe(pattern, lane=lane)
        spent.append(bus.broker.effort.spent - before)
    assert spent[1] - spent[0] == WILDCARD_CHANGE - LITERAL_CHANGE


# --- the end of a peer with many subscriptions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1, 1000])
def test_many_subscriptions_end_at_once_and_are_taken_out_bit_by_bit(extra: int) -> None:
    bus = Bus()
    a, b, other = bus.peer(), bus.peer(), bus.peer()
    other.subscribe("t.*")
    count = ENDS_AT_ONCE + extra
    for number in range(1, count + 1):
        b.subscribe(("t.1", "t.*", f"u.{number}", f"u.{number}.*")[number % 4], lane=number, credit=number % 2 * 1000)
    a.publish("t.1")  # some of it waits
    before = bus.broker.lane_count
    b.leave()
    routes = bus.broker.routes
    assert bus.broker.lane_count == before - count == 1
    assert bus.broker.accounts.used[LANES] == 1
    a.publish("t.1")
    assert b.peer.out_bytes == 0
    assert other.read_payloads() == [b"x"] * 2
    rounds = 0
    while bus.broker.next_deadline() == bus.now and routes.leaving:
        left = len(routes.leaving)
        bus.broker.tick(bus.now)
        assert left - len(routes.leaving) == min(left, ENDS_AT_ONCE)
        rounds += 1
    assert (rounds > 0) == (extra > 0)
    other.leave()
    assert not routes._literal
    assert routes._root.empty


def test_taking_out_what_left_makes_no_route_void() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for number in range(1, 2 * ENDS_AT_ONCE):
        b.subscribe("t.*", lane=number, credit=0)
    b.leave()
    resolved(bus, a, "t.1", "t.2")
    bus.broker.tick(bus.now)
    assert bus.broker.routes.leaving
    assert resolved(bus, a, "t.1", "t.2") == 0


def test_notices_to_a_group_are_work_of_who_causes_them() -> None:
    bus = Bus()
    a = bus.peer()
    members = [bus.peer() for _ in range(50)]
    for member in members:
        member.subscribe("t", group="g", messages=0, policy="drop_oldest", limits={"soft": 1})
    before = bus.broker.effort.spent
    a.publish("t")
    assert bus.broker.effort.spent - before >= 50 * TOLD
    before = bus.broker.effort.spent
    members[7].credit(1, 0, 1)
    assert bus.broker.effort.spent - before >= 50 * TOLD


# --- max_matches ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "closed"), [(2, False), (3, False), (4, True)])
@pytest.mark.parametrize("post", [False, True])
def test_one_message_for_too_many_subscriptions_of_a_peer(lanes: int, closed: bool, post: bool) -> None:
    bus = Bus(max_matches=3)
    a, b, other = bus.peer(), bus.peer("bomb"), bus.peer()
    other.subscribe(">")
    for lane in range(1, lanes + 1):
        b.subscribe(">", lane=lane)
    assert not b.peer.closing
    if post:
        a.write(encode_with_payload(b"x", Kind.POST, a.id, "t", None, None, False, None))
    else:
        a.publish("t")
    bus.broker.take_touched()
    assert b.peer.closing is closed
    envelopes = b.read()
    assert [envelope[0] for envelope in envelopes].count(Kind.PUBLISH) == lanes
    if closed:
        assert envelopes[-1][0] == Kind.BYE
        assert envelopes[-1][2] == Code.OVER_QUOTA
        assert envelopes[-1][3] == "a message to 't' is for 4 subscriptions of this peer, at most 3 may be (limits.max_matches)"
        assert [text for _, text in bus.log if "'bomb'" in text and "limits.max_matches" in text]
    a.publish("t", b"after")
    bus.broker.take_touched()
    assert other.read_payloads() == [b"x", b"after"]


@pytest.mark.parametrize(("lanes", "closed"), [(3, False), (4, True)])
@pytest.mark.parametrize("names", ["gggg", "ghij"])
def test_subscriptions_in_groups_count_like_others(lanes: int, closed: bool, names: str) -> None:
    """One group with many members, or many groups: each publisher would pay for them."""
    bus = Bus(max_matches=3)
    a, b = bus.peer(), bus.peer("bomb")
    for lane, group in zip(range(1, lanes + 1), names, strict=False):
        b.subscribe(">", lane=lane, group=group)
    a.publish("t")
    bus.broker.take_touched()
    assert b.peer.closing is closed


def test_many_subscriptions_of_many_peers_are_no_bomb() -> None:
    bus = Bus(max_matches=3)
    a = bus.peer()
    others = [bus.peer() for _ in range(5)]
    for other in others:
        other.subscribe(">")
    a.publish("t")
    bus.broker.take_touched()
    assert [other.read_payloads() for other in others] == [[b"x"]] * 5


def test_max_matches_can_change() -> None:
    bus = Bus(max_matches=3)
    a, b = bus.peer(), bus.peer()
    for lane in (1, 2):
        b.subscribe(">", lane=lane)
    limits = bus.broker.limits.__class__(max_matches=1)
    bus.broker.reconfigure(limits, bus.now)
    a.publish("t")
    bus.broker.take_touched()
    assert b.peer.closing


# --- bombs ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "text"), [(-1, "has no argument 'x'"), (0, "has no argument 'x'"), (1, "20000 elements")])
def test_arguments_have_a_bounded_number_of_elements(extra: int, text: str) -> None:
    bus = Bus()
    a = bus.peer()
    # the map, its key, and the array that it is for
    count = ARGUMENTS_MAX_ELEMENTS - 3 + extra
    a.request("bus/ping", msgpack.packb({"x": [{}] * count}))
    code, said = a.answer(a.read().pop())
    assert code == Code.BAD_ARGUMENT
    assert text in said


def test_arguments_that_are_nested_without_end() -> None:
    bus = Bus()
    a = bus.peer()
    a.request("bus/ping", b"\x91" * 1_000_000)
    assert a.answer(a.read().pop())[0] == Code.BAD_ARGUMENT
    assert a.ask("ping")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 300])
def test_introspect_puts_together_what_is_kept(count: int) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    a.ask("own", name="svc")
    methods = [f"m{number:03}" for number in range(count)]
    about = {method: {"n": [number, {}], "s": "ä" * number} for number, method in enumerate(methods) if number % 3}
    assert a.ask("serve", name="svc", methods=methods, about=about) == {}
    assert b.ask("introspect", name="svc") == {"name": "svc", "methods": {method: about.get(method, {}) for method in methods}}


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_the_head_of_a_map_is_in_shortest_form(count: int) -> None:
    assert pack_map_head(count) == msgpack.Packer().pack_map_header(count)


def test_the_gauges_of_the_daemon_stand_in_stats() -> None:
    broker = Broker(incarnation=bytes(16), random_bytes=bytes, now=0.0, gauges=lambda: {"max_fds": 7})
    bus = Bus()
    bus.broker = broker
    assert bus.peer().ask("stats")["max_fds"] == 7


# --- much that is due at once -----------------------------------------------------------------------------------------------------------


def ticks(bus: Bus) -> int:
    """How many rounds it takes until nothing is due."""
    rounds = 0
    while (deadline := bus.broker.next_deadline()) is not None and deadline <= bus.now:
        bus.broker.tick(bus.now)
        rounds += 1
    return rounds


AROUND = pytest.mark.parametrize("count", [ENDS_AT_ONCE - 1, ENDS_AT_ONCE, ENDS_AT_ONCE + 1, 3 * ENDS_AT_ONCE])


def rounds_of(count: int) -> int:
    return -(-count // ENDS_AT_ONCE)


@AROUND
def test_requests_that_expire_together_do_so_in_steps(count: int) -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    b.serve("svc", "m")
    for number in range(1, count + 1):
        a.request("svc/m", id=number, timeout_ms=1000)
    b.read()
    bus.now += 1.0
    bus.broker.tick(bus.now)
    assert len(bus.broker.requests) == max(count - ENDS_AT_ONCE, 0)
    assert 1 + ticks(bus) == rounds_of(count)
    assert [(envelope[3], envelope[4]) for envelope in a.read()] == [(number, Code.EXPIRED) for number in range(1, count + 1)]
    assert [envelope[3] for envelope in b.read()] == list(range(1, count + 1))


@AROUND
def test_kept_messages_whose_time_ends_together_go_in_steps(count: int) -> None:
    bus = Bus()
    a, b, late = bus.peer(), bus.peer(), bus.peer()
    for number in range(count):
        a.write(encode_with_payload(b"x", Kind.POST, a.id, f"t.{number}", None, 1000, True, None))
    b.subscribe("t.*", retained=False)
    bus.now += 1.0
    bus.broker.tick(bus.now)
    assert len(bus.broker.retained) == max(count - ENDS_AT_ONCE, 0)
    removed = [envelope[2] for envelope in b.read() if envelope[0] == Kind.RETAIN]
    assert removed == [f"t.{number}" for number in range(min(count, ENDS_AT_ONCE))]
    # what is past its time is not there any more, whether it was taken out or not
    last = f"t.{count - 1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bus.broker.publications, "expire", lambda now: None)
        assert late.ask("get", topic=last) is None
        for lane, pattern in enumerate((last, "t.*"), 1):
            assert late.ask("subscribe", pattern=pattern, lane=lane, credit=1 << 20)["retained"] == 0
    assert 1 + ticks(bus) == rounds_of(count)
    assert not len(bus.broker.retained)


@AROUND
def test_strangers_whose_time_ends_together_go_in_steps(count: int) -> None:
    bus = Bus()
    strangers = [Client(bus, bus.broker.connect(bus.now)) for _ in range(count)]
    bus.now += bus.broker.limits.handshake_timeout_s
    bus.broker.tick(bus.now)
    assert sum(each.peer.closing for each in strangers) == min(count, ENDS_AT_ONCE)
    assert 1 + ticks(bus) == rounds_of(count)
    assert all(each.peer.closing for each in strangers)


@AROUND
@pytest.mark.parametrize("policy", ["drop_oldest", "block"])
def test_queues_that_are_cut_together_are_so_in_steps(count: int, policy: str) -> None:
    bus = Bus(max_matches=10_000)
    a, b = bus.peer(), bus.peer()
    limits = {"soft": 1, "seconds": 1 if policy == "drop_oldest" else 100}  # block: it is the program's time that ends
    for lane in range(1, count + 1):
        b.subscribe("t", lane=lane, credit=0, policy=policy, limits=limits)
    a.publish("t")
    lanes = (b.peer.lanes or {}).values()
    bus.now += 10.0
    for number in range(1, rounds_of(count) + 1):
        assert bus.broker.next_deadline() is not None
        bus.broker.tick(bus.now)
        cut = sum(lane.backlog is not None and lane.backlog.dropping for lane in lanes)
        assert cut == min(count, number * ENDS_AT_ONCE)
    assert ticks(bus) == 0


@AROUND
def test_requests_of_a_peer_that_goes_are_taken_back_in_steps(count: int) -> None:
    bus = Bus()
    a, b, dying = bus.peer(), bus.peer(), bus.peer()
    b.serve("svc", "m")
    dying.serve("other", "m")
    for number in range(1, count + 1):
        a.request("svc/m" if number % 3 else "other/m", id=number, timeout_ms=1000)
    b.read()
    a.leave()
    left = max(count - ENDS_AT_ONCE, 0)
    assert len(bus.broker.requests) == left
    assert bus.broker.accounts.used[REQUESTS] == 0
    if left:
        # what happens to them meanwhile is nobody's business any more
        assert b.peer.serving
        first = next(number for number in range(ENDS_AT_ONCE + 1, count + 1) if number % 3)
        b.reply(a, first)
        bus.now += 2.0
        dying.leave()
        assert dying.peer.out_bytes == 0
    assert ticks(bus) == rounds_of(left)
    envelopes = b.read()
    assert [each[3] for each in envelopes if each[0] == Kind.CANCEL] == [number for number in range(1, count + 1) if number % 3]
    assert [each[4] for each in envelopes if each[0] == Kind.ERROR] == [Code.NO_SUCH_REQUEST] * (left > 0)
    assert not b.peer.serving
    assert len(bus.broker.requests) == 0
    assert a.peer.out_bytes == 0


@AROUND
def test_names_of_a_peer_that_goes_are_told_in_steps(count: int) -> None:
    bus = Bus()
    a, b, watcher, waiting = bus.peer(), bus.peer(), bus.peer(), bus.peer()
    for number in range(count):
        a.ask("own", name=f"n{number}")
    last = f"n{count - 1}"
    waiting.ask("own", name=last, mode="queue")
    watcher.subscribe("$bus.names.>", credit=1 << 20)
    a.leave()

    def told() -> list[tuple[str, list[int]]]:
        found = [msgpack.unpackb(payload) for payload in watcher.read_payloads()]
        return [(each["name"], each["owners"]) for each in found]

    def of(number: int) -> tuple[str, list[int]]:
        return f"n{number}", [waiting.id] if number == count - 1 else []

    now = min(count, ENDS_AT_ONCE)
    assert len(bus.broker.names) == 1  # all are free at once
    assert waiting.notices() == [{"name": last}]
    assert told() == [of(number) for number in range(now)]
    left = count - now
    if left > 1:
        # who takes one meanwhile is told of at once, and once
        assert b.ask("own", name=f"n{now}")["owner"]
        assert told() == [(f"n{now}", [b.id])]
    assert ticks(bus) == rounds_of(left - (left > 1))
    assert told() == [of(number) for number in range(now + (left > 1), count)]


# --- what looks small and is not --------------------------------------------------------------------------------------------------------


def cost(bus: Bus, client: Client, data: bytes) -> int:
    spent = receive(bus, client, data, 1 << 60)
    client.read()
    return spent


def question(client: Client, to: str, **arguments: object) -> bytes:
    client._request += 1
    return encode_with_payload(msgpack.packb(arguments), Kind.REQUEST, client.id, to, client._request, 1000, None)


def post(client: Client, topic: str) -> bytes:
    return encode_with_payload(b"x", Kind.POST, client.id, topic, None, None, False, None)


MANY = 500


def test_who_has_many_names_pays_for_looking_through_them() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for number in range(MANY):
        a.ask("own", name=f"n{number}")
    assert cost(bus, a, question(a, "bus/serve", name="n1", methods=["m"])) > MANY
    assert cost(bus, b, question(b, f":{a.id}/none")) > MANY
    assert cost(bus, b, question(b, "bus/names", limit=1)) > MANY


def test_who_asks_one_of_many_owners_pays_for_looking_at_them() -> None:
    bus = Bus()
    owners = [bus.peer() for _ in range(MANY)]
    for owner in owners:
        owner.serve("n", "m", mode="shared")
    a = owners[0]
    assert cost(bus, a, question(a, "n/m")) > MANY
    assert cost(bus, a, encode_with_payload(b"", Kind.SEND, a.id, "n", None)) > MANY
    assert cost(bus, a, question(a, "bus/serve", name="n", methods=["m"])) > MANY
    assert cost(bus, a, question(a, "bus/stats")) > MANY
    assert cost(bus, a, question(a, "bus/peers", limit=1)) > MANY
    assert cost(bus, a, question(a, "bus/accounts", limit=1)) > MANY


def test_a_post_costs_whom_it_reaches() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in range(1, MANY + 1):
        b.subscribe("t", lane=lane)
        b.subscribe("$bus.names.>", lane=MANY + lane)
    few = cost(bus, a, post(a, "other"))
    assert few < 200
    assert cost(bus, a, post(a, "t")) > few + MANY
    assert cost(bus, a, question(a, "bus/own", name="watched")) > few + MANY


def test_what_waits_in_many_queues_costs_who_asks_for_it() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in range(1, MANY + 1):
        b.subscribe(f"t.{lane}", lane=lane, credit=0)
        a.publish(f"t.{lane}")
    assert cost(bus, a, question(a, "bus/stats")) > MANY
    assert cost(bus, a, question(a, "bus/peers")) > MANY
    assert cost(bus, a, question(a, "bus/patterns", limit=1)) > MANY


def test_patterns_that_a_topic_has_to_be_compared_with_cost_its_publisher() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for lane in range(256):
        b.subscribe(".".join("a*"[lane >> at & 1] for at in range(8)) + ".end", lane=lane + 1)
    few = cost(bus, a, publication(a.id, "b.b"))
    assert cost(bus, a, publication(a.id, ".".join("a" * 8) + ".other")) > few + 256
