"""Sets the target of thermostat.py, and prints what it was before."""

from __future__ import annotations

import argparse
import sys

import ipcbus_client


class TooHot(ipcbus_client.ServiceError):
    """What the thermostat says to more than it can do: the code is what both programs know it by."""

    code = "too_hot"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("celsius", type=float)
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    with ipcbus_client.connect(options.address, program="thermostat-client") as bus:
        thermostat = bus.proxy("thermostat", timeout=5.0)
        try:
            before = thermostat.set_target(options.celsius)
        except ipcbus_client.NoSuchName:
            print("there is no thermostat on this bus: start thermostat.py", file=sys.stderr)
            return 1
        except TooHot as error:
            print(f"the thermostat says no: {error.text}", file=sys.stderr)
            return 1
        print(f"the target was {before:g}, and is {thermostat.target():g} now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
