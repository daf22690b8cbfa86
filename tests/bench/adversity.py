"""The workloads of a bad day: ``innocent`` beside stuck programs and a flood, and ``recovery`` from the death of the daemon."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

from ipcbus.protocol.messages import Kind, encode

from .measures import Measured, Row, Sizes, percentiles
from .processes import BenchError, Cast, Process
from .roles import ask, join

STOPPED, DEAF = 10, 10  #: stuck subscribers: processes that are stopped, and connections that do not read
PROCESSES = 10  #: that the clients of ``recovery`` are in
SETTLE_S = 0.5  #: for the flood to fill what can be filled
PATIENCE_S = 60.0

#: What is beside the pair: a flooding publisher, and the policy of 20 stuck subscribers to it.
_SITUATIONS: dict[str, tuple[bool, str | None]] = {
    "alone": (False, None),
    "flood": (True, None),
    "stuck": (True, "drop_oldest"),
    "held": (True, "block"),
}


def innocent(sizes: Sizes) -> Measured:
    """Requests, one at a time, of two blocking programs; and the same beside a flood on another bus, which only takes their processors."""
    found: Measured = {}
    for key, (flooded, policy) in _SITUATIONS.items():
        with Cast() as cast:
            _, address = cast.daemon()
            found |= _pair(cast, address, address, key, sizes.innocent, flooded=flooded, policy=policy)
    with Cast() as cast, Cast() as other:
        _, address = cast.daemon()
        _, elsewhere = other.daemon()
        found |= _pair(cast, address, elsewhere, "elsewhere", sizes.innocent, flooded=True, policy="drop_oldest")
    return found


def _pair(cast: Cast, address: str, flooded_address: str, key: str, count: int, *, flooded: bool, policy: str | None) -> Measured:
    """Percentiles of the pair at *address*, with what is beside it at *flooded_address*."""
    stopped: list[Process] = []
    cast.role("roles.responder", address=address)
    calling = cast.role("roles.caller", address=address, count=count)
    if policy is not None:
        stopped = [cast.role("troubles.idler", address=flooded_address, policy=policy) for _ in range(STOPPED)]
        cast.role("troubles.deaf", address=flooded_address, policy=policy, connections=DEAF)
        for process in stopped:
            os.kill(process.pid, signal.SIGSTOP)
    if flooded:
        cast.role("troubles.flooder", address=flooded_address)
        time.sleep(SETTLE_S)
    calling.go()
    trips = calling.read()["trips_ns"]
    for process in stopped:
        os.kill(process.pid, signal.SIGCONT)
    return percentiles(key, trips)


INNOCENT_ROWS = (
    Row("alone, p50", "alone_p50", "µs"),
    Row("  p99", "alone_p99", "µs"),
    Row("  p99.9", "alone_p999", "µs"),
    *(
        row
        for key, label in (
            ("elsewhere", "flood and 20 stuck on another bus"),
            ("flood", "flooding publisher, nobody subscribed"),
            ("stuck", "flood, 20 stuck that drop"),
            ("held", "flood, 20 stuck that block"),
        )
        for row in (
            Row(f"{label}, p50", f"{key}_p50", "µs", "alone_p50"),
            Row("  p99", f"{key}_p99", "µs", "alone_p99", *(("<=", 1.5) if key in ("stuck", "held") else ())),
            Row("  p99.9", f"{key}_p999", "µs", "alone_p999"),
        )
    ),
    Row("flood and 20 stuck here / on another bus, p99", "stuck_p99", "µs", "elsewhere_p99", "<=", 1.5),
    Row("flood and 20 stuck / flood and none, p99", "stuck_p99", "µs", "flood_p99", "<=", 1.5),
)


def recovery(sizes: Sizes) -> Measured:
    """kill -9 of the daemon, another one at once, until each client has its subscription, its name and its retained value again."""
    each = sizes.clients // PROCESSES
    clients = each * PROCESSES
    found: Measured = {}
    with Cast() as cast:
        daemon, address = cast.daemon()
        for number in range(PROCESSES):
            cast.role("troubles.returner", address=address, first=number * each, count=each)
        start = _killed(daemon)
        cast.daemon()
        found["listens"] = (time.monotonic() - start) * 1000
        found["clients"] = (_all_back(address, clients) - start) * 1000
    with Cast() as cast:
        path = str(cast.directory / "plain")
        server = cast.role("controls.greeter", path=path, count=clients)
        for _ in range(PROCESSES):
            cast.role("controls.returner", path=path, count=each)
        server.go()
        server.read()
        start = _killed(server)
        server = cast.role("controls.greeter", path=path, count=clients)
        found["greeter"] = (time.monotonic() - start) * 1000
        server.go()
        server.read()
        found["sockets"] = (time.monotonic() - start) * 1000
    return found


def _killed(process: Process) -> float:
    """kill -9; when that was."""
    start = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    while process.alive():
        time.sleep(0.0005)
    return start


def _all_back(address: str, clients: int) -> float:
    """When the new bus has everything of *clients*."""
    deadline = time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        connection = stack.enter_context(join(address, []))
        while time.monotonic() < deadline:
            stats = ask(connection, "stats")
            if min(stats["lanes"], stats["names"], stats["retained"]) >= clients:
                now = time.monotonic()
                connection.sendall(encode(Kind.BYE, 0, 0, ""))
                return now
            time.sleep(0.002)
    raise BenchError(f"after {PATIENCE_S:g} s not all of {clients} clients are back")


RECOVERY_ROWS = (
    Row("200 clients have all again, after kill -9", "clients", "ms", "sockets"),
    Row("  the new daemon listens / the control does", "listens", "ms", "greeter"),
)
