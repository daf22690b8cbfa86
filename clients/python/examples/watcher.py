"""Watches all rooms: prints what every sensor.py says, first what is known now, and when one is gone."""

from __future__ import annotations

import argparse

import ipcbus_client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=25.0, metavar="CELSIUS", help="warn above it (default 25)")
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    with ipcbus_client.connect(options.address, program="watcher") as bus:
        # The values that are there now, then each change, with nothing missed between the two. When the bus was away, what changed
        # meanwhile comes afterwards. (To see each message, and where some may be missing: bus.subscribe(…, notices=True).)
        for change in bus.watch("room.*.temp"):
            if change.removed:
                print(change.topic, "is gone", flush=True)
            else:
                celsius = change.data["celsius"]
                print(change.topic, celsius, "too warm" if celsius > options.limit else "", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
