"""The blocking shell's one background thread: it does what nobody else is there for.

It leads when nobody has for a few milliseconds, flushes bursts, reconnects, says again what a replay was refused, ends the streams that the
program forgot, writes the log. While
somebody else leads and nothing is buffered it sleeps without a timeout; while it leads itself, in poll().
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

from ._backoff import Backoff
from ._dial import HANDSHAKE_S, dial, explain, is_final
from ._errors import ConnectError, ConnectionLost, Timeout
from ._log import CRITICAL, log
from ._outbox import BURST_MESSAGES, BURST_S
from ._state import State
from ._waiter import Waiter

if TYPE_CHECKING:
    from ._parts import Parted
    from ._wire import Wire

#: Ticks with little output after which a burst is over.
_QUIET_TICKS = 4
#: So long nobody must have led before the keeper does: who waits again and again shall find the lead free.
_IDLE_S = 0.005
#: How long writing what is buffered may take where the program did not close the bus: it forgot it, or is at its end.
ORPHAN_S = 1.0


class Keeper:
    """The thread of one `Wire`, and what others must know of it."""

    def __init__(self, wire: Wire) -> None:
        self.waiter = Waiter()  #: stands for this thread as the leader
        self.fd = -1
        self.deep = False  #: it sleeps until it is woken, and does not lead
        self.polls = False  #: it is in poll() with the socket
        self.finished = True  #: it is gone, or did not come yet
        self.orphaned = False  #: the bus object was dropped without close(): nobody can use it, or close it, any more
        self._wire = wire
        self._session = wire.session
        self._attempt = 0
        self._backoff = Backoff()
        self._turned = (0, 0.0)  #: how often others had led, and when that number was new
        self._quiet = (0, 0)  #: ticks with little output, and how often publishers had written
        self._forgotten: deque[Parted] = deque()  #: streams that nobody has any more
        self._log_lock = threading.RLock()  #: who holds it writes the log

    def start(self) -> None:
        """Begin, by connecting."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.finished = False
        try:
            threading.Thread(target=self._run, name="ipcbus keeper", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self.finished = True
            raise

    def wake(self) -> None:
        """Have it look again; under the lock."""
        self.deep = False
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def lost(self, connected_s: float | None) -> None:
        """A connection ended that was up for *connected_s* seconds (None: never quite)."""
        self._attempt = self._backoff.next_attempt(self._attempt, connected_s)

    def _run(self) -> None:
        wire, session = self._wire, self._session
        fault: BaseException | None = None
        wire.lock.acquire()
        try:
            while session.state is not State.CLOSED:
                if self.orphaned:
                    self._bury()
                elif self._forgotten:
                    self._end_forgotten()
                elif session.remarks:
                    wire.lock.release()
                    try:
                        self.log()
                    finally:
                        wire.lock.acquire()
                elif wire.sock is None:
                    self._redial()
                else:
                    self._keep()
        except BaseException as error:  # noqa: BLE001  # a fault of ours: without this thread every wait would be for ever
            fault = error
            session.close(ConnectionLost(f"the thread that keeps the connection failed: {type(error).__name__}: {error}"))
        finally:
            try:
                wire.end()
                self.finished = True
                wire.close_retired()
            finally:
                wire.lock.release()
        self.log()
        if fault is not None:
            log(CRITICAL, "the bus is closed: the thread that keeps the connection failed", fault)

    def abandon(self) -> None:
        """In the child of a fork, where the thread does not exist."""
        self.finished = True
        self._forgotten.clear()
        self.close()
        self._log_lock = threading.RLock()

    def close(self) -> None:
        """Let go of the descriptor, when the thread is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def orphan(self) -> None:
        """The bus object is gone; not under the lock, as this may come wherever the garbage collector runs: close the bus soon."""
        self.orphaned = True
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def forget(self, call: Parted) -> None:
        """Nobody has the stream of *call* any more; not under the lock, as this may come wherever the garbage collector runs, perhaps where
        this thread has another bus's lock: end it soon.
        """
        self._forgotten.append(call)
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def _end_forgotten(self) -> None:
        """What close() of the streams would do."""
        while self._forgotten:
            self._session.streams.close(self._forgotten.popleft())
        self._wire.push()

    def _bury(self) -> None:
        """What close() would do, as far as it takes no time but to write what is buffered."""
        wire, session = self._wire, self._session
        wire.timeout = ORPHAN_S
        wire.outbox.holds.leave()
        try:
            wire.publish_all()
        except Timeout:
            pass  # the bus does not read; what it did not get, the session counts
        session.bye()
        wire.push()
        session.close()

    def _keep(self) -> None:
        """One round with a connection: what is due, then sleep. Under the lock, which is free meanwhile."""
        wire = self._wire
        now = wire.now()
        timeout = self._due(now)
        sock = wire.sock
        if sock is None:
            return
        if self._turned[0] != wire.turns:
            self._turned = (wire.turns, now)
        settled = now - self._turned[1] >= _IDLE_S
        leads = settled and wire.leader is None
        if leads:
            wire.leader = self.waiter
        elif not settled:
            timeout = _IDLE_S if timeout is None else min(timeout, _IDLE_S)
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        wanted = (select.POLLIN if leads else 0) | (select.POLLOUT if wire.outbox.blocked else 0)
        if wanted:
            poller.register(sock, wanted)
        self.polls = leads
        self.deep = not leads and (timeout is None or timeout > _IDLE_S)
        wire.pollers += 1
        wire.lock.release()
        try:
            events = poller.poll(None if timeout is None else max(1, round(timeout * 1000)))
        finally:
            wire.lock.acquire()
            self.deep = self.polls = False
            wire.polled()
        still = wire.leader is self.waiter  # others take the lead without a word
        if still:
            wire.leader = None
        for fd, mask in events:
            if fd == self.fd:
                drain(fd)
            else:
                wire.act(mask if still else mask & select.POLLOUT)

    def _due(self, now: float) -> float | None:
        """Do what is due, and say in how many seconds something will be."""
        wire = self._wire
        timeout = None
        if self._session.state is State.CONNECTED:
            due = self._session.tick(now, wire.unread)
            timeout = None if due is None else max(due - now, 0.0)
            if self._session.hangup is not None:
                wire.drop(self._session.hangup)
                return 0.0
        else:
            left = wire.opened_at + HANDSHAKE_S - now
            if left <= 0:
                wire.drop(f"no WELCOME within {HANDSHAKE_S:g} s")
            timeout = max(left, 0.0)
        outbox = wire.outbox
        few = len(outbox.out) < 2 * BURST_MESSAGES
        if outbox.out:
            wire.push()
        if outbox.batching:
            ticks, flushes = self._quiet
            ticks = ticks + 1 if few and flushes == wire.flushes else 0
            outbox.batching = ticks < _QUIET_TICKS
            self._quiet = (ticks if outbox.batching else 0, wire.flushes)
            if outbox.batching:
                timeout = BURST_S
        return timeout

    def _redial(self) -> None:
        """Wait as long as the backoff says, then try once. Under the lock, which is free meanwhile."""
        wire, session = self._wire, self._session
        if session.state is State.CONNECTED:
            session.lost("interrupted while the connection ended", again=session.error is None and wire.reconnect)
            return
        due = 0.0
        if wire.last_failure:
            due = wire.now() + self._backoff.delay_s(self._attempt, wire.jitter())
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        made = failure = None
        wire.lock.release()
        try:
            while (left := due - wire.now()) > 0 and session.state is not State.CLOSED and not self.orphaned:
                if poller.poll(int(left * 1000) + 1):
                    drain(self.fd)
            if session.state is not State.CLOSED and not self.orphaned:
                made, opening = dial(wire.target)
        except (OSError, ConnectError) as error:
            failure = error
        finally:
            wire.lock.acquire()
        if failure is not None:
            self._failed(failure)
        elif made is not None:
            if session.state is State.CLOSED:
                made.close()
            else:
                wire.opened(made, opening)

    def _failed(self, failure: OSError | ConnectError) -> None:
        """An attempt to connect failed."""
        wire, session = self._wire, self._session
        why = explain(failure, wire.target)
        wire.last_failure, wire.last_reason, wire.last_bye = str(why), why.reason, None
        self._attempt = self._backoff.next_attempt(self._attempt, None)
        if is_final(why, first=session.state is State.CONNECTING):
            session.close(why)

    def log(self) -> None:
        """Write the session's remarks to the log; not under the lock of the bus (a handler of the log may do anything). When it returns
        they are written, whoever did it; only for a handler that hangs nobody waits longer than a second.
        """
        if not self._log_lock.acquire(timeout=1.0):
            return
        try:
            remarks = self._session.remarks
            while remarks:
                remark = remarks.popleft()
                log(remark.level, remark.text)
        finally:
            self._log_lock.release()


def drain(fd: int) -> None:
    """Reset an eventfd."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass  # somebody else was faster
