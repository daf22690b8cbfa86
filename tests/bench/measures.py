"""What workloads are made of: how much they do, how a line of the report is judged, and the ways of measuring that several share."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from .processes import Cast, Process

Measured = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much one round does."""

    messages: int = 400_000  #: 1 to 1
    fanout: int = 100_000  #: published; 8 receive each
    wild_rounds: int = 200  #: through the 1000 topics
    calls: int = 10_000
    trips: int = 20_000  #: of the ping-pong
    idle: int = 4_000  #: connections
    paced: int = 1_000  #: messages with their one-way time taken
    unrelated: int = 200_000  #: messages beside unrelated subscriptions
    new_topics: int = 50_000  #: of them to a topic of their own each
    innocent: int = 5_000  #: requests of the innocent pair in each situation
    clients: int = 200  #: that recover
    asleep_s: int = 130  #: of watching an idle daemon: every client's heartbeat falls into it (120 s)


QUICK = Sizes(40_000, 10_000, 20, 1_000, 2_000, 400, 200, 20_000, 10_000, 500, 40, 5)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: measurement *key* in *unit*, beside *control*; the goal is ``>=`` or ``<=`` *bound*.

    With a control the bound is on the ratio of the two in the same round, else on the measurement itself.
    """

    label: str
    key: str
    unit: str
    control: str | None = None
    goal: str | None = None
    bound: float = 0.0


def relay_rate(receivers: int, count: int) -> float:
    """Deliveries a second through the control relay."""
    with Cast() as cast:
        path = str(cast.directory / "relay")
        cast.role("controls.relay", path=path, receivers=receivers)
        subscribers = [cast.role("controls.subscriber", path=path, count=count) for _ in range(receivers)]
        return rate(cast.role("controls.publisher", path=path, count=count), subscribers, count * receivers)


def rate(publisher: Process, subscribers: list[Process], deliveries: int) -> float:
    """From the first publish to the last message at the last subscriber."""
    publisher.go()
    start = publisher.read()["start"]
    elapsed_s: float = max(subscriber.read()["end"] for subscriber in subscribers) - start
    return deliveries / elapsed_s


def bus_rate(
    cast: Cast,
    daemon: Process,
    address: str,
    form: str,
    count: int,
    *,
    topics: list[str],
    pattern: str,
    receivers: int = 1,
) -> tuple[float, float]:
    """Deliveries a second through the bus, and its CPU seconds per million published messages."""
    arguments: dict[str, Any] = {"address": address, "count": count, "form": form}
    subscribers = [cast.role("roles.subscriber", pattern=pattern, **arguments) for _ in range(receivers)]
    publisher = cast.role("roles.publisher", topics=topics, **arguments)
    before = daemon.cpu_s()
    found = rate(publisher, subscribers, count * receivers)
    return found, (daemon.cpu_s() - before) / count * 1e6


def percentiles(prefix: str, trips_ns: list[int]) -> Measured:
    """p50, p99 and p99.9 in microseconds."""
    cuts = statistics.quantiles(trips_ns, n=1000, method="inclusive")
    return {f"{prefix}_p50": cuts[499] / 1000, f"{prefix}_p99": cuts[989] / 1000, f"{prefix}_p999": cuts[998] / 1000}


def settled_memory(daemon: Process) -> dict[str, int]:
    """The daemon's memory when it no longer changes (or after 5 s)."""
    last = daemon.memory_bytes()
    for _ in range(10):
        time.sleep(0.5)
        now = daemon.memory_bytes()
        if now == last:
            break
        last = now
    return last
