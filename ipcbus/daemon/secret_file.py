"""The secrets of TCP listeners (H-6, H-14): files of 32 random bytes that prove who may connect, and as whom.

Owns how they are made, found and checked. Must not know what they are compared with (``protocol.auth`` does).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Collection

from ..protocol.addresses import BUS_SECRET, AddressError, check_identity
from ..protocol.auth import Secret, same_proof
from ..protocol.limits import SECRET_BYTES
from .directories import prepare_directory
from .limits import SECRETS_MAX
from .places import PlaceError

SUFFIX = ".secret"


def load_secrets(path: str, directory: str | None, *, directory_mode: int = 0o700) -> dict[str, Secret]:
    """The bus's own secret from *path*, where it is made if it is missing, and those of others from the files NAME.secret in *directory*.

    A directory that has to be made gets *directory_mode*, for sockets may lie beside the secret. Raises PlaceError for what cannot be kept,
    or was not kept, secret.
    """
    secrets = {BUS_SECRET: _own_secret(path, directory_mode)}
    if directory is None:
        return secrets
    prepare_directory(directory, private=True)
    _add_all(secrets, directory, path)
    return secrets


def check_secrets(path: str, directory: str | None, *, directory_mode: int = 0o700) -> None:
    """Raise PlaceError for what `load_secrets` would not take, and make nothing: what is missing the bus makes at its start.

    To root what belongs to somebody else says nothing: it may be that user's bus.
    """
    secrets: dict[str, Secret] = {}
    if _is_to_be_checked(path):
        prepare_directory(os.path.dirname(path), private=directory_mode == 0o700)
        secrets[BUS_SECRET] = _open(path, (os.geteuid(),))
    if directory is not None and _is_to_be_checked(directory):
        prepare_directory(directory, private=True)
        _add_all(secrets, directory, path)


def _is_to_be_checked(path: str) -> bool:
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PlaceError(f"{path}: {error.strerror}") from error
    return os.geteuid() != 0 or owner == 0


def _add_all(secrets: dict[str, Secret], directory: str, path: str) -> None:
    """Read what lies in *directory*, but for the bus's own at *path*."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX) and name[0] != ".")
    except OSError as error:
        raise PlaceError(f"{directory}: {error.strerror}") from error
    if len(names) > SECRETS_MAX:
        raise PlaceError(f"{directory} has {len(names)} secrets, more than {SECRETS_MAX}: remove those that nobody uses")
    for name in names:
        place = os.path.join(directory, name)
        if os.path.realpath(place) != os.path.realpath(path):
            _add(secrets, name.removesuffix(SUFFIX), place)


def _add(secrets: dict[str, Secret], name: str, path: str) -> None:
    """Read the secret called *name*, which must not be the same as another: each of the two could say that it is the other."""
    try:
        check_identity(name)
    except AddressError as error:
        raise PlaceError(f"{path}: {error}") from error
    if name == BUS_SECRET:
        raise PlaceError(f"{path}: {name!r} is what the bus's own secret is called; give this one another name")
    found = _open(path, (os.geteuid(), 0))
    for other, secret in secrets.items():
        if same_proof(secret, found):
            raise PlaceError(f"{path} holds the same secret as that of {other!r}, so each could say that it is the other: make a new one")
    secrets[name] = found


def _own_secret(path: str, directory_mode: int) -> Secret:
    # On a system bus everybody has to get to the socket that lies beside it.
    prepare_directory(os.path.dirname(path), directory_mode, private=directory_mode == 0o700)
    try:
        if not os.path.lexists(path) or os.path.lexists(_draft(path)):
            _create(path)
    except OSError as error:
        raise _refused(error.filename or path, error) from error
    return _open(path, (os.geteuid(),))


def _open(path: str, owners: Collection[int]) -> Secret:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        return _read(path, descriptor, owners)
    finally:
        os.close(descriptor)


def _refused(path: str, error: OSError) -> PlaceError:
    return PlaceError(f"secret file {path}: {'it is a symbolic link' if error.errno == errno.ELOOP else error.strerror}")


def _read(path: str, descriptor: int, owners: Collection[int]) -> Secret:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise PlaceError(f"secret file {path} is not a regular file")
    if found.st_uid not in owners:
        raise PlaceError(f"secret file {path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PlaceError(f"secret file {path} has mode {mode}: others may have read it. Remove it, and {_way_out(path)}")
    secret = os.read(descriptor, SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise PlaceError(f"secret file {path} does not hold {SECRET_BYTES} bytes. Remove it, and {_way_out(path)}")
    return Secret(secret)


def _way_out(path: str) -> str:
    return f"make a new one: (umask 077; head -c {SECRET_BYTES} /dev/urandom > {path}). The bus makes its own by itself"


def _draft(path: str) -> str:
    return f"{path}.new"


def _create(path: str) -> None:
    """Write a new secret beside *path* and link it there: whoever sees the name sees all 32 bytes, and what is there stays.

    Who makes it holds the draft's lock, so that two daemons agree on one secret, and a draft without one was left by a daemon that was
    killed: it is used by the next, and none stays.
    """
    draft = _draft(path)
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise PlaceError(f"{draft} is not a file that only uid {os.geteuid()} can read: remove it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # another daemon's for milliseconds: nobody else can open the file
            if not _is_at(draft, found):
                continue  # it was the draft of another, who is done
            if not os.path.lexists(path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, os.urandom(SECRET_BYTES))
                with contextlib.suppress(FileExistsError):  # somebody put one there meanwhile
                    os.link(draft, path)
            os.unlink(draft)
            return
        finally:
            os.close(descriptor)


def _is_at(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), file)
    except FileNotFoundError:
        return False
