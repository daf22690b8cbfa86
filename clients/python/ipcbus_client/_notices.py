"""What a stream says of itself, at its place among the messages, where ``subscribe(…, notices=True)`` asked for it: that messages were
lost, or may have been, or wait at the bus. Pure values.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Reconnected(NamedTuple):
    """The connection was lost before this place in the stream and is back after it; messages between may have been missed, which nobody
    could count. Several without a message between them are one.
    """

    epoch: int  #: what ``bus.epoch`` is from here on
    restarted: bool  #: it is another bus (incarnation) than the one before: it forgot what it kept and its counters
    pattern: str  #: the subscription's


class Lost(NamedTuple):
    """*count* messages are missing at this place, as far as they could be counted. Several without a message between them are one."""

    count: int  # type: ignore[assignment]  # the protocol's word; a tuple's method of this name is no loss
    why: str  #: the bus's word (``too_slow``, ``replaced``, ``expired``, ``over_quota``, …), or ``inbox_full``; of several the last
    pattern: str  #: the subscription's


class Lagging(NamedTuple):
    """*count* messages of *bytes* bytes wait at the bus for the subscription, more than its soft limit: its policy will act unless they
    are read. Said again, with *dropping*, when messages begin to be dropped for that. It is over with the next CaughtUp. Of many of both
    without a message between them the last is there.
    """

    bytes: int
    count: int  # type: ignore[assignment]
    dropping: bool
    pattern: str  #: the subscription's


class CaughtUp(NamedTuple):
    """Nothing waits at the bus for the subscription any more, after a Lagging (or the connection ended: then a Reconnected follows);
    *lost* messages were dropped meanwhile.
    """

    lost: int
    pattern: str  #: the subscription's


class Snapshot(NamedTuple):
    """For a Watch only, which shows it to nobody: the bus accepted the subscription, on the connection of *epoch*, and of the lane's
    messages on it the first *retained* are what it keeps (L-8).
    """

    epoch: int
    retained: int


Notice = Reconnected | Lost | Lagging | CaughtUp | Snapshot
#: Those of which the last one counts: where it stands.
STANDINGS = (Lagging, CaughtUp)


def merged(earlier: Any, later: Notice) -> Notice:
    """One in the place of two of a kind."""
    if isinstance(later, Lost):
        return later._replace(count=earlier.count + later.count)
    if not isinstance(later, Reconnected):
        return later
    return later._replace(restarted=earlier.restarted or later.restarted)
