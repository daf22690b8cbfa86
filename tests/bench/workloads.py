"""The workloads: which processes work together, how much, and what is measured; one round of each at a time.

Here are those of an ordinary day; ``adversity`` has those of a bad one. A workload's function runs one round, controls included, and
returns its measurements by key; ``ROWS`` says which are printed, beside which control, and what the goal is. Every round has new processes:
rounds do not warm each other.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from . import accounting, adversity
from .measures import Measured, Row, Sizes, bus_rate, percentiles, rate, relay_rate, settled_memory
from .processes import Cast

WILD_TOPICS, WILD_PATTERNS, WILD_PROCESSES = 1000, 100, 4
UNRELATED = (10, 100, 1_000, 10_000, 100_000)


def pubsub(sizes: Sizes) -> Measured:
    """1 publisher to 1 subscriber, 128 B."""
    found = {"relay": relay_rate(1, sizes.messages)}
    for form in ("msgpack", "bytes"):
        with Cast() as cast:
            daemon, address = cast.daemon()
            found[form], found[f"{form}_cpu"] = bus_rate(
                cast, daemon, address, form, sizes.messages, topics=["bench.a.b"], pattern="bench.a.b"
            )
    return found


def fanout(sizes: Sizes) -> Measured:
    """1 publisher to 8 subscribers, 128 B."""
    found = {"relay": relay_rate(8, sizes.fanout)}
    for form in ("msgpack", "bytes"):
        with Cast() as cast:
            daemon, address = cast.daemon()
            found[form], found[f"{form}_cpu"] = bus_rate(
                cast, daemon, address, form, sizes.fanout, topics=["bench.a.b"], pattern="bench.a.b", receivers=8
            )
    return found


def wild(sizes: Sizes) -> Measured:
    """1000 topics in turn, 100 wildcard subscriptions of 10 topics each in 4 processes."""
    count = sizes.wild_rounds * WILD_TOPICS
    found = {"relay": relay_rate(1, sizes.messages)}
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
            found[key] = rate(publisher, subscribers, count)
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
        found |= percentiles("pair", pinger.read()["trips_ns"])
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
            found |= percentiles(key, told["trips_ns"])
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
            before = settled_memory(daemon)
            if connections > 1:
                cast.role("roles.idle_holder", address=address, connections=connections - 1)
                after = settled_memory(daemon)
                for part in ("Rss", "Pss"):
                    found[f"{part.lower()}_kib"] = (after[part] - before[part]) / (connections - 1) / 1024
                quiet = daemon.cpu_s()
                time.sleep(1)
                found[f"{key}_quiet_ms"] = (daemon.cpu_s() - quiet) * 1000
            taker = cast.role("roles.paced_subscriber", address=address, pattern="paced.one", count=sizes.paced)
            giver = cast.role("roles.paced_publisher", address=address, topic="paced.one", count=sizes.paced, pause_s=0.001)
            giver.go()
            giver.read()
            found |= percentiles(key, taker.read()["trips_ns"])
            found[key], found[f"{key}_cpu"] = bus_rate(
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


def unrelated(sizes: Sizes) -> Measured:
    """What a publish costs beside subscriptions that it does not match: to one topic, and to a new one each time."""
    found: Measured = {}
    for lanes in UNRELATED:
        with Cast() as cast:
            daemon, address = cast.daemon()
            cast.role("roles.lane_holder", address=address, lanes=lanes, peers=10)
            found[f"one_{lanes}"], found[f"one_{lanes}_cpu"] = bus_rate(
                cast, daemon, address, "bytes", sizes.unrelated, topics=["load.one"], pattern="load.one"
            )
            topics = [f"fresh.{number}" for number in range(sizes.new_topics)]
            found[f"new_{lanes}"], found[f"new_{lanes}_cpu"] = bus_rate(
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
    "innocent": adversity.innocent,
    "recovery": adversity.recovery,
    "accounting": accounting.accounting,
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
    "innocent": adversity.INNOCENT_ROWS,
    "recovery": adversity.RECOVERY_ROWS,
    "accounting": accounting.ROWS,
}
