"""The processes of the witness (see witness.py): ``python -m tests.survival.innocents sink|source ADDRESS``."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import ipcbus_client

PATIENCE_S = 60.0
BURST = 10  #: publications for each request
TICK = "witness.tick"


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def quantile(values: list[float], share: float) -> float:
    """Of sorted values, in ms."""
    return 1000 * values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Sink:
    """Takes the publications, and answers."""

    def __init__(self, bus: ipcbus_client.Bus) -> None:
        self.bus = bus
        self.received = 0  #: all, since the start
        self.latencies: list[float] = []
        self.faults: list[str] = []
        self.came = threading.Condition()

    def report(self, request: ipcbus_client.Request) -> dict[str, Any]:
        """What came since the last report, as soon as all is there that was sent."""
        with self.came:
            whole = self.came.wait_for(lambda: self.received >= request.data, PATIENCE_S)
            latencies, self.latencies = sorted(self.latencies), []
            faults, self.faults = self.faults, []
            if not whole:
                faults.append(f"{request.data} were sent, {self.received} came")
            if self.bus.stats_local()["reconnects"]:
                faults.append("the sink had to reconnect")
            return {"received": self.received, "delivery_p99_ms": quantile(latencies, 0.99), "faults": faults}

    def run(self) -> None:
        self.bus.own("witness")
        self.bus.respond("witness/echo", lambda request: request.data)
        self.bus.respond("witness/report", self.report)
        ticks = self.bus.subscribe(TICK)
        self.bus.flush()
        threading.Thread(target=self.end, args=[ticks], daemon=True).start()
        say("ready")
        for message in ticks:
            number, sent = message.data
            late = time.monotonic() - sent
            with self.came:
                if number != self.received:
                    self.faults.append(f"message {number} came where {self.received} was next")
                self.received = number + 1
                self.latencies.append(late)
                self.came.notify()

    def end(self, ticks: Any) -> None:
        sys.stdin.read()
        ticks.close()


def source(bus: ipcbus_client.Bus) -> None:
    """Publish and ask for as many seconds as each line says, then tell what was seen."""
    say("ready")
    number = 0
    for line in sys.stdin:
        first, begin, latencies, faults = number, time.monotonic(), [], []
        until = begin + float(line)
        while (before := time.monotonic()) < until:
            for _ in range(BURST):
                bus.publish(TICK, [number, time.monotonic()])
                number += 1
            before = time.monotonic()
            answer = bus.request("witness/echo", number, timeout=PATIENCE_S)
            latencies.append(time.monotonic() - before)
            if answer != number:
                faults.append(f"{answer!r} was the answer to {number}")
        seconds = time.monotonic() - begin
        seen = bus.request("witness/report", number, timeout=2 * PATIENCE_S)
        if bus.stats_local()["reconnects"]:
            faults.append("the source had to reconnect")
        latencies.sort()
        say(
            {
                "seconds": seconds,
                "sent": number - first,
                "received": seen["received"] - first,
                "p50_ms": quantile(latencies, 0.5),
                "p99_ms": quantile(latencies, 0.99),
                "max_ms": quantile(latencies, 1.0),
                "delivery_p99_ms": seen["delivery_p99_ms"],
                "faults": faults + seen["faults"],
            }
        )


def main() -> None:
    role, address = sys.argv[1:]
    with ipcbus_client.connect(address, program=f"witness-{role}", timeout=PATIENCE_S) as bus:
        if role == "sink":
            Sink(bus).run()
        else:
            bus.wait_for_name("witness", PATIENCE_S)
            source(bus)


if __name__ == "__main__":
    main()
