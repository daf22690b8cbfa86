"""What a blocking `Bus` hands out for what it serves. The same names in the same order as _aio_responders.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._calls import Call
from ._current import Request
from ._turns import Key, Turns
from ._worker import Line

if TYPE_CHECKING:
    from ._blocking_base import BusBase


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
        self._owns = owns
        self._raises = errors == "raise"
        self._line: Line | None = None
        if concurrency is not None:
            self._line = Line(Turns(deque(), concurrency, key), self._take, self)
            bus._worker.has_lines = True
        self.name = name
        self.methods = list(methods)

    def close(self) -> None:
        """Serve them no more, and give up the name where respond() had claimed it and nothing else is served under it. Idempotent."""
        with self._bus._lock:
            for call in self._leave():
                self._bus._settled(call)

    def __enter__(self) -> Responder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._leave()

    def __repr__(self) -> str:
        return f"<Responder {self.name}/{', '.join(self.methods)}>"

    def _leave(self) -> list[Call]:
        """End it; the answers of the bus, where it has to be told, are nothing that must be waited for."""
        with self._bus._lock:
            calls = self._bus._session.services.end(self.name, self.methods, self, self._owns)
            self._bus._wire.push()
            return calls

    def _take(self, request: Request, failure: BaseException | None) -> None:
        self._bus._worker.take(self, request, failure)
