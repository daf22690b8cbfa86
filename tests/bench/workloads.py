"""The workloads: which processes work together, how much, and what is measured; one round of each at a time.

A workload's function runs one round, controls included, and returns its measurements by key; ``ROWS`` says which are
printed, beside which control, and what the goal is. Every round has new processes: rounds do not warm each other.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .processes import Cast, Process

Measured = dict[str, float]

WILD_TOPICS, WILD_PATTERNS, WILD_PROCESSES = 1000, 100, 4
UNRELATED = (10, 100, 1_000, 10_000, 100_000)


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
    asleep_s: int = 130  #: of watching an idle daemon: every client's heartbeat falls into it (120 s)


QUICK = Sizes(40_000, 10_000, 20, 1_000, 2_000, 400, 200, 20_000, 10_000, 5)


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


# --- building blocks ---


def _relay_rate(receivers: int, count: int) -> float:
    """Deliveries a second through the control relay."""
    with Cast() as cast:
        path = str(cast.directory / "relay")
        cast.role("controls.relay", path=path, receivers=receivers)
        subscribers = [cast.role("controls.subscriber", path=path, count=count) for _ in range(receivers)]
        return _rate(cast.role("controls.publisher", path=path, count=count), subscribers, count * receivers)


def _rate(publisher: Process, subscribers: list[Process], deliveries: int) -> float:
    """From the first publish to the last message at the last subscriber."""
    publisher.go()
    start = publisher.read()["start"]
    elapsed_s: float = max(subscriber.read()["end"] for subscriber in subscribers) - start
    return deliveries / elapsed_s


def _bus_rate(
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
    rate = _rate(publisher, subscribers, count * receivers)
    return rate, (daemon.cpu_s() - before) / count * 1e6


def _percentiles(prefix: str, trips_ns: list[int]) -> Measured:
    """p50, p99 and p99.9 in microseconds."""
    cuts = statistics.quantiles(trips_ns, n=1000, method="inclusive")
    return {f"{prefix}_p50": cuts[499] / 1000, f"{prefix}_p99": cuts[989] / 1000, f"{prefix}_p999": cuts[998] / 1000}


# --- workloads ---


def pubsub(sizes: Sizes) -> Measured:
    """1 publisher to 1 subscriber, 128 B."""
    found = {"relay": _relay_rate(1, sizes.messages)}
    for form in ("msgpack", "bytes"):
        with Cast() as cast:
            daemon, address = cast.daemon()
            found[form], found[f"{form}_cpu"] = _bus_rate(
                cast, daemon, address, form, sizes.messages, topics=["bench.a.b"], pattern="bench.a.b"
            )
    return found


def fanout(sizes: Sizes) -> Measured:
    """1 publisher to 8 subscribers, 128 B."""
    found = {"relay": _relay_rate(8, sizes.fanout)}
    for form in ("msgpack", "bytes"):
        with Cast() as cast:
            daemon, address = cast.daemon()
            found[form], found[f"{form}_cpu"] = _bus_rate(
                cast, daemon, address, form, sizes.fanout, topics=["bench.a.b"], pattern="bench.a.b", receivers=8
            )
    return found


def wild(sizes: Sizes) -> Measured:
    """1000 topics in turn, 100 wildcard subscriptions of 10 topics each in 4 processes."""
    count = sizes.wild_rounds * WILD_TOPICS
    found = {"relay": _relay_rate(1, sizes.messages)}
    per_pattern = WILD_TOPICS // WILD_PATTERNS
    scattered = [(n % WILD_PATTERNS, n // WILD_PATTERNS) for n in range(WILD_TOPICS)]
    in_tens = [(n // per_pattern, n % per_pattern) for n in range(WILD_TOPICS)]
    for key, order in (("scattered", scattered), ("in_tens", in_tens)):
        wanted: dict[str, list[int]] = {}
        for position, (group, _) in enumerate(order):
            wanted.setdefault(f"wild.{group}.*", []).append(position)
        patterns = list(wanted)
        with Cast() as cast:
            daemon, address = cast.daemon()
            subscribers = [
                cast.role(
                    "roles.wild_subscriber",
                    address=address,
                    wanted={pattern: wanted[pattern] for pattern in patterns[part::WILD_PROCESSES]},
                    count=sizes.wild_rounds,
                )
                for part in range(WILD_PROCESSES)
            ]
            topics = [f"wild.{group}.{member}" for group, member in order]
            publisher = cast.role("roles.publisher", address=address, topics=topics, count=count, form="bytes")
            before = daemon.cpu_s()
            found[key] = _rate(publisher, subscribers, count)
            found[f"{key}_cpu"] = (daemon.cpu_s() - before) / count * 1e6
    return found


def rpc(sizes: Sizes) -> Measured:
    """Requests of 128 B, one at a time (blocking, asyncio) and 64 in flight (asyncio), beside a ping-pong."""
    found: Measured = {}
    with Cast() as cast:
        one, other = socket.socketpair()
        with one, other:
            pinger = cast.role("controls.ping", fd=one.fileno(), count=sizes.trips, fds=(one.fileno(),))
            cast.role("controls.pong", fd=other.fileno(), fds=(other.fileno(),))
        pinger.go()
        found |= _percentiles("pair", pinger.read()["trips_ns"])
    for key, responder, caller, in_flight in (
        ("blocking", "roles.responder", "roles.caller", 0),
        ("asyncio", "roles.responder_aio", "roles.caller_aio", 1),
        ("many", "roles.responder_aio", "roles.caller_aio", 64),
    ):
        with Cast() as cast:
            daemon, address = cast.daemon()
            cast.role(responder, address=address)
            count = sizes.calls - sizes.calls % (in_flight or 1)
            extra: dict[str, Any] = {"in_flight": in_flight} if in_flight else {}
            calling = cast.role(caller, address=address, count=count, **extra)
            before = daemon.cpu_s()
            calling.go()
            told = calling.read()
            found |= _percentiles(key, told["trips_ns"])
            found[f"{key}_cpu"] = (daemon.cpu_s() - before) / count * 1e6
            if "elapsed_s" in told:
                found[f"{key}_rate"] = count / told["elapsed_s"]
    return found


def idle(sizes: Sizes) -> Measured:
    """A message to one subscriber, alone and beside thousands of idle ones; what each of those costs."""
    found: Measured = {}
    for key, connections in (("alone", 1), ("crowd", sizes.idle)):
        with Cast() as cast:
            daemon, address = cast.daemon()
            cast.role("roles.idle_holder", address=address, connections=1)
            before = _settled_memory(daemon)
            if connections > 1:
                cast.role("roles.idle_holder", address=address, connections=connections - 1)
                after = _settled_memory(daemon)
                for part in ("Rss", "Pss"):
                    found[f"{part.lower()}_kib"] = (after[part] - before[part]) / (connections - 1) / 1024
                quiet = daemon.cpu_s()
                time.sleep(1)
                found[f"{key}_quiet_ms"] = (daemon.cpu_s() - quiet) * 1000
            taker = cast.role("roles.paced_subscriber", address=address, pattern="paced.one", count=sizes.paced)
            giver = cast.role("roles.paced_publisher", address=address, topic="paced.one", count=sizes.paced, pause_s=0.001)
            giver.go()
            giver.read()
            found |= _percentiles(key, taker.read()["trips_ns"])
            found[key], found[f"{key}_cpu"] = _bus_rate(
                cast, daemon, address, "bytes", sizes.messages // 2, topics=["bench.a.b"], pattern="bench.a.b"
            )
    return found


def wakeups(sizes: Sizes) -> Measured:
    """How often an idle daemon wakes up beside 100 subscribers of our own clients, heartbeats included."""
    with Cast() as cast:
        daemon, address = cast.daemon()
        cast.role("roles.sleepers", address=address, blocking=50, asyncio_=50)
        time.sleep(1)
        before = daemon.wakeups()
        time.sleep(sizes.asleep_s)
        return {"wakeups": (daemon.wakeups() - before) / sizes.asleep_s}


def _settled_memory(daemon: Process) -> dict[str, int]:
    """The daemon's memory when it no longer changes (or after 5 s)."""
    last = daemon.memory_bytes()
    for _ in range(10):
        time.sleep(0.5)
        now = daemon.memory_bytes()
        if now == last:
            break
        last = now
    return last


def unrelated(sizes: Sizes) -> Measured:
    """What a publish costs beside subscriptions that it does not match: to one topic, and to a new one each time."""
    found: Measured = {}
    for lanes in UNRELATED:
        with Cast() as cast:
            daemon, address = cast.daemon()
            cast.role("roles.lane_holder", address=address, lanes=lanes, peers=10)
            found[f"one_{lanes}"], found[f"one_{lanes}_cpu"] = _bus_rate(
                cast, daemon, address, "bytes", sizes.unrelated, topics=["load.one"], pattern="load.one"
            )
            topics = [f"fresh.{number}" for number in range(sizes.new_topics)]
            found[f"new_{lanes}"], found[f"new_{lanes}_cpu"] = _bus_rate(
                cast, daemon, address, "bytes", sizes.new_topics, topics=topics, pattern="fresh.*"
            )
    return found


WORKLOADS: dict[str, Callable[[Sizes], Measured]] = {
    "pubsub": pubsub,
    "fanout": fanout,
    "wild": wild,
    "rpc": rpc,
    "idle": idle,
    "wakeups": wakeups,
    "unrelated": unrelated,
}

#: Measured in the first round only: it waits, and measures no speed.
ONCE = frozenset({"wakeups"})

ROWS: dict[str, tuple[Row, ...]] = {
    "pubsub": (
        Row("1 to 1, msgpack values", "msgpack", "msg/s", "relay", ">=", 0.40),
        Row("1 to 1, bytes", "bytes", "msg/s", "relay", ">=", 0.45),
        Row("  daemon CPU, msgpack values", "msgpack_cpu", "s/M", None, "<=", 0.8),
        Row("  daemon CPU, bytes", "bytes_cpu", "s/M", None, "<=", 0.8),
    ),
    "fanout": (
        Row("1 to 8, bytes", "bytes", "deliveries/s", "relay", ">=", 0.45),
        Row("1 to 8, msgpack values", "msgpack", "deliveries/s", "relay", ">=", 0.45),
        Row("  daemon CPU per published, bytes", "bytes_cpu", "s/M"),
    ),
    "wild": (
        Row("each next to another subscription", "scattered", "msg/s", "relay", ">=", 0.25),
        Row("ten in a row to each", "in_tens", "msg/s", "relay", ">=", 0.25),
        Row("  daemon CPU, another each", "scattered_cpu", "s/M"),
        Row("  daemon CPU, ten in a row", "in_tens_cpu", "s/M"),
    ),
    "rpc": (
        Row("blocking, p50", "blocking_p50", "µs", "pair_p50", "<=", 4.5),
        Row("  p99", "blocking_p99", "µs", "pair_p99"),
        Row("  p99.9", "blocking_p999", "µs", "pair_p999"),
        Row("asyncio, p50", "asyncio_p50", "µs", "pair_p50", "<=", 9.0),
        Row("  p99", "asyncio_p99", "µs", "pair_p99"),
        Row("  p99.9", "asyncio_p999", "µs", "pair_p999"),
        Row("asyncio, 64 in flight", "many_rate", "calls/s"),
        Row("  p50", "many_p50", "µs"),
        Row("  daemon CPU, one at a time, blocking", "blocking_cpu", "s/M"),
        Row("  daemon CPU, 64 in flight", "many_cpu", "s/M"),
    ),
    "idle": (
        Row("memory of a connection (RSS)", "rss_kib", "KiB", None, "<=", 6.0),
        Row("memory of a connection (PSS)", "pss_kib", "KiB", None, "<=", 6.0),
        Row("1 to 1 in the crowd / alone", "crowd", "msg/s", "alone", ">=", 0.9),
        Row("one way, p50, in the crowd / alone", "crowd_p50", "µs", "alone_p50", "<=", 1.1),
        Row("  p99", "crowd_p99", "µs", "alone_p99"),
        Row("  daemon CPU in an idle second", "crowd_quiet_ms", "ms"),
    ),
    "wakeups": (Row("wake-ups of an idle daemon, 100 subscribers", "wakeups", "/s", None, "<=", 1.0),),
    "unrelated": (
        *(Row(f"one topic, beside {lanes}", f"one_{lanes}", "msg/s", "one_10") for lanes in UNRELATED),
        Row("  daemon CPU, beside 100000 / 10", "one_100000_cpu", "s/M", "one_10_cpu", "<=", 1.1),
        *(Row(f"a new topic each, beside {lanes}", f"new_{lanes}", "msg/s", "new_10") for lanes in UNRELATED),
        Row("  daemon CPU, beside 100000 / 10", "new_100000_cpu", "s/M", "new_10_cpu", "<=", 1.1),
    ),
}
