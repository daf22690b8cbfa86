"""What can go wrong for a user of the bus, one exception class each, and the table that says whether trying again can help.

Owns the exceptions of ``ipcbus_client`` and the translation of section 9's codes into them. Knows nothing of connections.

    BusError
    ├── ConnectError       the bus could not be reached, or may not be trusted     (also ConnectionError)
    ├── ConnectionLost     the connection ended while something was in flight      (also ConnectionError)
    ├── Closed             the bus, subscription or inbox was closed               (also ConnectionError)
    ├── Timeout            a wait took longer than its timeout                     (also TimeoutError)
    ├── OutboxFull         no connection, or a bus that does not read, and what
    │                      waits for it is at its limit                            (also BufferError)
    ├── BadName            an illegal topic, pattern, name, method or group        (also ValueError)
    ├── AddressError       an address that cannot be used; of ipcbus.protocol      (also ValueError)
    ├── PayloadError       what cannot be packed, or unpacked; of ipcbus.protocol  (also ValueError)
    └── RequestError       a request was answered with an error: ``code``, ``text``, ``to``
        ├── NoSuchName NoSuchMethod NoSuchPeer                                     (also LookupError)
        ├── ResponderDied                                                          (also ConnectionError)
        ├── Expired                                                                (also TimeoutError)
        ├── Denied                                                                 (also PermissionError)
        ├── Overloaded
        ├── Refused        every other code of the bus
        └── ServiceError   the service's own code, a str; subclasses by code, which programs may add to
            └── BadArguments   the arguments do not fit the method                 (also TypeError)

Every one says ``who`` it is about, ``what`` was tried, ``when``, and in ``hint`` what to do now; str() is one sentence of what happened.
"""

# ruff: noqa: N818  # these names are the public ones: ipcbus_client.Timeout reads better than ipcbus_client.TimeoutError would mislead

from __future__ import annotations

import builtins
import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ipcbus.protocol.errors import Code, ProtocolError, code_label
from ipcbus.protocol.failures import BusError as BusError  # for those who import the others
from ipcbus.protocol.limits import ERROR_CODE_MAX_BYTES
from ipcbus.protocol.topics import is_name

if TYPE_CHECKING:
    from ._holds import Hold

ConnectReason = Literal["nothing_listens", "secret", "refused", "timeout", "autostart"]


class ConnectError(BusError, ConnectionError):
    """The bus could not be reached in time, or what listens there is not a bus that this program may trust.

    ``reason`` is for a program: ``nothing_listens``, ``secret`` (TCP: its file, or the proof), ``refused`` (by the bus, or by us what
    listens there), ``autostart`` (none could be started), or ``timeout`` (no answer, or none that could be understood).
    """

    what = "connect"

    def __init__(self, text: str = "", *, reason: ConnectReason = "timeout", who: str = "", what: str = "", hint: str = "") -> None:
        super().__init__(text, who=who, what=what, hint=hint or _CONNECT_HINTS[reason])
        self.reason: ConnectReason = reason


_CONNECT_HINTS: dict[ConnectReason, str] = {
    "nothing_listens": "Start a bus with `ipcbusd`, or name another with bus= or address=.",
    "secret": "Name the file of this bus's secret with secret_file= or $IPCBUS_SECRET_FILE; only its owner may read it.",
    "refused": "Look who listens there, and at the log of ipcbusd.",
    "autostart": "Start a bus with `ipcbusd`; the text says why it could not be started for you.",
    "timeout": "See whether ipcbusd is stopped or busy; wait longer with timeout=.",
}


class ConnectionLost(BusError, ConnectionError):
    """The connection ended before this was settled; whether the other side acted on it is unknown."""

    what = "wait"
    hint = "Try again where doing it twice is harmless (idempotent=True); the bus object reconnects by itself."


class Closed(BusError, ConnectionError):
    """The bus, the subscription or the inbox was closed by this program."""

    what = "close"
    hint = "Make a new one: what is closed stays closed."


class Timeout(BusError, TimeoutError):
    """The wait took longer than its timeout."""

    what = "wait"
    hint = "Wait longer with timeout=, or see whether the other side is stopped or busy."


class OutboxFull(BusError, BufferError):
    """There is no connection, or the bus does not read, and what waits for it is at its limit; or the topic is held, and ``hold`` says by
    which slow subscription (a Hold; else None). This message was not taken.
    """

    what = "publish"
    hint = "Publish less, or raise outbox_messages= or outbox_bytes= of connect(), or have it drop some with outbox='drop_oldest'."

    def __init__(self, text: str = "", *, who: str = "", what: str = "", hint: str = "", hold: Hold | None = None) -> None:
        super().__init__(text, who=who, what=what, hint=hint)
        self.hold = hold


class BadName(BusError, ValueError):
    """An illegal topic, pattern, name, method or group; the text says which rule of PROTOCOL.md section 4 it breaks."""

    hint = "Use another; section 4 of PROTOCOL.md has the rules."


class RequestError(BusError):
    """A request was answered with an error: ``code`` (a Code of the bus, or a service's str), ``text`` for a person, ``to`` whom it was
    for.
    """

    what = "request"
    text = ""  #: (here, for a subclass of a program may forget to call this __init__)
    to = ""

    def __init__(self, code: int | str, text: str = "", to: str = "", *, who: str = "", what: str = "", hint: str = "") -> None:
        super().__init__(who=who or to, what=what, hint=hint)
        text = str(text)  # often it is another exception
        self.args = (code, text, to)  # (not by the constructor: an OSError would take them for its own)
        self.code = code
        self.text = text
        self.to = to

    def __str__(self) -> str:
        return ": ".join(part for part in (self.to, code_label(self.code), self.text) if part)


class NoSuchName(RequestError, LookupError):
    """Nobody owns the name."""

    hint = "See who is there with `ipcbus names`; wait for it with wait_for_name()."


class NoSuchMethod(RequestError, LookupError):
    """The name is owned, but nobody serves the method."""

    hint = "See what it serves with `ipcbus describe NAME`."


class NoSuchPeer(RequestError, LookupError):
    """No peer has this id, or not any more."""

    hint = "See who is there with `ipcbus peers`; use a name, which outlives a reconnect."


class ResponderDied(RequestError, ConnectionError):
    """The service went away before it answered; whether it acted on the request is unknown."""

    hint = "Try again where doing it twice is harmless (idempotent=True)."


class Expired(RequestError, TimeoutError):
    """The request's timeout passed before the service answered; it was told to stop."""

    hint = "Wait longer with timeout=, or see what the service is busy with."


class Denied(RequestError, PermissionError):
    """The bus's policy does not allow it, or not any more; ``why`` says which rule decides."""

    hint = "Ask whoever runs the bus to allow it; `ipcbus policy test` says what would be allowed."

    @property
    def why(self) -> str:
        """The bus's words: which rule of which file denies what."""
        return self.text


class Overloaded(RequestError):
    """The service has too many requests in flight, or does not read."""

    hint = "Try again later, or ask less at once."


class Refused(RequestError):
    """The bus said no, with a code that has no class of its own."""

    hint = "The text says which rule or limit of the bus it is."


class ServiceError(RequestError):
    """The service answered with an error of its own. A handler raises it to choose the code: ``raise ServiceError("too_hot", "…")``.

    A subclass has a code of its own, in ``code`` or else its name, and takes the text only: ``class TooHot(ServiceError): code =
    "too_hot"``, ``raise TooHot("over 30 °C")``. Where the caller's program has a class for the code too, it is raised there, made without
    a call of its ``__init__``; where it has several (two libraries may both have a ``NotFound``), what is raised is one of each. A builtin
    exception of a handler arrives as a class that is both a ServiceError and that builtin. ``traceback`` is the remote one, where the
    service sends it.
    """

    hint = "The service's own documentation says what its code means."
    traceback: str | None = None
    by_code: ClassVar[dict[str, type[ServiceError]]] = {}

    def __init_subclass__(cls, *, joins: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        code = vars(cls).get("code", cls.__name__)
        if not isinstance(code, str) or len(code) > ERROR_CODE_MAX_BYTES or not is_name(code):
            raise TypeError(f"{cls.__name__}: a code is a name of at most {ERROR_CODE_MAX_BYTES} characters (E-1), not {code!r:.80}")
        cls.code = code
        if not joins:
            ServiceError.by_code[code] = _joined(cls, code)

    def __init__(self, *words: str, **named: str) -> None:
        """*words* are code, text and to, of a subclass text and to; by name also ``who``, ``what`` and ``hint``."""
        own = getattr(type(self), "code", None)
        super().__init__(*(words if own is None else (own, *words)), **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return service_error, (self.code, self.text, self.to), self.__dict__


#: code -> where a class of it was defined -> that class: a module that is loaded again replaces its own
_defined: dict[str, dict[tuple[str, str], type[ServiceError]]] = {}


def _joined(cls: type[ServiceError], code: str) -> type[ServiceError]:
    """*cls*, or where other classes have its code too, one of which an instance is one of each: who catches any of them catches it."""
    classes = _defined.setdefault(code, {})
    classes[cls.__module__, cls.__qualname__] = cls
    last = [one for one in reversed(classes.values()) if not any(one in other.__mro__[1:] for other in classes.values())]
    if len(last) == 1:
        return last[0]
    try:
        return type(cls.__name__, tuple(last), {"__module__": cls.__module__, "__doc__": cls.__doc__, "code": code}, joins=True)
    except TypeError:
        return cls  # nothing can be an instance of each


#: Builtin exceptions that cross the bus as themselves; others (StopIteration, SystemExit, …) would do harm at the caller, or need more
#: than a text to be made.
_CROSSING = frozenset({
    "ArithmeticError", "AssertionError", "AttributeError", "BlockingIOError", "BrokenPipeError", "BufferError", "ChildProcessError",
    "ConnectionAbortedError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "EOFError",
    "FileExistsError", "FileNotFoundError", "FloatingPointError", "ImportError", "IndexError", "InterruptedError", "IsADirectoryError",
    "KeyError", "LookupError", "ModuleNotFoundError", "NameError", "NotADirectoryError", "NotImplementedError", "OSError",
    "OverflowError", "PermissionError", "ProcessLookupError", "RecursionError", "ReferenceError", "RuntimeError", "TimeoutError",
    "TypeError", "UnboundLocalError", "UnicodeError", "ValueError", "ZeroDivisionError",
})  # fmt: skip


class BadArguments(ServiceError, TypeError):
    """The arguments do not fit the method; the text has its signature and says what is wrong. The method was not called."""

    hint = "Call it as its signature says; `ipcbus describe NAME` prints those of a service."


def _service_class(code: str) -> type[ServiceError]:
    found = ServiceError.by_code.get(code)
    if found is None and code in _CROSSING:
        found = type(code, (ServiceError, getattr(builtins, code)), {"__doc__": f"{code} of a service's handler.", "__module__": __name__})
    return found or ServiceError


def service_error(code: str, text: str, to: str, traceback: object = None) -> ServiceError:
    """The exception for a service's ERROR, of the class that this program has for its code."""
    cls = _service_class(code)
    error = cls.__new__(cls)
    RequestError.__init__(error, code, text, to)  # (a class of the program may take anything else)
    if isinstance(traceback, str):
        error.traceback = traceback
        error.add_note(f"The service's own traceback:\n{traceback}")
    return error


_CLASSES: dict[int, type[RequestError]] = {
    Code.NO_SUCH_NAME: NoSuchName,
    Code.NO_SUCH_METHOD: NoSuchMethod,
    Code.NO_SUCH_PEER: NoSuchPeer,
    Code.RESPONDER_DIED: ResponderDied,
    Code.EXPIRED: Expired,
    Code.DENIED: Denied,
    Code.OVERLOADED: Overloaded,
}


def request_error(code: int | str, text: str, to: str, about: Mapping[str, Any] = MappingProxyType({})) -> RequestError:
    """The exception for an ERROR (E-1: an int is the bus's code, a str the service's), whose payload says *about*."""
    if isinstance(code, str):
        return service_error(code, text, to, about.get("traceback"))
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


def bad_name(error: ProtocolError, who: str, what: str) -> BadName:
    """The caller's side of bad_topic, bad_name and reserved, about *who* in *what*."""
    return BadName(error.text, who=who, what=what)


class Verdict(enum.Enum):
    """What an error means for what met it."""

    RETRY = "try again after a while"
    END = "trying again would end the same way"


#: The bus ended the connection for something that a new connection of this program does not repeat.
_BYE_RETRY = frozenset(
    {Code.OK, Code.SLOW_READER, Code.HANDSHAKE_TIMEOUT, Code.SHUTTING_DOWN, Code.TOO_MANY_PEERS, Code.INTERNAL, Code.OVER_QUOTA}
)
#: A declaration that was accepted before can be accepted again when this has passed.
_DECLARATION_RETRY = frozenset({Code.NAME_TAKEN, Code.OVER_LIMIT, Code.OVERLOADED, Code.INTERNAL, Code.NOT_OWNER, Code.EXPIRED})


def verdict(code: int | str, *, declaration: bool = False) -> Verdict:
    """Whether to try again after *code*: of a BYE, or with *declaration* of an ERROR that answers a replayed declaration."""
    return Verdict.RETRY if code in (_DECLARATION_RETRY if declaration else _BYE_RETRY) else Verdict.END
