"""Every attack that a local bus must live through, with a witness beside it (promises 2, 3, 4 and 9).

One daemon takes all of them, one after the other. After each the innocent pairs must have lost nothing, and what the attackers had must be
free again. How much slower the innocents were is told at the end of the run and not asserted: see witness.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipcbus.broker.counters import ENDS
from tests.daemons import RunningDaemon, wait_until
from tests.survival.witness import Report, Witness, attackers
from tests.wire import Wire

DESCRIPTORS = 300  #: of the daemon, so that they can run out
BASE_S = 0.25  #: how long the witness is watched before and after an attack
SETTLE_S = 30.0
MEMORY_MAX_BYTES = 400 << 20  #: of the daemon, whatever happens; far above what the limits below allow

CONFIG = """
[limits]
max_payload_bytes = 16777216
max_retained_bytes = 1048576
max_output_bytes = 33554432
max_program_bytes = 67108864
max_user_bytes = 83886080
max_queued_bytes = 104857600
handshake_timeout_s = 1.0
"""


class Scene:
    """The daemon, the witness, and a connection that sees what is there."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.daemon = daemon
        self.witness = Witness(daemon.address)
        self.control = Wire(daemon.address)
        self.control.hello("control")
        self.before = self.used()

    def stats(self) -> dict[str, Any]:
        found = self.control.call("stats")
        assert isinstance(found, dict)
        assert found["offered"] == found["queued"] + sum(found[name] for name in ENDS), found  # B-4, whatever goes on
        return found

    def used(self) -> dict[str, int]:
        """What must be free again when who used it has gone."""
        found = self.stats()
        gauges = ("peers", "names", "lanes", "retained", "requests", "queued_bytes")
        of_bus = self.control.call("accounts")["items"][0]["resources"]
        charged = {f"charged {key}": resource["used"] for key, resource in of_bus.items()}
        return {key: found[key] for key in gauges} | charged | {"descriptors": len(os.listdir(f"/proc/{self.daemon.pid}/fd"))}

    def watch(self, report: Report, phase: str, seconds: float) -> None:
        report.phases[phase] = self.witness.watch(seconds)
        used = self.stats()["memory_bytes"]
        assert used < MEMORY_MAX_BYTES
        report.memory[phase] = used / (1 << 20)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        daemon = RunningDaemon(Path(path), config=CONFIG, nofile=DESCRIPTORS)
        with contextlib.ExitStack() as stack:
            stack.callback(daemon.finish)
            made = Scene(daemon)
            stack.callback(made.witness.finish)
            stack.callback(made.control.sock.close)
            yield made


def attack(scene: Scene, reports: list[Report], name: str, seconds: float) -> dict[str, Any]:
    """One attack, and what must be true beside and after it; returns what the attackers say that they did."""
    report = Report(name)
    reports.append(report)
    scene.watch(report, "before", BASE_S)
    with attackers(scene.daemon.address, name) as roles:
        scene.watch(report, "during", seconds)
        for role in roles:
            role.end()
            report.done.update(role.hear())
    wait_until(lambda: scene.used() == scene.before, f"not free again: {scene.used()}, was {scene.before}", SETTLE_S)
    scene.watch(report, "after", BASE_S)
    assert scene.daemon.process.poll() is None
    return report.done


def test_descriptors_run_out(scene: Scene, reports: list[Report], attack_s: float) -> None:
    done = attack(scene, reports, "descriptors", attack_s)
    assert 250 < done["held"] < DESCRIPTORS
    assert done["refused"] > 0
    assert "LimitNOFILE=" in scene.daemon.log().partition("listening")[2]


def test_thousands_of_connects(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "storm", attack_s)["connected"] > 0


def test_half_open_handshakes(scene: Scene, reports: list[Report], attack_s: float) -> None:
    done = attack(scene, reports, "half_open", max(attack_s, 1.2))
    assert done["bytes"] > 0
    assert done["closed"] > 0
    assert "handshake_timeout" in scene.daemon.log()


def test_a_huge_frame_byte_by_byte(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "byte_by_byte", attack_s)["writes"] > 0


def test_small_messages_that_outlive_big_reads(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "small_of_big", attack_s)["small"] > 0


def test_payload_bombs(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "argument_bombs", attack_s)["bombs"] > 0


def test_subscription_churn(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "churn", attack_s)["changes"] > 0


def test_a_wildcard_bomb(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "wildcard_bomb", attack_s)["messages"] > 0


def test_too_many_matches(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "too_many_matches", attack_s)["closed"] > 0
    assert "limits.max_matches" in scene.daemon.log()


def test_a_hundred_thousand_subscriptions_of_one_peer(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "many_subscriptions", attack_s)["subscriptions"] >= 100_000


def test_readers_that_never_read(scene: Scene, reports: list[Report], attack_s: float) -> None:
    before = scene.stats()
    assert attack(scene, reports, "stuck_readers", attack_s)["messages"] > 0
    assert scene.stats()["lost"] > before["lost"]


def test_readers_that_hold_their_publisher(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "blocking_readers", attack_s)["messages"] > 0


def test_a_publisher_at_full_speed_to_nobody(scene: Scene, reports: list[Report], attack_s: float) -> None:
    before = scene.stats()["no_subscriber"]
    done = attack(scene, reports, "nobody", attack_s)
    assert done["messages"] > 0
    assert scene.stats()["no_subscriber"] - before >= done["messages"]


def test_a_publisher_to_ever_new_topics(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "many_topics", attack_s)["messages"] > 0


def test_answers_that_nobody_reads(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "unread_answers", attack_s)["blobs"] > 0


def test_the_longest_lists(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "long_lists", attack_s)["lists"] > 0


def test_small_frames_that_are_much_to_do(scene: Scene, reports: list[Report], attack_s: float) -> None:
    assert attack(scene, reports, "dear_frames", attack_s)["rounds"] > 0


def test_much_that_ends_at_once(scene: Scene, reports: list[Report], attack_s: float) -> None:
    done = attack(scene, reports, "all_at_once", max(attack_s, 1.2))
    assert done["expired"] > 0


def test_a_group_with_a_stopped_member(scene: Scene, reports: list[Report], attack_s: float) -> None:
    done = attack(scene, reports, "group_with_one_stopped", attack_s)
    assert done["whole"]
    assert done["in_order"]
    assert done["meanwhile"] == 0
    assert 0 < done["stopped"] <= 20 < done["sent"]  # what it had credit for, and no more
