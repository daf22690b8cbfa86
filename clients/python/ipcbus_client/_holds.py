"""Who holds this program's publications (L-12), and what waits here until they may go on.

A subscription with the policy ``block`` that is full has the bus say NOTICE `hold` to its publishers, and `resume` when it has room. What
is published meanwhile to a topic that its pattern matches waits: publish() itself, or with an outbox that drops, the message, among what
waits for a connection and within the same limits. All else goes on, and the bus goes on reading. A connection's holds end with it.

The fast path of publish() knows none of this: a topic that is held has no cached head of a frame, so its publications come the long way.
What was kept goes out in its order by topic, in pieces: a PING between two of them is answered after the bus has said whether it holds the
topic again.

Part of the session: same lock, no I/O; the time is the clock of what waits, which the shell handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.protocol.topics import matches

from ._errors import OutboxFull
from ._waiting import Item, weigh

if TYPE_CHECKING:
    from ._calls import Call
    from ._outbox import Outbox

FEATURE = "hold"
#: Holds that are kept to; where there are more the bus parks what they would hold, up to its limits.max_parked_bytes.
HOLDS_MAX = 10_000
#: Topics of which it is remembered whether they are held; a held publisher has few.
_TOPICS_MAX = 10_000
#: What was kept goes out in pieces of so many bytes.
_PIECE_BYTES = 256 * 1024
#: Between two lines in the log that say that publications wait, however often the holds begin anew.
_LOG_S = 60.0
_NEVER = -inf


class Hold(NamedTuple):
    """A full subscription for which publishers wait."""

    pattern: str  #: what is published to topics that it matches waits
    group: str | None
    peer: int  #: whose subscription it is
    program: str  #: what that peer calls itself
    bytes: int  #: what waited for it when it began to hold
    held_s: float  #: seconds since then

    def __str__(self) -> str:
        what = f"subscription {self.pattern!r}" if self.group is None else f"group {self.group!r} of {self.pattern!r}"
        return f"the {what} of :{self.peer} ({self.program or 'a program without a name'}), for which {self.bytes} bytes wait"


#: What the bus said, and when.
_Since = tuple[Hold, float]


class Holds:
    """The holds of one outbox. A signal handler that publishes may read notices too, at each call that is made here."""

    __slots__ = (
        "_held_s", "_outbox", "_pacing", "_since", "_told_at", "_topics", "active", "count", "kept", "leaving", "on_change", "ping", "some",
        "tell",
    )  # fmt: skip

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.active = False  #: a publication may have to wait, so each topic is looked at
        self.some: dict[int, _Since] = {}  #: by id
        self.kept: set[str] = set()  #: topics of what waits in the outbox although there is a connection
        self._topics: dict[str, _Since | None] = {}  #: topics that were looked at: which hold is theirs
        self.count = 0  #: holds so far
        self._held_s = 0.0  #: time with at least one, until the last of them ended
        self._since: float | None = None  #: when that time began which is not over
        self._told_at = _NEVER
        self._pacing: Call | None = None  #: when it is answered more of what was kept may go
        self.leaving = False  #: the bus object is being closed: nothing waits any more
        self.tell: Callable[[str], object] = str  #: for the log
        self.on_change: Callable[[], object] = bool  #: who waits for a topic, or for what was kept, shall look again; so shall the log
        self.ping: Callable[[], Call] | None = None  #: the session's

    # --- what the bus says ---

    def began(self, about: Mapping[str, Any]) -> None:
        """NOTICE hold. Raises LookupError for one that is none."""
        pattern, identity = about["pattern"], about["id"]
        if self.leaving or not isinstance(pattern, str) or len(self.some) >= HOLDS_MAX:
            return
        now = self._outbox.waiting.clock()
        if self._since is None:
            self._since = now
        self.count += 1
        hold = Hold(pattern, about.get("group"), about.get("peer", 0), str(about.get("program", "")), about.get("bytes", 0), 0.0)
        self.some[identity] = hold, now
        self.active = True
        self._topics.clear()
        self._outbox.forget_heads()

    def ended(self, about: Mapping[str, Any]) -> None:
        """NOTICE resume."""
        if self.some.pop(about.get("id", 0), None) is not None:
            self._look_again(_PIECE_BYTES)

    def lost(self) -> None:
        """The connection is gone, and its holds with it: what was kept waits for the next one with all else."""
        self._pacing = None
        self.kept = set()
        if self.active:
            self.some.clear()
            self._look_again(0)

    def leave(self) -> None:
        """The program has nothing more to publish than what is here: it goes to the bus, whose limit for what it parks is all that holds
        it from now on.
        """
        self.leaving = True
        self.some.clear()
        self._pacing = None
        self._look_again(inf)

    def _look_again(self, most_bytes: float) -> None:
        self._topics.clear()
        if not self.some and self._since is not None:
            self._held_s += self._outbox.waiting.clock() - self._since
            self._since = None
        self._release(most_bytes)
        self.on_change()

    # --- what is published ---

    def by(self, topic: str) -> _Since | None:
        """Which hold *topic* has to wait for, and since when."""
        try:
            return self._topics[topic]
        except KeyError:
            pass
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        found = next((held for held in tuple(self.some.values()) if matches(held[0].pattern, topic)), None)
        self._topics[topic] = found
        return found

    def waits(self, topic: str) -> bool:
        """Whether what is published to *topic* now cannot go at once."""
        return topic in self.kept or self.by(topic) is not None

    def keeps(self, topic: str) -> bool:
        """Whether a publication to *topic* has to wait in the outbox. Raises OutboxFull where it is publish() that waits, or fails."""
        if self._outbox.waiting.policy not in ("drop_oldest", "drop_newest"):
            self.check(topic)
        elif (held := self.by(topic)) is not None:
            self.kept.add(topic)
            self._tell(topic, held[0])  # last: who is told may find that the connection is gone, and all holds with it
        return topic in self.kept

    def check(self, topic: str) -> None:
        """Raise OutboxFull where *topic* is held: for a publication that cannot wait in the outbox."""
        held = self.by(topic)
        if held is None:
            return
        hold = self._with_time(*held)
        self._tell(topic, hold)
        raise OutboxFull(
            f"publications to {topic!r} are held by {hold}; this one was not taken",
            who=topic,
            what="publish",
            hint="Have that program read faster, or subscribe with policy='drop_oldest' or 'latest'; `ipcbus stats` says who holds whom.",
            hold=hold,
        )

    def _tell(self, topic: str, hold: Hold) -> None:
        now = self._outbox.waiting.clock()
        if now - self._told_at >= _LOG_S:
            self._told_at = now
            policy = self._outbox.waiting.policy
            does = {"block": "each waits until it has room", "raise": "publish() raises OutboxFull (outbox='raise')"}.get(
                policy, f"they wait in the outbox, which drops what it has no room for (outbox={policy!r})"
            )
            self.tell(f"publications to {topic!r} are held by {hold}: {does}")
            self.on_change()  # the log shall say it now, and not when the wait is over

    # --- what was kept ---

    def came_late(self, topic: str) -> None:
        """What was published to *topic* was put among what waits just after that went out."""
        self.kept.add(topic)
        self._release(inf)

    def _release(self, most_bytes: float) -> None:
        """Send what was kept and is held no more, at first about *most_bytes* of it."""
        if self._pacing is not None:
            return
        more = bool(self.kept) and self._put(most_bytes)
        self.active = bool(self.some or self.kept)
        waiting = self._outbox.waiting
        if waiting.episode and self._outbox.peer and not self.kept:
            self.tell(f"{waiting.end_episode()} messages were dropped from the full outbox while their topics were held")
        if more and self.ping is not None:
            self._pacing = call = self.ping()
            call.notify = self._answered

    def _answered(self) -> None:
        if self._pacing is not None and self._pacing.done:
            self._pacing = None
            self._release(_PIECE_BYTES)
            self.on_change()

    def _put(self, most_bytes: float) -> bool:
        """Put what may go into the outbox, about *most_bytes*; whether more may go after that."""
        outbox = self._outbox
        waiting = outbox.waiting
        while waiting.items:
            items = waiting.items
            first, last = items[0], items[-1]
            rest, parts, deadlines = deque[Item](), list[bytes](), list[float]()
            taken = too_old = 0
            source = iter(tuple(items))
            for item in source:
                if taken >= most_bytes:
                    rest.append(item)
                    rest += source
                elif self.by(item[1]) is not None:
                    rest.append(item)
                else:
                    frame, deadline = outbox.frame_of(item)
                    parts += frame
                    deadlines += deadline
                    too_old += not frame
                    taken += len(item[3]) + len(item[1])
            kept = {item[1] for item in rest}
            size, expires = weigh(rest)
            # All at once, without a call, and anew where a signal handler published or did this meanwhile (as in Outbox.lost()).
            if waiting.items is items and items[0] is first and items[-1] is last:
                waiting.items, waiting.bytes, waiting.expires, self.kept = rest, size, expires, kept
                outbox.out += parts
                outbox._deadlines += deadlines
                waiting.expired += too_old
                return taken >= most_bytes and bool(rest)
        self.kept = set()
        return False

    # --- what is known of it ---

    def list(self) -> list[Hold]:
        """The holds that are in force."""
        return [self._with_time(*held) for held in tuple(self.some.values())]

    def stats(self) -> dict[str, int | float]:
        """Counters since the start and gauges of now."""
        now = 0.0 if self._since is None else self._outbox.waiting.clock() - self._since
        return {"holds": self.count, "held": len(self.some), "held_s": self._held_s + now}

    def _with_time(self, hold: Hold, since: float) -> Hold:
        return hold._replace(held_s=self._outbox.waiting.clock() - since)
