"""The roles that the bus serves in a benchmark: each a process with the public client API in a plain loop.

The exception are the two holders at the end, which speak PROTOCOL.md themselves: thousands of idle connections or lanes
are the load, not what is measured, and a client library's work in the holding process would blur it.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import threading
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import msgpack

import ipcbus_client
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from ipcbus_client import aio

from . import payload
from .processes import Stage

FLUSH_S = 60.0


def publisher(stage: Stage, address: str, topics: list[str], count: int, form: str) -> None:
    """Publish *count* messages to the *topics* in turn."""
    values = payload.make(form, count)
    with ipcbus_client.connect(address) as bus:
        gc.collect()
        gc.freeze()  # who makes values as it goes does not pay to walk the ones prepared here
        stage.ready()
        stage.wait_go()
        start = time.monotonic()
        for topic, value in zip(cycle(topics), values, strict=False):
            bus.publish(topic, value)
        published = time.monotonic()
        bus.flush(timeout=FLUSH_S)
        stage.result(start=start, published=published)


def subscriber(stage: Stage, address: str, pattern: str, count: int, form: str) -> None:
    """Receive and check *count* messages: order, number, tag, length, tail."""
    with ipcbus_client.connect(address) as bus, bus.subscribe(pattern) as subscription:
        stage.ready()
        check = payload.check_raw if form == "bytes" else payload.check_value
        last = count - 1
        for number, message in enumerate(subscription):
            check(message.data, number)
            if number == last:
                break
        end = time.monotonic()
        if subscription.lost:
            raise payload.MessageError(f"the bus said that {subscription.lost} messages were lost")
        stage.result(end=end, count=count)


def wild_subscriber(stage: Stage, address: str, wanted: dict[str, list[int]], count: int) -> None:
    """Subscribe to each pattern of *wanted*, whose list has its topics' places in a round; check *count* rounds."""
    left = count * sum(len(positions) for positions in wanted.values())
    round_size = 1000
    done = threading.Event()
    wrong: list[str] = []

    def receive(positions: list[int]) -> Callable[[ipcbus_client.Message], None]:
        expected = (first + position for first in range(0, count * round_size, round_size) for position in positions)
        following = expected.__next__
        check = payload.check_raw

        def callback(message: ipcbus_client.Message) -> None:
            nonlocal left
            try:
                check(message.data, following())
            except payload.MessageError as error:
                wrong.append(str(error))
                done.set()
            left -= 1
            if not left:
                done.set()

        return callback

    with ipcbus_client.connect(address) as bus:
        subscriptions = [bus.subscribe(pattern, receive(positions)) for pattern, positions in wanted.items()]
        stage.ready()
        done.wait()
        end = time.monotonic()
        lost = sum(subscription.lost for subscription in subscriptions)
        if wrong or lost or left:
            raise payload.MessageError(wrong[0] if wrong else f"{lost} lost, {left} missing")
        stage.result(end=end)


def paced_publisher(stage: Stage, address: str, topic: str, count: int, pause_s: float) -> None:
    """Publish *count* messages that carry the time of their departure, one every *pause_s*."""
    with ipcbus_client.connect(address) as bus:
        stage.ready()
        stage.wait_go()
        for _ in range(count):
            bus.publish(topic, time.monotonic_ns().to_bytes(8, "big").ljust(payload.SIZE))
            time.sleep(pause_s)
        bus.flush(timeout=FLUSH_S)
        stage.result(count=count)


def paced_subscriber(stage: Stage, address: str, pattern: str, count: int) -> None:
    """Take the one-way times of *count* messages."""
    with ipcbus_client.connect(address) as bus, bus.subscribe(pattern) as subscription:
        stage.ready()
        trips = []
        for message in subscription:
            trips.append(time.monotonic_ns() - int.from_bytes(message.data[:8], "big"))
            if len(trips) == count:
                break
        stage.result(trips_ns=trips)


def responder(stage: Stage, address: str) -> None:
    """Serve ``bench/echo``, blocking."""
    with ipcbus_client.connect(address) as bus:
        bus.respond("bench/echo", lambda request: request.data)
        stage.ready()
        stage.wait_end()


def caller(stage: Stage, address: str, count: int) -> None:
    """Call ``bench/echo`` *count* times, one after the other, blocking."""
    message = payload.raw(0)
    with ipcbus_client.connect(address) as bus:
        stage.ready()
        stage.wait_go()
        trips = []
        clock = time.perf_counter_ns
        for _ in range(count):
            start = clock()
            if bus.request("bench/echo", message) != message:
                raise payload.MessageError("the call brought something else back")
            trips.append(clock() - start)
        stage.result(trips_ns=trips)


def responder_aio(stage: Stage, address: str) -> None:
    """Serve ``bench/echo`` in asyncio."""

    async def echo(request: aio.Request) -> object:
        return request.data

    async def serve() -> None:
        async with aio.connect(address) as bus:
            await bus.respond("bench/echo", echo)
            stage.ready()
            await asyncio.to_thread(stage.wait_end)

    asyncio.run(serve())


def caller_aio(stage: Stage, address: str, count: int, in_flight: int) -> None:
    """Call ``bench/echo`` *count* times from *in_flight* tasks, in asyncio."""
    message = payload.raw(0)
    clock = time.perf_counter_ns
    trips: list[int] = []

    async def calls(bus: aio.Bus, number: int) -> None:
        for _ in range(number):
            start = clock()
            if await bus.request("bench/echo", message) != message:
                raise payload.MessageError("the call brought something else back")
            trips.append(clock() - start)

    async def run() -> None:
        async with aio.connect(address) as bus:
            stage.ready()
            stage.wait_go()
            start = time.monotonic()
            await asyncio.gather(*(calls(bus, count // in_flight) for _ in range(in_flight)))
            stage.result(trips_ns=trips, elapsed_s=time.monotonic() - start)

    asyncio.run(run())


# --- the holders ---


def join(address: str, patterns: list[tuple[int, str]], **options: object) -> socket.socket:
    """A connection with a lane for each of *patterns*, subscribed with *options*; returns when the bus has answered for all of them."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address.removeprefix("unix:"))
    connection.sendall(encode(Kind.HELLO, 0, 1, 1, [], {"program": "bench-holder"}, None))
    _read_frame(connection)  # WELCOME
    for first in range(0, len(patterns), 500):
        some = patterns[first : first + 500]
        requests = (_request("subscribe", lane, {"pattern": pattern, "lane": lane, "credit": 1 << 20} | options) for lane, pattern in some)
        connection.sendall(b"".join(requests))
        for _ in some:
            if _read_frame(connection)[1] != Kind.REPLY:
                raise payload.MessageError("the bus refused a subscription")
    return connection


def ask(connection: socket.socket, method: str) -> Any:
    """A method of the bus, over a connection of join() to which nothing else comes."""
    connection.sendall(_request(method, 1, {}))
    return msgpack.unpackb(msgpack.unpackb(_read_frame(connection))[-1])


def _request(method: str, number: int, arguments: dict[str, object]) -> bytes:
    return encode_with_payload(pack(arguments), Kind.REQUEST, 0, f"bus/{method}", number, 10_000, None)


def _read_frame(connection: socket.socket) -> bytes:
    size = int.from_bytes(_read_exactly(connection, 5)[1:], "big")
    return _read_exactly(connection, size)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise payload.MessageError("the bus closed a holder's connection")
        data += more
    return bytes(data)


def idle_holder(stage: Stage, address: str, connections: int) -> None:
    """Hold *connections* with one subscription each; nothing is ever published to them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [join(address, [(1, f"idle.{number}.>")]) for number in range(connections)]
    stage.ready()
    stage.wait_end()
    for connection in held:
        connection.close()


def sleepers(stage: Stage, address: str, blocking: int, asyncio_: int) -> None:
    """Hold that many connections of each shell, with a subscription each, as a program has them; nothing is ever published to them."""
    buses = [ipcbus_client.connect(address) for _ in range(blocking)]
    for number, bus in enumerate(buses):
        bus.subscribe(f"idle.{number}.>")

    async def hold() -> None:
        held = [await aio.connect(address) for _ in range(asyncio_)]
        for number, one in enumerate(held):
            await one.subscribe(f"idle.{number}.>")
        stage.ready()
        await asyncio.to_thread(stage.wait_end)
        for one in held:
            await one.close()

    asyncio.run(hold())
    for bus in buses:
        bus.close()


def lane_holder(stage: Stage, address: str, lanes: int, peers: int) -> None:
    """Hold *lanes* subscriptions over *peers* connections, half of them wildcards, that nothing matches."""
    held = []
    for peer in range(peers):
        numbers = range(peer, lanes, peers)
        patterns = [f"unrelated.{number}" if number % 2 else f"unrelated.{number}.*.status" for number in numbers]
        held.append(join(address, list(enumerate(patterns, 1))))
    stage.ready()
    stage.wait_end()
    for connection in held:
        connection.close()
