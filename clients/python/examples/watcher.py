"""Watches all rooms: prints every temperature of sensor.py, the last known ones first, and says when messages may be missing."""

from __future__ import annotations

import argparse

import ipcbus_client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=25.0, metavar="CELSIUS", help="warn above it (default 25)")
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    with ipcbus_client.connect(options.address, program="watcher") as bus:
        # notices=True: where the connection was lost, or this program was too slow, the stream says so at that place.
        for item in bus.subscribe("room.*.temp", notices=True):
            if isinstance(item, (ipcbus_client.Reconnected, ipcbus_client.Lost)):
                print("messages may be missing here:", item, flush=True)
                continue
            celsius = item.data["celsius"]
            print(item.topic, celsius, "too warm" if celsius > options.limit else "", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
