"""What the log says of users who may not connect: one line when one begins to try, and then one a minute with how often, until it stops.

Owns who is remembered, and for how long. Any user of the machine may try, as often as it likes, and must not fill the log by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..broker import Credentials
from ..protocol.addresses import Address
from .limits import DENIALS_TELL_S, DENIALS_USERS

log = logging.getLogger("ipcbus.daemon")

_OTHERS = -1  #: stands for all users who come while DENIALS_USERS are remembered: whoever has subordinate uids has 65 536


class Denials:
    """Who was refused lately. *at* calls back at a time, as the loop does."""

    __slots__ = ("_at", "_untold")

    def __init__(self, at: Callable[[float, Callable[[float], None]], None]) -> None:
        self._at = at
        self._untold: dict[int, int] = {}  #: by uid: connections since the last line about it

    def note(self, who: Credentials, address: Address, why: str, now: float) -> None:
        """One more connection of *who* was refused."""
        if who.uid in self._untold:
            self._untold[who.uid] += 1
        elif len(self._untold) < DENIALS_USERS:
            self._begin(who.uid, now)
            log.warning("refused pid %d uid %d at %s: %s", who.pid, who.uid, address, why)
        elif _OTHERS in self._untold:
            self._untold[_OTHERS] += 1
        else:
            self._begin(_OTHERS, now)
            log.warning("refused pid %d uid %d and maybe other users, of whom there are too many for lines of their own", who.pid, who.uid)

    def _begin(self, uid: int, now: float) -> None:
        self._untold[uid] = 0
        if len(self._untold) == 1:
            self._at(now + DENIALS_TELL_S, self._tell)

    def _tell(self, now: float) -> None:
        """Say how often each of them tried since the last line about it, and forget who did not."""
        before, self._untold = self._untold, {}
        for uid, count in before.items():
            if count:
                who = "users without lines of their own" if uid == _OTHERS else f"uid {uid}"
                log.warning("refused %d more %s of %s", count, "connection" if count == 1 else "connections", who)
                self._begin(uid, now)
