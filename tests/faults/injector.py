"""One call of a kind fails, at the Nth time that the daemon makes it.

The seams are the functions that the daemon's modules call: methods of sockets and of each poller, and functions of `os`, `fcntl` and
others. They are wrapped for the daemon's thread only, in a process made for this (__main__.py); nothing of the daemon knows of it. Memory
fails where C code allocates on behalf of the bus: a profile function raises before the Nth such call.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import resource
import select
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ipcbus

#: What a kind may fail with; the first is the one of an ordinary run. ``short``: the kernel takes one byte only.
KINDS: dict[str, tuple[str, ...]] = {
    "recv": ("ECONNRESET", "EAGAIN", "ENOBUFS", "ENOMEM", "ETIMEDOUT", "memory"),
    "send": ("EPIPE", "short", "EAGAIN", "ECONNRESET", "ENOBUFS", "memory"),
    "sendmsg": ("EPIPE", "short", "EAGAIN", "ENOBUFS", "memory"),
    "accept": ("ECONNABORTED", "EMFILE", "ENFILE", "ENOMEM", "EPERM", "EAGAIN", "memory"),
    "socket": ("EMFILE", "ENOBUFS", "memory"),
    "socket.socketpair": ("EMFILE", "memory"),
    "bind": ("EADDRINUSE", "EACCES", "ENOSPC"),
    "listen": ("EADDRINUSE",),
    "connect": ("ECONNREFUSED", "EAGAIN"),
    "shutdown": ("ENOTCONN",),
    "close": ("EIO",),
    "setblocking": ("EIO", "memory"),
    "setsockopt": ("ENOBUFS", "EINVAL"),
    "getsockopt": ("ENOBUFS", "memory"),
    "getsockname": ("ENOBUFS",),
    "getpeername": ("ENOTCONN", "ENOBUFS"),
    "epoll.create": ("EMFILE", "memory"),
    "epoll.register": ("ENOSPC", "ENOMEM", "memory"),
    "epoll.modify": ("ENOMEM", "ENOENT", "memory"),
    "epoll.unregister": ("ENOENT", "ENOMEM", "memory"),
    "epoll.poll": ("EINTR", "memory"),
    "poll.register": ("memory",),
    "poll.modify": ("ENOENT", "memory"),
    "poll.unregister": ("memory",),
    "poll.poll": ("EINTR", "ENOMEM", "memory"),
    "select.select": ("EINTR", "ENOMEM", "memory"),
    "select.poll": ("ENOMEM", "memory"),  #: of one descriptor: whether a connection hung up, whether the log can be written
    "os.open": ("EMFILE", "ENOSPC", "EACCES"),
    "os.close": ("EIO",),
    "os.lstat": ("EACCES", "EIO"),
    "os.stat": ("EACCES", "EIO"),
    "os.fstat": ("EIO",),
    "os.chmod": ("EPERM", "EROFS"),
    "os.chown": ("EPERM", "EROFS"),
    "os.mkdir": ("EACCES", "ENOSPC", "EEXIST"),
    "os.listdir": ("EMFILE", "EACCES"),
    "os.urandom": ("ENOSYS",),
    "os.unlink": ("EPERM", "EROFS"),
    "os.link": ("EMLINK", "ENOSPC"),
    "os.write": ("ENOSPC", "EPIPE", "EAGAIN"),
    "os.read": ("EIO",),
    "os.pread": ("EIO",),
    "os.pwrite": ("ENOSPC",),
    "os.ftruncate": ("EIO",),
    "builtins.open": ("EMFILE", "ENFILE", "EACCES"),
    "fcntl.flock": ("EAGAIN", "ENOLCK"),
    "resource.setrlimit": ("EPERM",),
    "memory": ("memory",),  #: wherever the daemon's own modules allocate
    "memory.bus": ("memory",),  #: and wherever the broker and the protocol do: in the middle of a change, which nothing takes back
}

#: What allocates, of the functions and methods in C that the bus calls.
_ALLOCATES = frozenset({
    "recv", "send", "sendmsg", "accept", "join", "append", "appendleft", "extend", "add", "setdefault", "update", "insert", "heappush",
    "unpack", "unpackb", "unpack_from", "pack", "feed", "encode", "decode", "to_bytes", "from_bytes", "split", "partition", "fullmatch",
    "sorted", "poll", "register", "modify", "getsockopt", "getsockname", "getpeername", "copy", "format", "digest", "hexdigest", "iter",
})  # fmt: skip
#: Kinds that count while the daemon serves: without memory at the start an interpreter ends with a traceback, as any does.
MEMORY = frozenset({"memory", "memory.bus"})
_HOME = str(Path(ipcbus.__file__).parent)
_METHODS = ("recv", "send", "sendmsg", "accept", "bind", "listen", "connect", "shutdown", "setblocking", "setsockopt", "getsockopt",
            "getsockname", "getpeername")  # fmt: skip
_MODULES = {"builtins": builtins, "fcntl": fcntl, "os": os, "resource": resource, "socket": socket}
_POLLERS: dict[str, Any] = {"epoll": selectors.EpollSelector, "poll": selectors.PollSelector}
_AFTER = frozenset({"close", "os.close"})  #: done before it fails, as the kernel does it


class Injector:
    """Counts the calls of one kind in the thread that made it, and has the Nth fail."""

    def __init__(self, kind: str, error: str, at: int) -> None:
        self.kind = kind
        self.error = error
        self.at = at
        self.count = 0
        self.where = ""  #: who called what failed
        self.enabled = True
        self._thread = threading.get_ident()
        self._within = (f"{_HOME}/daemon/",) if kind == "memory" else (f"{_HOME}/broker/", f"{_HOME}/protocol/")

    @property
    def poller(self) -> str:
        """Which of the daemon's pollers makes calls of this kind."""
        family = self.kind.partition(".")[0]
        return "select" if self.kind == "select.select" else family if family in _POLLERS else "epoll"

    @property
    def failed(self) -> bool:
        """Whether there was an Nth call."""
        return self.count >= self.at > 0

    def due(self) -> bool:
        """One more call: whether it is to fail."""
        if not self.enabled or threading.get_ident() != self._thread:
            return False
        self.count += 1
        if self.count != self.at:
            return False
        frame: FrameType | None = sys._getframe(2)
        places: list[str] = []
        while frame is not None and len(places) < 4:
            if frame.f_code.co_filename.startswith(_HOME):
                places.append(f"{frame.f_code.co_filename[len(_HOME) + 1 :]}:{frame.f_lineno}")
            frame = frame.f_back
        self.where = " < ".join(places)
        return True

    def fail(self) -> None:
        """Raise what was asked for."""
        if self.error == "memory":
            raise MemoryError
        number = getattr(errno, self.error)
        raise OSError(number, os.strerror(number))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """*real*, which fails at the Nth time."""

        def call(*arguments: Any, **options: Any) -> Any:
            if name != self.kind or not self.due():
                return real(*arguments, **options)
            if self.error == "short":
                data = arguments[1] if name == "send" else b"".join(arguments[1])
                return socket.socket.__mro__[1].send(arguments[0], bytes(data)[:1])  # type: ignore[attr-defined]
            if name in _AFTER:
                real(*arguments, **options)
            return self.fail()

        return call

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """For sys.setprofile: what it raises, the call that is about to happen raises."""
        if event == "c_call" and argument.__name__ in _ALLOCATES and frame.f_code.co_filename.startswith(self._within) and self.due():
            raise MemoryError


class _Poller:
    """An object of epoll or poll whose calls fail where they are told to."""

    def __init__(self, real: Any, family: str, injector: Injector) -> None:
        self._real = real
        for name in ("register", "modify", "unregister", "poll"):
            setattr(self, name, injector.wrap(f"{family}.{name}", getattr(real, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextmanager
def injecting(injector: Injector) -> Iterator[None]:
    """Put the wrappers in, and take them out again."""
    undo: list[Callable[[], None]] = []
    kind = injector.kind
    family, _, name = kind.partition(".")

    def put(owner: Any, attribute: str, new: Any) -> None:
        own, before = attribute in vars(owner), getattr(owner, attribute)
        setattr(owner, attribute, new)
        undo.append(lambda: setattr(owner, attribute, before) if own else delattr(owner, attribute))

    if kind in _METHODS or kind == "close":
        put(socket.socket, kind, injector.wrap(kind, getattr(socket.socket, kind)))
    elif kind == "socket":
        put(socket.socket, "__init__", _made(injector, socket.socket.__init__))
    elif family in _POLLERS:
        made = _POLLERS[family]._selector_cls
        create = injector.wrap(f"{family}.create", lambda: _Poller(made(), family, injector))
        put(_POLLERS[family], "_selector_cls", staticmethod(create))
    elif kind == "select.select":
        put(selectors.SelectSelector, "_select", staticmethod(injector.wrap(kind, select.select)))
    elif kind == "select.poll":
        one = select.poll
        put(select, "poll", lambda: _Poller(one(), family, injector))
    elif kind in MEMORY:
        sys.setprofile(injector.profile)
        undo.append(lambda: sys.setprofile(None))
    else:
        put(_MODULES[family], name, injector.wrap(kind, getattr(_MODULES[family], name)))
    try:
        yield
    finally:
        for back in reversed(undo):
            back()


def _made(injector: Injector, real: Callable[..., None]) -> Callable[..., None]:
    """The constructor of sockets: what wraps a descriptor that is there already makes none."""

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        if options.get("fileno") is None and (len(arguments) < 4 or arguments[3] is None) and injector.due():
            injector.fail()
        real(self, *arguments, **options)

    return init
