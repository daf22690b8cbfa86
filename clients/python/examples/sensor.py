"""A sensor: publishes a temperature every second. Try it beside watcher.py:  python sensor.py kitchen"""

from __future__ import annotations

import argparse
import math
import time

import ipcbus_client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room", help="where it is, as a word of a topic: kitchen")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two readings (default 1)")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N readings (default: never)")
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    topic = f"room.{options.room}.temp"
    with ipcbus_client.connect(options.address, program="sensor") as bus:
        n = 0
        while not options.count or n < options.count:
            reading = {"celsius": round(21 + 5 * math.sin(n / 5), 1), "at": time.time()}
            # The bus keeps the last reading for those who come later, as long as this program is connected, however that ends. While
            # the bus is away, readings wait, and follow in order.
            bus.publish(topic, reading, retain=True, bound=True)
            n += 1
            time.sleep(options.every)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass  # Ctrl-C: leaving the with statement has said goodbye to the bus
