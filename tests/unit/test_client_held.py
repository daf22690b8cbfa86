"""publish() while its topic is held, in both shells on the virtual clock: it waits, within the connect timeout, and all else goes on. The
notices are made by hand: what the bus says when is its own business, and tested with it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

import ipcbus_client
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode_with_payload
from ipcbus_client import OutboxFull, testing

SHELLS = pytest.mark.parametrize("shell", ["blocking", "aio"])


def notice(bus: Any, name: str, **about: Any) -> None:
    """Let *bus* read a NOTICE."""
    bus._session.receive(encode_with_payload(msgpack.packb(about), Kind.NOTICE, 0, name, None))
    bus._wire.push()


def hold(bus: Any, identity: int = 1, pattern: str = "slow") -> None:
    notice(bus, "hold", id=identity, pattern=pattern, group=None, peer=9, program="reader", bytes=1000)


def resume(bus: Any, identity: int = 1) -> None:
    notice(bus, "resume", id=identity)


def test_blocking_it_waits_until_resume_and_then_goes_out_in_order() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = other.subscribe(">")
        hold(bus)
        assert bus.holds() == [ipcbus_client.Hold("slow", None, 9, "reader", 1000, 0.0)]
        kit.call_later(3.0, lambda: resume(bus))
        for n in range(3):
            bus.publish("slow", n)
        assert kit.now == 3.0
        assert bus.holds() == []
        assert [sub.get().data for _ in range(3)] == [0, 1, 2]
        assert (bus.stats_local()["holds"], bus.stats_local()["held"], bus.stats_local()["held_s"]) == (1, 0, 3.0)


def test_aio_it_waits_until_resume_and_other_tasks_go_on() -> None:
    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(), await kit.aio_connect()
        sub = await other.subscribe(">")
        hold(bus)
        asyncio.get_running_loop().call_later(3.0, resume, bus)
        waiting = asyncio.create_task(bus.publish("slow", "held"))
        for n in range(3):
            await bus.publish("other", n)
        assert [(await sub.get()).data for _ in range(3)] == [0, 1, 2]
        assert kit.now < 1.0
        await waiting
        assert kit.now == pytest.approx(3.0)
        assert (await sub.get()).data == "held"

    testing.run(main)


def test_blocking_it_gives_up_after_the_connect_timeout_and_was_not_sent() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(timeout=4.0), kit.connect()
        sub = other.subscribe(">")
        hold(bus)
        for options in ({}, {"retain": True}, {"ttl": 60.0}, {"confirm": True}, {"headers": {"h": 1}}):
            before = kit.now
            with pytest.raises(OutboxFull, match="'slow' of :9 \\(reader\\)") as caught:
                bus.publish("slow", 1, **options)
            assert kit.now - before == pytest.approx(4.0)
            assert caught.value.hold is not None
            assert caught.value.hold.peer == 9
        bus.flush()
        with pytest.raises(ipcbus_client.Timeout):
            sub.get(1.0)
        assert bus.close() == (0, 0)


def test_aio_it_gives_up_after_the_connect_timeout_and_was_not_sent() -> None:
    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(timeout=4.0), await kit.aio_connect()
        sub = await other.subscribe(">")
        hold(bus)
        for options in ({}, {"retain": True}, {"ttl": 60.0}, {"confirm": True}, {"headers": {"h": 1}}):
            before = kit.now
            with pytest.raises(OutboxFull) as caught:
                await bus.publish("slow", 1, **options)
            assert kit.now - before == pytest.approx(4.0)
            assert caught.value.hold is not None
        await bus.flush()
        with pytest.raises(ipcbus_client.Timeout):
            await sub.get(1.0)
        assert await bus.close() == (0, 0)

    testing.run(main)


@pytest.mark.parametrize("options", [{}, {"retain": True}, {"ttl": 60.0}, {"headers": {"h": 1}}, {"confirm": True}])
def test_every_way_to_publish_goes_on_at_resume(options: dict[str, Any]) -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        kit.call_later(2.0, lambda: resume(bus))
        assert bus.publish("slow", 1, **options) == (1 if "confirm" in options else None)
        assert kit.now == 2.0
        assert sub.get(1.0).data == 1

    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(), await kit.aio_connect()
        sub = await other.subscribe("slow")
        hold(bus)
        asyncio.get_running_loop().call_later(2.0, resume, bus)
        assert await bus.publish("slow", 1, **options) == (1 if "confirm" in options else None)
        assert kit.now == pytest.approx(2.0)
        assert (await sub.get(1.0)).data == 1

    testing.run(main)


def test_with_raise_it_says_at_once_who_holds() -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect(outbox="raise")
        hold(bus)
        for options in ({}, {"confirm": True}, {"retain": True}):
            with pytest.raises(OutboxFull) as caught:
                bus.publish("slow", 1, **options)
            assert caught.value.hold == bus.holds()[0]
        assert kit.now == 0.0

    async def main(kit: testing.FakeBus) -> None:
        bus = await kit.aio_connect(outbox="raise")
        hold(bus)
        for options in ({}, {"confirm": True}, {"retain": True}):
            with pytest.raises(OutboxFull) as caught:
                await bus.publish("slow", 1, **options)
            assert caught.value.hold == bus.holds()[0]
        assert kit.now == 0.0

    testing.run(main)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_an_outbox_that_drops_never_waits_except_to_confirm(policy: str) -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(outbox=policy, outbox_messages=3), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        for n in range(10):
            bus.publish("slow", n)
        assert kit.now == 0.0
        assert bus.stats_local()["outbox_dropped"] == 7
        kit.call_later(2.0, lambda: resume(bus))
        assert bus.publish("slow", "last", confirm=True) == 1
        assert kit.now == 2.0
        assert [sub.get(1.0).data for _ in range(4)] == [*((7, 8, 9) if policy == "drop_oldest" else (0, 1, 2)), "last"]


def test_flush_waits_for_what_is_kept() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(outbox="drop_oldest"), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        bus.publish("slow", 1)
        with pytest.raises(ipcbus_client.Timeout, match="1 messages wait in the outbox, because their topics are held by the subscription"):
            bus.flush(1.0)
        kit.call_later(2.0, lambda: resume(bus))
        bus.flush()
        assert kit.now == 3.0
        assert sub.get(0).data == 1

    async def main(kit: testing.FakeBus) -> None:
        bus = await kit.aio_connect(outbox="drop_oldest")
        hold(bus)
        await bus.publish("slow", 1)
        with pytest.raises(ipcbus_client.Timeout, match="held by"):
            await bus.flush(1.0)
        asyncio.get_running_loop().call_later(2.0, resume, bus)
        await bus.flush()
        assert kit.now == pytest.approx(3.0)

    testing.run(main)


def test_flush_ends_with_the_bus_while_it_waits_for_what_is_kept() -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect(timeout=None, reconnect=False, outbox="drop_oldest")
        hold(bus)
        bus.publish("slow", 1)
        kit.call_later(1.0, lambda: kit.drop(bus))
        with pytest.raises(ipcbus_client.ConnectionLost):
            bus.flush(None)
        assert kit.now == pytest.approx(1.0)

    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(outbox="drop_oldest"), await kit.aio_connect()
        sub = await other.subscribe("slow")
        hold(bus)
        await bus.publish("slow", 1)
        kit.call_later(1.0, lambda: kit.drop(bus))
        await bus.flush()
        assert (await sub.get(0.0)).data == 1  # after a reconnect, for which it waited

    testing.run(main)


def test_blocking_a_held_publish_in_a_handler_lends_its_thread() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = other.subscribe("slow")
        bus.respond("svc/publish", lambda request: bus.publish("slow", request.data))
        bus.respond("svc/echo", lambda request: request.data)
        hold(bus)
        echoed: list[Any] = []
        kit.call_later(2.0, lambda: echoed.append((other.request("svc/echo", "while held"), kit.now)))
        kit.call_later(4.0, lambda: resume(bus))
        other.request("svc/publish", 1)
        assert echoed == [("while held", 2.0)]
        assert kit.now == 4.0
        assert sub.get(0).data == 1


def test_a_reconnect_ends_it() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        kit.call_later(1.0, lambda: kit.drop(bus))
        bus.publish("slow", 1)
        assert 1.0 <= kit.now < 3.0
        assert bus.holds() == []
        assert sub.get(5.0).data == 1


def test_one_that_is_confirmed_waits_for_the_next_connection_where_the_hold_ends_with_one() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        kit.call_later(1.0, lambda: kit.drop(bus))
        assert bus.publish("slow", 1, confirm=True) == 1
        assert sub.get(5.0).data == 1

    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(), await kit.aio_connect()
        sub = await other.subscribe("slow")
        hold(bus)
        kit.call_later(1.0, lambda: kit.drop(bus))
        assert await bus.publish("slow", 1, confirm=True) == 1
        assert (await sub.get(5.0)).data == 1

    testing.run(main)


@pytest.mark.parametrize("options", [{}, {"confirm": True}, {"retain": True}])
def test_the_end_of_the_bus_ends_it_with_what_ended_that(options: dict[str, Any]) -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect(timeout=None, reconnect=False)
        hold(bus)
        kit.call_later(1.0, lambda: kit.drop(bus))
        with pytest.raises(ipcbus_client.ConnectionLost):
            bus.publish("slow", 1, **options)
        assert kit.now == pytest.approx(1.0)

    async def main(kit: testing.FakeBus) -> None:
        bus = await kit.aio_connect(timeout=None, reconnect=False)
        hold(bus)
        kit.call_later(1.0, lambda: kit.drop(bus))
        with pytest.raises(ipcbus_client.ConnectionLost):
            await bus.publish("slow", 1, **options)
        assert kit.now == pytest.approx(1.0)

    testing.run(main)


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "drop_newest", "raise"])
def test_close_while_held_is_bounded_and_sends_what_waits(policy: str) -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(outbox=policy), kit.connect()
        sub = other.subscribe("slow")
        hold(bus)
        if policy.startswith("drop"):
            bus.publish("slow", 1)
        assert bus.close() == (0, 0)
        assert kit.now == 0.0
        if policy.startswith("drop"):
            assert sub.get(0).data == 1

    async def main(kit: testing.FakeBus) -> None:
        bus = await kit.aio_connect(outbox=policy)
        hold(bus)
        waits = policy == "block"
        held = asyncio.create_task(bus.publish("slow", 1)) if waits else None
        await asyncio.sleep(0)
        assert (await bus.close()).unsent == 0
        assert kit.now == pytest.approx(0.0)
        if held is not None:
            await held  # it went out, though after the fence

    testing.run(main)


def test_close_without_time_ends_the_wait_of_others() -> None:
    async def main(kit: testing.FakeBus) -> None:
        bus = await kit.aio_connect()
        hold(bus)
        held = asyncio.create_task(bus.publish("slow", 1))
        await asyncio.sleep(1.0)
        await bus.close(0)
        with pytest.raises(ipcbus_client.Closed):
            await held

    testing.run(main)


def test_cancelled_it_was_not_sent() -> None:
    async def main(kit: testing.FakeBus) -> None:
        bus, other = await kit.aio_connect(), await kit.aio_connect()
        sub = await other.subscribe("slow")
        hold(bus)
        for options in ({}, {"retain": True}, {"confirm": True}):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await bus.publish("slow", 1, **options)
        resume(bus)
        await bus.publish("slow", 2)
        assert (await sub.get(1.0)).data == 2
        assert bus.stats_local()["unsent_bytes"] == 0

    testing.run(main)


# --- with the broker itself ---

SMALL = Limits(lane_soft_bytes=20_000)


def test_a_reader_that_stalls_holds_for_its_budget_of_time_and_then_loses() -> None:
    with testing.FakeBus(limits=SMALL) as kit:
        bus, other = kit.connect(), kit.connect(program="reader")
        sub = other.subscribe("slow", window_bytes=1000, notices=True)
        for n in range(100):
            bus.publish("slow", b"x" * 1000, headers={"n": n})
            if n == 50:  # the bus has said what it thinks of it
                bus.flush()
        bus.flush()
        assert kit.now == pytest.approx(5.0, abs=0.1)
        stats = bus.stats_local()
        assert (stats["holds"], stats["held"], round(stats["held_s"])) == (1, 0, 5)
        assert [line for line in kit.log if "holds its publishers" in line]
        stream: list[Any] = []
        while not stream or not isinstance(stream[-1], ipcbus_client.CaughtUp):
            stream.append(sub.get(1.0))
        seen = [item.headers["n"] for item in stream if isinstance(item, ipcbus_client.Message)]
        assert (seen[0], seen[-1], sub.lost) == (0, 99, 100 - len(seen))
        assert [item.dropping for item in stream if isinstance(item, ipcbus_client.Lagging)][-1]
        assert not bus.holds()


def test_a_handler_calls_while_its_own_lane_is_full_and_asks_who_waits_for_it() -> None:
    with testing.FakeBus(limits=SMALL) as kit:
        bus, other = kit.connect(), kit.connect()
        bus.respond("pub/echo", lambda request: request.data)
        bus.respond("pub/produce", lambda request: [bus.publish("slow", b"x" * 1000, headers={"n": n}) for n in range(100)] and None)
        seen: list[Any] = []

        def handle(message: Any) -> None:
            n = message.headers["n"]
            while not n and not bus.holds():
                other.ping()
            seen.append(other.request("pub/echo", n))

        other.subscribe("slow", handle, window_bytes=1000)
        kit.connect().request("pub/produce", timeout=60.0)
        kit.advance(1.0)
        assert seen == list(range(100))
        assert bus.stats_local()["holds"] >= 1


@SHELLS
def test_subscribe_takes_policy_and_limits(shell: str) -> None:
    said: list[Any] = []

    def watch(bus: Any) -> None:
        put = bus._session.put_request

        def put_request(call: Any, meta: Any, payload: bytes, *more: Any) -> None:
            said.append(msgpack.unpackb(payload))
            put(call, meta, payload, *more)

        bus._session.put_request = put_request

    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ValueError, {"policy": "drop"}), (TypeError, {"limits": 5}), (ValueError, {"policy": "disconnect", "group": "g"}),
    ]  # fmt: skip
    if shell == "blocking":
        with testing.FakeBus() as kit:
            bus = kit.connect()
            watch(bus)
            for error, options in wrong:
                with pytest.raises(error):
                    bus.subscribe("t", **options)
            bus.subscribe("t", policy="latest", limits=ipcbus_client.Limits(soft=5))
    else:

        async def main(kit: testing.FakeBus) -> None:
            bus = await kit.aio_connect()
            watch(bus)
            for error, options in wrong:
                with pytest.raises(error):
                    await bus.subscribe("t", **options)
            await bus.subscribe("t", policy="latest", limits=ipcbus_client.Limits(soft=5))

        testing.run(main)
    assert [(arguments["policy"], arguments["limits"]) for arguments in said if "policy" in arguments] == [("latest", {"soft": 5})]
