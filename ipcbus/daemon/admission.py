"""Admission: who may connect, and what happens when there is no room.

Owns the accepting sockets' readiness, the spare file descriptor and the pauses. Must not know what a peer does once it is in. A connection
comes out of ``accept``, is judged (room, kernel identity, policy), and becomes a peer of the broker and a link of the loop, or is told BYE
and why.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..broker import Credentials, OverQuota
from ..policy import EVERYTHING, Subject, Verdict
from ..protocol.addresses import endpoint
from ..protocol.errors import Code, ProtocolError
from .denials import Denials
from .kernel_identity import KernelError, credentials_of
from .limits import ACCEPT_BATCH, ACCEPT_PAUSE_S, REFUSE_BATCH
from .links import close, part, say_bye

if TYPE_CHECKING:
    from ..broker import Broker
    from .listeners import Listener
    from .loop import Loop

log = logging.getLogger("ipcbus.daemon")

_RAISE_IT = "raise its limit (ulimit -n, LimitNOFILE=)"
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
_NO_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})


def _anybody(credentials: Credentials) -> Verdict:
    return EVERYTHING.rights(Subject(uid=credentials.uid)).connect()


class Admission:
    """Lets connections in at the listeners of one daemon."""

    __slots__ = ("_broker", "_denials", "_full", "_gates", "_loop", "_may_connect", "_open", "_refused", "_spare", "_too_old")

    def __init__(self, broker: Broker, loop: Loop, *, may_connect: Callable[[Credentials], Verdict] = _anybody) -> None:
        """*may_connect* judges who comes by a Unix socket at once. Who comes by TCP is judged by the broker, after the proof."""
        self._broker = broker
        self._denials = Denials(loop.at)
        self._may_connect = may_connect
        self._loop = loop
        self._gates: list[Gate] = []
        self._open = False
        self._spare = _spare_descriptor()
        self._full = False  #: there is no room, and the log says so
        self._refused = 0  #: connections refused since then
        self._too_old = False  #: the kernel is, and the log says so

    def open(self, listeners: list[Listener]) -> None:
        """Begin to accept at *listeners*."""
        self._gates = [Gate(self, listener) for listener in listeners]
        self._resume(0.0)

    def close(self) -> None:
        """Accept nobody any more. Idempotent; the listeners themselves stay their owner's."""
        self._pause()
        self._gates = []
        self._give_spare()

    def _pause(self) -> None:
        if self._open:
            self._open = False
            for gate in self._gates:
                self._loop.unwatch(gate.listener.sock)

    def _resume(self, now: float) -> None:
        """Look at the listeners, at all or at none. Raises OSError where the poller takes no more; a timer is tried again then."""
        if self._open:
            return
        watched: list[Gate] = []
        try:
            for gate in self._gates:
                self._loop.watch(gate.listener.sock, gate)
                watched.append(gate)
        except BaseException:
            for gate in watched:
                self._loop.unwatch(gate.listener.sock)
            raise
        self._open = bool(watched)

    def accept(self, listener: Listener, now: float) -> None:
        """Take what waits at one listener, a batch at most. Raises nothing that a stranger can cause."""
        for _ in range(ACCEPT_BATCH):
            try:
                sock, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._no_descriptor(listener, now, error)
                    return
                if error.errno in _NO_MEMORY:
                    self._pause_for(now, f"cannot accept connections: {error.strerror}")
                    return
                log.debug("a connection to %s ended before it was accepted: %s", listener.address, error.strerror)
                continue
            except MemoryError:
                self._pause_for(now, "cannot accept connections: no memory is left")
                return
            try:
                self._admit(listener, sock, now)
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._refuse_full(sock, f"the bus has no file descriptor left to find out who this is ({error.strerror}); {_RAISE_IT}")
                    continue
                log.debug("a connection to %s ended while it was accepted: %s", listener.address, error.strerror)
                close(sock)
            except KernelError as error:
                if not self._too_old:
                    log.warning("refusing connections to %s: %s", listener.address, error)
                    self._too_old = True
                _refuse(sock, Code.INTERNAL, str(error))
            except Exception:
                log.exception("fault of the bus while it accepted a connection to %s", listener.address)
                _refuse(sock, Code.INTERNAL, "a fault of the bus while it accepted this connection; its log has the details")

    def _admit(self, listener: Listener, sock: socket.socket, now: float) -> None:
        sock.setblocking(False)
        limit = self._loop.max_fd
        if limit is not None and sock.fileno() >= limit:
            self._refuse_full(sock, f"the select poller holds file descriptors below {limit} only; start ipcbusd with --poller epoll")
            return
        try:
            if listener.transport == "unix":
                credentials = credentials_of(sock)
                verdict = self._may_connect(credentials)
                if not verdict.allowed:
                    self._denials.note(credentials, listener.address, verdict.why, now)
                    raise ProtocolError(Code.DENIED, f"{verdict.why}; you are uid {credentials.uid}")
                peer = self._broker.connect(now, transport="unix", credentials=credentials)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                addresses = (endpoint(*sock.getsockname()[:2]), endpoint(*sock.getpeername()[:2]))
                peer = self._broker.connect(now, transport="tcp", addresses=addresses)
        except ProtocolError as error:
            if isinstance(error, OverQuota) and error.of_bus:
                self._refuse_full(sock, error.text)
            else:
                _refuse(sock, error.code, error.text)
            return
        try:
            self._loop.adopt(sock, peer)
        except Exception:
            self._broker.disconnect(peer, now)
            raise
        if self._full:
            log.warning("there is room for connections again; %d were refused", self._refused)
            self._full = False
            self._refused = 0

    def _tell_full(self, text: str) -> None:
        """One line in the log when the want of room begins; _admit writes one when it ends."""
        if not self._full:
            log.warning("refusing connections: %s", text)
            self._full = True

    def _refuse_full(self, sock: socket.socket, text: str) -> None:
        self._tell_full(text)
        self._refused += 1
        _refuse(sock, Code.TOO_MANY_PEERS, text)

    def _no_descriptor(self, listener: Listener, now: float, error: OSError) -> None:
        """No file descriptor is left: with the spare one those who wait are told so, then nobody is looked at for a while."""
        text = f"the bus has no file descriptor left ({error.strerror}); {_RAISE_IT}"
        for _ in range(REFUSE_BATCH):
            if not self._give_spare():
                break
            try:
                sock, _ = listener.sock.accept()
            except OSError:
                break  # nobody waits, or another process took the descriptor (ENFILE)
            sock.setblocking(False)
            self._refuse_full(sock, text)
            self._spare = _spare_descriptor()
        if self._spare is None:
            self._spare = _spare_descriptor()
        self._pause_for(now, text)

    def _give_spare(self) -> bool:
        """Close the spare descriptor; whether there was one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(OSError):
                os.close(spare)
        return spare is not None

    def _pause_for(self, now: float, text: str) -> None:
        self._tell_full(text)
        self._pause()
        self._loop.at(now + ACCEPT_PAUSE_S, self._resume)


class Gate:
    """One listener as the loop sees it."""

    __slots__ = ("_admission", "listener")

    def __init__(self, admission: Admission, listener: Listener) -> None:
        self._admission = admission
        self.listener = listener

    def on_ready(self, now: float) -> None:
        """Somebody connects."""
        self._admission.accept(self.listener, now)


def _refuse(sock: socket.socket, code: Code, text: str) -> None:
    say_bye(sock, code, text)
    part(sock)


def _spare_descriptor() -> int | None:
    """A descriptor to give up when there is no other; None where even that cannot be had."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
