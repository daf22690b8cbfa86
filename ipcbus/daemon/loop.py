"""The loop: one thread, one poller, rounds of reads and then writes.

Owns the poller, the links and the timers. Must not know what frames mean (the broker does), who may connect (admission does) or why the
daemon stops (the lifecycle does). A frame's way: ``recv`` of at most READ_BYTES from each readable peer, ``broker.receive``; when all were
read, the output of every peer that the broker touched is offered to the kernel; what it does not take waits for writability.

Who had a read that cost as much as a small slice (SHARED_SLICE_WORK) is read no more when the poller says so but when its turn comes: in
each round, after the others have been read and their output was written, all of those together get about one slice. It is small while there
are others, so that they wait for one small slice and its output at most, however many send however expensive things; who has the bus for
himself has large ones (SLICE_WORK).

A round never frees a link that an event later in the same round may name: links are closed at its end, and ``gone`` is checked before
any use.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..protocol.errors import Code
from ..protocol.limits import READ_BYTES
from .limits import (
    BYTES_A_UNIT,
    CLOSE_FLUSH_S,
    FAULTS_MAX,
    RETRY_S,
    SELECT_MAX_FD,
    SHARED_S,
    SHARED_SLICE_WORK,
    SLICE_WORK,
    WAIT_MAX_S,
    WARM_UP_BYTES,
    WRITE_PASSES,
)
from .links import Link, Turn, close, hung_up, offer, part, settle
from .memory import Reclaim

if TYPE_CHECKING:
    from ..broker import Broker, Peer

log = logging.getLogger("ipcbus.daemon")

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

#: ``--poller``: the class, and the first file descriptor that it cannot hold
POLLERS: dict[str, tuple[type[selectors.BaseSelector], int | None]] = {
    "epoll": (selectors.EpollSelector, None),
    "poll": (selectors.PollSelector, None),
    "select": (selectors.SelectSelector, SELECT_MAX_FD),
}


class Watched(Protocol):
    """What the loop watches besides links: listeners, the signal pipe."""

    def on_ready(self, now: float) -> None:
        """The socket is readable. Must not raise for what a stranger can cause."""


class Loop:
    """The rounds of one daemon. Not thread-safe; everything runs on the thread that calls run()."""

    __slots__ = (
        "_broker", "_clock", "_dead", "_deadline", "_faults", "_finishing", "_links", "_more", "_reclaim", "_revisit", "_selector",
        "_sequence", "_shared_until", "_stopped", "_timers", "_turns", "empty_since", "max_fd",
    )  # fmt: skip

    def __init__(self, broker: Broker, poller: str, clock: Callable[[], float]) -> None:
        kind, self.max_fd = POLLERS[poller]
        self._selector = kind()
        self._broker = broker
        self._clock = clock
        self._links: dict[Link, None] = {}
        self.empty_since: float | None = clock()  #: when the last link was closed; None while there are some
        self._dead: list[Link] = []  #: to be closed at the end of the round
        self._turns: deque[Link] = deque()  #: whose last read cost much, in the order of their turns
        self._shared_until = 0.0  #: until then their slices are small, because somebody else was served
        self._revisit: list[Link] = []  #: to be served in this round although the broker did not touch them
        self._more = False  #: the broker touched peers that this round did not get to
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._sequence = 0
        self._deadline: float | None = None  #: the broker's, as of the beginning of the round
        self._reclaim = Reclaim(self.at, broker.queued_bytes)
        self._faults = 0  #: rounds in a row that ended early
        self._finishing = False
        self._stopped = False

    # --- for listeners, signals and the lifecycle -------------------------------------------------------------------------------------

    def watch(self, sock: socket.socket, watched: Watched) -> None:
        """Call ``watched.on_ready`` when *sock* is readable, until unwatch()."""
        self._selector.register(sock, READ, watched)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching *sock*."""
        self._selector.unregister(sock)

    def adopt(self, sock: socket.socket, peer: Peer) -> None:
        """Serve a connection that admission let in. *sock* is non-blocking and below max_fd. Raises OSError where the poller is full."""
        link = Link(sock, peer)
        self._links[link] = None
        try:
            self._watch(link, READ)
        except BaseException:
            self._links.pop(link, None)
            raise
        peer.link = link
        self.empty_since = None

    def at(self, when: float, callback: Callable[[float], None]) -> None:
        """Call *callback* with the time, once, in the first round after *when*."""
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, callback))

    def finish(self, deadline: float) -> None:
        """End run() as soon as every link has been written out and closed, at *deadline* at the latest."""
        self._finishing = True
        self.at(deadline, lambda _: self.stop())

    def stop(self) -> None:
        """End run() after this round, whatever still waits."""
        self._stopped = True

    def close(self) -> None:
        """Close every link and the poller. Call after run()."""
        for link in [*self._links, *self._dead]:
            close(link.sock)
        self._links.clear()
        self._dead.clear()
        self._selector.close()

    # --- rounds -----------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stop(), or after finish() until nobody is left. What one peer causes stays with that peer."""
        warm_up()
        select, receive, clock, turns = self._selector.select, self._broker.receive, self._clock, self._turns
        ready = Turn.READY
        now = clock()
        self._more = True  # what the broker touched before the first round
        while not self._stopped:
            try:
                events = select(self._timeout(now))
                now = clock()
                queued = len(turns)
                for key, mask in events:
                    link = key.data
                    if link.__class__ is not Link:
                        link.on_ready(now)
                        continue
                    if link.gone:
                        continue
                    if mask & READ and link.turn is ready:
                        try:
                            data = link.sock.recv(link.read_bytes)
                            if not data:
                                self._end_of_file(link, now)
                            else:
                                spent = receive(link.peer, data, now, SHARED_SLICE_WORK) + len(data) // BYTES_A_UNIT
                                if spent >= SHARED_SLICE_WORK:
                                    link.measure(len(data), spent, self._slice(now))
                                    turns.append(link)
                                elif link.read_bytes < READ_BYTES:
                                    link.measure(len(data), spent, SHARED_SLICE_WORK)
                        except BlockingIOError:
                            pass  # the poller said readable and it was not: it will say so again
                        except OSError as error:
                            self._lost(link, now, error)
                        except Exception:
                            log.exception("fault of the bus while it served %s, which is cut off", link.peer)
                            self._fault(link, now)
                    if mask & WRITE:
                        link.blocked = False
                        self._revisit.append(link)
                if queued:
                    others = len(turns) == queued  # else what is to be written may come from who has just been queued
                    if self._write(now) and others:
                        self._shared_until = now + SHARED_S
                    self._take_turns(now, queued)
                self._expire(now)
                self._write(now)
                if self._dead:
                    self._bury()
                self._faults = 0
            except Exception:
                # A fault that is no peer's, for want of memory perhaps. What was not done stands in the tables still, and what is readable
                # will be said again: on with the next round at once, unless it was like this too often in a row.
                self._more = True
                self._faults += 1
                if self._faults >= FAULTS_MAX:
                    raise
                log.exception("fault of the bus, which goes on")
            if self._finishing and not self._links:
                return

    def _timeout(self, now: float) -> float | None:
        """Seconds until the next deadline, at most WAIT_MAX_S, and None where there is none."""
        deadline = self._deadline = self._broker.next_deadline()
        if self._more or self._turns:
            return 0.0
        if self._timers and (deadline is None or self._timers[0][0] < deadline):
            deadline = self._timers[0][0]
        if deadline is None:
            return None
        if deadline <= now:
            return 0.0
        return deadline - now if deadline - now < WAIT_MAX_S else WAIT_MAX_S

    def _slice(self, now: float) -> int:
        """How much work those whose reads cost much may be in this round, together."""
        return SHARED_SLICE_WORK if now < self._shared_until else SLICE_WORK

    def _take_turns(self, now: float, count: int) -> None:
        """Go on with *count* of those whose reads cost much at most, each in turn, until a slice is used up."""
        work = left = self._slice(now)
        for _ in range(count):
            link = self._turns.popleft()
            try:
                left -= self._take_turn(link, now, work)
                if link.turn is Turn.QUEUED:
                    self._turns.append(link)
            except OSError as error:
                self._lost(link, now, error)
                continue
            except Exception:
                log.exception("fault of the bus while it served %s, which is cut off", link.peer)
                self._fault(link, now)
                continue
            if left <= 0:
                return

    def _take_turn(self, link: Link, now: float, work: int) -> int:
        """A slice of *work* for a link, at most; returns what it took of it. Raises OSError where the connection is gone."""
        peer = link.peer
        link.turn = Turn.READY
        if link.gone or peer.closing or link.eof:
            return 0
        if peer.unread is not None:
            if peer.held:
                link.turn = Turn.ASIDE
                return 0
            link.turn = Turn.QUEUED
            return self._broker.resume(peer, now, work)
        if peer.held:
            return 0
        try:
            data = link.sock.recv(link.read_bytes)
        except BlockingIOError:
            return 0
        if not data:
            self._end_of_file(link, now)
            return 0
        spent = self._broker.receive(peer, data, now, work) + len(data) // BYTES_A_UNIT
        link.measure(len(data), spent, work)
        return spent

    def _expire(self, now: float) -> None:
        """Run what is due: the broker's deadlines and the loop's own timers."""
        deadline = self._deadline
        if deadline is not None and deadline <= now:
            self._broker.tick(now)
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2]
            try:
                callback(now)
            except Exception:
                self.at(now + RETRY_S, callback)
                log.exception("fault of the bus in what was due, which is tried again")

    def _write(self, now: float) -> bool:
        """Serve whoever became writable or was touched by the broker. Writing frees queues, which touches others: a few passes. Returns
        whether the broker had touched anybody."""
        if self._revisit:
            revisit, self._revisit = self._revisit, []
            for link in revisit:
                self._serve(link, now)
        self._more = False
        for number in range(WRITE_PASSES):
            touched = self._broker.take_touched()
            if not touched:
                return number > 0
            for peer in touched:
                if peer.link is not None:
                    self._serve(peer.link, now)
        self._more = True
        return True

    # --- one link ---------------------------------------------------------------------------------------------------------------------

    def _serve(self, link: Link, now: float) -> None:
        """Write what waits for a link unless its kernel buffer is full, close it where that is due, and watch it for what matters now."""
        if link.gone:
            return
        peer = link.peer
        try:
            if link.deaf:
                self._broker.discard(peer, now)
            elif peer.out and not link.blocked:
                try:
                    count = offer(link)
                    if count:
                        self._broker.wrote(peer, count, now)
                    if link.blocked:
                        settle(link)
                        self._reclaim.look_later(now)
                except OSError as error:
                    if link.eof or peer.closing or not hung_up(link):
                        self._lost(link, now, error)
                        return
                    link.deaf = True  # it closed its end: what it had sent before is still worked off, and then comes the end of file
                    link.blocked = False
                    self._broker.discard(peer, now)
            elif link.blocked and peer.out:
                settle(link)  # what came in this round waits too: it must not keep a whole read alive
            if link.turn is Turn.ASIDE and not peer.held:
                link.turn = Turn.QUEUED
                self._turns.append(link)
            if peer.closing or peer.closed:
                if peer.closed or not peer.out:
                    self._drop(link, now)
                    return
                if not link.parting:
                    link.parting = True
                    if not self._finishing:
                        self.at(now + CLOSE_FLUSH_S, lambda when: self._drop(link, when))
            interest = 0 if peer.held or peer.closing or link.eof else READ
            if link.blocked:
                interest |= WRITE
            if interest != link.interest:
                self._watch(link, interest)
        except OSError as error:
            self._lost(link, now, error)
        except Exception:
            log.exception("fault of the bus while it wrote to %s, which is cut off", peer)
            self._drop(link, now)  # without BYE: what of its output was written is not certain

    def _watch(self, link: Link, interest: int) -> None:
        """Tell the poller. A link with interest 0 is not registered: a hang-up, which cannot be masked, would keep the loop spinning."""
        try:
            if not link.interest:
                self._selector.register(link.fd, interest, link)
            elif interest:
                self._selector.modify(link.fd, interest, link)
            else:
                self._selector.unregister(link.fd)
        except OSError as error:
            link.interest = 0  # the poller has let go of it
            log.error("%s: the poller cannot watch it: %s", link.peer, error.strerror)
            raise
        link.interest = interest

    def _end_of_file(self, link: Link, now: float) -> None:
        """H-11: the client is done sending. Whether somebody is left to read decides between a half-close and the end."""
        link.eof = True
        if hung_up(link):
            self._lost(link, now, None)
        else:
            self._broker.half_close(link.peer, now)
            self._revisit.append(link)

    def _lost(self, link: Link, now: float, error: OSError | None) -> None:
        """The connection is gone, both ways."""
        if error is not None:
            log.debug("%s: connection lost: %s", link.peer, error.strerror)
        self._drop(link, now)

    def _fault(self, link: Link, now: float) -> None:
        """After an exception in a peer's work: BYE to it, and to nobody else."""
        try:
            self._broker.expel(link.peer, Code.INTERNAL, "a fault of the bus while it served this connection; its log has the details", now)
        except Exception:
            log.exception("fault of the bus while it let go of %s", link.peer)
            self._drop(link, now)

    def _drop(self, link: Link, now: float) -> None:
        """Nothing is done with *link* any more; its socket closes at the end of the round. Idempotent."""
        if link.gone:
            return
        peer = link.peer
        self._dead.append(link)  # first: whatever fails below, its socket is closed
        link.gone = True
        self._links.pop(link, None)
        if not self._links:
            self.empty_since = now
        try:
            if link.interest:
                self._watch(link, 0)
        except Exception:
            log.exception("fault of the bus while it looked away from %s; the end of the socket does it too", peer)
        for _ in range(2):  # a fault in the middle leaves the rest to another call
            try:
                if not peer.closed:
                    self._broker.disconnect(peer, now)
                self._reclaim.look_later(now)
                break
            except Exception:
                log.exception("fault of the bus while it let go of %s", peer)
        peer.link = None

    def _bury(self) -> None:
        """Close what this round dropped. Only here do file descriptors become free for others."""
        dead, self._dead = self._dead, []
        for link in dead:
            part(link.sock)


def warm_up() -> None:
    """Make big reads cheap: once a block this large was freed, glibc serves blocks of its size from the heap and not by mmap and munmap.

    A read asks for READ_BYTES and shrinks the result. Without this each one costs page faults and system calls, 20 µs instead of 3. And
    what the program itself consists of is not looked at again by each collection of garbage.
    """
    with contextlib.suppress(MemoryError):
        bytes(WARM_UP_BYTES)
    gc.freeze()
