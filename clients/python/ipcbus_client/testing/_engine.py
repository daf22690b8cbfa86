"""The world of a test: a virtual clock, the real broker, and everybody who is connected to it, moved by whoever waits.

One thread, one order: step() goes over the bus, the timers, the links and the blocking clients in the order in which they were made, so
that a test runs the same each time. What is random (the backoff's jitter, the bus's incarnation) comes from a seeded generator.
"""

from __future__ import annotations

import _thread
import heapq
import itertools
import os
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ipcbus.broker import Broker, Credentials
from ipcbus.protocol.errors import ProtocolError
from ipcbus.protocol.limits import Limits

from ._errors import StuckError
from ._link import Link
from ._policy import named_subject_of, policy_of

#: Below every number of a link, above every number of a file.
_FIRST_FD = 1_000_000_000
_LOG_LINES = 1000
#: So much happens at one moment only where programs answer each other for ever; a hundred thousand messages are a tenth of it.
STILL_MOVES = 5_000_000


class Shell(Protocol):
    """A blocking client's wire: what step() goes over."""

    def step(self) -> None:
        """Do what can be done without waiting."""

    @property
    def next_at(self) -> float | None:
        """When it has something to do by itself."""


class Engine:
    """The clock and everything that moves."""

    def __init__(self, seed: int, limits: Limits | None, policy: str | None, patience: float) -> None:
        self.now = 0.0
        self.random = random.Random(seed)  # noqa: S311 - these dice are to fall the same way again
        self.moves = 0  #: grows with everything that happens
        self._still = 0  #: moves when the clock was last put on
        self.stirred_at = 0.0  #: when something happened besides heartbeats and attempts to connect
        self.patience = patience
        self.links: list[Link] = []
        self.running: list[tuple[object, bool]] = []  #: whose user code runs, the innermost last, and whether others of it wait for it
        self.shells: list[Shell] = []
        self.twice: list[tuple[Any, str | None]] = []  #: whose publication to which pattern arrives twice
        self.delays: dict[Any, float] = {}  #: by session; None: everybody else's
        self.log: deque[str] = deque(maxlen=_LOG_LINES)  #: what the bus logged
        self.broker: Broker | None = None
        #: whom the kernel would say of bus objects that are made now
        self.acting = Credentials(os.getpid(), os.getuid(), os.getgid(), tuple(sorted(os.getgroups())))
        self._limits = limits
        self._policy, self._redaction = policy_of(policy)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._fds = itertools.count(_FIRST_FD)
        self._thread = _thread.get_ident()
        self.start()

    def time(self) -> float:
        """The clock, as a function."""
        return self.now

    # --- the bus ---

    def start(self) -> None:
        """A bus that knows nothing of the one before."""
        self.broker = Broker(
            incarnation=self.random.randbytes(16),
            random_bytes=self.random.randbytes,
            now=self.now,
            limits=self._limits,
            pid=os.getpid(),
            log=lambda level, text: self.log.append(text),
            policy=self._policy,
            subject_of=named_subject_of,
        )
        self.broker.monitors.redaction = self._redaction
        self.moves += 1

    def set_policy(self, text: str | None) -> None:
        """Another policy, also for the buses to come."""
        self._policy, self._redaction = policy_of(text)
        if self.broker is not None:
            self.log.extend(self.broker.set_policy(self._policy, self.now))
            self.broker.monitors.redaction = self._redaction
            self.moves += 1

    def end(self, *, orderly: bool) -> None:
        """The bus dies, or stops with a word to everybody."""
        broker, self.broker = self.broker, None
        if broker is None:
            return
        if orderly:
            broker.shut_down(self.now)
            for link in self.links:
                link.move()
        for link in self.links:
            link.orphan()

    def connect(self, session: Any, credentials: Credentials) -> Link:
        """A client with these *credentials* connects. Raises ConnectionRefusedError where there is no bus, or it has no room."""
        if self.broker is None:
            raise ConnectionRefusedError
        try:
            peer = self.broker.connect(self.now, transport="unix", credentials=credentials)
        except ProtocolError as error:
            raise ConnectionRefusedError(str(error)) from error
        link = Link(self, self.broker, peer, next(self._fds), session)
        link.delay_s = self.delays.get(session, self.delays.get(None, 0.0))
        self.links.append(link)
        self.moves += 1
        return link

    # --- what happens ---

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        """Call *action* when the clock is *delay_s* further."""
        heapq.heappush(self._timers, (self.now + delay_s, next(self._count), action))

    def step(self) -> bool:
        """Let everything that can move without time do so once; whether anything did."""
        if _thread.get_ident() != self._thread:
            raise RuntimeError("a FakeBus and its bus objects are for the thread that made it: there a wait runs everything else")
        before = self.moves
        broker = self.broker
        if broker is not None and (due := broker.next_deadline()) is not None and due <= self.now:
            broker.tick(self.now)
            if broker.next_deadline() != due:
                self._stir()
        while self._timers and self._timers[0][0] <= self.now:
            self._stir()
            heapq.heappop(self._timers)[2]()
        for link in tuple(self.links):
            if not link.move() and link in self.links:
                self.links.remove(link)
        if self.broker is not None:
            self.broker.take_touched()  # closes who lets too much wait
        for shell in tuple(self.shells):
            shell.step()
        if self.moves - self._still > STILL_MOVES:
            self._still = self.moves
            raise StuckError(f"time will never pass: {STILL_MOVES} things happened at one moment; somebody answers somebody for ever")
        return self.moves != before

    def _stir(self) -> None:
        self.moves += 1
        self.stirred_at = self.now

    def next_at(self) -> float | None:
        """When the next thing happens by itself, or None."""
        times = [self._timers[0][0] if self._timers else None, self.broker.next_deadline() if self.broker else None]
        times += [link.next_at for link in self.links]
        times += [shell.next_at for shell in self.shells]
        ahead = [at for at in times if at is not None]
        return min(ahead) if ahead else None

    def pass_time(self, until: float | None, since: float | None) -> None:
        """Nothing moves any more: put the clock to the next thing that happens, at most to *until*. Who may wait for ever says *since*
        when. Raises StuckError.
        """
        at = self.next_at()
        if until is not None:
            at = until if at is None else min(at, until)
        if at is None:
            raise StuckError("nothing will ever come: nobody has anything left to do, and this wait has no deadline")
        if since is not None and at - max(self.stirred_at, since) > self.patience:
            raise StuckError(
                f"nothing will ever come: for {self.patience:g} s of the virtual clock there was nothing but heartbeats and attempts to "
                f"connect. Where a test is to wait so long, say FakeBus(patience=…)"
            )
        self.now = max(self.now, at)
        self._still = self.moves

    def wait(self, ready: Callable[[], object], deadline: float | None) -> bool:
        """Let things happen until ready() or the *deadline*; returns the last ready()."""
        since = self.now if deadline is None else None
        while not ready():
            if not self.step():
                if deadline is not None and self.now >= deadline:
                    return False
                self.pass_time(deadline, since)
        return True

    def settle(self) -> None:
        """Let things happen until nothing moves without time."""
        while self.step():
            pass

    def advance(self, until: float) -> None:
        """Let time pass, with everything that happens on the way."""
        self.wait(lambda: False, until)
