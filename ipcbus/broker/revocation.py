"""Another policy: what peers have that it does not allow ends, and they are told (P-8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..protocol.errors import ProtocolError
from .delivery import Delivery
from .lanes import Lane
from .peers import Peer

if TYPE_CHECKING:
    from ..policy import Rights
    from .accounts import User
    from .state import State

#: So many lines say what was revoked; the rest is counted.
LINES_MAX = 1_000
#: Units of work (`effort`) that judging the patterns of one user may be, some seconds: nothing else is done meanwhile. Who has thousands of
#: patterns that each take thousands of steps loses those that come after it.
REJUDGE_WORK_MAX = 8_000_000


class Revocation:
    """Goes through all that peers have, once. *expel* closes a connection."""

    def __init__(self, state: State, delivery: Delivery, expel: Callable[[Peer, ProtocolError], None]) -> None:
        self._state = state
        self._judge = state.judge
        self._delivery = delivery
        self._expel = expel
        self._lines: list[str] = []
        self._more = 0
        self._patterns: dict[tuple[Rights, bool, str], str | None] = {}  #: verdicts that may be much work, for all with the same rights
        self._work: dict[User, int] = {}  #: what that was for whose patterns

    def run(self) -> list[str]:
        """Give every peer its rights and take from it what they do not allow; what was taken, in lines for the log. Who may not be here any
        more is closed, which is logged there.

        What is read goes first: what is published while the rest goes, wills and the owners of names, is for nobody who may not have it.
        Then who waits for a name and may not have it: else the name that somebody loses would be given to it.
        """
        peers = [peer for peer in self._state.peers.values() if not peer.closing]
        unwelcome: list[tuple[Peer, ProtocolError]] = []
        for peer in peers:
            try:
                self._judge.give_rights(peer)
            except ProtocolError as error:
                unwelcome.append((peer, error))
        gone = {peer for peer, _ in unwelcome}
        restricted = [peer for peer in peers if peer.rights is not None and peer not in gone]
        for peer, _ in unwelcome:
            for lane in tuple((peer.lanes or {}).values()):
                self._state.remove_lane(lane)
        for peer in restricted:
            self._take_lanes(peer)
        for peer, _ in unwelcome:
            for name in self._claims(peer, owned=False):
                self._state.names.release(peer, name)
        for peer in restricted:
            self._take_names(peer, owned=False)
        for peer, refusal in unwelcome:
            self._expel(peer, refusal)
        for peer in restricted:
            self._take_topics(peer)
            self._take_names(peer, owned=True)
        return [*self._lines, f"and {self._more} more"] if self._more else self._lines

    def _take_topics(self, peer: Peer) -> None:
        """The wills and bound topics to which it may not publish; what is kept stays."""
        for topic in dict.fromkeys((*(peer.wills or ()), *(peer.bound or ()))):
            why = _why_not(self._judge.publish, peer, topic)
            if why is not None:
                (peer.wills or {}).pop(topic, None)
                (peer.bound or {}).pop(topic, None)
                self._tell(peer, f"what it would leave on {topic!r}", {"what": "publish", "topic": topic, "why": why})

    def _claims(self, peer: Peer, *, owned: bool) -> list[str]:
        """The names that it owns, or those that it waits for."""
        records = [(self._state.names.get(name), name, claim) for name, claim in (peer.claims or {}).items()]
        return [name for record, name, claim in records if record is not None and (claim in record.owners) == owned]

    def _take_names(self, peer: Peer, *, owned: bool) -> None:
        names = self._state.names
        for name in self._claims(peer, owned=owned):
            why = _why_not(self._judge.own, peer, name)
            if why is not None:
                what = "the name" if owned else "its place in line for the name"
                self._tell(peer, f"{what} {name!r}", {"what": "own", "name": name, "why": why})
                self._state.announce(names.release(peer, name))

    def _take_lanes(self, peer: Peer) -> None:
        for lane in tuple((peer.lanes or {}).values()):
            why = self._why_not_lane(lane)
            if why is not None:
                what, name = ("monitor", "its monitor of") if lane.watches else ("subscribe", "its subscription to")
                told = {"what": what, "lane": lane.number, "pattern": lane.pattern, "why": why}
                self._tell(peer, f"{name} {lane.pattern!r}", told)
                self._state.remove_lane(lane)

    def _why_not_lane(self, lane: Lane) -> str | None:
        peer = lane.peer
        if peer.rights is None:
            return None
        key = peer.rights, lane.watches, lane.pattern
        if key not in self._patterns:
            user, spent = peer.account.user, self._state.effort.spent
            work = self._work.get(user, 0)
            if work >= REJUDGE_WORK_MAX:
                return f"the patterns of {user} are too many and too complex to judge them all anew at once: subscribe again"
            self._patterns[key] = _why_not(self._judge.monitor if lane.watches else self._judge.subscribe, peer, lane.pattern)
            self._work[user] = work + self._state.effort.spent - spent
        return self._patterns[key]

    def _tell(self, peer: Peer, what: str, notice: dict[str, object]) -> None:
        """NOTICE `revoked`, after all that is in its output, and a line."""
        self._delivery.notice(peer, "revoked", notice)
        if len(self._lines) < LINES_MAX:
            self._lines.append(f"{peer} loses {what}: {notice['why']}")
        else:
            self._more += 1


def _why_not(ask: Callable[[Peer, str], None], peer: Peer, target: str) -> str | None:
    """Why *peer* may not, None where it may."""
    try:
        ask(peer, target)
    except ProtocolError as error:
        return error.text
    return None
