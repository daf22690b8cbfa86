"""``ipcbus call --stream``: the values of a service's generator, printed as they come."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..protocol.payloads import PayloadError
from .failures import CommandError, Exit
from .values import render

if TYPE_CHECKING:
    import ipcbus_client


def print_values(bus: ipcbus_client.Bus, value: Any, arguments: argparse.Namespace) -> int:
    """Print each value on a line of its own; a service that has no values but a reply: that. Whatever ends it tells the service to stop."""
    printed = 0
    with bus.stream(arguments.to, value, timeout=arguments.timeout) as stream:
        try:
            for item in stream:
                _print(item, arguments)
                printed += 1
            if not printed and stream.result is not None:
                _print(stream.result, arguments)
        except PayloadError as error:
            raise CommandError(Exit.SERVICE, f"a value of {arguments.to}: {error}") from error
    return Exit.OK


def _print(item: Any, arguments: argparse.Namespace) -> None:
    if arguments.raw and isinstance(item, bytes):
        sys.stdout.buffer.write(item)
        sys.stdout.buffer.flush()
        return
    try:
        print(render(item), flush=True)
    except RecursionError:
        raise CommandError(Exit.SERVICE, f"a value of {arguments.to} is nested too deeply to print") from None
