"""What this program is told without having asked: direct messages, notices, and which of its messages the bus refused. Part of the session:
same lock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ipcbus.protocol.errors import Code, code_label
from ipcbus.protocol.messages import Kind
from ipcbus.protocol.payloads import MAX_ELEMENTS

from ._calls import WARNING, map_of
from ._errors import NoSuchPeer
from ._message import LargeMessage, Message, of_senders
from ._senders import NOBODY, Credentials, Senders, credentials_of

if TYPE_CHECKING:
    from ._lanes import Lane
    from ._session import Session

_RETAIN = Kind.RETAIN.value


class Told:
    """Takes these frames of one session, each of its kind."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.senders = NOBODY  #: who was introduced (I-1), of the bus that is there
        self._classes = Message, LargeMessage  #: of what they send

    def another_bus(self) -> None:
        """WELCOME of another incarnation, which knows others by the same ids: what comes from now on is of those; what is here stays as it
        came.
        """
        self.senders = senders = Senders()
        self._classes = of_senders(Message, senders), of_senders(LargeMessage, senders)
        self._session.services.meet(senders)
        for lane in self._session.lanes.values():
            self.meet(lane)

    def meet(self, lane: Lane) -> None:
        """What comes on *lane* is of those who are known."""
        lane.meet(self.senders, *self._classes)

    def kept(self, found: Mapping[str, Any] | None, make: type[Message] | None, asked: Senders) -> Message | None:
        """The message that `bus/get` gave (B-3), of the class *make* where it has a type; *asked*: our senders when it was asked for. Where
        they are others now, it is not known which bus gave it, and who its sender is.
        """
        if found is None:
            return None
        payload = found["payload"]
        plain, large, senders = (*self._classes, asked) if asked is self.senders else (Message, LargeMessage, NOBODY)
        cls = (plain if len(payload) <= MAX_ELEMENTS else large) if make is None else of_senders(make, senders)
        return cls((_RETAIN, found["sender"], found["topic"], found["meta"], payload))

    def identity(self, found: Mapping[str, Any], peer: int, asked: Senders) -> Credentials:
        """What `bus/identity` said of *peer*. Raises NoSuchPeer where the bus was restarted meanwhile: that is of another one."""
        if asked is not self.senders and asked is not NOBODY:
            raise NoSuchPeer(Code.NO_SUCH_PEER.value, f"the bus was restarted: peer {peer} was one of the bus before", "bus/identity")
        return credentials_of(found)

    def message(self, envelope: tuple[Any, ...]) -> None:
        """A SEND: for the inbox, which is bounded here, for it has no credit."""
        session = self._session
        inbox = session.inbox
        size = len(envelope[4]) + len(envelope[2]) + 32  # about what it was on the wire; bounds memory, not credit
        if inbox is None or inbox.closed:
            session.counters["unclaimed"] += 1
            if session.counters["unclaimed"] == 1:
                session.remark(WARNING, f"a direct message from :{envelope[1]} came, but there is no inbox: such are counted and dropped")
            return
        session.grant(inbox)
        if inbox.held_bytes + size > inbox.window_bytes:
            if not inbox.lost:
                text = f"the inbox is full ({inbox.window_bytes} B): direct messages are lost and counted until it is read"
                session.remark(WARNING, text)
            inbox.missed(1, "inbox_full")
            session.counters["lost"] += 1
            return
        make, make_large = self._classes
        inbox.messages.append((make if size <= MAX_ELEMENTS else make_large)(envelope))
        inbox.arrived(1, size)

    def refused(self, envelope: tuple[Any, ...]) -> None:
        """An ERROR about frames without an id (E-4)."""
        session = self._session
        _, _, _, _, code, text, meta, payload = envelope
        about = map_of(meta, payload)
        count = about.get("count", 1)
        session.counters["late_replies" if code == Code.NO_SUCH_REQUEST else "refused"] += count if type(count) is int else 1
        if code != Code.NO_SUCH_REQUEST:
            session.remark(WARNING, f"the bus refused {count} message(s) to {about.get('to')!r}: {code_label(code)}: {text}")

    def notice(self, envelope: tuple[Any, ...]) -> None:
        """A NOTICE (E-6); one that is not known is ignored."""
        session = self._session
        _, _, name, meta, payload = envelope
        about = map_of(meta, payload)
        if name == "lost":
            lane = session.lanes.get(about.get("lane", 0))
            count = about.get("count", 0)
            session.counters["lost"] += count
            if lane is not None:
                if not lane.lost and not lane.notices:  # (with notices the stream tells it)
                    text = f"subscription {lane.pattern!r} lost {count} messages: {about.get('why')}; its `lost` counts on"
                    session.remark(WARNING, text)
                lane.missed(count, str(about.get("why")))
        elif name == "revoked":
            session.declarations.revoked(about)
        elif name == "identity":
            self.senders.introduce(about)
        elif name in ("name_lost", "name_acquired"):
            session.declarations.ownership(about.get("name", ""), name == "name_acquired")
        elif name == "hold":
            session.outbox.holds.began(about)
        elif name == "resume":
            session.outbox.holds.ended(about)
        elif name == "lagging":
            self._lagging(session.lanes.get(about.get("lane", 0)), about)
        elif name == "caught_up":
            lane = session.lanes.get(about.get("lane", 0))
            if lane is not None:
                lane.caught_up(about.get("lost", 0))

    def _lagging(self, lane: Lane | None, about: Mapping[str, Any]) -> None:
        """So much waits for a subscription that its policy will act, or begins to (L-7)."""
        size, count, dropping = about.get("bytes", 0), about.get("count", 0), bool(about.get("dropping"))
        session = self._session
        if not dropping:
            session.counters["lagging"] += 1
        if lane is None:
            return
        if not lane.lagged and not lane.notices:
            session.remark(
                WARNING,
                f"subscription {lane.pattern!r} lags behind: {count} messages of {size} bytes wait at the bus, over its soft limit of "
                f"{about.get('soft')} (policy {about.get('policy')}); `lagging` of stats_local() counts on",
            )
        lane.waits(size, count, dropping)
