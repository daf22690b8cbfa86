"""The blocking shell without threads and sockets: who waits runs everything else, callbacks and handlers too (Engine.step)."""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from typing import Any

from .._keeper import Keeper
from .._state import State
from .._waiter import Waiter
from .._wire import Wire
from .._worker import Worker
from ._engine import Engine

#: So often at most what is due is looked at, as the keeper's poll() has it.
_TICK_S = 0.001
_MOMENT_S = 1e-9


class MemoryKeeper(Keeper):
    """The keeper's work, a bit at a time."""

    _wire: MemoryWire

    def start(self) -> None:
        """Begin, with the next step."""
        self._dial_at: float | None = None

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
            made: Any = wire.engine.connect(self._session)
        except OSError as error:
            self._failed(error)
        else:
            wire.opened(made, {})
        return now


class MemoryWire(Wire):
    """The wire of one bus object; its socket is a `Link`."""

    worker: MemoryWorker

    def __init__(self, engine: Engine, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.engine = engine
        self.now = engine.time
        self.jitter = engine.random.random
        os.close(self.keeper.fd)
        self.keeper = self._steps = MemoryKeeper(self)
        self.next_at: float | None = None

    def start(self) -> None:
        """Begin to connect."""
        self.engine.shells.append(self)
        self.keeper.start()

    def wait(self, ready: Callable[[], object], waiter: Waiter, deadline: float | None) -> bool:
        """Run everything that can run until ready() or the *deadline*. Raises StuckError where there is neither, nor anything to run."""
        self.push()
        return self.engine.wait(ready, deadline)

    def lead_for(self, call: Any, timeout_s: float) -> bool:
        """There is no short way here: wait() goes on."""
        return bool(call.done)

    def published(self) -> None:
        """There are no bursts: time does not pass between two publications."""
        if not self.outbox.peer:
            self.session.check_open()
        else:
            self.publish_all()

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
    """Callbacks and handlers, run by whoever waits; as with the real worker, one at a time."""

    def __init__(self, engine: Engine, session: Any, wire: MemoryWire, bus: str) -> None:
        super().__init__(session, wire, bus)
        self._engine = engine
        wire.worker = self

    def start(self) -> None:
        """Be ready to run them."""
        if self._waiter is None:
            self._waiter = Waiter()

    def step(self) -> bool:
        """Run one, unless one is at work: then whoever called this is called by it. Whether it did."""
        requests = self._session.services.requests
        if self._busy or not (requests or self._jobs):
            return False
        self._engine.moves += 1
        with self._lock:
            self._thread = _thread.get_ident()
            try:
                if requests:
                    self._handle(*requests.popleft())
                else:
                    self._do(self._jobs.popleft())
            finally:
                self._thread = 0
        return True
