"""Sockets to a bus: making one, and deciding whether what answered may be trusted. Shared by both shells; the connecting itself, which
waits, is theirs.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ipcbus.protocol.addresses import Address, UnixAddress, endpoint
from ipcbus.protocol.limits import NONCE_BYTES

from ._autostart import Order
from ._discovery import find_address, find_identity, find_order, find_secret_path, is_tcp, read_secret
from ._errors import ConnectError, ConnectReason
from ._trust import is_privileged, trusted_uids

#: How long one attempt may take: the other end is on this machine.
ATTEMPT_S = 5.0
#: How long the bus may take to say WELCOME (H-9 has the same for the other side).
HANDSHAKE_S = 10.0

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Target(NamedTuple):
    """Where to connect, and with which secret."""

    address: Address
    secret_path: str | None  #: TCP only
    identity: str = ""  #: TCP only: what the bus calls this secret; "": it is the bus's own
    order: Order | None = None  #: what to start where nothing listens
    session: str = ""  #: which session's connections are made (H-13): what nobody else can guess

    def unconnected(self) -> tuple[socket.socket, Any]:
        """A new socket, not connected, and what to connect it to."""
        if isinstance(self.address, UnixAddress):
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), self.address.path
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made, (self.address.host, self.address.port)

    def opening(self, made: socket.socket) -> dict[str, Any]:
        """What Session.opened() needs for a connected socket. Raises UntrustedError, ConnectError or OSError where it may not or cannot
        be used.
        """
        if isinstance(self.address, UnixAddress):
            check_listener(made, self.address)
            return {"session_id": self.session_id()}
        assert self.secret_path is not None
        here, there = made.getsockname(), made.getpeername()
        if here == there:
            raise ConnectionRefusedError(f"nothing listens on {self.address}")  # TCP connected the socket to itself
        return {
            "secret": read_secret(self.secret_path),
            "nonce": os.urandom(NONCE_BYTES),
            "bus_address": endpoint(*there[:2]),
            "client_address": endpoint(*here[:2]),
            "identity": self.identity,
            "session_id": self.session_id(),
        }

    def session_id(self) -> str:
        """After fork the child is another session: its connections must not end those of its parent."""
        return f"{self.session}-{os.getpid()}" if self.session else ""


class StandIn(NamedTuple):
    """What bus objects are made of in place of `Wire`, `Worker` and asyncio's `LoopWire`, which do the I/O, run the threads and know the
    time.
    """

    wire: Callable[..., Any]
    worker: Callable[..., Any]
    loop_wire: Callable[..., Any]


#: For the bus objects made from now on; None: the operating system's sockets and clock. The one place where a test kit
#: (ipcbus_client.testing) puts a bus in memory.
stand_in: StandIn | None = None


class UntrustedError(ConnectError):
    """What listens there is not ours: trying again would be no better."""

    def __init__(self, text: str, address: str) -> None:
        super().__init__(text, reason="refused", who=address)


def check_listener(made: socket.socket, address: UnixAddress) -> None:
    """Raise UntrustedError unless the kernel says that somebody listens who may (trusted_uids())."""
    credentials = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid not in trusted_uids(address.path):
        text = f"uid {uid} listens on {address}, which is neither uid {os.geteuid()} nor root: refusing to talk to it"
        way_out = "" if is_privileged() else f". If that is the bus's user, set IPCBUS_BUS_UID={uid}"
        raise UntrustedError(text + way_out, str(address))


def aim(address: str | None, bus: str | None, secret_file: str | None, identity: str | None, autostart: bool | None) -> Target:
    """Where connect() was asked to go. Raises AddressError."""
    found = find_address(address, bus)
    identity = find_identity(identity)
    secret_path = find_secret_path(secret_file, bus, identity) if is_tcp(found) else None
    return Target(found, secret_path, identity, find_order(found, bus, autostart), os.urandom(16).hex())


def jitter() -> float:
    """A random number in [0, 1), for the backoff."""
    return os.urandom(1)[0] / 256


def dial(target: Target) -> tuple[socket.socket, dict[str, Any]]:
    """Connect, waiting at most ATTEMPT_S: a non-blocking socket, and what Session.opened() needs. Where nothing listens and that is to be
    changed, starts the bus first, for as long as that takes. Raises OSError or ConnectError.
    """
    try:
        return _dial(target)
    except (FileNotFoundError, ConnectionRefusedError):
        if target.order is None:
            raise
    from . import _starter  # here: it is a rare thing, and needs much

    _starter.start(target.order)
    return _dial(target)


def _dial(target: Target) -> tuple[socket.socket, dict[str, Any]]:
    made, where = target.unconnected()
    try:
        made.settimeout(ATTEMPT_S)
        made.connect(where)
        made.setblocking(False)
        return made, target.opening(made)
    except BaseException:
        made.close()
        raise


def explain(error: OSError | ConnectError, target: Target) -> ConnectError:
    """Why an attempt failed, for a person and for a program."""
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return ConnectError(f"nothing listens on {target.address}", reason="nothing_listens", who=str(target.address))
    reason: ConnectReason = "refused" if isinstance(error, PermissionError) else "timeout"
    return ConnectError(f"{target.address}: {error.strerror or error or type(error).__name__}", reason=reason, who=str(target.address))


def is_final(error: ConnectError, *, first: bool) -> bool:
    """Whether trying again would be no better. Without a secret, and where no bus can be started, it is so only for the *first*
    connection: one that was there may be about to be replaced.
    """
    return isinstance(error, UntrustedError) or (first and error.reason in ("secret", "autostart"))
