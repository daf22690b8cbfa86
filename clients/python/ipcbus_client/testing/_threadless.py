"""The blocking shell without threads and sockets: who waits runs everything else, callbacks and handlers too (Engine.step)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from itertools import count
from typing import Any

from .._current import Request
from .._keeper import Keeper
from .._names import check_timeout
from .._state import State
from .._waiter import Waiter
from .._wire import Wire
from .._worker import Worker
from ._engine import Engine

#: So often at most what is due is looked at, as the keeper's poll() has it.
_TICK_S = 0.001
_MOMENT_S = 1e-9
#: So deep handlers may wait for each other, each within the wait of another: what is deeper waits as if all threads were at work.
NESTED_MAX = 40


class MemoryRequest(Request):
    """A request whose handler runs in a wait of somebody else."""

    __slots__ = ()
    engine: Engine

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """As everywhere, on the virtual clock; meanwhile everything else goes on."""
        check_timeout(timeout)
        return self.engine.wait(lambda: self.cancelled, None if timeout is None else self.engine.now + timeout)


class MemoryKeeper(Keeper):
    """The keeper's work, a bit at a time."""

    _wire: MemoryWire

    def start(self) -> None:
        """Begin, with the next step."""
        self.finished = False
        self._dial_at: float | None = None

    def forget(self, call: Any) -> None:
        """There is no other thread to do it, and none to wait for."""
        super().forget(call)
        with self._wire.lock:
            self._end_forgotten()

    def step(self, now: float) -> float | None:
        """Do what is due; returns when something will be."""
        wire = self._wire
        if wire.sock is not None:
            timeout = self._due(now)
            return None if timeout is None else now + max(timeout, _TICK_S)
        if self._dial_at is None:
            self._dial_at = now + (self._backoff.delay_s(self._attempt, wire.jitter()) if wire.last_failure else 0.0)
        if now < self._dial_at:
            return self._dial_at
        self._dial_at = None
        wire.engine.moves += 1
        try:
            made: Any = wire.engine.connect(self._session, wire.credentials)
        except OSError as error:
            self._failed(error)
        else:
            wire.opened(made, {"session_id": wire.target.session_id()})
        return now


class MemoryWire(Wire):
    """The wire of one bus object; its socket is a `Link`."""

    worker: MemoryWorker

    def __init__(self, engine: Engine, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.engine = engine
        self.credentials = engine.acting
        self.now = engine.time
        self.jitter = engine.random.random
        self.keeper = self._steps = MemoryKeeper(self)
        self.next_at: float | None = None

    def start(self) -> None:
        """Begin to connect."""
        self.engine.shells.append(self)
        self.session.services.request_class = type("Request", (MemoryRequest,), {"__slots__": (), "engine": self.engine})
        super().start()

    def wait(self, ready: Callable[[], object], waiter: Waiter, deadline: float | None) -> bool:
        """Run everything that can run until ready() or the *deadline*. Raises StuckError where there is neither, nor anything to run."""
        self.push()
        lends = (self.worker, True) in self.engine.running[-1:]
        self.worker.lent += lends
        try:
            return self.engine.wait(ready, deadline)
        finally:
            self.worker.lent -= lends

    def lead_for(self, call: Any, timeout_s: float) -> bool:
        """There is no short way here: wait() goes on."""
        return bool(call.done)

    def published(self) -> None:
        """There are no bursts: time does not pass between two publications."""
        if not self.outbox.peer:
            self.session.check_open()
        else:
            self.publish_all()

    def unread(self) -> bool:
        """Whether bytes wait in the link."""
        sock: Any = self.sock
        return sock is not None and bool(sock.readable)

    def _lead(self, waiter: Waiter, timeout_ms: float | None, turns: int) -> None:
        if not self.engine.step():
            now = self.now()
            self.engine.pass_time(None if timeout_ms is None else now + max(timeout_ms / 1000 - _TICK_S, _MOMENT_S), now)

    def step(self) -> None:
        """Read what is there, write what can be, do what is due, run one callback or handler."""
        engine = self.engine
        sock: Any = self.sock
        if self.session.state is State.CLOSED:
            if not self.worker.step() and self in engine.shells:
                engine.shells.remove(self)
                self.keeper.finished = True
                self.close_retired()
        else:
            if sock is not None and sock.readable:
                self.read()
            if self.outbox.blocked:
                self.push()
            self.next_at = self._steps.step(engine.now)
            self.worker.step()
        if self.session.remarks:
            self.keeper.log()


class MemoryWorker(Worker):
    """Callbacks and handlers, run by whoever waits: as with the real worker one at a time, but where one waits for its own bus others may
    begin, within that wait.
    """

    def __init__(self, engine: Engine, session: Any, wire: MemoryWire, bus: str) -> None:
        super().__init__(session, wire, bus)
        self._engine = engine
        self._serial = 0  #: how many are at work that are to be one at a time, one within the wait of the other
        self.lent = 0  #: of these, how many wait for their own bus
        self._at_work: list[object] = []
        self._hand = count()  #: what stands for a thread of its own
        wire.worker = self

    def start(self) -> None:
        """Be ready to run them."""
        if self._waiter is None:
            self._waiter = Waiter()

    def is_current(self) -> bool:
        """Whether the caller is user code of this bus: nobody else runs while it does."""
        return bool(self._engine.running) and self._engine.running[-1][0] is self

    def at_work(self) -> list[object]:
        """The user code of this bus that waits for whoever calls this."""
        return self._at_work[: -1 if self.is_current() else None]

    def step(self) -> bool:
        """Run one, where one may begin; whether there was something to do."""
        requests = self._session.services.requests
        if len(self._engine.running) >= NESTED_MAX:
            return False
        if self._lines:
            with self._lock:
                line = self._lines.popleft()
                self._run(line.what, False, self._take_turn, next(self._hand), line)
        elif (requests or self._jobs) and self._serial == self.lent:
            with self._lock:
                if requests:
                    self._begin(*requests.popleft())
                else:
                    job = self._jobs.popleft()
                    self._run(job, True, self._do, job)
        else:
            return False
        self._engine.moves += 1
        return True

    def _begin(self, responder: Any, request: Any) -> None:
        if responder._line is None:
            self._run(request, True, self._handle, responder, request)
        else:
            responder._line.turns.source.append(request)
            self.look(responder._line)

    def _run(self, what: object, serial: bool, work: Callable[..., object], *arguments: Any) -> None:
        """Run user code, in a context of its own, as a thread has one."""
        self._engine.running.append((self, serial))
        self._at_work.append(what)
        self._serial += serial
        try:
            copy_context().run(work, *arguments)
        finally:
            self._serial -= serial
            self._at_work.pop()
            self._engine.running.pop()

    def _start_thread(self) -> bool:
        return True  # step() does what it would

    def _lend(self) -> None:
        """step() goes on by itself."""
