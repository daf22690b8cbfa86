"""Services and proxies of an asyncio `Bus`. The same names in the same order as _blocking_services.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _names
from ._aio_responders import Responder
from ._arguments import payload_of
from ._log import trace_text

if TYPE_CHECKING:
    from ._aio_replies import ReplyStream
    from ._aio_requests import BusRequests
    from ._current import Request


class Service:
    """An object whose methods are served under a name. Made by serve(); close() ends it, as the end of an ``async with`` does."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder  #: of all methods, so that they share a concurrency and the order by key
        self.name = responder.name
        self.methods = responder.methods  #: their names

    async def close(self) -> None:
        """Serve it no more, and give up the name where serve() had claimed it and nothing else is served under it. Idempotent."""
        await self._responder.close()

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._responder._leave()

    def __repr__(self) -> str:
        return f"<Service {self.name}: {', '.join(self.methods)}>"


class Proxy:
    """A service as an object: each attribute is a method of it. Made by proxy(); as safe to use as its bus."""

    __slots__ = ("_bus", "_interface", "_name", "_options")

    def __init__(self, bus: BusRequests, name: str, interface: Any, **options: Any) -> None:
        self._bus = bus
        self._name = _names.check_target(name)
        self._interface = interface
        self._options = options

    def __getattr__(self, method: str) -> ProxyMethod:
        if method.startswith("_"):  # what copy, pickle, inspect and notebooks ask for is no method
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {method!r}")
        returns = None, None
        if self._interface is not None:
            from ._methods import returns_of  # here: it reads hints, which most programs never need

            returns = returns_of(self._interface, method)
        return ProxyMethod(self._bus, f"{self._name}/{method}", returns, self._options, {})

    def __repr__(self) -> str:
        return f"<Proxy {self._name}>"


class ProxyMethod:
    """A method of a service: call it, or iterate over what its stream() gives."""

    __slots__ = ("_bus", "_options", "_own", "_returns", "_to")

    def __init__(self, bus: BusRequests, to: str, returns: tuple[Any, Any], options: dict[str, Any], own: dict[str, Any]) -> None:
        self._bus = bus
        self._to = to
        self._returns = returns
        self._options = options
        self._own = own

    async def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it with these arguments and return what it returns. Raises what request() raises; BadArguments, which is a ServiceError
        and a TypeError, where the arguments do not fit.
        """
        payload = payload_of(arguments, keywords)
        return await self._bus.request(self._to, payload, type=self._returns[0], **{**self._options, **self._own})

    async def stream(self, *arguments: Any, **keywords: Any) -> ReplyStream:
        """Call it with these arguments and iterate over the values that it yields, as stream() of the bus: without a timeout, but for one
        from with_().
        """
        return await self._bus.stream(self._to, payload_of(arguments, keywords), type=self._returns[1], **self._own)

    def with_(self, **options: Any) -> ProxyMethod:
        """The same method with options of request() or stream(): ``proxy.measure.with_(timeout=60)("hall")``."""
        return ProxyMethod(self._bus, self._to, self._returns, self._options, {**self._own, **options})

    def __repr__(self) -> str:
        return f"<ProxyMethod {self._to}>"


async def serve(bus: BusRequests, name: str, service: Any, tracebacks: bool, options: dict[str, Any]) -> Service:
    """Bus.serve()."""
    from ._methods import methods_of  # here: it reads hints and signatures, which most programs never need

    _names.check_name(name, "serve")
    methods = methods_of(service)
    handlers = {method.name: method.handler(trace_text if tracebacks else None) for method in methods}
    said = {method.name: method.about() for method in methods}
    return Service(await respond(bus, name, said, lambda request: handlers[request.method](request), **options))


async def respond(
    bus: BusRequests,
    name: str,
    said: Mapping[str, Mapping[str, Any] | None],
    handler: Callable[[Request], Any],
    *,
    mode: str,
    concurrency: int | None,
    key: Callable[[Request], Hashable] | None,
    errors: str,
) -> Responder:
    """Bus.respond(), for as many methods as *said* has."""
    _names.check_mode(mode)
    _names.check_handling(concurrency, key, errors)
    session = bus._session
    session.check_open()
    owns = session.declarations.declared("own", name) is None
    responder = Responder(bus, name, list(said), handler, owns=owns, concurrency=concurrency, key=key, errors=errors)
    session.on_requests = bus._take_requests  # from now on what comes holds the bus object, also where the program dropped it
    session.services.on_generator = bus._produce
    try:
        deadline = bus._loop.time() + bus._patience()
        for call in session.services.begin(name, said, responder, mode if owns else None):
            (await bus._wait(call, deadline)).result()
    except BaseException:
        responder._leave()
        raise
    return responder
