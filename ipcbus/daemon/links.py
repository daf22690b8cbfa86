"""Links: one connection's socket beside the broker's record of its peer, and how queued output gets into the kernel.

Owns the socket, what the poller watches of it, and the shape of what waits in ``peer.out``. Must not know what the bytes mean. A frame
passes through here last: the broker appended slices to ``peer.out``, ``offer`` hands them to the kernel, ``settle`` copies what must wait.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
from typing import TYPE_CHECKING

from ..protocol.errors import Code
from ..protocol.limits import READ_BYTES
from ..protocol.messages import Kind, clip_text, encode
from .limits import CHUNK_BYTES, CLOSE_DRAIN_READS, IOV_MAX, JOIN_BYTES, JOIN_PIECES, READ_MIN_BYTES, SHARED_SLICE_WORK, WRITE_BYTES

if TYPE_CHECKING:
    from ..broker.peers import Peer, Piece


class Turn(enum.Enum):
    """Who reads a link, and when."""

    READY = 0  #: whenever the poller says so
    QUEUED = 1  #: its last read cost much: when its turn comes, beside others like it, and after those who are READY were served
    ASIDE = 2  #: the same, but it is held (L-7): when that is over


class Link:
    """One connection. The loop makes it and is the only one to change it."""

    __slots__ = ("blocked", "deaf", "eof", "fd", "gone", "interest", "parting", "peer", "read_bytes", "settled", "sock", "tail", "turn")

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.interest = 0  #: what the poller watches: EVENT_READ, EVENT_WRITE, both, or 0: it does not know this link
        self.settled = 0  #: how many leading buffers of peer.out were brought into shape already
        self.tail: bytearray | None = None  #: the last of them, where small pieces were joined: more may be added to it
        self.turn = Turn.READY
        self.read_bytes = READ_BYTES  #: of one read: less where a run of that many costs more than a slice, for a run is not divided
        self.blocked = False  #: the kernel took less than it was given: wait until it is writable
        self.deaf = False  #: the other end is closed, but what came before is not all read yet: nothing is written any more
        self.eof = False  #: end of file was read (H-11)
        self.parting = False  #: peer.closing was seen, and its time is bounded
        self.gone = False  #: closed at the end of the round at the latest; nothing may be done with it

    def measure(self, size: int, spent: int, work: int) -> None:
        """After a read of *size* bytes that took *spent* units, up to its end or that of a slice of *work*: how much to read next, and
        who reads it."""
        if spent >= 2 * work:
            self.read_bytes = max(READ_MIN_BYTES, size * work // spent)
        elif spent < work:
            self.read_bytes = min(READ_BYTES, 2 * self.read_bytes)
        self.turn = Turn.QUEUED if spent >= SHARED_SLICE_WORK else Turn.READY


def offer(link: Link) -> int:
    """Offer what waits to the kernel, once and at most about WRITE_BYTES; returns how many bytes it took.

    ``link.blocked`` says afterwards whether something is left. The caller reports the bytes to the broker, which removes them from
    ``peer.out``, and calls `settle` then. Raises OSError where the connection is gone.
    """
    peer = link.peer
    out = peer.out
    waiting = peer.out_bytes
    if len(out) > JOIN_PIECES and waiting < len(out) * JOIN_BYTES:
        out[:] = (b"".join(out),)  # copying small pieces costs less than telling the kernel about each
        link.settled = 0
    try:
        if len(out) == 1 and waiting <= WRITE_BYTES:
            count = link.sock.send(out[0])
        elif len(out) <= IOV_MAX and waiting <= WRITE_BYTES:
            count = link.sock.sendmsg(out)
        else:
            count = link.sock.sendmsg(_first(out, WRITE_BYTES))
    except BlockingIOError:
        count = 0
    if count == waiting:
        link.blocked = False
        if link.settled:
            link.settled = 0
            link.tail = None
    else:
        link.blocked = True
        link.settled = max(0, link.settled - _whole(out, count))
    return count


def _first(out: list[Piece], budget: int) -> list[Piece]:
    """The leading buffers, cut at *budget* bytes and IOV_MAX pieces."""
    batch: list[Piece] = []
    for piece in out[:IOV_MAX]:
        if len(piece) >= budget:
            batch.append(memoryview(piece)[:budget])
            break
        batch.append(piece)
        budget -= len(piece)
    return batch


def _whole(out: list[Piece], count: int) -> int:
    """How many leading pieces *count* bytes cover whole."""
    whole = 0
    for piece in out:
        count -= len(piece)
        if count < 0:
            break
        whole += 1
    return whole


def _pinned(piece: Piece) -> int:
    """How many bytes of memory stay alive because of *piece*."""
    return len(piece.obj) if isinstance(piece, memoryview) else len(piece)  # type: ignore[arg-type]  # the object is bytes-like


def settle(link: Link) -> None:
    """Make what waits cost what it weighs: copy slices that are less than half of their buffer, join runs of small pieces.

    Each piece is looked at once (``link.settled``), so a long queue costs nothing when it grows; the first each time, as it shrinks.
    """
    out = link.peer.out
    if not out:
        link.settled = 0
        return
    if link.settled and 2 * len(out[0]) < _pinned(out[0]):
        out[0] = bytes(out[0])  # at most once per halving: linear over the life of the piece
    if len(out) <= link.settled:
        return
    tail = link.tail if link.settled and out[link.settled - 1] is link.tail else None
    fresh: list[Piece] = []
    for piece in out[link.settled :]:
        if len(piece) >= JOIN_BYTES and 2 * len(piece) >= _pinned(piece):
            tail = None
            fresh.append(piece)
        elif tail is None or len(tail) + len(piece) > CHUNK_BYTES:
            tail = bytearray(piece)
            fresh.append(tail)
        else:
            tail += piece
    out[link.settled :] = fresh
    link.settled = len(out)
    link.tail = tail


def hung_up(link: Link) -> bool:
    """Whether both directions of a connection at end of file are closed, so that nobody is left to read a reply (H-11).

    A Unix socket tells; on TCP a close looks like a half-close until something is written.
    """
    poller = select.poll()
    poller.register(link.fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


def part(sock: socket.socket) -> None:
    """Close *sock* so that what was written last arrives: unread input would turn the end into a reset."""
    try:
        sock.shutdown(socket.SHUT_WR)
        for _ in range(CLOSE_DRAIN_READS):
            if not sock.recv(READ_BYTES):
                break
    except (OSError, MemoryError):
        pass  # EAGAIN: nothing unread; anything else: the connection has gone already
    close(sock)


def close(sock: socket.socket) -> None:
    """Close *sock*. What close(2) may say besides (EIO) matters to nobody: the descriptor is gone in any case."""
    with contextlib.suppress(OSError):
        sock.close()


def say_bye(sock: socket.socket, code: Code, text: str) -> None:
    """Offer the kernel one BYE (H-10), without waiting: the last word to a stranger who is refused, or after a fault."""
    try:
        sock.send(encode(Kind.BYE, 0, code.value, clip_text(text)))
    except OSError:
        pass  # its buffer is full or it has gone: it learns from the end of the connection
