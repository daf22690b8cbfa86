"""Whom a policy judges: what the kernel says of a peer on a Unix socket, or what a peer on TCP proved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """One peer as the rules see it. None and "" are what is not known: no rule that asks for it applies then.

    On a Unix socket *identity* is ""; on TCP it is the name of the secret that was proved, and nothing else is known.
    """

    uid: int | None = None
    gid: int | None = None  #: the primary group
    groups: frozenset[int] = frozenset()  #: the supplementary ones
    unit: str = ""  #: systemd's system unit: "lights.service"
    user_unit: str = ""  #: the unit of the user's own manager below user@UID.service; its user chooses that name
    identity: str = ""  #: TCP only
    user: str = ""  #: the name of *uid*
    group: str = ""  #: the name of *gid*
