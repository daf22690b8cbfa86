"""Starting the user's bus where nothing listens: what to try, in which order. Pure; _starter.py does it.

One bus per user and address, whoever asks first: the installed socket unit where it is for this address, else a transient service of the
user's manager, else a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ipcbus.protocol.addresses import AddressError

#: A bus that was started so ends when nobody was connected for so long: long enough for a program that is started again and again, short
#: enough that nothing is left of a user who is gone.
EXIT_IDLE_S = 60
SOCKET_UNIT = "ipcbusd.socket"
#: What a daemon may need to know of its user. Not what one program was told about its bus: the daemon serves all of them.
_ENVIRONMENT = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH",
        "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_STATE_HOME",
    }
)  # fmt: skip

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no", "")


class Order(NamedTuple):
    """Which bus to start."""

    path: str  #: of its Unix socket
    bus: str  #: its name, for the log and the unit


class Around(NamedTuple):
    """What the plan depends on."""

    manager: bool  #: a user manager can be reached
    systemctl: str | None  #: where the program is, if there is one
    systemd_run: str | None
    unit_socket: bool  #: the socket unit is installed
    default_path: str  #: what the socket unit listens on
    daemon: tuple[str, ...]  #: the command line of ipcbusd; empty where it cannot be found
    environment: Mapping[str, str]


class Step(NamedTuple):
    """One thing to try: a command, and whether the daemon is what it starts (else it says when it is done)."""

    what: str
    command: tuple[str, ...]
    detached: bool = False


class Skipped(NamedTuple):
    """One thing that is not tried, and why."""

    what: str
    why: str


def wanted(autostart: bool | None, environment: Mapping[str, str]) -> bool:
    """What connect(autostart=…) and, where that is None, $IPCBUS_AUTOSTART say. Raises AddressError."""
    if autostart is not None:
        if not isinstance(autostart, bool):
            raise TypeError(f"autostart={autostart!r}: it is True, False or None (what $IPCBUS_AUTOSTART says)")
        return autostart
    text = environment.get("IPCBUS_AUTOSTART", "").strip().lower()
    if text not in _YES + _NO:
        raise AddressError(f"$IPCBUS_AUTOSTART={text!r}: allowed are {', '.join(_YES)} and {', '.join(filter(None, _NO))}")
    return text in _YES


def plan(order: Order, around: Around) -> list[Step | Skipped]:
    """What to try, first to last, with what is left out and why."""
    return [_socket_unit(order, around), _transient(order, around), _detached(order, around)]


def environment_of_daemon(environment: Mapping[str, str]) -> dict[str, str]:
    """What a detached daemon gets of *environment*."""
    return {key: value for key, value in environment.items() if key in _ENVIRONMENT or key.startswith("LC_")}


def _socket_unit(order: Order, around: Around) -> Step | Skipped:
    what = f"the user's {SOCKET_UNIT}"
    if not around.manager:
        return Skipped(what, "no systemd user manager can be reached")
    if around.systemctl is None:
        return Skipped(what, "there is no systemctl")
    if order.path != around.default_path:
        return Skipped(what, f"it listens on {around.default_path}")
    if not around.unit_socket:
        return Skipped(what, "it is not installed")
    return Step(what, (around.systemctl, "--user", "start", SOCKET_UNIT))


def _transient(order: Order, around: Around) -> Step | Skipped:
    what = "a transient user service"
    if not around.manager:
        return Skipped(what, "no systemd user manager can be reached")
    if around.systemd_run is None:
        return Skipped(what, "there is no systemd-run")
    if not around.daemon:
        return Skipped(what, "ipcbusd is not installed")
    path = [f"--setenv=PYTHONPATH={around.environment['PYTHONPATH']}"] if around.environment.get("PYTHONPATH") else []
    options = ("--user", "--quiet", "--collect", f"--unit=ipcbusd-{order.bus}", "--working-directory=/", "--property=UMask=0077", *path)
    return Step(what, (around.systemd_run, *options, "--", *_command(order, around)))


def _detached(order: Order, around: Around) -> Step | Skipped:
    what = "a process of its own"
    if not around.daemon:
        return Skipped(what, "ipcbusd is not installed")
    return Step(what, _command(order, around), detached=True)


def _command(order: Order, around: Around) -> tuple[str, ...]:
    return (*around.daemon, "--bus", order.bus, "--listen", f"unix:{order.path}", "--exit-idle", str(EXIT_IDLE_S))
