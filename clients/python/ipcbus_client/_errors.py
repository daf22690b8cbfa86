"""What can go wrong for a user of the bus, one exception class each, and the table that says whether trying again can help.

Owns the exceptions of ``ipcbus_client`` and the translation of section 9's codes into them. Knows nothing of connections.

    BusError
    ├── ConnectError       the bus could not be reached, or may not be trusted     (also ConnectionError)
    ├── ConnectionLost     the connection ended while something was in flight      (also ConnectionError)
    ├── Closed             the bus, subscription or inbox was closed               (also ConnectionError)
    ├── Timeout            a wait took longer than its timeout                     (also TimeoutError)
    ├── BadName            an illegal topic, pattern, name, method or group        (also ValueError)
    └── RequestError       a request was answered with an error: ``code``, ``text``, ``to``
        ├── NoSuchName NoSuchMethod NoSuchPeer                                     (also LookupError)
        ├── ResponderDied                                                          (also ConnectionError)
        ├── Expired                                                                (also TimeoutError)
        ├── Denied                                                                 (also PermissionError)
        ├── Overloaded
        ├── Refused        every other code of the bus
        └── ServiceError   the service's own code, a str
"""

# ruff: noqa: N818  # these names are the public ones: ipcbus_client.Timeout reads better than ipcbus_client.TimeoutError would mislead

from __future__ import annotations

import enum
from typing import Literal

from ipcbus.protocol.errors import Code, ProtocolError, code_label

ConnectReason = Literal["nothing_listens", "secret", "refused", "timeout"]


class BusError(Exception):
    """Everything that ipcbus_client raises about the bus."""


class ConnectError(BusError, ConnectionError):
    """The bus could not be reached in time, or what listens there is not a bus that this program may trust.

    ``reason`` is for a program: ``nothing_listens``, ``secret`` (TCP: its file, or the proof), ``refused`` (by the bus, or by us what
    listens there), or ``timeout`` (no answer, or none that could be understood).
    """

    def __init__(self, text: str = "", *, reason: ConnectReason = "timeout") -> None:
        super().__init__(text)
        self.reason: ConnectReason = reason


class ConnectionLost(BusError, ConnectionError):
    """The connection ended before this was settled; whether the other side acted on it is unknown."""


class Closed(BusError, ConnectionError):
    """The bus, the subscription or the inbox was closed by this program."""


class Timeout(BusError, TimeoutError):
    """The wait took longer than its timeout."""


class BadName(BusError, ValueError):
    """An illegal topic, pattern, name, method or group; the text says which rule of PROTOCOL.md section 4 it breaks."""


class RequestError(BusError):
    """A request was answered with an error: ``code`` (a Code of the bus, or a service's str), ``text`` for a person, ``to`` whom it was
    for.
    """

    def __init__(self, code: int | str, text: str = "", to: str = "") -> None:
        super().__init__(code, text, to)
        self.code = code
        self.text = text
        self.to = to

    def __str__(self) -> str:
        return ": ".join(part for part in (self.to, code_label(self.code), self.text) if part)


class NoSuchName(RequestError, LookupError):
    """Nobody owns the name."""


class NoSuchMethod(RequestError, LookupError):
    """The name is owned, but nobody serves the method."""


class NoSuchPeer(RequestError, LookupError):
    """No peer has this id, or not any more."""


class ResponderDied(RequestError, ConnectionError):
    """The service went away before it answered; whether it acted on the request is unknown."""


class Expired(RequestError, TimeoutError):
    """The request's timeout passed before the service answered; it was told to stop."""


class Denied(RequestError, PermissionError):
    """The bus's policy does not allow it."""


class Overloaded(RequestError):
    """The service has too many requests in flight, or does not read."""


class Refused(RequestError):
    """The bus said no, with a code that has no class of its own."""


class ServiceError(RequestError):
    """The service answered with an error of its own. A handler raises it to choose the code: ``raise ServiceError("too_hot", "…")``."""


_CLASSES: dict[int, type[RequestError]] = {
    Code.NO_SUCH_NAME: NoSuchName,
    Code.NO_SUCH_METHOD: NoSuchMethod,
    Code.NO_SUCH_PEER: NoSuchPeer,
    Code.RESPONDER_DIED: ResponderDied,
    Code.EXPIRED: Expired,
    Code.DENIED: Denied,
    Code.OVERLOADED: Overloaded,
}


def request_error(code: int | str, text: str, to: str) -> RequestError:
    """The exception for an ERROR (E-1: an int is the bus's code, a str the service's)."""
    if isinstance(code, str):
        return ServiceError(code, text, to)
    try:
        code = Code(code)
    except ValueError:
        pass  # a code of a newer bus stays a number
    return _CLASSES.get(code, Refused)(code, text, to)


def refusal_reason(code: int) -> ConnectReason:
    """The ``reason`` of a ConnectError for the code of a BYE."""
    return "secret" if code == Code.AUTH_FAILED else "refused"


def is_gone(error: RequestError) -> bool:
    """Whether *error*, to a declaration that is taken back, says that the bus had forgotten it anyway."""
    return error.code in (Code.NOT_OWNER, Code.NO_SUCH_LANE)


def bad_name(error: ProtocolError) -> BadName:
    """The caller's side of bad_topic, bad_name and reserved."""
    return BadName(error.text)


class Verdict(enum.Enum):
    """What an error means for what met it."""

    RETRY = "try again after a while"
    END = "trying again would end the same way"


#: The bus ended the connection for something that a new connection of this program does not repeat.
_BYE_RETRY = frozenset(
    {Code.OK, Code.SLOW_READER, Code.HANDSHAKE_TIMEOUT, Code.SHUTTING_DOWN, Code.TOO_MANY_PEERS, Code.INTERNAL}
)
#: A declaration that was accepted before can be accepted again when this has passed.
_DECLARATION_RETRY = frozenset({Code.NAME_TAKEN, Code.OVER_LIMIT, Code.OVERLOADED, Code.INTERNAL, Code.NOT_OWNER, Code.EXPIRED})


def verdict(code: int | str, *, declaration: bool = False) -> Verdict:
    """Whether to try again after *code*: of a BYE, or with *declaration* of an ERROR that answers a replayed declaration."""
    return Verdict.RETRY if code in (_DECLARATION_RETRY if declaration else _BYE_RETRY) else Verdict.END
