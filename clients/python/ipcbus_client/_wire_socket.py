"""The socket of the blocking shell's wire: reading, writing, and the end of a connection. Who waits for it, and who reads it, is the matter
of _wire.py.

Everything happens under the lock of the bus, also in a signal handler that interrupted one of these methods.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from select import POLLIN, POLLOUT
from time import monotonic
from typing import TYPE_CHECKING

from ipcbus.protocol.limits import READ_BYTES

from ._dial import jitter
from ._errors import ConnectReason
from ._session import Session
from ._state import State

if TYPE_CHECKING:
    from ._keeper import Keeper
    from ._waiter import Waiter

_CONNECTED = State.CONNECTED
_NOSIGNAL = int(socket.MSG_NOSIGNAL)


class WireSocket:
    """The socket of one bus, over all its connections."""

    keeper: Keeper

    def __init__(self, session: Session, reconnect: bool) -> None:
        self.session = session
        self.outbox = session.outbox
        self.reconnect = reconnect
        self.now = monotonic  #: the clock of everything that waits here
        self.jitter = jitter  #: random, in [0, 1)
        self.lock = threading.RLock()
        self.leader: Waiter | None = None  #: who polls it, to read
        self.leader_fd = -1  #: an eventfd that wakes the leader
        self.opened_at = 0.0
        self.last_failure = ""  #: of an attempt to connect
        self.last_reason: ConnectReason = "timeout"
        self.last_bye: int | None = None
        self.sock: socket.socket | None = None
        self.pollers = 0  #: polls under way with it
        self._poller = select.poll()  #: of the leader
        self._retired: list[socket.socket] = []  #: shut down, to be closed when nobody polls them
        self._writing = False  #: a push() is at work: one in a signal handler that interrupted it leaves the writing to it
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)

    # --- reading and writing ---

    def act(self, mask: int) -> None:
        """Do what the socket's *mask* of poll() says."""
        if mask & POLLOUT:
            self.push()
        if mask & ~POLLOUT:
            self.read()

    def read(self) -> None:
        """Read once what is there and give it to the session; under the lock."""
        sock = self.sock
        if sock is None:
            return
        session = self.session
        try:
            count = sock.recv_into(self._buffer, session.incoming.read_bytes)
            if count:
                session.receive(self._view[:count])
                if session.hangup is not None:
                    self.drop(session.hangup)
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

    def unread(self) -> bool:
        """Whether bytes wait in the socket. Under the lock; does not read, for the leader's poll() has to see them."""
        poller = select.poll()
        if self.sock is not None:
            poller.register(self.sock, POLLIN)
        return bool(poller.poll(0))

    def push(self) -> bool:
        """Write what is buffered as far as the kernel takes it; whether it took all. Under the lock.

        In a signal handler that interrupted another push() nobody knows what the kernel has already: then it does nothing, and the other
        one goes on with what was added.
        """
        outbox = self.outbox
        if self._writing:
            return False
        while True:
            blocked = outbox._sending
            if not blocked and not outbox.out:
                return True
            sock = self.sock
            if sock is None:
                return False
            try:
                self._writing = True
                if blocked:
                    outbox.wrote(sock.send(outbox.chunk(), _NOSIGNAL))
                else:
                    data = outbox.begin()
                    count = sock.send(data, _NOSIGNAL)
                    if count == len(data):
                        outbox._sending = b""
                    else:
                        outbox.wrote(count)
            except BlockingIOError:
                outbox.stalled()
                if self.leader is not None or not self.keeper.polls:
                    self.keeper.wake()  # to go on when the socket is writable
                return False
            except OSError as error:
                self.drop(self._last_words(sock) or f"writing failed: {error.strerror}")
                return False
            except BaseException:  # of a signal handler
                outbox.interrupted()
                self.drop("interrupted while writing")
                raise
            finally:
                self._writing = False

    def _last_words(self, sock: socket.socket) -> str | None:
        """Writing failed in the handshake: what the bus said before it closed, which a full one does without waiting for HELLO."""
        session = self.session
        if session.state is not _CONNECTED:
            try:
                session.receive(self._view[: sock.recv_into(self._buffer, session.incoming.read_bytes)])
            except OSError:
                pass  # it said nothing
        return session.hangup

    # --- the end of a connection ---

    def drop(self, why: str) -> None:
        """End this connection; the session decides what that means. Under the lock."""
        sock, self.sock = self.sock, None
        if sock is None:
            return
        try:
            connected_s = self.now() - self.opened_at if self.session.state is State.CONNECTED else None
            self.keeper.lost(connected_s)
            self._poller.unregister(sock)
            try:
                sock.shutdown(socket.SHUT_RDWR)  # ends the poll() of whoever is in it; the number must not be free before that
            except OSError:
                pass  # the other end was faster
            self._retired.append(sock)
            self.close_retired()
            self.last_failure, self.last_bye = why, self.session.said_bye
            self.last_reason = "timeout" if self.last_bye is None else "refused"
            first = self.session.state is State.CONNECTING
            self.session.lost(why, again=self.session.error is None and (first or self.reconnect))
        finally:
            self.keeper.wake()  # it ends what an exception from a signal handler left undone here

    def polled(self) -> None:
        """A poll() with the socket is over."""
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
            self.leader_fd = -1
            self.keeper.close()
