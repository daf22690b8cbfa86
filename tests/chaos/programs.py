"""The programs of the chaos: ordinary users of the client library, each in a process of its own, that keep journals.

Roles by name, each in a blocking and an asyncio form: ``publisher`` (asks the bus to confirm each message), ``burster`` (many at once, then
a flush), ``subscriber`` (of any policy, or in a group), ``requester``, ``responder``. SIGUSR1 makes one slow for a second, SIGUSR2 asks a
publisher, requester or responder to end in order; a subscriber ends when it has seen the last message of all.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import ipcbus_client
from ipcbus_client import aio

from .journal import END_TOPIC, TOPICS, Journal, Offer, Offers, parse

PATIENCE_S = 60.0  #: for the bus to be there: longer than any event takes
SLOW_S = 1.0  #: how long SIGUSR1 lasts
SLOW_STEP_S = 0.02  #: how long each message takes then
BURST = 200
CALL_S = 2.0
METHOD = "svc/echo"
LAST_S = 120.0  #: for what a publisher still has to say


class Part:
    """What one program was told, and what it tells its journal."""

    def __init__(self, name: str, address: str, secret: str, journal: Path, policy: str = "", group: str = "") -> None:
        self.name = name
        self.address = address
        self.secret = secret
        self.rng = Random(name)
        self.offers = Offers(name, self.rng)
        self.finishing = False
        self._journal = Journal(journal)
        self._policy = policy
        self._group = group
        self._slow_until = 0.0
        signal.signal(signal.SIGUSR1, self._be_slow)
        signal.signal(signal.SIGUSR2, self._finish)

    def _be_slow(self, number: int, frame: object) -> None:
        self._slow_until = time.monotonic() + SLOW_S

    def _finish(self, number: int, frame: object) -> None:
        self.finishing = True

    @property
    def pause_s(self) -> float:
        """How long the next message takes to be handled."""
        return SLOW_STEP_S if time.monotonic() < self._slow_until else 0.0

    @property
    def connection(self) -> dict[str, Any]:
        """Arguments of connect()."""
        return {"program": self.name, "secret_file": self.secret, "timeout": PATIENCE_S}

    @property
    def subscription(self) -> dict[str, Any]:
        """Arguments of subscribe(). Small limits: they are to be reached."""
        options: dict[str, Any] = {"notices": True, "retained": False, "window_bytes": 65_536}
        if self._policy:
            options |= {"policy": self._policy, "limits": {"soft": 65_536, "hard": 262_144, "seconds": 0.5}}
        return options | ({"group": self._group, "prefetch": 8} if self._group else {})

    def say(self, *words: object) -> None:
        """One line of the journal."""
        self._journal.write(*words)

    def failed(self, what: object, error: Exception) -> None:
        """A call of the library raised."""
        self.say("failed", what, type(error).__name__)

    def seen(self, item: Any) -> bool:
        """What a subscription gave, into the journal; whether it was the last of all."""
        if isinstance(item, ipcbus_client.Lost):
            self.say("lost", item.count, item.why)
        elif isinstance(item, ipcbus_client.Reconnected):
            self.say("gap", item.epoch)
        elif not isinstance(item, ipcbus_client.Message):
            self.say("told", type(item).__name__)
        elif item.topic == END_TOPIC:
            self.say("done")
            return True
        else:
            offer = parse(item.data)
            if offer is None or offer.topic != item.topic:
                self.say("broken", item.topic, len(item.payload))
            else:
                self.say("came", offer.publisher, offer.topic, offer.number, offer.place)
        return False

    def served(self, data: Any) -> Any:
        """A request, into the journal, and its answer."""
        self.say("served", *data)
        return data


# --- blocking ---


def _connected(part: Part) -> ipcbus_client.Bus:
    """The bus, which may be just ending, starting or full."""
    return _insist(lambda: ipcbus_client.connect(part.address, **part.connection))


def _insist(call: Callable[[], Any]) -> Any:
    """Try until it works. After PATIENCE_S what it raised is the program's end."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except ipcbus_client.BusError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def publisher(part: Part) -> None:
    """Confirmed messages, a retained value that is bound to the connection, and a will."""
    with _connected(part) as bus:
        _insist(lambda: bus.will(f"will.{part.name}", "gone"))
        _insist(lambda: bus.publish(f"kept.{part.name}", "here", retain=True, bound=True, confirm=True))
        part.say("ready")
        while not part.finishing:
            _publish(part, bus, part.offers.next())
            time.sleep(part.rng.uniform(0, 0.01) + part.pause_s)
        _publish_last(part, bus)


def burster(part: Part) -> None:
    """Bursts: the bus has routed one when flush() returns and the connection is still the one before it."""
    with _connected(part) as bus:
        part.say("ready")
        while not part.finishing:
            epoch, sent = bus.epoch, []
            try:
                for _ in range(BURST):
                    sent.append(part.offers.next())
                    part.say("offered", sent[-1].topic, sent[-1].number)
                    bus.publish(sent[-1].topic, sent[-1].data)
                bus.flush(CALL_S)
            except ipcbus_client.BusError as error:
                part.failed("burst", error)
            else:
                _routed(part, sent, bus.epoch == epoch)
            time.sleep(part.rng.uniform(0, 0.2) + part.pause_s)
        _publish_last(part, bus)


def _routed(part: Part, sent: list[Offer], certainly: bool) -> None:
    for offer in sent if certainly else ():
        part.say("routed", offer.topic, offer.number)


def _publish(part: Part, bus: ipcbus_client.Bus, offer: Offer) -> bool:
    part.say("offered", offer.topic, offer.number)
    try:
        bus.publish(offer.topic, offer.data, confirm=True)
    except ipcbus_client.BusError as error:
        part.failed(offer.topic, error)
        return False
    part.say("routed", offer.topic, offer.number)
    return True


def _publish_last(part: Part, bus: ipcbus_client.Bus) -> None:
    deadline = time.monotonic() + LAST_S
    for index in range(TOPICS):
        while not _publish(part, bus, part.offers.next(index)) and time.monotonic() < deadline:
            time.sleep(0.05)
    part.say("done")


def subscriber(part: Part) -> None:
    """All that is published, up to the last message."""
    with _connected(part) as bus:
        subscription = _insist(lambda: bus.subscribe("chaos.>", **part.subscription))
        part.say("ready")
        for item in subscription:
            if part.seen(item):
                return
            if part.pause_s:
                time.sleep(part.pause_s)


def requester(part: Part) -> None:
    """One request after the other."""
    with _connected(part) as bus:
        part.say("ready")
        number = 0
        while not part.finishing:
            number += 1
            part.say("asked", number)
            try:
                answer = bus.request(METHOD, [part.name, number], timeout=CALL_S)
            except ipcbus_client.BusError as error:
                part.failed(number, error)
            else:
                part.say("answered" if answer == [part.name, number] else "broken", number)
            time.sleep(part.rng.uniform(0, 0.01) + part.pause_s)
        part.say("done")


def responder(part: Part) -> None:
    """One of several that share the name."""

    def answer(request: ipcbus_client.Request) -> Any:
        time.sleep(part.pause_s)
        return part.served(request.data)

    with _connected(part) as bus:
        _insist(lambda: bus.respond(METHOD, answer, mode="shared"))
        part.say("ready")
        while not part.finishing:
            time.sleep(0.02)
    part.say("done")


# --- asyncio ---


async def _connected_aio(part: Part) -> aio.Bus:
    return await _insist_aio(lambda: _opened(part))


async def _opened(part: Part) -> aio.Bus:
    return await aio.connect(part.address, **part.connection)


async def _insist_aio(call: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except ipcbus_client.BusError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def publisher_aio(part: Part) -> None:
    """As publisher()."""
    async with await _connected_aio(part) as bus:
        await _insist_aio(lambda: bus.will(f"will.{part.name}", "gone"))
        await _insist_aio(lambda: bus.publish(f"kept.{part.name}", "here", retain=True, bound=True, confirm=True))
        part.say("ready")
        while not part.finishing:
            await _publish_aio(part, bus, part.offers.next())
            await asyncio.sleep(part.rng.uniform(0, 0.01) + part.pause_s)
        await _publish_last_aio(part, bus)


async def burster_aio(part: Part) -> None:
    """As burster()."""
    async with await _connected_aio(part) as bus:
        part.say("ready")
        while not part.finishing:
            epoch, sent = bus.epoch, []
            try:
                for _ in range(BURST):
                    sent.append(part.offers.next())
                    part.say("offered", sent[-1].topic, sent[-1].number)
                    await bus.publish(sent[-1].topic, sent[-1].data)
                await bus.flush(CALL_S)
            except ipcbus_client.BusError as error:
                part.failed("burst", error)
            else:
                _routed(part, sent, bus.epoch == epoch)
            await asyncio.sleep(part.rng.uniform(0, 0.2) + part.pause_s)
        await _publish_last_aio(part, bus)


async def _publish_aio(part: Part, bus: aio.Bus, offer: Offer) -> bool:
    part.say("offered", offer.topic, offer.number)
    try:
        await bus.publish(offer.topic, offer.data, confirm=True)
    except ipcbus_client.BusError as error:
        part.failed(offer.topic, error)
        return False
    part.say("routed", offer.topic, offer.number)
    return True


async def _publish_last_aio(part: Part, bus: aio.Bus) -> None:
    deadline = time.monotonic() + LAST_S
    for index in range(TOPICS):
        while not await _publish_aio(part, bus, part.offers.next(index)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    part.say("done")


async def subscriber_aio(part: Part) -> None:
    """As subscriber()."""
    async with await _connected_aio(part) as bus:
        subscription = await _insist_aio(lambda: bus.subscribe("chaos.>", **part.subscription))
        part.say("ready")
        async for item in subscription:
            if part.seen(item):
                return
            if part.pause_s:
                await asyncio.sleep(part.pause_s)


async def requester_aio(part: Part) -> None:
    """As requester()."""
    async with await _connected_aio(part) as bus:
        part.say("ready")
        number = 0
        while not part.finishing:
            number += 1
            part.say("asked", number)
            try:
                answer = await bus.request(METHOD, [part.name, number], timeout=CALL_S)
            except ipcbus_client.BusError as error:
                part.failed(number, error)
            else:
                part.say("answered" if answer == [part.name, number] else "broken", number)
            await asyncio.sleep(part.rng.uniform(0, 0.01) + part.pause_s)
        part.say("done")


async def responder_aio(part: Part) -> None:
    """As responder()."""

    async def answer(request: aio.Request) -> Any:
        await asyncio.sleep(part.pause_s)
        return part.served(request.data)

    async with await _connected_aio(part) as bus:
        await _insist_aio(lambda: bus.respond(METHOD, answer, mode="shared"))
        part.say("ready")
        while not part.finishing:
            await asyncio.sleep(0.02)
    part.say("done")


def play(role: str, part: Part) -> None:
    """Run a role to its end."""
    body = globals()[role]
    if inspect.iscoroutinefunction(body):
        asyncio.run(body(part))
    else:
        body(part)
