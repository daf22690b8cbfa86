"""The blocking shell's threads for user code: callbacks and handlers run here, where no lock is held (DESIGN.md).

One thread is *the worker*: it runs what has no ``concurrency``, one at a time, and leads the wire while it has nothing to do, so that a
request is handled on the thread that read it. User code on it that waits for the bus *lends* its place: when there is something to run,
another thread goes on as the worker, and the first is a hand when its user code is over. So a handler may ask a service of its own
program, or one that asks back. *Hands* are threads that run the turns of what has a ``concurrency`` (_turns.py). They are made when they
are needed, all of them are daemon threads, and they are gone when the bus is closed.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._calls import ERROR, WARNING
from ._current import Request, enter
from ._errors import ConnectionLost
from ._log import log_exception
from ._producing import Producing
from ._refusal import refusal, words
from ._session import Session
from ._state import State
from ._turns import Key, Turns
from ._waiter import IDLE, Waiter
from ._wire import Wire

if TYPE_CHECKING:
    from ._blocking_responders import Responder

#: Places that may be lent at once: so deep may handlers wait for each other through the bus.
LENT_MAX = 100


class Line:
    """What has a ``concurrency``: its turns, and how one of them is run on a hand."""

    __slots__ = ("queued", "run", "turns", "what")

    def __init__(self, turns: Turns, run: Callable[[Any, BaseException | None], None], what: object) -> None:
        self.turns = turns
        self.run = run  #: not under the lock: one item, and what ``key`` raised for it
        self.what = what  #: for the log
        self.queued = False  #: some hand will look at it


class Worker:
    """The threads of one bus; everything here is under the lock of the bus unless it says otherwise."""

    def __init__(self, session: Session, wire: Wire, bus: str) -> None:
        self._session = session
        self._wire = wire
        self._bus = bus  #: for the log
        self._outbox = session.outbox
        self._lock = wire.lock
        #: a lane with messages at most once, requests as many as the bus lets come
        self._jobs: deque[Callable[[], None]] = deque()
        self._lines: deque[Line] = deque()  #: in which something may begin
        self._waiter: Waiter | None = None  #: the worker's, while it runs no user code
        self._thread = 0  #: who is the worker
        self._doing: object = None  #: what user code the worker runs
        self._waiting = 0  #: the worker waits for the bus, in user code: so many waits, one in the other
        self._vacant = False  #: the next thread that looks becomes the worker
        self._hands: dict[int, object] = {}  #: user code at work on other threads: what, by thread
        self._lent = 0  #: those of them that were the worker
        self._told_lent = False  #: the log knows that these were LENT_MAX once
        self._stopped = False
        self._short = False  #: the last thread that was wanted could not be had
        self.has_lines = False  #: some responder has a concurrency
        self._spare: list[Any] = []  #: locks that hands sleep on
        self._closers: list[int] = []  #: threads that wait in wait_end()
        self._idle: list[Waiter] = []  #: what they wait with
        session.on_requests = self._take_requests
        session.services.on_generator = self._produce
        wire.begin_wait, wire.end_wait = self.begin_wait, self.end_wait

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._waiter is not None

    def abandon(self) -> None:
        """In the child of a fork: what was to be done is the parent's to do."""
        self._jobs.clear()
        self._lines.clear()
        self._hands.clear()
        self._spare.clear()
        self._doing = None

    def is_current(self) -> bool:
        """Whether the caller is user code that these threads run."""
        me = _thread.get_ident()
        return me in self._hands or (self._thread == me and self._doing is not None)

    def start(self) -> None:
        """Start the worker, once. Raises RuntimeError where the system has no thread left."""
        if self._waiter is None:
            threading.Thread(target=self._work, name="ipcbus worker", daemon=True).start()
            self._waiter = Waiter()
            self._vacant = True

    def add(self, job: Callable[[], None]) -> None:
        """Have *job* run by the worker."""
        if self._waiter is not None:
            self._jobs.append(job)
            self._waiter.wake()
            if self._waiting:
                self._lend()

    def look(self, line: Line) -> None:
        """Something came for *line*, or there is room again: have hands run what may begin."""
        if self._queue(line):
            if self._spare:
                self._spare.pop().release()
            elif not self._start_thread():
                self.add(self._take_turn_here)

    def _queue(self, line: Line) -> bool:
        if line.queued or self._stopped or not line.turns.can_begin:
            return False
        line.queued = True
        self._lines.append(line)
        return True

    # --- waiting, of user code ---

    def begin_wait(self) -> bool:
        """User code is about to wait for the bus: whether it is the worker's, which then calls end_wait()."""
        if self._thread != _thread.get_ident() or self._doing is None:
            return False
        self._waiting += 1
        if self._jobs or self._session.services.requests:
            self._lend()
        return True

    def end_wait(self) -> None:
        """The wait is over."""
        if self._waiting and self._thread == _thread.get_ident():
            self._waiting -= 1

    def _take_requests(self) -> None:
        """Requests came. The worker looks for them where it read them itself."""
        waiter = self._waiter
        if waiter is not None:
            if self.has_lines:
                self._sort()
            if waiter.state != IDLE:
                waiter.wake()
            elif self._doing is not None and self._session.services.requests and (self._waiting or self._thread == _thread.get_ident()):
                self._lend()

    def _sort(self) -> None:
        """Give the requests that came to those of their responders that have a concurrency."""
        requests = self._session.services.requests
        for _ in range(len(requests)):
            responder, request = requests.popleft()
            if responder._line is None:
                requests.append((responder, request))
            else:
                responder._line.turns.source.append(request)
                self.look(responder._line)

    def _lend(self) -> None:
        """The worker waits for the bus in user code, and there is something to do: another thread goes on in its place."""
        if self._lent >= LENT_MAX:
            if not self._told_lent:
                self._told_lent = True
                text = f"{LENT_MAX} callbacks and handlers wait for the bus, each for the next one: what comes waits until one of them ends"
                self._session.remark(WARNING, f"{self._bus}: {text}. With a concurrency they have threads of their own")
        elif self._spare or self._start_thread():
            self._hands[self._thread] = self._doing
            self._lent += 1
            self._thread = self._waiting = 0
            self._doing = None
            self._waiter = Waiter()
            self._vacant = True
            if self._spare:
                self._spare.pop().release()

    # --- the end ---

    def wait_idle(self, deadline: float | None) -> bool:
        """Wait until nothing is at work and nothing waits, or another close() with less patience cut it off; whether it is so."""
        return self.wait_end(lambda: self._stopped or self._is_idle(), deadline)

    def wait_end(self, ready: Callable[[], object], deadline: float | None) -> bool:
        """Wait for *ready*, which has to do with the end of the bus; whether it is so. Nobody waits for user code that waits here."""
        me = _thread.get_ident()
        waiter = Waiter()
        self._closers.append(me)
        self._idle.append(waiter)
        self._wire.state_waiters.append(waiter)
        self._told()  # others have one less to wait for
        try:
            return self._wire.wait(ready, waiter, deadline)
        finally:
            self._closers.remove(me)
            self._idle.remove(waiter)
            self._wire.state_waiters.remove(waiter)

    def at_work(self) -> list[object]:
        """The user code that runs now, without that of who waits for its end."""
        return [what for thread, what in self._running() if thread not in self._closers and thread != _thread.get_ident()]

    def stop(self) -> None:
        """The bus is closed: no turn begins any more, and threads that sleep go. (A job finds nothing to do, or has to do with the end.)"""
        self._stopped = True
        self._lines.clear()
        while self._spare:
            self._spare.pop().release()
        self._told()

    def _running(self) -> list[tuple[int, object]]:
        return [*self._hands.items(), *([(self._thread, self._doing)] if self._doing is not None else ())]

    def _is_idle(self) -> bool:
        return not (self._jobs or self._lines or self._session.services.requests or self.at_work())

    def _told(self) -> None:
        for waiter in self._idle:
            waiter.wake()

    # --- the threads ---

    def _start_thread(self) -> bool:
        try:
            threading.Thread(target=self._work, name="ipcbus worker", daemon=True).start()
        except RuntimeError as error:  # the system has no more, or the interpreter is at its end
            if not self._short:
                self._short = True
                self._session.remark(ERROR, f"{self._bus}: no further thread for callbacks and handlers, so fewer run at once: {error}")
            return False
        self._short = False
        return True

    def _produce(self, request: Any, generator: Any) -> None:
        """A handler's answer is what *generator* gives."""
        if hasattr(generator, "__next__"):
            Producing(self._session, self._wire, self, request, generator)
        else:
            why = "an async generator answers in the asyncio shell only"
            text = self._session.services.refuse(request, refusal(request, TypeError(why)))  # (these words are ours)
            self._session.remark(ERROR, f"{text}: {why}")

    def _work(self) -> None:
        fault: BaseException | None = None
        me = _thread.get_ident()
        self._lock.acquire()
        try:
            while True:
                if self._vacant:
                    self._vacant = False
                    self._thread = me
                    self._work_until_closed(me)
                elif self._lines:
                    self._take_turn(me, self._lines.popleft())
                elif self._session.state is State.CLOSED:
                    break
                else:
                    self._sleep()
        except BaseException as error:  # noqa: BLE001  # a fault of ours: nobody would answer requests, and close() would wait in vain
            fault = error
            self._lock.release()
            try:
                why = words(error)
            finally:
                self._lock.acquire()
            self._session.close(ConnectionLost(f"the thread that runs callbacks and handlers failed: {type(error).__name__}: {why}"))
            self._wire.keeper.wake()
        finally:
            if self._thread == me:
                self._thread = 0
                self._doing = None
            self._hands.pop(me, None)
            self._told()
            while self._spare and self._session.state is State.CLOSED:
                self._spare.pop().release()
            self._lock.release()
        if fault is not None:
            log_exception(f"{self._bus} is closed: the thread that runs callbacks and handlers failed", fault)

    def _sleep(self) -> None:
        """A hand has nothing to do."""
        gate = _thread.allocate_lock()
        gate.acquire()
        self._spare.append(gate)
        self._lock.release()
        try:
            gate.acquire()
        finally:
            self._lock.acquire()

    def _work_until_closed(self, me: int) -> None:
        """Be the worker, until the bus is closed or the place was lent. Under the lock, also where it raises."""
        jobs, requests = self._jobs, self._session.services.requests
        while True:
            if requests:
                responder, request = requests.popleft()
                self._doing = request
                self._handle(responder, request)
                if self._thread != me:
                    return self._back(me)
                self._doing = None
            if jobs:
                self._do(jobs.popleft())
                if self._thread != me:
                    return self._back(me)
            elif not requests:
                if self._idle:
                    self._told()
                if self._session.state is State.CLOSED:
                    return None
                waiter = self._waiter
                assert waiter is not None
                self._wire.lead_or_follow(waiter)

    def _do(self, job: Callable[[], None]) -> None:
        """Run one callback's turn. Under the lock, which is free meanwhile."""
        me = self._thread
        self._doing = job
        self._lock.release()
        try:
            job()
        finally:
            self._lock.acquire()
            if self._thread == me:
                self._doing = None

    def _back(self, me: int) -> None:
        """User code is over whose place was lent meanwhile."""
        self._hands.pop(me, None)  # (it was a hand, too, where it took a turn)
        self._lent -= 1
        self._told()

    def _take_turn(self, me: int, line: Line) -> None:
        """As a hand: run one item of *line*, if one may begin."""
        line.queued = False
        turns, lock = line.turns, self._lock
        if turns.can_pull:
            item = turns.source.popleft()
            if turns.key is not None and turns.asks(item):
                self._find_key(me, line, turns.key, item)
            else:
                turns.park(item)
        turn = turns.begin()
        self.look(line)
        if turn is None:
            return
        token, item = turn
        self._hands[me] = line.what
        lock.release()
        try:
            line.run(item, None)
        finally:
            lock.acquire()
            turns.end(token)
            del self._hands[me]
            self._queue(line)  # this hand looks at it next
            if self._idle:
                self._told()

    def _take_turn_here(self) -> None:
        """On the worker, as a job, without the lock: a turn for which no hand could be had."""
        with self._lock:
            if self._lines:
                self._take_turn(_thread.get_ident(), self._lines.popleft())
            if self._lines:
                self.add(self._take_turn_here)

    def _find_key(self, me: int, line: Line, key_of: Key, item: Any) -> None:
        """As a hand: ask user code for the key of *item*, which waits for its turn then."""
        line.turns.pulling = True
        self._hands[me] = line.what
        key = failure = None
        self._lock.release()
        try:
            try:
                key = key_of(item)
                hash(key)
            except BaseException as error:  # noqa: BLE001  # the border to user code
                failure = error
                line.run(item, failure)
        finally:
            self._lock.acquire()
            line.turns.pulling = False
            del self._hands[me]
        if failure is None:
            line.turns.park(item, key)

    def take(self, responder: Responder, request: Request, failure: BaseException | None) -> None:
        """On a hand: a request to what has a concurrency; not under the lock."""
        with self._lock:
            self._handle(responder, request, failure)

    def _handle(self, responder: Responder, request: Request, failure: BaseException | None = None) -> None:
        """One request. Under the lock, taken once, which is free while the handler runs."""
        if request.cancelled:
            return
        services, lock = self._session.services, self._lock
        value = said = text = None
        lock.release()
        try:
            if failure is None:
                enter(request)
                value = responder._handler(request)
            else:
                said = refusal(request, failure)
        except BaseException as error:  # noqa: BLE001  # the border to user code, also for sys.exit(): it becomes an ERROR
            failure, said = error, refusal(request, error)
        finally:
            enter(None)
            lock.acquire()
        if said is not None:
            text = services.refuse(request, said)
        elif (unsendable := services.answer(request, value)) is not None:
            lock.release()
            try:
                said = refusal(request, unsendable)
            finally:
                lock.acquire()
            fault = services.refuse(request, said)
            if fault is not None:
                self._session.remark(ERROR, f"{fault}: its answer cannot be sent")
        if self._outbox.out:
            self._wire.push()
        if failure is not None and text is not None:
            lock.release()
            try:
                log_exception(text, failure)
            finally:
                lock.acquire()
            if responder._raises:
                self._session.user_raised(failure)
