"""The asyncio shell's socket: read and written by callbacks of the event loop, kept connected by one task.

Uses only what every event loop has (add_reader, add_writer, call_later), so uvloop works too. Everything happens on the loop's thread:
there is no lock.
"""

from __future__ import annotations

import _thread
import asyncio
import select
import socket
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from ipcbus.protocol.limits import READ_BYTES

from ._calls import Call
from ._dial import Target, jitter
from ._errors import ConnectionLost, ConnectReason
from ._loop_keeper import LoopKeeper
from ._names import FORKED, WAIT_MAX_S, took_nothing
from ._outbox import BURST_S, NEAR_S
from ._session import Session
from ._state import State

Waiters = list["asyncio.Future[None]"]

_CONNECTED = State.CONNECTED
_NOSIGNAL = int(socket.MSG_NOSIGNAL)


class LoopToBe:
    """Stands for the event loop of a bus in the child of a fork, where none may run yet: any use of it takes the one that runs by then."""

    def __init__(self, bind: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._bind = bind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bind(), name)


class LoopWire:
    """The socket of one bus, over all its connections."""

    def __init__(
        self, session: Session, target: Target, *, timeout: float | None, reconnect: bool, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self.session = session
        self.outbox = session.outbox
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self.loop = loop or asyncio.get_running_loop()
        self.now = monotonic  #: the clock of calls' deadlines (asking the loop would be a call of Python)
        self.jitter = jitter  #: random, in [0, 1)
        self.started = False  #: there was a keeper
        self._thread = 0  #: the loop's
        self.last_failure = ""  #: of an attempt to connect
        self.last_reason: ConnectReason = "timeout"
        self.last_bye: int | None = None
        self.state_waiters: Waiters = []
        self._writable_waiters: Waiters = []
        self.sock: socket.socket | None = None
        self._writing = False  #: the loop watches for writability
        self._sent_at = 0.0  #: when a publisher last wrote
        self._flushing = False  #: push() is due at the end of this round of the loop
        self._sweep_at = inf  #: when the first call's deadline is; one timer serves them all
        self._sweeper: asyncio.TimerHandle | None = None
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self.opened_at = 0.0
        self.keeper = LoopKeeper(self)
        self._retry: asyncio.TimerHandle | None = None
        session.on_state = self._on_state

    def start(self) -> None:
        """Begin to connect. Once: with connect(), or in the child of a fork with whatever is used first there."""
        self.started = True
        self._thread = _thread.get_ident()
        self.keeper.start()

    # --- waiting ---

    async def wait(self, ready: Callable[[], object], waiters: Waiters, deadline: float | None) -> bool:
        """Wait until ready() or the *deadline* (of the loop's clock). What changes ready() must wake *waiters*. Writes what is buffered
        first.
        """
        while not ready():
            now = self.loop.time()
            if deadline is not None and now >= deadline:
                return False
            self.push()
            if ready():
                return True  # the connection ended with it, and so did what we wait for, perhaps
            future = self.loop.create_future()
            waiters.append(future)
            timer = None if deadline is None else self.loop.call_at(min(deadline, now + WAIT_MAX_S), _resolve, future)
            try:
                await future
            finally:
                waiters.remove(future)
                if timer is not None:
                    timer.cancel()
        return True

    def settled(self, call: Call, deadline: float | None) -> asyncio.Future[None]:
        """What to await until *call* is done or its *deadline* (of now()) has passed. Writes what is buffered: at once, or with
        what else this round of the loop sends where other calls are in flight.
        """
        future: asyncio.Future[None] = asyncio.Future(loop=self.loop)
        call.notify = partial(_resolve, future)
        if deadline is not None:
            call.deadline = deadline
            if deadline < self._sweep_at:
                self._sweep_soon(deadline)
        if len(self.session.calls) > 1:
            self.push_soon()
        else:
            self.push()
        return future

    def _sweep_soon(self, at: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = at
        self._sweeper = self.loop.call_later(min(max(at - self.now(), 0.0), WAIT_MAX_S), self._sweep)

    def _sweep(self) -> None:
        """Have those look again whose deadline has passed. (A timer per call would cost more than the rest of the call.)"""
        self._sweeper = None
        self._sweep_at = inf
        now = self.now()
        first = inf
        for call in (*self.session.calls.values(), *self.session.declarations.take_calls()):
            if call.deadline is not None and call.notify is not None:
                if call.deadline <= now:
                    call.notify()
                else:
                    first = min(first, call.deadline)
        if first < inf:
            self._sweep_soon(first)

    async def wait_connected(self, deadline: float | None) -> bool:
        """Wait for a connection; raises what ended the bus."""
        session = self.session
        if session.state is not _CONNECTED:
            await self.wait(lambda: session.state in (State.CONNECTED, State.CLOSED), self.state_waiters, deadline)
        session.check_open()
        return session.state is State.CONNECTED

    async def wait_released(self, topic: str, deadline: float | None) -> bool:
        """Wait until nothing holds *topic*, or the *deadline*; whether nothing does. The end of a connection ends its holds."""
        holds = self.outbox.holds
        return await self.wait(lambda: holds.by(topic) is None, self.state_waiters, deadline)

    async def wait_sent(self, deadline: float | None) -> bool:
        """Wait until what was published to held topics is sent, or the *deadline*; whether it is."""
        holds = self.outbox.holds
        return await self.wait(lambda: not holds.kept, self.state_waiters, deadline)

    def _on_state(self) -> None:
        wake(self.state_waiters)
        self._tick()
        self.log_soon()

    def _tick(self) -> None:
        """Let the session do what is due, now and when it says."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.session.state is State.CONNECTED:
            now = self.loop.time()
            due = self.session.tick(now, self._unread)
            if due is not None:
                self._retry = self.loop.call_at(max(due, now + BURST_S), self._tick)
            if self.session.hangup is not None:
                self.drop(self.session.hangup)
            elif self.outbox.out:
                self.loop.call_soon(self.push)

    # --- reading and writing ---

    def _readable(self) -> None:
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
                    self.push()
            else:
                self.drop("the bus closed the connection")
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(f"reading failed: {error.strerror}")
        except BaseException:
            self.drop("interrupted while reading")  # a signal handler raised: what was read is lost, so the stream is
            raise
        if session.remarks:
            self.log_soon()

    def _unread(self) -> bool:
        """Whether bytes wait in the socket."""
        poller = select.poll()
        if self.sock is not None:
            poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(0))

    def push(self) -> bool:
        """Write what is buffered as far as the kernel takes it; whether it took all."""
        outbox = self.outbox
        while True:
            blocked = outbox._sending
            if not blocked and not outbox.out:
                return True
            sock = self.sock
            if sock is None:
                return False
            try:
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
                if not self._writing:
                    self._writing = True
                    self.loop.add_writer(sock.fileno(), self._writable)
                return False
            except OSError as error:
                self.drop(self._last_words(sock) or f"writing failed: {error.strerror}")
                return False
            except BaseException:  # of a signal handler
                outbox.interrupted()
                self.drop("interrupted while writing")
                raise

    def _last_words(self, sock: socket.socket) -> str | None:
        """Writing failed in the handshake: what the bus said before it closed, which a full one does without waiting for HELLO."""
        session = self.session
        if session.state is not _CONNECTED:
            try:
                session.receive(self._view[: sock.recv_into(self._buffer, session.incoming.read_bytes)])
            except OSError:
                pass  # it said nothing
        return session.hangup

    def push_soon(self) -> None:
        """push() at the end of this round of the loop, with what others put into the outbox until then."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.outbox.batching = False
        self.push()
        self._sent_at = self.now()

    def _writable(self) -> None:
        if self.push() and self.sock is not None:
            self._stop_writing(self.sock)

    def _stop_writing(self, sock: socket.socket) -> None:
        if self._writing:
            self._writing = False
            self.loop.remove_writer(sock.fileno())
            wake(self._writable_waiters)

    async def published(self) -> None:
        """A publication was put into the outbox, and it is not just one more of a burst: write, begin a burst, or see why there is no
        connection. A burst lasts for a round of the loop.

        Raises Timeout when the bus does not take what is buffered for the connect timeout; it stays buffered.
        """
        outbox = self.outbox
        if not outbox.peer:
            self.session.check_open()
            if not self.started:
                self.loop.time()  # any use of a LoopToBe starts what is to be started
            self.log_soon()
        elif not outbox.batching and self.now() - self._sent_at < NEAR_S:
            outbox.batching = True
            self.push_soon()
        elif self.push():
            if outbox.batching:
                await asyncio.sleep(0)  # a loop that only publishes must not starve the others
            else:
                self._sent_at = self.now()
        else:
            if not await self.wait_writable(None if self.timeout is None else self.loop.time() + self.timeout):
                raise took_nothing(self.timeout, self.outbox, self.session.address)

    async def wait_writable(self, deadline: float | None) -> bool:
        """Wait until the kernel took what it refused, or the *deadline*; whether it did, or there is no connection."""
        return await self.wait(lambda: self.sock is None or not self.outbox.blocked, self._writable_waiters, deadline)

    # --- the connection ---

    def drop(self, why: str) -> None:
        """End this connection; the session decides what that means."""
        connected_s = self.loop.time() - self.opened_at if self.session.state is State.CONNECTED else None
        if not self.let_go():
            return
        self.keeper.lost(connected_s)
        self.last_failure, self.last_bye = why, self.session.said_bye
        self.last_reason = "timeout" if self.last_bye is None else "refused"
        first = self.session.state is State.CONNECTING
        self.session.lost(why, again=self.session.error is None and (first or self.reconnect))
        wake(self.state_waiters)

    def let_go(self) -> bool:
        """Close the socket; whether there was one."""
        sock, self.sock = self.sock, None
        if sock is None:
            return False
        self._stop_writing(sock)
        self.loop.remove_reader(sock.fileno())
        sock.close()
        return True

    def end(self) -> None:
        """The bus is closed: let go of the socket."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.let_go()
        self.session.close()

    def abandon(self) -> None:
        """In the child of a fork: close the copy of the socket without a word to whoever else has it. The loop is not told: what it
        watches with is shared with the parent's, which goes on.
        """
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.session.on_state = self.session.on_requests = _nothing
        if self._thread != _thread.get_ident():  # the loop, if it still is one, is of a thread that is not here
            self._tell_nobody()
        self.session.disown(ConnectionLost(FORKED))

    def forget(self) -> None:
        """The loop is closed: write what the kernel takes now, let go of the socket and tell nobody."""
        self._tell_nobody()
        self.outbox.holds.leave()
        self.session.bye()
        sock = self.sock
        if sock is not None:
            try:
                self.push()
            except RuntimeError:
                pass  # a closed loop watches for nothing: the kernel is full, or the other end is gone
            self.sock = None
            sock.close()
        self.session.close()

    def _tell_nobody(self) -> None:
        """No task is there any more that waits for what the session tells of."""
        session = self.session
        session.on_state = session.on_requests = _nothing
        for call in session.calls.values():
            call.notify = None
        for lane in (*session.lanes.values(), *([] if session.inbox is None else [session.inbox])):
            lane.notify = None
        for feed in list(session._state_feeds):
            feed.notify = None

    def opened(self, made: socket.socket, opening: dict[str, Any]) -> None:
        """The keeper connected *made*: begin to talk on it."""
        self.sock = made
        self.opened_at = self.loop.time()
        self.loop.add_reader(made.fileno(), self._readable)
        self.session.opened(**opening)
        self.push()

    # --- the log ---

    def log_soon(self) -> None:
        """Write the session's remarks to the log, from the loop."""
        if self.session.remarks and not self.loop.is_closed():
            self.loop.call_soon(self.keeper.log)


def wake(waiters: Waiters) -> None:
    """Have those who wait look again."""
    for future in waiters:
        _resolve(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    """Nobody is left to tell."""
