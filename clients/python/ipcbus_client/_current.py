"""The request that a handler works on, as the handler sees it: which one it is, and whether anybody still waits for its answer."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar

from . import _message
from ._names import check_timeout

_current: ContextVar[_message.Request | None] = ContextVar("ipcbus request", default=None)
enter = _current.set  #: the shells say what user code works on, and None after it
_making = threading.Lock()
os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined]  # a thread that is not in the child may have it


def current_request() -> _message.Request | None:
    """The Request that the calling handler works on, also in functions that it calls, tasks that it makes, and ``asyncio.to_thread()``;
    None anywhere else.
    """
    return _current.get()


class Request(_message.Request):
    """A request to be answered by a handler."""

    __slots__ = ("_event",)
    _event: threading.Event

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Wait until nobody waits for the answer any more, at most *timeout* seconds; whether it is so. For handlers that run on a thread;
        one of asyncio gets CancelledError instead, and must not block its loop.

        None is as long as the request may take: when its time has passed the bus says so, and a lost connection or a closed bus ends it
        too. Thread-safe. Raises ValueError for a timeout that is none.
        """
        check_timeout(timeout)
        with _making:
            try:
                event = self._event
            except AttributeError:
                event = self._event = threading.Event()
                self.when_cancelled(event.set)
        if not self.cancelled:  # looked at after notify was set: what comes now is heard
            event.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        return self.cancelled
