"""Where the bus is, what its secret is, and what this program is called: arguments, then the environment, then the platform's defaults."""

from __future__ import annotations

import os
import stat
import sys

from ipcbus.protocol.addresses import (
    BUS_SECRET,
    DEFAULT_BUS,
    Address,
    AddressError,
    TcpAddress,
    UnixAddress,
    check_bus_name,
    check_identity,
    default_address,
    default_secret_path,
    parse_address,
)
from ipcbus.protocol.limits import INFO_VALUE_MAX_BYTES, SECRET_BYTES

from . import _autostart
from ._autostart import Order
from ._errors import ConnectError
from ._trust import environment, is_privileged


def runtime_dir() -> str:
    """The directory of the user's buses: the platform's runtime directory for ``ipcbus``."""
    if is_privileged():
        return f"/run/user/{os.geteuid()}/ipcbus"  # not what $XDG_RUNTIME_DIR says
    import warnings  # here, both: they cost time at the start of a short program, and an address makes them superfluous

    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR it names another place and warns; the daemon looks there too
        return platformdirs.user_runtime_dir("ipcbus", appauthor=False)


def check_text(option: str, value: object) -> None:
    """Raise TypeError unless *value*, of an *option* of connect(), is a str or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{option}={value!r:.50}: it is a str, or None")


def find_address(address: str | None, bus: str | None) -> Address:
    """The address to connect to. Raises AddressError, or TypeError for what is no text.

    An explicit *address*, else the bus that was named, else ``$IPCBUS_ADDRESS``, else the bus of ``$IPCBUS_BUS`` or ``default``.
    """
    check_text("address", address)
    check_text("bus", bus)
    if address is not None:
        if bus is not None:
            raise AddressError("give an address or a bus's name, not both")
        return parse_address(address)
    if bus is None:
        text = environment().get("IPCBUS_ADDRESS")
        if text:
            return parse_address(text.partition(",")[0].strip())  # the daemon may listen on more than one
    return default_address(runtime_dir(), bus or environment().get("IPCBUS_BUS") or DEFAULT_BUS)


def find_order(found: Address, bus: str | None, autostart: bool | None) -> Order | None:
    """Which bus connect() may start where nothing listens at *found*, if any. Raises AddressError or TypeError."""
    if not _autostart.wanted(autostart, environment()):
        return None
    if not isinstance(found, UnixAddress):
        if autostart:
            raise AddressError(f"autostart=True: only a bus on a Unix socket can be started; run `ipcbusd --listen {found}` yourself")
        return None  # the environment speaks of whatever bus there is to start
    name, suffix = os.path.splitext(os.path.basename(found.path))
    try:
        check_bus_name(name)
    except AddressError:
        name = DEFAULT_BUS
    return Order(found.path, name if suffix == ".sock" else DEFAULT_BUS)


def default_bus_path() -> str:
    """Where the user's default bus listens."""
    return default_address(runtime_dir(), DEFAULT_BUS).path


def find_identity(identity: str | None) -> str:
    """Which of the secrets of a TCP bus this program has (H-14): "" for the bus's own. Raises AddressError for what is no name."""
    check_text("identity", identity)
    found = identity or environment().get("IPCBUS_IDENTITY") or BUS_SECRET
    check_identity(found)
    return "" if found == BUS_SECRET else found


def find_secret_path(secret_file: str | None, bus: str | None, identity: str = "") -> str:
    """The file with the secret of a TCP bus: the one that was named, else the bus's own (H-6), else beside it that of *identity*."""
    named = secret_file or environment().get("IPCBUS_SECRET_FILE")
    if named:
        return named
    own = default_secret_path(runtime_dir(), bus or environment().get("IPCBUS_BUS") or DEFAULT_BUS)
    return os.path.join(os.path.dirname(own), f"{identity}.secret") if identity else own


def read_secret(path: str) -> bytes:
    """The 32 bytes in *path*. Raises ConnectError, naming the file, where there is no secret."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would have us wait for its writer
        try:
            found = os.fstat(descriptor)
            secret = os.read(descriptor, SECRET_BYTES + 1) if stat.S_ISREG(found.st_mode) else None
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        text = f"there is no secret in {path}: name the bus's file with secret_file or $IPCBUS_SECRET_FILE"
        raise ConnectError(text, reason="secret", who=path) from error
    except OSError as error:
        raise ConnectError(f"cannot read the secret in {path}: {error.strerror}", reason="secret", who=path) from error
    if secret is None:
        raise ConnectError(f"{path} is not a regular file, so it is no bus's secret", reason="secret", who=path)
    if found.st_uid not in (0, os.geteuid()):
        text = f"{path} belongs to uid {found.st_uid}, who knows this secret: it must be ours (uid {os.geteuid()}) or root's"
        raise ConnectError(text, reason="secret", who=path)
    if found.st_mode & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        text = f"{path} has mode {mode}: others than its owner may know the secret or have put it there. Make it 0600, or make a new one"
        raise ConnectError(text, reason="secret", who=path)
    if len(secret) != SECRET_BYTES:
        raise ConnectError(f"{path} does not hold a bus's secret: it must have {SECRET_BYTES} bytes (H-6)", reason="secret", who=path)
    from ipcbus.protocol.auth import Secret  # here: it loads OpenSSL, which a program on a Unix socket does not need

    return Secret(secret)


def program_name() -> str:
    """What ``ipcbus peers`` shows for this program without a ``program`` argument."""
    return os.path.basename(sys.argv[0] if sys.argv else "") or "python"


def clip_program(program: str) -> str:
    """*program* as HELLO can carry it (H-1). Raises TypeError for what is no text."""
    check_text("program", program)
    return program.encode(errors="replace")[:INFO_VALUE_MAX_BYTES].decode(errors="ignore")


def is_tcp(address: Address) -> bool:
    """Whether connections to *address* need the proof."""
    return isinstance(address, TcpAddress)
