"""The roles of a bad day: who floods, who is stuck, and who comes back. What their clients would log is what they are here for."""

from __future__ import annotations

import logging

import ipcbus_client

from . import payload
from .processes import Stage
from .roles import join

TOPIC = "flood.a"
_PATIENCE_S = 60.0

logging.disable()


def flooder(stage: Stage, address: str) -> None:
    """Publish as fast as the bus takes it, until it is ended."""
    message = payload.raw(0)
    with ipcbus_client.connect(address) as bus:
        stage.ready()
        while True:
            try:
                for _ in range(1000):
                    bus.publish(TOPIC, message)
            except ipcbus_client.BusError:
                pass  # it is held for longer than it waits: that is what it is here for


def idler(stage: Stage, address: str, policy: str) -> None:
    """A subscriber that takes what comes, until it is stopped."""
    with ipcbus_client.connect(address) as bus:
        bus.subscribe(TOPIC, lambda message: None, policy=policy)
        stage.ready()
        stage.wait_end()
        bus.close(0)  # what came while it was stopped is nobody's concern


def deaf(stage: Stage, address: str, policy: str, connections: int) -> None:
    """Subscribers with credit that never read."""
    held = [join(address, [(1, TOPIC)], credit=64 << 20, policy=policy) for _ in range(connections)]
    stage.ready()
    stage.wait_end()
    for connection in held:
        connection.close()


def returner(stage: Stage, address: str, first: int, count: int) -> None:
    """Clients with a subscription, a name and a retained value each, which come back by themselves."""
    buses = []
    for number in range(first, first + count):
        bus = ipcbus_client.connect(address, name=f"client.{number}", timeout=_PATIENCE_S)
        bus.subscribe(f"to.{number}", lambda message: None)
        bus.publish(f"kept.{number}", payload.raw(number), retain=True, confirm=True)
        buses.append(bus)
    stage.ready()
    stage.wait_end()
    for bus in buses:
        bus.close(0)
