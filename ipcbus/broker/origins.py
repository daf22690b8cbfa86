"""Who a message is from, also when that peer has gone: what the bus tells a receiver of its sender (I-1, I-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocol.messages import Kind, decode, encode_with_payload, pack

if TYPE_CHECKING:
    from .accounts import Program
    from .peers import Credentials

#: So many groups of who has published what is kept are not charged, and then each as what it takes in a notice.
_GROUPS_FREE = 64
_GROUP_BYTES = 5

#: What a notice says of a peer besides its number; nil where it is not known.
_KEYS = ("transport", "program", "pid", "uid", "gid", "groups", "unit", "user_unit", "identity")


class Origin:
    """What stays of a peer with the messages that it leaves behind. One object for each peer, made when somebody asks for it."""

    __slots__ = ("_notice", "account", "credentials", "id", "identity", "program", "transport", "weight")

    def __init__(
        self, number: int, account: Program, transport: str, program: str, credentials: Credentials | None, identity: str
    ) -> None:
        self.id = number
        self.account = account  #: who is charged for what it leaves behind (Q-1)
        self.transport = transport
        self.program = program
        self.credentials = credentials
        self.identity = identity
        self._notice = b""
        groups = len(credentials.groups) if credentials is not None else 0
        self.weight = _GROUP_BYTES * max(groups - _GROUPS_FREE, 0)  #: bytes that it counts for with each message that is kept (L-8)

    def settle(self) -> None:
        """Its peer has gone. From now on it is what its notice says, which with a thousand groups takes a ninth of the memory."""
        self._notice = self.notice
        self.credentials = None

    @property
    def said(self) -> bytes:
        """What ``bus/identity`` says of it, packed."""
        return decode(self.notice).payload

    @property
    def notice(self) -> bytes:
        """The frame of NOTICE ``identity`` (I-2); the same for all receivers."""
        if not self._notice:
            about = {"peer": self.id, "transport": self.transport, "program": self.program}
            self._notice = identity_notice({**about, **describe_credentials(self.credentials), "identity": self.identity})
        return self._notice


def describe_credentials(credentials: Credentials | None) -> dict[str, Any]:
    """What the kernel says of a peer; nil where it says nothing (TCP)."""
    if credentials is None:
        return dict.fromkeys(("pid", "uid", "gid", "groups", "unit", "user_unit"))
    return {
        "pid": credentials.pid,
        "uid": credentials.uid,
        "gid": credentials.gid,
        "groups": credentials.groups,
        "unit": credentials.unit,
        "user_unit": credentials.user_unit,
    }


def forgotten(number: int) -> dict[str, Any]:
    """What is said of a peer that has gone, and of which the bus knows nothing any more (I-4)."""
    return {"peer": number, **dict.fromkeys(_KEYS), "gone": True}


def identity_notice(content: dict[str, Any]) -> bytes:
    """The frame of NOTICE ``identity``."""
    return encode_with_payload(pack(content), Kind.NOTICE, 0, "identity", None)
