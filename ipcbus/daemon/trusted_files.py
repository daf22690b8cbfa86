"""Files that say what the bus may do and who may do what on it: read only where nobody but root and the bus's user can have written them.

Owns the checks and the reading. Must not know what is in the files. A place is checked from the root down: who may write to a directory
may put another one, or a link, where the file was. What passes can be changed by nobody else afterwards either, so there is no race
between the look and the reading.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from .places import PlaceError

_OTHERS_MAY_WRITE = 0o022  #: an access list that lets somebody else write shows here too: as the group's rights


def read_trusted(path: str, *, max_bytes: int, uids: Collection[int] | None = None) -> bytes:
    """What is in the regular file *path*, *max_bytes* at most. *uids* may have written it (None: the bus's user and root).

    Raises PlaceError for a file that cannot be trusted or is too large, OSError for one that cannot be read.
    """
    owners = _owners(uids)
    check_way(os.path.dirname(path), owners)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PlaceError(f"{path} is a symbolic link, and none is followed: put the file itself there") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PlaceError(f"{path} is not a regular file")
        _check(path, found, owners)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise PlaceError(f"{path} has more than {max_bytes} bytes, which no such file needs: shorten it, or divide it")
    return content


def list_trusted(directory: str, *, suffix: str, uids: Collection[int] | None = None) -> list[str]:
    """The names in *directory* that end with *suffix* and are not hidden, in the order of their bytes; none where there is no directory.

    Raises PlaceError where somebody else could put a file into it, OSError where it cannot be read.
    """
    owners = _owners(uids)
    try:
        found = os.stat(directory)
    except FileNotFoundError:
        if os.path.islink(directory):
            raise  # there is one, and what it leads to has gone
        return []
    check_way(directory, owners)
    if found.st_mode & _OTHERS_MAY_WRITE:  # a sticky bit keeps others from replacing a file, not from adding one
        raise PlaceError(_others(directory, found))
    return sorted((name for name in os.listdir(directory) if name.endswith(suffix) and name[0] != "."), key=os.fsencode)


def _owners(uids: Collection[int] | None) -> frozenset[int]:
    return frozenset({0, *((os.geteuid(),) if uids is None else uids)})


def check_way(directory: str, owners: frozenset[int] | None = None) -> None:
    """Raise PlaceError unless each directory and link on the way to *directory*, itself included, can be replaced by *owners* only (None:
    the bus's user and root), OSError where there is no such directory.

    The root is left out: whoever owns it has everything below it. The kernel bounds how many links there are.
    """
    owners = _owners(owners)
    os.stat(directory or ".")
    place = ""
    for part in os.path.join(os.getcwd(), directory).split("/"):  # with its "..": what they mean depends on the links before them
        if part in ("", "."):
            continue
        place = f"{place}/{part}"
        found = os.lstat(place)
        if stat.S_ISLNK(found.st_mode):
            _check_owner(place, found, owners)
            check_way(os.path.join(os.path.dirname(place), os.readlink(place)), owners)
        elif found.st_mode & stat.S_ISVTX:  # others may write to it, but not replace what is not theirs
            _check_owner(place, found, owners)
        else:
            _check(place, found, owners)


def _check_owner(place: str, found: os.stat_result, owners: frozenset[int]) -> None:
    if found.st_uid not in owners:
        allowed = " or ".join(["root", *(f"uid {uid}" for uid in sorted(owners - {0}))])
        raise PlaceError(f"{place} belongs to uid {found.st_uid}, who could change what is there; it must belong to {allowed}")


def _check(place: str, found: os.stat_result, owners: frozenset[int]) -> None:
    _check_owner(place, found, owners)
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise PlaceError(_others(place, found))


def _others(place: str, found: os.stat_result) -> str:
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    return f"{place} has mode {mode}, so others could change what is there: chmod go-w {place}, or use another place"
