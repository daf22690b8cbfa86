"""The asyncio shell: connect() and `Bus`, here its names, its end and what is known of it; messages and requests are in the classes below
it. The same names in the same order as the blocking one; everything that decides is in the session.

Everything belongs to the event loop in which connect() was awaited, and is used from its thread only. Cancelling any await loses no
message.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from ipcbus.protocol.addresses import AddressError
from ipcbus.protocol.failures import BusError
from ipcbus.protocol.payloads import PayloadError

from . import _aio_watch, _names
from ._aio_messages import BusMessages
from ._aio_monitor import Monitor
from ._aio_replies import ReplyStream
from ._aio_responders import Responder
from ._aio_services import Proxy, ProxyMethod, Service
from ._aio_state import BusState, StateChanges, StateHandle
from ._aio_streams import Inbox, Subscription
from ._aio_watch import Watch
from ._current import Request, current_request
from ._errors import (
    BadArguments,
    BadName,
    Closed,
    ConnectError,
    ConnectionLost,
    Denied,
    Expired,
    NoSuchMethod,
    NoSuchName,
    NoSuchPeer,
    OutboxFull,
    Overloaded,
    Refused,
    RequestError,
    ResponderDied,
    ServiceError,
    Timeout,
)
from ._gather import Answer
from ._holds import Hold
from ._loop_wire import LoopToBe, LoopWire
from ._message import Message
from ._notices import CaughtUp, Lagging, Lost, Reconnected
from ._policies import Limits
from ._seen import Seen
from ._senders import Credentials, Sender
from ._state import State
from ._waiting import OUTBOX_BYTES, OUTBOX_MESSAGES, Undelivered, Waiting
from ._watching import Change

__all__ = [
    "AddressError",
    "Answer",
    "BadArguments",
    "BadName",
    "Bus",
    "BusError",
    "BusState",
    "CaughtUp",
    "Change",
    "Closed",
    "ConnectError",
    "ConnectionLost",
    "Credentials",
    "Denied",
    "Expired",
    "Hold",
    "Inbox",
    "Lagging",
    "Limits",
    "Lost",
    "Message",
    "Monitor",
    "NoSuchMethod",
    "NoSuchName",
    "NoSuchPeer",
    "OutboxFull",
    "Overloaded",
    "PayloadError",
    "Proxy",
    "ProxyMethod",
    "Reconnected",
    "Refused",
    "ReplyStream",
    "Request",
    "RequestError",
    "Responder",
    "ResponderDied",
    "Seen",
    "Sender",
    "Service",
    "ServiceError",
    "StateChanges",
    "StateHandle",
    "Subscription",
    "Timeout",
    "Undelivered",
    "Watch",
    "connect",
    "current_request",
]

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
) -> Connecting:
    """Connect to a bus: ``bus = await connect(…)`` or ``async with connect(…) as bus``. Arguments and errors are those of
    ipcbus_client.connect().
    """
    waiting = Waiting(outbox, outbox_bytes, outbox_messages)
    return Connecting(
        lambda: Bus(
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
    )


class Connecting:
    """A connection to be: await it, or enter it with ``async with``, which also closes the bus."""

    def __init__(self, make: Callable[[], Bus]) -> None:
        self._make = make
        self._bus: Bus | None = None

    def __await__(self) -> Generator[Any, None, Bus]:
        return self._connect().__await__()

    async def _connect(self) -> Bus:
        made = self._make()
        _buses.add(made)
        try:
            await made._connect()
        except BaseException:
            await made.close(0)
            raise
        return made

    async def __aenter__(self) -> Bus:
        self._bus = await self._connect()
        return self._bus

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bus is not None:
            await self._bus.close()


class Bus(BusMessages):
    """A program's connection to its bus, for one event loop. Made by connect(); usable in an ``async with`` statement, which closes it.

    In the child of a fork it is as ipcbus_client.Bus is there, and belongs to the event loop in which it is used first. That must be one of
    the child's own; in the coroutine that forked, it raises ConnectionLost.
    """

    # --- names ---

    async def own(self, name: str, *, mode: str = "exclusive", replace: bool = False, allow_replace: bool = False) -> bool:
        """Own *name*: True, or False where it is owned by another and this program waits in line (mode ``queue``). As
        ipcbus_client.Bus.own().
        """
        _names.check_name(name)
        _names.check_mode(mode)
        self._session.check_open()
        answer = await self._declared(self._session.declarations.own(name, mode, replace, allow_replace), "own", name)
        return bool(answer["owner"])

    async def release(self, name: str) -> None:
        """Give up *name*, or the place in line, and the methods served under it. Not owning it is fine."""
        _names.check_name(name, "release")
        self._session.check_open()
        await self._settled(self._session.declarations.withdraw("own", name))

    async def wait_for_name(self, name: str, timeout: float | None = None) -> int:
        """Wait until somebody owns *name*; returns the peer id of the owner (of a shared name, of one). No window is between looking and
        waiting, also over reconnects.

        Raises Timeout after *timeout* seconds (None: never), whatever the bus does, BadName, Closed.
        """
        return await _aio_watch.wait_for_name(self, name, timeout)

    # --- the bus itself ---

    async def names(self) -> list[dict[str, Any]]:
        """All names that are owned: ``name``, ``mode``, ``owners``, ``waiting``, ``methods`` (B-3)."""
        return await self._list("names")

    async def peers(self) -> list[dict[str, Any]]:
        """Everybody who is connected, with pid, uid, counters and more (B-3)."""
        return await self._list("peers")

    async def identity(self, peer: int) -> Credentials:
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
        found = await self.request("bus/identity", {"peer": peer}, timeout=self._patience(), idempotent=True)
        return told.identity(found, peer, senders)

    async def topics(self) -> list[dict[str, Any]]:
        """The topics that the bus counts: ``topic``, ``messages``, ``bytes``, ``lanes``, ``retained`` (B-3)."""
        return await self._list("topics")

    async def losses(self) -> list[dict[str, Any]]:
        """What was lost of late, an item for each episode: ``why``, ``count``, who lost it (``pattern``, ``peer``, ``program`` …), an
        example of what (``topic``, ``sender`` …), ``first_s`` and ``last_s`` seconds ago (B-3). `ipcbus why` tells it in words."""
        return await self._list("losses")

    async def stats(self) -> dict[str, Any]:
        """The bus's counters and gauges (B-4)."""
        return dict(await self.request("bus/stats", timeout=self._patience(), idempotent=True))

    async def ping(self) -> float:
        """Seconds that the bus took to answer. Raises Timeout, ConnectionLost, Closed."""
        started = self._loop.time()
        await self._fence(started + self._patience())
        return self._loop.time() - started

    async def introspect(self, name: str = "bus") -> dict[str, Any]:
        """The methods that the owner of *name* serves; of the bus itself also what they do and take."""
        return dict(await self.request("bus/introspect", {"name": name}, timeout=self._patience(), idempotent=True))

    # --- the end ---

    async def flush(self, timeout: float | None = 5.0) -> None:
        """Return when everything sent before was routed by the bus (H-12). Raises Timeout, ConnectionLost (whether it was routed is
        unknown), Closed.
        """
        _names.check_timeout(timeout)
        await self._fence(None if timeout is None else self._loop.time() + timeout)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until the bus is closed: what the main task of a service ends with. Raises what user code with ``errors="raise"`` raised,
        the first of it first, as it is (a SystemExit ends the program); who goes on after that may wait() again.

        As ipcbus_client.Bus.wait() in all else. A KeyboardInterrupt in user code also comes out of the event loop at once, as everywhere in
        asyncio. Cancelling it changes nothing.
        """
        _names.check_timeout(timeout)
        session = self._session
        deadline = None if timeout is None else self._loop.time() + timeout
        await self._wait_end(lambda: session.failure is not None or session.state is State.CLOSED, deadline)
        failure, session.failure = session.failure, None
        if failure is not None:
            raise failure
        if session.state is not State.CLOSED:
            raise Timeout(f"{self!r} was not closed within {timeout:g} s", who=self._address, what="wait")
        if session.error is not None:
            raise session.error.again()

    async def close(self, timeout: float | None = 5.0) -> Undelivered:
        """Leave the bus in order: no new messages and requests, callbacks and handlers finish, everything is sent, BYE. Never takes longer
        than *timeout*; None is as long as it takes. What is at work then is logged and cancelled. Returns what was not delivered.

        Idempotent, and legal anywhere: also in user code, for whose end it does not wait. Who closes it while another task does waits
        for that, at most for the own timeout, and then ends it. Every wait of other tasks settles: iterations end after what was
        received, calls raise Closed. Cancelling it closes without the rest.

        After the end of the bus's event loop it may be called in any other: it says goodbye and lets go of the socket. While that loop
        runs, RuntimeError in another.
        """
        _names.check_timeout(timeout)
        if isinstance(self._loop, LoopToBe):
            self._wire.end()
            return self._session.undelivered()
        if self._loop.is_closed():  # it ended before its bus: there is nobody to wait for
            self._wire.forget()
            _buses.discard(self)
            return self._session.undelivered()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop: there, or from here with asyncio.run_coroutine_threadsafe()")
        started = self._loop.time()
        deadline = None if timeout is None else started + timeout
        session, me = self._session, asyncio.current_task()
        closer = self._closer
        cut_off: list[asyncio.Task[None]] = []
        try:
            if not self._ended:
                if closer not in (None, me):
                    await self._wait_end(lambda: self._ended, deadline)
                else:
                    self._closer = me
                    if timeout is None or timeout > 0:
                        await self._drain(deadline)
        finally:
            self._closer = closer
            session.bye()
            self._wire.push()
            self._wire.end()
            if not self._ended:
                cut_off = self._cut_off(started)
            _buses.discard(self)
        await self._wire.keeper.ended(cut_off)
        self._wire.keeper.log()
        return session.undelivered()

    def __del__(self) -> None:
        wire = getattr(self, "_wire", None)  # (None where __init__ raised; a test kit closes its own)
        if type(wire) is LoopWire and wire.started and not sys.is_finalizing() and self._session.state is not State.CLOSED:
            import warnings  # here: it is not needed where nothing is forgotten

            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            wire.keeper.orphan()

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

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
        """Where it stands: ``state.value``, ``await state.wait_for("connected")``, ``state.on_change(…)``, ``state.changes()``."""
        return BusState(self)

    @property
    def epoch(self) -> int:
        """Grows with each reconnect, which is whenever messages may have been missed that nobody could count. While it is the same none
        was missed, except those that a subscription's ``lost`` counts.
        """
        return self._session.epoch

    def holds(self) -> list[Hold]:
        """The subscriptions of others that hold this program's publications now: those that are full and whose policy is ``block``."""
        return self._outbox.holds.list()

    def stats_local(self) -> dict[str, Any]:
        """This program's own counters and gauges."""
        return self._session.stats()


def _after_fork() -> None:
    for bus in list(_buses):
        bus._begin_again()


os.register_at_fork(after_in_child=_after_fork)
