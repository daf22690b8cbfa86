"""A work queue: workers share the jobs that are published to it, each job goes to one of them.

  python work_queue.py work first &  python work_queue.py work second &  python work_queue.py add 10
"""

from __future__ import annotations

import argparse
import time

import ipcbus_client


def work(bus: ipcbus_client.Bus, worker: str, seconds: float) -> None:
    """Take jobs for ever. Members of a group share its messages; with prefetch=1 a job waits at the bus until somebody has time for it."""
    for job in bus.subscribe("job.*", group="workers", prefetch=1):
        time.sleep(seconds)  # the work
        print(f"{worker} did {job.data}", flush=True)
        bus.publish("done", job.data)


def add(bus: ipcbus_client.Bus, count: int) -> None:
    """Publish jobs, and wait until all are done."""
    done = bus.subscribe("done")
    for n in range(count):
        bus.publish("job.new", n)
    for _ in range(count):
        done.get(timeout=30)
    print(f"{count} jobs are done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="be a worker")
    worker.add_argument("worker", help="what it calls itself")
    worker.add_argument("--seconds", type=float, default=0.1, help="that a job takes (default 0.1)")
    adder = commands.add_parser("add", help="add jobs and wait until they are done")
    adder.add_argument("count", type=int)
    options = parser.parse_args()

    with ipcbus_client.connect(options.address, program=f"work-queue {options.command}") as bus:
        if options.command == "work":
            work(bus, options.worker, options.seconds)
        else:
            add(bus, options.count)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
