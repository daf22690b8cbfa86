"""Moves publications: into the outputs of peers while their lanes have credit, else into backlogs, and out of them again (section 6).

`flow` decides what becomes of a backlog that grows.
"""

from __future__ import annotations

from ..protocol.walking import frame_end, sender_of
from .backlogs import Backlog
from .flow import Flow
from .lanes import OUTPUT_HIGH_BYTES, Group, Lane
from .peers import Peer, Piece


class Delivery(Flow):
    """Moves publications into peers' outputs and backlogs, and out of backlogs where credit comes."""

    # --- outputs ----------------------------------------------------------------------------------

    def _emit(self, lane: Lane, piece: Piece, size: int, count: int) -> None:
        """Append publications to the output of a lane's peer, announcing the lane where it changed (L-3), and take the credit (L-5)."""
        peer = lane.peer
        out = peer.out
        if peer.lane is not lane:
            peer.lane = lane
            out.append(lane.announcement)
            peer.out_bytes += len(lane.announcement)
        out.append(piece)
        peer.out_bytes += size
        peer.given += count
        peer.given_bytes += size
        lane.credit -= size
        if not peer.touched:
            self.touched.append(peer)
            peer.touched = True

    # --- publications -----------------------------------------------------------------------------

    def offer(
        self, lanes: tuple[Lane, ...], piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None = None
    ) -> None:
        """Give *count* whole frames to each of *lanes*, which are in no group: at once (the hot path: `_emit`, written out), or into its
        backlog, where they wait until *deadline*."""
        for lane in lanes:
            peer = lane.peer
            if lane.credit <= 0 or lane.backlog is not None or peer.out_bytes >= OUTPUT_HIGH_BYTES:
                self._wait(lane.backlog or self._open(lane), piece, size, count, sender, deadline)
                continue
            if peer.lane is lane:
                peer.out.append(piece)
                peer.out_bytes += size
            else:
                peer.lane = lane
                peer.out += (lane.announcement, piece)
                peer.out_bytes += size + len(lane.announcement)
            peer.given += count
            peer.given_bytes += size
            lane.credit -= size
            if not peer.touched:
                self.touched.append(peer)
                peer.touched = True

    def offer_retained(self, lane: Lane, frame: bytes) -> None:
        """Give a retained message to a new lane: it waits for credit where it must, whatever waits already (L-8)."""
        self.losses.counters.offered += 1
        if lane.backlog is None and lane.credit > 0 and lane.peer.out_bytes < OUTPUT_HIGH_BYTES:
            self._emit(lane, frame, len(frame), 1)
        else:
            self._keep(self._open(lane), frame)

    def offer_group(
        self, group: Group, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None = None
    ) -> None:
        """Give *count* whole frames to a group, each to one member. What its members take at once is never too much."""
        backlog = group.backlog
        if backlog is None:
            backlog = group.backlog = Backlog(None, group, next(iter(group.members)).peer, group.terms.resolve(self.limits))
        self._put(backlog, piece, size, count, sender, deadline)
        self.dispatch(group)
        if backlog.bytes > backlog.soft:
            self._over(backlog, sender)

    def dispatch(self, group: Group) -> None:
        """Divide a group's backlog among the members that may get messages. A run is divided by frame: it can be thousands of jobs."""
        backlog = group.backlog
        if backlog is None:
            return
        lane: Lane | None = None
        while backlog.pieces:
            first = backlog.pieces[0]
            piece = first.piece
            if first.deadline is not None and first.deadline < self.now:
                lane = group.next_member()
                if lane is None:
                    break
                self._lose(backlog, "expired")
                continue
            at, count, size = 0, 0, len(piece)
            while at < size:
                member = group.next_member()
                if member is None:
                    break
                lane = member
                if not at:
                    backlog.reach(first)
                end = frame_end(piece, at)
                if backlog.strangers is not None and lane.peer in backlog.strangers:
                    self.introduce_number(sender_of(piece, at), lane.peer)
                self._tell_lost(backlog, lane)
                self._emit(lane, memoryview(piece)[at:end] if end - at < size else piece, end - at, 1)
                group.gave(lane)
                count += 1
                at = end
            if at < size:
                if at:
                    self._take_some(backlog, at, count)
                break
            self._take(backlog)
        if not backlog.pieces and lane is not None:
            backlog.close_gaps()
            self._tell_lost(backlog, lane)  # no message will come that could be told before
        self._eased(backlog)

    # --- credit -----------------------------------------------------------------------------------

    def grant(self, lane: Lane, size: int, messages: int) -> None:
        """CREDIT (L-5, L-6)."""
        lane.credit = min(lane.credit + size, self.limits.max_credit_bytes)
        if lane.group is not None:
            lane.messages = min(lane.messages + messages, self.limits.max_credit_bytes)
            lane.load = max(lane.load - messages, 0)
            lane.group.ready(lane)
            self.dispatch(lane.group)
        elif lane.backlog is not None:
            self._drain(lane, lane.backlog)

    def output_shrank(self, peer: Peer) -> None:
        """A peer's output fell below OUTPUT_HIGH_BYTES: what waited for that may go on."""
        if peer.unintroduced is not None:
            self.introduce_waiting(peer)
        for lane in tuple(peer.waiting or ()):
            if lane.backlog is not None:
                self._drain(lane, lane.backlog)
        groups: dict[Group, None] = {}
        for lane in peer.grouped or ():
            if lane.group is not None:
                lane.group.ready(lane)
                groups[lane.group] = None
        for group in groups:
            self.dispatch(group)

    def _drain(self, lane: Lane, backlog: Backlog) -> None:
        peer = lane.peer
        pieces = backlog.pieces
        while pieces and lane.credit > 0 and peer.out_bytes < OUTPUT_HIGH_BYTES:
            deadline = pieces[0].deadline
            if deadline is not None and deadline < self.now:
                self._lose(backlog, "expired")
                continue
            entry = self._take(backlog)
            self._tell_lost(backlog, lane)
            self._emit(lane, entry.piece, len(entry.piece), entry.count)
        self._eased(backlog)
