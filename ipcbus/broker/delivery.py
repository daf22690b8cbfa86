"""Moves publications: into the outputs of peers while their lanes have credit, else into backlogs, and out of them again (section 6)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ..protocol.limits import HEADER_BYTES, Limits
from ..protocol.messages import Kind, encode_with_payload, pack
from .counters import Counters
from .lanes import GATHER_BYTES, OUTPUT_HIGH_BYTES, Backlog, Group, Lane, pins
from .peers import Peer, Piece
from .timeouts import Timeouts


class Delivery:
    """Moves publications into peers' outputs and backlogs. Owns no sockets: a peer whose record changed is in ``touched``."""

    def __init__(self, limits: Limits, counters: Counters, log: Callable[[int, str], None]) -> None:
        self.limits = limits
        self.now = 0.0  #: set by the broker on entry
        self.touched: list[Peer] = []
        self.stalls: Timeouts[Backlog] = Timeouts(limits.lane_stall_s)
        self._counters = counters
        self._log = log

    # --- outputs ----------------------------------------------------------------------------------

    def touch(self, peer: Peer) -> None:
        """Have the daemon look at *peer* at the end of the round."""
        if not peer.touched:
            peer.touched = True
            self.touched.append(peer)

    def put(self, peer: Peer, frame: Piece) -> None:
        """Append one frame that needs no credit to a peer's output."""
        peer.out.append(frame)
        peer.out_bytes += len(frame)
        if not peer.touched:
            peer.touched = True
            self.touched.append(peer)

    def notice(self, peer: Peer, name: str, content: dict[str, object]) -> None:
        """Send a NOTICE (E-6)."""
        self.put(peer, encode_with_payload(pack(content), Kind.NOTICE, 0, name, None))

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
        peer.delivered += count
        peer.delivered_bytes += size
        lane.credit -= size
        if not peer.touched:
            peer.touched = True
            self.touched.append(peer)

    # --- publications -----------------------------------------------------------------------------

    def offer(
        self, lanes: tuple[Lane, ...], piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None = None
    ) -> None:
        """Give *count* whole frames to each of *lanes*, which are in no group: at once (the hot path: `_emit`, written out), or into its
        backlog, where they wait until *deadline*."""
        for lane in lanes:
            peer = lane.peer
            if lane.credit <= 0 or lane.backlog is not None or peer.out_bytes >= OUTPUT_HIGH_BYTES:
                self._queue(lane, piece, size, count, sender, deadline)
                continue
            if peer.lane is lane:
                peer.out.append(piece)
                peer.out_bytes += size
            else:
                peer.lane = lane
                peer.out += (lane.announcement, piece)
                peer.out_bytes += size + len(lane.announcement)
            peer.delivered += count
            peer.delivered_bytes += size
            lane.credit -= size
            if not peer.touched:
                peer.touched = True
                self.touched.append(peer)

    def offer_retained(self, lane: Lane, frame: bytes) -> None:
        """Give a retained message to a new lane: it waits for credit where it must, whatever waits already (L-8)."""
        if lane.backlog is None:
            self.offer((lane,), frame, len(frame), 1, None)
        else:
            self._append(lane.backlog, frame, len(frame), 1, None)

    def _queue(self, lane: Lane, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        backlog = lane.backlog
        if backlog is None:
            backlog = lane.backlog = Backlog(lane, None, lane.peer)
            if lane.peer.waiting is None:
                lane.peer.waiting = {}
            lane.peer.waiting[lane] = None
        self._wait(backlog, piece, size, count, sender, deadline)

    def offer_group(
        self, group: Group, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None = None
    ) -> None:
        """Give *count* whole frames to a group, each to one member."""
        if group.backlog is None:
            group.backlog = Backlog(None, group, next(iter(group.members)).peer)
        self._wait(group.backlog, piece, size, count, sender, deadline)
        self.dispatch(group)

    def dispatch(self, group: Group) -> None:
        """Divide a group's backlog among the members that may get messages. A run is divided by frame: it can be thousands of jobs."""
        backlog = group.backlog
        if backlog is None:
            return
        while backlog.pieces:
            piece, count, deadline = backlog.pieces[0]
            at, size = 0, len(piece)
            if deadline is not None and deadline < self.now:
                lane = group.next_member()
                if lane is None:
                    break
                self._lose(backlog, "expired")
                if not backlog.pieces:
                    self._tell_lost(backlog, lane)
                continue
            while at < size:
                lane = group.next_member()
                if lane is None:
                    break
                end = at + HEADER_BYTES + int.from_bytes(piece[at + 1 : at + HEADER_BYTES], "big")
                self._tell_lost(backlog, lane)
                self._emit(lane, memoryview(piece)[at:end] if end - at < size else piece, end - at, 1)
                group.turns += 1
                lane.turn = group.turns
                lane.messages -= 1
                lane.load += 1
                count -= 1
                at = end
            self._take(backlog, at, backlog.pieces[0][1] - count)
            if at < size:
                if at:
                    rest = memoryview(piece)[at:]
                    backlog.pieces[0] = (bytes(rest) if size - at < at else rest, count, deadline)
                break
            backlog.pieces.popleft()
        self._eased(backlog)

    # --- credit -----------------------------------------------------------------------------------

    def grant(self, lane: Lane, size: int, messages: int) -> None:
        """CREDIT (L-5, L-6)."""
        lane.credit = min(lane.credit + size, self.limits.max_credit_bytes)
        if lane.group is not None:
            lane.messages = min(lane.messages + messages, self.limits.max_credit_bytes)
            lane.load = max(lane.load - messages, 0)
            self.dispatch(lane.group)
        elif lane.backlog is not None:
            self._drain(lane, lane.backlog)

    def output_shrank(self, peer: Peer) -> None:
        """A peer's output fell below OUTPUT_HIGH_BYTES: what waited for that may go on."""
        for lane in tuple(peer.waiting or ()):
            if lane.backlog is not None:
                self._drain(lane, lane.backlog)
        for lane in tuple(peer.grouped or ()):
            if lane.group is not None:
                self.dispatch(lane.group)

    def _drain(self, lane: Lane, backlog: Backlog) -> None:
        peer = lane.peer
        pieces = backlog.pieces
        while pieces and lane.credit > 0 and peer.out_bytes < OUTPUT_HIGH_BYTES:
            piece, count, deadline = pieces[0]
            if deadline is not None and deadline < self.now:
                self._lose(backlog, "expired")
                continue
            del pieces[0]
            size = len(piece)
            self._take(backlog, size, count)
            self._tell_lost(backlog, lane)
            self._emit(lane, piece, size, count)
        if not pieces:
            self._tell_lost(backlog, lane)  # the last ones had expired: no message will come that could be told before
        self._eased(backlog)

    # --- backlogs ---------------------------------------------------------------------------------

    @staticmethod
    def _take(backlog: Backlog, size: int, count: int) -> None:
        backlog.bytes -= size
        backlog.count -= count
        backlog.payer.backlog_bytes -= size

    def _wait(self, backlog: Backlog, piece: Piece, size: int, count: int, sender: Peer | None, deadline: float | None) -> None:
        """Add frames to a backlog, within the limits of the backlog and of who pays for it (L-7)."""
        payer = backlog.payer
        if payer.backlog_bytes > self.limits.max_output_bytes and backlog.group is None:
            self._counters.lost += count  # the payer is closed as slow_reader at the end of the round
            self.touch(payer)
            return
        self._append(backlog, piece, size, count, deadline)
        if payer.backlog_bytes > self.limits.max_output_bytes:
            self.touch(payer)
        high = self.limits.lane_high_bytes
        if backlog.bytes <= high and payer.backlog_bytes <= self.limits.max_output_bytes // 2:
            return
        self._drop_expired(backlog)
        self._eased(backlog)
        if backlog.bytes <= high and payer.backlog_bytes <= self.limits.max_output_bytes // 2:
            return
        if backlog.dropping:
            self._drop(backlog, high)
        elif sender is None or payer is sender or (backlog.group is not None and backlog.group.has(sender)):
            # Nobody to hold: the bus itself, or a subscriber's own publications (held, it could not even send CREDIT).
            self._drop(backlog, high + self.limits.max_frame_bytes)
        elif sender not in backlog.holding:
            if not backlog.holding:
                if backlog.lane is not None and payer.deaf_at == payer.written_bytes:
                    backlog.dropping = True
                    self._drop(backlog, high)
                    return
                backlog.written_bytes = payer.written_bytes
                self.stalls.start(backlog, self.now)
            backlog.holding.add(sender)
            sender.held += 1
            self.touch(sender)

    @staticmethod
    def _append(backlog: Backlog, piece: Piece, size: int, count: int, deadline: float | None) -> None:
        """Add frames. What would pin a read many times its size is copied; small ones are gathered, where they wait equally long."""
        pieces = backlog.pieces
        if size < GATHER_BYTES // 8:
            tail, tail_count, tail_deadline = pieces[-1] if pieces else (b"", 0, None)
            if isinstance(tail, bytearray) and len(tail) + size <= GATHER_BYTES and tail_deadline == deadline:
                tail += piece
                pieces[-1] = (tail, tail_count + count, deadline)
            else:
                pieces.append((bytearray(piece), count, deadline))
        elif pins(piece):
            pieces.append((bytes(piece), count, deadline))
        else:
            pieces.append((piece, count, deadline))
        backlog.bytes += size
        backlog.count += count
        backlog.payer.backlog_bytes += size

    def _drop(self, backlog: Backlog, limit: int) -> None:
        """Lose the oldest messages of a backlog until it is within *limit*; the newest piece stays."""
        while backlog.bytes > limit and len(backlog.pieces) > 1:
            if not backlog.logged:
                backlog.logged = True
                limits = "limits.lane_high_bytes, limits.lane_stall_s"
                self._log(logging.WARNING, f"{backlog} does not keep up: its oldest messages are dropped and counted (L-7; {limits})")
            self._lose(backlog, "too_slow")

    def shed(self, peer: Peer, size: int) -> None:
        """Lose up to *size* bytes of what waits in the queues that *peer* pays for, the oldest of the largest first (Q-3)."""

    def _drop_expired(self, backlog: Backlog) -> None:
        """Lose what stands first and is past its time, before somebody is held for it; the newest piece stays."""
        pieces = backlog.pieces
        while len(pieces) > 1 and (deadline := pieces[0][2]) is not None and deadline < self.now:
            self._lose(backlog, "expired")

    def _lose(self, backlog: Backlog, why: str) -> None:
        """Lose the oldest piece of a backlog, and remember to tell it (L-7, L-11)."""
        piece, count, _ = backlog.pieces.popleft()
        size = len(piece)
        self._take(backlog, size, count)
        loss = backlog.losses.setdefault(why, [0, 0])
        loss[0] += count
        loss[1] += size
        if why == "expired":
            self._counters.expired_messages += count
        else:
            self._counters.lost += count

    def _tell_lost(self, backlog: Backlog, lane: Lane) -> None:
        """NOTICE lost, at the place of the gap (L-7, L-11)."""
        if backlog.losses:
            for why, (count, size) in backlog.losses.items():
                self.notice(lane.peer, "lost", {"lane": lane.number, "count": count, "bytes": size, "why": why})
            backlog.losses = {}

    def _eased(self, backlog: Backlog) -> None:
        """A backlog became smaller: let its publishers go on below half its limit, forget it when it is empty."""
        limits = self.limits
        if backlog.holding and (
            not backlog.pieces
            or (backlog.bytes <= limits.lane_high_bytes // 2 and backlog.payer.backlog_bytes <= limits.max_output_bytes // 4)
        ):
            self._release(backlog)
        if not backlog.pieces:
            self._forget(backlog)

    def _release(self, backlog: Backlog) -> None:
        self.stalls.stop(backlog)
        for sender in backlog.holding:
            sender.held -= 1
            self.touch(sender)
        backlog.holding.clear()

    def _forget(self, backlog: Backlog) -> None:
        if backlog.lane is not None:
            backlog.lane.backlog = None
            waiting = backlog.lane.peer.waiting
            if waiting is not None:
                waiting.pop(backlog.lane, None)
                if not waiting:
                    backlog.lane.peer.waiting = None
        elif backlog.group is not None:
            backlog.group.backlog = None

    def stalled(self, now: float) -> None:
        """Backlogs that held their publishers for too long drop from now on; who read nothing all the time is not waited for again before
        it does (L-7)."""
        for backlog in self.stalls.due(now):
            backlog.dropping = True
            payer = backlog.payer
            if backlog.lane is not None and payer.out_bytes and payer.written_bytes == backlog.written_bytes:
                payer.deaf_at = payer.written_bytes
            self._release(backlog)
            self._drop(backlog, self.limits.lane_high_bytes)

    def forget_publisher(self, peer: Peer) -> None:
        """A publisher went: nothing holds it any more."""
        if peer.held:
            for backlog in self._held_by(peer):
                backlog.holding.discard(peer)
                if not backlog.holding:
                    self.stalls.stop(backlog)
            peer.held = 0

    def _held_by(self, peer: Peer) -> Iterable[Backlog]:
        return [backlog for backlog in self.stalls if peer in backlog.holding]

    def abandon(self, backlog: Backlog) -> int:
        """Nobody will take what waits here: count it as lost, let its publishers go. Returns the number of messages lost and not told."""
        dropped = backlog.count
        self._counters.lost += dropped
        backlog.pieces.clear()
        self._take(backlog, backlog.bytes, dropped)
        self._release(backlog)
        self._forget(backlog)
        return dropped + sum(count for count, _ in backlog.losses.values())

    def member_left(self, group: Group, peer: Peer) -> int:
        """A lane of *peer* left *group*. Without members what waits is abandoned; else somebody else pays for it."""
        backlog = group.backlog
        if backlog is None:
            return 0
        if not group.members:
            return self.abandon(backlog)
        if backlog.payer is peer:
            peer.backlog_bytes -= backlog.bytes
            backlog.payer = next(iter(group.members)).peer
            backlog.payer.backlog_bytes += backlog.bytes
        return 0
