"""`FakeBus`: what a test holds in its hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ipcbus.protocol.limits import Limits

from .. import _dial, _names
from .._blocking import Bus, connect
from ._engine import Engine
from ._link import Link
from ._threadless import MemoryWire, MemoryWorker

if TYPE_CHECKING:
    from .. import aio

T = TypeVar("T")
ADDRESS = "unix:/memory/bus.sock"


class FakeBus:
    """A bus in memory with a clock of its own, for tests: the real broker and the real client, without sockets, threads and waiting.

    What connect() gives is an ordinary `Bus`. A wait of it (request, get, iteration, flush, subscribe, …) runs the bus, all other clients
    of the kit and their callbacks and handlers, in this thread, until it is over. Where nothing moves any more the clock jumps to the
    next deadline: a test of an hour takes as long as what happens in it. A wait without a deadline for which nothing is left to happen
    raises StuckError.

    Handlers and callbacks run inside the wait of whoever waits, one at a time for each bus object, and may use any bus object themselves.
    For asyncio run the test with run_async(), and connect with ``await kit.aio_connect()``; there asyncio.sleep() is instant too.
    time.sleep() is not: use advance(). All of it belongs to the thread that made it.

    To the bus all of its clients are this process, as they would be on a real one: ``sender.credentials`` has its pid, uid, gid and groups,
    and no unit. With acting_as() they are somebody else.

    The same *seed* gives the same run. *limits* are the bus's (ipcbus.protocol.limits). *policy* is the text of a policy file (POLICY.md):
    what no rule of it allows is denied, but to connect; None: everybody may do everything. *patience* is how long, on the virtual clock, a
    wait without a deadline goes on where there are only heartbeats and attempts to connect.
    """

    def __init__(self, *, seed: int = 0, limits: Limits | None = None, policy: str | None = None, patience: float = 86_400.0) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits={limits!r:.50}: they are ipcbus.protocol.limits.Limits(…)")
        self._engine = Engine(seed, limits, policy, _seconds(patience))
        self._loop_wires: weakref.WeakSet[Any] = weakref.WeakSet()

    # --- clients ---

    def connect(self, address: str = ADDRESS, **options: Any) -> Bus:
        """As ipcbus_client.connect(), to this bus."""
        with self.patched():
            return connect(address, **options)

    def aio_connect(self, address: str = ADDRESS, **options: Any) -> aio.Connecting:
        """As ipcbus_client.aio.connect(), to this bus; in a loop of this kit's clock (run_async)."""
        from .. import aio  # here: a blocking test does not pay for asyncio

        connecting = aio.connect(address, **options)
        make, acting = connecting._make, asdict(self._engine.acting)

        def make_here() -> aio.Bus:
            with self.patched(), self.acting_as(**acting):
                return make()

        connecting._make = make_here
        return connecting

    @contextmanager
    def patched(self) -> Iterator[None]:
        """``with kit.patched():`` makes every ipcbus_client.connect() and aio.connect() in the block go to this bus, whatever its
        address.
        """
        before = _dial.stand_in
        _dial.stand_in = _dial.StandIn(partial(MemoryWire, self._engine), partial(MemoryWorker, self._engine), self._loop_wire)
        try:
            yield
        finally:
            _dial.stand_in = before

    @contextmanager
    def acting_as(self, **credentials: Any) -> Iterator[None]:
        """``with kit.acting_as(uid=1000, groups=(27,), unit="lights.service"):`` makes the bus objects that are made in the block those of
        such a process, over all their connections. What is left out (of ``pid``, ``uid``, ``gid``, ``groups``, ``unit``, ``user_unit``) is
        as outside of the block.
        """
        engine = self._engine
        before = engine.acting
        engine.acting = replace(before, **credentials)
        try:
            yield
        finally:
            engine.acting = before

    def set_policy(self, policy: str | None) -> None:
        """Another policy for the bus, from now on. What it does not allow any more is revoked (names, subscriptions, wills, connections),
        and the ``log`` says what. Raises TypeError, or ValueError for a text that is no policy.
        """
        self._engine.set_policy(policy)

    def run_async(self, main: Coroutine[Any, Any, T]) -> T:
        """As asyncio.run(), on this kit's clock."""
        from . import _loop

        result: T = _loop.run(self._engine, main)
        return result

    def new_event_loop(self) -> Any:
        """An event loop on this kit's clock, for a test runner that wants to make its own (``loop_factory``)."""
        from . import _loop

        return _loop.VirtualLoop(self._engine)

    # --- time ---

    @property
    def now(self) -> float:
        """Seconds on the virtual clock since the kit was made."""
        return self._engine.now

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens on the way. (In a coroutine: ``await asyncio.sleep(seconds)``.)"""
        self._engine.advance(self._engine.now + _seconds(seconds))

    def run(self) -> None:
        """Let everything happen that can happen now: messages arrive, callbacks and handlers run."""
        self._engine.settle()

    def call_later(self, seconds: float, action: Callable[[], object]) -> None:
        """Call *action* when the clock is so much further, in whoever waits then: how a test makes something happen while the code under
        test is in a loop of its own.
        """
        _names.check_callback(action, "later action")
        self._engine.after(_seconds(seconds), action)

    # --- faults ---

    def drop(self, bus: Bus | aio.Bus) -> None:
        """Break the connection of *bus*; what was on its way is lost. It reconnects by the contract, as time passes."""
        self._link(bus).cut()

    def stall(self, bus: Bus | aio.Bus, seconds: float) -> None:
        """Nothing moves between *bus* and the bus for so long, in either direction, then all of it: a process that was stopped."""
        link = self._link(bus)
        link.stalled_until = max(link.stalled_until, self._engine.now + _seconds(seconds))

    def delay(self, seconds: float, bus: Bus | aio.Bus | None = None) -> None:
        """From now on everything takes so long, in each direction, on the connections of *bus*, or of everybody. 0 ends it."""
        engine = self._engine
        session = None if bus is None else _session(bus)
        _seconds(seconds)
        if session is None:
            engine.delays.clear()
        engine.delays[session] = seconds
        for link in engine.links:
            if session in (None, link.session):
                link.delay_s = seconds

    def duplicate(self, pattern: str | None = None, bus: Bus | aio.Bus | None = None) -> None:
        """The next publication to a topic that matches *pattern* (None: any), by *bus* (None: anybody), arrives twice.

        The bus itself never does that. A publisher that does not know whether its message arrived (the connection broke) and says it again
        does: this is for testing that who receives does no harm then.
        """
        if pattern is not None:
            _names.check_pattern(pattern, "duplicate")
        self._engine.twice.append((None if bus is None else _session(bus), pattern))

    def kill(self) -> None:
        """The bus dies as of kill -9: connections end, names, subscriptions and retained values are forgotten. Nobody can connect."""
        self._engine.end(orderly=False)

    def stop(self) -> None:
        """The bus stops in order: it says so to everybody."""
        self._engine.end(orderly=True)

    def restart(self) -> None:
        """The bus comes back, knowing nothing (after a kill, where it still ran)."""
        self._engine.end(orderly=False)
        self._engine.start()

    # --- what a test may want to know ---

    @property
    def log(self) -> list[str]:
        """What the bus logged: refusals, losses; the last thousand lines."""
        return list(self._engine.log)

    @property
    def running(self) -> bool:
        """Whether there is a bus to connect to."""
        return self._engine.broker is not None

    # --- the end ---

    def close(self) -> None:
        """The end of it and of all that is connected to it. Idempotent."""
        engine = self._engine
        for wire in tuple(engine.shells):
            if isinstance(wire, MemoryWire):
                wire.session.bye()
                wire.push()
                wire.end()
        try:
            engine.settle()
        finally:
            for wire in tuple(self._loop_wires):
                wire.forget()
            engine.end(orderly=False)

    def __enter__(self) -> FakeBus:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FakeBus at {self.now:g} s, {len(self._engine.links)} connections>"

    # --- inside ---

    def _loop_wire(self, *arguments: Any, **options: Any) -> Any:
        from ._loop import MemoryLoopWire

        made = MemoryLoopWire(self._engine, *arguments, **options)
        self._loop_wires.add(made)
        return made

    def _link(self, bus: Bus | aio.Bus) -> Link:
        session = _session(bus)
        for link in self._engine.links:
            if link.session is session and not link.closed:
                return link
        raise ValueError(f"{bus!r} is not connected to this FakeBus")


def _seconds(seconds: float) -> float:
    """A duration. Raises TypeError or ValueError for what is none: else it would come out of a wait that is not to blame."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{seconds!r:.50} is no number of seconds")
    if not 0 <= seconds < inf:
        raise ValueError(f"{seconds} is no number of seconds from 0 on")
    return seconds


def _session(bus: Bus | aio.Bus) -> Any:
    """What a bus object is known by. Raises TypeError for anything else."""
    try:
        return bus._session
    except AttributeError:
        raise TypeError(f"{bus!r:.100} is no bus object: give what connect() returned") from None
