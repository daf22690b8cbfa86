"""The blocking shell's socket: who reads it, who writes it, and the thread that keeps it alive.

There is no I/O thread that every message passes through. Whoever waits (for a reply, for a message) *leads*: polls and reads the socket
itself, hands what came for others to them, and gives the lead on when its own wait is over. Others that wait meanwhile *follow*: they
sleep on a lock of their own until they are woken, because what they wait for came or because the lead is free. So a request and its reply
cost no switch between threads.

One thread, the keeper, does what nobody else is there for: it leads when nobody has for a few milliseconds, flushes bursts, reconnects,
writes the log. It sleeps without a timeout when somebody else leads, and in poll() when it leads itself. A waiter takes the lead from it
without waking it: polling is harmless, only the leader reads, and who leads is decided under the lock.

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
from typing import Any

from ipcbus.protocol.limits import READ_BYTES

from ._dial import Target
from ._errors import ConnectionLost, Timeout
from ._keeper import Keeper, drain
from ._names import took_nothing
from ._outbox import BURST_S, FLUSH_BYTES
from ._session import Session, State
from ._waiter import FOLLOWING, IDLE, Waiter


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
        self.turns = 0  #: times that somebody else than the keeper led
        self.flushes = 0
        self.opened_at = 0.0
        self.leader: Waiter | None = None
        self.keeper = Keeper(self)
        self.last_failure = ""  #: of an attempt to connect
        self.leader_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.state_waiters: list[Waiter] = []
        self.sock: socket.socket | None = None
        self._poller = select.poll()
        self._retired: list[socket.socket] = []  #: shut down, to be closed when nobody polls them
        self.pollers = 0
        self._followers: dict[Waiter, None] = {}
        self._flushed_at = 0.0
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        session.on_state = self._on_state

    def start(self) -> None:
        """Begin to connect."""
        self.keeper.start()

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
                if self.outbox.out and self.sock is not None:
                    self.push()
                if self.sock is not None and self._may_lead():
                    self._lead(waiter, timeout)
                else:
                    self._follow(waiter, timeout)
            return True
        finally:
            self.hand_over()

    def _may_lead(self) -> bool:
        leader = self.leader
        # (a signal handler that waits while the thread that it interrupted leads goes on in its place)
        return leader is None or leader is self.keeper.waiter or leader.thread == _thread.get_ident()

    def _lead(self, waiter: Waiter, timeout: float | None) -> None:
        sock = self.sock
        assert sock is not None
        before = self.leader if self.leader is not self.keeper.waiter else None
        poller = self._poller
        if before is not None or self.outbox.blocked:
            poller = select.poll()
            poller.register(sock, select.POLLIN | (select.POLLOUT if self.outbox.blocked else 0))
            poller.register(self.leader_fd, select.POLLIN)
        try:
            self.leader = waiter
            waiter.lead(self.leader_fd)
            self.pollers += 1
            self.lock.release()
            try:
                events = poller.poll(None if timeout is None else int(timeout * 1000) + 1)
            finally:
                self.lock.acquire()
                self.polled()
        finally:
            waiter.state = IDLE
            self.leader = before or (self.keeper.waiter if self.keeper.polls else None)
            self.turns += 1
        for fd, mask in events:
            if fd == self.leader_fd:
                drain(fd)
            else:
                self.act(mask)

    def _follow(self, waiter: Waiter, timeout: float | None) -> None:
        waiter.follow()
        self._followers[waiter] = None
        self.lock.release()
        try:
            waiter.sleep(timeout)
        finally:
            self.lock.acquire()
            waiter.state = IDLE
            self._followers.pop(waiter, None)

    def hand_over(self) -> None:
        """Somebody stopped waiting: if nobody leads, have a follower do it, or the keeper soon."""
        if self.leader is None:
            for follower in self._followers:
                if follower.state == FOLLOWING:
                    follower.wake()
                    return
        if self.session.remarks or (self.leader is None and self.keeper.deep):
            self.keeper.wake()

    def _on_state(self) -> None:
        for waiter in self.state_waiters:
            waiter.wake()
        self.keeper.wake()

    def wait_connected(self, deadline: float | None) -> bool:
        """Wait for a connection; raises what ended the bus. Under the lock."""
        session = self.session
        if session.state is not State.CONNECTED:
            waiter = Waiter()
            self.state_waiters.append(waiter)
            try:
                self.wait(lambda: session.state in _SETTLED, waiter, deadline)
            finally:
                self.state_waiters.remove(waiter)
        session.check_open()
        return session.state is State.CONNECTED

    # --- reading and writing ---

    def act(self, mask: int) -> None:
        if mask & select.POLLOUT:
            self.push()
        if mask & ~select.POLLOUT:
            self.read()

    def read(self) -> None:
        """Read once what is there and give it to the session; under the lock."""
        sock = self.sock
        if sock is None:
            return
        try:
            count = sock.recv_into(self._buffer)
            if count:
                self.session.receive(self._view[:count])
                if self.session.hangup is not None:
                    self.drop(self.session.hangup)
                elif self.outbox.out:
                    self.push()  # PONG, CREDIT: the bus must not wait for them until we wait
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
        while chunk := outbox.chunk():
            sock = self.sock
            if sock is None:
                return False
            try:
                outbox.wrote(sock.send(chunk, socket.MSG_NOSIGNAL))
            except BlockingIOError:
                if self.leader is not None or not self.keeper.polls:
                    self.keeper.wake()  # to go on when the socket is writable
                return False
            except OSError as error:
                self.drop(f"writing failed: {error.strerror}")
                return False
            except BaseException:
                self.drop("interrupted while writing")
                raise
        self.flushes += 1
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
            self.keeper.wake()
        else:
            self.publish_all()

    def publish_all(self) -> None:
        """Write all that is buffered, waiting where the kernel is full. Under the lock. Raises Timeout."""
        if not self.push() and self.sock is not None:
            self._wait_writable()

    def _wait_writable(self) -> None:
        """Wait until the kernel took what it refused. Reads too where nobody else does, so that the bus is not stuck on us."""
        deadline = None if self.timeout is None else monotonic() + self.timeout
        try:
            while self.sock is not None and self.outbox.blocked:
                timeout = None if deadline is None else deadline - monotonic()
                if timeout is not None and timeout <= 0:
                    raise Timeout(took_nothing(self.timeout, self.outbox.unsent_bytes))
                if self._may_lead():
                    self._lead(Waiter(), timeout)
                    continue
                poller = select.poll()
                poller.register(self.sock, select.POLLOUT)
                self.pollers += 1
                self.lock.release()
                try:
                    events = poller.poll(None if timeout is None else int(timeout * 1000) + 1)
                finally:
                    self.lock.acquire()
                    self.polled()
                if events:
                    self.push()
        finally:
            self.hand_over()

    # --- the connection ---

    def drop(self, why: str) -> None:
        """End this connection; the session decides what that means. Under the lock."""
        sock, self.sock = self.sock, None
        if sock is None:
            return
        connected_s = monotonic() - self.opened_at if self.session.state is State.CONNECTED else None
        self.keeper.lost(connected_s)
        self._poller.unregister(sock)
        try:
            sock.shutdown(socket.SHUT_RDWR)  # ends the poll() of whoever is in it; the number must not be free before that
        except OSError:
            pass  # the other end was faster
        self._retired.append(sock)
        self.close_retired()
        self.last_failure = why
        first = self.session.state is State.CONNECTING
        self.session.lost(why, again=self.session.error is None and (first or self.reconnect))
        self.keeper.wake()

    def polled(self) -> None:
        self.pollers -= 1
        if self._retired or self.keeper.finished:
            self.close_retired()

    def close_retired(self) -> None:
        if self.pollers:
            return
        while self._retired:
            self._retired.pop().close()
        if self.keeper.finished and self.leader_fd >= 0:
            os.close(self.leader_fd)
            os.close(self.keeper.fd)
            self.leader_fd = self.keeper.fd = -1

    def end(self) -> None:
        """The bus is closed: let go of the socket. Under the lock; the keeper closes the rest and is gone soon."""
        sock, self.sock = self.sock, None
        if sock is not None:
            self._retired.append(sock)
            try:
                if self.pollers:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other end was faster
            self.close_retired()
        self.session.close()
        for follower in list(self._followers):
            follower.wake()

    def abandon(self) -> None:
        """After fork, in the child: close the copies without a word, and be closed. The parent's threads do not exist here, nor may its
        lock ever be free.
        """
        self.lock = threading.RLock()
        self.pollers = 0
        if self.sock is not None:
            self._retired.append(self.sock)
            self.sock = None
        self.keeper.finished = True
        self.close_retired()
        self.session.on_state = _nothing
        for waiter in (self.leader, *self._followers):
            if waiter is not None:
                waiter.state = IDLE
        self.session.close(ConnectionLost("this is a child made by fork; the connection is its parent's: connect() anew"))

    def opened(self, made: socket.socket, opening: dict[str, Any]) -> None:
        """The keeper connected *made*: begin to talk on it. Under the lock."""
        self.sock = made
        self.opened_at = monotonic()
        self._poller = select.poll()
        self._poller.register(made, select.POLLIN)
        self._poller.register(self.leader_fd, select.POLLIN)
        self.session.opened(**opening)
        self.push()
        self.hand_over()


_SETTLED = (State.CONNECTED, State.CLOSED)


def _nothing() -> None:
    """Nobody is left to tell."""
