"""The test kit's clients as other users, groups and units (FakeBus.acting_as)."""

from __future__ import annotations

import os
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import testing


def who(sender: ipcbus_client.Sender) -> dict[str, Any]:
    assert sender.credentials is not None
    return sender.credentials._asdict()


def test_clients_are_this_process_unless_they_act_as_others() -> None:
    with testing.FakeBus() as kit:
        door = kit.connect(name="door")
        door.respond("door/who", lambda request: who(request.sender))
        mine = kit.connect(program="me").request("door/who")
        assert (mine["pid"], mine["uid"], mine["gid"], mine["groups"]) == (os.getpid(), os.getuid(), os.getgid(), sorted(os.getgroups()))
        with kit.acting_as(uid=1000, unit="lights.service"):
            lights = kit.connect()
            with kit.acting_as(pid=77, groups=(4, 27), user_unit="panel.service"):
                panel = kit.connect()
        asked = lights.request("door/who")
        assert asked == mine | {"program": asked["program"], "uid": 1000, "unit": "lights.service"}
        asked = panel.request("door/who")
        assert (asked["pid"], asked["uid"], asked["groups"], asked["unit"]) == (77, 1000, [4, 27], "lights.service")
        assert asked["user_unit"] == "panel.service"
        kit.drop(lights)
        kit.advance(5)
        assert lights.request("door/who")["uid"] == 1000, "also on its next connection"
        assert kit.connect().request("door/who")["uid"] == os.getuid()
        with pytest.raises(TypeError), kit.acting_as(user="alice"):
            pass


def test_in_asyncio_it_is_who_acted_where_connect_was_called() -> None:
    async def main(kit: testing.FakeBus) -> None:
        door = await kit.aio_connect(name="door")
        await door.respond("door/who", lambda request: who(request.sender)["uid"])
        with kit.acting_as(uid=1000):
            later = kit.aio_connect()
        panel = await later
        assert await panel.request("door/who") == 1000
        assert await (await kit.aio_connect()).request("door/who") == os.getuid()

    testing.run(main)
