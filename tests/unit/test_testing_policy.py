"""A policy on the bus in memory, in both shells: what a program sees that may not, or may not any more (P-2, P-8)."""

from __future__ import annotations

import grp
import pwd
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import testing
from tests.scenarios import WAIT_S, Memory

POLICY = """
[[rule]]
deny = "subscribe"
uid = 1000
topics = ["secret.>"]
[[rule]]
allow = "*"
uid = 1000
[[rule]]
allow = ["own", "publish", "subscribe"]
names = ["%U.door"]
topics = ["door.>"]
"""
LESS = """
[[rule]]
allow = ["publish", "subscribe"]
topics = ["door.>"]
"""


@pytest.fixture(params=["blocking", "aio"])
def world(request: pytest.FixtureRequest) -> Any:
    with testing.FakeBus(policy=POLICY) as kit:
        yield Memory(request.param, kit)


def test_a_program_is_told_which_rule_denies_it(world: Memory) -> None:
    async def body(world: Any) -> None:
        with world.kit.acting_as(uid=1000):
            lights = await world.connect()
        with world.kit.acting_as(uid=2000):
            door = await world.connect()
        await door.own("2000.door")
        sub = await door.subscribe("door.*")
        await lights.publish("door.a", 1, confirm=True)
        assert (await sub.get(WAIT_S)).data == 1
        with pytest.raises(ipcbus_client.Denied) as caught:
            await lights.subscribe("*.key")
        assert caught.value.why.startswith("rule 1 of the policy, line 2 denies subscribe to '*.key', which would also match 'secret.key'")
        denied = {
            "own": door.own("1000.door"), "subscribe": door.subscribe("door"), "get": door.get("window"),
            "publish": door.publish("window", 1, confirm=True), "will": door.will("window"), "call": door.request("lights/on"),
        }  # fmt: skip
        for what, attempt in denied.items():
            with pytest.raises(ipcbus_client.Denied) as caught:
                await attempt
            assert "the default of a FakeBus" in caught.value.why, what
        await door.publish("window", 1)
        await door.flush()
        assert door.stats_local()["refused"] == 1 if world.shell == "aio" else (await door.stats_local())["refused"] == 1
        await lights.close()
        await door.close()

    world.run(body)


def test_what_is_revoked_ends_at_its_place(world: Memory) -> None:
    async def body(world: Any) -> None:
        with world.kit.acting_as(uid=1000):
            lights, other = await world.connect(name="lights"), await world.connect()
        await lights.respond("lights/on", lambda request: True)
        lost, kept = await lights.subscribe("a.>"), await lights.subscribe("door.>")
        called: list[Any] = []
        calls = await lights.subscribe("a.b", called.append)
        await lights.will("a.will", 1)
        watch, monitor = await lights.watch("a.>"), await lights.monitor("a.>", kinds=["publish"])
        await other.publish("a.b", 1)
        await other.publish("door.a", 2)
        await other.flush()
        world.kit.set_policy(LESS)
        await other.publish("door.b", 3)
        await other.flush()
        await lights.flush()
        assert (await lost.get(WAIT_S)).data == 1
        assert (await monitor.get(WAIT_S)).to == "a.b"
        for nothing_more in (lost.get(WAIT_S), watch.get(WAIT_S), monitor.get(WAIT_S), _last(lost)):
            with pytest.raises(ipcbus_client.Denied) as caught:
                await nothing_more
            assert (caught.value.who, caught.value.what) == ("a.>", "get")
            assert "the default of a FakeBus" in caught.value.why
        assert [(await kept.get(WAIT_S)).data for _ in range(2)] == [2, 3]
        assert [message.data for message in called] == [1]
        assert calls.inner.closed if world.shell == "blocking" else calls.closed
        world.kit.set_policy(None)
        with pytest.raises(ipcbus_client.NoSuchName):
            await other.request("lights/on")
        assert len([line for line in world.kit.log if "loses" in line]) == 6
        world.restart()
        await world.until(lambda: lights.epoch == other.epoch == 1, "they did not come back")
        await lights.flush()
        assert await other.names() == []  # what was revoked is not declared again
        assert [item["pattern"] for item in (await other.request("bus/patterns"))["items"]] == ["door.>"]
        for what in (lost, calls, watch, monitor, lights, other):
            await what.close()

    world.run(body)


async def _last(sub: Any) -> None:
    """Iterates over what is left."""
    async for _ in sub:
        raise AssertionError("there is more")


def test_a_denied_declaration_is_not_said_again_after_a_reconnect(world: Memory) -> None:
    async def body(world: Any) -> None:
        with world.kit.acting_as(uid=1000):
            lights = await world.connect(name="lights")
        await lights.respond("lights/on", lambda request: True)
        sub = await lights.subscribe("a.>")
        world.kit.kill()
        world.kit.set_policy(LESS)
        world.restart()
        await world.until(lambda: lights.epoch == 1, "it did not come back")
        with pytest.raises(ipcbus_client.Denied, match="the default of a FakeBus"):
            await sub.get(WAIT_S)
        world.kit.set_policy(None)
        await world.sleep(30)
        assert await lights.names() == []
        await lights.close()

    world.run(body)


def test_who_may_not_connect_any_more_is_at_its_end(world: Memory) -> None:
    async def body(world: Any) -> None:
        with world.kit.acting_as(uid=1000):
            lights = await world.connect()
            world.kit.set_policy('[[rule]]\ndeny = "connect"\nuid = 1000')
            await world.until(lambda: lights.state.value == "closed", "it was not told")
            for attempt in (lights.publish("a", 1), world.connect()):
                with pytest.raises(ipcbus_client.ConnectError, match="rule 1 of the policy, line 1 denies connect") as caught:
                    await attempt
                assert caught.value.reason == "refused"

    world.run(body)


def test_a_text_that_is_no_policy_is_refused_with_all_that_is_wrong() -> None:
    for wrong in ('[[rule]]\nallow = "fly"\n[[rule]]\nuid = "x"', '[[rule]]\nallow = "*"\nuser = "no-such-user-here"'):
        with pytest.raises(ValueError, match="rule 1 of the policy, line 1"):
            testing.FakeBus(policy=wrong)
    with testing.FakeBus() as kit:
        with pytest.raises(TypeError, match="the text of a policy file"):
            kit.set_policy(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not TOML"):
            kit.set_policy("[[rule]")
        kit.connect().publish("a", 1, confirm=True)


def test_names_of_users_and_groups_are_those_of_this_machine() -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    policy = f'[[rule]]\nallow = "own"\nuser = "{user}"\nnames = ["user.%u", "group.%g"]'
    with testing.FakeBus(policy=policy) as kit:
        with kit.acting_as(uid=0, gid=0):
            bus = kit.connect()
            assert bus.own(f"user.{user}")
            assert bus.own(f"group.{group}")
        for nobody in ({"uid": 0, "gid": 3_999_999_999}, {"uid": 3_999_999_999}):
            with kit.acting_as(**nobody), pytest.raises(ipcbus_client.Denied):
                kit.connect().own(f"group.{group}")  # (who may is told that it is taken)
