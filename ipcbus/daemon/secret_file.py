"""The secret file of TCP listeners (H-6): 32 random bytes that prove who may connect."""

from __future__ import annotations

import errno
import os
import stat

from ..protocol.limits import SECRET_BYTES
from .places import PlaceError, prepare_directory


def load_secret(path: str, directory_mode: int = 0o700) -> bytes:
    """The secret in *path*, which is made where it is missing. Raises PlaceError where it cannot be kept, or was not kept, secret.

    Its directory is made with *directory_mode*, for sockets may lie beside it.
    """
    prepare_directory(os.path.dirname(path), directory_mode)
    try:
        if not os.path.lexists(path):
            _create(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise PlaceError(f"secret file {path}: {why}") from error
    try:
        return _read(path, descriptor)
    finally:
        os.close(descriptor)


def _read(path: str, descriptor: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise PlaceError(f"secret file {path} is not a regular file")
    if found.st_uid != os.geteuid():
        raise PlaceError(f"secret file {path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PlaceError(f"secret file {path} has mode {mode}: others may have read it. Remove it, and the bus makes a new one")
    secret = os.read(descriptor, SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise PlaceError(f"secret file {path} does not hold {SECRET_BYTES} bytes. Remove it, and the bus makes a new one")
    return secret


def _create(path: str) -> None:
    """Write a new secret beside *path* and link it there: whoever sees the name sees all 32 bytes, the second to come keeps the first's."""
    draft = f"{path}.{os.getpid()}.new"
    try:
        os.unlink(draft)  # left by a daemon that was killed here and had our pid
    except FileNotFoundError:
        pass
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, os.urandom(SECRET_BYTES))
        os.link(draft, path)
    except FileExistsError:
        pass  # another daemon was faster
    finally:
        os.close(descriptor)
        os.unlink(draft)
