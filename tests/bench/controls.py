"""The controls: what the same messages cost when the bus costs almost nothing. No ipcbus code.

- A relay that copies ``recv(256 KiB)`` to ``sendall`` from one Unix socket to one or several others, without looking.
  Its publisher writes batches of 64 KiB that were put together before the start; its subscribers split and check every
  message, as ours do.
- A ping-pong of 128 bytes over a socketpair between two processes.
- Plain sockets that connect again, until somebody listens, and say a word each.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

from . import payload
from .processes import Stage

COPY_BYTES = 262_144
BATCH_BYTES = 65_536
PING_BYTES = 4096  #: a larger buffer is mapped and unmapped by each recv, which would flatter us

_length = struct.Struct(">I")


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def relay(stage: Stage, path: str, receivers: int) -> None:
    """Copy from the publisher at *path*.in to each of the *receivers* at *path*.out."""
    with _listen(path + ".in") as inward, _listen(path + ".out") as outward:
        stage.ready()
        outs = [outward.accept()[0] for _ in range(receivers)]
        source = inward.accept()[0]
    while data := source.recv(COPY_BYTES):
        for out in outs:
            out.sendall(data)
    for connection in (source, *outs):
        connection.close()
    stage.wait_end()


def publisher(stage: Stage, path: str, count: int) -> None:
    """Write *count* messages, each with its length in front, in batches made beforehand."""
    each = payload.SIZE + _length.size
    per_batch = BATCH_BYTES // each
    head = _length.pack(payload.SIZE)
    batches = [
        b"".join(head + payload.raw(number) for number in range(first, min(first + per_batch, count)))
        for first in range(0, count, per_batch)
    ]
    with _connect(path + ".in") as connection:
        stage.ready()
        stage.wait_go()
        start = time.monotonic()
        for batch in batches:
            connection.sendall(batch)
        stage.result(start=start)


def subscriber(stage: Stage, path: str, count: int) -> None:
    """Split and check *count* messages."""
    length_at, head, check = _length.unpack_from, _length.size, payload.check_raw
    with _connect(path + ".out") as connection:
        stage.ready()
        number, rest = 0, b""
        while number < count:
            data = connection.recv(COPY_BYTES)
            if not data:
                raise payload.MessageError(f"the stream ended after {number} of {count} messages")
            buffer = rest + data if rest else data
            at, end = 0, len(buffer)
            while at + head <= end:
                stop = at + head + length_at(buffer, at)[0]
                if stop > end:
                    break
                check(buffer[at + head : stop], number)
                number += 1
                at = stop
            rest = buffer[at:]
        stage.result(end=time.monotonic(), count=number)


def ping(stage: Stage, fd: int, count: int) -> None:
    """Send 128 bytes and wait for them, *count* times."""
    message = payload.raw(0)
    with socket.socket(fileno=fd) as connection:
        stage.ready()
        stage.wait_go()
        trips = []
        clock = time.perf_counter_ns
        for _ in range(count):
            start = clock()
            connection.send(message)
            if connection.recv(PING_BYTES) != message:
                raise payload.MessageError("the ping-pong brought something else back")
            trips.append(clock() - start)
        stage.result(trips_ns=trips)


def pong(stage: Stage, fd: int) -> None:
    """Send back what comes."""
    with socket.socket(fileno=fd) as connection:
        stage.ready()
        while data := connection.recv(PING_BYTES):
            connection.send(data)


def greeter(stage: Stage, path: str, count: int) -> None:
    """Greet *count* connections, each when it has said its word; then tell, and keep them."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(count)
        stage.ready()
        connections = []
        while len(connections) < count:
            connection = listener.accept()[0]
            connection.sendall(connection.recv(PING_BYTES))
            connections.append(connection)
        stage.wait_go()
        stage.result(count=count)
        stage.wait_end()
        for connection in connections:
            connection.close()


def returner(stage: Stage, path: str, count: int) -> None:
    """*count* connections that are made anew, one after the other, when they end."""
    connections: list[socket.socket] = []
    stage.ready()
    while True:
        while len(connections) < count:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                connection.sendall(payload.raw(0))
                greeted = connection.recv(PING_BYTES)
            except OSError:
                greeted = b""
            if greeted:
                connections.append(connection)
            else:
                connection.close()
                time.sleep(0.01)
        connections[0].recv(PING_BYTES)  # until the end
        for connection in connections:
            connection.close()
        connections.clear()
