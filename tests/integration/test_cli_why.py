"""``ipcbus why`` as somebody runs it who asks where a message went: a real daemon, real losses, and what is said about them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import ipcbus_client
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment
from tests.integration.test_cli import Cli, until
from tests.wire import Wire

SMALL = {"soft": 20_000, "hard": 40_000, "seconds": 0.2}
READS_NOTHING = """
import sys, ipcbus_client
bus = ipcbus_client.connect(sys.argv[1], program="stuck")
sub = bus.subscribe("stuck.*", limits={"soft": 50_000_000, "hard": 50_000_000})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cli(daemon: RunningDaemon) -> Iterator[Cli]:
    runner = Cli(daemon)
    yield runner
    runner.finish()


@pytest.fixture
def bus(daemon: RunningDaemon) -> Iterator[ipcbus_client.Bus]:
    with ipcbus_client.connect(daemon.address, program="sensors") as bus:
        yield bus


def flood(bus: ipcbus_client.Bus, topic: str, count: int = 3000) -> None:
    for _ in range(count):
        bus.publish(topic, bytes(1000))
    bus.flush(timeout=20)


def waiting(bus: ipcbus_client.Bus, topic: str) -> int:
    """The bytes that wait at the bus in the queues that *topic* goes to."""
    return sum(item["queued_bytes"] for item in bus.request("bus/receivers", {"topic": topic})["items"])


def balanced(stats: dict[str, int]) -> bool:
    ends = ("delivered", "dropped", "replaced", "expired_messages", "evicted", "over_quota", "unknown", "queued")
    return stats["offered"] == sum(stats[name] for name in ends)


def test_nothing_was_lost(cli: Cli, bus: ipcbus_client.Bus) -> None:
    with bus.subscribe("x") as sub:
        bus.publish("x", 1)
        next(iter(sub))
        lines = cli.ok("why").splitlines()
    assert lines[0] == "nothing is known to have been lost"
    assert lines[-1].endswith("1 offered to receivers = 1 delivered")


def test_a_topic_that_was_mistyped(cli: Cli, bus: ipcbus_client.Bus) -> None:
    with bus.subscribe("room.kitchen"):
        bus.publish("room.kichen", 1)
        bus.flush()
        said = cli.ok("why")
        assert "1 message on 'room.kichen' went to nobody: nobody subscribed to it (did you mean 'room.kitchen'?)" in said
        asked = cli.ok("why", "room.kichen").splitlines()
    assert asked[0] == "1 message (27 B) published to 'room.kichen': 1 wanted by nobody"
    assert asked[1] == "nobody subscribes to it; did you mean 'room.kitchen'?"


def test_who_gets_a_topic(cli: Cli, bus: ipcbus_client.Bus) -> None:
    with bus.subscribe("room.*"):
        bus.publish("room.kitchen", 1)
        bus.flush()
        lines = cli.ok("why", "room.kitchen").splitlines()
    assert lines[0].startswith("1 message (")
    assert lines[1] == "who gets it now:"
    assert "'room.*' of sensors (peer 1, pid " in lines[2]
    assert cli.ok("why", "room.kitchn").splitlines()[:1] == ["nothing was published to 'room.kitchn'; did you mean 'room.kitchen'?"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("block", "its publishers are held until its time is over, and then"),
        ("drop_oldest", "beyond these the oldest went"),
        ("drop_newest", "beyond these the newest went"),
        ("latest", "newer ones of the same topic took their place"),
    ],
)
def test_a_slow_subscriber(cli: Cli, daemon: RunningDaemon, bus: ipcbus_client.Bus, policy: str, words: str) -> None:
    with ipcbus_client.connect(daemon.address, program="dash") as slow, slow.subscribe("data.*", policy=policy, limits=SMALL):
        flood(bus, "data.x")
        stays = SMALL["hard" if policy == "drop_newest" else "soft"]  # of what is over it more is lost when its time is over (L-7)
        until(lambda: waiting(bus, "data.x") <= stays)
        said = cli.ok("why", "data.x")
        assert "the subscription 'data.*' of dash (peer 2, pid " in said
        assert words in said
        assert f"its policy is {policy} (soft 19.5 KiB, hard 39.1 KiB, 0.2 s)" in said
        assert "the first was on 'data.x'" in said
        stats = bus.stats()
        assert balanced(stats)
        assert stats["lost"] > 0
        lost = {item["topic"]: item["lost"] for item in bus.topics()}
        assert lost["data.x"] + lost.get("(all others)", 0) == stats["lost"]  # where much is lost at once, not all of it is told by topic
        least = "at least " if lost.get("(all others)") else ""
        assert said.splitlines()[0].endswith(f" published to 'data.x': {least}{lost['data.x']} lost")
        (item,) = [item for item in bus.losses() if item["program"] == "dash"]
        assert item["why"] == ("replaced" if policy == "latest" else "too_slow")
        assert item["count"] == stats["lost"]


def test_a_subscriber_that_was_killed(cli: Cli, daemon: RunningDaemon, bus: ipcbus_client.Bus) -> None:
    """What waited for it is evicted, what was in its output is unknown; and the books balance."""
    arguments = [sys.executable, "-c", READS_NOTHING, daemon.address]
    with subprocess.Popen(arguments, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stuck:
        try:
            assert stuck.stdout is not None
            assert stuck.stdout.readline() == b"ready\n"
            stuck.send_signal(signal.SIGSTOP)
            for _ in range(10):
                bus.publish("stuck.x", bytes(1_500_000))
            bus.flush(timeout=20)
        finally:
            stuck.kill()
    until(lambda: len(bus.peers()) == 1)
    stats = bus.stats()
    assert balanced(stats)
    assert stats["offered"] == 10 == stats["evicted"] + stats["unknown"] + stats["delivered"]
    assert stats["evicted"] > 0
    assert stats["unknown"] > 0
    said = cli.ok("why", "stuck")
    assert "stuck (peer 2, pid " in said
    assert f"went with {stats['unknown']} message" in said
    assert "whether they arrived is not known" in said
    assert f"ended while {stats['evicted']} message" in said
    assert f"went with {stats['unknown']} message" in cli.ok("why", "stuck.x"), "some of these may have been on it"
    assert "nothing was published to 'other'" in (other := cli.ok("why", "other"))
    assert "went with" not in other


def test_requests_that_got_no_answer(cli: Cli, daemon: RunningDaemon, bus: ipcbus_client.Bus) -> None:
    with ipcbus_client.connect(daemon.address, name="thermostat", program="heater") as heater:
        heater.respond("thermostat/set", lambda request: request.wait_cancelled())
        with pytest.raises(ipcbus_client.Expired):
            bus.request("thermostat/set", 1, timeout=0.2)
        with pytest.raises(ipcbus_client.NoSuchName):
            bus.request("thermostt/set", 1)
        said = cli.ok("why")
        assert "1 request to 'thermostat/set' had no answer in time from heater (peer 2, pid " in said
        assert "to 'thermostt/set' was refused: no_such_name" in said
        assert "→ did you mean 'thermostat'?" in said
        asked = cli.ok("why", "thermostat")
        assert "heater (peer 2, pid " in asked.splitlines()[0]
        assert "had no answer in time" in asked
        assert "no_such_name" not in asked


def test_a_call_of_a_name_that_was_mistyped(cli: Cli, bus: ipcbus_client.Bus) -> None:
    bus.respond("thermostat/set", print)
    assert cli("call", "thermostt/set", "1").returncode == 5
    said = cli.ok("why", "thermostt")
    assert "nobody owns the name 'thermostt'" in said
    assert "→ did you mean 'thermostat'?" in said


def test_a_message_that_expired(cli: Cli, daemon: RunningDaemon, bus: ipcbus_client.Bus) -> None:
    with Wire(daemon.address) as wire:
        wire.hello()
        wire.subscribe("late", credit=0)
        # not by `bus`: what takes longer than its time within the client never reaches the daemon
        wire.send(encode_with_payload(b"\x01", Kind.POST, wire.peer, "late", None, 1, False, None))
        time.sleep(0.05)
        wire.send(encode(Kind.CREDIT, wire.peer, 1, 1000, 0))
        until(lambda: bus.stats()["expired_messages"] == 1)
        assert "lost 1 message" in cli.ok("why", "late")
        assert "longer than their time to live" in cli.ok("why", "late")


def test_what_is_refused_for_want_of_room(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config="[limits]\nmax_retained_topics = 1\n")
    cli = Cli(daemon)
    with ipcbus_client.connect(daemon.address, program="keeper") as bus:
        for topic in ("one", "two"):
            with contextlib.suppress(ipcbus_client.BusError):
                bus.publish(topic, 1, retain=True, confirm=True)
        said = cli.ok("why", "two")
    assert "1 message of keeper (peer 1, pid " in said
    assert "but not kept for those who subscribe later" in said
    assert "limits.max_retained_topics" in said
    assert "was refused" not in said, "it was delivered, and that is told once"


def test_peers_topics_and_stats_have_columns_for_it(cli: Cli, bus: ipcbus_client.Bus) -> None:
    bus.publish("nobody", 1)
    bus.flush()
    assert cli.ok("topics").splitlines()[0].split() == ["topic", "messages", "size", "lanes", "retained", "unwanted", "lost", "expired"]
    assert cli.ok("topics").splitlines()[1].split() == ["nobody", "1", "22", "B", "0", "-", "1", "0", "0"]
    assert "refused" in cli.ok("peers").splitlines()[0]
    assert "offered" in cli.ok("stats")


def test_json_is_for_programs(cli: Cli, bus: ipcbus_client.Bus) -> None:
    with bus.subscribe("room.kitchen"):
        bus.publish("room.kichen", 1)
        bus.flush()
        found = json.loads(cli.ok("why", "--json"))
        assert [*found] == ["losses", "unwanted", "holding", "topic", "receivers", "peers", "stats"]
        assert [(item["topic"], item["near"]) for item in found["unwanted"]] == [("room.kichen", ["room.kitchen"])]
        about = json.loads(cli.ok("why", "room.kitchen", "--json"))
    assert [item["pattern"] for item in about["receivers"]] == ["room.kitchen"]


def test_a_peer_that_is_not_there_and_a_topic_that_is_none(cli: Cli) -> None:
    assert cli.ok("why", ":99").splitlines()[0] == "no peer :99 is connected"
    done = cli("why", "a..b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty token" in done.stderr
