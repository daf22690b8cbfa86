"""Where the daemon's files lie, and whether a directory is fit for a socket or a secret."""

from __future__ import annotations

import os
import stat
import warnings


class PlaceError(Exception):
    """A file or directory that the daemon does not trust or cannot use; the text says why and what to do."""


def runtime_dir() -> str:
    """The platform's runtime directory for ipcbus; it need not exist. Clients work it out in the same way. Raises PlaceError."""
    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set; the place it then names is checked below
        try:
            return platformdirs.user_runtime_dir("ipcbus", appauthor=False)
        except PermissionError as error:  # where it would fall back on a directory in /tmp that somebody else made
            raise PlaceError(str(error)) from error


def default_config_path() -> str:
    """Where the configuration of the user's daemon lies, if there is one."""
    import platformdirs

    return os.path.join(platformdirs.user_config_dir("ipcbus", appauthor=False), "ipcbusd.toml")


def prepare_directory(path: str) -> None:
    """Make *path* (mode 0700) with its parents where missing, and raise PlaceError unless nobody but us and root can put files into it.

    Its parent is checked too: who may rename a directory may replace it by one with another socket in it.
    """
    try:
        _make(path)
        for place, sticky_is_enough in ((path, False), (os.path.dirname(path), True)):
            _check(place, sticky_is_enough)
    except OSError as error:
        raise PlaceError(f"{error.filename or path}: {error.strerror}") from error


def _make(path: str) -> None:
    if os.path.isdir(path):
        return
    _make(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise  # otherwise another daemon made it a moment ago


def _check(path: str, sticky_is_enough: bool) -> None:
    found = os.stat(path)
    if found.st_uid not in (os.geteuid(), 0):
        raise PlaceError(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()} or root: use a directory of your own")
    if found.st_mode & 0o022 and not (sticky_is_enough and found.st_mode & stat.S_ISVTX):
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PlaceError(f"{path} has mode {mode}, so others could replace what is in it: chmod go-w {path}, or use another directory")
