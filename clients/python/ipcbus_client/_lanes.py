"""A subscription's stream on this side: its messages, its credit, and what it missed (section 6).

Owns the arithmetic of credit. The invariant: what the bus may still send and what was sent but not granted again add up to the window.
Knows no connection and takes no lock; the shell calls it under the lock of its bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ._errors import BusError, Closed
from ._message import LargeMessage, Message, converter, of_senders, typed_message
from ._notices import STANDINGS, CaughtUp, Lagging, Lost, Notice, Reconnected, Snapshot, merged
from ._senders import Senders

#: A member of a group that was busy for longer tells the bus at once what it has handled: the others' shares depend on it.
GRANT_S = 0.01
#: Among so many at the end of a stream one is found that a notice joins.
_PLACES = (-1, -2, -3, -4, -5)
INBOX = 0  #: the number of the stream of direct messages: not a lane, and without credit


class Lane:
    """One subscription of this peer, or its inbox."""

    __slots__ = (
        "_batches", "_came", "_handled", "_lost_before", "_notices", "_taken", "_typed", "_unhandled",
        "closed", "error", "gaps", "group", "held_bytes", "lagged", "lags", "limits", "lost", "make", "make_large", "messages", "notices",
        "notify", "number", "parked_bytes", "pattern", "policy", "prefetch", "retained", "snapshots", "window_bytes",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        pattern: str,
        *,
        group: str | None = None,
        retained: bool = True,
        window_bytes: int,
        prefetch: int = 1,
        notices: bool = False,
        policy: str | None = None,
        limits: Mapping[str, int | float] | None = None,
    ) -> None:
        self.number = number
        self.pattern = pattern
        self.group = group
        self.retained = retained
        self.window_bytes = window_bytes
        self.prefetch = prefetch
        self.notices = notices
        self.policy = policy  #: what becomes of messages when too many wait; None: as the bus does by itself
        self.limits = limits  #: when that is
        self.snapshots = False  #: its stream also has a Snapshot for each time it was subscribed: for a Watch
        self._typed: type[Message] | None = None  #: the class of its messages where their ``data`` has a type
        self.make: type[Message] = Message  #: the class of its messages, of those who are known to this bus
        self.make_large: type[Message] = LargeMessage  #: the class of those that come in reads of over MAX_ELEMENTS bytes
        #: consumers take from its left, without a lock; with ``notices`` there are a few among the messages
        self.messages: deque[Message] = deque()
        self.lost = 0  #: messages that the bus (NOTICE lost) or a full inbox dropped
        self.lags = False  #: too much waits for it at the bus
        self.lagged = False  #: it did so, once
        self._lost_before = 0  #: ``lost`` when it began to lag
        self.gaps = 0  #: reconnections since it was made: at each, messages may have been missed
        self.closed = False  #: nothing more will come
        self.error: BusError | None = None  #: why it ended, where the program did not close it
        self.notify: Callable[[], None] | None = None  #: told when messages came, or the lane was closed
        self.held_bytes = 0  #: came and was not granted again
        self.parked_bytes = 0  #: of what was taken out of ``messages`` and waits for its turn (_turns.py): not consumed yet
        self._came = 0  #: messages so far, and notices
        self._batches: deque[tuple[int, int]] = deque()  #: (messages that had come after it, its bytes), until consumed
        self._taken = 0  #: bytes consumed and not granted yet
        self._unhandled = 0  #: group: messages that came and were not handled
        self._handled = 0  #: group: messages handled and not granted yet
        self._notices = 0  #: group: notices that came and were not handled: they are no messages of credit

    def arrived(self, count: int, size: int) -> bool:
        """*count* messages of *size* bytes on the wire were put into ``messages``; whether so much is here that grant() may say
        something.
        """
        self._came = came = self._came + count
        self._unhandled += count
        self.held_bytes = held = self.held_bytes + size
        self._batches.append((came, size))
        if self.notify is not None:
            self.notify()
        return held * 2 >= self.window_bytes

    def has_type(self, hint: Any) -> None:
        """``data`` of the messages that come from now on is what *hint* says. Raises TypeError for a hint that no payload can become."""
        self.make = self.make_large = self._typed = typed_message(converter(hint))

    def meet(self, senders: Senders, make: type[Message], make_large: type[Message]) -> None:
        """Messages that come from now on are of *senders*: those without a type of these classes."""
        if self._typed is None:
            self.make, self.make_large = make, make_large
        else:
            self.make = self.make_large = of_senders(self._typed, senders)

    def missed(self, count: int, why: str) -> None:
        """*count* messages were dropped that would have come next."""
        self.lost += count
        self._say(Lost(count, why, self.pattern))

    def reconnected(self, epoch: int, restarted: bool) -> None:
        """The connection is a new one: what was published meanwhile never comes."""
        self.gaps += 1
        if self.lags:
            self.caught_up(self.lost - self._lost_before)  # what waited is gone
        self._say(Reconnected(epoch, restarted, self.pattern))

    def waits(self, size: int, count: int, dropping: bool) -> None:
        """*count* messages of *size* bytes wait at the bus."""
        if not self.lags:
            self.lags = self.lagged = True
            self._lost_before = self.lost
        self._say(Lagging(size, count, dropping, self.pattern))

    def caught_up(self, lost: int) -> None:
        """Nothing waits there any more; *lost* messages were dropped since it lagged."""
        self.lags = False
        self._say(CaughtUp(lost, self.pattern))

    def accepted(self, epoch: int, retained: int) -> None:
        """The bus accepted the subscription, and sent or will send *retained* messages first."""
        if self.snapshots:
            self._say(Snapshot(epoch, retained))

    def renumber(self, number: int) -> None:
        """It begins anew, under another number, with nothing in it."""
        self.number = number
        self.messages.clear()

    def _say(self, notice: Notice) -> None:
        """Put *notice* at its place. It costs no credit. One of its kind with no message between them gives its place to it, but nothing
        moves before a reconnection; of where a lane stands there are two, the first and the last. So there are at most a few a message,
        and memory stays within the window's.
        """
        if not self.notices:
            return
        messages: deque[Any] = self.messages
        kind = type(notice)
        standing = kind in STANDINGS
        last = 0
        try:
            for place in _PLACES:  # consumers take from the other end: what is there stays there, or is taken
                there = messages[place]
                if type(there) is kind and not last:
                    messages[place] = merged(there, notice)
                    return
                if not isinstance(there, Notice) or type(there) is Reconnected:
                    break
                if standing and type(there) in STANDINGS:
                    if last:
                        messages[last] = notice
                        return
                    last = place
        except IndexError:
            pass  # it is the only one, or a consumer was faster
        messages.append(notice)
        self._came += 1
        if self.group is not None:
            self._notices += 1
        if self.notify is not None:
            self.notify()

    def handled(self) -> None:
        """Group: one message was handled (L-6), or a notice, which is told apart by number only: the sums come out right."""
        if self._notices:
            self._notices -= 1
        elif self._unhandled:
            self._unhandled -= 1
            self._handled += 1

    def grant(self, *, idle: bool = False) -> tuple[int, int]:
        """Bytes and messages to grant now; (0, 0) while it is not worth a frame.

        Bytes when half of the window was consumed; messages when half of the prefetch was handled, or what was handled when the consumer
        is *idle*, so that the bus's idea of this member's load is right when it matters.
        """
        done = self._came - len(self.messages)
        batches = self._batches
        while batches and batches[0][0] <= done:
            self._taken += batches.popleft()[1]
        size = count = 0
        free = self._taken - self.parked_bytes
        if free * 2 >= self.window_bytes - self.parked_bytes and free > 0:
            size = free
        if self.group is not None and (idle or self._handled * 2 >= self.prefetch):
            count = self._handled
            if count:
                size = max(free, 0)  # the frame is sent anyway
        if not size and not count:
            return 0, 0
        self._taken -= size
        self.held_bytes -= size
        if count:
            self._handled = 0
        return min(size, 0xFFFF_FFFF), count

    def restart(self) -> tuple[int, int]:
        """The connection is a new one: the bytes and messages of credit to subscribe with, less what is still here from the old one."""
        self.grant(idle=True)
        free = max(self._taken - self.parked_bytes, 0)
        self.held_bytes -= free
        self._taken -= free
        debt = max(self.held_bytes - self.window_bytes, 0)  # the old credit was overdrawn (L-5): that much is not granted again
        self.held_bytes -= debt
        self._taken -= debt
        return self.window_bytes - self.held_bytes, max(self.prefetch - self._unhandled, 0)

    def ended(self) -> BusError:
        """What to raise for who wants more of what is closed."""
        if self.error is not None:
            return self.error.again(who=self.pattern, what="get")
        return Closed(f"the subscription to {self.pattern!r} is closed", who=self.pattern, what="get")

    def close(self, error: BusError | None = None) -> None:
        """Nothing more will come. What is here may still be taken."""
        if not self.closed:
            self.closed = True
            self.error = error
            if self.notify is not None:
                self.notify()
