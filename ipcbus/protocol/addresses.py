"""Addresses of a bus: ``unix:PATH`` and ``tcp:127.0.0.1:PORT``, and where a named bus lives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ProtocolError
from .failures import BusError
from .topics import check_group

SYSTEM_RUNTIME_DIR = "/run/ipcbus"  #: where the system's bus listens, as ``system.sock``; only root makes it
BUS_SECRET = "default"  #: H-14: what the bus's own secret is called, among others that it may have
DEFAULT_BUS = "default"  #: the bus of ``connect()`` and ``ipcbusd`` without a name

#: sun_path of Linux holds 108 bytes with the terminating zero
UNIX_PATH_MAX_BYTES = 107

_TCP = re.compile(r"(?:(\d{1,3}(?:\.\d{1,3}){3}|localhost)|\[([0-9a-fA-F:]+)\]):(\d{1,5})", re.ASCII)
_BYTES = frozenset(map(str, range(256)))


class AddressError(BusError, ValueError):
    """An address that cannot be used; the text says why and what to write instead."""

    what = "connect"
    hint = "Write unix:/path or tcp:127.0.0.1:port, or give the name of a bus."


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port on loopback; port 0 lets the kernel choose (for listeners only)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{endpoint(self.host, self.port)}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """``unix:/path`` or ``tcp:127.0.0.1:4222`` (``[::1]``); raises AddressError with the reason and the way out."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        if len(rest.encode(errors="surrogateescape")) > UNIX_PATH_MAX_BYTES:
            raise AddressError(f"{text!r}: a Unix socket's path has at most {UNIX_PATH_MAX_BYTES} bytes; choose a shorter one", who=text)
        if "\0" in rest or not rest.startswith("/"):
            raise AddressError(f"{text!r}: give an absolute path, as in unix:/run/ipcbus/default.sock", who=text)
        return UnixAddress(rest)
    if scheme == "tcp":
        found = _TCP.fullmatch(rest)
        if found is None:
            raise AddressError(f"{text!r}: give a loopback address and a port, as in tcp:127.0.0.1:4222", who=text)
        host = "127.0.0.1" if found[1] == "localhost" else found[1] or found[2]
        port = int(found[3])
        if port > 65535:
            raise AddressError(f"{text!r}: port {port} is over 65535", who=text)
        if not is_loopback(host):
            raise AddressError(
                f"{text!r}: {host} is not loopback. ipcbus serves one machine and never goes beyond it; use tcp:127.0.0.1:PORT",
                who=text,
            )
        return TcpAddress(host, port)
    raise AddressError(f"{text!r} is no address: use unix:/absolute/path or tcp:127.0.0.1:PORT", who=text)


def endpoint(host: str, port: int) -> str:
    """An end of a TCP connection as the proof writes it (H-5)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a numeric *host* is 127.0.0.0/8 (each part 0–255) or ::1.

    A part with a zero before it is none: the C library takes it for octal (127.0.0.010 is 127.0.0.8), and what then is no number,
    127.0.0.09, for a name that it looks up, which may lead anywhere.
    """
    if ":" in host:
        return host == "::1"
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part in _BYTES for part in parts)


def check_bus_name(bus: str) -> None:
    """Raise AddressError unless *bus* can be a bus's name: one file name of A-Z a-z 0-9 _ - and dots."""
    try:
        check_group(bus)
    except ProtocolError as error:
        raise AddressError(f"bus name {bus!r}: use A-Z a-z 0-9 _ - with '.' between tokens", who=bus) from error


def default_address(runtime_dir: str, bus: str = DEFAULT_BUS) -> UnixAddress:
    """Where the bus named *bus* listens: ``RUNTIME_DIR/BUS.sock``."""
    check_bus_name(bus)
    path = f"{runtime_dir}/{bus}.sock"
    parse_address(f"unix:{path}")
    return UnixAddress(path)


def default_secret_path(runtime_dir: str, bus: str = DEFAULT_BUS) -> str:
    """Where the secret of the bus named *bus* lies (H-6): ``RUNTIME_DIR/BUS.secret``."""
    check_bus_name(bus)
    return f"{runtime_dir}/{bus}.secret"


def check_identity(identity: str) -> None:
    """Raise AddressError unless a secret can be called *identity* (H-14)."""
    try:
        check_group(identity)
    except ProtocolError as error:
        raise AddressError(f"identity {identity!r:.150}: use A-Z a-z 0-9 _ - with '.' between tokens", who=identity[:150]) from error
