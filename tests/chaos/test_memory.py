"""Stuck readers of each policy and a publisher at full speed: the daemon's memory stays under the configured cap, and comes back."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from ipcbus.broker.peers import BYTES_FREE
from ipcbus.protocol.messages import Kind, encode_with_payload
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, wait_until
from tests.wire import Wire

READERS = 50
CAP_BYTES = 24 << 20  #: limits.max_queued_bytes
#: Beyond what waits: pieces, buffers of reads and writes, what the allocator keeps, and Python's own for 50 connections.
OVERHEAD_BYTES = 24 << 20
FLOOD_BYTES = 40 << 20  #: most of it for one reader each, so that they share no memory; and a part for all of them
FLOOD_S = 6.0  #: … or so long, where the publisher is held
SETTLE_S = 30.0

POLICIES = ("block", "drop_oldest", "drop_newest", "latest", "disconnect")
CONFIG = f"""
[limits]
max_payload_bytes = 65536
max_retained_bytes = 0
max_output_bytes = 4400000
max_queued_bytes = {CAP_BYTES}
lane_soft_bytes = 262144
lane_hard_bytes = 524288
lane_stall_s = 0.02
"""


def memory_bytes(daemon: RunningDaemon, what: str) -> int:
    """``VmRSS``: the memory that the daemon has now; ``VmHWM``: the most that it ever had."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def get_stuck(wire: Wire, policy: str, number: int) -> None:
    """Subscribe and never read again: one in two gives no credit either."""
    wire.hello("stuck")
    for lane, pattern in enumerate((f"flood.{number}", "flood.all"), 1):
        wire.call("subscribe", pattern=pattern, lane=lane, credit=number % 2 << 26, policy=policy)


def flood(publisher: Wire, witness: Wire) -> int:
    """Publish as fast as the bus reads; how much it took. The witness is served all the time."""
    batch = b"".join(
        encode_with_payload(bytes(size), Kind.PUBLISH, publisher.peer, f"flood.{to}", 1)
        for to in ("all", *range(READERS))
        for size in (60_000, *[2000] * 10, *[100] * 50)
    )
    taken, rest = 0, memoryview(batch)
    deadline = time.monotonic() + FLOOD_S
    publisher.sock.settimeout(0.05)
    while taken < FLOOD_BYTES and time.monotonic() < deadline:
        try:
            count = publisher.sock.send(rest)
        except TimeoutError:
            count = 0  # it is held
        except (BrokenPipeError, ConnectionResetError):
            break  # it was closed for what it made wait
        taken += count
        rest = rest[count:]
        if not rest or not count:
            rest = rest or memoryview(batch)
            witness.ping()
    return taken


def test_memory_stays_under_the_cap_and_comes_back(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--listen", "tcp:127.0.0.1:0", config=CONFIG)
    before = memory_bytes(daemon, "VmRSS")
    secret = Path(daemon.secret_file).read_bytes()
    with Wire(daemon.address) as witness:
        witness.hello("witness")
        for policy in POLICIES:
            with Wire(daemon.addresses[1]) as publisher, ExitStack() as readers:
                publisher.hello("flood", secret)  # another user's: what the readers do is not held against it
                for number in range(READERS):
                    get_stuck(readers.enter_context(Wire(daemon.address)), policy, number)
                lost = witness.call("stats")["lost"]
                taken = flood(publisher, witness)
                assert taken > FLOOD_BYTES // 8, f"{policy}: the flood was none"
                stats = witness.call("stats")
                assert stats["lost"] > lost, f"{policy}: the readers were not stuck"
                assert stats["queued_bytes"] <= CAP_BYTES + READERS * BYTES_FREE, policy
                grown = memory_bytes(daemon, "VmHWM") - before
                assert grown < CAP_BYTES + OVERHEAD_BYTES, f"{policy}: the daemon grew by {grown >> 20} MiB, {CAP_BYTES >> 20} may wait"
            wait_until(lambda: witness.call("stats")["peers"] == 1, "readers are left", SETTLE_S)
            left = witness.call("stats")
            assert (left["queued_bytes"], left["lanes"]) == (0, 0), policy
    wait_until(lambda: memory_bytes(daemon, "VmRSS") - before < OVERHEAD_BYTES, "memory did not come back", SETTLE_S)
