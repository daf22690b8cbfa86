"""The fake world: a virtual clock, connections that delay, split, stall and die, and a bus that is killed and started again.

Nothing here is random but by the world's seeded generator, and nothing sleeps: an hour of the bus is as long as its events.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Protocol
from zlib import crc32

from ipcbus.broker import Credentials, Peer
from ipcbus.broker.effort import UNLIMITED
from ipcbus.broker.quotas import OverQuota
from ipcbus.protocol.errors import Code

from .checks import Auditor
from .climate import limits_of
from .models import PeerModel
from .oracle import Oracle
from .shares_model import OWNER
from .watched import Tap, WatchedBroker

CHUNK_BYTES = 16_384  #: of one simulated read or write
PIPE_BYTES = 32_768  #: what a simulated kernel holds for a receiver that does not read


class Endpoint(Protocol):
    """What the network drives: the model client, or the shell of a real session."""

    def connected(self, link: Link) -> None:
        """The connection stands; output goes to ``link.send``."""

    def received(self, data: bytes) -> None:
        """Bytes of the bus."""

    def disconnected(self) -> None:
        """The connection is gone."""


class World:
    """The clock, the bus and all links of one simulation."""

    def __init__(self, seed: int, without: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self.without = without  #: actions that nobody does
        self.now = 1000.0
        self.trace = 0  #: a checksum of all bytes that went into the bus and came out of it
        self.links: list[Link] = []
        self.closing = False  #: nobody connects any more
        self.quiet = False  #: no faults and no delays beyond a moment any more
        self.log: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._until = 0.0
        self._frozen_until = 0.0
        self._bus_dice = self.dice("bus")
        self._sequence = itertools.count()
        self._tick_at: float | None = None
        self.stirred = False  #: the bus did something since it was looked at last
        self._deadline: float | None = None  #: the bus's next one, as it was then
        self.limits, self._bytes_free = limits_of(self.dice("limits"))
        self.broker: WatchedBroker | None = None
        self.oracles: list[Oracle] = []
        self.start_bus()

    # --- chance ---------------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def dice_of(seed: int, whose: str) -> random.Random:
        """The dice of one actor: what others do does not change what they show."""
        return random.Random(f"{seed}/{whose}")  # (a str is hashed by SHA-512, not by hash())

    def dice(self, whose: str) -> random.Random:
        """The dice of one actor in this world."""
        return self.dice_of(self.seed, whose)

    def soon(self, longest_s: float, dice: random.Random) -> float:
        """A random delay; short ones are likelier."""
        return longest_s * (0.02 if self.quiet else dice.random() ** 3)

    def let(self, action: Callable[[], None]) -> None:
        """Have somebody act, unless this story goes without."""
        if action.__name__.lstrip("_") not in self.without:
            action()

    # --- time ---------------------------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call *action* in *delay_s* virtual seconds."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._sequence), action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._until = self.now + seconds
        while self._events and self._events[0][0] <= self._until:
            at, _, action = heapq.heappop(self._events)
            self.now = max(self.now, at)
            self.tick()
            action()
            self.look()
        self.now = max(self.now, self._until)
        self.tick()
        self.look()

    def jump(self, seconds: float) -> None:
        """The clock jumps; what was to happen meanwhile happens late."""
        self.note(f"the clock jumps by {seconds:g} s")
        self.now += seconds
        self._until += seconds
        self.tick()

    def freeze(self, seconds: float) -> None:
        """The daemon does nothing for a while."""
        self.note(f"the bus is frozen for {seconds:.2f} s")
        self._frozen_until = self.now + seconds
        self.after(seconds, lambda: None)

    @property
    def frozen(self) -> bool:
        """Whether the daemon does nothing just now."""
        return self.now < self._frozen_until

    def settle(self) -> None:
        """From now on all goes well."""
        self.quiet = True
        self._frozen_until = 0.0
        for link in self.links:
            link.widest = CHUNK_BYTES
        if self.broker is None:
            self.start_bus()

    def tick(self) -> None:
        """Do what the bus's clock has made due, before anything else happens at this moment."""
        if self.broker is None or self.frozen:
            return
        if self.stirred:
            self._deadline = self.broker.next_deadline()
        if self._deadline is not None and self._deadline <= self.now:
            self.broker.tick(self.now)
            self.oracle.ticked(self.now, self._expelled())
            self.stirred = True
        self.oracle.check_due(self.now)

    def look(self) -> None:
        """What the daemon does at the end of a round: look at the peers that changed. Then everything is looked at."""
        if self.broker is None or not self.stirred:
            return
        touched = self.broker.take_touched()
        self.oracle.expel(self._expelled())
        for peer in touched:
            if isinstance(peer.link, Link):
                peer.link.wake()
        if not self.frozen:
            self.auditor.look(self.now)
        self.stirred = False
        self._deadline = deadline = self.broker.next_deadline()
        if deadline is not None and (self._tick_at is None or deadline < self._tick_at or self._tick_at <= self.now):
            self._tick_at = max(deadline, self.now, self._frozen_until)
            self.after(self._tick_at - self.now, lambda: None)

    def _expelled(self) -> list[tuple[PeerModel, Code]]:
        assert self.broker is not None
        return [(peer.link.model, code) for peer, code in self.broker.take_expelled()]

    # --- the bus ------------------------------------------------------------------------------------------------------------------------

    def start_bus(self) -> None:
        """A new daemon, which knows nothing of the one before."""
        dice, limits = self._bus_dice, self.limits
        owners = frozenset({OWNER})
        self.broker = WatchedBroker(incarnation=dice.randbytes(16), random_bytes=dice.randbytes, now=self.now, limits=limits, owners=owners)
        self.broker._charges.free_bytes = self._bytes_free
        self.oracle = Oracle(limits)
        self.oracles.append(self.oracle)
        self.auditor = Auditor(self.broker, self.oracle)
        self.stirred = True

    def kill_bus(self, *, orderly: bool) -> None:
        """End the daemon: with BYE to everybody, or as SIGKILL does."""
        if self.broker is None:
            return
        self._frozen_until = 0.0
        self.note(f"the bus is {'stopped' if orderly else 'killed'}")
        if orderly:
            self.broker.shut_down(self.now)
            for link in tuple(self.links):
                link.flush()
        for link in tuple(self.links):
            link.die()
        self.broker = None

    def connect(self, endpoint: Endpoint, label: str) -> bool:
        """Open a connection to the bus; False where none listens."""
        if self.broker is None or self.frozen:
            return False
        self.stirred = True
        program = crc32(label.partition("/")[0].encode())
        pid, uid = 1 + program % 10_000, program % 2
        model = self.oracle.opened(label, uid, pid, self.now)
        try:
            peer = self.broker.connect(self.now, transport="unix", credentials=Credentials(pid, uid, 0))
        except OverQuota:
            self.oracle.refused(model)
            return False
        self.oracle.admitted(model)
        self.links.append(Link(self, endpoint, self.broker, peer, model))
        endpoint.connected(self.links[-1])
        return True

    def note(self, text: str) -> None:
        """One line of the story that a failing seed tells."""
        self.log.append(f"{self.now - 1000:9.4f} {text}")


class _Nobody:
    """The end of a client that has closed it."""

    def connected(self, link: Link) -> None:
        """Never."""

    def received(self, data: bytes) -> None:
        """Nobody reads it."""

    def disconnected(self) -> None:
        """It knows."""


class Link:
    """One connection: two pipes of bytes, each with its own delays."""

    def __init__(self, world: World, endpoint: Endpoint, broker: WatchedBroker, peer: Peer, model: PeerModel) -> None:
        self.world = world
        self.endpoint = endpoint
        self.broker = broker
        self.peer = peer
        self.model = model
        self.alive = True
        self.up = bytearray()
        self.down = bytearray()
        self.widest = CHUNK_BYTES  #: at most so much goes through at a time
        self.rest = bytearray()  #: what the bus has read and not worked off yet
        self._dice = world.dice(f"link of {model.label}")
        self._work = self._dice.choice([UNLIMITED, UNLIMITED, 1, 200])  #: what the bus does for it in one go
        self._tap = Tap(peer.connection.scanner)
        self._judged = 0  #: bytes that the oracle has seen
        self._read_bytes = 0  #: the size of the last read
        self._eof = False  #: the client is done sending
        self._stalled_until = {"up": 0.0, "down": 0.0}
        self._moving = {"up": False, "down": False}
        peer.link = self
        peer.connection.scanner = self._tap  # type: ignore[assignment]

    def send(self, data: bytes) -> None:
        """The client's write: never partial, the session's shells are tested for that elsewhere."""
        if self.alive and not self._eof:
            self.up += data
            self.wake()

    def end_of_file(self) -> None:
        """The client shuts down its sending side."""
        self._eof = True
        self.wake()

    def abandon(self) -> None:
        """The client closes its end, for instance because it thinks that the bus is stopped: what it wrote is still on its way."""
        if isinstance(self.endpoint, _Nobody):
            return
        client, self.endpoint = self.endpoint, _Nobody()
        self.down.clear()
        self.end_of_file()
        client.disconnected()

    def stall(self, direction: str, seconds: float) -> None:
        """Nothing moves in *direction* for a while."""
        self._stalled_until[direction] = self.world.now + seconds

    def wake(self) -> None:
        """Something may move."""
        if not self.alive:
            return
        if (self.up or self._eof or self.peer.unread is not None) and not self.peer.held:
            self._later("up", self._move_up)
        if self.peer.out or self.down or self.peer.closing:
            self._later("down", self._move_down)

    def _some(self) -> int:
        """How much goes through this time."""
        return self.widest if self.world.quiet or self._dice.random() < 0.7 else min(self.widest, self._dice.randint(1, 60))

    def _later(self, direction: str, move: Callable[[], None]) -> None:
        if not self._moving[direction]:
            self._moving[direction] = True
            until = max(self._stalled_until[direction], self.world._frozen_until)
            stalled = 0.0 if self.world.quiet else max(0.0, until - self.world.now)
            self.world.after(stalled + self.world.soon(0.02, self._dice), move)

    def _move_up(self) -> None:
        self._moving["up"] = False
        if not self.alive or self.peer.held:
            return
        world = self.world
        if world.frozen:
            self.wake()
            return
        world.stirred = True
        if self.peer.unread is not None:
            self.broker.resume(self.peer, world.now, self._work)
            self._judge()
        elif self.up:
            data = bytes(self.up[: self._some()])
            del self.up[: len(data)]
            world.trace = crc32(data, world.trace)
            self.rest += data
            self._read_bytes = len(data)
            self.broker.receive(self.peer, data, world.now, self._work)
            self._judge()
        elif self._eof and isinstance(self.endpoint, _Nobody):
            self.die()
            return
        elif self._eof:
            self.broker.half_close(self.peer, world.now)
            world.oracle.half_closed(self.model)
            if not self.model.calls:
                world.oracle.left(self.model)
            return
        self.wake()

    def _judge(self) -> None:
        """Show the oracle what the bus has worked off."""
        ended = self.peer.closing and not self._tap.failed  # with more to work off
        done = max(self._tap.taken - self._judged, 0) if ended or self.peer.unread is not None else len(self.rest)
        data = bytes(self.rest[:done])
        del self.rest[:done]
        self.model.unread_bytes = self._read_bytes if self.rest else 0
        self._judged += done
        self.world.oracle.came(self.model, self.peer.id, data, self._tap.ends, self.world.now)
        self._tap.ends.clear()

    def _move_down(self) -> None:
        self._moving["down"] = False
        if not self.alive:
            return
        world = self.world
        if self.peer.out and len(self.down) < PIPE_BYTES and not world.frozen:
            self._take(self._some())
        if self.down:
            data = bytes(self.down[: self._some()])
            del self.down[: len(data)]
            self.endpoint.received(data)
        if self.peer.closing and not self.peer.out and not self.down:
            self.die()
        else:
            self.wake()

    def _take(self, most: int) -> None:
        """Some of what waits in the peer's record goes to the kernel."""
        pieces, size = [], 0
        for piece in self.peer.out:
            pieces.append(piece)
            size += len(piece)
            if size >= most:
                break
        data = b"".join(pieces)[:most]
        self.world.stirred = True
        self.world.trace = crc32(data, self.world.trace)
        self.world.oracle.went(self.model, data, self.world.now)
        self.broker.wrote(self.peer, len(data), self.world.now)
        self.down += data

    def flush(self) -> None:
        """All that waits goes out at once, as when a daemon stops."""
        while self.peer.out:
            self._take(CHUNK_BYTES)
        if self.down:
            data, self.down = bytes(self.down), bytearray()
            self.endpoint.received(data)

    def die(self) -> None:
        """The connection is gone, with all that was in it. Idempotent."""
        if not self.alive:
            return
        if self.world.frozen:  # the bus learns of it later
            self.abandon()
            return
        self.alive = False
        self.world.links.remove(self)
        self.world.stirred = True
        self.broker.disconnect(self.peer, self.world.now)
        self.world.oracle.left(self.model)
        self.world.oracle.closed(self.model)
        self.endpoint.disconnected()
