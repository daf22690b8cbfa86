"""Requests and services of a blocking `Bus`. The same names in the same order as _aio_requests.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

from . import _names
from ._blocking_base import BusBase
from ._blocking_replies import ReplyStream, open_stream
from ._blocking_responders import Responder
from ._blocking_services import Proxy, Service, respond, serve
from ._calls import Call
from ._current import Request
from ._errors import ConnectionLost, Expired, RequestError, Timeout
from ._gather import Answer, listed, matching
from ._message import converter
from ._names import GRACE_S
from ._retries import Retries
from ._state import State

_CONNECTED = State.CONNECTED


class BusRequests(BusBase):
    """Asking others, and answering them."""

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
            return converter(type, to)(self.request(to, data, timeout=timeout, headers=headers, idempotent=idempotent))
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
