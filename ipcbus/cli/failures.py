"""What the command line says when something did not work: an exit code, and one line that names the next step.

Owns the exit codes and the one translation from exceptions to them. Knows nothing about argparse, sockets or commands.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit codes of ``ipcbus``, the same for every subcommand."""

    OK = 0
    INTERNAL = 1  #: a fault of ipcbus itself, or of a file it reads or writes; for `demo`: a check did not hold
    USAGE = 2  #: arguments or input that cannot be used
    CONNECT = 3  #: no bus there, or the connection to it was lost
    TIMEOUT = 4  #: the time was over before the answer or the message came
    REFUSED = 5  #: the bus said no: no such name or method, nothing kept, denied, name taken, …
    SERVICE = 6  #: the service that was called answered with an error, died, or sent what cannot be decoded
    INTERRUPTED = 130  #: Ctrl-C


#: What ``ipcbus --help`` says about them.
EXIT_CODES = """exit codes:
  0  done
  1  internal error (demo: a check did not hold)
  2  usage: arguments or input that cannot be used
  3  cannot connect, or the connection was lost
  4  the time was over
  5  refused by the bus: no such name or method, nothing kept, denied, name taken
  6  the service answered with an error, or died
  130  Ctrl-C"""


class CommandError(Exception):
    """A command that ends with ``exit`` and one line on stderr, ``text``."""

    def __init__(self, exit: Exit, text: str) -> None:
        super().__init__(text)
        self.exit = exit
        self.text = text


def usage(text: str) -> CommandError:
    """A CommandError for arguments or input that cannot be used."""
    return CommandError(Exit.USAGE, text)


def explain(error: BaseException, address: str) -> CommandError | None:
    """The exit code and the line for an exception of the client library; None for one that no user can act on.

    *address* is the bus that was tried, as the user should see it.
    """
    import ipcbus_client as client

    from ..protocol.addresses import AddressError
    from ..protocol.errors import code_label

    text = str(error) or type(error).__name__
    match error:
        case CommandError():
            return error
        case AddressError() | client.BadName() | client.PayloadError():
            return usage(text)
        case client.Expired():
            return CommandError(Exit.TIMEOUT, f"{error.to} did not answer in time; give it more with --timeout SECONDS")
        case client.NoSuchName():
            return CommandError(Exit.REFUSED, f"nobody owns the name of {error.to}; `ipcbus names` lists who is there")
        case client.NoSuchMethod():
            return CommandError(Exit.REFUSED, f"{error.to} is not served; `ipcbus names` lists the methods of each name")
        case client.NoSuchPeer():
            return CommandError(Exit.REFUSED, f"no peer has the id in {error.to}; `ipcbus peers` lists them")
        case client.ResponderDied():
            return CommandError(Exit.SERVICE, f"{error.to} went away before it answered")
        case client.ServiceError():
            return CommandError(Exit.SERVICE, f"{error.to} answered with {error.code}: {error.text}")
        case client.Denied():
            return CommandError(Exit.REFUSED, f"{error.who or error.to}: {code_label(error.code)}: {error.text}; {error.hint}")
        case client.RequestError():
            return CommandError(Exit.REFUSED, f"{error.who or error.to}: {code_label(error.code)}: {error.text}")
        case client.Timeout():
            return CommandError(Exit.TIMEOUT, f"{text} (bus at {address}); give it more with --timeout SECONDS")
        case client.ConnectError():
            if error.reason != "nothing_listens":
                return CommandError(Exit.CONNECT, f"cannot connect: {text}")
            start = "start one with `ipcbusd`, or name another with --bus or --address"
            return CommandError(Exit.CONNECT, f"no bus at {address}: {start}")
        case client.ConnectionLost() | client.Closed():
            return CommandError(Exit.CONNECT, f"lost the connection to {address} ({text}); is ipcbusd still running?")
        case client.OutboxFull() if error.hold is not None:
            return CommandError(Exit.TIMEOUT, f"{text}; give it more with --timeout SECONDS")
        case client.OutboxFull():
            return CommandError(Exit.CONNECT, f"no connection to {address}: {text}")
        case client.BusError():
            return CommandError(Exit.REFUSED, f"{text}; {error.hint}")
    return None
