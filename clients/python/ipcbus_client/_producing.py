"""Generators that answer requests in the blocking shell. The same names in the same order as _aio_producing.py.

A generator is no thread's: it goes on as a job of the worker while the requester gives credit for its values, some values at a turn, and
between its jobs the worker does everything else.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ._calls import ERROR
from ._current import enter
from ._log import log_exception
from ._message import Request
from ._refusal import refusal

if TYPE_CHECKING:
    from ._session import Session
    from ._wire import Wire
    from ._worker import Worker

#: Values of one generator before the worker looks at what else there is.
_TURN = 100


class Producing:
    """One generator at work."""

    def __init__(self, session: Session, wire: Wire, worker: Worker, request: Request, generator: Generator[Any, None, Any]) -> None:
        """Begin; under the lock."""
        self._session = session
        self._services = session.services
        self._wire = wire
        self._lock = wire.lock
        self._worker = worker
        self.request = request
        self._generator = generator
        responder = self._services.find(request.to)
        self._raises = responder is not None and responder._raises
        self._scheduled = False  #: a job of ours waits or runs: never two
        self._production = session.services.production(request)
        self._production.wake = self._wake
        self._wake()

    def _wake(self) -> None:
        """There is credit, or nobody waits any more. Under the lock."""
        if not self._scheduled and (self._production.ready or not self._services.wants(self.request)):
            self._scheduled = True
            self._worker.add(self._go_on)

    def _go_on(self) -> None:
        """On the worker, without the lock: some values, then let others have a turn."""
        production, request, generator, lock = self._production, self.request, self._generator, self._lock
        enter(request)
        try:
            for _ in range(_TURN):
                if request.cancelled or not production.ready:
                    break
                value = next(generator)
                with lock:
                    if production.put(value):
                        self._wire.published()
        except StopIteration as stop:
            self._end(stop.value)
        except BaseException as error:  # noqa: BLE001  # the border to user code, also for sys.exit(): it becomes an ERROR
            self._fail(error)
        else:
            self._pause()
        finally:
            enter(None)

    def _pause(self) -> None:
        """No credit, enough for one turn, or the end, where nobody waits any more."""
        with self._lock:
            wanted = self._services.wants(self.request)
            if wanted:
                self._scheduled = False
                self._wake()
                if not self._scheduled:
                    self._wire.push()  # who gives the credit has to see what it was spent on
        if not wanted:
            self._close()

    def _end(self, result: Any) -> None:
        with self._lock:
            error = self._production.end(result)
            self._wire.push()
        if error is not None:
            said = refusal(self.request, error)
            with self._lock:
                text = self._services.refuse(self.request, said)
                if text is not None:
                    self._session.remark(ERROR, f"{text}: its result cannot be sent")
                self._wire.push()

    def _fail(self, error: BaseException) -> None:
        said = refusal(self.request, error)
        with self._lock:
            text = self._services.refuse(self.request, said)
            self._wire.push()
        if text is not None:
            self._raised(text, error)
        self._close()

    def _close(self) -> None:
        """End the generator, which may be user code too. ``_scheduled`` stays: nothing runs it again."""
        try:
            self._generator.close()
        except BaseException as error:  # noqa: BLE001  # the border to user code
            self._session.counters["handler_errors"] += 1
            self._raised(f"the generator that answered {self.request.to} raised {type(error).__name__} when it was closed", error)

    def _raised(self, text: str, error: BaseException) -> None:
        log_exception(text, error)
        if self._raises:
            with self._lock:
                self._session.user_raised(error)
