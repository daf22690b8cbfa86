"""Requests and services of an asyncio `Bus`. The same names in the same order as _blocking_requests.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

from . import _names
from ._aio_base import BusBase
from ._aio_replies import ReplyStream, open_stream
from ._aio_responders import Responder
from ._aio_services import Proxy, Service, respond, serve
from ._calls import Call
from ._current import Request
from ._errors import ConnectionLost, Expired, RequestError
from ._gather import Answer, listed, matching
from ._message import converter
from ._names import GRACE_S
from ._retries import Retries
from ._state import State

_CONNECTED = State.CONNECTED


class BusRequests(BusBase):
    """Asking others, and answering them."""

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
            return converter(type, to)(await self.request(to, data, timeout=timeout, headers=headers, idempotent=idempotent))
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
