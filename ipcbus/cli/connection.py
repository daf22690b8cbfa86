"""Opening the bus that the common options name.

Owns how long a command waits for a bus that is not there, and how the user sees its address. Everything else is the
client library's.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..protocol.addresses import DEFAULT_BUS
from .text import complain

if TYPE_CHECKING:
    import ipcbus_client

ANSWER_TIMEOUT_S = 5.0  #: --timeout where a command does not say otherwise
CONNECT_TIMEOUT_S = 5.0  #: for a bus that is there but slow to answer; a shorter --timeout holds here too
MISSING_TIMEOUT_S = 0.3  #: for one that is not there, without --timeout: a person would rather know it soon


def open_bus(
    arguments: argparse.Namespace, *, program: str, wait_s: float | None, reconnect: bool = False
) -> ipcbus_client.Bus:
    """Connect as --address, --bus and --secret-file say; raises what `ipcbus_client.connect` raises.

    With *wait_s* (what the user asked for) it waits so long for a bus that is only starting. A command that is over after
    one exchange does not *reconnect*: its user would rather hear that the bus went away.
    """
    import ipcbus_client

    if reconnect:
        _report_what_the_library_logs()

    def connect(timeout_s: float) -> ipcbus_client.Bus:
        return ipcbus_client.connect(
            arguments.address,
            bus=arguments.bus,
            program=program,
            secret_file=arguments.secret_file,
            timeout=timeout_s,
            reconnect=reconnect,
        )

    if wait_s is not None:
        return connect(min(wait_s, CONNECT_TIMEOUT_S))
    try:
        return connect(MISSING_TIMEOUT_S)
    except ipcbus_client.ConnectError:
        if not _listens(describe(arguments).split(" ")[0]):
            raise
        return connect(CONNECT_TIMEOUT_S)  # it is there, and has much to do


def _report_what_the_library_logs() -> None:
    """Have its warnings, about lost connections for example, come out as ours do."""
    import logging

    class Complain(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = f": {record.exc_info[1]}" if record.exc_info else ""
            complain(record.getMessage() + cause)

    logging.getLogger("ipcbus_client").addHandler(Complain())


def _listens(address: str) -> bool:
    """Whether anybody listens on *address*."""
    import socket

    from ..protocol.addresses import UnixAddress, parse_address

    found = parse_address(address)
    try:
        if isinstance(found, UnixAddress):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(found.path)
        else:
            socket.create_connection((found.host, found.port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def describe(arguments: argparse.Namespace) -> str:
    """The address that `open_bus` tries, for a message; says where it was found if the user did not give it."""
    from ..daemon.places import runtime_dir
    from ..protocol.addresses import AddressError, default_address

    if arguments.address is not None:
        return str(arguments.address)
    address = os.environ.get("IPCBUS_ADDRESS")
    if address and arguments.bus is None:
        return f"{address} (from $IPCBUS_ADDRESS)"
    bus = arguments.bus or os.environ.get("IPCBUS_BUS") or DEFAULT_BUS
    try:
        return str(default_address(runtime_dir(), bus))
    except AddressError:
        return f"bus {bus!r}"
