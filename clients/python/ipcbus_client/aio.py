"""The asyncio shell: `Bus` and what it hands out. The same names in the same order as the blocking one; everything that decides is in the
session.

Everything belongs to the event loop in which connect() was awaited, and is used from its thread only. Cancelling any await loses no
message.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal

from . import _aio_watch, _names
from ._aio_base import BusBase
from ._aio_replies import ReplyStream, open_stream
from ._aio_services import Proxy, ProxyMethod, Service, respond, serve
from ._aio_state import BusState, StateChanges, StateHandle
from ._aio_streams import Inbox, Responder, Subscription
from ._aio_watch import Watch
from ._calls import Call
from ._current import Request, current_request
from ._errors import ConnectionLost, Expired, OutboxFull, RequestError, Timeout
from ._gather import Answer, listed, matching
from ._lanes import INBOX, Lane
from ._loop_wire import LoopToBe, LoopWire
from ._message import Message, converter, kept_message, typed_message
from ._names import GRACE_S
from ._notices import Lost, Reconnected
from ._retries import Retries
from ._session import INBOX_MAX_BYTES
from ._state import State
from ._waiting import OUTBOX_BYTES, OUTBOX_MESSAGES, Undelivered, Waiting
from ._watching import Change

__all__ = [
    "Bus",
    "BusState",
    "Change",
    "Inbox",
    "Lost",
    "Message",
    "Proxy",
    "ProxyMethod",
    "Reconnected",
    "ReplyStream",
    "Request",
    "Responder",
    "Service",
    "StateChanges",
    "StateHandle",
    "Subscription",
    "Undelivered",
    "Watch",
    "connect",
    "current_request",
]

_CONNECTED = State.CONNECTED
_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def connect(
    address: str | None = None,
    *,
    bus: str | None = None,
    name: str | None = None,
    program: str | None = None,
    secret_file: str | None = None,
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


class Bus(BusBase):
    """A program's connection to its bus, for one event loop. Made by connect(); usable in an ``async with`` statement, which closes it.

    In the child of a fork it is as ipcbus_client.Bus is there, and belongs to the event loop in which it is used first. That must be one of
    the child's own; in the coroutine that forked, it raises ConnectionLost.
    """

    # --- messages ---

    async def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        retain: bool = False,
        headers: Mapping[str, Any] | None = None,
        confirm: bool = False,
        ttl: float | None = None,
        bound: bool = False,
    ) -> int | None:
        """Publish *data* (bytes-like objects as they are, all else as msgpack) to *topic*; with *retain* the bus keeps it for who comes
        later.

        Waits only with *confirm*, where the bus does not read, or to give other tasks a turn in a long burst. As
        ipcbus_client.Bus.publish() in all else; cancelled with *confirm* it is unknown whether it was routed.
        """
        if retain or confirm or bound or ttl is not None:
            return await self._publish_with(topic, data, retain, headers, confirm, ttl, bound)
        try:
            due = self._outbox.publish(topic, data, False, headers)
        except OutboxFull as full:
            await self._ready(full)
            due = self._outbox.publish(topic, data, False, headers)
        if due:
            await self._wire.published()
        return None

    async def get(self, topic: str, *, type: Any = None) -> Message | None:
        """The retained message of *topic*, as the bus has it now, or None. As ipcbus_client.Bus.get()."""
        _names.check_topic(topic, "get")
        make = None if type is None else typed_message(converter(type))
        return kept_message(await self.request("bus/get", {"topic": topic}, timeout=self._patience(), idempotent=True), make)

    async def will(self, topic: str, data: Any = None, *, retain: bool = False, headers: Mapping[str, Any] | None = None) -> None:
        """Have the bus publish *data* to *topic* when this program's connection goes without close(). As ipcbus_client.Bus.will()."""
        self._session.check_open()
        await self._declared(self._session.posts.will(topic, data, retain, headers), "will", topic)

    async def drop_will(self, topic: str) -> None:
        """Take the will of *topic* back. Where there is none it is fine."""
        _names.check_topic(topic, "drop_will")
        self._session.check_open()
        await self._settled(self._session.declarations.withdraw("will", topic))

    async def subscribe(
        self,
        pattern: str,
        callback: Callable[[Message], Any] | None = None,
        *,
        group: str | None = None,
        retained: bool = True,
        window_bytes: int = 1024 * 1024,
        prefetch: int = 32,
        notices: bool = False,
        type: Any = None,
        concurrency: int = 1,
        key: Callable[[Message], Hashable] | None = None,
        errors: Literal["log", "raise"] = "log",
    ) -> Subscription:
        """Receive what is published to topics that match *pattern*. A *callback* may be a coroutine function; one message is handled at a
        time, or *concurrency*, each in a task of its own.

        As ipcbus_client.Bus.subscribe() in all else.
        """
        _names.check_subscription(pattern, group, window_bytes, prefetch)
        _names.check_callback(callback)
        _names.check_handling(concurrency, key, errors)
        self._session.check_open()
        lane = Lane(
            self._session.new_id(),
            pattern,
            group=group,
            retained=retained,
            window_bytes=window_bytes,
            prefetch=prefetch,
            notices=notices,
        )
        if type is not None:
            lane.has_type(type)
        subscription = Subscription(self, lane, callback, concurrency=concurrency, key=key, errors=errors)
        await self._declared(self._session.declarations.subscribe(lane), "subscribe", lane.number)
        return subscription

    async def watch(self, pattern: str, *, type: Any = None) -> Watch:
        """What is retained under topics that match *pattern*, and how it changes: iterate over the Watch for Change objects, or read its
        ``state``, which is complete when this returns. *type* as in subscribe().

        No change falls between the two. After a reconnect come the changes that happened meanwhile, removals too; so it is where messages
        were lost. A bus that was started anew has nothing retained until its publishers come back. Raises BadName, RequestError,
        ConnectionLost, Timeout, Closed; TypeError for a *type* that no payload can become.
        """
        return await _aio_watch.watch(self, pattern, type)

    async def request(
        self,
        to: str,
        data: Any = None,
        *,
        timeout: float | None = 5.0,
        headers: Mapping[str, Any] | None = None,
        idempotent: bool = False,
        type: Any = None,
    ) -> Any:
        """Ask ``name/method`` (or ``:42/method``) and return the decoded answer. Cancelling it tells the service to stop.

        As ipcbus_client.Bus.request() in all else.
        """
        if type is not None:
            return converter(type)(await self.request(to, data, timeout=timeout, headers=headers, idempotent=idempotent))
        if idempotent:
            return await self._request_again(to, data, headers, timeout)
        if timeout.__class__ is not float or not timeout >= 0:
            timeout = _names.patience(timeout)
        session = self._session
        if to not in session.request_heads:
            _names.check_request(to)
        started = self._now()
        if session.state is _CONNECTED:
            call = session.request(to, data, headers, timeout)
        else:
            call = await self._request_later(to, data, headers, started, timeout)
        try:
            await self._wire.settled(call, started + timeout + GRACE_S)
        finally:
            if not call.done:
                session.cancel(call)
                self._wire.push()
        if not call.done:
            raise Expired(24, f"no answer within {timeout:g} s, not even from the bus", to)
        return call.result()

    async def _request_later(self, to: str, data: Any, headers: Mapping[str, Any] | None, started: float, timeout: float) -> Call:
        """Where there is no connection: wait for it, then send the request with the time that is left."""
        if not await self._wire.wait_connected(self._loop.time() + timeout):
            raise self._not_connected(to, timeout)
        return self._session.request(to, data, headers, max(started + timeout - self._now(), 0.001))

    async def _request_again(self, to: str, data: Any, headers: Mapping[str, Any] | None, timeout: float | None) -> Any:
        """A request that may be made twice, until it is answered, or the time is over."""
        deadline = self._now() + _names.patience(timeout)
        retries = Retries()
        while True:
            try:
                return await self.request(to, data, timeout=max(deadline - self._now(), 0.0), headers=headers)
            except (ConnectionLost, RequestError) as error:
                delay = retries.delay_s(error, self._wire.jitter())
                if delay is None or self._now() + delay >= deadline or self._session.state is State.CLOSED:
                    raise
            await self._pause(delay)

    async def request_all(
        self, to: str | Iterable[str], data: Any = None, *, timeout: float | None = 5.0, headers: Mapping[str, Any] | None = None
    ) -> list[Answer]:
        """Ask many at once and return what came back by the deadline. Cancelling it tells all who have not answered to stop. As
        ipcbus_client.Bus.request_all() in all else.
        """
        timeout = _names.patience(timeout)
        deadline = self._now() + timeout
        if isinstance(to, str):
            pattern, method = _names.check_request_all(to)
            names = await self._list("names", deadline)
            return await self._gather(matching(pattern, method, names), data, headers, deadline, timeout, by_name=False)
        asked = listed(to, self._session)
        for each in asked:
            _names.check_request(each.to)
        return await self._gather(asked, data, headers, deadline, timeout, by_name=True)

    async def stream(
        self,
        to: str,
        data: Any = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, Any] | None = None,
        window_bytes: int = 256 * 1024,
        type: Any = None,
    ) -> ReplyStream:
        """Ask ``name/method``, whose handler is a generator, and iterate over its values as they are made: ``async for value in await
        bus.stream(…)``. As ipcbus_client.Bus.stream() in all else.
        """
        return await open_stream(self, to, data, timeout, headers, window_bytes, None if type is None else converter(type))

    async def respond(
        self,
        to: str,
        handler: Callable[[Request], Any],
        *,
        mode: str = "exclusive",
        about: Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        key: Callable[[Request], Hashable] | None = None,
        errors: Literal["log", "raise"] = "log",
    ) -> Responder:
        """Answer requests to ``name/method`` (``name/*``: any method) with what *handler* returns; it may be a coroutine function, or one
        that makes generators of either kind.

        Each request is a task of its own, cancelled when nobody waits for the answer any more. Without a *concurrency* as many are at
        work as the bus lets come: in both shells the next one may begin while a handler waits. As ipcbus_client.Bus.respond() in all
        else.
        """
        name, method = _names.check_service(to)
        _names.check_callback(handler, "handler")
        return await respond(self, name, {method: about}, handler, mode=mode, concurrency=concurrency, key=key, errors=errors)

    async def serve(
        self,
        name: str,
        service: Any,
        *,
        mode: str = "exclusive",
        concurrency: int | None = None,
        key: Callable[[Request], Hashable] | None = None,
        errors: Literal["log", "raise"] = "log",
        tracebacks: bool = False,
    ) -> Service:
        """Serve the methods of *service* under *name*; they may be coroutine functions and asynchronous generators.

        As ipcbus_client.Bus.serve() in all else.
        """
        options: dict[str, Any] = {"mode": mode, "concurrency": concurrency, "key": key, "errors": errors}
        return await serve(self, name, service, tracebacks, options)

    def proxy(self, name: str, interface: Any = None, *, timeout: float | None = 5.0, idempotent: bool = False) -> Proxy:
        """The service *name* as an object: ``await bus.proxy("thermostat").set_target(21.5)``.

        As ipcbus_client.Bus.proxy() in all else.
        """
        return Proxy(self, name, interface, timeout=timeout, idempotent=idempotent)

    async def send(self, to: str, data: Any = None, *, headers: Mapping[str, Any] | None = None) -> None:
        """Send *data* to the owner of a name, or to a peer (``:42``); it comes into their inbox. At most once; waits for a connection as
        publish() does.
        """
        try:
            due = self._outbox.send(to, data, headers)
        except OutboxFull as full:
            await self._ready(full)
            due = self._outbox.send(to, data, headers)
        if due:
            await self._wire.published()

    async def inbox(self, callback: Callable[[Message], Any] | None = None, *, notices: bool = False) -> Inbox:
        """The direct messages to this program, as a subscription is used. A new one takes the place of an earlier one. As
        ipcbus_client.Bus.inbox() in all else.
        """
        _names.check_callback(callback)
        self._session.check_open()
        if self._session.inbox is not None:
            self._session.inbox.close()
        self._session.inbox = Lane(INBOX, "inbox", window_bytes=INBOX_MAX_BYTES, notices=notices)
        return Inbox(self, self._session.inbox, callback)

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

    async def topics(self) -> list[dict[str, Any]]:
        """The topics that the bus counts: ``topic``, ``messages``, ``bytes``, ``lanes``, ``retained`` (B-3)."""
        return await self._list("topics")

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

    async def _list(self, method: str, deadline: float | None = None) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        after = None
        while True:
            left = self._patience() if deadline is None else max(deadline - self._now(), 0.0)
            page = await self.request(f"bus/{method}", {} if after is None else {"after": after}, timeout=left, idempotent=True)
            items += page["items"]
            after = page["next"]
            if after is None:
                return items

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
        """
        _names.check_timeout(timeout)
        if isinstance(self._loop, LoopToBe):
            self._wire.end()
            return self._session.undelivered()
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
        await self._wire.ended(cut_off)
        self._wire.log()
        return session.undelivered()

    def __del__(self) -> None:
        wire = getattr(self, "_wire", None)  # (None where __init__ raised; a test kit closes its own)
        if type(wire) is LoopWire and wire.started and not sys.is_finalizing() and self._session.state is not State.CLOSED:
            import warnings  # here: it is not needed where nothing is forgotten

            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
            wire.orphan()

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

    def stats_local(self) -> dict[str, Any]:
        """This program's own counters and gauges."""
        return self._session.stats()


def _after_fork() -> None:
    for bus in list(_buses):
        bus._begin_again()


os.register_at_fork(after_in_child=_after_fork)
