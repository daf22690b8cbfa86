"""What the bus has publishers wait for (L-12), driven by hand: which publications wait, what becomes of them, and that all else goes on."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus_client import Closed, Hold, OutboxFull
from ipcbus_client import _holds as holds_module
from ipcbus_client import _waiting as waiting_module
from ipcbus_client._names import no_answer, took_nothing
from ipcbus_client._session import Session
from ipcbus_client._state import State
from ipcbus_client._waiting import POLICIES, Waiting

INFO = {"software": "test", "max_frame_bytes": 100_000, "max_payload_bytes": 50_000}
DROPPING = ("drop_oldest", "drop_newest")


class World:
    """A session with a connection, and a clock."""

    def __init__(self, policy: str = "block", **limits: int) -> None:
        self.now = 100.0
        self.session = Session(program="p", library="l", waiting=Waiting(policy, **limits))
        self.session.use_clock(lambda: self.now)
        self.outbox, self.holds = self.session.outbox, self.session.outbox.holds
        self.states = 0
        self.session.on_state = self._on_state
        self.connect()

    def _on_state(self) -> None:
        self.states += 1

    def connect(self) -> list[tuple[Any, ...]]:
        self.session.opened()
        self.session.receive(encode(Kind.WELCOME, 0, 1, ["hold", "post"], 7, b"i" * 16, INFO))
        return self.written()

    def written(self) -> list[tuple[Any, ...]]:
        """The envelopes that wait to be written, taken out."""
        unpacker = msgpack.Unpacker(use_list=False)
        while self.outbox.unsent_bytes:
            chunk = bytes(self.outbox.chunk())
            unpacker.feed(chunk)
            self.outbox.wrote(len(chunk))
        return list(unpacker)[1::2]

    def payloads(self) -> list[Any]:
        """What is published, decoded; PINGs are answered."""
        found = []
        while frames := self.written():
            for frame in frames:
                if frame[0] == Kind.PING:
                    self.session.receive(encode(Kind.PONG, 0, frame[2]))
                elif frame[0] in (Kind.PUBLISH, Kind.RETAIN, Kind.POST):
                    found.append(msgpack.unpackb(frame[-1]))
        return found

    def notice(self, name: str, **about: Any) -> None:
        self.session.receive(encode_with_payload(msgpack.packb(about), Kind.NOTICE, 0, name, None))

    def hold(self, identity: int = 1, pattern: str = "slow.*", **about: Any) -> None:
        self.notice("hold", **{"id": identity, "pattern": pattern, "group": None, "peer": 9, "program": "reader", "bytes": 1000, **about})

    def resume(self, identity: int = 1) -> None:
        self.notice("resume", id=identity)

    def publish(self, topic: str, data: Any = 1, **options: Any) -> bool:
        return self.outbox.publish(topic, data, options.get("retain", False), options.get("headers"))

    def post(self, topic: str, data: Any = 1, *, retain: bool = False, ttl: float | None = None) -> bool:
        return self.session.posts.put(self.session.posts.make(topic, data, retain, None, ttl))


def test_the_feature_is_offered() -> None:
    session = Session(program="p", library="l")
    session.opened()
    assert "hold" in msgpack.unpackb(session.outbox.chunk()[5:])[4]


@pytest.mark.parametrize("policy", ["block", "raise"])
def test_publications_that_it_matches_are_not_taken(policy: str) -> None:
    world = World(policy)
    world.publish("slow.a", 0)  # with a cached head from here on
    world.publish("other", 0)
    assert world.payloads() == [0, 0]
    world.hold()
    for publish in (
        lambda: world.publish("slow.a"),
        lambda: world.publish("slow.b"),
        lambda: world.publish("slow.a", retain=True),
        lambda: world.publish("slow.a", headers={"h": 1}),
        lambda: world.post("slow.a"),
        lambda: world.post("slow.a", retain=True, ttl=5.0),
        lambda: world.session.posts.confirm(world.session.posts.make("slow.a", 1, False, None)),
    ):
        with pytest.raises(OutboxFull) as caught:
            publish()
        assert caught.value.hold == Hold("slow.*", None, 9, "reader", 1000, 0.0)
        assert caught.value.who in ("slow.a", "slow.b")
    assert "'slow.*' of :9 (reader)" in str(caught.value)
    assert not world.outbox.out
    assert not world.session.calls
    assert not world.outbox.waiting
    for topic in ("other", "slow", "slow.a.b"):
        world.publish(topic, topic)
        world.publish(topic, topic)
    world.outbox.send("name", 1, None)
    assert world.payloads() == [topic for topic in ("other", "slow", "slow.a.b") for _ in range(2)]
    world.resume()
    world.publish("slow.a", 5)
    assert world.payloads() == [5]


def test_who_is_not_read_any_more_is_told_for_whom() -> None:
    """A publisher may have written more than the bus parks of it before it reads the notice: then it is a Timeout that it gets."""
    world = World()
    errors = (
        lambda: took_nothing(0.5, world.outbox, "unix:/x"),
        lambda: no_answer(world.session.ping(), world.session, ""),
        lambda: no_answer(world.session.request("bus/peers", {}, None, 1.0), world.session, ""),
    )
    before = [str(error()) for error in errors]
    assert not any("holds" in text for text in before)
    world.hold(2)
    world.hold(3, peer=11)
    for error in errors:
        assert str(error()).endswith(". It holds publications for the subscription 'slow.*' of :9 (reader), for which 1000 bytes wait")
    world.resume(2)
    world.resume(3)
    assert not any("holds" in str(error()) for error in errors)


def test_what_goes_on_has_its_fast_path() -> None:
    world = World()
    world.hold()
    with pytest.raises(OutboxFull):
        world.publish("slow.a")
    for _ in range(2):
        world.publish("other", b"x")
    assert "other" in world.outbox._raw
    assert "slow.a" not in world.outbox._value
    world.publish("slow", 1)
    world.hold(2, "slow")
    with pytest.raises(OutboxFull):  # the cached head is gone
        world.publish("slow", 1)


def test_several_holds_of_a_topic() -> None:
    world = World()
    world.hold(1)
    world.hold(2, "slow.>", peer=11, group="g")
    assert [(hold.peer, hold.group) for hold in world.holds.list()] == [(9, None), (11, "g")]
    world.resume(1)
    with pytest.raises(OutboxFull, match=r"group 'g' of 'slow.>' of :11") as caught:
        world.publish("slow.a")
    assert caught.value.hold is not None
    assert caught.value.hold.group == "g"
    world.resume(1)  # again, and unknown ones
    world.resume(77)
    assert len(world.holds.list()) == 1
    world.resume(2)
    world.publish("slow.a")
    assert world.holds.list() == []
    assert world.payloads() == [1]


def test_the_error_keeps_the_hold() -> None:
    world = World()
    world.hold()
    world.now += 2.5
    with pytest.raises(OutboxFull) as caught:
        world.publish("slow.a")
    hold = caught.value.hold
    assert hold is not None
    assert hold.held_s == 2.5
    for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value), caught.value.again()):
        assert (twin.hold, twin.who, str(twin)) == (hold, "slow.a", str(caught.value))
    assert OutboxFull("x").hold is None


def test_who_waits_is_told_of_the_end() -> None:
    world = World()
    before = world.states
    world.hold()
    assert world.states == before
    world.resume()
    assert world.states == before + 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reconnect_ends_it(policy: str) -> None:
    world = World(policy)
    world.hold()
    if policy in DROPPING:
        world.publish("slow.a", 1)
    world.session.lost("gone", again=True)
    world.publish("slow.a", 2)
    assert world.holds.list() == []
    frames = [frame for frame in world.connect() if frame[0] == Kind.PUBLISH]
    assert [frame[-1] for frame in frames] == [b"\x01", b"\x02"] if policy in DROPPING else [b"\x02"]
    world.publish("slow.a", 3)
    assert world.payloads() == [3]
    world.resume()  # of the connection before
    assert world.session.hangup is None


@pytest.mark.parametrize("policy", POLICIES)
def test_the_end_ends_it(policy: str) -> None:
    world = World(policy)
    world.hold()
    if policy in DROPPING:
        world.publish("slow.a", 1)
    world.session.close()
    assert world.holds.list() == []
    with pytest.raises(Closed):
        world.publish("slow.a", 2)
    assert world.session.undelivered() == ((1, 0) if policy in DROPPING else (0, 0))


def test_who_leaves_sends_what_waits_and_is_held_no_more() -> None:
    world = World("drop_oldest")
    world.hold()
    for n in range(3):
        world.publish("slow.a", n)
    world.holds.leave()
    world.hold(2)
    world.publish("slow.a", 3)
    assert world.payloads() == [0, 1, 2, 3]
    assert world.session.stats()["held"] == 0


# --- an outbox that drops ---


@pytest.mark.parametrize("policy", DROPPING)
def test_what_is_held_waits_in_its_order(policy: str) -> None:
    world = World(policy)
    world.hold(1, "a")
    world.hold(2, "b")
    for n in range(3):
        world.publish("a", f"a{n}")
        world.publish("b", f"b{n}")
        world.publish("c", f"c{n}")
    assert world.payloads() == ["c0", "c1", "c2"]
    assert world.session.undelivered().unsent == 6
    world.resume(2)
    assert world.payloads() == ["b0", "b1", "b2"]
    world.publish("b", "b3")
    world.publish("a", "a3")
    assert world.payloads() == ["b3"]
    world.resume(1)
    assert world.payloads() == ["a0", "a1", "a2", "a3"]
    assert (len(world.outbox.waiting), world.outbox.waiting.bytes, world.holds.kept) == (0, 0, set())
    assert world.session.undelivered().unsent == 0
    for _ in range(2):
        world.publish("a", 1)
    assert "a" in world.outbox._value


@pytest.mark.parametrize(("policy", "kept"), [("drop_oldest", [2, 3]), ("drop_newest", [0, 1])])
@pytest.mark.parametrize("limits", [{"max_messages": 2}, {"max_bytes": 2 * (64 + 1 + 6)}])
def test_what_is_over_the_outbox_is_dropped_and_counted(policy: str, kept: list[int], limits: dict[str, int]) -> None:
    world = World(policy, **limits)
    world.hold()
    world.session.remarks.clear()
    for n in range(4):
        world.publish("slow.a", n)
    assert world.session.stats()["outbox_dropped"] == 2
    assert [remark.text.split(":")[0] for remark in world.session.remarks] == [
        "publications to 'slow.a' are held by the subscription 'slow.*' of ",
        "the outbox is full while there is no connection to the bus, or topics are held",
    ]
    world.session.remarks.clear()
    world.resume()
    assert world.payloads() == kept
    (remark,) = world.session.remarks
    assert remark.text == "2 messages were dropped from the full outbox while their topics were held"
    assert world.session.undelivered().unsent == 2


@pytest.mark.parametrize("policy", DROPPING)
def test_one_that_is_confirmed_does_not_wait_in_the_outbox(policy: str) -> None:
    world = World(policy)
    world.hold()
    with pytest.raises(OutboxFull):
        world.session.posts.confirm(world.session.posts.make("slow.a", 1, False, None))


def test_what_waits_has_its_time_to_live() -> None:
    world = World("drop_oldest")
    world.hold()
    world.post("slow.a", "short", ttl=1.0)
    world.post("slow.a", "long", ttl=10.0)
    world.now += 2.0
    world.resume()
    (frame,) = world.written()
    assert (frame[0], frame[4], msgpack.unpackb(frame[-1])) == (Kind.POST, 8000, "long")
    assert world.session.stats()["outbox_expired"] == 1
    assert world.outbox.waiting.expires == float("inf")


def test_what_was_retained_and_waits_is_restored_after_a_reconnect() -> None:
    world = World("drop_newest", max_messages=1)
    world.hold()
    world.post("slow.a", "waits", retain=True)
    world.post("slow.b", "dropped", retain=True)
    world.session.lost("gone", again=True)
    frames = world.connect()
    assert [frame[2] for frame in frames if frame[0] == Kind.RETAIN] == ["slow.a"]
    restored = [msgpack.unpackb(frame[-1])["topic"] for frame in frames if frame[0] == Kind.REQUEST]
    assert restored == ["slow.b"]


def test_it_goes_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds_module, "_PIECE_BYTES", 100)
    world = World("drop_oldest")
    world.hold()
    for n in range(50):
        world.publish("slow.a", n)
    before = world.states
    world.resume()
    frames = world.written()
    pieces = [frame[-1] for frame in frames if frame[0] == Kind.PUBLISH]
    (ping,) = [frame for frame in frames if frame[0] == Kind.PING]
    assert frames[-1] == ping
    assert len(pieces) == 100 // 7 + 1
    world.publish("slow.a", 50)  # behind the others
    assert not world.written()
    world.hold(2)  # the bus has enough
    world.session.receive(encode(Kind.PONG, 0, ping[2]))
    assert not world.written()
    world.resume(2)
    assert pieces + [msgpack.packb(n) for n in world.payloads()] == [msgpack.packb(n) for n in range(51)]
    assert world.states > before
    assert not world.session.calls
    world.publish("slow.a", 51)
    assert world.payloads() == [51]


def test_a_connection_that_ends_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds_module, "_PIECE_BYTES", 100)
    world = World("drop_oldest")
    world.hold()
    for n in range(50):
        world.publish("slow.a", n)
    world.resume()
    first = [frame[-1] for frame in world.written() if frame[0] == Kind.PUBLISH]
    world.session.lost("gone", again=True)
    assert world.session.undelivered() == (50 - len(first), len(first))
    rest = [frame[-1] for frame in world.connect() if frame[0] == Kind.PUBLISH]
    assert first + rest == [msgpack.packb(n) for n in range(50)]


# --- what is known of it ---


def test_counters() -> None:
    world = World()
    assert {key: world.session.stats()[key] for key in ("holds", "held", "held_s")} == {"holds": 0, "held": 0, "held_s": 0.0}
    world.hold(1)
    world.now += 1.0
    world.hold(2)
    world.now += 1.0
    assert [hold.held_s for hold in world.holds.list()] == [2.0, 1.0]
    assert {key: world.session.stats()[key] for key in ("holds", "held", "held_s")} == {"holds": 2, "held": 2, "held_s": 2.0}
    world.resume(1)
    world.now += 1.0
    world.resume(2)
    world.now += 10.0
    assert {key: world.session.stats()[key] for key in ("holds", "held", "held_s")} == {"holds": 2, "held": 0, "held_s": 3.0}


def test_the_log_is_told_once_a_minute() -> None:
    world = World()
    world.session.remarks.clear()
    for n in range(100):
        world.hold(n + 1)
        for _ in range(2):
            with pytest.raises(OutboxFull):
                world.publish("slow.a")
        world.resume(n + 1)
        world.now += 1.0
    texts = [remark.text for remark in world.session.remarks]
    assert len(texts) == 2
    assert texts[0] == (
        "publications to 'slow.a' are held by the subscription 'slow.*' of :9 (reader), for which 1000 bytes wait: each waits until it "
        "has room"
    )


def test_holds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds_module, "HOLDS_MAX", 3)
    monkeypatch.setattr(holds_module, "_TOPICS_MAX", 3)
    world = World()
    for n in range(1, 5):
        world.hold(n, f"t{n}")
    assert len(world.holds.list()) == 3
    for n in range(1, 4):
        with pytest.raises(OutboxFull):
            world.publish(f"t{n}")
    for n in range(4, 14):
        world.publish(f"t{n}", n)
    assert len(world.holds._topics) <= 3
    assert world.payloads() == list(range(4, 14))


@pytest.mark.parametrize("about", [{}, {"id": 1}, {"pattern": "a"}])
def test_a_hold_that_is_none_ends_the_connection(about: dict[str, Any]) -> None:
    world = World()
    world.notice("hold", **about)
    assert "not in PROTOCOL.md" in str(world.session.hangup)


@pytest.mark.parametrize("policy", DROPPING)
def test_a_signal_handler_publishes_while_what_was_kept_goes_out(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy)
    world.hold(1)
    world.hold(2, "still")
    world.publish("slow.a", 0)
    world.publish("still", 1)
    matches, interrupted = holds_module.matches, False

    def interrupt(pattern: str, topic: str) -> bool:
        nonlocal interrupted
        if not interrupted and world.holds._topics:
            interrupted = True
            world.publish("slow.a", 2)
            world.publish("still", 3)
        return matches(pattern, topic)

    monkeypatch.setattr(holds_module, "matches", interrupt)
    world.resume(1)
    assert interrupted
    assert world.payloads() == [0, 2]
    world.resume(2)
    assert world.payloads() == [1, 3]
    assert world.session.undelivered().unsent == 0


@pytest.mark.parametrize("policy", DROPPING)
def test_a_signal_handler_reads_another_resume_while_what_was_kept_goes_out(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(policy)
    for identity, topic in enumerate(("still", "slow", "late")):
        world.hold(identity, topic)
    for number, topic in enumerate(("still", "slow", "late", "still")):
        world.publish(topic, number)
    matches, interrupted = holds_module.matches, False

    def interrupt(pattern: str, topic: str) -> bool:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            world.resume(2)
        return matches(pattern, topic)

    monkeypatch.setattr(holds_module, "matches", interrupt)
    world.resume(1)
    assert interrupted
    assert sorted(world.payloads()) == [1, 2]
    world.resume(0)
    assert world.payloads() == [0, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_signal_handler_reads_the_resume_while_it_is_told_what_holds(policy: str) -> None:
    world = World(policy)
    world.hold()

    def clock() -> float:
        if world.holds.some and world.holds._topics:
            world.resume()
        return world.now

    world.session.use_clock(clock)
    if policy in DROPPING:
        world.publish("slow.a", 1)
        assert world.payloads() == [1]
    else:
        with pytest.raises(OutboxFull, match="held by"):
            world.publish("slow.a", 1)
    world.publish("slow.a", 2)
    assert world.payloads() == [2]


@pytest.mark.parametrize("policy", DROPPING)
def test_who_is_told_that_a_topic_is_held_finds_the_connection_gone(policy: str) -> None:
    world = World(policy)
    world.hold()
    world.holds.on_change = lambda: world.session.state is State.CONNECTED and world.session.lost("it was late", again=True)
    world.publish("slow.a", 1)
    assert world.holds.kept == set()
    world.connect()
    world.publish("slow.a", 2)
    assert world.payloads() == [2]


@pytest.mark.parametrize(("reads", "policy"), [*(("welcome", policy) for policy in POLICIES), *(("resume", policy) for policy in DROPPING)])
def test_a_signal_handler_reads_why_it_may_go_while_it_is_put_among_what_waits(
    reads: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(policy)
    if reads == "welcome":
        world.session.lost("gone", again=True)
    else:
        world.hold()
    size_of, interrupted = waiting_module.size_of, False

    def interrupt(item: Any) -> int:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            if reads == "welcome":
                world.connect()
            else:
                world.resume()
        return size_of(item)

    monkeypatch.setattr(waiting_module, "size_of", interrupt)
    world.publish("slow.a", 1)
    world.publish("slow.a", 2)
    assert interrupted
    assert world.payloads() == [1, 2]
    assert (len(world.outbox.waiting), world.holds.kept, world.holds.active) == (0, set(), False)
