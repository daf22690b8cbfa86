"""The blocking shell's one thread for user code: it runs callbacks and handlers, one at a time, where no lock is held (DESIGN.md).

It leads the wire while it has nothing to do, so that a request is handled on the thread that read it.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._calls import ERROR
from ._errors import ConnectionLost
from ._log import log_exception
from ._message import Request
from ._producing import Producing
from ._session import Session
from ._state import State
from ._waiter import IDLE, Waiter
from ._wire import Wire

if TYPE_CHECKING:
    from ._blocking_streams import Responder


class Worker:
    """The thread of one bus; everything here is under the lock of the bus unless it says otherwise."""

    def __init__(self, session: Session, wire: Wire, bus: str) -> None:
        self._session = session
        self._wire = wire
        self._bus = bus  #: for the log
        self._outbox = session.outbox
        self._lock = wire.lock
        #: a lane with messages at most once, requests as many as the bus lets come
        self._jobs: deque[Callable[[], None]] = deque()
        self._waiter: Waiter | None = None
        self._thread = 0
        self._busy = False
        self._idle: Waiter | None = None  #: who waits until nothing is at work
        session.on_requests = self._take_requests
        session.services.on_generator = self._produce

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._waiter is not None

    def abandon(self) -> None:
        """In the child of a fork: what was to be done is the parent's to do."""
        self._jobs.clear()
        self._busy = False

    def is_current(self) -> bool:
        """Whether the caller is user code that this worker runs."""
        return self._thread == _thread.get_ident()

    def start(self) -> None:
        """Start the thread, once."""
        if self._waiter is None:
            self._waiter = Waiter()
            threading.Thread(target=self._work, name="ipcbus worker", daemon=True).start()

    def add(self, job: Callable[[], None]) -> None:
        """Have *job* run."""
        self._jobs.append(job)
        if self._waiter is not None:
            self._waiter.wake()

    def wait_idle(self, deadline: float | None) -> None:
        """Wait until nothing is at work and nothing waits."""
        idle = self._idle = Waiter()
        self._wire.wait(lambda: not (self._busy or self._jobs or self._session.services.requests), idle, deadline)

    def _take_requests(self) -> None:
        """Requests came. The worker looks for them where it read them itself."""
        if self._waiter is not None and self._waiter.state != IDLE:
            self._waiter.wake()

    def _produce(self, request: Request, generator: Any) -> None:
        """A handler's answer is what *generator* gives."""
        if hasattr(generator, "__next__"):
            Producing(self._session, self._wire, self, request, generator)
        else:
            error = TypeError("an async generator answers in the asyncio shell only")
            self._session.remark(ERROR, f"{self._session.services.refuse(request, error)}: {error}")

    def _work(self) -> None:
        fault: BaseException | None = None
        self._lock.acquire()
        try:
            self._thread = _thread.get_ident()
            self._work_until_closed()
        except BaseException as error:  # noqa: BLE001  # a fault of ours: nobody would answer requests, and close() would wait in vain
            fault = error
            self._session.close(ConnectionLost(f"the thread that runs callbacks and handlers failed: {type(error).__name__}: {error}"))
            self._wire.keeper.wake()
        finally:
            self._thread = 0
            self._lock.release()
        if fault is not None:
            log_exception(f"{self._bus} is closed: the thread that runs callbacks and handlers failed", fault)

    def _work_until_closed(self) -> None:
        """Under the lock, also where it raises."""
        assert self._waiter is not None
        jobs, requests = self._jobs, self._session.services.requests
        while True:
            if requests:
                self._handle(*requests.popleft())
            if jobs:
                self._do(jobs.popleft())
            elif not requests:
                if self._idle is not None:
                    self._idle.wake()
                if self._session.state is State.CLOSED:
                    break
                self._wire.lead_or_follow(self._waiter)

    def _do(self, job: Callable[[], None]) -> None:
        """Run one callback's turn. Under the lock, which is free meanwhile."""
        self._busy = True
        self._lock.release()
        try:
            job()
        finally:
            self._lock.acquire()
            self._busy = False

    def _handle(self, responder: Responder, request: Request) -> None:
        """On the worker: one request. Under the lock, which is free while the handler runs."""
        if request.cancelled:
            return
        services, lock = self._session.services, self._lock
        failure = None
        self._busy = True
        lock.release()
        try:
            value = responder._handler(request)
        except BaseException as error:  # noqa: BLE001  # the border to user code, also for sys.exit(): it becomes an ERROR
            failure = error
        finally:
            lock.acquire()
            self._busy = False
        if failure is None:
            text = services.answer(request, value)
            if text is not None:
                self._session.remark(ERROR, f"{text}: its answer cannot be sent")
        else:
            text = services.refuse(request, failure)
        if self._outbox.out:
            self._wire.push()
        if failure is not None and text is not None:
            lock.release()
            try:
                log_exception(text, failure)
            finally:
                lock.acquire()
