"""Typed payloads through a real bus, in both shells: dataclasses, moments and buffers, in and out."""

from __future__ import annotations

import array
import dataclasses
import datetime

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon
from tests.integration.test_client_shells import WAIT_S, Connect, connect, run, until

__all__ = ["connect"]  # the fixture of both shells


@dataclasses.dataclass
class Reading:
    room: str
    celsius: float
    at: datetime.datetime
    tags: set[str] = dataclasses.field(default_factory=set)


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
READING = Reading("hall", 21.5, NOW, {"new"})


def test_dataclasses_in_and_out(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        await bus.publish("r.kept", READING, retain=True)
        sub = await bus.subscribe("r.>", type=Reading)
        untyped = await bus.subscribe("r.>")
        called: list[Reading] = []
        await bus.subscribe("r.>", lambda message: called.append(message.data), type=Reading)
        await bus.publish("r.wrong", {"room": "hall", "celsius": "warm"})
        await bus.publish("r.burst", READING)
        await bus.publish("r.burst", {"room": "hall", "celsius": 3, "at": NOW, "more": 1})
        assert (await sub.get(WAIT_S)).data == READING
        wrong = await sub.get(WAIT_S)
        with pytest.raises(ipcbus_client.PayloadError, match=r"^\$\.celsius: expected float, got str 'warm'$") as caught:
            _ = wrong.data
        assert caught.value.who == "r.wrong"
        assert wrong.topic == "r.wrong"
        assert (await sub.get(WAIT_S)).data == READING
        assert (await sub.get(WAIT_S)).data == Reading("hall", 3.0, NOW)
        kept = await untyped.get(WAIT_S)
        assert kept.data["room"] == "hall"
        assert kept.as_type(Reading) == READING
        await until(lambda: len(called) == 3)  # the wrong one is logged, and the next ones come
        with pytest.raises(TypeError, match="no type that a payload can become"):
            await bus.subscribe("r.>", type=object.__new__)
        await bus.close()

    run(body())


def test_requests_with_a_type(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        asker = await connect(daemon.address)
        await bus.respond("svc/reading", lambda request: READING)
        await bus.respond("svc/wrong", lambda request: {"room": 1})
        await bus.respond("svc/values", lambda request: (value for value in "x"))
        await bus.respond("svc/bad", lambda request: {"value": object()})
        assert await asker.request("svc/reading", type=Reading) == READING
        with pytest.raises(ipcbus_client.PayloadError, match=r"^\$\.room: expected str, got int 1") as wrong:
            await asker.request("svc/wrong", type=Reading)
        assert wrong.value.who == "svc/wrong"
        with pytest.raises(ipcbus_client.PayloadError, match="expected int") as wrong:
            await (await asker.stream("svc/values", type=int)).get(WAIT_S)
        assert wrong.value.who == "svc/values"
        with pytest.raises(ipcbus_client.ServiceError, match=r"\$\.value: cannot pack object") as caught:
            await asker.request("svc/bad")
        assert caught.value.code == "PayloadError"
        with pytest.raises(TypeError):
            await asker.request("svc/reading", type=complex)
        await asker.close()
        await bus.close()

    run(body())


def test_buffers_arrive_as_their_bytes(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("b", type=memoryview)
        changing = bytearray(b"before")
        for value in (changing, memoryview(b"view"), array.array("B", b"array"), memoryview(b"0123456789")[::3], b""):
            await bus.publish("b", value)
        changing[:] = b"after!"
        found = [bytes((await sub.get(WAIT_S)).data) for _ in range(5)]
        assert found == [b"before", b"view", b"array", b"0369", b""]
        with pytest.raises(ipcbus_client.PayloadError, match=r"^\$\.rooms\[3\]\.sensor: cannot pack object$"):
            await bus.publish("b", {"rooms": [1, 2, 3, {"sensor": object()}]})
        await bus.close()

    run(body())


def test_large_typed_messages(connect: Connect, daemon: RunningDaemon) -> None:
    async def body() -> None:
        bus = await connect(daemon.address)
        sub = await bus.subscribe("big", type=list[str])
        await bus.publish("big", ["x" * 1000] * 2000)
        await bus.publish("big", ["y"] * 600_000)
        await bus.publish("big", [None] * 1_000_001)
        assert (await sub.get(WAIT_S)).data == ["x" * 1000] * 2000
        assert len((await sub.get(WAIT_S)).data) == 600_000
        with pytest.raises(ipcbus_client.PayloadError, match="more than 1000000 elements") as caught:
            _ = (await sub.get(WAIT_S)).data
        assert caught.value.who == "big"
        await bus.close()

    run(body())
