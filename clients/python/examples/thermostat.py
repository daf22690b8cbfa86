"""A service: a thermostat that other programs set and ask. Try it with thermostat_client.py, or:  ipcbus call thermostat/set_target 22.5"""

from __future__ import annotations

import argparse

import ipcbus_client


class TooHot(ipcbus_client.ServiceError):
    """Arrives at the caller as its own class with this code, where it has one."""

    code = "too_hot"


class Thermostat:
    """What it does, without a word about the bus. Public methods with annotations are served; what callers send is checked against them."""

    def __init__(self) -> None:
        self._target = 20.0

    def set_target(self, celsius: float) -> float:
        """Set the target; returns the one before."""
        if celsius > 30:
            raise TooHot(f"{celsius:g} °C is above 30 °C")
        before, self._target = self._target, celsius
        return before

    def target(self) -> float:
        """The target that is set."""
        return self._target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    with ipcbus_client.connect(options.address, program="thermostat") as bus:
        bus.serve("thermostat", Thermostat())
        print("serving", flush=True)
        bus.wait()  # for ever: methods run on threads of the bus


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
