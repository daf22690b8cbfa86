"""The blocking shell's socket: who reads it, who writes it, and the thread that keeps it alive.

There is no I/O thread that every message passes through. Whoever waits (for a reply, for a message) *leads*: polls and reads the socket itself, hands what came for
others to them, and gives the lead on when its own wait is over. Others that wait meanwhile *follow*: they sleep on a lock of their own until they are woken, because
what they wait for came or because the lead is free. So a request and its reply cost no switch between threads.

One thread, the keeper, does what nobody else is there for: it leads when nobody has for a few milliseconds, flushes bursts, reconnects, writes the log. It sleeps
without a timeout when somebody else leads, and in poll() when it leads itself. A waiter takes the lead from it without waking it: polling is harmless, only the
leader reads, and who leads is decided under the lock.

All state is under one reentrant lock (a signal handler may publish or close); no user code runs under it, and none on a leading thread.
"""

from __future__ import annotations

import _thread
import os
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic

from ipcbus.protocol.limits import READ_BYTES

from ._backoff import Backoff
from ._dial import HANDSHAKE_S, Target, UntrustedError, dial, explain
from ._errors import ConnectError, ConnectionLost, Timeout
from ._outbox import FLUSH_BYTES
from ._session import Session, State

#: A publication that follows another one within this time is part of a burst and waits as long for more.
BURST_S = 0.001
#: Ticks without output after which a burst is over.
_QUIET_TICKS = 4
#: So long nobody must have led before the keeper does: who waits again and again shall find the lead free.
_IDLE_S = 0.005

_IDLE, _LEADING, _FOLLOWING = range(3)


class Waiter:
    """One thread that waits for something. ``wake`` is what it gives to those it waits for."""

    __slots__ = ("_gate", "_wire", "state", "thread")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._gate: _thread.LockType | None = None
        self.state = _IDLE
        self.thread = 0

    def wake(self) -> None:
        """Have it look again; under the lock."""
        if self.state == _LEADING:
            os.eventfd_write(self._wire.leader_fd, 1)
        elif self.state == _FOLLOWING and self._gate is not None:
            self.state = _IDLE
            self._gate.release()

    def sleep(self, timeout: float | None) -> None:
        """Follow until woken or *timeout* seconds passed; not under the lock."""
        assert self._gate is not None
        self._gate.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def prepare(self) -> None:
        """Before sleep(), under the lock."""
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self.state = _FOLLOWING


class Wire:
    """The socket of one bus, over all its connections."""

    def __init__(self, session: Session, target: Target, *, timeout: float | None, reconnect: bool) -> None:
        self.session = session
        self.outbox = session.outbox
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self.lock = threading.RLock()
        self.ticking = False  #: the keeper flushes every BURST_S
        self.last_failure = ""  #: of an attempt to connect
        self.leader_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.state_waiters: list[Waiter] = []
        self._keeper_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._sock: socket.socket | None = None
        self._poller = select.poll()
        self._retired: list[socket.socket] = []  #: shut down, to be closed when nobody polls them
        self._pollers = 0
        self._keeper = Waiter(self)  #: stands for the keeper in _leader
        self._leader: Waiter | None = None
        self._followers: dict[Waiter, None] = {}
        self._turns = 0  #: times that somebody else than the keeper led
        self._turned = (0, 0.0)  #: what the keeper saw of it, and when
        self._keeper_deep = False  #: the keeper sleeps until it is woken, and does not lead
        self._keeper_polls = False  #: the keeper is in poll() with the socket
        self._flushed_at = 0.0
        self._flushes = 0
        self._quiet = (0, 0)  #: ticks without output, and the flushes seen
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._attempt = -1
        self._opened_at = 0.0
        self._finished = False  #: the keeper is gone
        self._backoff = Backoff()
        session.on_state = self._on_state

    def start(self) -> None:
        """Begin to connect."""
        threading.Thread(target=self._keep, name="ipcbus keeper", daemon=True).start()

    # --- waiting ---

    def wait(self, ready: Callable[[], object], waiter: Waiter, deadline: float | None) -> bool:
        """Wait until ready() or the *deadline*; under the lock, which is free meanwhile. What changes ready() must wake *waiter*.

        Writes what is buffered first. Returns the last ready(). An exception from a signal handler leaves everything usable.
        """
        try:
            while not ready():
                timeout = None
                if deadline is not None:
                    timeout = deadline - monotonic()
                    if timeout <= 0:
                        return False
                if self.outbox.out and self._sock is not None:
                    self.push()
                if self._sock is not None and self._may_lead():
                    self._lead(waiter, timeout)
                else:
                    self._follow(waiter, timeout)
            return True
        finally:
            self._hand_over()

    def _may_lead(self) -> bool:
        leader = self._leader
        # (a signal handler that waits while the thread that it interrupted leads goes on in its place)
        return leader is None or leader is self._keeper or leader.thread == _thread.get_ident()

    def _lead(self, waiter: Waiter, timeout: float | None) -> None:
        sock = self._sock
        assert sock is not None
        before = self._leader if self._leader is not self._keeper else None
        poller = self._poller
        if before is not None or self.outbox.blocked:
            poller = select.poll()
            poller.register(sock, select.POLLIN | (select.POLLOUT if self.outbox.blocked else 0))
            poller.register(self.leader_fd, select.POLLIN)
        try:
            self._leader = waiter
            waiter.state = _LEADING
            waiter.thread = _thread.get_ident()
            self._pollers += 1
            self.lock.release()
            try:
                events = poller.poll(None if timeout is None else int(timeout * 1000) + 1)
            finally:
                self.lock.acquire()
                self._polled()
        finally:
            waiter.state = _IDLE
            self._leader = before or (self._keeper if self._keeper_polls else None)
            self._turns += 1
        for fd, mask in events:
            if fd == self.leader_fd:
                _drain(fd)
            else:
                self._act(mask)

    def _follow(self, waiter: Waiter, timeout: float | None) -> None:
        waiter.prepare()
        self._followers[waiter] = None
        self.lock.release()
        try:
            waiter.sleep(timeout)
        finally:
            self.lock.acquire()
            waiter.state = _IDLE
            self._followers.pop(waiter, None)

    def _hand_over(self) -> None:
        """Somebody stopped waiting: if nobody leads, have a follower do it, or the keeper soon."""
        if self._leader is None:
            for follower in self._followers:
                if follower.state == _FOLLOWING:
                    follower.wake()
                    return
        if self.session.remarks or (self._leader is None and self._keeper_deep):
            self.wake_keeper()

    def wake_keeper(self) -> None:
        """Have the keeper look again; under the lock."""
        self._keeper_deep = False
        if self._keeper_fd >= 0:
            os.eventfd_write(self._keeper_fd, 1)

    def _on_state(self) -> None:
        for waiter in self.state_waiters:
            waiter.wake()
        self.wake_keeper()

    def wait_connected(self, deadline: float | None) -> bool:
        """Wait for a connection; raises what ended the bus. Under the lock."""
        session = self.session
        if session.state is not State.CONNECTED:
            waiter = Waiter(self)
            self.state_waiters.append(waiter)
            try:
                self.wait(lambda: session.state in _SETTLED, waiter, deadline)
            finally:
                self.state_waiters.remove(waiter)
        session.check_open()
        return session.state is State.CONNECTED

    # --- reading and writing ---

    def _act(self, mask: int) -> None:
        if mask & select.POLLOUT:
            self.push()
        if mask & ~select.POLLOUT:
            self.read()

    def read(self) -> None:
        """Read once what is there and give it to the session; under the lock."""
        sock = self._sock
        if sock is None:
            return
        try:
            count = sock.recv_into(self._buffer)
            if count:
                self.session.receive(self._view[:count])
                if self.session.hangup is not None:
                    self.drop(self.session.hangup)
            else:
                self.drop("the bus closed the connection")
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(f"reading failed: {error.strerror}")
        except BaseException:
            self.drop("interrupted while reading")  # a signal handler raised: what was read is lost, so the stream is
            raise

    def push(self) -> bool:
        """Write what is buffered as far as the kernel takes it; whether it took all. Under the lock."""
        outbox = self.outbox
        while outbox.unsent_bytes:
            sock = self._sock
            if sock is None:
                return False
            try:
                outbox.wrote(sock.send(outbox.chunk(), socket.MSG_NOSIGNAL))
            except BlockingIOError:
                if self._leader is not None or not self._keeper_polls:
                    self.wake_keeper()  # to go on when the socket is writable
                return False
            except OSError as error:
                self.drop(f"writing failed: {error.strerror}")
                return False
            except BaseException:
                self.drop("interrupted while writing")
                raise
        self._flushes += 1
        self._flushed_at = monotonic()
        return True

    def published(self, buffered_bytes: int) -> None:
        """A publication was put into the outbox: send it, or leave it to the burst that it is part of. Under the lock.

        Raises Timeout when the bus does not take what is buffered for the connect timeout; it stays buffered.
        """
        if not buffered_bytes:
            self.session.check_open()
        elif buffered_bytes < FLUSH_BYTES and monotonic() - self._flushed_at < BURST_S:
            self.ticking = True
            self.wake_keeper()
        elif not self.push():
            self._wait_writable()

    def _wait_writable(self) -> None:
        """Wait until the kernel took what it refused. Reads too where nobody else does, so that the bus is not stuck on us."""
        deadline = None if self.timeout is None else monotonic() + self.timeout
        try:
            while self._sock is not None and self.outbox.blocked:
                timeout = None if deadline is None else deadline - monotonic()
                if timeout is not None and timeout <= 0:
                    raise Timeout(f"the bus took nothing for {self.timeout:g} s; {self.outbox.unsent_bytes} bytes wait and will be sent when it does")
                if self._may_lead():
                    self._lead(Waiter(self), timeout)
                    continue
                poller = select.poll()
                poller.register(self._sock, select.POLLOUT)
                self._pollers += 1
                self.lock.release()
                try:
                    events = poller.poll(None if timeout is None else int(timeout * 1000) + 1)
                finally:
                    self.lock.acquire()
                    self._polled()
                if events:
                    self.push()
        finally:
            self._hand_over()

    # --- the connection ---

    def drop(self, why: str) -> None:
        """End this connection; the session decides what that means. Under the lock."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        connected_s = monotonic() - self._opened_at if self.session.state is State.CONNECTED else None
        self._attempt = self._backoff.next_attempt(self._attempt, connected_s)
        self._poller.unregister(sock)
        try:
            sock.shutdown(socket.SHUT_RDWR)  # ends the poll() of whoever is in it; the number must not be free before that
        except OSError:
            pass  # the other end was faster
        self._retired.append(sock)
        self._close_retired()
        self.last_failure = why
        first = self.session.state is State.CONNECTING
        self.session.lost(why, again=self.session.error is None and (first or self.reconnect))
        self.wake_keeper()

    def _polled(self) -> None:
        self._pollers -= 1
        if self._retired or self._finished:
            self._close_retired()

    def _close_retired(self) -> None:
        if self._pollers:
            return
        while self._retired:
            self._retired.pop().close()
        if self._finished and self._keeper_fd >= 0:
            os.close(self._keeper_fd)
            os.close(self.leader_fd)
            self._keeper_fd = self.leader_fd = -1

    def end(self) -> None:
        """The bus is closed: let go of the socket. Under the lock; the keeper closes the rest and is gone soon."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._retired.append(sock)
            try:
                if self._pollers:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other end was faster
            self._close_retired()
        self.session.close()
        for follower in list(self._followers):
            follower.wake()

    def abandon(self) -> None:
        """After fork, in the child: close the copies without a word, and be closed. The parent's threads do not exist here, nor may its lock ever be free."""
        self.lock = threading.RLock()
        self._pollers = 0
        if self._sock is not None:
            self._retired.append(self._sock)
            self._sock = None
        self._finished = True
        self._close_retired()
        self.session.on_state = _nothing
        for waiter in (self._leader, *self._followers):
            if waiter is not None:
                waiter.state = _IDLE
        self.session.close(ConnectionLost("this is a child made by fork; the connection is its parent's: connect() anew"))

    # --- the keeper ---

    def _keep(self) -> None:
        self.lock.acquire()
        while self.session.state is not State.CLOSED:
            if self.session.remarks:
                self.lock.release()
                self.log()
                self.lock.acquire()
            elif self._sock is None:
                self._redial()
            else:
                self._keep_once(monotonic())
        self.end()
        self._finished = True
        self._close_retired()
        self.lock.release()
        self.log()

    def _keep_once(self, now: float) -> None:
        timeout = self.session.declarations.tick(now)
        if timeout is not None:
            timeout = max(timeout - now, 0.0)
        if self.outbox.out:
            self.push()
        if self.session.state is not State.CONNECTED:
            left = self._opened_at + HANDSHAKE_S - now
            if left <= 0:
                self.drop(f"no WELCOME within {HANDSHAKE_S:g} s")
            timeout = min(left, timeout or left)
        sock = self._sock
        if sock is None:
            return
        if self.ticking:
            ticks, flushes = self._quiet
            ticks = ticks + 1 if flushes == self._flushes else 0
            self._quiet = (ticks, self._flushes)
            self.ticking = ticks < _QUIET_TICKS
            if self.ticking:
                timeout = BURST_S
        leads = False
        if self._turned[0] != self._turns:
            self._turned = (self._turns, now)
        settled = now - self._turned[1] >= _IDLE_S
        if self._leader is None and settled:
            leads = True
            self._leader = self._keeper
        elif not settled:
            timeout = min(timeout or _IDLE_S, _IDLE_S)
        poller = select.poll()
        poller.register(self._keeper_fd, select.POLLIN)
        wanted = (select.POLLIN if leads else 0) | (select.POLLOUT if self.outbox.blocked else 0)
        if wanted:
            poller.register(sock, wanted)
        self._keeper_polls = leads
        self._keeper_deep = timeout is None and not leads
        self._pollers += 1
        self.lock.release()
        try:
            events = poller.poll(None if timeout is None else max(1, round(timeout * 1000)))
        finally:
            self.lock.acquire()
            self._keeper_deep = self._keeper_polls = False
            self._polled()
        still = self._leader is self._keeper
        if still:
            self._leader = None
        for fd, mask in events:
            if fd == self._keeper_fd:
                _drain(fd)
            else:
                self._act(mask if still else mask & select.POLLOUT)

    def _redial(self) -> None:
        """Wait as long as the backoff says, then try once."""
        self._attempt = max(self._attempt, 0)
        due = 0.0 if not self.last_failure else monotonic() + self._backoff.delay_s(self._attempt, os.urandom(1)[0] / 256)
        self.lock.release()
        poller = select.poll()
        poller.register(self._keeper_fd, select.POLLIN)
        made = failure = None
        try:
            while (left := due - monotonic()) > 0 and self.session.state is not State.CLOSED:
                if poller.poll(int(left * 1000) + 1):
                    _drain(self._keeper_fd)
            if self.session.state is not State.CLOSED:
                made, opening = dial(self.target)
        except (OSError, ConnectError) as error:
            failure = error
        finally:
            self.lock.acquire()
        if self.session.state is State.CLOSED:
            if made is not None:
                made.close()
        elif failure is not None:
            self.last_failure = explain(failure, self.target)
            self._attempt = self._backoff.next_attempt(self._attempt, None)
            if isinstance(failure, UntrustedError):
                self.session.close(failure)
        elif made is not None:
            self._sock = made
            self._opened_at = monotonic()
            self._poller = select.poll()
            self._poller.register(made, select.POLLIN)
            self._poller.register(self.leader_fd, select.POLLIN)
            self.session.opened(**opening)
            self.push()
            self._hand_over()

    def log(self) -> None:
        """Write the session's remarks to the log; not under the lock (a handler of the log may do anything)."""
        remarks = self.session.remarks
        while remarks:
            remark = remarks.popleft()
            import logging  # here: a program that never logs does not pay for it

            logging.getLogger("ipcbus_client").log(remark.level, "%s", remark.text)


_SETTLED = (State.CONNECTED, State.CLOSED)


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass  # somebody else was faster


def _nothing() -> None:
    """Nobody is left to tell."""
