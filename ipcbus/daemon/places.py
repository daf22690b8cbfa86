"""Where the daemon's files lie, and whether a directory is fit for a socket or a secret."""

from __future__ import annotations

import os
import stat
import warnings

from ..protocol.addresses import SYSTEM_RUNTIME_DIR

SYSTEM_CONFIG_DIR = "/etc/ipcbus"
#: What packages ship lies in the second; a file of the same name in the first takes its place.
SYSTEM_POLICY_DIRS = (f"{SYSTEM_CONFIG_DIR}/policy.d", "/usr/lib/ipcbus/policy.d")
CONFIG_NAME, POLICY_NAME = "ipcbusd.toml", "policy.toml"


class PlaceError(Exception):
    """A file or directory that the daemon does not trust or cannot use; the text says why and what to do."""


def runtime_dir(kind: str) -> str:
    """The directory of sockets and secrets of buses of this *kind*; it need not exist. For the user's clients work it out in the same way.

    Raises PlaceError.
    """
    if kind == "system":
        return SYSTEM_RUNTIME_DIR
    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set; the place it then names is checked below
        try:
            return platformdirs.user_runtime_dir("ipcbus", appauthor=False)
        except PermissionError as error:  # where it would fall back on a directory in /tmp that somebody else made
            raise PlaceError(str(error)) from error


def config_dir(kind: str) -> str:
    """Where the configuration and the policy of a bus of this *kind* lie, if there are any."""
    if kind == "system":
        return SYSTEM_CONFIG_DIR
    import platformdirs

    return platformdirs.user_config_dir("ipcbus", appauthor=False)


def prepare_directory(path: str, mode: int = 0o700) -> None:
    """Make *path* with *mode* where missing, its parents too, and raise PlaceError unless nobody but us and root can put files into it.

    Its parent is checked too: who may rename a directory may replace it by one with another socket in it.
    """
    try:
        _make(path, mode)
        for place, sticky_is_enough in ((path, False), (os.path.dirname(path), True)):
            _check(place, sticky_is_enough)
    except OSError as error:
        raise PlaceError(f"{error.filename or path}: {error.strerror}") from error


def _make(path: str, mode: int) -> None:
    if os.path.isdir(path):
        return
    _make(os.path.dirname(path), mode)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise  # otherwise another daemon made it a moment ago
        return
    if mode != 0o700:  # the umask must not take from it
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def _check(path: str, sticky_is_enough: bool) -> None:
    found = os.stat(path)
    if found.st_uid not in (os.geteuid(), 0):
        raise PlaceError(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()} or root: use a directory of your own")
    if found.st_mode & 0o022 and not (sticky_is_enough and found.st_mode & stat.S_ISVTX):
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PlaceError(f"{path} has mode {mode}, so others could replace what is in it: chmod go-w {path}, or use another directory")
