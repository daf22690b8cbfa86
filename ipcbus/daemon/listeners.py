"""Listeners: sockets that accept connections, made so that neither a race, a left-over nor a stranger can get in between.

Owns the lock file, the socket file and its end. Must not know who connects (admission does). A Unix socket belongs to whoever holds
``SOCKET.lock`` (flock, for life; the kernel lets go of it whatever kills the daemon), so what lies at its path while we hold it is stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence

from ..protocol.addresses import Address, TcpAddress, UnixAddress
from .directories import prepare_directory
from .limits import BACKLOG
from .links import close
from .places import PlaceError


class ListenError(Exception):
    """An address cannot be listened on; the text says why and what to do."""


class AlreadyRunningError(Exception):
    """Another daemon serves the address. ``pid`` is 0 where it is not known."""

    def __init__(self, address: Address, pid: int) -> None:
        super().__init__(address, pid)
        self.address = address
        self.pid = pid

    def __str__(self) -> str:
        return f"a bus is already running at {self.address} (pid {self.pid or 'unknown'})"


class Listener:
    """One listening socket; ``address`` is where it really listens. close() is idempotent."""

    __slots__ = ("_file", "_lock", "address", "sock", "transport")

    def __init__(self, sock: socket.socket, address: Address, lock: int | None) -> None:
        self.sock = sock
        self.address = address
        self.transport = "unix" if isinstance(address, UnixAddress) else "tcp"
        self._lock = lock
        self._file = _identity(address.path) if isinstance(address, UnixAddress) else None

    def out_of_reach(self) -> str | None:
        """Why nobody else gets to a socket that everybody may write to, None where it is not so. An access list may let some through."""
        if not isinstance(self.address, UnixAddress):
            return None
        directory = os.path.dirname(self.address.path)
        try:
            wide, entered = (os.stat(place).st_mode for place in (self.address.path, directory))
        except OSError:
            return None
        if not wide & 0o002 or entered & 0o001:
            return None
        mode = f"{stat.S_IMODE(entered):04o}"
        return f"socket_mode lets everybody connect, but {directory} has mode {mode} and keeps others from it: chmod o+x {directory}"

    def set_mode(self, mode: int) -> None:
        """Change a Unix socket's file mode (SIGHUP). Nothing happens where the file is not ours any more."""
        if isinstance(self.address, UnixAddress) and self._file is not None and _identity(self.address.path) == self._file:
            os.chmod(self.address.path, mode)

    def stop(self) -> None:
        """Let nobody connect any more; remove the socket file if it is the one that we bound. The lock stays ours. Idempotent."""
        if isinstance(self.address, UnixAddress) and self._file is not None:
            with contextlib.suppress(OSError):
                if _identity(self.address.path) == self._file:
                    os.unlink(self.address.path)
            self._file = None
        close(self.sock)

    def close(self) -> None:
        """stop(), and give the address up. Idempotent."""
        self.stop()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
            with contextlib.suppress(OSError):
                os.close(lock)


def open_listeners(addresses: Sequence[Address], *, mode: int, group: int | None, directory_mode: int = 0o700) -> list[Listener]:
    """Listen at every address or at none. Raises AlreadyRunningError or ListenError.

    Sockets get *mode* and *group*, a directory that has to be made for them *directory_mode*.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            if isinstance(address, UnixAddress):
                listeners.append(_listen_unix(address, mode, group, directory_mode))
            else:
                listeners.append(_listen_tcp(address))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen_tcp(address: TcpAddress) -> Listener:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of a former daemon; two listeners stay impossible
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]), None)


def _listen_unix(address: UnixAddress, mode: int, group: int | None, directory_mode: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lock = None
    bound = None
    try:
        prepare_directory(os.path.dirname(address.path), directory_mode)
        lock = _lock(address)
        _remove_stale(address)
        with _umask(0o177):
            sock.bind(address.path)
        bound = _identity(address.path)
        if group is not None:
            _give_to(group, address)
        os.chmod(address.path, mode)
        sock.listen(BACKLOG)  # only now can anybody connect
        sock.setblocking(False)
        return Listener(sock, address, lock)
    except BaseException as error:
        close(sock)
        if bound is not None and _identity(address.path) == bound:
            os.unlink(address.path)
        if lock is not None:
            os.close(lock)
        if isinstance(error, OSError):
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
        if isinstance(error, PlaceError):
            raise ListenError(f"cannot listen on {address}: {error}") from error
        raise


def _give_to(group: int, address: UnixAddress) -> None:
    try:
        os.chown(address.path, -1, group)
    except PermissionError as error:
        why = f"socket_group: uid {os.geteuid()} is not in the group {group}, so it may not give the socket to it"
        raise ListenError(f"cannot listen on {address}: {why}. Put it into the group, or name another one") from error


def _lock(address: UnixAddress) -> int:
    """Take the lock of a socket path for as long as the descriptor lives; our pid goes into it, for the message of who comes second."""
    path = address.path + ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        why = "it is a symbolic link; remove it" if error.errno == errno.ELOOP else error.strerror
        raise ListenError(f"lock file {path}: {why}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ListenError(f"lock file {path} is not a regular file of uid {os.geteuid()}; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(address, _pid_in(descriptor)) from None
        if _identity(path) != (found.st_dev, found.st_ino):
            raise ListenError(f"lock file {path} was removed while the bus started; start it again")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _pid_in(descriptor: int) -> int:
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else 0


def _remove_stale(address: UnixAddress) -> None:
    """Remove what a killed daemon left at the path; only a socket of ours, and only if nobody answers there. The lock is held."""
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ListenError(f"{address.path} exists and is not a socket of uid {os.geteuid()}; remove it, or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except BlockingIOError:
            raise AlreadyRunningError(address, 0) from None  # its queue is full, so it has one
        except ConnectionRefusedError:
            pass  # nobody listens
        except OSError as error:  # a socket of another type lives there (EPROTOTYPE), or cannot be asked
            what = f"{address.path} exists, and it does not show whether it is in use ({error.strerror})"
            raise ListenError(f"{what}: remove it, or listen elsewhere") from error
        else:
            # Somebody does, without the lock: its lock file was removed under it.
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            raise AlreadyRunningError(address, pid)
    os.unlink(address.path)


def _identity(path: str) -> tuple[int, int] | None:
    """Which file lies at *path* (links are not followed), None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """The process's umask, for as long as no other thread can run."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
