"""What the broker charges, refuses and gives back: every way in and every way out (Q-1, Q-3 … Q-7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from ipcbus.broker import OverQuota
from ipcbus.broker.effort import ENDS_AT_ONCE
from ipcbus.broker.inflow import DIRECT_FREE_BYTES
from ipcbus.broker.peers import BYTES_FREE, CALLS_FREE, Credentials
from ipcbus.broker.quotas import BYTES, LANES, NAMES, PEERS, REQUESTS, RETAINED, RETAINED_BYTES
from ipcbus.broker.requests import CALLERS_COUNTED
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.unit.harness import Bus, Client, publication


def used(client: Client, resource: int) -> int:
    return client.peer.account.used[resource]


def round_over(bus: Bus) -> None:
    """What the daemon does after the reads of a round, but for the writes."""
    bus.broker.take_touched()


def told_to_go(client: Client) -> tuple[Code, str] | None:
    """Code and text of the BYE that ends a peer's output."""
    if not client.peer.closing:
        return None
    last = client.read()[-1]
    assert last[0] == Kind.BYE
    return Code(last[2]), last[3]


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "level"), [("max_program_peers", "pid 10 of uid 20"), ("max_user_peers", "uid 20"), ("max_peers", "2 of 2")]
)
def test_a_connection_that_is_refused_says_whose_and_which_option(limit: str, level: str) -> None:
    bus = Bus(**{limit: 2})
    first, second = bus.peer(), bus.peer()
    assert used(first, PEERS) == 2
    with pytest.raises(OverQuota) as caught:
        bus.peer()
    assert caught.value.code is Code.TOO_MANY_PEERS
    assert level in caught.value.text
    assert f"limits.{limit}" in caught.value.text
    assert caught.value.of_bus is (limit == "max_peers")
    second.leave()
    bus.peer()


def test_a_connection_is_charged_before_its_hello_and_until_it_is_gone() -> None:
    bus = Bus(max_peers=1)
    stranger = bus.broker.connect(bus.now)
    with pytest.raises(OverQuota):
        bus.broker.connect(bus.now)
    bus.advance(20)  # H-9: it is told to go, and still has its connection
    assert stranger.closing
    with pytest.raises(OverQuota):
        bus.broker.connect(bus.now)
    bus.broker.disconnect(stranger, bus.now)
    bus.broker.disconnect(stranger, bus.now)
    assert bus.broker.accounts.is_empty
    bus.broker.connect(bus.now)


def test_one_user_s_storm_leaves_room_for_another() -> None:
    bus = Bus(owners=frozenset({20}), max_peers=100)
    for _ in range(50):
        bus.broker.connect(bus.now, transport="tcp", addresses=None)
    for _ in range(3):
        with pytest.raises(OverQuota, match="the clients on TCP") as caught:
            bus.broker.connect(bus.now, transport="tcp", addresses=None)
        assert not caught.value.of_bus, "there is room for others"
    assert sum("over quota: the clients on TCP has 50 connections" in text for _, text in bus.log) == 1
    own = [bus.peer(pid=pid) for pid in range(1, 26)]
    assert len(own) == 25


# --- subscriptions, names, requests ---------------------------------------------------------------


def fill_lanes(client: Client, count: int) -> list[Any]:
    return [client.ask("subscribe", pattern=f"t{n}", lane=n + 1, credit=0) for n in range(count)]


def fill_names(client: Client, count: int) -> list[Any]:
    return [client.ask("own", name=f"n{client.id}.{n}") for n in range(count)]


FILLS: dict[str, Callable[[Client, int], list[Any]]] = {"lanes": fill_lanes, "names": fill_names}


@pytest.mark.parametrize("what", FILLS)
@pytest.mark.parametrize(
    ("level", "limit", "admitted"),
    [*(("program", most, most) for most in (2, 3, 4)), *((level, most, most // 2) for level in ("user", "bus") for most in (5, 6, 7, 8))],
)
def test_the_limits_of_lanes_and_names(what: str, level: str, limit: int, admitted: int) -> None:
    """At each level one below, at and above it. A program alone may have half of its user's."""
    option = f"max_{level}_{what}"
    bus = Bus(**{option: limit})
    client = bus.peer()
    results = FILLS[what](client, admitted + 2)
    assert [isinstance(result, dict) for result in results] == [True] * admitted + [False] * 2
    code, text = results[-1]
    assert code == Code.OVER_LIMIT
    assert "pid 10 of uid 20" in text
    assert f"limits.{option}" in text
    assert sum("over quota" in line for _, line in bus.log) == 1
    assert not any("refused" in line and "over_limit" in line for _, line in bus.log), "told once, by the account"
    client.leave()
    assert bus.broker.accounts.is_empty


def test_connections_of_a_program_share_its_limit_and_programs_do_not() -> None:
    bus = Bus(max_program_lanes=4)
    a, b, other = bus.peer(), bus.peer(), bus.peer(pid=11)
    fill_lanes(a, 3)
    assert [isinstance(result, dict) for result in fill_lanes(b, 2)] == [True, False]
    assert all(isinstance(result, dict) for result in fill_lanes(other, 4))


def test_lanes_are_given_back() -> None:
    bus = Bus()
    client = bus.peer()
    fill_lanes(client, 3)
    assert client.ask("subscribe", pattern="a..b", lane=9, credit=0)[0] == Code.BAD_TOPIC
    assert client.ask("subscribe", pattern="t", lane=1, credit=0)[0] == Code.LANE_IN_USE
    assert used(client, LANES) == 3
    client.ask("unsubscribe", lane=2)
    assert used(client, LANES) == 2
    bus.broker.half_close(client.peer, bus.now)
    assert used(client, LANES) == 0


@pytest.mark.parametrize("count", [ENDS_AT_ONCE, ENDS_AT_ONCE + 1])
def test_lanes_are_given_back_at_once_however_many(count: int) -> None:
    bus = Bus()
    client = bus.peer()
    fill_lanes(client, count)
    assert used(client, LANES) == count
    client.leave()
    assert bus.broker.accounts.is_empty


def test_names_are_given_back() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer(pid=11)
    assert isinstance(a.ask("own", name="x", allow_replace=True), dict)
    a.ask("own", name="x", allow_replace=True)  # again: nothing more
    assert used(a, NAMES) == 1
    assert b.ask("own", name="x")[0] == Code.NAME_TAKEN
    assert used(b, NAMES) == 0
    assert b.ask("own", name="x", replace=True) == {"owner": True, "position": 0}
    assert (used(a, NAMES), used(b, NAMES)) == (0, 1)
    a.read()
    a.ask("own", name="x", mode="queue")
    assert used(a, NAMES) == 1, "a place in line is one"
    b.ask("release", name="x")
    assert (used(a, NAMES), used(b, NAMES)) == (1, 0)
    assert b.ask("release", name="x")[0] == Code.NOT_OWNER
    a.leave()
    b.leave()
    assert bus.broker.accounts.is_empty


def test_an_owner_that_is_replaced_while_it_would_wait_keeps_its_charge() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer(pid=11)
    a.ask("own", name="x", mode="queue", allow_replace=True)
    b.ask("own", name="x", replace=True)
    assert (used(a, NAMES), used(b, NAMES)) == (1, 1)
    for client in (b, a):
        client.leave()
    assert bus.broker.accounts.is_empty


@pytest.mark.parametrize(
    ("level", "limit", "admitted"),
    [*(("program", most, most) for most in (4, 5, 6)), *((level, most, most // 2) for level in ("user", "bus") for most in (9, 10, 11))],
)
def test_the_limit_of_requests_in_flight(level: str, limit: int, admitted: int) -> None:
    bus = Bus(**{f"max_{level}_requests": limit})
    service, client = bus.peer(pid=1), bus.peer()
    service.serve("svc", "m")
    ids = [client.request("svc/m") for _ in range(CALLS_FREE + admitted)]
    assert client.read() == []
    assert used(client, REQUESTS) == admitted
    client.request("svc/m")
    refused = client.read()
    assert [envelope[4] for envelope in refused] == [Code.OVER_LIMIT]
    assert f"limits.max_{level}_requests" in refused[0][5]
    logged = [text for _, text in bus.log if "over quota" in text]
    assert len(logged) == 1, "what was refused, and not that there was no room for a whole step"
    assert f"{limit} of {limit} requests in flight" in logged[0] or f"{limit // 2} requests in flight" in logged[0]
    assert "; 1 more are not admitted" in logged[0]
    service.reply(client, ids[0])
    client.read()
    client.request("svc/m")
    assert client.read() == [], "one was answered, and one may come"
    client.leave()
    service.leave()
    assert bus.broker.accounts.is_empty


def test_few_requests_cost_no_charge_and_many_are_given_back_as_they_settle() -> None:
    bus = Bus()
    service, client = bus.peer(pid=1), bus.peer()
    service.serve("svc", "m")
    ids = [client.request("svc/m") for _ in range(CALLS_FREE)]
    assert used(client, REQUESTS) == 0
    ids += [client.request("svc/m") for _ in range(500)]
    assert 500 <= used(client, REQUESTS) < 600
    for id in ids[:400]:
        service.reply(client, id)
    assert 100 <= used(client, REQUESTS) < 250
    for id in ids[400:]:
        client.write(encode(Kind.CANCEL, client.id, "svc/m", id))
    assert used(client, REQUESTS) == 0
    assert client.peer.calls_room == CALLS_FREE


@pytest.mark.parametrize(
    "end", ["answered", "cancelled", "expired", "callee went", "requester went", "half-closed", "shut down", "expelled"]
)
def test_requests_are_given_back_however_they_end(end: str) -> None:
    bus = Bus()
    service, client = bus.peer(pid=1), bus.peer()
    service.serve("svc", "m")
    ids = [client.request("svc/m") for _ in range(CALLERS_COUNTED + 20)]
    assert used(client, REQUESTS) > 0
    assert service.peer.callers is not None
    if end == "answered":
        for id in ids:
            service.reply(client, id)
    elif end == "cancelled":
        for id in ids:
            client.write(encode(Kind.CANCEL, client.id, "svc/m", id))
    elif end == "expired":
        bus.advance(10)
    elif end == "callee went":
        service.leave()
    elif end == "requester went":
        client.leave()
    elif end == "half-closed":
        bus.broker.half_close(client.peer, bus.now)
        assert used(client, REQUESTS) > 0, "its answers are still delivered (H-11)"
        bus.advance(20)
    elif end == "shut down":
        bus.broker.shut_down(bus.now)
    else:
        client.write(b"garbage")
    assert used(client, REQUESTS) == 0
    assert service.peer.callers is None
    for peer in (client, service):
        peer.leave()
    assert bus.broker.accounts.is_empty


# --- requests at one callee (Q-6) -----------------------------------------------------------------


def test_a_stranger_gets_half_of_a_callee_and_its_own_program_the_rest() -> None:
    bus = Bus(max_callee_requests=1000)
    service, own, stranger, third = bus.peer(pid=1), bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3, uid=21)
    service.serve("svc", "m")

    def room(client: Client) -> int:
        for count in range(1001):
            client.request("svc/m")
            answer = client.read()
            if answer:
                assert answer[0][4] == Code.OVERLOADED
                assert "limits.max_callee_requests" in answer[0][5]
                return count
        raise AssertionError("no limit")

    assert room(stranger) == 500
    assert room(third) == 166
    assert room(own) == 334, "what remains"
    for client in (stranger, third, own):
        client.leave()
    while service.peer.serving:
        bus.advance(0)  # they are taken back in steps
    assert service.peer.callers is None
    service.leave()
    assert bus.broker.accounts.is_empty


def test_callers_are_counted_right_from_where_they_begin_to_be() -> None:
    bus = Bus()
    service, a, b = bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3)
    service.serve("svc", "m")
    ids = [a.request("svc/m") for _ in range(40)]
    for _ in range(CALLERS_COUNTED - 40):
        b.request("svc/m")
    assert service.peer.callers is None
    b.request("svc/m")
    assert service.peer.callers == {a.peer.account: 40, b.peer.account: CALLERS_COUNTED - 39}
    for id in ids[:33]:
        service.reply(a, id)
    assert service.peer.callers == {a.peer.account: 7, b.peer.account: CALLERS_COUNTED - 39}
    for id in ids[33:]:
        service.reply(a, id)
    assert service.peer.callers is None, "few again"


# --- kept messages --------------------------------------------------------------------------------


def retain(client: Client, topic: str, size: int = 1) -> None:
    client.publish(topic, b"x" * size, kind=Kind.RETAIN)


def test_kept_messages_are_charged_to_who_published_them_last() -> None:
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    retain(a, "t", 100)
    size = len(publication(a.id, "t", b"x" * 100, Kind.RETAIN))
    assert (used(a, RETAINED), used(a, RETAINED_BYTES)) == (1, size)
    retain(a, "t", 100)
    assert (used(a, RETAINED), used(a, RETAINED_BYTES)) == (1, size)
    retain(a, "t", 50)
    assert (used(a, RETAINED), used(a, RETAINED_BYTES)) == (1, size - 50)
    retain(b, "t", 50)
    assert (used(a, RETAINED), used(a, RETAINED_BYTES)) == (0, 0)
    assert (used(b, RETAINED), used(b, RETAINED_BYTES)) == (1, size - 50)
    b.publish("t", b"", kind=Kind.RETAIN)
    assert (used(b, RETAINED), used(b, RETAINED_BYTES)) == (0, 0)
    for client in (a, b):
        client.leave()
    assert bus.broker.accounts.is_empty


def test_a_kept_message_of_the_same_size_is_the_newest_all_the_same() -> None:
    bus = Bus()
    a, b = bus.peer(), bus.peer()
    for payload in (b"1", b"2"):
        a.publish("t", payload, kind=Kind.RETAIN)
    retain(a, "u")
    a.publish("t", b"3", kind=Kind.RETAIN)
    b.request("bus/subscribe", msgpack.packb({"pattern": ">", "lane": 1, "credit": 1 << 20}))
    assert [envelope[2] for envelope in b.read() if envelope[0] == Kind.RETAIN] == ["u", "t"]
    assert b.ask("get", topic="t")["payload"] == b"3"


@pytest.mark.parametrize("first_ttl", [None, 1000])
@pytest.mark.parametrize("second_ttl", [None, 5000])
def test_a_kept_message_of_the_same_size_has_its_own_time_to_live(first_ttl: int | None, second_ttl: int | None) -> None:
    bus = Bus()
    a = bus.peer()
    for ttl in (first_ttl, second_ttl):
        a.write(encode_with_payload(b"x", Kind.POST, a.id, "t", None, ttl, True, None))
    bus.advance(2)
    assert a.ask("get", topic="t") is not None
    bus.advance(4)
    assert (a.ask("get", topic="t") is None) is (second_ttl is not None)


@pytest.mark.parametrize("end", ["expired", "unbound", "removed by another"])
def test_what_a_program_kept_is_charged_until_it_is_removed(end: str) -> None:
    bus = Bus()
    a, b = bus.peer(pid=1), bus.peer(pid=2)
    if end == "unbound":
        a.ask("bind", topic="t")
    ttl = 5000 if end == "expired" else None
    a.write(encode_with_payload(b"x", Kind.POST, a.id, "t", None, ttl, True, None))
    user = a.peer.account.user
    a.leave()
    assert user.used[RETAINED] == (0 if end == "unbound" else 1)
    if end == "expired":
        bus.advance(6)
    elif end == "removed by another":
        b.publish("t", b"", kind=Kind.RETAIN)
    assert user.used[RETAINED] == user.used[RETAINED_BYTES] == 0
    b.leave()
    assert bus.broker.accounts.is_empty


def test_a_will_that_is_kept_is_charged_to_its_user() -> None:
    bus = Bus()
    a = bus.peer()
    a.ask("will", topic="gone", payload=b"x", retain=True)
    user = a.peer.account.user
    a.leave()
    assert user.used[RETAINED] == 1
    assert user.actors[RETAINED] == 0


def test_a_script_that_keeps_without_end_leaves_others_an_eighth() -> None:
    bus = Bus(max_retained_topics=2000)
    script, other = bus.peer(pid=1), bus.peer(pid=2)
    for n in range(1800):
        retain(script, f"s{n}")
    refused = [envelope[4:6] for envelope in script.read()]
    assert len(refused) == 50
    assert refused[0][0] == Code.OVER_LIMIT
    assert "pid 1 of uid 20" in refused[0][1]
    assert "limits.max_retained_topics" in refused[0][1]
    for n in range(50):
        retain(other, f"o{n}")
    assert other.read() == []


def test_a_kept_message_that_is_refused_leaves_no_charge() -> None:
    bus = Bus(max_retained_bytes=100)
    a = bus.peer()
    retain(a, "t", 50)
    retain(a, "t", 500)
    assert [envelope[4] for envelope in a.read()] == [Code.OVER_LIMIT]
    assert (used(a, RETAINED), used(a, RETAINED_BYTES)) == (0, 0)


# --- direct messages to who does not read (Q-5) ---------------------------------------------------


def send(sender: Client, receiver: Client, size: int) -> bool:
    """Whether *size* bytes were admitted."""
    frame = encode_with_payload(b"", Kind.SEND, sender.id, f":{receiver.id}", None)
    sender.write(encode_with_payload(bytes(size - len(frame)), Kind.SEND, sender.id, f":{receiver.id}", None))
    answer = sender.read()
    if not answer:
        return True
    assert [envelope[4] for envelope in answer] == [Code.OVERLOADED]
    return False


def test_a_stranger_fills_half_of_a_receiver_s_room_and_not_more() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    receiver, own, stranger, third = bus.peer(pid=1), bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3, uid=21)
    assert send(stranger, receiver, DIRECT_FREE_BYTES)  # nothing waited
    assert receiver.peer.inflow is None
    sent = sum(send(stranger, receiver, 10_000) for _ in range(100))
    assert 460_000 <= sent * 10_000 <= 470_000  # half of what remained
    for _ in range(3):
        assert not send(stranger, receiver, 10_000)
    assert send(third, receiver, 100_000)
    assert not send(third, receiver, 100_000)
    while send(own, receiver, 10_000):
        pass
    assert receiver.peer.out_bytes > 990_000, "what remains is its own program's"
    receiver.read()
    assert receiver.peer.inflow is None
    assert not receiver.peer.account.direct
    assert not receiver.peer.account.user.direct
    assert send(stranger, receiver, 10_000)


def test_what_was_written_is_taken_off_a_sender_s_books() -> None:
    bus = Bus(max_output_bytes=1_000_000)
    receiver, stranger = bus.peer(pid=1), bus.peer(pid=2)
    while send(stranger, receiver, 10_000):
        pass
    before = receiver.peer.account.direct[stranger.peer.account]
    bus.broker.wrote(receiver.peer, 300_000, bus.now)
    after = receiver.peer.account.direct[stranger.peer.account]
    assert before - 300_000 <= after <= before - 200_000, "the first 64 KiB were never on them"
    assert send(stranger, receiver, 10_000)
    assert len(receiver.peer.inflow.marks) <= 60  # type: ignore[union-attr]


def test_nobody_is_said_to_have_more_than_there_is() -> None:
    """What was written of a message that is not gone yet is still on its sender's books."""
    bus = Bus(max_output_bytes=1_000_000)
    receiver, stranger = bus.peer(pid=1), bus.peer(pid=2)
    assert send(stranger, receiver, DIRECT_FREE_BYTES)
    assert send(stranger, receiver, 400_000)
    bus.broker.wrote(receiver.peer, 300_000, bus.now)
    waits = receiver.peer.queued_bytes
    size = len(frame := encode_with_payload(bytes(400_000), Kind.SEND, stranger.id, f":{receiver.id}", None))
    stranger.write(frame)
    (refused,) = stranger.read()
    assert f"{waits} bytes wait for ':{receiver.id}' or with it, {waits} of them" in refused[5]
    assert f"{size} more" in refused[5]


def test_small_messages_of_many_senders_take_few_marks() -> None:
    bus = Bus()
    receiver, a, b = bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3)
    send(a, receiver, DIRECT_FREE_BYTES)
    for _ in range(500):
        assert send(a, receiver, 100)
        assert send(b, receiver, 100)
    assert receiver.peer.inflow is not None
    assert len(receiver.peer.inflow.marks) <= 8
    receiver.leave()
    assert not receiver.peer.account.direct
    for client in (a, b):
        client.leave()
    assert bus.broker.accounts.is_empty


def test_requests_and_cancels_towards_a_callee_that_does_not_read_are_bounded() -> None:
    bus = Bus(max_output_bytes=300_000)
    service, client = bus.peer(pid=1), bus.peer(pid=2)
    service.serve("svc", "m")
    refused = 0
    for _ in range(20_000):
        id = client.request("svc/m", b"x" * 20)
        client.write(encode(Kind.CANCEL, client.id, "svc/m", id))
        refused += bool(client.read())
    assert refused > 10_000
    round_over(bus)
    assert not service.peer.closing, "a stranger cannot have a callee closed"
    assert service.peer.out_bytes < 300_000
    assert isinstance(bus.peer(pid=1).ask("ping"), dict)


def test_a_stranger_s_messages_to_several_connections_of_a_program_are_one_share() -> None:
    bus = Bus(max_output_bytes=1_000_000, max_program_bytes=1_000_000)
    receivers = [bus.peer(pid=1) for _ in range(4)]
    stranger = bus.peer(pid=2)
    sent = 0
    for receiver in receivers:
        while send(stranger, receiver, 10_000):
            sent += 10_000
            round_over(bus)
    assert sent < 750_000
    assert not any(receiver.peer.closing for receiver in receivers)


# --- bytes that wait (Q-3) ------------------------------------------------------------------------


def test_what_waits_is_charged_above_what_is_free() -> None:
    bus = Bus()
    receiver, sender = bus.peer(pid=1), bus.peer(pid=2)
    for size, charged in ((BYTES_FREE - 1, 0), (1, 0), (100, BYTES_FREE + 100)):
        send(sender, receiver, max(size, 60))
        round_over(bus)
        if receiver.peer.out_bytes > BYTES_FREE:
            assert used(receiver, BYTES) == receiver.peer.out_bytes
        else:
            assert used(receiver, BYTES) == 0, charged
    bus.broker.wrote(receiver.peer, 50, bus.now)
    assert used(receiver, BYTES) == receiver.peer.out_bytes > BYTES_FREE
    receiver.read()
    assert used(receiver, BYTES) == 0


def test_half_of_a_frame_is_charged_to_who_sends_it() -> None:
    bus = Bus()
    client = bus.peer()
    frame = publication(client.id, "t", bytes(1 << 20))
    client.write(frame[:BYTES_FREE])
    assert used(client, BYTES) == 0
    client.write(frame[BYTES_FREE:200_000])
    assert used(client, BYTES) == 200_000
    client.write(frame[200_000:])
    assert used(client, BYTES) == 0


@pytest.mark.parametrize("end", ["leaves", "expelled", "never ready"])
def test_half_of_a_frame_is_given_back(end: str) -> None:
    bus = Bus()
    client = bus.peer()
    client.write(publication(client.id, "t", bytes(1 << 20))[:200_000])
    if end == "expelled":
        bus.broker.expel(client.peer, Code.INTERNAL, "test", bus.now)
    elif end == "never ready":
        bus.broker.half_close(client.peer, bus.now)
    client.leave()
    assert bus.broker.accounts.is_empty


@pytest.mark.parametrize(("extra", "closed"), [(-1, False), (0, False), (1, True)])
@pytest.mark.parametrize("level", ["max_program_bytes", "max_user_bytes", "max_queued_bytes"])
def test_who_goes_over_a_level_is_closed(level: str, extra: int, closed: bool) -> None:
    bus = Bus(**{level: 200_000}, quota_grace_s=1.0)
    receiver, sender = bus.peer(pid=1), bus.peer(pid=1)
    send(sender, receiver, 200_000 + extra)
    round_over(bus)
    assert receiver.peer.closing is closed
    if closed:
        code, text = told_to_go(receiver) or (Code.OK, "")
        assert code is Code.OVER_QUOTA
        assert "200001 of 200000 bytes that wait" in text
        assert "pid 1 of uid 20" in text
        assert f"limits.{level}" in text
        assert any("over_quota" in line and f"limits.{level}" in line for _, line in bus.log)
    assert not sender.peer.closing


def test_more_than_a_share_is_for_who_reads() -> None:
    bus = Bus(max_user_bytes=1_000_000, quota_grace_s=1.0)
    receiver, sender = bus.peer(pid=1), bus.peer(pid=1)
    send(sender, receiver, 800_000)
    round_over(bus)
    assert bus.broker.next_deadline() == bus.now + 1.0
    bus.advance(0.9)
    bus.broker.wrote(receiver.peer, 1000, bus.now)
    bus.advance(0.2)
    assert not receiver.peer.closing, "it reads"
    bus.advance(1.0)
    assert receiver.peer.closing
    code, text = told_to_go(receiver) or (Code.OK, "")
    assert code is Code.OVER_QUOTA
    assert "has 799000 bytes that wait, and its share is 500000 of the 1000000" in text
    assert "limits.max_user_bytes" in text


def test_who_is_within_its_share_again_is_not_looked_at() -> None:
    bus = Bus(max_user_bytes=1_000_000, quota_grace_s=1.0)
    receiver, sender = bus.peer(pid=1), bus.peer(pid=1)
    send(sender, receiver, 800_000)
    round_over(bus)
    bus.broker.wrote(receiver.peer, 400_000, bus.now)
    assert bus.broker.next_deadline() is None
    bus.advance(5)
    assert not receiver.peer.closing


def test_where_a_level_is_full_who_has_most_beyond_its_share_goes_and_not_who_came_last() -> None:
    bus = Bus(max_user_bytes=1_000_000)
    glutton, glutton_sender = bus.peer(pid=1), bus.peer(pid=1)
    innocent, sender = bus.peer(pid=2), bus.peer(pid=2)
    send(glutton_sender, glutton, 900_000)
    round_over(bus)
    assert not glutton.peer.closing, "there was room"
    send(sender, innocent, 200_000)
    round_over(bus)
    assert glutton.peer.closing
    assert not innocent.peer.closing
    assert used(innocent, BYTES) >= 200_000
    bus.advance(10)
    assert not innocent.peer.closing, "what leaves stands in nobody's way"
    for client in (glutton, glutton_sender, innocent, sender):
        client.leave()
    assert bus.broker.accounts.is_empty


def test_where_a_program_is_full_its_largest_connection_goes_and_not_the_one_that_came_last() -> None:
    bus = Bus(max_program_bytes=1_000_000)
    sender, stuck, other = bus.peer(pid=1), bus.peer(pid=1), bus.peer(pid=1)
    send(sender, stuck, 900_000)
    round_over(bus)
    send(sender, other, 200_000)
    round_over(bus)
    assert stuck.peer.closing
    assert not other.peer.closing


def test_who_is_within_its_share_does_not_go_for_others_who_have_less_but_too_much() -> None:
    bus = Bus(max_user_bytes=1_000_000, quota_grace_s=10)
    sender = bus.peer(pid=9)
    fair, *gluttons = bus.peer(pid=1), *(bus.peer(pid=2) for _ in range(6))
    send(sender, fair, 250_000)
    round_over(bus)
    for glutton in gluttons:  # together beyond their share, each with less than the fair one
        send(sender, glutton, 140_000)
        round_over(bus)
    assert not fair.peer.closing
    assert sum(glutton.peer.closing for glutton in gluttons) == 1


def test_a_stuck_program_of_one_user_does_not_cost_another() -> None:
    bus = Bus(max_queued_bytes=1_000_000, owners=frozenset({20}), quota_grace_s=1.0)
    stuck, stuck_sender = bus.peer(pid=1, uid=21), bus.peer(pid=1, uid=21)
    own, sender = bus.peer(pid=2), bus.peer(pid=2)
    send(stuck_sender, stuck, 700_000)
    send(sender, own, 200_000)
    round_over(bus)
    bus.advance(1.1)
    assert stuck.peer.closing
    assert not own.peer.closing
    assert "limits.max_queued_bytes" in (told_to_go(stuck) or (0, ""))[1]


def test_many_who_go_at_once() -> None:
    """Each is closed because the level is full, and none is looked at twice."""
    bus = Bus(max_program_bytes=1_000_000)
    sender = bus.peer(pid=1)
    receivers = [bus.peer(pid=1) for _ in range(10)]
    for receiver in receivers:
        send(sender, receiver, 150_000)
    round_over(bus)
    closed = sum(receiver.peer.closing for receiver in receivers)
    assert closed == 4, "as many as it takes"
    for client in (*receivers, sender):
        client.leave()
    assert bus.broker.accounts.is_empty


# --- the session that comes back (H-13), limits that change, the list (Q-7) -----------------------


def test_a_session_that_takes_over_leaves_no_charge() -> None:
    bus = Bus()
    clients = []
    for _ in range(3):
        client = Client(bus, bus.broker.connect(bus.now))
        client.write(encode(Kind.HELLO, 0, 1, 1, [], {"session": "s"}, None))
        client.read()
        fill_lanes(client, 3)
        fill_names(client, 3)
        clients.append(client)
    totals = bus.broker.accounts.used
    assert (totals[LANES], totals[NAMES], totals[PEERS]) == (3, 3, 3), "connections are until the kernel has them back"
    for client in clients:
        client.leave()
    assert bus.broker.accounts.is_empty


def test_a_session_is_one_user_s() -> None:
    bus = Bus()
    hello = encode(Kind.HELLO, 0, 1, 1, [], {"session": "s"}, None)
    peers = [bus.broker.connect(bus.now, credentials=Credentials(pid, uid, 0)) for pid, uid in ((1, 20), (2, 21), (3, 20))]
    for peer in peers[:2]:
        bus.broker.receive(peer, hello, bus.now)
    assert [peer.closing for peer in peers] == [False, False, False]
    bus.broker.receive(peers[2], hello, bus.now)
    assert [peer.closing for peer in peers] == [True, False, False]
    for peer in peers:
        bus.broker.disconnect(peer, bus.now)
    assert not bus.broker._sessions


def test_limits_change_while_all_is_in_use() -> None:
    bus = Bus()
    client = bus.peer()
    fill_lanes(client, 5)
    bus.broker.reconfigure(dataclasses.replace(bus.broker.limits, max_program_lanes=2), bus.now)
    assert client.ask("subscribe", pattern="t", lane=9, credit=0)[0] == Code.OVER_LIMIT
    assert used(client, LANES) == 5
    bus.broker.reconfigure(Limits(), bus.now)
    assert isinstance(client.ask("subscribe", pattern="t", lane=9, credit=0), dict)
    client.leave()
    assert bus.broker.accounts.is_empty


def test_who_has_no_pid_is_named_by_its_peer() -> None:
    bus = Bus(max_program_lanes=1)
    a, b = bus.peer("outside", pid=0), bus.peer("outside", pid=0)
    code, text = b.ask("subscribe", pattern="a", lane=1, credit=0), fill_lanes(b, 3)[-1][1]
    assert isinstance(code, dict)
    assert text.startswith(f"peer {b.id} ('outside') of uid 20 has 1 of 1 subscriptions")
    assert any(f"over quota: peer {b.id} ('outside') of uid 20" in text for _, text in bus.log)
    assert {item["peer"] for item in a.ask("accounts")["items"]} == {None, a.id, b.id}


def test_the_list_of_accounts() -> None:
    bus = Bus()
    one, two = bus.peer("one"), bus.peer("two")
    other = bus.peer("other", pid=7, uid=5)
    tcp = bus.broker.connect(bus.now)
    fill_lanes(two, 2)
    items = one.ask("accounts")["items"]
    assert [(item["level"], item["uid"], item["pid"], item["programs"]) for item in items] == [
        ("bus", None, None, []),
        ("user", 5, None, []),
        ("program", 5, 7, ["other"]),
        ("user", 20, None, []),
        ("program", 20, 10, ["one", "two"]),
        ("user", "unix", None, []),
        ("program", "unix", 0, []),
    ]
    assert [item["peer"] for item in items] == [None] * 7, "the last has not said hello"
    lanes = [item["resources"]["lanes"] for item in items]
    assert lanes[0] == {"used": 2, "limit": Limits().max_bus_lanes}
    assert lanes[4] == {"used": 2, "limit": Limits().max_program_lanes, "share": 500_000}
    assert [item["resources"]["peers"]["used"] for item in items] == [4, 1, 1, 2, 2, 1, 1]
    pages = [one.ask("accounts", limit=3)]
    while pages[-1]["next"] is not None:
        pages.append(one.ask("accounts", limit=3, after=pages[-1]["next"]))
    assert [item for page in pages for item in page["items"]] == items
    first = one.ask("accounts", limit=3)
    other.leave()  # what the next page begins with is not moved by who goes, nor by who comes
    newer = bus.peer("newer", pid=3, uid=4)
    rest = one.ask("accounts", after=first["next"])["items"]
    assert [(item["level"], item["uid"]) for item in rest] == [(item["level"], item["uid"]) for item in items[3:]]
    newer.leave()
    other = bus.peer("other", pid=7, uid=5)
    assert one.ask("accounts", after=5)[0] == Code.BAD_ARGUMENT
    bus.broker.disconnect(tcp, bus.now)
    retain(other, "t")
    other.leave()
    items = one.ask("accounts")["items"]
    assert [(item["level"], item["uid"]) for item in items] == [("bus", None), ("user", 5), ("user", 20), ("program", 20)]


# --- queues and what publishers park (Q-3) --------------------------------------------------------


def test_what_waits_in_queues_is_charged_to_who_pays_for_them_and_what_is_parked_to_the_publisher() -> None:
    bus = Bus(lane_soft_bytes=200_000)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=0)
    frame = publication(publisher.id, "t", bytes(100_000))
    for _ in range(2):
        publisher.write(frame)
    round_over(bus)
    assert used(reader, BYTES) >= 2 * len(frame)
    assert used(publisher, BYTES) == 0
    for _ in range(2):
        publisher.write(frame)
    round_over(bus)
    assert used(publisher, BYTES) == 2 * len(frame) == publisher.peer.parked_bytes
    publisher.leave()
    round_over(bus)
    assert publisher.peer.account.used[BYTES] == 0
    assert used(reader, BYTES) >= 4 * len(frame)
    reader.ask("unsubscribe", lane=1)
    round_over(bus)
    assert used(reader, BYTES) == 0
    reader.leave()
    assert bus.broker.accounts.is_empty


def test_when_a_queue_lets_its_publishers_go_the_charge_goes_along() -> None:
    bus = Bus(lane_soft_bytes=200_000, lane_stall_s=1.0)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=0)
    for _ in range(5):
        publisher.write(publication(publisher.id, "t", bytes(100_000)))
    round_over(bus)
    assert used(publisher, BYTES) > 0
    bus.advance(1.5)
    round_over(bus)
    assert used(publisher, BYTES) == 0
    assert used(reader, BYTES) == reader.peer.waiting_bytes > 0
    for client in (reader, publisher):
        client.leave()
    assert bus.broker.accounts.is_empty


def test_the_queue_of_a_group_is_charged_to_the_member_that_pays() -> None:
    bus = Bus()
    a, b, publisher = bus.peer(pid=1), bus.peer(pid=2), bus.peer(pid=3)
    for member in (a, b):
        member.subscribe("t", credit=0, group="g")
    publisher.write(publication(publisher.id, "t", bytes(200_000)))
    round_over(bus)
    assert used(a, BYTES) > 200_000
    a.ask("unsubscribe", lane=1)
    round_over(bus)
    assert (used(a, BYTES), used(b, BYTES) > 200_000) == (0, True)
    b.credit(1, 1 << 20, 1)
    round_over(bus)
    assert used(b, BYTES) == b.peer.out_bytes > 200_000
    b.read()
    assert used(b, BYTES) == 0


def test_queues_lose_messages_before_the_connection_is_lost() -> None:
    bus = Bus(max_program_bytes=1_000_000, lane_soft_bytes=8_000_000)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("big.>", 1, credit=0)
    reader.subscribe("small", 2, credit=0)
    publisher.write(publication(publisher.id, "small", bytes(100_000)))
    for n in range(12):
        publisher.write(publication(publisher.id, "big.x", bytes([n]) * 100_000))
        round_over(bus)
    assert not reader.peer.closing
    assert used(reader, BYTES) <= 1_000_000
    lines = [text for _, text in bus.log if "over quota" in text]
    assert len(lines) == 1, "the first of the episode"
    assert "are lost: pid 1 of uid 20 has" in lines[0]
    assert "limits.max_program_bytes" in lines[0]
    for lane in (1, 2):
        reader.credit(lane, 1 << 22)
    got = reader.read()
    lost = [msgpack.unpackb(envelope[-1]) for envelope in got if envelope[0] == Kind.NOTICE and envelope[2] == "lost"]
    assert {notice["why"] for notice in lost} == {"over_quota"}
    assert {notice["lane"] for notice in lost} == {1}, "the largest queue"
    kept = [envelope[-1][0] for envelope in got if envelope[0] == Kind.PUBLISH and envelope[2] == "big.x"]
    assert kept == list(range(12 - len(kept), 12)), "the oldest are lost"
    assert sum(notice["count"] for notice in lost) == 12 - len(kept)
    assert used(reader, BYTES) == 0
    for _ in range(12):
        publisher.write(publication(publisher.id, "big.x", bytes(100_000)))
    round_over(bus)


def test_who_stands_still_beyond_its_share_loses_from_its_queues_first() -> None:
    bus = Bus(max_user_bytes=1_000_000, lane_soft_bytes=8_000_000, quota_grace_s=1.0)
    reader, publisher = bus.peer(pid=1), bus.peer(pid=2)
    reader.subscribe("t", credit=0)
    for _ in range(8):
        publisher.write(publication(publisher.id, "t", bytes(100_000)))
    round_over(bus)
    assert used(reader, BYTES) > 800_000
    bus.advance(1.1)
    assert not reader.peer.closing
    assert 400_000 < used(reader, BYTES) <= 500_000
    assert bus.broker.accounts.is_fair(reader.peer.account, BYTES)
    assert bus.broker.next_deadline() is None


def test_fifty_stuck_programs_and_a_flood_stay_below_the_limit_of_all() -> None:
    bus = Bus(max_queued_bytes=20_000_000, quota_grace_s=1.0)
    stuck = [bus.peer(pid=pid) for pid in range(1, 51)]
    innocent, publisher = bus.peer(pid=100), bus.peer(pid=101)
    for client in stuck:
        client.subscribe("t", credit=1 << 30)
    innocent.subscribe("t", credit=1 << 30)
    got = 0
    for _ in range(200):
        publisher.write(publication(publisher.id, "t", bytes(50_000)))
        round_over(bus)
        assert bus.broker.accounts.used[BYTES] - bus.broker.accounts.leaving <= 20_000_000
        got += len(innocent.read_payloads())
        for client in stuck:
            if client.peer.closing and not client.peer.closed:
                client.leave()  # the daemon gives it a while
        bus.advance(0.05)
    assert got == 200
    assert not innocent.peer.closing
    assert not publisher.peer.closing
    for client in (*stuck, innocent, publisher):
        client.leave()
    assert bus.broker.accounts.is_empty
