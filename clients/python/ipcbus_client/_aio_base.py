"""What the asyncio `Bus` is made of besides its public methods: waiting for answers, for the connection, and for the end.

All of it happens in the event loop of the bus. The same names in the same order as _blocking_base.py, and the tasks that run user code.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from . import _dial, _discovery, _names
from ._aio_producing import Producing
from ._aio_state import StateHandle
from ._calls import WARNING, Call
from ._current import Request
from ._errors import BusError, ConnectionLost, OutboxFull, Refused, Timeout, is_gone
from ._gather import Answer, Asked, Gathering
from ._loop_wire import LoopToBe, LoopWire, Waiters, wake
from ._posts import Post
from ._session import Session
from ._state import State
from ._waiting import Waiting

if TYPE_CHECKING:
    from ._aio_responders import Responder
    from ._aio_streams import Subscription

class BusBase:
    """A session, its wire and its tasks, and the waits of their user."""

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
        self._make_wire: Callable[..., Any] = _dial.stand_in.loop_wire if _dial.stand_in else LoopWire
        self._heartbeat = heartbeat
        self._begin(waiting)
        self._name_call: Call | None = None
        if name is not None:
            self._name_call = self._session.declarations.own(_names.check_name(name), "exclusive", False, False)

    def _begin(self, waiting: Waiting, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """A session and a wire without a past."""
        self._session = Session(
            program=self._program, library=_names.LIBRARY, waiting=waiting, heartbeat=self._heartbeat, address=self._address
        )
        self._outbox = self._session.outbox
        options: dict[str, Any] = {} if loop is None else {"loop": loop}
        self._wire: LoopWire = self._make_wire(self._session, self._target, timeout=self._timeout, reconnect=self._reconnect, **options)
        self._loop: asyncio.AbstractEventLoop = self._wire.loop
        self._now: Callable[[], float] = self._wire.now
        self._session.use_clock(self._now)
        self._tasks: set[asyncio.Task[None]] = set()  #: callbacks at work
        self._handling: dict[Any, asyncio.Task[None]] = {}  #: handlers at work; a request that is answered takes itself out
        self._closer: object = None  #: the task that closes it
        self._ended = False  #: by close(), to the last step
        self._callers: weakref.WeakSet[Subscription] = weakref.WeakSet()  #: subscriptions with a callback
        self._session.services.request_class = Request
        self._closers: list[object] = []  #: tasks that wait in _wait_end()
        self._state_handles: set[StateHandle] = set()  #: of on_change()

    def _begin_again(self) -> None:
        """In the child of a fork: leave all that was to the parent, and be a bus that connects at its first use, in the event loop that
        runs then. What was handed out keeps to the old session, which is closed.
        """
        session, wire = self._session, self._wire
        if type(wire) is not LoopWire:
            return  # it has nothing of the operating system's
        if session.state is not State.CLOSED:
            self._begin(session.outbox.waiting.another(), cast(asyncio.AbstractEventLoop, LoopToBe(self._bind)))
            self._session.follow(session)
        wire.abandon()

    def _bind(self) -> asyncio.AbstractEventLoop:
        """The first use in the child of a fork: the bus belongs to the loop that runs now."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._outbox.waiting.clear()  # a publication that fails so shall not be sent later
            raise ConnectionLost(_names.FORKED_LOOP) from None
        self._wire.loop = self._loop
        if self._session.state is not State.CLOSED:
            self._wire.start()
        return self._loop

    async def _connect(self) -> None:
        deadline = None if self._timeout is None else self._loop.time() + self._timeout
        self._wire.start()
        if not await self._wire.wait_connected(deadline):
            wire = self._wire
            raise _names.no_bus(self._address, self._timeout, wire.last_failure, wire.last_reason, wire.last_bye)
        if self._name_call is not None:
            (await self._wait(self._name_call, deadline)).result()

    def _patience(self) -> float:
        return _names.FOREVER_S if self._timeout is None else self._timeout

    async def _when_ready(self, full: OutboxFull, put: Callable[[], bool]) -> bool:
        """put(), which there was no room for, when there is a connection that takes what is in the outbox; raises *full* where that is not
        what the program wants, or is not within the connect timeout.
        """
        deadline = self._loop.time() + self._patience()
        while True:
            policy = self._outbox.waiting.policy
            if not self._outbox.peer:
                ready = policy == "block" and await self._wire.wait_connected(deadline)
            elif full.hold is None:
                ready = await self._wire.wait_writable(deadline)
            else:
                ready = policy != "raise" and await self._wire.wait_released(full.who, deadline)
            if not ready:
                raise full
            try:
                return put()
            except OutboxFull as again:  # others were faster
                full = again

    async def _publish_with(
        self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None, confirm: bool, ttl: float | None, bound: bool
    ) -> int | None:
        """publish() with more than a topic, a payload and headers."""
        posts = self._session.posts
        self._session.check_open()
        post = posts.make(topic, data, retain, headers, ttl, bound)
        if confirm:
            deadline = self._loop.time() + self._patience()
            return int((await self._wait(await self._confirming(post, deadline), deadline)).result())
        try:
            due = posts.put(post)
        except OutboxFull as full:
            due = await self._when_ready(full, lambda: posts.put(post))
        if due:
            await self._wire.published()
        return None

    async def _confirming(self, post: Post, deadline: float) -> Call:
        """Publish *post* when there is a connection and nothing holds its topic; its confirmation is the answer of the call."""
        while True:
            if not await self._wire.wait_connected(deadline):
                raise self._not_connected(post.topic, self._patience(), "publish", post.topic)
            try:
                return self._session.posts.confirm(post)
            except OutboxFull:
                if self._outbox.waiting.policy == "raise" or not await self._wire.wait_released(post.topic, deadline):
                    raise

    async def _wait(self, call: Call, deadline: float | None) -> Call:
        """Wait until *call* is done; cancels it when the wait ends otherwise. Raises Timeout."""
        if not call.done:
            try:
                left = None if deadline is None else deadline - self._loop.time()
                if left is None or left > 0:  # (the blocking shell does not look for an answer without time either)
                    await self._wire.settled(call, None if left is None else self._now() + left)
            finally:
                call.notify = None
                if not call.done:
                    self._session.cancel(call)
                    self._wire.push()
        if not call.done:
            raise _names.no_answer(call, self._session, self._wire.last_failure)
        return call

    async def _pause(self, seconds: float) -> None:
        """Wait, or until the bus is closed."""
        await self._wire.wait(lambda: self._session.state is State.CLOSED, self._wire.state_waiters, self._loop.time() + seconds)

    async def _gather(
        self, asked: list[Asked], data: Any, headers: Mapping[str, Any] | None, deadline: float, timeout: float, *, by_name: bool
    ) -> list[Answer]:
        """Ask all of them, and wait for their answers until the *deadline* (of monotonic())."""
        end = self._loop.time() + deadline - self._now()
        if not await self._wire.wait_connected(end):
            raise self._not_connected("request_all", timeout, "request_all")
        gathering = Gathering(self._session, asked, by_name=by_name)
        waiters: Waiters = []
        gathering.notify = lambda: wake(waiters)
        try:
            gathering.ask(data, headers, max(deadline - self._now(), 0.001))
            await self._wire.wait(lambda: not gathering.open, waiters, end)
        finally:
            gathering.cancel()
            self._wire.push()
        return gathering.answers(timeout)

    def _not_connected(self, to: str, timeout: float, what: str = "request", who: str = "") -> ConnectionLost:
        """Why something was never sent."""
        text = f"{to}: not connected, for {round(timeout, 3):g} s: {self._wire.last_failure or _names.NO_ANSWER}"
        hint = "It was not sent: wait for the bus with state.wait_for(), or with a longer timeout."
        return ConnectionLost(text, who=who or self._address, what=what, hint=hint)

    async def _declared(self, call: Call, *key: Any) -> Any:
        """The answer to a declaration; takes it back where there is none in time."""
        return await self._declared_by(self._loop.time() + self._patience(), call, *key)

    async def _declared_by(self, deadline: float | None, call: Call, *key: Any) -> Any:
        try:
            return (await self._wait(call, deadline)).result()
        except BaseException:
            self._session.declarations.withdraw(*key)
            self._wire.push()
            raise

    async def _settled(self, call: Call | None) -> None:
        """Wait for the end of a declaration. A connection that is lost meanwhile ends it too, and what the bus has forgotten is ended."""
        if call is not None:
            try:
                (await self._wait(call, self._loop.time() + self._patience())).result()
            except ConnectionLost:
                pass
            except Refused as error:
                if not is_gone(error):
                    raise

    async def _fence(self, deadline: float | None) -> None:
        """Wait until everything sent before was routed."""
        while True:
            if not await self._wire.wait_connected(deadline):
                raise Timeout(f"not connected: {self._wire.last_failure or _names.NO_ANSWER}", who=self._address, what="flush")
            if not self._outbox.holds.kept:
                break
            if not await self._wire.wait_sent(deadline):
                raise _names.still_held(self._outbox, self._address)
        (await self._wait(self._session.ping(), deadline)).result()

    async def _drain(self, deadline: float | None) -> None:
        """Let nothing new come, let what is at work finish, send everything. Each step also where one before it failed."""
        self._outbox.holds.leave()
        self._session.services.stop_producing()
        self._session.declarations.withdraw_all()
        if self._tasks or self._handling or self._callers or self._session.services.at_work:
            if self._session.state is State.CONNECTED:
                await self._try_fence(deadline)  # what the bus had sent before it heard of the end of subscriptions and names is here now
            await asyncio.sleep(0)  # what came last has its task now
            await self._wait_end(lambda: not self._others(), deadline)
        if self._session.state is State.CONNECTED or self._outbox.waiting:
            await self._try_fence(deadline)

    async def _try_fence(self, deadline: float | None) -> None:
        try:
            await self._fence(deadline)
        except (BusError, OSError):
            pass  # what was not sent is counted and logged by the session

    async def _wait_end(self, ready: Callable[[], object], deadline: float | None) -> bool:
        """Wait for *ready*, which has to do with the end of the bus; whether it is so. Nobody waits for user code that waits here."""
        me = asyncio.current_task()
        self._closers.append(me)
        wake(self._wire.state_waiters)  # others have one less to wait for
        try:
            return await self._wire.wait(ready, self._wire.state_waiters, deadline)
        finally:
            self._closers.remove(me)

    def _cut_off(self, since: float) -> list[asyncio.Task[None]]:
        """The bus is closed: nothing more begins, and what is still at work is logged and cancelled; returns that."""
        self._ended = True
        waiting = sum(caller._drop() for caller in self._callers)
        if waiting:
            self._session.remark(WARNING, f"{self!r}: closed with {waiting} messages for which no callback has begun")
        others = self._others()
        after = self._loop.time() - since
        names = {task: f"handler of {request.to}" for request, task in self._handling.items()}
        for task in others:
            what = names.get(task) or task.get_name()
            self._session.remark(WARNING, f"{self!r}: closed while {what} was at work, {after:.1f} s after close() began: it is cancelled")
            task.cancel()
        wake(self._wire.state_waiters)
        return others

    def _others(self) -> list[asyncio.Task[None]]:
        """The tasks at work, without the one that asks and those that wait for the end."""
        me = asyncio.current_task()
        return [task for task in (*self._tasks, *self._handling.values()) if task is not me and task not in self._closers]

    def __reduce__(self) -> str:
        raise TypeError(f"{self!r} is a connection and cannot be copied or pickled: connect() in the other process")

    def __repr__(self) -> str:
        return f"<Bus {self._address} {self._session.state.value}>"

    # --- tasks ---

    def _take_requests(self) -> None:
        requests = self._session.services.requests
        while requests:
            responder, request = requests.popleft()
            if responder._turns is None:
                self._begin_handling(responder, request)
            else:
                responder._turns.source.append(request)
                responder._look()

    def _produce(self, request: Any, generator: Any) -> None:
        """A handler's answer is what *generator* gives: a task of its own, when the handler's is out of the way."""
        self._loop.call_soon(self._start_producing, request, generator)

    def _start_producing(self, request: Any, generator: Any) -> None:
        if self._session.services.wants(request):
            task = self._loop.create_task(Producing(self._session, self._wire, request, generator).run())
            self._handling[request] = task
            task.add_done_callback(partial(self._handled, request))
            request.when_cancelled(partial(self._cancel, request))

    def _begin_handling(self, responder: Responder, request: Request) -> asyncio.Task[None] | None:
        """One request: the task in which its handler goes on, or None where it is done, or its CANCEL came in the same read."""
        if request.cancelled:
            return None
        handling = responder._handle(request)
        if handling is None:
            return None
        task = self._handling[request] = self._loop.create_task(handling)
        request.when_cancelled(partial(self._cancel, request))
        return task

    def _cancel(self, request: Request) -> None:
        """Nobody waits for the answer any more."""
        task = self._handling.get(request)
        if task is not None and task not in self._closers and task is not asyncio.current_task(self._loop):  # close() must get to its end
            task.cancel()
            task.add_done_callback(partial(self._handled, request))  # where it had not begun it cannot do that itself

    def _handled(self, request: Any, task: object = None) -> None:
        """The task of *request* is over."""
        self._handling.pop(request, None)
        if self._closers:
            self._loop.call_soon(wake, self._wire.state_waiters)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._called)
        return task

    def _called(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._closers:
            self._loop.call_soon(wake, self._wire.state_waiters)
