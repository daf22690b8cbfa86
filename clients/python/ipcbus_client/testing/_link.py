"""One connection in memory: the socket that a client's wire reads and writes, and the bus's record of the peer at its other end.

Bytes go through two pipes of bounded size; each can be delayed, stalled or cut. Knows frames only as far as it must to send one twice, and
to tell heartbeats from traffic.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any

from ipcbus.broker import Broker, Peer
from ipcbus.protocol.limits import HEADER_BYTES
from ipcbus.protocol.messages import Kind, decode
from ipcbus.protocol.topics import matches

if TYPE_CHECKING:
    from ._engine import Engine

#: What waits in one direction before the writer is told to wait, about what a Unix socket holds.
PIPE_BYTES = 200 * 1024
_HEARTBEATS = (Kind.PING, Kind.PONG)
_TWICE = (Kind.PUBLISH, Kind.RETAIN, Kind.POST)


class Pipe:
    """Bytes on their way in one direction, in order."""

    def __init__(self) -> None:
        self.bytes = 0
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._last = 0.0

    def put(self, data: bytes, at: float) -> None:
        """*data* is there at *at*, not before what was put earlier."""
        self._last = max(self._last, at)
        self._chunks.append((self._last, data))
        self.bytes += len(data)

    def take(self, most: int, now: float) -> bytes:
        """At most *most* bytes that have come by *now*."""
        parts = []
        while self._chunks and most > 0 and self._chunks[0][0] <= now:
            at, data = self._chunks.popleft()
            if len(data) > most:
                self._chunks.appendleft((at, data[most:]))
                data = data[:most]
            parts.append(data)
            most -= len(data)
        taken = b"".join(parts)
        self.bytes -= len(taken)
        return taken

    @property
    def next_at(self) -> float | None:
        """When the first bytes are there."""
        return self._chunks[0][0] if self._chunks else None

    def clear(self) -> None:
        """They never arrive."""
        self._chunks.clear()
        self.bytes = 0


class Link:
    """One connection. send(), recv_into(), shutdown(), close() and fileno() are those of a non-blocking socket."""

    def __init__(self, engine: Engine, broker: Broker, peer: Peer, fd: int, session: Any) -> None:
        self.session = session  #: whose connection it is
        self.delay_s = 0.0  #: of each direction
        self.stalled_until = 0.0
        self.closed = False  #: the client closed it
        self.ended = False  #: the bus's end is gone
        self._engine = engine
        self._broker = broker
        self._peer = peer
        self._fd = fd
        self._up = Pipe()
        self._down = Pipe()
        self._tail = b""  #: the beginning of a frame whose header is not whole
        self._inside = 0  #: bytes of a begun frame that are still to come

    # --- the client's socket ---

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Write what there is room for. Raises BlockingIOError, BrokenPipeError."""
        if self.ended or self.closed:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        room = PIPE_BYTES - self._up.bytes
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "the pipe is full")
        taken = bytes(data[:room])
        self._up.put(taken, self._engine.now + self.delay_s)
        self._engine.moves += 1
        return len(taken)

    def recv_into(self, buffer: bytearray | memoryview, most: int) -> int:
        """Read what is there; 0 at the end. Raises BlockingIOError."""
        if not self.readable:
            raise BlockingIOError(errno.EAGAIN, "nothing is there")
        data = self._down.take(most, self._engine.now)
        buffer[: len(data)] = data
        self._engine.moves += 1
        return len(data)

    def shutdown(self, how: int) -> None:
        """Both directions end."""
        self.close()

    def close(self) -> None:
        """The client is done with it. What it wrote still arrives. Idempotent."""
        if not self.closed:
            self.closed = True
            self._engine.moves += 1

    def fileno(self) -> int:
        """A number that no file has."""
        return self._fd

    @property
    def readable(self) -> bool:
        """Whether recv_into() has something to say."""
        if self.closed or self._engine.now < self.stalled_until:
            return False
        at = self._down.next_at
        return self.ended if at is None else at <= self._engine.now

    @property
    def writable(self) -> bool:
        """Whether send() would not block."""
        return self.ended or self._up.bytes < PIPE_BYTES

    # --- for the engine ---

    def move(self) -> bool:
        """Carry what may move now between client and bus; whether the link is still of any use."""
        engine, broker, peer = self._engine, self._broker, self._peer
        now = engine.now
        if self.ended:
            return not self.closed
        if now < self.stalled_until:
            return True
        if not peer.held or self.closed:
            data = self._up.take(PIPE_BYTES, now)
            if data:
                engine.moves += 1
                broker.receive(peer, self._look(data), now)
        if self.closed and not self._up.bytes:
            engine.moves += 1
            broker.disconnect(peer, now)
            self.ended = True
            return False
        room = PIPE_BYTES - self._down.bytes
        if peer.out and room > 0:
            data = b"".join(peer.out)[:room]
            engine.moves += 1
            broker.wrote(peer, len(data), now)
            self._down.put(data, now + self.delay_s)
        if peer.closing and not peer.out:
            engine.moves += 1
            broker.disconnect(peer, now)
            self.ended = True
        return True

    def cut(self) -> None:
        """The connection breaks; what was on its way is lost."""
        if not self.ended:
            self._broker.disconnect(self._peer, self._engine.now)
        self.ended = True
        self._up.clear()
        self._down.clear()
        self._engine.moves += 1

    def orphan(self) -> None:
        """The bus was killed: what it wrote can still be read."""
        self.ended = True
        self._up.clear()
        self._engine.moves += 1

    @property
    def next_at(self) -> float | None:
        """When something may move that does not yet."""
        times = [at for at in (self._up.next_at, self._down.next_at) if at is not None]
        at = min(times) if times else None
        if self.stalled_until > self._engine.now and (times or self.closed or self.ended or self._peer.out):
            at = max(at or 0.0, self.stalled_until)
        return at if at is not None and at > self._engine.now else None

    def _look(self, data: bytes) -> bytes:
        """What the bus gets of *data*: the same, with a frame twice where that is wanted."""
        data = self._tail + data
        parts = []
        at = min(self._inside, len(data))
        self._inside -= at
        begin = 0
        while len(data) - at >= HEADER_BYTES:
            size = HEADER_BYTES + int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
            end = at + size
            if end > len(data):
                self._inside = end - len(data)
                at = len(data)
                break
            if data[at + HEADER_BYTES + 1] not in _HEARTBEATS:
                self._engine.stirred_at = self._engine.now
            if self._engine.twice and self._comes_twice(data[at:end]):
                parts += [data[begin:end], data[at:end]]
                begin = end
            at = end
        self._tail = data[at:]
        return b"".join([*parts, data[begin:at]])

    def _comes_twice(self, frame: bytes) -> bool:
        envelope = decode(frame)
        if envelope.kind in _TWICE:
            wanted = self._engine.twice
            for session, pattern in wanted:
                if session in (None, self.session) and (pattern is None or matches(pattern, envelope.elements[2])):
                    wanted.remove((session, pattern))
                    return True
        return False
