"""The test kit: its clock, its faults, what runs where, and what it says when nothing will ever come."""

from __future__ import annotations

import ast
import asyncio
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.limits import Limits
from ipcbus_client import aio, testing
from ipcbus_client.testing import _engine

CLIENT = Path(ipcbus_client.__file__).parent


def test_the_shells_ask_the_wire_for_the_time() -> None:
    """Else a test on the virtual clock would wait for the real one."""
    asks = {
        path.name
        for path in CLIENT.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.ImportFrom, ast.Import))
        and any(alias.name in ("monotonic", "time") and getattr(node, "module", None) in (None, "time") for alias in node.names)
    }
    asks -= {"__init__.py", "_starter.py"}  # the time of day of an error; processes, which have the real one
    assert asks == {"_wire_socket.py", "_loop_wire.py"}, "use bus._now() or wire.now() (DESIGN.md: replaceable by construction)"


# --- the clock ---


def test_a_timeout_takes_no_time_and_ends_at_its_deadline() -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect()
        sub = bus.subscribe("t")
        with pytest.raises(ipcbus_client.Timeout):
            sub.get(3600.0)
        assert kit.now == pytest.approx(3600.0)
        bus.respond("slow/never", lambda request: sub.get(1000))
        other = kit.connect()
        with pytest.raises(ipcbus_client.Expired):
            other.request("slow/never", timeout=7.0)


def test_what_is_to_happen_later_happens_at_its_time() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = bus.subscribe("t")
        kit.call_later(30, lambda: other.publish("t", "late"))
        kit.call_later(10, lambda: other.publish("t", "early"))
        assert [(sub.get().data, kit.now), (sub.get().data, kit.now)] == [("early", 10.0), ("late", 30.0)]
        seen: list[float] = []
        kit.call_later(5, lambda: seen.append(kit.now))
        kit.advance(4)
        assert not seen
        kit.advance(1)
        assert seen == [35.0]


def test_asyncio_sleeps_and_timeouts_are_instant_and_in_order() -> None:
    async def main(kit: testing.FakeBus) -> list[Any]:
        story: list[Any] = []

        async def at(seconds: float) -> None:
            await asyncio.sleep(seconds)
            story.append((seconds, kit.now))

        async with asyncio.TaskGroup() as group:
            for seconds in (3600, 5, 60):
                group.create_task(at(seconds))
        async with kit.aio_connect() as bus:
            sub = await bus.subscribe("t")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(100):
                    await sub.get()
            story.append(kit.now)
            assert await asyncio.to_thread(lambda: threading.current_thread() is not threading.main_thread())
            assert kit.now == 3700.0, "the clock stands while a thread works"
        return story

    assert testing.run(main) == [(5, 5.0), (60, 60.0), (3600, 3600.0), 3700.0]


def test_nothing_will_ever_come_is_said_and_not_waited_for() -> None:
    with testing.FakeBus(patience=600) as kit:
        bus = kit.connect()
        sub = bus.subscribe("t")
        with pytest.raises(testing.StuckError, match="nothing will ever come"):
            sub.get()
        with pytest.raises(testing.StuckError, match="nothing will ever come"):
            next(iter(sub))
        kit.kill()
        with pytest.raises(testing.StuckError, match="nothing will ever come"):
            sub.get()
        kit.restart()
        bus.publish("t", "it is still of use")
        assert sub.get(10).data == "it is still of use"


def test_nothing_will_ever_come_is_said_in_asyncio_with_the_place() -> None:
    async def main(kit: testing.FakeBus) -> None:
        async with kit.aio_connect() as bus:
            await (await bus.subscribe("t")).get()

    with pytest.raises(testing.StuckError, match=r"main waits in .*test_testing\.py:\d+"):
        testing.run(main, patience=600)


def test_a_kit_is_for_one_thread_and_says_so() -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect()
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                bus.flush()
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "for the thread that made it" in str(caught[0])


def test_a_loop_with_another_clock_is_refused() -> None:
    async def main() -> None:
        with testing.FakeBus() as kit, pytest.raises(RuntimeError, match="another clock"):
            await kit.aio_connect()

    asyncio.run(main())


def test_what_a_later_action_raises_comes_to_whoever_waits() -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect()
        kit.call_later(1, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bus.subscribe("t").get(5)
        assert bus.request("bus/stats")["peers"] == 1


def test_programs_that_answer_each_other_for_ever_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "STILL_MOVES", 10_000)
    with testing.FakeBus() as kit:
        ping, pong = kit.connect(), kit.connect()
        ping.subscribe("pong", lambda message: ping.publish("ping"))
        pong.subscribe("ping", lambda message: pong.publish("pong"))
        kit.advance(60)
        ping.publish("ping")
        with pytest.raises(testing.StuckError, match="time will never pass"):
            kit.run()


def test_the_same_seed_is_the_same_run() -> None:
    def story(seed: int) -> list[float]:
        with testing.FakeBus(seed=seed) as kit:
            bus, times = kit.connect(), []
            for epoch in (1, 2, 3):
                kit.drop(bus)
                while bus.epoch < epoch:
                    kit.advance(0.001)
                times.append(kit.now)
            return times

    assert story(1) == story(1)
    assert story(1) != story(2)


# --- what runs where ---


def test_callbacks_run_in_the_wait_of_whoever_waits_one_at_a_time_and_may_wait_themselves() -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        story: list[str] = []
        other.respond("echo/it", lambda request: request.data)

        def callback(message: ipcbus_client.Message) -> None:
            assert threading.current_thread() is threading.main_thread()
            story.append(f"{message.data} begins")
            assert bus.request("echo/it", message.data) == message.data
            story.append(f"{message.data} ends")

        bus.subscribe("t", callback)
        for n in range(3):
            other.publish("t", n)
        assert not story
        kit.run()
        assert story == [f"{n} {what}" for n in range(3) for what in ("begins", "ends")]
        assert kit.now == 0.0


def test_a_service_that_asks_itself_is_answered_within_its_own_wait() -> None:
    with testing.FakeBus() as kit:
        bus, user = kit.connect(), kit.connect()
        bus.respond("a/down", lambda request: request.data and 1 + bus.request("a/down", request.data - 1))
        assert user.request("a/down", 20) == 20
        assert kit.now == 0.0
        with pytest.raises(ipcbus_client.Expired):
            user.request("a/down", 1000)
        kit.advance(60)
        assert user.request("a/down", 3) == 3


def test_one_handler_at_a_time_unless_it_waits_or_there_is_a_concurrency() -> None:
    with testing.FakeBus() as kit:
        bus, other, user = kit.connect(), kit.connect(), kit.connect()
        elsewhere = other.subscribe("never")
        story: list[str] = []

        def slow(what: str) -> Any:
            def handle(item: Any) -> None:
                story.append(f"{what} {item.data} begins")
                with pytest.raises(ipcbus_client.Timeout):
                    elsewhere.get(1)  # no wait of the bus that it serves
                story.append(f"{what} {item.data} ends")

            return handle

        bus.subscribe("serial", slow("serial"))
        bus.subscribe("pool", slow("pool"), concurrency=2)
        bus.respond("a/pool", slow("request"), concurrency=3, key=lambda request: request.data)
        for n in range(3):
            user.publish("serial", n)
        kit.advance(10)
        assert story == [f"serial {n} {what}" for n in range(3) for what in ("begins", "ends")]
        story.clear()
        for n in range(4):
            user.publish("pool", n)
        kit.advance(10)
        assert story[:2] == ["pool 0 begins", "pool 1 begins"]
        assert sorted(story) == sorted(f"pool {n} {what}" for n in range(4) for what in ("begins", "ends"))
        story.clear()
        assert user.request("a/pool", 7) is None
        assert story == ["request 7 begins", "request 7 ends"]


def test_a_handler_sees_that_nobody_waits_any_more() -> None:
    with testing.FakeBus() as kit:
        bus, user = kit.connect(), kit.connect()
        seen: list[Any] = []

        def handle(request: ipcbus_client.Request) -> None:
            assert ipcbus_client.current_request() is request
            seen.append((request.wait_cancelled(1.0), kit.now))
            seen.append((request.wait_cancelled(), kit.now))

        bus.respond("a/b", handle)
        with pytest.raises(ipcbus_client.Expired):
            user.request("a/b", timeout=3.0)
        assert seen == [(False, 1.0), (True, 3.0)]
        assert ipcbus_client.current_request() is None


def test_a_callback_that_closes_its_own_bus_and_one_that_another_waits_for() -> None:
    with testing.FakeBus() as kit:
        bus, other, user = kit.connect(), kit.connect(), kit.connect()
        bus.subscribe("t", lambda message: bus.close())
        user.publish("t")
        kit.run()
        assert bus.state.value == "closed"
        assert kit.now == 0.0
        other.subscribe("u", lambda message: other.request("closer/now", timeout=60))
        user.respond("closer/now", lambda request: other.close(2.0))
        user.publish("u")
        kit.advance(10)
        assert other.state.value == "closed"


def test_wait_ends_with_what_a_handler_raised_or_when_nothing_will_come() -> None:
    with testing.FakeBus(patience=600) as kit:
        bus, user = kit.connect(), kit.connect()
        with pytest.raises(testing.StuckError):
            bus.wait()
        bus.subscribe("t", lambda message: 1 / message.data, errors="raise")
        kit.call_later(5, lambda: user.publish("t", 0))
        with pytest.raises(ZeroDivisionError):
            bus.wait()
        kit.call_later(5, user.close)
        user.wait()


def test_blocking_and_asyncio_clients_meet() -> None:
    async def main(kit: testing.FakeBus) -> None:
        service = kit.connect()
        service.respond("adder/add", lambda request: sum(request.data))
        async with kit.aio_connect() as bus:
            assert await bus.request("adder/add", [1, 2, 3]) == 6

    testing.run(main)


def test_code_that_connects_by_itself_is_led_to_the_kit() -> None:
    def program() -> float:
        with ipcbus_client.connect(name="thermostat") as bus, ipcbus_client.connect("tcp:127.0.0.1:4222", secret_file="none") as other:
            return float(bus.request("sensor/read") + other.request("sensor/read")) / 2

    async def aprogram() -> float:
        async with aio.connect("unix:/run/of/no/interest.sock", name="thermostat") as bus:
            return float(await bus.request("sensor/read"))

    with testing.FakeBus() as kit, kit.patched():
        sensor = kit.connect()
        sensor.respond("sensor/read", lambda request: 21.5)
        assert program() == 21.5
        assert kit.run_async(aprogram()) == 21.5
    with pytest.raises(ipcbus_client.ConnectError):
        ipcbus_client.connect("unix:/nonexistent/bus.sock", timeout=0)


def test_limits_of_the_bus_can_be_chosen_and_what_it_logs_is_kept() -> None:
    with testing.FakeBus(limits=Limits(max_peers=1)) as kit:
        kit.connect()
        with pytest.raises(ipcbus_client.ConnectError):
            kit.connect(timeout=1)


# --- faults, in both shells ---


def both(body: Any) -> None:
    """Run *body*(kit, connect, sleep) with the blocking and the asyncio shell; both are awaited."""
    from tests.scenarios import Memory

    for shell in ("blocking", "aio"):
        with testing.FakeBus() as kit:
            Memory(shell, kit).run(body)


def test_a_dropped_connection_comes_back_and_what_was_on_its_way_is_lost() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus, other = await world.connect(), await world.connect()
        sub = await bus.subscribe("t")
        kit.delay(1.0)
        await other.publish("t", "on its way")
        await world.sleep(1.5)
        kit.drop(getattr(bus, "inner", bus))
        kit.delay(0)
        await world.until(lambda: bus.state.value == "connected" and bus.epoch == 1, "it did not come back")
        await other.publish("t", "after")
        assert (await sub.get(10)).data == "after"
        assert sub.gaps == 1

    both(body)


def test_a_stalled_connection_goes_on_later_and_harms_nobody_else() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus, third, other = await world.connect(heartbeat=0), await world.connect(), await world.connect()
        sub, free = await bus.subscribe("t"), await third.subscribe("t")
        kit.stall(getattr(bus, "inner", bus), 8)
        begun = kit.now
        await other.publish("t", 1)
        assert (await free.get(1)).data == 1
        assert kit.now == begun
        assert (await sub.get(100)).data == 1
        assert kit.now == pytest.approx(begun + 8)
        assert bus.epoch == 0

    both(body)


def test_a_heartbeat_notices_a_connection_that_is_stalled_for_long() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus = await world.connect(heartbeat=2.0)
        sub = await bus.subscribe("t")
        await world.sleep(1000)
        assert bus.epoch == 0
        kit.stall(getattr(bus, "inner", bus), 3600)
        await world.sleep(20)
        assert (bus.epoch, bus.state.value, sub.gaps) == (1, "connected", 1)

    both(body)


def test_what_a_stalled_connection_leaves_behind_does_not_undo_what_came_after_it() -> None:
    """H-13, as with a real daemon: the session's new connection ends the old one, whose will comes first."""

    async def body(world: Any) -> None:
        bus, other = await world.connect(heartbeat=2.0), await world.connect()
        sub = await other.subscribe("presence")
        await bus.will("presence", "gone", retain=True)
        await bus.publish("presence", "here", retain=True)
        await bus.flush()
        world.kit.stall(getattr(bus, "inner", bus), 60)
        await world.sleep(20)
        assert bus.epoch == 1
        await bus.publish("presence", "back", retain=True)
        await bus.flush()
        await world.sleep(100)
        assert [(await sub.get(1)).data for _ in range(4)] == ["here", "gone", "here", "back"]
        assert (await other.get("presence")).data == "back"

    both(body)


def test_a_delay_is_for_each_direction_of_one_or_all() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus, other = await world.connect(), await world.connect()
        kit.delay(0.25, getattr(bus, "inner", bus))
        begun = kit.now
        await other.ping()
        assert kit.now == pytest.approx(begun)
        assert await bus.ping() == pytest.approx(0.5)
        kit.delay(0.1)
        assert await other.ping() == pytest.approx(0.2)
        assert await (await world.connect()).ping() == pytest.approx(0.2)
        kit.delay(0)
        assert await bus.ping() == pytest.approx(0.0)

    both(body)


def test_a_publication_arrives_twice_only_where_it_was_asked_for() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus, other = await world.connect(), await world.connect()
        sub = await bus.subscribe(">")
        kit.duplicate("room.*")
        kit.duplicate(bus=getattr(bus, "inner", bus))
        for who, topic in ((other, "x"), (other, "room.a"), (other, "room.a"), (bus, "y"), (bus, "y")):
            await who.publish(topic, topic)
            await who.flush()
        got = [(await sub.get(1)).topic for _ in range(7)]
        assert got == ["x", "room.a", "room.a", "room.a", "y", "y", "y"]
        with pytest.raises(ipcbus_client.Timeout):
            await sub.get(1)
        kit.duplicate("confirmed")
        assert await bus.publish("confirmed", 1, confirm=True) == 1
        assert [(await sub.get(1)).topic for _ in range(2)] == ["confirmed"] * 2
        assert await bus.publish("confirmed", 2, confirm=True) == 1

    both(body)


def test_a_will_is_published_when_the_connection_is_dropped() -> None:
    async def body(world: Any) -> None:
        bus, other = await world.connect(reconnect=False), await world.connect()
        sub = await other.subscribe("presence.*")
        await bus.will("presence.hall", "gone")
        world.kit.drop(getattr(bus, "inner", bus))
        assert (await sub.get(1)).data == "gone"
        await world.until(lambda: bus.state.value == "closed", "it was not closed")

    both(body)


@pytest.mark.parametrize("size", [0, 1, 100_000, 300_000, 1_000_000])
def test_frames_of_every_size_go_through_the_pipes_and_are_found_in_them(size: int) -> None:
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = bus.subscribe("t", window_bytes=8 * 1024 * 1024)
        kit.duplicate("t.end")
        for n in range(5):
            other.publish("t", bytes([n]) * size)
        assert [sub.get(1).data for _ in range(5)] == [bytes([n]) * size for n in range(5)]


def test_who_does_not_read_loses_by_the_contract_and_on_the_virtual_clock() -> None:
    async def body(world: Any) -> None:
        bus, slow = await world.connect(), await world.connect()
        sub = await slow.subscribe("t", window_bytes=65_536)
        begun = world.kit.now
        for _ in range(100):
            await bus.publish("t", b"x" * 100_000)
        await bus.flush(60)
        assert world.kit.now - begun >= 5.0, "publishers are held for the stall time (L-7)"
        await bus.publish("t", "the last")
        got = 0
        while (await sub.get(1)).data != "the last":
            got += 1
        assert sub.lost > 0
        assert got + sub.lost == 100

    both(body)


def test_a_stop_in_order_is_told_and_a_bus_that_is_away_is_away() -> None:
    async def body(world: Any) -> None:
        kit = world.kit
        bus = await world.connect()
        kit.stop()
        assert not kit.running
        await world.until(lambda: bus.state.value == "reconnecting", "the stop was not seen")
        await world.sleep(30)
        assert bus.state.value == "reconnecting"
        kit.restart()
        await world.until(lambda: bus.state.value == "connected", "it did not come back")
        assert kit.running

    both(body)


def test_faults_of_what_is_not_connected_are_refused() -> None:
    with testing.FakeBus() as kit, testing.FakeBus() as other:
        with pytest.raises(ValueError, match="is not connected to this FakeBus"):
            kit.drop(other.connect())
        bus = kit.connect()
        bus.close()
        with pytest.raises(ValueError, match="is not connected to this FakeBus"):
            kit.stall(bus, 1)


@pytest.mark.parametrize("wrong", ["1", None, True])
def test_what_is_no_duration_or_bus_is_told_where_it_is_given(wrong: Any) -> None:
    with testing.FakeBus() as kit:
        bus = kit.connect()
        calls: list[Callable[[Any], object]] = [
            kit.advance,
            kit.delay,
            lambda seconds: kit.stall(bus, seconds),
            lambda seconds: kit.call_later(seconds, print),
            lambda seconds: testing.FakeBus(patience=seconds),
        ]
        for call in calls:
            with pytest.raises(TypeError, match="no number of seconds"):
                call(wrong)
            for seconds in (-1, math.nan, math.inf):
                with pytest.raises(ValueError, match="no number of seconds from 0 on"):
                    call(seconds)
        faults: list[Callable[[Any], object]] = [
            kit.drop,
            lambda bus: kit.stall(bus, 1),
            lambda bus: kit.delay(1, bus or 3),
            lambda bus: kit.duplicate(None, bus or 3),
        ]
        for fault in faults:
            with pytest.raises(TypeError, match="no bus object"):
                fault(wrong)
        with pytest.raises(TypeError, match="a later action is a function"):
            kit.call_later(1, wrong)
        with pytest.raises(ipcbus_client.BadName, match="pattern"):
            kit.duplicate("a b")
        with pytest.raises(TypeError, match="limits="):
            testing.FakeBus(limits=wrong or 3)
        kit.advance(10)  # nothing of it is left


def test_an_action_that_fails_at_the_end_ends_the_kit_all_the_same() -> None:
    kit = testing.FakeBus()
    bus = kit.connect()
    kit.call_later(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kit.close()
    assert not kit.running
    assert bus.state.value == "closed"


# --- the end ---


def test_closing_the_kit_closes_all_and_leaves_nothing() -> None:
    before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    with testing.FakeBus() as kit:
        bus, other = kit.connect(), kit.connect()
        sub = bus.subscribe("t", lambda message: None)
        bus.respond("a/b", lambda request: None)
        other.close()
        kit.drop(bus)
    assert (bus.state.value, sub.closed) == ("closed", True)
    kit.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


def test_a_bus_that_was_left_open_in_asyncio_is_closed_with_the_kit() -> None:
    buses = []

    async def main(kit: testing.FakeBus) -> None:
        buses.append(await kit.aio_connect())

    testing.run(main)
    assert buses[0].state.value == "closed"


def test_the_plugin_is_light_and_registered() -> None:
    code = "import sys, ipcbus_client.testing.plugin; print([name for name in sys.modules if name.startswith('ipcbus.broker')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nipcbus = "ipcbus_client.testing.plugin"\n' in project
