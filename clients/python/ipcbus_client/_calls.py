"""What waits for an answer, and what is said again after a reconnect.

A `Call` is one REQUEST or PING in flight. A `Declaration` is a subscription, a name or a served method: the session replays them, in the
order made, at each new connection, before anything else is sent (DESIGN.md). Both are plain records; the session changes them, the shells
wait on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ipcbus.protocol.messages import Meta
from ipcbus.protocol.payloads import RAW, PayloadError, decode_value

from ._errors import BusError
from ._lanes import Lane
from ._senders import Sender


class Call:
    """A request (or a ping, whose ``to`` is empty) that settles once: with an answer or with an error."""

    # (no slots: what most calls never set is cheapest as the class's)
    declaration: Declaration | None = None
    operation = "request"  #: for an exception
    mark: int | None = None  #: of a fence, to the bus itself (Outbox.mark); its answer takes the long way through Session.settle()
    sender = Sender(0)  #: who answered a call with a mark; 0: the bus, or nobody
    done = False
    error: BusError | None = None
    meta: Meta = None
    payload = b""
    notify: Callable[[], None] | None = None  #: told when it is done
    deadline: float | None = None  #: asyncio: when nobody waits any more

    def __init__(self, identity: int, to: str, declaration: Declaration | None = None) -> None:
        self.id = identity
        self.to = to
        if declaration is not None:
            self.declaration = declaration

    def settle(self, meta: Meta = None, payload: bytes = b"", error: BusError | None = None) -> None:
        """The answer. A second one is ignored."""
        if not self.done:
            self.meta, self.payload, self.error = meta, payload, error
            self.done = True
            if self.notify is not None:
                self.notify()

    def who(self) -> str:
        """Whom or what it is about, for an exception; empty for a ping."""
        return self.to if self.declaration is None else self.declaration.who()

    def what(self) -> str:
        """The operation, for an exception."""
        if self.declaration is not None:
            return self.declaration.method
        return self.operation if self.to else "ping"

    def result(self) -> Any:
        """The decoded answer of a call that is done; raises its error, or PayloadError."""
        if self.error is not None:
            raise self.error
        try:
            return self.payload if self.meta == RAW else decode_value(self.meta, self.payload)
        except PayloadError as error:
            error.about(who=self.to, what="request", hint="The answer is not what it says to be: a fault of the service.")
            raise


#: The method of a declaration, then its lane, name, name and method, or topic.
Key = tuple[str, ...] | tuple[str, int]


class Declaration:
    """Something that the bus was told and must be told again after a reconnect."""

    # (no dataclass, here and elsewhere: importing those takes 13 ms)
    __slots__ = ("arguments", "call", "earlier", "key", "lane", "method", "owner", "refused", "said")

    def __init__(self, key: Key, method: str, arguments: dict[str, Any], call: Call, lane: Lane | None = None) -> None:
        self.key = key  #: there is one of it
        self.method = method  #: the bus's method: subscribe, own or serve
        self.arguments = arguments
        self.call = call  #: whoever waits for the first answer
        self.lane = lane  #: of a subscription
        self.said = False  #: this connection was told
        self.owner = False  #: of a name: it is ours, and not only waited for
        self.refused = False  #: it was refused on a replay, which was logged, and not accepted since
        self.earlier: Declaration | None = None  #: the same, declared before, where somebody still waited for it

    def who(self) -> str:
        """The pattern, topic or name that it is about."""
        about = self.arguments
        return str(about.get("pattern") or about.get("topic") or about.get("name"))

    def settle(self, meta: Meta = None, payload: bytes = b"", error: BusError | None = None) -> None:
        """The answer, for all who wait for the first one."""
        declaration: Declaration | None = self
        while declaration is not None:
            declaration.call.settle(meta, payload, error)
            declaration.earlier, declaration = None, declaration.earlier


def map_of(meta: Any, payload: bytes) -> dict[str, Any]:
    """The map that the bus put into a payload; empty where it is none."""
    try:
        value = decode_value(meta, payload)
    except PayloadError:
        value = None  # of a newer bus, whose kinds and names alone are understood
    return value if isinstance(value, dict) else {}


class Remark(NamedTuple):
    """Something for the log: the shell writes it where no lock is held."""

    level: int  #: of the logging module, which the session does not import
    text: str


WARNING, ERROR = 30, 40  #: the levels of the logging module
