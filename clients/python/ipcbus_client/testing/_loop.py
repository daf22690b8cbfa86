"""An asyncio event loop on the virtual clock, and asyncio's wire on a bus in memory.

time() is the kit's clock. Where nothing is ready, select() lets the bus and the kit's blocking clients move; where nothing moves, it puts
the clock to the next timer, the loop's or another. So every sleep and timeout is instant, and in its right order.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from .._loop_keeper import LoopKeeper
from .._loop_wire import LoopWire
from ._engine import Engine
from ._errors import StuckError
from ._link import Link

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
#: How long one look at the world outside takes, where work in other threads is under way.
_OUTSIDE_S = 0.05


class VirtualSelector(selectors.BaseSelector):
    """Links of the kit, and the files of the real world beside them."""

    def __init__(self, engine: Engine) -> None:
        self.outside = 0  #: jobs in other threads: while there are some the clock stands
        self.links: dict[int, Link] = {}
        self._engine = engine
        self._began = engine.now
        self._files = selectors.DefaultSelector()
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a file or a link."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if number not in self.links:
            self._files.register(fileobj, events, data)
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch it no more."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if number not in self.links:
            self._files.unregister(fileobj)
        return self._keys.pop(number)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready within *timeout* seconds of the virtual clock. Raises StuckError."""
        engine = self._engine
        deadline = None if timeout is None else engine.now + max(timeout, 0.0)
        while True:
            moved = engine.step()
            ready = self._files.select(0) + [*filter(None, map(self._look, tuple(self.links.items())))]
            if ready or (deadline is not None and engine.now >= deadline):
                return ready
            if self.outside:
                if ready := self._files.select(_OUTSIDE_S):
                    return ready
            elif not moved:
                engine.pass_time(deadline, self._began)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """What is watched, by number."""
        return self._keys

    def close(self) -> None:
        """The loop is closed."""
        self._files.close()
        self._keys.clear()

    def _look(self, item: tuple[int, Link]) -> tuple[selectors.SelectorKey, int] | None:
        number, link = item
        key = self._keys.get(number)
        if key is None:
            return None
        mask = (selectors.EVENT_READ if link.readable else 0) | (selectors.EVENT_WRITE if link.writable else 0)
        return (key, mask & key.events) if mask & key.events else None


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the kit's. Jobs in executors run in real time, during which the clock stands."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.virtual = VirtualSelector(engine)
        super().__init__(self.virtual)

    def time(self) -> float:
        """The virtual clock."""
        return self.engine.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        """As everywhere; the clock stands until it is done."""
        job = super().run_in_executor(executor, func, *args)
        self.virtual.outside += 1
        job.add_done_callback(self._is_back)
        return job

    async def shutdown_default_executor(self, *arguments: Any) -> None:
        """As everywhere; the clock stands until it is done."""
        self.virtual.outside += 1
        try:
            await super().shutdown_default_executor(*arguments)
        finally:
            self.virtual.outside -= 1

    def _is_back(self, job: asyncio.Future[Any]) -> None:
        self.virtual.outside -= 1


class MemoryLoopKeeper(LoopKeeper):
    """The keeper of a wire in memory: it connects at once."""

    _wire: MemoryLoopWire

    async def _dial(self) -> tuple[Any, dict[str, Any]]:
        wire = self._wire
        return wire.dial(), {"session_id": wire.target.session_id()}


class MemoryLoopWire(LoopWire):
    """asyncio's wire of one bus object; its socket is a `Link`."""

    def __init__(self, engine: Engine, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not isinstance(self.loop, VirtualLoop) or self.loop.engine is not engine:
            raise RuntimeError("this event loop has another clock than the FakeBus: run the test with kit.run_async() or testing.run()")
        self._virtual = self.loop.virtual
        self._engine = engine
        self._credentials = engine.acting
        self.now = engine.time
        self.jitter = engine.random.random
        self.keeper = MemoryLoopKeeper(self)

    def dial(self) -> Any:
        """A new link, which the loop watches as a socket."""
        self._engine.moves += 1
        made = self._engine.connect(self.session, self._credentials)
        links = self._virtual.links
        for number in [number for number, link in links.items() if link.closed]:
            del links[number]
        links[made.fileno()] = made
        return made

    def _unread(self) -> bool:
        sock: Any = self.sock
        return sock is not None and bool(sock.readable)


def run(engine: Engine, main: Any) -> Any:
    """Run the coroutine *main* on a new loop of *engine*'s clock."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(engine)) as runner:
        try:
            return runner.run(main)
        except StuckError as error:
            raise StuckError(f"{error}. main waits in {_where(main)}") from None


def _where(main: Any) -> str:
    """Where a coroutine waits, for a person: the innermost place that is not in this library."""
    place = "a place that is not known"
    while (frame := getattr(main, "cr_frame", None)) is not None:
        if not frame.f_globals.get("__name__", "").startswith("ipcbus_client."):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        main = main.cr_await
    return place
