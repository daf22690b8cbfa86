"""Who sent a message: its peer id, with what the kernel told the bus of that peer (I-1). Pure values.

Ids are never used twice while a bus lives (H-7), so what is known belongs to one incarnation: there is a `Senders` for each, and messages
are of a class that has theirs (_message.py). So a message costs nothing for it, and one that is looked at after the bus was restarted does
not take another peer of the same number for its sender.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from ipcbus.protocol.limits import MAX_INTRODUCED

FEATURE = "identity"  #: H-3


class Credentials(NamedTuple):
    """Who is behind a peer, as the bus knows it, from the kernel and not from the peer: all but ``program``, which is what it calls itself.

    Taken when it connected: another process that uses its connection, as after a fork, has its credentials. Where something is not known
    it is None, or empty.
    """

    transport: str  #: ``unix`` or ``tcp``
    program: str  #: its own word: for a person to read, not to decide by
    pid: int | None  #: None on TCP; 0: of another pid namespace
    uid: int | None  #: None on TCP
    gid: int | None  #: None on TCP
    groups: tuple[int, ...]  #: supplementary groups, sorted
    unit: str  #: of the system's systemd
    user_unit: str  #: of its user's systemd
    identity: str  #: TCP: the name of the secret that it proved to hold


class Sender(int):
    """The peer id of a sender (H-7), an int in every other way; copied or pickled it is a plain one.

    ``credentials`` says who that is, also when it has gone. None: the bus itself, or not known: the bus is an older one, 4096 others have
    sent something since, or the sender had gone long before its message came out of a group's queue (I-3, I-4).
    """

    credentials: Credentials | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Senders(OrderedDict[int, Sender]):
    """The senders of one incarnation of the bus that were introduced, the latest last. Any id may be looked up, by any thread."""

    def __missing__(self, peer: int) -> Sender:
        return Sender(peer)

    def introduce(self, about: Mapping[str, Any]) -> None:
        """NOTICE identity (I-1). Beyond 4096 the first is forgotten, as the bus does, which introduces it again (I-3)."""
        peer = about["peer"]
        if about.get("transport") is None:
            return  # I-4: of who has gone the bus knows nothing any more; what is known here stays true
        if peer in self:
            self.move_to_end(peer)  # an earlier connection was told, too: the bus forgets in the order of this one
            return
        sender = Sender(peer)
        sender.credentials = credentials_of(about)
        self[peer] = sender
        if len(self) > MAX_INTRODUCED:
            self.popitem(last=False)


#: Of messages that came on no connection, and before the first one.
NOBODY = Senders()


def credentials_of(about: Mapping[str, Any]) -> Credentials:
    """What the bus said *about* a peer: in a NOTICE identity, or when it was asked (B-3)."""
    return Credentials(
        about.get("transport") or "",
        about.get("program") or "",
        about.get("pid"),
        about.get("uid"),
        about.get("gid"),
        tuple(about.get("groups") or ()),
        about.get("unit") or "",
        about.get("user_unit") or "",
        about.get("identity") or "",
    )
