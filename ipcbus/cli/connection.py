"""Opening the bus that the common options name.

Owns how long a command waits for a bus that is not there, and how the user sees its address. Everything else is the
client library's.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

from ..protocol.addresses import DEFAULT_BUS, Address, AddressError, UnixAddress
from .text import complain

if TYPE_CHECKING:
    import ipcbus_client

ANSWER_TIMEOUT_S = 5.0  #: --timeout where a command does not say otherwise
START_TIMEOUT_S = 20.0  #: the same where a bus may have to be started first
MISSING_TIMEOUT_S = 0.3  #: for a bus that is not there, without --timeout: a person would rather know it soon
_LOOK_S = 0.02  #: between two looks whether it is there now


def open_bus(
    arguments: argparse.Namespace,
    *,
    program: str,
    wait_s: float | None,
    reconnect: bool = False,
    reports: bool = False,
    autostart: bool | None = None,
) -> ipcbus_client.Bus:
    """Connect as --address, --bus, --secret-file and --identity say; raises what `ipcbus_client.connect` raises.

    With *wait_s* (what the user asked for) it waits so long for a bus that is only starting. That, or ANSWER_TIMEOUT_S,
    is also the time that the bus has for everything after it. A command that is over after one exchange does not
    *reconnect*: its user would rather hear that the bus went away. One that does, or *reports*, tells what the library
    logs. Without --autostart *autostart* says whether a bus may be started where there is none; None is as the environment
    has it.
    """
    import ipcbus_client
    from ipcbus_client._discovery import find_order

    if getattr(arguments, "autostart", False):
        autostart = True
    address = _find(arguments)
    starts = find_order(address, arguments.bus, autostart) is not None
    if reconnect or reports:
        _report_what_the_library_logs()
    if wait_s is None and not starts:
        _expect_a_listener(address)
    return ipcbus_client.connect(
        arguments.address,
        bus=arguments.bus,
        program=program,
        secret_file=arguments.secret_file,
        identity=arguments.identity,
        timeout=wait_s if wait_s is not None else START_TIMEOUT_S if starts else ANSWER_TIMEOUT_S,
        reconnect=reconnect,
        autostart=autostart,
    )


def _find(arguments: argparse.Namespace) -> Address:
    """The address that the library will try. Raises AddressError or ConnectError."""
    from ipcbus_client import ConnectError
    from ipcbus_client._discovery import find_address

    try:
        return find_address(arguments.address, arguments.bus)
    except OSError as error:  # platformdirs found a runtime directory that is not to be trusted; its text says what to do
        raise ConnectError(str(error)) from error


def _report_what_the_library_logs() -> None:
    """Have its warnings, about lost connections for example, come out as ours do."""
    import logging

    class Complain(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = f": {record.exc_info[1]}" if record.exc_info else ""
            complain(record.getMessage() + cause)

    logging.getLogger("ipcbus_client").addHandler(Complain())


_NOTHING = "nothing listens"


def _expect_a_listener(address: Address) -> None:
    """Raise ConnectError unless somebody listens on *address*, now or within MISSING_TIMEOUT_S."""
    from ipcbus_client import ConnectError

    deadline = time.monotonic() + MISSING_TIMEOUT_S
    while (why := _obstacle(address)) is not None:
        if time.monotonic() >= deadline:
            raise ConnectError(why, reason="nothing_listens" if why.startswith(_NOTHING) else "timeout", who=str(address))
        time.sleep(_LOOK_S)


def _obstacle(address: Address) -> str | None:
    """Why nobody can connect to *address*; None where somebody listens, even if too busy to accept."""
    import errno
    import socket

    try:
        if isinstance(address, UnixAddress):
            # A datagram socket cannot connect to a listening one, but hears whether it is there; the bus hears nothing.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), MISSING_TIMEOUT_S).close()
    except TimeoutError:
        return None
    except (FileNotFoundError, ConnectionRefusedError):
        return f"{_NOTHING} on {address}"
    except OSError as error:
        return None if error.errno == errno.EPROTOTYPE else f"{address}: {error.strerror}"
    return None


def describe(arguments: argparse.Namespace) -> str:
    """The address that `open_bus` tries, for a message; says where it was found if the user did not give it."""
    from ipcbus_client import ConnectError

    if arguments.address is not None:
        return str(arguments.address)
    try:
        address = str(_find(arguments))
    except (AddressError, ConnectError):
        return f"bus {arguments.bus or os.environ.get('IPCBUS_BUS') or DEFAULT_BUS!r}"
    return f"{address} (from $IPCBUS_ADDRESS)" if os.environ.get("IPCBUS_ADDRESS") and arguments.bus is None else address
