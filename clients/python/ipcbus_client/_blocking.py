"""The blocking shell: connect() and `Bus`, here its names, its end and what is known of it; messages and requests are in the classes below
it. The same names in the same order as aio.py; everything that decides is in the session, all waiting in the wire.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import weakref
from types import TracebackType
from typing import Any

from . import _blocking_watch, _names
from ._blocking_messages import BusMessages
from ._blocking_state import BusState
from ._errors import BusError, Timeout
from ._holds import Hold
from ._keeper import ORPHAN_S
from ._log import log_exception
from ._senders import Credentials, Sender
from ._state import State
from ._waiting import OUTBOX_BYTES, OUTBOX_MESSAGES, Undelivered, Waiting
from ._wire import Wire

_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def connect(
    address: str | None = None,
    *,
    bus: str | None = None,
    name: str | None = None,
    program: str | None = None,
    secret_file: str | None = None,
    identity: str | None = None,
    timeout: float | None = 10.0,
    reconnect: bool = True,
    heartbeat: float | None = None,
    outbox: str = "block",
    outbox_bytes: int = OUTBOX_BYTES,
    outbox_messages: int = OUTBOX_MESSAGES,
    autostart: bool | None = None,
) -> Bus:
    """Connect to a bus: to *address* (``unix:/path``, ``tcp:127.0.0.1:port``), to the one named *bus*, or to ``$IPCBUS_ADDRESS``,
    ``$IPCBUS_BUS``, or ``default``.

    With *name* the name is owned before this returns. *program* is what ``ipcbus peers`` shows. *secret_file* and *identity* are for
    TCP: the file with the bus's secret, and which of its secrets that is (None: what $IPCBUS_SECRET_FILE and $IPCBUS_IDENTITY say, else
    the bus's own, ``default``, where the user's bus keeps it, and another beside that as ``NAME.secret``). Tries for *timeout* seconds
    (None: for ever), as the daemon may be just starting; the bus object uses the same time for what has no timeout of its own. With
    *reconnect* a lost connection comes back by itself and everything declared is declared again; without it the bus is closed then.

    What is published or sent while there is no connection waits for it, at most *outbox_messages* messages and *outbox_bytes* bytes (with
    topics and headers, and 64 for each). What is over that goes by *outbox*: ``block`` waits for the connection, up to *timeout*, then
    raises OutboxFull; ``drop_oldest`` and ``drop_newest`` drop and count (``stats_local()["outbox_dropped"]``) and say so once in the
    log; ``raise`` raises OutboxFull at once. So it is for topics that a slow subscription holds, see publish(): ``block`` waits, ``raise``
    raises at once, and with the other two they wait in the outbox, within the same limits, while what is published to other topics goes on
    and so comes earlier. For a bus that is there and does not read the limits are the same, for the bytes as they are
    written: what is over them waits for up to *timeout*, whatever *outbox* says, then it raises OutboxFull. One message always fits.

    *heartbeat* is how a bus that is stopped, or hangs, is noticed: None asks it for a sign of life when something is awaited of it and
    nothing came for 10 s, or after 120 s, and gives the connection up as dead when 10 s later nothing came; a number of seconds is for
    both, 0 for none. A bus whose limits.lane_stall_s is longer holds a publisher longer: give it a longer one.

    With *autostart* (None: what $IPCBUS_AUTOSTART says, 1 or 0) a bus is started where nothing listens on its Unix socket, also when that
    is found out on a reconnect: by the user's ``ipcbusd.socket`` where that is installed, else as a transient service of the user's
    systemd, else as a process of its own, which logs to the user's state directory. However many ask at once, it is one. The last two end
    when nobody was connected for 60 s, and what is retained goes with them.

    On a Unix socket only this program's user and root may listen, the user with the uid $IPCBUS_BUS_UID, and for the system's bus
    (``unix:/run/ipcbus/system.sock``) the one to whom root gave its directory. A secret file must be this user's or root's, with mode 0600.
    A program with rights that whoever started it may not have (set-user-ID, set-group-ID, file capabilities) believes nothing of its
    environment: not $IPCBUS_…, not $XDG_RUNTIME_DIR.

    Raises ConnectError (whose ``reason`` says why; at once where trying again would not help), AddressError (a ValueError), BadName,
    Refused where another peer owns the name, or Denied where the bus's policy does not allow it.
    """
    waiting = Waiting(outbox, outbox_bytes, outbox_messages)
    made = Bus(
        address,
        bus=bus,
        name=name,
        program=program,
        secret_file=secret_file,
        identity=identity,
        timeout=timeout,
        reconnect=reconnect,
        heartbeat=heartbeat,
        waiting=waiting,
        autostart=autostart,
    )
    _buses.add(made)
    try:
        made._connect()
    except BaseException:
        made.close(0)
        raise
    return made


class Bus(BusMessages):
    """A program's connection to its bus. Thread-safe. Made by connect(); usable in a ``with`` statement, which closes it.

    After os.fork() (or multiprocessing's) the child's copy says nothing and has no descriptor: names, subscriptions, handlers, and what
    waits to be sent, are the parent's, and what stands for them in the child raises ConnectionLost. Any method called in the child
    connects anew, as another peer that has declared nothing. A child that ends by os._exit(), as multiprocessing's do, sends what is
    buffered only with flush() or close().

    An exception from a signal handler, as KeyboardInterrupt, leaves the bus usable or closed. Where it came in the middle of
    reading or writing the socket, that connection ends and comes back: calls in flight raise ConnectionLost, what was being written is
    ``unknown`` and not sent again. In connect() and close() it closes the bus.

    One that is dropped without close() is closed, with a ResourceWarning, unless it has callbacks or handlers: those are a use of it.
    """

    # --- names ---

    def own(self, name: str, *, mode: str = "exclusive", replace: bool = False, allow_replace: bool = False) -> bool:
        """Own *name*: True, or False where it is owned by another and this program waits in line (mode ``queue``). Declared again after a
        reconnect, until the bus's policy denies it: then it is lost, with the methods served under it, and the log says so.

        Raises Refused (name_taken), Denied, BadName, ConnectionLost, Timeout, Closed.
        """
        _names.check_name(name)
        _names.check_mode(mode)
        with self._lock:
            self._session.check_open()
            return bool(self._declared(self._session.declarations.own(name, mode, replace, allow_replace), "own", name)["owner"])

    def release(self, name: str) -> None:
        """Give up *name*, or the place in line, and the methods served under it. Not owning it is fine."""
        _names.check_name(name, "release")
        with self._lock:
            self._session.check_open()
            self._settled(self._session.declarations.withdraw("own", name))

    def wait_for_name(self, name: str, timeout: float | None = None) -> int:
        """Wait until somebody owns *name*; returns the peer id of the owner (of a shared name, of one). No window is between looking and
        waiting, also over reconnects.

        Raises Timeout after *timeout* seconds (None: never), whatever the bus does, BadName, Closed.
        """
        return _blocking_watch.wait_for_name(self, name, timeout)

    # --- the bus itself ---

    def names(self) -> list[dict[str, Any]]:
        """All names that are owned: ``name``, ``mode``, ``owners``, ``waiting``, ``methods`` (B-3)."""
        return self._list("names")

    def peers(self) -> list[dict[str, Any]]:
        """Everybody who is connected, with pid, uid, counters and more (B-3)."""
        return self._list("peers")

    def identity(self, peer: int) -> Credentials:
        """Who the peer with this id is, as the bus says. Where the id is a message's or a request's, ``sender.credentials`` says it without
        asking; where that is known, it is returned.

        An id is of one bus only: after a restart of the bus a plain int means a peer of the new one. Raises NoSuchPeer, also for one that
        has been gone for long and where the bus was restarted meanwhile, Expired, ConnectionLost, Closed; TypeError for what is no int.
        """
        _names.check_peer(peer)
        if isinstance(peer, Sender) and peer.credentials is not None:
            return peer.credentials
        told = self._session.told
        senders = told.senders
        found = self.request("bus/identity", {"peer": peer}, timeout=self._patience(), idempotent=True)
        return told.identity(found, peer, senders)

    def topics(self) -> list[dict[str, Any]]:
        """The topics that the bus counts: ``topic``, ``messages``, ``bytes``, ``lanes``, ``retained`` (B-3)."""
        return self._list("topics")

    def losses(self) -> list[dict[str, Any]]:
        """What was lost of late, an item for each episode: ``why``, ``count``, who lost it (``pattern``, ``peer``, ``program`` …), an
        example of what (``topic``, ``sender`` …), ``first_s`` and ``last_s`` seconds ago (B-3). `ipcbus why` tells it in words."""
        return self._list("losses")

    def stats(self) -> dict[str, Any]:
        """The bus's counters and gauges (B-4)."""
        return dict(self.request("bus/stats", timeout=self._patience(), idempotent=True))

    def ping(self) -> float:
        """Seconds that the bus took to answer. Raises Timeout, ConnectionLost, Closed."""
        with self._lock:
            started = self._now()
            self._fence(started + self._patience())
        return self._now() - started

    def introspect(self, name: str = "bus") -> dict[str, Any]:
        """The methods that the owner of *name* serves; of the bus itself also what they do and take."""
        return dict(self.request("bus/introspect", {"name": name}, timeout=self._patience(), idempotent=True))

    # --- the end ---

    def flush(self, timeout: float | None = 5.0) -> None:
        """Return when everything sent before was routed by the bus (H-12). Raises Timeout, ConnectionLost (whether it was routed is
        unknown), Closed.
        """
        _names.check_timeout(timeout)
        with self._lock:
            self._fence(None if timeout is None else self._now() + timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the bus is closed: what the main thread of a service ends with. Raises what user code with ``errors="raise"`` raised,
        the first of it first, as it is (a SystemExit ends the program); who goes on after that may wait() again.

        Raises Timeout after *timeout* seconds (None: never), and what ended the bus where this program did not close it. An exception
        from a signal handler, as KeyboardInterrupt, leaves the bus as it is, for ``with`` to close it.
        """
        _names.check_timeout(timeout)
        session = self._session
        with self._lock:
            deadline = None if timeout is None else self._now() + timeout
            self._worker.wait_end(lambda: session.failure is not None or session.state is State.CLOSED, deadline)
            failure, session.failure = session.failure, None
            if failure is not None:
                raise failure
            if session.state is not State.CLOSED:
                raise Timeout(f"{self!r} was not closed within {timeout:g} s", who=self._address, what="wait")
            if session.error is not None:
                raise session.error.again()

    def close(self, timeout: float | None = 5.0) -> Undelivered:
        """Leave the bus in order: no new messages and requests, callbacks and handlers finish, everything is sent, BYE. Never takes longer
        than *timeout*; None is as long as it takes. What it cuts off then is logged. Returns what was not delivered.

        Idempotent, and legal anywhere: also in user code, for whose end it does not wait, and in a signal handler. Who closes it while
        another thread does waits for that, at most for the own timeout, and then ends it. Every wait of other threads settles:
        iterations end after what was received, calls raise Closed.
        """
        _names.check_timeout(timeout)
        if sys.is_finalizing():
            self._close_late()
            return self._session.undelivered()
        started = self._now()
        deadline = None if timeout is None else started + timeout
        session, me = self._session, _thread.get_ident()
        with self._lock:
            closer = self._closer
            try:
                if not self._ended:
                    if closer not in (0, me):
                        self._worker.wait_end(lambda: self._ended, deadline)
                    else:
                        self._closer = me
                        if timeout is None or timeout > 0:
                            self._drain(deadline)
            finally:
                self._closer = closer
                session.bye()
                self._wire.push()
                self._wire.end()
                if not self._ended:
                    self._cut_off(started)
                self._wire.keeper.wake()
                _buses.discard(self)
            undelivered = session.undelivered()
        self._wire.keeper.log()  # a short program would be gone before the keeper had written why something was refused
        return undelivered

    def _close_late(self) -> None:
        """close() when the interpreter ends, in a __del__: no other thread runs any more, one of them perhaps has the lock for ever, and
        what was buffered is gone since _at_exit().
        """
        if self._lock.acquire(timeout=0.1):
            try:
                self._session.bye()
                self._wire.push()
                self._wire.end()
            finally:
                self._lock.release()

    def __del__(self) -> None:
        wire = getattr(self, "_wire", None)  # (None where __init__ raised; a test kit closes its own)
        if type(wire) is Wire and wire.started and not sys.is_finalizing() and self._session.state is not State.CLOSED:
            import warnings  # here: it is not needed where nothing is forgotten

            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            wire.keeper.orphan()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- what is known here ---

    @property
    def address(self) -> str:
        """The bus's address."""
        return self._address

    @property
    def peer_id(self) -> int:
        """This connection's id at the bus (H-7); another one after a reconnect."""
        return self._session.peer

    @property
    def state(self) -> BusState:
        """Where it stands: ``state.value``, ``state.wait_for("connected")``, ``state.on_change(…)``, ``state.changes()``."""
        return BusState(self)

    @property
    def epoch(self) -> int:
        """Grows with each reconnect, which is whenever messages may have been missed that nobody could count. While it is the same none
        was missed, except those that a subscription's ``lost`` counts.
        """
        return self._session.epoch

    def holds(self) -> list[Hold]:
        """The subscriptions of others that hold this program's publications now: those that are full and whose policy is ``block``."""
        with self._lock:
            return self._outbox.holds.list()

    def stats_local(self) -> dict[str, Any]:
        """This program's own counters and gauges."""
        with self._lock:
            return self._session.stats()


@atexit.register
def _at_exit() -> None:
    """What is still buffered at the end of a program that did not close its bus goes to the kernel, within a second."""
    for bus in list(_buses):
        try:
            with bus._lock:
                bus._wire.timeout = ORPHAN_S
                bus._outbox.holds.leave()
                if bus._outbox.waiting and not bus._closer:
                    bus._wire.wait_connected(bus._now() + ORPHAN_S)
                bus._wire.publish_all()
        except BusError as error:
            log_exception(f"{bus!r} at the end of the program", error)


def _after_fork() -> None:
    for bus in list(_buses):
        bus._begin_again()


os.register_at_fork(after_in_child=_after_fork)
