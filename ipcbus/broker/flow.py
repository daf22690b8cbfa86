"""What happens to a queue that grows: episodes of lagging, and the policies at its limits (L-7, L-12)."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable

from ..protocol.limits import Limits
from ..protocol.walking import frame_end, frames_within, topic_of
from .backlogs import Backlog, Waiting, note, pins
from .deadlines import Deadlines
from .drops import Drops
from .effort import ENDS_AT_ONCE, REPLACE, TOLD, WAIT, Effort
from .holding import Holding
from .lanes import Group, Lane
from .losses import Losses
from .peers import Peer, Piece


class Flow(Drops):
    """Queues and their episodes. `delivery` puts in and takes out."""

    def __init__(
        self, limits: Limits, losses: Losses, log: Callable[[int, str], None], effort: Effort, peers: dict[int, Peer]
    ) -> None:
        super().__init__(limits, losses, log, effort, peers)
        self.late: Deadlines[Backlog] = Deadlines()  #: queues over their soft limit: when that is too long

    # --- in ---------------------------------------------------------------------------------------

    def _open(self, lane: Lane) -> Backlog:
        """The queue of a lane that is in no group, made where it has none."""
        backlog = lane.backlog
        if backlog is None:
            backlog = lane.backlog = Backlog(lane, None, lane.peer, lane.terms.resolve(self.limits))
            if lane.peer.waiting is None:
                lane.peer.waiting = {}
            lane.peer.waiting[lane] = None
        return backlog

    def _keep(self, backlog: Backlog, frame: Piece) -> None:
        """Add a retained message: it waits whatever the limits say (L-8)."""
        size = len(frame)
        if backlog.by_topic is not None:
            self._replace(backlog, frame, size, 1, None, None)
        else:
            backlog.add(frame, size, 1, None, None)
            self.charge(backlog, None, size)
        if backlog.bytes > backlog.soft:
            self._lag(backlog)

    def _wait(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        """Add frames to the queue of a lane, within its limits and those of who pays for it (L-7)."""
        payer = backlog.payer
        if payer.ending or payer.backlog_bytes > self.limits.max_output_bytes:
            payer.ending = payer.ending or payer.too_much()  # it is closed at the end of the round, also if less waits then
            self.losses.record("evicted", backlog, count, size, piece, sender)
            self.touch(payer)
            return
        self._put(backlog, piece, size, count, sender, deadline)
        if backlog.bytes > backlog.soft or payer.backlog_bytes > self.limits.max_output_bytes // 2:
            self._over(backlog, sender)

    def _put(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        """Add frames as the policy says, without a look at what waits then."""
        self._effort.spent += WAIT
        hold = None
        if backlog.holding is not None and sender is not None:
            hold = backlog.holding.holds.get(sender)
            if hold is None and not backlog.is_of(sender):
                hold = self.holds.join(backlog.holding, sender)
        if backlog.by_topic is not None:
            self._replace(backlog, piece, size, count, sender, deadline)
        elif backlog.policy == "drop_newest" and backlog.pieces:
            self._add_what_fits(backlog, piece, size, count, sender, deadline)
        else:
            backlog.add(piece, size, count, deadline, hold)
            self.charge(backlog, hold, size)

    def _replace(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        """latest: each frame takes the place of the one of its topic that waits."""
        by_topic = backlog.by_topic
        assert by_topic is not None
        self._effort.spent += count * REPLACE
        replaced: list[Piece] = []
        at = 0
        while at < size:
            end = frame_end(piece, at)
            topic = topic_of(piece, at)
            frame: Piece = piece if count == 1 else memoryview(piece)[at:end]
            if pins(frame) or end - at < 4096:
                frame = bytes(frame)
            entry = by_topic.get(topic)
            if entry is None:
                by_topic[topic] = entry = Waiting(frame, 1, deadline, None, topic)
                backlog.pieces.append(entry)
                backlog.count += 1
                self.charge(backlog, None, end - at)
            else:
                replaced.append(entry.piece)
                self.charge(backlog, None, end - at - len(entry.piece))
                entry.piece, entry.deadline = frame, deadline
            at = end
        if replaced:  # told at once: it can be all of a run
            lost = sum(map(len, replaced))
            note(backlog.gap, "replaced", len(replaced), lost)
            self.losses.record("replaced", backlog, len(replaced), lost, replaced, sender)

    def _add_what_fits(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        """drop_newest: what does not fit is lost, after what waits."""
        room = self._limit(backlog) - backlog.bytes
        fits, frames = (size, count) if size <= room else frames_within(piece, room) if room > 0 else (0, 0)
        if frames:
            backlog.add(piece if fits == size else memoryview(piece)[:fits], fits, frames, deadline, None)
            self.charge(backlog, None, fits)
        if fits < size:
            self._lag(backlog)  # before the first loss, also where what waits is within the limits and what comes is too large
            self._lose_newest(backlog, memoryview(piece)[fits:] if fits else piece, size - fits, count - frames, sender)

    # --- limits -----------------------------------------------------------------------------------

    def _limit(self, backlog: Backlog) -> int:
        """drop_newest: what may wait now."""
        if backlog.group is None and backlog.payer.backlog_bytes > self.limits.max_output_bytes // 2:
            return 0
        return backlog.soft if backlog.dropping else backlog.hard

    def _is_over(self, backlog: Backlog) -> bool:
        """Whether the policy acts. What a member of a group has waiting besides is nothing to the others."""
        if backlog.bytes > backlog.soft:
            return True
        return backlog.group is None and backlog.payer.backlog_bytes > self.limits.max_output_bytes // 2

    def _over(self, backlog: Backlog, sender: Peer | None) -> None:
        """A queue is over its soft limit, or its payer has too much waiting: what its policy says happens."""
        if backlog.pieces[0].deadline is not None:
            self._drop_expired(backlog)
            if not self._is_over(backlog):
                self._eased(backlog)
                return
        if backlog.dropping:
            self._lose_over(backlog)
            return
        self._lag(backlog)
        if backlog.policy == "block":
            if sender is None or backlog.is_of(sender):
                self._drop_own(backlog)  # nobody to hold: the bus itself, or a subscriber's own publications
            elif backlog.holding is None:
                if self.holds.begin(backlog, sender):
                    self.late.start(backlog, self.now + backlog.seconds)
                else:
                    self._cut(backlog)
        elif backlog.policy == "disconnect":
            if backlog.bytes > backlog.hard:
                self._cut(backlog)
        else:
            self._lose_over(backlog)

    def _lose_over(self, backlog: Backlog) -> None:
        """Lose what is over the limit that holds now."""
        if backlog.policy == "drop_newest":
            if backlog.bytes > backlog.hard and not backlog.dropping and len(backlog.pieces) == 1:
                self._drop_newest(backlog, backlog.hard)  # `_put` looks only at what comes behind something
        else:
            limit = backlog.soft if backlog.dropping else backlog.hard
            if backlog.group is None:
                limit = min(limit, backlog.bytes - backlog.payer.backlog_bytes + self.limits.max_output_bytes // 2)
            self._drop(backlog, limit)
            if backlog.bytes <= backlog.soft // 2:
                self.late.stop(backlog)

    def _cut(self, backlog: Backlog) -> None:
        """A queue was over its soft limit for too long, its program has no time left to hold, or it may lose nothing."""
        if backlog.policy == "disconnect":
            peer = backlog.payer
            peer.ending = (
                f"{backlog.bytes} bytes wait for the pattern {backlog.pattern!r}: over {backlog.soft} for {backlog.seconds:g} s, or over"
                f" {backlog.hard} (policy disconnect; limits.lane_soft_bytes, limits.lane_hard_bytes, limits.lane_stall_s)"
            )
            self.touch(peer)
            return
        backlog.dropping = True
        self.late.stop(backlog)
        self.holds.end(backlog)
        self._tell_lagging(backlog)
        if backlog.policy != "drop_newest":
            self._lose_over(backlog)

    def stalled(self, now: float) -> None:
        """Cut the queues that were over their limit, or whose program held its publishers, for too long."""
        for backlog in self.late.due(now, ENDS_AT_ONCE):
            self._cut(backlog)
        for backlog in self.holds.due(now, ENDS_AT_ONCE):
            self._cut(backlog)

    def _eased(self, backlog: Backlog) -> None:
        """A queue became smaller: at half its soft limit its publishers go on, when it is empty it has caught up."""
        if not backlog.pieces:
            backlog.close_gaps()
            self._tell_lost(backlog, backlog.members()[0])  # no message will come that could be told before
            self._caught_up(backlog)
        elif (
            backlog.lagging
            and backlog.bytes <= backlog.soft // 2
            and not backlog.dropping
            and (backlog.group is not None or backlog.payer.backlog_bytes <= self.limits.max_output_bytes // 4)
        ):
            self.holds.end(backlog)
            self.late.stop(backlog)

    def _caught_up(self, backlog: Backlog) -> None:
        self._forget(backlog)
        if backlog.lagging:
            self._tell(backlog, "caught_up", {"lost": backlog.lost})
            self._log(logging.INFO, f"{backlog} has caught up; {backlog.lost} messages were lost meanwhile")

    def _forget(self, backlog: Backlog) -> None:
        """Nothing waits in it any more."""
        self.holds.end(backlog)
        self.late.stop(backlog)
        if backlog.lane is not None:
            backlog.lane.backlog = None
            waiting = backlog.lane.peer.waiting
            if waiting is not None:
                waiting.pop(backlog.lane, None)
                if not waiting:
                    backlog.lane.peer.waiting = None
        elif backlog.group is not None:
            backlog.group.backlog = None

    # --- what is told -----------------------------------------------------------------------------

    def _lag(self, backlog: Backlog) -> None:
        """A queue is over its soft limit: an episode begins, if it is not in one. For block the time runs while it holds somebody."""
        if backlog.policy != "block" and not backlog.dropping and backlog.bytes > backlog.soft and backlog not in self.late:
            self.late.start(backlog, self.now + backlog.seconds)
        if backlog.lagging:
            return
        backlog.lagging = True
        self._tell_lagging(backlog)
        terms = f"policy {backlog.policy}, soft {backlog.soft}, hard {backlog.hard}, {backlog.seconds:g} s"
        self._log(logging.INFO, f"{backlog} lags: {backlog.bytes} bytes wait ({terms})")

    def _tell_lagging(self, backlog: Backlog) -> None:
        content: dict[str, object] = {
            "bytes": backlog.bytes,
            "count": backlog.count,
            "policy": backlog.policy,
            "soft": backlog.soft,
            "hard": backlog.hard,
            "seconds": backlog.seconds,
            "dropping": backlog.dropping,
        }
        self._tell(backlog, "lagging", content)

    def _tell(self, backlog: Backlog, name: str, content: dict[str, object]) -> None:
        """Send a notice to all that take from a queue, to each with its own lane."""
        lanes = backlog.members()
        self._effort.spent += TOLD * len(lanes)
        for lane in lanes:
            self.notice(lane.peer, name, {"lane": lane.number, **content})

    def shed(self, peer: Peer, size: int, about: str) -> None:
        """Lose *size* bytes, as far as there are so many, of what waits in the queues that *peer* pays for, the oldest of the largest
        first (Q-3); of equal ones its lanes' as they began to wait, then its groups'. *about* says which account has no room."""
        backlogs = {lane.backlog: None for lane in peer.waiting or () if lane.backlog is not None}
        groups = [lane.group.backlog for lane in peer.grouped or () if lane.group is not None]
        backlogs |= {backlog: None for backlog in groups if backlog is not None and backlog.payer is peer}
        largest = [(backlog.parked - backlog.bytes, number, backlog) for number, backlog in enumerate(backlogs)]
        heapq.heapify(largest)
        while size > 0 and largest:
            own, number, backlog = largest[0]
            if not own:
                return  # what is left there is parked, at the expense of others
            self._lose(backlog, "over_quota", about)
            size -= backlog.parked - backlog.bytes - own
            if backlog.pieces:
                heapq.heapreplace(largest, (backlog.parked - backlog.bytes, number, backlog))
            else:
                heapq.heappop(largest)
            self._eased(backlog)

    # --- ends -------------------------------------------------------------------------------------

    def forget_publisher(self, peer: Peer) -> None:
        """A publisher went: nothing holds it any more, and what it parked is left to the payers of the queues."""
        for holding in tuple(peer.holds or ()):
            self._release(holding, peer)

    def _release(self, holding: Holding, publisher: Peer) -> None:
        """Let one publisher go, however much still waits. The time runs only while somebody is held."""
        backlog = holding.backlog
        self.holds.release(holding, publisher)
        if backlog.holding is None:
            self.late.stop(backlog)
        self._drop_own(backlog)

    def abandon(self, backlog: Backlog) -> int:
        """Nobody will take what waits here: count it as lost, let its publishers go. Returns the number of messages lost and not told."""
        dropped = backlog.count + backlog.untold()
        self._forget(backlog)
        evicted = []
        while backlog.pieces:
            evicted.append(self._take(backlog))
        if evicted:
            pieces = [entry.piece for entry in evicted]
            self.losses.record("evicted", backlog, sum(entry.count for entry in evicted), sum(map(len, pieces)), pieces)
        return dropped

    def member_joined(self, group: Group, peer: Peer) -> None:
        """A lane of *peer* is in *group* now, which holds its own members no more."""
        backlog = group.backlog
        if backlog is None:
            return
        if peer.introduced is not None:
            backlog.strangers = backlog.strangers or set()
            backlog.strangers.add(peer)
            backlog.last_strange = backlog.pieces[-1]
        if backlog.holding is not None and peer in backlog.holding.holds:
            self._release(backlog.holding, peer)

    def member_left(self, group: Group, peer: Peer) -> int:
        """A lane of *peer* left *group*. Without members what waits is abandoned; else somebody else pays for it."""
        backlog = group.backlog
        if backlog is None:
            return 0
        if not group.members:
            return self.abandon(backlog)
        if backlog.strangers is not None and not group.has(peer):
            backlog.strangers.discard(peer)  # what waits may wait for ever
        if backlog.payer is peer:
            own = backlog.bytes - backlog.parked
            peer.backlog_bytes -= own
            backlog.payer = next(iter(group.members)).peer
            backlog.payer.backlog_bytes += own
            for one in (peer, backlog.payer):
                self.touch(one)
        return 0

    def reconfigure(self, limits: Limits, peers: Iterable[Peer], now: float) -> None:
        """Other limits from now on, also for the queues there are."""
        self.limits = limits
        self.holds.reconfigure(limits, now)
        for peer in peers:
            lanes = [*(peer.waiting or ()), *(peer.grouped or ())]
            for lane in lanes:
                where = lane.group or lane
                backlog = where.backlog
                if backlog is not None:
                    _, backlog.soft, backlog.hard, backlog.seconds = where.terms.resolve(limits)
                    if backlog in self.late:
                        self.late.hasten(backlog, now + backlog.seconds)
                    self._eased(backlog)
                    if backlog.bytes > backlog.soft and (backlog.policy != "block" or backlog.dropping):
                        self._over(backlog, None)  # block waits for a publication: it holds whose that is
