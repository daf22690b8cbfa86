"""What waits for an answer, and what is said again after a reconnect.

A `Call` is one REQUEST or PING in flight. A `Declaration` is a subscription, a name or a served method: the session replays them, in the
order made, at each new connection, before anything else is sent (DESIGN.md). Both are plain records; the session changes them, the shells
wait on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipcbus.protocol.messages import Meta
from ipcbus.protocol.payloads import decode_value

from ._errors import BusError
from ._lanes import Lane


class Call:
    """A request (or a ping, whose ``to`` is empty) that settles once: with an answer or with an error."""

    __slots__ = ("declaration", "done", "error", "id", "meta", "notify", "payload", "to")

    def __init__(self, identity: int, to: str, declaration: Declaration | None = None) -> None:
        self.id = identity
        self.to = to
        self.declaration = declaration
        self.done = False
        self.error: BusError | None = None
        self.meta: Meta = None
        self.payload = b""
        self.notify: Callable[[], None] | None = None  #: told when it is done

    def settle(self, meta: Meta = None, payload: bytes = b"", error: BusError | None = None) -> None:
        """The answer. A second one is ignored."""
        if not self.done:
            self.meta, self.payload, self.error = meta, payload, error
            self.done = True
            if self.notify is not None:
                self.notify()

    def result(self) -> Any:
        """The decoded answer of a call that is done; raises its error, or PayloadError."""
        if self.error is not None:
            raise self.error
        return decode_value(self.meta, self.payload)


@dataclass(slots=True)
class Declaration:
    """Something that the bus was told and must be told again after a reconnect."""

    method: str  #: the bus's method: subscribe, own or serve
    arguments: dict[str, Any]
    call: Call  #: whoever waits for the first answer
    lane: Lane | None = None  #: of a subscription
    said: bool = False  #: this connection was told
    owner: bool = False  #: of a name: it is ours, and not only waited for


@dataclass(frozen=True, slots=True)
class Remark:
    """Something for the log: the shell writes it where no lock is held."""

    level: int  #: of the logging module, which the session does not import
    text: str


WARNING, ERROR = 30, 40  #: the levels of the logging module
