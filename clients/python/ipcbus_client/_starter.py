"""Starting the user's bus where nothing listens: doing what _autostart.py plans. Imported only where it comes to that.

Who starts holds a lock beside the socket until the bus listens; everybody else goes on trying to connect meanwhile. The daemon has a lock
of its own for life, so that also without this one there could not be two: this one saves the attempts. Called without any lock of ours, on
a thread that may wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import time

from ._autostart import SOCKET_UNIT, Around, Order, Skipped, Step, environment_of_daemon, plan
from ._discovery import default_bus_path
from ._errors import ConnectError
from ._trust import is_privileged

#: How long one step may take until the bus listens: a cold start of an interpreter on a machine that has just booted.
STEP_S = 15.0
_COMMAND_S = 10.0  #: for systemctl and systemd-run to come back
_LOOK_S = 0.01  #: between two looks whether it listens
_LOG_MAX_BYTES = 1_048_576  #: a detached daemon's log is begun anew above that
_TAIL_BYTES = 2000


def start(order: Order) -> None:
    """Have the bus listen, or leave that to who is at it already. Raises ConnectError where nothing worked."""
    if is_privileged():
        text = "none is started: this program has rights that whoever started it may not have, and that one's environment is not for a bus"
        raise ConnectError(f"no bus at unix:{order.path}, and {text}", reason="autostart")
    lock = _lock(order)
    if lock is None:
        return
    try:
        if listens(order.path):
            return
        tried = []
        for step in plan(order, look_around()):
            why = step.why if isinstance(step, Skipped) else _try(step, order)
            if why is None:
                return
            tried.append(f"{step.what}: {why}")
        text = f"no bus at unix:{order.path}, and none could be started. Tried, in order: {'; '.join(tried)}"
        raise ConnectError(text, reason="autostart")
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # (a child that was forked meanwhile has a copy, which would keep it)
        os.close(lock)


def look_around() -> Around:
    """What there is on this machine for this user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    manager = bool(runtime) and os.path.exists(f"{runtime}/systemd/private")
    systemctl = shutil.which("systemctl") if manager else None
    return Around(
        manager=manager,
        systemctl=systemctl,
        systemd_run=shutil.which("systemd-run") if manager else None,
        unit_socket=systemctl is not None and _is_installed(systemctl),
        default_path=default_bus_path(),
        daemon=_daemon(),
        environment=_environment(),
    )


def listens(path: str) -> bool:
    """Whether somebody listens on a Unix socket, without bothering them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # a datagram socket cannot connect to a listening one, but hears whether it is there
        return True


def _lock(order: Order) -> int | None:
    """The lock of who starts the bus; None where another process has it. Raises ConnectError."""
    directory = os.path.dirname(order.path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        owner = os.stat(directory).st_uid
        if owner != os.geteuid():
            raise ConnectError(
                f"no bus at unix:{order.path}, and none is started there: {directory} belongs to uid {owner}, and this program runs as uid "
                f"{os.geteuid()}. A user's bus is started by that user only",
                reason="autostart",
            )
        descriptor = os.open(f"{order.path}.start", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except ConnectError:
        raise
    except OSError as error:
        text = f"no bus at unix:{order.path}, and none can be started: {error.filename or directory}: {error.strerror}"
        raise ConnectError(text, reason="autostart") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConnectError(f"{order.path}.start is not a regular file; remove it", reason="autostart")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try(step: Step, order: Order) -> str | None:
    """Do it and wait until the bus listens; why it does not, or None."""
    try:
        if step.detached:
            return _detach(step, order)
        done = subprocess.run(
            step.command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return None if listens(order.path) else f"{step.command[0]} did not come back within {_COMMAND_S:g} s"
    except OSError as error:
        return f"{step.command[0]}: {error.strerror}"
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-_TAIL_BYTES:]
        return None if listens(order.path) else f"{os.path.basename(step.command[0])} ended with {done.returncode}: {said or 'no word'}"
    deadline = time.monotonic() + STEP_S
    while not listens(order.path):
        if time.monotonic() >= deadline:
            return f"{os.path.basename(step.command[0])} succeeded, but nothing listened within {STEP_S:g} s"
        time.sleep(_LOOK_S)
    return None


def _detach(step: Step, order: Order) -> str | None:
    """A process in a session of its own, that is nobody's child: a shell starts it in the background and is gone."""
    log, log_path = _open_log(order.bus)
    ready, write = os.pipe()
    try:
        begin = os.lseek(log, 0, os.SEEK_END) if log_path else 0
        try:
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *step.command, "--ready-fd", str(write)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,), close_fds=True, start_new_session=True,
                cwd="/", env=environment_of_daemon(_environment()), umask=0o077, timeout=_COMMAND_S, check=True,
            )  # fmt: skip
        finally:
            os.close(write)
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        if not poller.poll(STEP_S * 1000):
            return None if listens(order.path) else f"it did not listen within {STEP_S:g} s{_where(log_path)}"
        if os.read(ready, 4096) or listens(order.path):
            return None
        return f"it ended at once: {_tail(log_path, begin)}" if log_path else "it ended at once, and its log could not be opened"
    except subprocess.SubprocessError as error:
        return f"/bin/sh could not start it: {error}"
    finally:
        os.close(ready)
        os.close(log)


def _open_log(bus: str) -> tuple[int, str]:
    """The log of a detached daemon, and where it is; /dev/null and no place where there can be none."""
    import platformdirs

    with contextlib.suppress(OSError):
        directory = platformdirs.user_state_dir("ipcbus", appauthor=False)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, f"{bus}.log")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_size > _LOG_MAX_BYTES:
            os.ftruncate(descriptor, 0)
        return descriptor, path
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), ""


def _tail(path: str, begin: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            text = file.read()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    return (" ".join(text.split()) or "it said nothing") + _where(path)


def _where(path: str) -> str:
    return f" (log: {path})" if path else ""


def _is_installed(systemctl: str) -> bool:
    """Whether the user's manager knows the socket unit."""
    command = [systemctl, "--user", "cat", SOCKET_UNIT]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _environment() -> dict[str, str]:
    """Ours, as it means the same in another directory."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path)}


def _daemon() -> tuple[str, ...]:
    """The command line of the daemon that belongs to this library, else of the one on the path."""
    executable = sys.executable
    if executable and os.path.basename(executable).startswith("python"):
        return (executable, "-P", "-m", "ipcbus.cli.daemon")
    found = shutil.which("ipcbusd")
    return (found,) if found else ()
