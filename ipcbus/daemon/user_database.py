"""Names of users and groups: the machine's user database, asked once for each and not again before a reload.

Owns the look-ups and what is remembered of them. A look-up may go over a network and take its time, so peers are looked up only where a
rule needs the name (``%u``, ``%g``).
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable

NAMES_MAX = 4096  #: remembered of users, and of groups; the oldest is forgotten


def uid_of(user: str) -> int | None:
    """The uid of the user named *user*, None where there is none."""
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return None


def gid_of(group: str) -> int | None:
    """The gid of the group named *group*, None where there is none."""
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return None


def user_of(uid: int) -> str:
    """The name of the user *uid*, "" where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def group_of(gid: int) -> str:
    """The name of the group *gid*, "" where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def groups_of(uid: int) -> tuple[int | None, frozenset[int]]:
    """The primary group and all groups that *uid* has when it logs in; (None, none) where there is no such user."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return None, frozenset()
    return user.pw_gid, frozenset(os.getgrouplist(user.pw_name, user.pw_gid))


class NameCache:
    """Names of users and groups, each looked up once. A new one every reload."""

    __slots__ = ("_groups", "_users")

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def user(self, uid: int) -> str:
        """The name of *uid*, "" where it has none."""
        return _look_up(self._users, user_of, uid)

    def group(self, gid: int) -> str:
        """The name of *gid*, "" where it has none."""
        return _look_up(self._groups, group_of, gid)


def _look_up(known: dict[int, str], ask: Callable[[int], str], number: int) -> str:
    name = known.get(number)
    if name is None:
        if len(known) >= NAMES_MAX:
            del known[next(iter(known))]
        name = known[number] = ask(number)
    return name
