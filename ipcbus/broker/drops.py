"""How what waits goes: out of a queue, off somebody's charge, and where it is lost, into the books and to whom it was for.

Every loss of a message that waits goes through `Losses.record`, every change of what is charged for it through `Drops.charge`. When
something is to be lost is decided by `flow`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..protocol.limits import Limits
from ..protocol.walking import frame_end, frames_within
from .backlogs import Backlog, Waiting, note
from .effort import Effort
from .holding import Hold, Holds
from .introductions import Introductions
from .lanes import Lane
from .losses import Losses
from .peers import Peer, Piece


class Drops(Introductions):
    """Takes messages out of queues."""

    def __init__(
        self, limits: Limits, losses: Losses, log: Callable[[int, str], None], effort: Effort, peers: dict[int, Peer]
    ) -> None:
        super().__init__(peers, effort)
        self.limits = limits
        self.holds = Holds(self, limits, log)
        self.losses = losses
        self._log = log

    # --- the books --------------------------------------------------------------------------------

    def charge(self, backlog: Backlog, hold: Hold | None, size: int) -> None:
        """*size* bytes more wait: at the expense of the held publisher that parked them, else of the queue's payer."""
        backlog.bytes += size
        if hold is None or hold.publisher is None:
            payer = backlog.payer
            payer.backlog_bytes += size
            if not payer.touched:
                self.touch(payer)  # so that its account is charged for it at the end of the round
        else:
            backlog.parked += size
            hold.bytes += size
            self.holds.park(hold.publisher, size)

    def _tell_lost(self, backlog: Backlog, lane: Lane) -> None:
        """NOTICE lost, at the place of the gap (L-7, L-11)."""
        if backlog.gap:
            for why, (count, size) in backlog.gap.items():
                self.notice(lane.peer, "lost", {"lane": lane.number, "count": count, "bytes": size, "why": why})
            backlog.gap = {}

    def drop_output(self, peer: Peer) -> None:
        """Who is closed for what waits takes none of it along, or the cap of all that waits would be none while it is closing. The first
        piece stays, for a part of it may be on its way: BYE follows whole frames."""
        if len(peer.out) > 1:
            self.losses.record("unknown", peer, peer.given - peer.delivered, peer.given_bytes - peer.delivered_bytes)
            peer.given, peer.given_bytes, peer.marks = peer.delivered, peer.delivered_bytes, None
            del peer.out[1:]
            peer.out_bytes = len(peer.out[0])
            self.touch(peer)

    # --- one step ---------------------------------------------------------------------------------

    def _take(self, backlog: Backlog) -> Waiting:
        """Take the first entry out of a queue; what was lost before it is now lost before the first."""
        entry = backlog.pieces.popleft()
        if entry.topic is not None and backlog.by_topic is not None:
            del backlog.by_topic[entry.topic]
        if entry.gap is not None:
            backlog.reach(entry)
        if entry is backlog.last_strange:
            backlog.strangers = backlog.last_strange = None
        backlog.count -= entry.count
        self.charge(backlog, entry.hold, -len(entry.piece))
        return entry

    def _take_some(self, backlog: Backlog, at: int, count: int) -> None:
        """The first *at* bytes of the first entry, *count* frames, leave the queue; more of it stays."""
        first = backlog.pieces[0]
        backlog.reach(first)
        rest = memoryview(first.piece)[at:]
        first.piece = bytes(rest) if len(rest) < at else rest
        first.count -= count
        backlog.count -= count
        self.charge(backlog, first.hold, -at)

    def _lose(self, backlog: Backlog, why: str, about: str = "") -> None:
        """Lose the oldest entry of a queue, and remember to tell it (L-7, L-11)."""
        entry = self._take(backlog)
        size = len(entry.piece)
        note(backlog.gap, why, entry.count, size)
        self.losses.record(why, backlog, entry.count, size, entry.piece, None, about)

    def _lose_some(self, backlog: Backlog, size: int) -> None:
        """Lose frames of the first entry, until it is *size* bytes smaller or only its last frame stays."""
        first = backlog.pieces[0]
        at = count = 0
        while at < size and count < first.count - 1:
            at = frame_end(first.piece, at)
            count += 1
        lost = memoryview(first.piece)[:at]
        self._take_some(backlog, at, count)
        note(backlog.gap, "too_slow", count, at)
        self.losses.record("too_slow", backlog, count, at, lost, None)

    def _lose_newest(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None) -> None:
        """Lose what has no place at the end of a queue."""
        self.losses.record("too_slow", backlog, count, size, piece, sender)
        if backlog.last_gap is None:
            backlog.last_gap = {}
        note(backlog.last_gap, "too_slow", count, size)

    def miss(self, backlog: Backlog, count: int, size: int, about: str) -> None:
        """What was not even looked at is lost, after what waits (M-4)."""
        self.losses.record("too_slow", backlog, count, size, about=about)
        if backlog.last_gap is None:
            backlog.last_gap = {}
        note(backlog.last_gap, "too_slow", count, size)

    def tell_missed(self, backlog: Backlog, lane: Lane) -> None:
        """Tell *lane*, for which nothing waits, what it missed."""
        backlog.close_gaps()
        self._tell_lost(backlog, lane)

    # --- until a limit ----------------------------------------------------------------------------

    def _drop(self, backlog: Backlog, limit: int) -> None:
        """Lose the oldest messages of a queue until it is within *limit*; the newest stays. What came together is lost together, unless
        less than half of what may wait would stay."""
        pieces = backlog.pieces
        while backlog.bytes > limit:
            first = pieces[0]
            if len(pieces) > 1 and (first.count == 1 or backlog.bytes - len(first.piece) >= limit // 2):
                self._lose(backlog, "too_slow")
            elif first.count > 1:
                self._lose_some(backlog, backlog.bytes - limit)
            else:
                return

    def _drop_own(self, backlog: Backlog) -> None:
        """Lose the oldest messages until what the payer is charged for is within the hard limit; the newest stays."""
        while backlog.bytes - backlog.parked > backlog.hard:
            before = backlog.bytes
            self._drop(backlog, max(backlog.hard + backlog.parked, before - len(backlog.pieces[0].piece)))
            if backlog.bytes == before:
                return

    def _drop_newest(self, backlog: Backlog, limit: int) -> None:
        """Lose what a run has put over *limit* at the end of a queue that was empty before; its first message stays."""
        last = backlog.pieces[-1]
        fits, frames = frames_within(last.piece, limit)
        if not frames:
            fits, frames = frame_end(last.piece, 0), 1
        lost, count = memoryview(last.piece)[fits:], last.count - frames
        if count:
            last.piece, last.count = bytes(memoryview(last.piece)[:fits]), frames
            backlog.count -= count
            self.charge(backlog, last.hold, -len(lost))
            self._lose_newest(backlog, lost, len(lost), count, None)

    def _drop_expired(self, backlog: Backlog) -> None:
        """Lose what stands first and is past its time, before somebody is held for it; the newest piece stays."""
        pieces = backlog.pieces
        while len(pieces) > 1 and (deadline := pieces[0].deadline) is not None and deadline < self.now:
            self._lose(backlog, "expired")
