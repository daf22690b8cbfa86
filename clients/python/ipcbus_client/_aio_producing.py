"""Generators that answer requests in the asyncio shell. The same names in the same order as _producing.py.

A generator, asynchronous or not, is driven by a task, which waits while the requester gives no credit for its values and is cancelled
when nobody waits for them any more.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ._aio_border import is_ours
from ._calls import ERROR
from ._current import enter
from ._log import log_exception
from ._loop_wire import LoopWire, Waiters, wake
from ._message import Request
from ._refusal import refusal
from ._session import Session

#: Values of one generator before other tasks get a turn.
_TURN = 100


class Producing:
    """One generator at work."""

    def __init__(self, session: Session, wire: LoopWire, request: Request, generator: Any) -> None:
        self._session = session
        self._services = session.services
        self._wire = wire
        self.request = request
        self._generator = generator
        responder = self._services.find(request.to)
        self._raises = responder is not None and responder._raises
        self._waiters: Waiters = []
        self._production = session.services.production(request)
        self._production.wake = partial(wake, self._waiters)

    async def run(self) -> None:
        """The task."""
        enter(self.request)
        try:
            self._end(await self._go_on())
        except BaseException as error:  # the border to user code: it becomes an ERROR
            if is_ours(error):
                raise  # nobody waits for the answer
            self._fail(error)
            if isinstance(error, KeyboardInterrupt):  # it is the program's
                raise
        finally:
            await self._close()

    async def _go_on(self) -> Any:
        """All values; returns what the generator returned."""
        production, generator = self._production, self._generator
        asynchronous = hasattr(generator, "__anext__")
        count = 0
        while True:
            if not production.ready:
                await self._wire.wait(lambda: production.ready, self._waiters, None)
            try:
                value = await generator.__anext__() if asynchronous else next(generator)
            except StopAsyncIteration:
                return None
            except StopIteration as stop:
                return stop.value
            if production.put(value):
                await self._wire.published()
            count += 1
            if count % _TURN == 0:
                await asyncio.sleep(0)

    def _end(self, result: Any) -> None:
        error = self._production.end(result)
        if error is not None:
            text = self._services.refuse(self.request, refusal(self.request, error))
            if text is not None:
                self._session.remark(ERROR, f"{text}: its result cannot be sent")
            self._wire.log_soon()
        self._wire.push()

    def _fail(self, error: BaseException) -> None:
        text = self._services.refuse(self.request, refusal(self.request, error))
        self._wire.push()
        if text is not None:
            self._raised(text, error)

    async def _close(self) -> None:
        """End the generator, which may be user code too."""
        try:
            if hasattr(self._generator, "aclose"):
                await self._generator.aclose()
            else:
                self._generator.close()
        except BaseException as error:  # the border to user code
            if is_ours(error):
                raise
            self._session.counters["handler_errors"] += 1
            self._raised(f"the generator that answered {self.request.to} raised {type(error).__name__} when it was closed", error)

    def _raised(self, text: str, error: BaseException) -> None:
        log_exception(text, error)
        if self._raises:
            self._session.user_raised(error)
