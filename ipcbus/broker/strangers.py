"""Connections that are not ready yet: how long they may take, how many of them may come by TCP, and what becomes of those that fail there.

Any program of this machine can connect by TCP, and nothing is known of it before its proof. So the bus keeps few of them, has who fails
often wait for the answer, and writes a line about failures now and then, not one for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import (
    FAILED_AT_ONCE,
    FAILED_LOG_S,
    FAILED_LOOK_S,
    FAILED_USERS,
    FAILED_WAIT_S,
    TCP_STRANGERS_MAX,
)
from .timeouts import Timeouts

if TYPE_CHECKING:
    from .peers import Peer


class Strangers:
    """The connections of one bus that were not given WELCOME."""

    __slots__ = ("_by_tcp", "_failures", "_late", "_tokens", "_tokens_at", "_waiting")

    def __init__(self, timeout_s: float, log: Callable[[int, str], None]) -> None:
        self._waiting: Timeouts[Peer] = Timeouts(timeout_s)  #: H-9
        self._by_tcp: dict[Peer, None] = {}  #: in the order in which they came
        self._late: Timeouts[Peer] = Timeouts(FAILED_WAIT_S)  #: whose proof was wrong, and who are to hear it later
        self._tokens = float(FAILED_AT_ONCE)
        self._tokens_at = 0.0
        self._failures = Failures(log)

    def __iter__(self) -> Iterator[Peer]:
        yield from self._waiting
        yield from self._late

    @property
    def earliest(self) -> float | None:
        """When `over` has something to say."""
        both = [at for at in (self._waiting.earliest, self._late.earliest) if at is not None]
        return min(both, default=None)

    def find_owners_with(self, owner_of: Callable[[tuple[str, str]], int | None]) -> None:
        """Have *owner_of* say which uid is behind a connection between two addresses: the bus's end and the client's."""
        self._failures.owner_of = owner_of

    def start(self, peer: Peer, now: float) -> None:
        """A new connection."""
        self._waiting.start(peer, now)
        if peer.transport == "tcp":
            self._by_tcp[peer] = None

    def crowded_out(self) -> Peer | None:
        """Take out the one that has waited longest of those by TCP, where they are too many: who has just come may be one of ours."""
        if len(self._by_tcp) <= TCP_STRANGERS_MAX:
            return None
        first = next(iter(self._by_tcp))
        self.stop(first)
        return first

    def stop(self, peer: Peer) -> None:
        """It is ready, or gone. Idempotent."""
        self._waiting.stop(peer)
        self._late.stop(peer)
        self._by_tcp.pop(peer, None)

    def set_delay(self, timeout_s: float, now: float) -> None:
        """Another limit of H-9."""
        self._waiting.set_delay(timeout_s, now)

    def over(self, now: float, most: int) -> list[tuple[Peer, ProtocolError]]:
        """Whose time is over, *most* of each sort, and what they are to be told."""
        slow = ProtocolError(
            Code.HANDSHAKE_TIMEOUT, f"no complete handshake in {self._waiting.delay_s:g} s (H-9; limits.handshake_timeout_s)"
        )
        ended = [(peer, slow) for peer in self._waiting.due(now, most)]
        return ended + [(peer, _WRONG) for peer in self._late.due(now, most)]

    def holds_back(self, peer: Peer, error: ProtocolError, now: float) -> bool:
        """Whether *peer*, which is to be closed for *error*, hears so later: after a wrong proof, where there were many (H-5). Until then
        nothing of it is read."""
        if peer in self._late:
            return True
        if error.code is not Code.AUTH_FAILED or peer.id or peer.closing:
            return False
        self._tokens = min(FAILED_AT_ONCE, self._tokens + (now - self._tokens_at) / FAILED_WAIT_S)
        self._tokens_at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return False
        self._waiting.stop(peer)
        self._late.start(peer, now)
        peer.connection.close()
        peer.held += 1
        return True

    def failed(self, peer: Peer, error: ProtocolError, now: float) -> bool:
        """Take note that *peer* is closed for *error*; whether no line of its own is to be written for that."""
        if peer.id or peer.transport != "tcp":
            return False
        self._failures.note(peer, error, now)
        return True


_WRONG = ProtocolError(Code.AUTH_FAILED, "the proof is wrong; too many were, so this is said late (H-5)")


class Failures:
    """What the log says of handshakes that failed on TCP: a line a minute for each user who is behind them, with how many there were."""

    __slots__ = ("_log", "_look_at", "_told", "_untold", "owner_of")

    def __init__(self, log: Callable[[int, str], None]) -> None:
        self._log = log
        self.owner_of: Callable[[tuple[str, str]], int | None] = lambda ends: None
        self._look_at = float("-inf")
        self._told: dict[int | None, float] = {}  #: when there was a line about whom, the last at the end
        self._untold = 0

    def note(self, peer: Peer, error: ProtocolError, now: float) -> None:
        """One more failed."""
        self._untold += 1
        if now < self._look_at:
            return  # to look for its user costs more than the handshake did
        self._look_at = now + FAILED_LOOK_S
        ends = peer.connection.addresses or ("", "")
        uid = self.owner_of(ends)
        if now - self._told.get(uid, float("-inf")) < FAILED_LOG_S:
            return
        self._told.pop(uid, None)
        while len(self._told) >= FAILED_USERS:
            del self._told[next(iter(self._told))]
        self._told[uid] = now
        who = f"{'a user who cannot be found' if uid is None else f'uid {uid}'}, from {ends[1]} as {peer.connection.identity!r:.150}"
        others = f"; {self._untold - 1} others failed since the last such line" if self._untold > 1 else ""
        self._untold = 0
        self._log(logging.WARNING, f"a handshake on TCP failed ({who}): {error}{others}")
