"""Directories for sockets and secrets: made where they are missing, and used only where nobody else can put files there or change the way
to them.
"""

from __future__ import annotations

import os
import stat

from .places import PlaceError
from .trusted_files import check_way


def prepare_directory(path: str, mode: int = 0o700, *, private: bool = False) -> None:
    """Make *path* with *mode* where missing, its parents too, and raise PlaceError unless nobody but us and root can put files into it,
    or replace it, or anything on the way to it, by what is not ours. Nothing is made in a directory of somebody else.

    With *private* nobody else may even enter it.
    """
    try:
        _make(path, mode)
        _check(path, private)
        check_way(path)
    except OSError as error:
        raise PlaceError(f"{error.filename or path}: {error.strerror}") from error


def _make(path: str, mode: int) -> None:
    if os.path.lexists(path):
        check_way(path)
        return
    _make(os.path.dirname(path), mode)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        check_way(path)  # another daemon made it a moment ago, or a stranger
        return
    if mode != 0o700:  # the umask must not take from it
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def _check(path: str, private: bool) -> None:
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise PlaceError(f"{path} is not a directory")
    if found.st_uid not in (os.geteuid(), 0):
        raise PlaceError(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()} or root: use a directory of your own")
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    if found.st_mode & stat.S_ISVTX and found.st_mode & 0o022:  # it is for everybody's files, and has to stay so
        raise PlaceError(f"{path} has mode {mode}, so others can put files into it: use a directory of your own below it")
    if found.st_mode & 0o022:
        raise PlaceError(f"{path} has mode {mode}, so others could replace what is in it: chmod go-w {path}, or use another directory")
    if private and found.st_mode & 0o077:
        raise PlaceError(f"{path} has mode {mode}, and what is in it is for its owner alone: chmod 700 {path}, or use another directory")
