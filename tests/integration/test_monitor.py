"""What others send, shown to a monitor: both shells on the bus in memory and on a real daemon, and `ipcbus monitor` (section 14)."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import testing
from tests.daemons import RunningDaemon, wait_until
from tests.integration.test_cli import Cli
from tests.scenarios import WAIT_S, Memory, Real, World


@pytest.fixture(scope="module")
def daemon_of_all() -> Iterator[testing.Daemon]:
    """One for all tests here; they leave nothing behind."""
    with testing.Daemon() as daemon:
        yield daemon


@pytest.fixture(params=["blocking", "aio"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "daemon"])
def world(request: pytest.FixtureRequest, shell: str) -> Iterator[World]:
    if request.param == "daemon":
        yield Real(shell, request.getfixturevalue("daemon_of_all"))
    else:
        with testing.FakeBus() as kit:
            yield Memory(shell, kit)


def test_everything_that_is_sent_is_shown(world: World) -> None:
    async def body(world: World) -> None:
        lamp, panel, eye = [await world.connect(program=program) for program in ("lamp", "panel", "eye")]

        def switch(request: Any) -> Any:
            if request.data == "broken":
                raise ValueError("it is broken")
            return True

        await lamp.own("see.lamp")
        await lamp.inbox()
        await lamp.respond("see.lamp/on", switch)
        await lamp.subscribe("see.light")
        monitor = await eye.monitor("see.>")
        assert monitor.pattern == "see.>"
        await panel.publish("see.light", {"lux": 5}, headers={"unit": "lx"}, confirm=True)
        await panel.publish("see.kept", "é", retain=True, confirm=True)
        await panel.send("see.lamp", b"raw")
        assert await panel.request("see.lamp/on", [1, 2], timeout=WAIT_S) is True
        with pytest.raises(ipcbus_client.ServiceError):
            await panel.request("see.lamp/on", "broken", timeout=WAIT_S)
        with pytest.raises(ipcbus_client.NoSuchMethod):
            await panel.request("see.lamp/off", timeout=WAIT_S)
        shown = [await monitor.get(WAIT_S) for _ in range(9)]
        assert [seen.kind for seen in shown] == [
            "publish", "retain", "send", "request", "reply", "request", "error", "request", "error",
        ]  # fmt: skip
        light, kept, sent, asked, said, _, failed, _, missing = shown
        assert (light.to, light.data, light.headers, light.receivers, light.size) == ("see.light", {"lux": 5}, {"unit": "lx"}, 1, 6)
        assert (kept.data, kept.receivers) == ("é", 0)
        assert (sent.to, sent.data, sent.receiver) == ("see.lamp", b"raw", lamp.peer_id)
        assert (asked.to, asked.data, asked.receiver) == ("see.lamp/on", [1, 2], lamp.peer_id)
        assert (said.to, said.data, said.request, said.id) == (f":{panel.peer_id}", True, "see.lamp/on", asked.id)
        assert (failed.code, failed.label, failed.text) == ("ValueError", "ValueError", "it is broken")
        assert (missing.sender, missing.label, missing.request, missing.frames) == (0, "no_such_method", "see.lamp/off", 1)
        assert missing.sender.credentials is None
        for seen, who, program in ((light, panel, "panel"), (said, lamp, "lamp")):
            assert seen.sender == who.peer_id
            assert seen.sender.credentials.program == program
        assert all(0 <= one.at <= other.at for one, other in pairwise(shown))
        assert not any(seen.redacted or seen.clipped for seen in shown)
        await monitor.close()
        await panel.publish("see.light", confirm=True)
        assert monitor.closed
        assert [seen async for seen in monitor] == []
        with pytest.raises(ipcbus_client.Closed):
            await monitor.get()
        await panel.publish("see.kept", b"", retain=True, confirm=True)
        for bus in (lamp, panel, eye):
            await bus.close()

    world.run(body)


def test_only_what_is_asked_for(world: World) -> None:
    async def body(world: World) -> None:
        bus, eye = await world.connect(), await world.connect()
        sizes = await eye.monitor("only.*", payloads=False, kinds=["retain", "error"])
        large = await eye.monitor("only.large")
        await bus.publish("only.a", 1, confirm=True)
        await bus.publish("only.large", bytes(5000), confirm=True)
        await bus.publish("only.b", "xy", retain=True, confirm=True)
        seen = await sizes.get(WAIT_S)
        assert (seen.kind, seen.to, seen.size, seen.payload, seen.data, seen.clipped) == ("retain", "only.b", 3, None, None, False)
        seen = await large.get(WAIT_S)
        assert (seen.size, seen.payload, seen.clipped) == (5000, bytes(4096), True)
        with pytest.raises(ipcbus_client.Timeout):
            await sizes.get(0.01)
        await bus.publish("only.b", b"", retain=True, confirm=True)
        for wrong in ({"kinds": "send"}, {"kinds": ["hello"]}, {"kinds": []}, {"window_bytes": 0}, {"limits": {"size": 1}}):
            with pytest.raises((TypeError, ValueError)):
                await eye.monitor(**wrong)
        with pytest.raises(ipcbus_client.BadName):
            await eye.monitor("a..b")
        assert (await bus.stats())["monitors"] == 2
        for one in (bus, eye):
            await one.close()

    world.run(body)


def test_who_is_too_slow_loses_and_holds_nobody(world: World) -> None:
    async def body(world: World) -> None:
        bus, eye = await world.connect(), await world.connect()
        monitor = await eye.monitor("slow", notices=True, window_bytes=1000, limits={"soft": 10_000, "hard": 20_000})
        for number in range(300):
            await bus.publish("slow", number, confirm=True)
        await bus.flush()
        assert await bus.holds() == [] if world.shell == "blocking" else bus.holds() == []
        numbers, lost = [], 0
        while not numbers or numbers[-1] != 299:
            item = await monitor.get(WAIT_S)
            if isinstance(item, ipcbus_client.Lost):
                lost += item.count
            elif isinstance(item, ipcbus_client.Seen):
                numbers.append(item.data)
        assert numbers == sorted(numbers)
        assert lost
        assert len(numbers) + lost == 300
        assert monitor.lost == lost
        for one in (bus, eye):
            await one.close()

    world.run(body)


def test_after_a_reconnect_it_goes_on(shell: str) -> None:
    async def body(world: World) -> None:
        bus, eye = await world.connect(), await world.connect()
        monitor = await eye.monitor("again", notices=True)
        await bus.publish("again", 1, confirm=True)
        assert (await monitor.get(WAIT_S)).data == 1
        world.kill()
        world.restart()
        await world.until(lambda: bus.epoch == eye.epoch == 1, "they did not come back")
        await bus.flush()
        await eye.flush()
        assert isinstance(await monitor.get(WAIT_S), ipcbus_client.Reconnected)
        await bus.publish("again", 2, confirm=True)
        assert (await monitor.get(WAIT_S)).data == 2
        assert (monitor.gaps, monitor.lost) == (1, 0)
        for one in (bus, eye):
            await one.close()

    with testing.FakeBus() as kit:
        Memory(shell, kit).run(body)


def test_the_policy_says_who_sees_what(shell: str) -> None:
    allowed = '[[rule]]\nallow = "monitor"\ntopics = "room.>"\n'
    others = '[[rule]]\nallow = ["connect", "publish"]\n'

    async def body(world: World) -> None:
        bus, eye = await world.connect(), await world.connect()
        with pytest.raises(ipcbus_client.Denied, match="monitor"):
            await eye.monitor()
        monitor = await eye.monitor("room.>")
        await bus.publish("room.safe.code", "hunter2", headers={"hint": "hunter2"}, confirm=True)
        seen = await monitor.get(WAIT_S)
        assert (seen.redacted, seen.size, seen.payload, seen.data, seen.headers) == (True, 8, None, None, {})
        kit.set_policy(others)
        with pytest.raises(ipcbus_client.Denied):
            await monitor.get(WAIT_S)
        assert monitor.closed
        kit.set_policy(allowed + others)
        monitor = await eye.monitor("room.>")
        await bus.publish("room.safe.code", "hunter2", confirm=True)
        assert (await monitor.get(WAIT_S)).data == "hunter2"  # nothing is redacted any more
        for one in (bus, eye):
            await one.close()

    with testing.FakeBus(policy=allowed + others + '[redact]\ntopics = ["room.safe.>"]\n') as kit:
        Memory(shell, kit).run(body)


# --- ipcbus monitor ---------------------------------------------------------------------------------------

#: What the policy of the bus below says about monitors.
POLICY = """
[redact]
topics = ["secret.>"]
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningDaemon]:
    """A bus whose policy redacts; no test changes it."""
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as path:
        directory = Path(path)
        (directory / "policy.toml").write_text(POLICY)
        daemon = RunningDaemon(directory, ["--policy-file", f"{path}/policy.toml"])
        yield daemon
        daemon.finish()


@pytest.fixture
def cli(guarded: RunningDaemon) -> Iterator[Cli]:
    runner = Cli(guarded)
    yield runner
    runner.finish()


def test_a_person_sees_what_goes_on(cli: Cli) -> None:
    words = ("monitor", "room.>", "secret.>", "--kind", "publish", "--kind", "error", "--count", "3")
    children = [cli.start(*words), cli.start(*words, "--json", "--no-payloads")]
    with ipcbus_client.connect(cli.address, program="sens\x1b[2Jor") as bus:
        wait_until(lambda: bus.stats()["monitors"] == 4, "they do not monitor", WAIT_S)
        bus.publish("room.x", {"t": "\x1b[2J"}, confirm=True)
        bus.publish("secret.key", "hunter2", headers={"hint": "hunter2"}, confirm=True)
        with pytest.raises(ipcbus_client.NoSuchName):
            bus.request("room.nobody/do", timeout=WAIT_S)
        me = rf":{bus.peer_id} \(sens\\u001b\[2Jor\)"
        outputs = [child.communicate(timeout=WAIT_S) for child in children]
    assert [(child.returncode, errors) for child, (_, errors) in zip(children, outputs, strict=True)] == [(0, b"")] * 2
    text, objects = (out.decode() for out, _ in outputs)
    assert "hunter2" not in text + objects
    expected = [
        rf'publish  {me} -> room\.x  \{{"t": "\\u001b\[2J"\}}',
        rf"publish  {me} -> secret\.key  \(8 bytes, redacted\)",
        rf"error    bus -> :{bus.peer_id}  #\d+  of room\.nobody/do  no_such_name: .*room\.nobody.*",
    ]
    for line, pattern in zip(sorted(text.splitlines(), key=lambda line: line[:14]), expected, strict=True):
        assert re.fullmatch(r" *\d+\.\d{6}  " + pattern, line), line
    shown = sorted(map(json.loads, objects.splitlines()), key=lambda item: item["at_s"])
    assert [(item["kind"], item["size"], item["redacted"]) for item in shown] == [
        ("publish", 8, False), ("publish", 8, True), ("error", 0, False),
    ]  # fmt: skip
    assert not any("data" in item for item in shown)


def test_it_ends_when_it_is_told_to(cli: Cli) -> None:
    assert cli("monitor", "--seconds", "0.2").returncode == 0
    done = cli("monitor", "--seconds", "0.2", "--count", "1", "nothing.here")
    assert (done.returncode, done.stdout) == (4, "")
    done = cli("monitor", "a..b")
    assert done.returncode == 2
    assert "a..b" in done.stderr
