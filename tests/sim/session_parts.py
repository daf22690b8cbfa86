"""What the program of a real session holds: lanes that it reads, streams that it takes, generators that it drives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ipcbus_client._calls import Call
from ipcbus_client._lanes import Lane
from ipcbus_client._message import Request
from ipcbus_client._parts import Parted

if TYPE_CHECKING:
    from .session_client import SessionClient

WINDOW_BYTES = 4_000


@dataclass(eq=False)
class Reader:
    """One lane of the program: what it took, and what it must have taken."""

    lane: Lane
    made_in_epoch: int
    wire: list[bytes | int] = field(default_factory=list)  #: payloads, and where the program asked for notices: how many were lost there
    taken: list[bytes | int] = field(default_factory=list)
    lost_on_wire: int = 0
    subscribed: Call | None = None  #: None for the inbox
    open: bool = True
    busy: bool = False  #: the program takes from it soon


@dataclass(eq=False)
class Taker:
    """One stream of the program: the parts that the wire brought, and those that the program took."""

    call: Parted
    wire: list[bytes] = field(default_factory=list)
    taken: list[bytes] = field(default_factory=list)
    busy: bool = False


Who = TypeVar("Who", Reader, Taker)


class Producer:
    """A generator of the program's, driven as the shells do."""

    def __init__(self, client: SessionClient, request: Request, left: int) -> None:
        self.client = client
        self.request = request
        self.left = left
        self.scheduled = False
        self.production = client.session.services.production(request)
        self.production.wake = self.wake

    def wake(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.client.world.after(self.client.soon(0.05), self.go_on)

    def go_on(self) -> None:
        """Some values, while there is credit."""
        client, production = self.client, self.production
        self.scheduled = False
        if not client.session.services.wants(self.request):
            return
        while self.left and production.ready:
            production.put(client._payload())
            self.left -= 1
            if client.random.random() < 0.3:
                break
        if not self.left:
            production.end(client._payload())
        elif production.ready:
            self.wake()
        client._push()


def append_loss(stream: list[bytes | int], lost: int) -> None:
    """A loss; several without a message between them are one."""
    if stream and isinstance(stream[-1], int):
        stream[-1] += lost
    else:
        stream.append(lost)
