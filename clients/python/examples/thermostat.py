"""A service: a thermostat that other programs set and ask. Try it with thermostat_client.py, or:  ipcbus call thermostat/set_target 22.5"""

from __future__ import annotations

import argparse
import threading

import ipcbus_client


class TooHot(ipcbus_client.ServiceError):
    """The target is above what is allowed."""

    def __init__(self, celsius: float) -> None:
        super().__init__("too_hot", f"{celsius:g} °C is above 30 °C")


class Thermostat:
    """What it does, without a word about the bus."""

    def __init__(self) -> None:
        self.target = 20.0

    def set_target(self, celsius: float) -> float:
        """Set the target; returns the one before."""
        if celsius > 30:
            raise TooHot(celsius)
        before, self.target = self.target, celsius
        return before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    thermostat = Thermostat()
    with ipcbus_client.connect(options.address, name="thermostat") as bus:
        bus.respond("thermostat/set_target", lambda request: thermostat.set_target(request.data))
        bus.respond("thermostat/target", lambda request: thermostat.target)
        print("serving", flush=True)
        threading.Event().wait()  # handlers run on the bus's own thread


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
