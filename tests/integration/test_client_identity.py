"""Who sent it, in both shells, on the bus in memory and on a real daemon: the sender of everything that has one (I-1 to I-4)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import Credentials, testing
from tests.conftest import DaemonFactory
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


def this_process(program: str) -> Credentials:
    return Credentials("unix", program, os.getpid(), os.getuid(), os.getgid(), tuple(sorted(os.getgroups())), "", "", "")


def known(sender: Any) -> Credentials:
    """What is known of *sender*, without what the machine on which this runs decides."""
    assert sender.credentials is not None
    return sender.credentials._replace(unit="", user_unit="")  # type: ignore[no-any-return]


def test_the_sender_of_everything_that_has_one(world: World) -> None:
    async def body(world: World) -> None:
        lamp, panel = await world.connect(program="lamp", name="id.lamp"), await world.connect(program="panel")
        sub = await panel.subscribe("id.>")
        await lamp.publish("id.a", 1)
        await lamp.publish("id.kept", 2, retain=True, confirm=True)
        for _ in range(2):
            message = await sub.get(WAIT_S)
            assert (message.sender, known(message.sender)) == (lamp.peer_id, this_process("lamp"))
        assert await panel.identity(int(message.sender)) == message.sender.credentials
        assert known((await panel.get("id.kept")).sender) == this_process("lamp")

        asked: list[Any] = []

        def who(request: Any) -> int:
            asked.append((request.sender, known(request.sender)))
            return int(request.sender)

        await lamp.respond("id.lamp/who", who)
        assert await panel.request("id.lamp/who") == panel.peer_id
        assert asked == [(panel.peer_id, this_process("panel"))]
        (answer,) = await panel.request_all("id.*/who")
        assert (answer.peer, known(answer.peer)) == (lamp.peer_id, this_process("lamp"))

        inbox = await lamp.inbox()
        await panel.send(f":{lamp.peer_id}", "hello")
        assert known((await inbox.get(WAIT_S)).sender) == this_process("panel")
        await inbox.close()
        mine = await lamp.subscribe("id.mine")
        await lamp.publish("id.mine", 1)
        assert known((await mine.get(WAIT_S)).sender) == this_process("lamp")

        named = await panel.subscribe("$bus.names.id.new")
        await lamp.own("id.new")
        told = await named.get(WAIT_S)
        assert (told.sender, told.sender.credentials) == (0, None)
        for nobody in (0, 10**9):
            with pytest.raises(ipcbus_client.NoSuchPeer):
                await panel.identity(nobody)
        peer = lamp.peer_id
        await lamp.close()
        late = await world.connect()
        kept = await late.get("id.kept")
        assert (kept.sender, known(kept.sender)) == (peer, this_process("lamp"))  # though it has gone
        await late.publish("id.kept", b"", retain=True, confirm=True)
        await late.close()
        await panel.close()

    world.run(body)


def test_after_a_restart_a_message_keeps_its_sender_and_new_ones_have_theirs(world: World) -> None:
    async def body(world: World) -> None:
        lamp, panel = await world.connect(program="lamp"), await world.connect(program="panel")
        sub = await panel.subscribe("id.>")
        await lamp.publish("id.a", 1)
        await lamp.flush()
        await panel.flush()  # it is here, and not looked at
        world.restart()
        await world.until(lambda: lamp.epoch == panel.epoch == 1, "they did not come back")
        await panel.publish("id.b", 2)
        await panel.flush()
        await lamp.publish("id.c", 3)
        before, of_panel, of_lamp = [await sub.get(WAIT_S) for _ in range(3)]
        assert [message.data for message in (before, of_panel, of_lamp)] == [1, 2, 3]
        assert [known(message.sender).program for message in (before, of_panel, of_lamp)] == ["lamp", "panel", "lamp"]
        await lamp.close()
        await panel.close()

    world.run(body)


def test_on_tcp_it_is_the_secret_that_was_proved(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(listen=["tcp:127.0.0.1:0"])
    with (
        ipcbus_client.connect(daemon.address, secret_file=daemon.secret_file, program="panel") as panel,
        ipcbus_client.connect(daemon.address, secret_file=daemon.secret_file) as other,
    ):
        sub = other.subscribe("id.>")
        panel.publish("id.a", 1)
        sender = sub.get(WAIT_S).sender
        assert sender.credentials == Credentials("tcp", "panel", None, None, None, (), "", "", "default")
        assert other.identity(int(sender)) == sender.credentials
