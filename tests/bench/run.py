"""The command: chooses workloads, runs their rounds interleaved, shows progress, prints the table, writes JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import report
from tests.bench.measures import QUICK, Measured, Sizes
from tests.bench.processes import BenchError
from tests.bench.workloads import ONCE, WORKLOADS

EPILOG = """workloads:
  pubsub     1 publisher to 1 subscriber, 128 B: msgpack values, bytes; control: a relay that copies without looking
  fanout     1 publisher to 8 subscribers, 128 B; control: the same relay with 8 outputs
  wild       1000 topics in turn, 100 wildcard subscriptions in 4 processes; control: the relay 1 to 1
  rpc        requests one at a time, blocking and asyncio, and 64 in flight; control: ping-pong over a socketpair
  idle       4000 connections: memory of each, and what a message to one of them costs; control: one connection
  wakeups    how often an idle daemon wakes up beside 100 subscribers, over 130 s; in the first round only
  unrelated  what a publish costs beside 10 to 100 000 subscriptions of others; control: beside 10
  innocent   requests of a pair that has nothing to do with 20 stuck subscribers and a flooding publisher; control: without those
  recovery   from SIGKILL of the daemon to 200 clients that have everything again; control: plain sockets that reconnect
  accounting 1 to 1, beside the same daemon that charges nobody for what waits; and beside the relay

examples:
  python -m tests.bench                         everything, 5 rounds, about 10 minutes
  python -m tests.bench --only pubsub rpc       these two
  python -m tests.bench --quick --runs 1        does it run at all; the figures mean little

Every receiver checks each message (order, number, tag, length, tail); a round in which one is wrong ends the run with
code 1. Whether the goals are met is printed and does not change the exit code. Leave the machine alone meanwhile."""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; 0, or 1 where a round could not be counted, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="The figures of ipcbus, each beside a control measured in the same run. Real processes, the public client API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=WORKLOADS, help="only these workloads")
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        metavar="N",
        help="rounds of each workload; medians are shown (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    sizes = QUICK if options.quick else Sizes()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a round's processes are ended
    rounds: dict[str, list[Measured]] = {name: [] for name in WORKLOADS if not options.only or name in options.only}
    code = 0
    try:
        _run(rounds, sizes, options.runs)
    except BenchError as error:
        print(f"\nended early: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        code = 130
    lines = report.lines(rounds)
    print(report.table(lines))
    if options.json:
        record = {
            "machine": report.machine(),
            "sizes": asdict(sizes),
            "runs": options.runs,
            "lines": lines,
            "rounds": rounds,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return code


def _run(rounds: dict[str, list[Measured]], sizes: Sizes, runs: int) -> None:
    """All rounds, workload after workload within a round: what drifts over minutes touches all of them alike."""
    for number in range(1, runs + 1):
        for name, measured in rounds.items():
            if name in ONCE and measured:
                continue
            start = time.monotonic()
            load = os.getloadavg()[0]
            print(f"round {number}/{runs}  {name:10}", end="", file=sys.stderr, flush=True)
            measured.append(WORKLOADS[name](sizes))
            print(f"{time.monotonic() - start:6.1f} s   (load before: {load:.1f})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
