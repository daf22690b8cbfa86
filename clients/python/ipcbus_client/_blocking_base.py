"""What the blocking `Bus` is made of besides its public methods: waiting for answers, for the connection, and for the end.

All of it happens under the lock of the bus. The same names in the same order as _aio_base.py.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import _dial, _discovery, _names
from ._blocking_state import StateHandle
from ._calls import WARNING, Call
from ._current import Request
from ._errors import BusError, ConnectionLost, OutboxFull, Refused, Timeout, is_gone
from ._gather import Answer, Asked, Gathering
from ._posts import Post
from ._session import Session
from ._state import State
from ._waiter import Waiter
from ._waiting import Waiting
from ._wire import Wire
from ._worker import Worker

if TYPE_CHECKING:
    from ._blocking_streams import Subscription

class BusBase:
    """A session, its wire and its worker, and the waits of their user."""

    def __init__(
        self,
        address: str | None,
        *,
        bus: str | None,
        name: str | None,
        program: str | None,
        secret_file: str | None,
        identity: str | None,
        timeout: float | None,
        reconnect: bool,
        heartbeat: float | None,
        waiting: Waiting,
        autostart: bool | None,
    ) -> None:
        _names.check_patience(timeout, reconnect, heartbeat)
        self._target = _dial.aim(address, bus, secret_file, identity, autostart)
        self._address = str(self._target.address)
        self._program = _discovery.clip_program(program or _discovery.program_name())
        self._timeout = timeout
        self._reconnect = reconnect
        self._makers = _dial.stand_in or (Wire, Worker, None)
        self._heartbeat = heartbeat
        self._begin(waiting)
        self._name_call: Call | None = None
        if name is not None:
            self._name_call = self._session.declarations.own(_names.check_name(name), "exclusive", False, False)

    def _begin(self, waiting: Waiting, lock: threading.RLock | None = None) -> None:
        """A session, a wire and a worker without a past."""
        self._session = Session(
            program=self._program, library=_names.LIBRARY, waiting=waiting, heartbeat=self._heartbeat, address=self._address
        )
        self._outbox = self._session.outbox
        make_wire, make_worker, _ = self._makers
        self._wire: Wire = make_wire(self._session, self._target, timeout=self._timeout, reconnect=self._reconnect)
        self._now: Callable[[], float] = self._wire.now
        self._session.use_clock(self._now)
        self._lock: threading.RLock = lock or self._wire.lock
        self._wire.lock = self._lock
        self._worker: Worker = make_worker(self._session, self._wire, repr(self))
        self._closer = 0  #: the thread that closes it
        self._ended = False  #: by close(), to the last step
        self._callers: weakref.WeakSet[Subscription] = weakref.WeakSet()  #: subscriptions with a callback
        self._session.services.request_class = Request
        self._state_handles: set[StateHandle] = set()  #: of on_change()

    def _begin_again(self) -> None:
        """In the child of a fork: leave all that was to the parent, and be a bus that connects at its first use.

        What was handed out keeps to the old session, which is closed; so do the frames of this thread that a signal handler which forked
        has interrupted. They end with its error, for which they need the same lock.
        """
        session, wire, worker = self._session, self._wire, self._worker
        if type(wire) is not Wire:
            return  # it has nothing of the operating system's
        ended = session.state is State.CLOSED
        if not self._lock.acquire(blocking=False):
            self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # its owner is a thread of the parent's, which is not here
        else:
            self._lock.release()
        if not ended:
            self._begin(session.outbox.waiting.another(), self._lock)
            self._session.follow(session)
        worker.abandon()
        wire.abandon()

    def _connect(self) -> None:
        deadline = None if self._timeout is None else self._now() + self._timeout
        with self._lock:
            self._wire.start()
            if not self._wire.wait_connected(deadline):
                wire = self._wire
                raise _names.no_bus(self._address, self._timeout, wire.last_failure, wire.last_reason, wire.last_bye)
            if self._name_call is not None:
                self._wait(self._name_call, deadline).result()

    def _patience(self) -> float:
        return _names.FOREVER_S if self._timeout is None else self._timeout

    def _when_ready(self, full: OutboxFull, put: Callable[[], bool]) -> bool:
        """put(), which there was no room for, when there is a connection that takes what is in the outbox; raises *full* where that is not
        what the program wants, or is not within the connect timeout. Under the lock.
        """
        deadline = self._now() + self._patience()
        while True:
            policy = self._outbox.waiting.policy
            if not self._outbox.peer:
                ready = policy == "block" and self._wire.wait_connected(deadline)
            elif full.hold is None:
                ready = self._wire.wait_writable(deadline)
            else:
                ready = policy != "raise" and self._wire.wait_released(full.who, deadline)
            if not ready:
                raise full
            try:
                return put()
            except OutboxFull as again:  # others were faster
                full = again

    def _publish_with(
        self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None, confirm: bool, ttl: float | None, bound: bool
    ) -> int | None:
        """publish() with more than a topic, a payload and headers."""
        posts = self._session.posts
        with self._lock:
            self._session.check_open()
            post = posts.make(topic, data, retain, headers, ttl, bound)
            if confirm:
                deadline = self._now() + self._patience()
                return int(self._wait(self._confirming(post, deadline), deadline).result())
            try:
                due = posts.put(post)
            except OutboxFull as full:
                due = self._when_ready(full, lambda: posts.put(post))
            if due:
                self._wire.published()
        return None

    def _confirming(self, post: Post, deadline: float) -> Call:
        """Publish *post* when there is a connection and nothing holds its topic; its confirmation is the answer of the call."""
        while True:
            if not self._wire.wait_connected(deadline):
                raise self._not_connected(post.topic, self._patience(), "publish", post.topic)
            try:
                return self._session.posts.confirm(post)
            except OutboxFull:
                if self._outbox.waiting.policy == "raise" or not self._wire.wait_released(post.topic, deadline):
                    raise

    def _wait(self, call: Call, deadline: float | None) -> Call:
        """Wait until *call* is done; cancels it when the wait ends otherwise. Under the lock. Raises Timeout."""
        waiter = Waiter()
        call.notify = waiter.wake
        try:
            if not call.done and not self._wire.wait(lambda: call.done, waiter, deadline):
                raise _names.no_answer(call, self._session, self._wire.last_failure)
            return call
        finally:
            call.notify = None
            if not call.done:
                self._session.cancel(call)
                self._wire.push()

    def _pause(self, seconds: float) -> None:
        """Wait, or until the bus is closed. Not under the lock."""
        with self._lock:
            waiter = Waiter()
            self._wire.state_waiters.append(waiter)
            try:
                self._wire.wait(lambda: self._session.state is State.CLOSED, waiter, self._now() + seconds)
            finally:
                self._wire.state_waiters.remove(waiter)

    def _gather(
        self, asked: list[Asked], data: Any, headers: Mapping[str, Any] | None, deadline: float, timeout: float, *, by_name: bool
    ) -> list[Answer]:
        """Ask all of them, and wait for their answers until the *deadline*."""
        with self._lock:
            if not self._wire.wait_connected(deadline):
                raise self._not_connected("request_all", timeout, "request_all")
            gathering = Gathering(self._session, asked, by_name=by_name)
            waiter = Waiter()
            gathering.notify = waiter.wake
            try:
                gathering.ask(data, headers, max(deadline - self._now(), 0.001))
                self._wire.wait(lambda: not gathering.open, waiter, deadline)
            finally:
                gathering.cancel()
                self._wire.push()
        return gathering.answers(timeout)

    def _not_connected(self, to: str, timeout: float, what: str = "request", who: str = "") -> ConnectionLost:
        """Why something was never sent."""
        text = f"{to}: not connected, for {round(timeout, 3):g} s: {self._wire.last_failure or _names.NO_ANSWER}"
        hint = "It was not sent: wait for the bus with state.wait_for(), or with a longer timeout."
        return ConnectionLost(text, who=who or self._address, what=what, hint=hint)

    def _declared(self, call: Call, *key: Any) -> Any:
        """The answer to a declaration; takes it back where there is none in time."""
        return self._declared_by(self._now() + self._patience(), call, *key)

    def _declared_by(self, deadline: float | None, call: Call, *key: Any) -> Any:
        try:
            return self._wait(call, deadline).result()
        except BaseException:
            self._session.declarations.withdraw(*key)
            self._wire.push()
            raise

    def _settled(self, call: Call | None) -> None:
        """Wait for the end of a declaration. A connection that is lost meanwhile ends it too, and what the bus has forgotten is ended."""
        if call is not None:
            try:
                self._wait(call, self._now() + self._patience()).result()
            except ConnectionLost:
                pass
            except Refused as error:
                if not is_gone(error):
                    raise

    def _fence(self, deadline: float | None) -> None:
        """Wait until everything sent before was routed. Under the lock, taken once: a wait lets go of it once."""
        while True:
            if not self._wire.wait_connected(deadline):
                raise Timeout(f"not connected: {self._wire.last_failure or _names.NO_ANSWER}", who=self._address, what="flush")
            if not self._outbox.holds.kept:
                break
            if not self._wire.wait_sent(deadline):
                raise _names.still_held(self._outbox, self._address)
        self._wait(self._session.ping(), deadline).result()

    def _drain(self, deadline: float | None) -> None:
        """Let nothing new come, let what is at work finish, send everything. Each step also where one before it failed."""
        self._outbox.holds.leave()
        self._session.services.stop_producing()
        self._session.declarations.withdraw_all()
        if self._worker.started:
            if self._session.state is State.CONNECTED:
                self._try_fence(deadline)  # what the bus had sent before it heard of the end of subscriptions and names is here now
            self._worker.wait_idle(deadline)
        if self._session.state is State.CONNECTED or self._outbox.waiting:
            self._try_fence(deadline)

    def _try_fence(self, deadline: float | None) -> None:
        try:
            self._fence(deadline)
        except (BusError, OSError):
            pass  # what was not sent is counted and logged by the session

    def _cut_off(self, since: float) -> None:
        """The bus is closed: nothing more begins, and what is still at work is logged."""
        waiting = sum(caller._drop() for caller in self._callers)
        self._ended = True
        self._worker.stop()
        if waiting:
            self._session.remark(WARNING, f"{self!r}: closed with {waiting} messages for which no callback has begun")
        for what in self._worker.at_work():
            after = self._now() - since
            self._session.remark(WARNING, f"{self!r}: closed while {_name(what)} was at work, {after:.1f} s after close() began")

    def __reduce__(self) -> str:
        raise TypeError(f"{self!r} is a connection and cannot be copied or pickled: connect() in the other process")

    def __repr__(self) -> str:
        return f"<Bus {self._address} {self._session.state.value}>"


def _name(what: object) -> str:
    if isinstance(what, Request):
        return f"handler of {what.to}"
    return f"callback or handler of {getattr(what, '__self__', what)!r}"
