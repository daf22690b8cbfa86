"""Whom a rule concerns, compared: whether everybody of one kind is of another, whether a kind has anybody in it at all."""

from __future__ import annotations

from .rules import Named, Who, fits

_OVERFLOW = 65534  # overflowuid and overflowgid of the kernel


def nobody(who: Who) -> str:
    """Why no subject can be one of these, or ""."""
    local = (
        ("uid", who.uids), ("gid", who.gids), ("user", who.users),
        ("group", who.groups), ("unit", who.units), ("user_unit", who.user_units),
    )  # fmt: skip
    asked = [key for key, values in local if values is not None]
    if who.identities is not None and asked:
        return f"who comes by TCP has an identity but no {asked[0]}, and who comes by a Unix socket has no identity"
    for key, names in (("user", who.users), ("group", who.groups)):
        if names is not None and all(named.number is None for named in names):
            return f"the system knows no such {key}"
    if who.uids is not None and who.users is not None and not _uids(who):
        return "its users have other uids than it asks for"
    return ""


def strangers(who: Who) -> bool:
    """Whether these may be people whom nobody means: to the bus, everybody of another user namespace is 65534 (nobody, nogroup)."""
    numbers = (who.uids, _numbers(who.users), who.gids, _numbers(who.groups))
    return any(_OVERFLOW in given for given in numbers if given is not None)


def is_part(part: Who, whole: Who) -> bool:
    """Whether everybody whom *part* concerns is certain to be concerned by *whole*, too."""
    uids = _uids(part)
    gids = [frozenset(gids) for gids in (part.gids, _numbers(part.groups)) if gids is not None]
    return (
        (whole.uids is None or (uids is not None and uids <= whole.uids))
        and (whole.users is None or (uids is not None and uids <= (_numbers(whole.users) or frozenset())))
        and all(wanted is None or any(have <= wanted for have in gids) for wanted in (whole.gids, _numbers(whole.groups)))
        and _covers(part.units, whole.units)
        and _covers(part.user_units, whole.user_units)
        and (whole.identities is None or (part.identities is not None and set(part.identities) <= set(whole.identities)))
    )


def _uids(who: Who) -> frozenset[int] | None:
    """The uids that it may be; None: any, or none at all."""
    users = _numbers(who.users)
    if who.uids is None or users is None:
        return who.uids if users is None else users
    return who.uids & users


def _numbers(names: tuple[Named, ...] | None) -> frozenset[int] | None:
    return None if names is None else frozenset(named.number for named in names if named.number is not None)


def _covers(part: tuple[str, ...] | None, whole: tuple[str, ...] | None) -> bool:
    """Whether each unit that fits *part* fits *whole*."""
    return whole is None or (part is not None and all(any(_includes(wide, narrow) for wide in whole) for narrow in part))


def _includes(wide: str, narrow: str) -> bool:
    if "*" not in narrow:
        return fits(wide, narrow)
    if "*" not in wide:
        return False
    (head, _, tail), (narrow_head, _, narrow_tail) = wide.partition("*"), narrow.partition("*")
    return narrow_head.startswith(head) and narrow_tail.endswith(tail)
