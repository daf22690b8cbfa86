"""The asyncio shell's one background task: it connects, and again whenever the connection was lost. The same names in the same order as
_keeper.py, of what a task needs; what else the keeper's thread does is a matter of the event loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ipcbus.protocol.addresses import UnixAddress

from ._backoff import Backoff
from ._dial import ATTEMPT_S, HANDSHAKE_S, explain, is_final
from ._errors import ConnectError, ConnectionLost
from ._log import CRITICAL, log
from ._state import State

if TYPE_CHECKING:
    from ._loop_wire import LoopWire

_END_S = 0.5  #: for a task that was cancelled to be gone, far above what it takes


class LoopKeeper:
    """The task of one `LoopWire`, and what others must know of it."""

    def __init__(self, wire: LoopWire) -> None:
        self._wire = wire
        self._session = wire.session
        self._attempt = 0
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, by connecting."""
        self._task = self._wire.loop.create_task(self._run(), name="ipcbus keeper")

    def lost(self, connected_s: float | None) -> None:
        """A connection ended that was up for *connected_s* seconds (None: never quite)."""
        self._attempt = self._backoff.next_attempt(self._attempt, connected_s)

    async def ended(self, tasks: Sequence[asyncio.Task[None]] = ()) -> None:
        """Wait until the task is gone, after end(), and *tasks* that were cancelled: a round or two of the loop, also where it is
        connecting.
        """
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task, *tasks], timeout=_END_S)

    async def _run(self) -> None:
        wire, session = self._wire, self._session
        try:
            await self._keep()
        except asyncio.CancelledError:
            # By ended(), or with all tasks at the end of the loop: then the others may still use the connection to tidy up, but not wait
            # for a next one.
            wire.reconnect = False
            wire.push()
            if session.state is not State.CONNECTED:
                wire.let_go()
                session.close(ConnectionLost("the task that keeps the connection was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours: without this task every wait would be for ever
            wire.let_go()
            session.close(ConnectionLost(f"the task that keeps the connection failed: {type(error).__name__}: {error}"))
            log(CRITICAL, "the bus is closed: the task that keeps the connection failed", error)

    def orphan(self) -> None:
        """The bus object is gone, which may be found out on any thread: close the bus soon."""
        wire = self._wire
        try:
            wire.loop.call_soon_threadsafe(self._bury)
        except RuntimeError:  # the loop is closed: what is buffered has nobody to write it
            wire.forget()

    def _bury(self) -> None:
        """What close() would do, as far as it takes no time."""
        wire = self._wire
        wire.outbox.holds.leave()
        wire.push()
        self._session.bye()
        wire.push()
        wire.end()

    async def _keep(self) -> None:
        """Connect, and again whenever the connection was lost."""
        wire, session = self._wire, self._session
        while not self._closed():
            if wire.last_failure:
                delay = self._backoff.delay_s(self._attempt, wire.jitter())
                if await wire.wait(self._closed, wire.state_waiters, wire.loop.time() + delay):
                    return
            try:
                made, opening = await self._dial_or_start()
            except (OSError, ConnectError) as error:
                self._failed(error)
                continue
            if self._closed():
                made.close()
                return
            wire.opened(made, opening)
            settled = await wire.wait(
                lambda: wire.sock is None or session.state is State.CONNECTED, wire.state_waiters, wire.opened_at + HANDSHAKE_S
            )
            if not settled:
                wire.drop(f"no WELCOME within {HANDSHAKE_S:g} s")
            await wire.wait(lambda: wire.sock is None, wire.state_waiters, None)

    def _closed(self) -> bool:
        return self._session.state is State.CLOSED

    async def _dial_or_start(self) -> tuple[socket.socket, dict[str, Any]]:
        """As _dial.dial(): where nothing listens and that is to be changed, starts the bus first. That waits, so it has its own thread."""
        wire = self._wire
        try:
            return await self._dial()
        except (FileNotFoundError, ConnectionRefusedError):
            if wire.target.order is None:
                raise
        from . import _starter  # here: it is a rare thing, and needs much

        future: asyncio.Future[None] = wire.loop.create_future()
        threading.Thread(target=_run_for, args=(wire.loop, future, partial(_starter.start, wire.target.order)), daemon=True).start()
        await future
        return await self._dial()

    async def _dial(self) -> tuple[socket.socket, dict[str, Any]]:
        target = self._wire.target
        made, where = target.unconnected()
        try:
            made.setblocking(False)
            if isinstance(target.address, UnixAddress):
                made.connect(where)  # done at once, or refused at once where the listener's queue is full
            else:
                async with asyncio.timeout(ATTEMPT_S):
                    await self._wire.loop.sock_connect(made, where)
            return made, target.opening(made)
        except BaseException:
            made.close()
            raise

    def _failed(self, failure: OSError | ConnectError) -> None:
        """An attempt to connect failed."""
        wire, session = self._wire, self._session
        why = explain(failure, wire.target)
        wire.last_failure, wire.last_reason, wire.last_bye = str(why), why.reason, None
        self._attempt = self._backoff.next_attempt(self._attempt, None)
        if is_final(why, first=session.state is State.CONNECTING):
            session.close(why)

    def log(self) -> None:
        """Write the session's remarks to the log."""
        remarks = self._session.remarks
        while remarks:
            remark = remarks.popleft()
            log(remark.level, remark.text)


def _run_for(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], work: Callable[[], None]) -> None:
    """On a thread that nobody waits for at the end of the program: settle *future* with how *work* ended."""
    failure: BaseException | None = None
    try:
        work()
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told where somebody waits
        failure = error
    try:
        loop.call_soon_threadsafe(_settle, future, failure)
    except RuntimeError:
        pass  # the loop has ended


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
