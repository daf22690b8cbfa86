"""Signal handlers that raise, Ctrl-C among them, in every blocking call at random moments: the bus is usable then, or closed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.daemons import RunningDaemon, environment

#: A program whose main thread makes one call after the other while a timer's signal handler raises at random moments. After each such
#: exception the bus must be usable, or closed.
PROGRAM = """
import faulthandler, random, signal, sys, time
import ipcbus_client

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
until = time.monotonic() + 1.5
while time.monotonic() < until:
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0015))
        for n in range(100):
            use(bus, sub, n)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except raises:
        interrupted += 1
    except ipcbus_client.Closed:
        pass
    except ipcbus_client.ConnectionLost:
        pass  # an interruption in the middle of a read or write ends the connection; calls in flight end with it
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
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
