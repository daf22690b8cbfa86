"""Signal handlers that raise, Ctrl-C among them, in every blocking call at random moments: the bus is usable then, or closed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio
from ipcbus_client._watching import Watching
from ipcbus_client._wire import Wire
from tests.daemons import RunningDaemon, environment
from tests.threaded import WAIT_S, Connect, connecting, run, until

#: A program whose main thread makes one call after the other while a timer's signal handler raises at random moments. After each such
#: exception the bus must be usable, or closed.
PROGRAM = """
import faulthandler, random, signal, sys, time
import ipcbus_client
from ipcbus_client._backoff import Backoff

Backoff.delay_s = lambda self, attempt, jitter: 0.0  # many interruptions end the connection, and how long it is gone is not looked at
faulthandler.dump_traceback_later(60, exit=True)
address, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chance = random.Random(seed)


class Stop(Exception):
    pass


raises = KeyboardInterrupt if seed % 2 else Stop


def interrupt(number, frame):
    raise raises


signal.signal(signal.SIGALRM, interrupt)
service = ipcbus_client.connect(address)
service.respond("svc/echo", lambda request: request.data)


def connect():
    bus = ipcbus_client.connect(address)
    return bus, bus.subscribe("t")


def use(bus, sub, n):
    if name == "publish":
        bus.publish("t", n)
    elif name == "request":
        assert bus.request("svc/echo", n) == n
    elif name == "get":
        bus.publish("t", n)
        sub.get(1.0)
    elif name == "iterate":
        bus.publish("t", n)
        next(iter(sub))
    elif name == "subscribe":
        bus.subscribe("x").close()
    elif name == "respond":
        bus.respond("n.a/do", lambda request: None).close()
    elif name == "flush":
        bus.flush()
    elif name == "wait":
        try:
            bus.wait(0.001)
        except ipcbus_client.Timeout:
            pass
    elif name == "close":
        bus.close(1.0)


def works(bus):
    token = chance.random()
    check = bus.subscribe("check")
    bus.publish("check", token)
    assert check.get(10.0).data == token
    check.close()
    assert bus.request("svc/echo", token, timeout=10.0) == token


bus, sub = connect()
interrupted = epochs = closed = 0
until = time.monotonic() + 10  # of a machine that has no time; else it is the number that counts
while interrupted < 100 and time.monotonic() < until:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0015))
            for n in range(100):
                use(bus, sub, n)
        finally:  # where another exception is on its way the timer may still come, until here
            signal.setitimer(signal.ITIMER_REAL, 0)
    except raises as error:
        interrupted += 1
        assert not isinstance(error.__context__, LookupError), 'the library waits within the handling of an exception of its own'
    except ipcbus_client.Closed:
        pass
    except ipcbus_client.ConnectionLost:
        pass  # an interruption in the middle of a read or write ends the connection; calls in flight end with it
    if bus.state.value == "closed":
        closed += 1
        bus.close()
        bus, sub = connect()
        continue
    try:
        works(bus)
    except ipcbus_client.ConnectionLost:
        works(bus)
    epochs = max(epochs, bus.epoch)
assert interrupted, 'the timer never came in time'
bus.close()
service.close()
print("fine", interrupted, epochs, closed)
"""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["publish", "request", "get", "iterate", "subscribe", "respond", "flush", "wait", "close"])
def test_an_exception_from_a_signal_handler_never_wedges_the_bus(daemon: RunningDaemon, name: str, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, daemon.address, name, str(seed)],
        env=environment(), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("fine"), done.stdout


class Interruption(Exception):  # noqa: N818  # an interrupt is no error
    """What a signal handler raises."""


class Interrupted:
    """A socket of which one call is interrupted by a signal handler that raises, when the kernel has done it."""

    def __init__(self, sock: Any, method: str) -> None:
        self._sock = sock
        self._method = method
        self.interrupted = False

    def __getattr__(self, name: str) -> Any:
        wanted = getattr(self._sock, name)
        if name != self._method:
            return wanted

        def call(*arguments: Any) -> Any:
            done = wanted(*arguments)
            if self.interrupted:
                return done
            self.interrupted = True
            raise Interruption

        return call


@pytest.fixture(params=["blocking", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connecting(request.param) as made:
        yield made


@pytest.mark.parametrize("method", ["send", "recv_into"])
def test_nothing_is_sent_or_read_twice_or_half_after_an_interruption(connect: Connect, daemon: RunningDaemon, method: str) -> None:
    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        bus = await connect(daemon.address)
        async with aio.connect(daemon.address) as other:
            seen = await other.subscribe("t")
            inner = getattr(bus, "inner", bus)
            wire: Any = inner._wire
            sock = wire.sock = Interrupted(wire.sock, method)
            try:
                if method == "send":
                    await bus.publish("t", 1)
                else:
                    await bus.ping()
            except (Interruption, ipcbus_client.ConnectionLost):
                pass
            await until(lambda: sock.interrupted and inner.epoch == 1 and inner.state.value == "connected", "it did not connect again")
            await bus.publish("t", 2, confirm=True)
            got = [(await seen.get(WAIT_S)).data for _ in range(1 + (method == "send"))]
            assert got == ([1, 2] if method == "send" else [2])
        await bus.close()

    run(body())


class InterruptedLock:
    """The lock of a bus; at the *number*-th time that it was released a signal handler raises, as it may after every call of C."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.number = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        self.number -= 1
        if self.number == 0:
            raise Interruption


@pytest.mark.parametrize(("how", "group"), [("get", None), ("get", "workers"), ("iterate", "workers"), ("watch", None)])
def test_an_interruption_loses_no_message_and_no_credit(daemon: RunningDaemon, how: str, group: str | None) -> None:
    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus:
        sub: Any = bus.watch("t") if how == "watch" else bus.subscribe("t", group=group, prefetch=1)
        lock: Any = InterruptedLock(bus._lock)
        bus._lock = lock
        got: list[int] = []
        iterator = iter(sub)

        def take() -> None:
            got.append((next(iterator) if how == "iterate" else sub.get(WAIT_S)).data)

        for number in range(20):
            bus.publish("t", number, retain=how == "watch", confirm=True)
            lock.number = number
            try:
                take()
            except Interruption:
                iterator = iter(sub)
            interrupted = lock.number <= 0
            lock.number = 0
            if len(got) == number:
                take()
            assert got == list(range(number + 1))
        assert not interrupted, "the test has not come to the end"


class BusyLock:
    """A lock that another thread has: two signals come while one waits for it."""

    def __init__(self) -> None:
        self.owned = False
        self.signals = 2

    def _is_owned(self) -> bool:
        return self.owned

    def acquire(self) -> None:
        if self.signals:
            self.signals -= 1
            raise Interruption
        self.owned = True


def test_a_second_interruption_while_the_lock_is_taken_again_does_not_lose_it() -> None:
    lock = BusyLock()
    wire: Any = SimpleNamespace(lock=lock)
    Wire._regain(wire)
    assert lock.owned


def test_a_watch_that_was_interrupted_asks_again_for_what_it_missed(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Watching.take
    missed: list[Any] = []

    def interrupted(self: Watching, item: Any) -> None:
        if not missed:
            missed.append(item)
            raise Interruption
        take(self, item)

    with ipcbus_client.connect(daemon.address, timeout=WAIT_S) as bus, bus.watch("t") as watch:
        monkeypatch.setattr(Watching, "take", interrupted)
        bus.publish("t", 1, retain=True)
        with pytest.raises(Interruption):
            watch.get(WAIT_S)
        assert watch.get(WAIT_S).data == 1
        assert watch.state == {"t": 1}
