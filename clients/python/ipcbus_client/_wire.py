"""The blocking shell's waiting: who reads the socket, who sleeps meanwhile, and the thread that keeps it alive.

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
from collections.abc import Callable
from select import POLLIN, POLLOUT
from typing import Any

from ._calls import Call
from ._dial import Target
from ._errors import ConnectionLost
from ._keeper import Keeper, drain
from ._names import FORKED, WAIT_MAX_S, took_nothing
from ._outbox import NEAR_S
from ._session import Session
from ._state import State
from ._waiter import FOLLOWING, IDLE, LEADING, Waiter
from ._wire_socket import WireSocket

_CONNECTED = State.CONNECTED
#: The longest poll(), in its own unit; who waits longer looks again.
_POLL_MAX_MS = WAIT_MAX_S * 1000


class Wire(WireSocket):
    """The socket of one bus, and who waits with it."""

    def __init__(self, session: Session, target: Target, *, timeout: float | None, reconnect: bool) -> None:
        super().__init__(session, reconnect)
        self.target = target
        self.timeout = timeout
        self.started = False  #: there was a keeper
        self.turns = 0  #: times that somebody else than the keeper led
        self.flushes = 0  #: times that a publisher wrote
        self.keeper = Keeper(self)
        self.state_waiters: list[Waiter] = []
        self.begin_wait: Callable[[], object] = _never  #: of the worker; where it says so, end_wait() is called after
        self.end_wait: Callable[[], object] = _never
        self._followers: dict[Waiter, None] = {}
        self._sent_at = 0.0  #: when a publisher last wrote
        self._caller = Waiter()  #: of whoever leads in lead_for()
        session.on_state = self._on_state

    def start(self) -> None:
        """Begin to connect. Under the lock, once: with connect(), or in the child of a fork with whatever is used first there."""
        self.started = True
        self.leader_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.keeper.start()

    # --- waiting ---

    def wait(self, ready: Callable[[], object], waiter: Waiter, deadline: float | None) -> bool:
        """Wait until ready() or the *deadline*; under the lock, which is free meanwhile. What changes ready() must wake *waiter*.

        Writes what is buffered first. Returns the last ready(). An exception from a signal handler leaves everything usable.
        """
        lends = self.begin_wait()
        try:
            while True:
                turns = self.turns
                if ready():
                    return True
                timeout = None
                if deadline is not None:
                    timeout = deadline - self.now()
                    if timeout <= 0:
                        return False
                if self.outbox.out and self.sock is not None:
                    self.push()
                    if self.sock is None:
                        continue  # the connection ended with it, and so did what we wait for, perhaps
                leader = self.leader
                # (a signal handler that waits while the thread that it interrupted leads goes on in its place)
                if self.sock is not None and (
                    leader is None or leader is self.keeper.waiter or leader.thread == _thread.get_ident()
                ):
                    self._lead(waiter, None if timeout is None else timeout * 1000 + 1, turns)
                else:
                    self._follow(waiter, timeout)
        finally:
            if lends:
                self.end_wait()
            if self.leader is None or self.session.remarks:
                self.hand_over()

    def lead_for(self, call: Call, timeout_s: float) -> bool:
        """The common case of waiting for a reply, flat: nobody else leads, what is buffered goes out in one piece, and what is read next
        is the reply. Whether it was; if not, wait() goes on. Under the lock.
        """
        turns = self.turns
        leader = self.leader
        if (leader is None or leader is self.keeper.waiter) and self.push() and self.sock is not None:
            self._lead(self._caller, timeout_s * 1000 + 1, turns)
            if self.leader is None and (self._followers or self.keeper.deep or self.session.remarks):
                self.hand_over()
        return call.done

    def lead_or_follow(self, waiter: Waiter) -> None:
        """wait() for the worker, which looks for work itself and comes back: once, without a deadline. Under the lock."""
        turns = self.turns
        if self.outbox.out:
            self.push()
        leader = self.leader
        if self.sock is not None and (leader is None or leader is self.keeper.waiter):
            self._lead(waiter, None, turns)
            if self.leader is None and (self._followers or self.keeper.deep or self.session.remarks):
                self.hand_over()
        else:
            self._follow(waiter, None)

    def _may_lead(self) -> bool:
        leader = self.leader
        return leader is None or leader is self.keeper.waiter or leader.thread == _thread.get_ident()

    def _lead(self, waiter: Waiter, timeout_ms: float | None, turns: int) -> None:
        """Poll, and read once. Does nothing where others led since the caller looked at *turns* and, after that, at what it waits for: a
        signal handler's wait, for one, may have read it.
        """
        keeper = self.keeper
        before = self.leader
        poller = self._poller
        if before is keeper.waiter:
            before = None
        blocked = self.outbox._sending and not self._writing
        if before is not None or blocked:
            poller = select.poll()
            assert self.sock is not None
            poller.register(self.sock, POLLIN | (POLLOUT if blocked else 0))
            poller.register(self.leader_fd, POLLIN)
        events: list[tuple[int, int]] = []
        try:
            waiter.fd = self.leader_fd
            waiter.thread = _thread.get_ident()
            waiter.state = LEADING
            self.leader = waiter
            if self.turns == turns:
                self.pollers += 1
                try:
                    self.lock.release()
                    events = poller.poll(timeout_ms if timeout_ms is None or timeout_ms < _POLL_MAX_MS else _POLL_MAX_MS)
                finally:
                    try:
                        self.lock.acquire()
                    except BaseException:
                        self._regain()
                        raise
                    finally:
                        self.pollers -= 1
                    if self._retired or keeper.finished:
                        self.close_retired()
        finally:
            waiter.state = IDLE
            self.leader = before or (keeper.waiter if keeper.polls else None)
            self.turns += 1
            if before is not None:
                os.eventfd_write(self.leader_fd, 1)  # whom we interrupted must look again: we may have read what it waits for
        for fd, mask in events:
            if fd == self.leader_fd:
                drain(fd)
            elif mask == POLLIN:
                self.read()
            else:
                self.act(mask)

    def _follow(self, waiter: Waiter, timeout: float | None) -> None:
        if not self.started and self.session.state is not State.CLOSED:
            self.start()
        waiter.follow()
        self._followers[waiter] = None
        try:
            self.lock.release()
            waiter.sleep(timeout)
        finally:
            try:
                self.lock.acquire()
            except BaseException:
                self._regain()
                raise
            finally:
                waiter.state = IDLE
                self._followers.pop(waiter, None)

    def _regain(self) -> None:
        """A signal handler raised while this thread waited for the lock, or just when it had it: who called us holds it in any case. What
        it raises once more meanwhile is one with the first, which is on its way.
        """
        while not self.lock._is_owned():  # type: ignore[attr-defined]  # of RLock since it is there; Condition relies on it too
            try:
                self.lock.acquire()
            except BaseException:  # noqa: BLE001, S112  # of a signal handler
                continue

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
        if session.state is not _CONNECTED:
            self._wait_told(lambda: session.state in _SETTLED, deadline)
        session.check_open()
        return session.state is _CONNECTED

    def wait_released(self, topic: str, deadline: float | None) -> bool:
        """Wait until nothing holds *topic*, or the *deadline*; whether nothing does. The end of a connection ends its holds."""
        holds = self.outbox.holds
        return self._wait_told(lambda: holds.by(topic) is None, deadline)

    def wait_sent(self, deadline: float | None) -> bool:
        """Wait until what was published to held topics is sent, or the *deadline*; whether it is."""
        holds = self.outbox.holds
        return self._wait_told(lambda: not holds.kept, deadline)

    def _wait_told(self, ready: Callable[[], object], deadline: float | None) -> bool:
        """Wait for what the session tells of by ``on_state``."""
        waiter = Waiter()
        self.state_waiters.append(waiter)
        try:
            return self.wait(ready, waiter, deadline)
        finally:
            self.state_waiters.remove(waiter)

    # --- publishing ---

    def published(self) -> None:
        """A publication was put into the outbox, and it is not just one more of a burst: write, begin a burst, or see why there is no
        connection. Under the lock.

        Raises Timeout when the bus does not take what is buffered for the connect timeout; it stays buffered.
        """
        outbox = self.outbox
        if not outbox.peer:
            self.session.check_open()
            if not self.started:
                self.start()
        elif not outbox.batching and self.now() - self._sent_at < NEAR_S:
            outbox.batching = True
            self.keeper.wake()
        else:
            self.flushes += 1
            self.publish_all()
            self._sent_at = self.now()

    def publish_all(self) -> None:
        """Write all that is buffered, waiting where the kernel is full. Under the lock. Raises Timeout."""
        if self.push() or self.sock is None or self._writing:
            return
        if not self.wait_writable(None if self.timeout is None else self.now() + self.timeout):
            raise took_nothing(self.timeout, self.outbox, self.session.address)

    def wait_writable(self, deadline: float | None) -> bool:
        """Wait until the kernel took what it refused, or the *deadline*; whether it did, or the connection ended meanwhile. Reads too where
        nobody else does, so that the bus is not stuck on us. Under the lock. In a signal handler that interrupted push() it is too late.
        """
        if self._writing or self.sock is None:
            return False
        try:
            while self.sock is not None and self.outbox.blocked:
                timeout = None if deadline is None else deadline - self.now()
                if timeout is not None and timeout <= 0:
                    return False
                if self._may_lead():
                    self._lead(Waiter(), None if timeout is None else timeout * 1000 + 1, self.turns)
                    continue
                poller = select.poll()
                poller.register(self.sock, POLLOUT)
                self.pollers += 1
                try:
                    self.lock.release()
                    events = poller.poll(None if timeout is None else int(min(timeout, WAIT_MAX_S) * 1000) + 1)
                finally:
                    try:
                        self.lock.acquire()
                    except BaseException:
                        self._regain()
                        raise
                    finally:
                        self.polled()
                if events:
                    self.push()
            return True
        finally:
            self.hand_over()

    # --- the connection ---

    def opened(self, made: socket.socket, opening: dict[str, Any]) -> None:
        """The keeper connected *made*: begin to talk on it. Under the lock."""
        self.sock = made
        self.opened_at = self.now()
        self._poller = select.poll()
        self._poller.register(made, POLLIN)
        self._poller.register(self.leader_fd, POLLIN)
        self.session.opened(**opening)
        self.push()
        self.hand_over()

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
        """In the child of a fork: close the copies of the descriptors without a word to whoever else has them, and have whoever waited
        see that. The parent's other threads do not exist here.
        """
        for copy in (self.sock, *self._retired):
            if copy is not None:
                copy.close()
        self.sock = None
        self._retired.clear()
        self.keeper.abandon()
        leader = self.leader
        if leader is not None and leader.thread == _thread.get_ident() and leader.state == LEADING:
            # This thread is in poll(), under the signal handler that forked. Its descriptor stays, to wake it, but not as the parent's;
            # nobody knows how many such there are on the stack, so nobody closes it.
            own = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            os.dup2(own, self.leader_fd, inheritable=False)
            os.close(own)
            self.pollers = _MANY
        else:
            if leader is not None:
                leader.state = IDLE
            self.pollers = 0
            self.close_retired()
        self.session.disown(ConnectionLost(FORKED))
        for waiter in (*self._followers, *self.state_waiters):
            waiter.wake()


_SETTLED = (State.CONNECTED, State.CLOSED)
_MANY = 2**30  #: more polls than there can be


def _never() -> None:
    """Nobody waits in user code."""
