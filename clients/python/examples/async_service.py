"""A service in asyncio that ends in order: on SIGTERM (or Ctrl-C) it takes no new requests, answers those at work, and leaves the bus.

  python async_service.py &  ipcbus call kettle/boil '{"cups": 2}'
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from ipcbus_client import aio


async def boil(request: aio.Request) -> str:
    """Takes half a second a cup. Each request is a task of its own; it is cancelled when nobody waits for the answer any more."""
    cups = request.data["cups"]
    print(f"boiling {cups}", flush=True)
    try:
        await asyncio.sleep(cups / 2)
    except asyncio.CancelledError:
        print("nobody waits any more: off", flush=True)
        raise
    return f"{cups} cups of hot water"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of the bus, as unix:/path (default: $IPCBUS_ADDRESS, or the user's bus)")
    options = parser.parse_args()

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async with aio.connect(options.address, name="kettle") as bus:
        await bus.respond("kettle/boil", boil)
        print("serving", flush=True)
        await stop.wait()
        print("finishing", flush=True)
        await bus.close(timeout=10)  # drains: no new requests, handlers finish, their answers are sent, goodbye
    print("gone", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
