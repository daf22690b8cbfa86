"""What an asyncio `Bus` hands out for what it serves. The same names in the same order as _blocking_responders.py."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._aio_border import is_ours, pull, raise_here
from ._calls import ERROR, Call
from ._current import Request, enter
from ._log import log_exception
from ._refusal import refusal
from ._turns import Key, Turns

if TYPE_CHECKING:
    from ._aio_base import BusBase


class Responder:
    """Served methods. close() ends them."""

    def __init__(
        self,
        bus: BusBase,
        name: str,
        methods: Sequence[str],
        handler: Callable[[Request], Any],
        *,
        owns: bool,
        concurrency: int | None = None,
        key: Key | None = None,
        errors: str = "log",
    ) -> None:
        self._bus = bus
        self._handler = handler
        self._raises = errors == "raise"
        self._turns = None if concurrency is None else Turns(deque(), concurrency, key)
        self._looking = False
        self._is_coroutine = inspect.iscoroutinefunction(handler)
        self._owns = owns
        self.name = name
        self.methods = list(methods)

    async def close(self) -> None:
        """Serve them no more, and give up the name where respond() had claimed it and nothing else is served under it. Idempotent."""
        for call in self._leave():
            await self._bus._settled(call)

    async def __aenter__(self) -> Responder:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            await self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._leave()

    def __repr__(self) -> str:
        return f"<Responder {self.name}/{', '.join(self.methods)}>"

    def _leave(self) -> list[Call]:
        """End it; the answers of the bus, where it has to be told, are nothing that must be waited for."""
        calls = self._bus._session.services.end(self.name, self.methods, self, self._owns)
        self._bus._wire.push()
        return calls

    def _handle(self, request: Request) -> Coroutine[Any, Any, None] | None:
        """One request. A handler that has to be awaited goes on in the coroutine that is returned, for a task; any other is done."""
        if self._is_coroutine:
            return self._finish(request, None)
        enter(request)
        try:
            value = self._handler(request)
        except BaseException as error:  # noqa: BLE001  # the border to user code: it becomes an ERROR
            self._refuse(request, error)
            if isinstance(error, KeyboardInterrupt):  # it is the program's; here it would go through the reading of the socket
                self._bus._loop.call_soon(raise_here, error)
            return None
        finally:
            enter(None)
        if hasattr(value, "__await__"):
            return self._finish(request, value)
        self._answer(request, value)
        return None

    async def _finish(self, request: Request, value: Any) -> None:
        """The task of one request, whose handler may have begun."""
        enter(request)
        try:
            value = await (self._handler(request) if value is None else value)
        except BaseException as error:  # the border to user code: it becomes an ERROR
            if is_ours(error):
                raise  # nobody waits for the answer
            self._refuse(request, error)
            if isinstance(error, KeyboardInterrupt):  # it is the program's
                raise
        else:
            self._answer(request, value)
        finally:
            self._bus._handled(request)  # a callback of the task would cost a round of the loop

    def _look(self) -> None:
        """Something came for what has a concurrency, or there is room again."""
        if not self._looking:
            self._looking = True
            self._bus._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Begin what may."""
        turns, bus = self._turns, self._bus
        assert turns is not None
        self._looking = False
        while turns.can_begin and not bus._ended:
            if turns.can_pull:
                request = turns.source[0]
                error = pull(turns)
                if error is not None:
                    self._refuse(request, error)
                    if isinstance(error, KeyboardInterrupt):
                        self._look()
                        raise error
            turn = turns.begin()
            if turn is None:
                continue
            token, request = turn
            task = None
            try:
                task = bus._begin_handling(self, request)
            finally:
                if task is None:
                    turns.end(token)
                    self._look()
            if task is not None:
                task.add_done_callback(partial(self._end, token))

    def _end(self, token: Any, task: object) -> None:
        assert self._turns is not None
        self._turns.end(token)
        self._begin()

    def _answer(self, request: Request, value: Any) -> None:
        bus, services = self._bus, self._bus._session.services
        error = services.answer(request, value)
        if error is not None:
            text = services.refuse(request, refusal(request, error))
            if text is not None:
                bus._session.remark(ERROR, f"{text}: its answer cannot be sent")
            bus._wire.log_soon()
        self._push()

    def _refuse(self, request: Request, error: BaseException) -> None:
        text = self._bus._session.services.refuse(request, refusal(request, error))
        if text is not None:
            log_exception(text, error)
            if self._raises:
                self._bus._session.user_raised(error)
        self._push()

    def _push(self) -> None:
        """Send the answer; where others are being made, with them."""
        bus = self._bus
        if bus._session.services.at_work:
            bus._wire.push_soon()
        elif bus._outbox.out:
            bus._wire.push()
