"""The blocking shell: `Bus` and what it hands out. The same names in the same order as aio.py; everything that decides is in the session,
all waiting in the wire.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal

from . import _blocking_watch, _names
from ._blocking_base import BusBase
from ._blocking_replies import ReplyStream, open_stream
from ._blocking_services import Proxy, Service, respond, serve
from ._blocking_state import BusState
from ._blocking_streams import Inbox, Responder, Subscription
from ._blocking_watch import Watch
from ._calls import Call
from ._current import Request
from ._errors import BusError, ConnectionLost, Expired, OutboxFull, RequestError, Timeout
from ._gather import Answer, listed, matching
from ._keeper import ORPHAN_S
from ._lanes import INBOX, Lane
from ._log import log_exception
from ._message import Message, converter, kept_message, typed_message
from ._names import GRACE_S
from ._retries import Retries
from ._session import INBOX_MAX_BYTES
from ._state import State
from ._waiting import OUTBOX_BYTES, OUTBOX_MESSAGES, Undelivered, Waiting
from ._wire import Wire

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
) -> Bus:
    """Connect to a bus: to *address* (``unix:/path``, ``tcp:127.0.0.1:port``), to the one named *bus*, or to ``$IPCBUS_ADDRESS``,
    ``$IPCBUS_BUS``, or ``default``.

    With *name* the name is owned before this returns. *program* is what ``ipcbus peers`` shows. *secret_file* is for TCP. Tries for
    *timeout* seconds (None: for ever), as the daemon may be just starting; the bus object uses the same time for what has no timeout of
    its own. With *reconnect* a lost connection comes back by itself and everything declared is declared again; without it the bus is
    closed then.

    What is published or sent while there is no connection waits for it, at most *outbox_messages* messages and *outbox_bytes* bytes (with
    topics and headers, and 64 for each). What is over that goes by *outbox*: ``block`` waits for the connection, up to *timeout*, then
    raises OutboxFull; ``drop_oldest`` and ``drop_newest`` drop and count (``stats_local()["outbox_dropped"]``) and say so once in the
    log; ``raise`` raises OutboxFull at once.

    *heartbeat* is how a bus that is stopped, or hangs, is noticed: None asks it for a sign of life when something is awaited of it and
    nothing came for 10 s, or after 120 s, and gives the connection up as dead when 10 s later nothing came; a number of seconds is for
    both, 0 for none. A bus whose limits.lane_stall_s is longer holds a publisher longer: give it a longer one.

    With *autostart* (None: what $IPCBUS_AUTOSTART says, 1 or 0) a bus is started where nothing listens on its Unix socket, also when that
    is found out on a reconnect: by the user's ``ipcbusd.socket`` where that is installed, else as a transient service of the user's
    systemd, else as a process of its own, which logs to the user's state directory. However many ask at once, it is one. The last two end
    when nobody was connected for 60 s, and what is retained goes with them.

    Raises ConnectError (whose ``reason`` says why; at once where trying again would not help), AddressError (a ValueError), BadName, or
    Refused where another peer owns the name.
    """
    waiting = Waiting(outbox, outbox_bytes, outbox_messages)
    made = Bus(
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
    _buses.add(made)
    try:
        made._connect()
    except BaseException:
        made.close(0)
        raise
    return made


class Bus(BusBase):
    """A program's connection to its bus. Thread-safe. Made by connect(); usable in a ``with`` statement, which closes it.

    After os.fork() (or multiprocessing's) the child's copy says nothing and has no descriptor: names, subscriptions, handlers, and what
    waits to be sent, are the parent's, and what stands for them in the child raises ConnectionLost. Any method called in the child
    connects anew, as another peer that has declared nothing. A child that ends by os._exit(), as multiprocessing's do, sends what is
    buffered only with flush() or close().

    One that is dropped without close() is closed, with a ResourceWarning, unless it has callbacks or handlers: those are a use of it.
    """

    # --- messages ---

    def publish(
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
        """Publish *data* (bytes-like objects as they are, all else as msgpack) to *topic*; with *retain* the bus keeps it for who
        subscribes later. Besides what msgpack has it may be or contain dataclasses, aware datetimes, dates, times, timedeltas, Decimals,
        UUIDs, paths, Enums, sets and buffers; who wants these back subscribes with a type.

        Sent at once, or within a millisecond where it follows within 0.15 ms on others. Across a reconnect: what the kernel had may be
        lost, and is counted as ``unknown`` in stats_local(); everything else waits for the connection in the outbox, see connect(). Raises
        BadName, PayloadError, Closed; OutboxFull, for a message that was not taken; Timeout when the bus does not read for the connect
        timeout.

        What is retained is remembered (up to 8 MiB and 10 000 topics; what is over that is counted) and restored when the bus was
        restarted, unless another peer was faster. With *bound* it is there as long as this connection: the bus removes it when the
        connection goes in any way, and after a reconnect it is published again. An empty bytes object as *data* removes what is kept.
        *ttl* is how many seconds it is good for: what waits longer, in the outbox or at the bus for a slow subscriber, is dropped and
        counted there (Lost with why ``expired`` in the stream), and what is kept is removed. With *confirm* this waits until the bus has
        routed it and returns how many subscriptions took it (a group is one; 0 is no error); without a connection it waits for one. Then
        it also raises ConnectionLost (whether it was routed is unknown: it is not sent again), Timeout, Expired, and Refused where it was
        delivered but the bus cannot keep it.
        """
        if retain or confirm or bound or ttl is not None:
            return self._publish_with(topic, data, retain, headers, confirm, ttl, bound)
        with self._lock:
            try:
                due = self._outbox.publish(topic, data, False, headers)
            except OutboxFull as full:
                self._ready(full)
                due = self._outbox.publish(topic, data, False, headers)
            if due:
                self._wire.published()
        return None

    def get(self, topic: str, *, type: Any = None) -> Message | None:
        """The retained message of *topic*, as the bus has it now, or None. *type* as in subscribe().

        Raises BadName, RequestError, ConnectionLost, Expired, Closed; without a connection it waits for one, for the connect timeout.
        """
        _names.check_topic(topic, "get")
        make = None if type is None else typed_message(converter(type))
        return kept_message(self.request("bus/get", {"topic": topic}, timeout=self._patience(), idempotent=True), make)

    def will(self, topic: str, data: Any = None, *, retain: bool = False, headers: Mapping[str, Any] | None = None) -> None:
        """Have the bus publish *data* to *topic* when this program's connection goes without close(): when it crashes, is killed, or is
        cut off. With *retain* the bus keeps it.

        One for each topic, a later one takes the place of an earlier one; at most 100, of 1 MiB together. Declared again after a
        reconnect; what this program had retained on the topic is then published again over the will. Raises BadName, PayloadError,
        RequestError, ConnectionLost, Timeout, Closed.
        """
        with self._lock:
            self._session.check_open()
            self._declared(self._session.posts.will(topic, data, retain, headers), "will", topic)

    def drop_will(self, topic: str) -> None:
        """Take the will of *topic* back. Where there is none it is fine."""
        _names.check_topic(topic, "drop_will")
        with self._lock:
            self._session.check_open()
            self._settled(self._session.declarations.withdraw("will", topic))

    def subscribe(
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
        """Receive what is published to topics that match *pattern*, from now on, and first what is kept of them (unless *retained* is
        false).

        Iterate over the subscription, or give a *callback*, which runs on the bus's worker thread, one message at a time. With a
        *concurrency* (at most 1000) so many run at once, on threads of their own; then messages with the same *key* (a function of the
        message) keep their order, and without a *key* none is promised. What it raises is logged and counted, with *errors* ``raise``
        also raised by wait(). A callback may call every method; while it waits for the bus, those of others go on.

        Members of a *group* share the messages; each gets at most *prefetch* that it has not handled: whose callback has not ended.
        *window_bytes* is how much the bus sends ahead. Declared again after a reconnect. Where messages are missing, or may be, ``lost``
        and ``gaps`` count; with *notices* the stream also has Lost and Reconnected objects, at the place of the gap (a *key* is not asked
        about those). With a *type* (a dataclass, datetime, list[float], … any hint for what msgpack carries) ``data`` of the messages is
        that, or raises PayloadError where a payload is something else. Raises BadName, RequestError, ConnectionLost, Timeout, Closed;
        TypeError for a *type* that no payload can become.
        """
        _names.check_subscription(pattern, group, window_bytes, prefetch)
        _names.check_callback(callback)
        _names.check_handling(concurrency, key, errors)
        with self._lock:
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
            self._declared(self._session.declarations.subscribe(lane), "subscribe", lane.number)
        return subscription

    def watch(self, pattern: str, *, type: Any = None) -> Watch:
        """What is retained under topics that match *pattern*, and how it changes: iterate over the Watch for Change objects, or read its
        ``state``, which is complete when this returns. *type* as in subscribe().

        No change falls between the two. After a reconnect come the changes that happened meanwhile, removals too; so it is where messages
        were lost. A bus that was started anew has nothing retained until its publishers come back. Raises BadName, RequestError,
        ConnectionLost, Timeout, Closed; TypeError for a *type* that no payload can become.
        """
        return _blocking_watch.watch(self, pattern, type)

    def request(
        self,
        to: str,
        data: Any = None,
        *,
        timeout: float | None = 5.0,
        headers: Mapping[str, Any] | None = None,
        idempotent: bool = False,
        type: Any = None,
    ) -> Any:
        """Ask ``name/method`` (or ``:42/method``) and return the decoded answer.

        Raises a RequestError that says what happened: NoSuchName, NoSuchMethod, NoSuchPeer, ResponderDied, Expired, Denied, Overloaded,
        Refused, ServiceError; ConnectionLost at once when the connection ends (whether the service acted on it is unknown); BadName,
        PayloadError, Closed. The timeout covers everything; None is as long as the bus allows. What is *idempotent*, so that doing it
        twice is harmless, is asked again with the time that is left where the connection ended, the service died or is overloaded, and
        after the first two also where the name or method is not there (yet); the last error is raised in the end. With a *type* the answer
        is converted, as subscribe() says.
        """
        if type is not None:
            return converter(type)(self.request(to, data, timeout=timeout, headers=headers, idempotent=idempotent))
        if idempotent:
            return self._request_again(to, data, headers, timeout)
        if timeout.__class__ is not float or not timeout >= 0:
            timeout = _names.patience(timeout)
        session = self._session
        if to not in session.request_heads:
            _names.check_request(to)
        started = self._now()
        with self._lock:
            if session.state is _CONNECTED:
                call = session.request(to, data, headers, timeout)
            else:
                call = self._request_later(to, data, headers, started, timeout)
            try:
                if not self._wire.lead_for(call, timeout + GRACE_S):
                    self._wait(call, started + timeout + GRACE_S)
            except Timeout:
                raise Expired(24, f"no answer within {timeout:g} s, not even from the bus", to) from None
            finally:
                if not call.done:
                    session.cancel(call)
                    self._wire.push()
                    self._wire.hand_over()
        return call.result()

    def _request_later(self, to: str, data: Any, headers: Mapping[str, Any] | None, started: float, timeout: float) -> Call:
        """Where there is no connection: wait for it, then send the request with the time that is left."""
        if not self._wire.wait_connected(started + timeout):
            raise self._not_connected(to, timeout)
        return self._session.request(to, data, headers, max(started + timeout - self._now(), 0.001))

    def _request_again(self, to: str, data: Any, headers: Mapping[str, Any] | None, timeout: float | None) -> Any:
        """A request that may be made twice, until it is answered, or the time is over. Not under the lock."""
        deadline = self._now() + _names.patience(timeout)
        retries = Retries()
        while True:
            try:
                return self.request(to, data, timeout=max(deadline - self._now(), 0.0), headers=headers)
            except (ConnectionLost, RequestError) as error:
                delay = retries.delay_s(error, self._wire.jitter())
                if delay is None or self._now() + delay >= deadline or self._session.state is State.CLOSED:
                    raise
            self._pause(delay)

    def request_all(
        self, to: str | Iterable[str], data: Any = None, *, timeout: float | None = 5.0, headers: Mapping[str, Any] | None = None
    ) -> list[Answer]:
        """Ask many at once and return what came back by the deadline: *to* is ``pattern/method``, for the owners of all names that match
        and serve the method (every owner of a shared name), or several ``name/method``, each of which is asked.

        The list is in the order of the names, or as given. An answer's ``result()`` is the data, or raises its error: Expired for who did
        not answer in time (and is told to stop), ConnectionLost for all that were open when the connection ended; never sent again. An
        owner of a shared name is asked by its id: where it serves the method under another name too, that one may answer (R-1). Raises
        BadName, PayloadError, Closed; Refused (over_limit) for more than the bus lets one peer ask at once; Expired or ConnectionLost
        where not even the list of names could be had.
        """
        timeout = _names.patience(timeout)
        deadline = self._now() + timeout
        if isinstance(to, str):
            pattern, method = _names.check_request_all(to)
            names = self._list("names", deadline)
            return self._gather(matching(pattern, method, names), data, headers, deadline, timeout, by_name=False)
        asked = listed(to, self._session)
        for each in asked:
            _names.check_request(each.to)
        return self._gather(asked, data, headers, deadline, timeout, by_name=True)

    def stream(
        self,
        to: str,
        data: Any = None,
        *,
        timeout: float | None = None,
        headers: Mapping[str, Any] | None = None,
        window_bytes: int = 256 * 1024,
        type: Any = None,
    ) -> ReplyStream:
        """Ask ``name/method``, whose handler is a generator, and iterate over its values as they are made. A handler that is none gives no
        values, and its answer as ``result``.

        The service makes values while less than *window_bytes* of them wait here. The timeout covers everything, up to the end; None is as
        long as the bus allows. Does not go on over a reconnect. Raises BadName, PayloadError, Closed; ConnectionLost where there is no
        connection in time; all else comes out of the stream (ReplyStream), after the values before it. With a *type* each value is
        converted, as subscribe() says.
        """
        return open_stream(self, to, data, timeout, headers, window_bytes, None if type is None else converter(type))

    def respond(
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
        """Answer requests to ``name/method`` (``name/*``: any method) with what *handler* returns. Owns the name, in *mode*, where this
        program does not yet.

        The handler runs on the bus's worker thread, one at a time; the next may begin while it waits for the bus, so it may call every
        method, and also ask this service. With a *concurrency* (1 to 1000) at most so many run at once, on threads of their own, in no
        order unless there is a *key*: requests for which that function returns the same run one after the other, as they came.

        What it raises is logged and sent as an error with the exception's class name as code; raise ServiceError to choose. With
        *errors* ``raise`` wait() raises it too, but for a ServiceError, which is an answer. A generator answers with its values:
        one by one, as fast as the requester takes them, where that asked with stream(), and it is closed when nobody waits any more; else
        they are one list. Its values are made on the worker thread in any case, and a *concurrency* counts the making of it only.

        What waits for all handlers of the program, and of their answers to be sent, is at most 64 MiB: a request above it is refused with
        the code ``overloaded``, and counted in stats_local(). *about* is a map for introspect(): ``doc``, ``signature``, … (B-3). Declared
        again after a reconnect. Raises BadName, RequestError, ConnectionLost, Timeout, Closed.
        """
        name, method = _names.check_service(to)
        _names.check_callback(handler, "handler")
        return respond(self, name, {method: about}, handler, mode=mode, concurrency=concurrency, key=key, errors=errors)

    def serve(
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
        """Serve the public methods of *service*, an object or a module, under *name*, which is owned in *mode* where it is not yet.

        A method is one whose name begins with no underscore and that has annotations; the others are warned of. A request's payload is its
        arguments: none, a map by name, an array in order, or the one argument itself; each is converted as its hint says (as subscribe()
        does with *type*). Where they do not fit, the caller gets BadArguments with the signature. A parameter annotated Request gets that.
        What a method returns, and the values that a generator yields, may be whatever publish() takes. What it raises arrives at the caller
        as its class where that has one for it (ServiceError says how), with *tracebacks* also the traceback. Signatures and docstrings are
        what introspect() gives of *name*. All of it is declared again after a reconnect.

        Methods are handlers, as that of respond(); *concurrency* and *key* are for all of them together, so what has the same *key* keeps
        its order over different methods. Raises TypeError where there is nothing to serve or a hint that no payload can become, and what
        respond() raises.
        """
        options: dict[str, Any] = {"mode": mode, "concurrency": concurrency, "key": key, "errors": errors}
        return serve(self, name, service, tracebacks, options)

    def proxy(self, name: str, interface: Any = None, *, timeout: float | None = 5.0, idempotent: bool = False) -> Proxy:
        """The service *name* (or a peer, ``:42``, or ``bus``) as an object: ``bus.proxy("thermostat").set_target(21.5)`` calls its method.

        Asks nobody until a method is called. *timeout* and *idempotent* are those of request(), for each call; what
        ``proxy.method.with_(timeout=…)`` says is for one method. With an *interface*, the class of the service or one like it, methods
        that it lacks are an AttributeError, and what the others return is converted as their annotations say. Raises BadName.
        """
        return Proxy(self, name, interface, timeout=timeout, idempotent=idempotent)

    def send(self, to: str, data: Any = None, *, headers: Mapping[str, Any] | None = None) -> None:
        """Send *data* to the owner of a name, or to a peer (``:42``); it comes into their inbox. At most once; waits for a connection as
        publish() does.
        """
        with self._lock:
            try:
                due = self._outbox.send(to, data, headers)
            except OutboxFull as full:
                self._ready(full)
                due = self._outbox.send(to, data, headers)
            if due:
                self._wire.published()

    def inbox(self, callback: Callable[[Message], Any] | None = None, *, notices: bool = False) -> Inbox:
        """The direct messages to this program, as a subscription is used: iterate, or give a *callback*; *notices* as there. A new one
        takes the place of an earlier one.
        """
        _names.check_callback(callback)
        with self._lock:
            self._session.check_open()
            if self._session.inbox is not None:
                self._session.inbox.close()
            self._session.inbox = Lane(INBOX, "inbox", window_bytes=INBOX_MAX_BYTES, notices=notices)
            return Inbox(self, self._session.inbox, callback)

    # --- names ---

    def own(self, name: str, *, mode: str = "exclusive", replace: bool = False, allow_replace: bool = False) -> bool:
        """Own *name*: True, or False where it is owned by another and this program waits in line (mode ``queue``). Declared again after a
        reconnect.

        Raises Refused (name_taken), BadName, ConnectionLost, Timeout, Closed.
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

    def topics(self) -> list[dict[str, Any]]:
        """The topics that the bus counts: ``topic``, ``messages``, ``bytes``, ``lanes``, ``retained`` (B-3)."""
        return self._list("topics")

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

    def _list(self, method: str, deadline: float | None = None) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        after = None
        while True:
            left = self._patience() if deadline is None else max(deadline - self._now(), 0.0)
            page = self.request(f"bus/{method}", {} if after is None else {"after": after}, timeout=left, idempotent=True)
            items += page["items"]
            after = page["next"]
            if after is None:
                return items

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
                if bus._outbox.waiting and not bus._closer:
                    bus._wire.wait_connected(bus._now() + ORPHAN_S)
                bus._wire.publish_all()
        except BusError as error:
            log_exception(f"{bus!r} at the end of the program", error)


def _after_fork() -> None:
    for bus in list(_buses):
        bus._begin_again()


os.register_at_fork(after_in_child=_after_fork)
