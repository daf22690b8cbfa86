"""What subscribe() says about a subscription that lags behind: the policy, and the limits at which it acts (L-7, L-12). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ipcbus.protocol.limits import LANE_SECONDS_MAX, MAX_ID

#: What becomes of messages for a subscription that takes them too slowly.
POLICIES = ("block", "drop_oldest", "drop_newest", "latest", "disconnect")


class Limits(NamedTuple):
    """When a subscription lags, and when its policy acts; None is as the bus has it (limits.lane_… of its configuration), where that goes
    with what is said: a soft limit is no larger than the hard one.
    """

    soft: int | None = None  #: bytes that may wait before it lags: with ``block`` publishers are held from here on
    hard: int | None = None  #: bytes at which the policy acts at once (not with ``block``)
    seconds: float | None = None  #: how long it may lag before the policy acts


def check_policy(
    policy: str | None, limits: Limits | Mapping[str, Any] | None, group: str | None
) -> dict[str, int | float] | None:
    """The *limits* as the bus takes them, None where there are none. Raises ValueError or TypeError unless a subscription can have these
    and this *policy*.
    """
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy={policy!r:.50}: allowed are {', '.join(POLICIES)}, and None for what the bus does by itself")
    if policy == "disconnect" and group is not None:
        raise ValueError("policy='disconnect' is not for a group: its messages wait for all members")
    if limits is None:
        return None
    given = limits._asdict() if isinstance(limits, Limits) else limits
    if not isinstance(given, Mapping):
        raise TypeError(f"limits={limits!r:.80}: they are a Limits, or a mapping with {', '.join(Limits._fields)}")
    unknown = [key for key in given if key not in Limits._fields]
    if unknown:
        raise ValueError(f"limits have no {unknown[0]!r:.50}: there are {', '.join(Limits._fields)}")
    said = {key: value for key, value in given.items() if value is not None}
    for key, value in said.items():
        allowed = (int, float) if key == "seconds" else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise TypeError(f"limits: {key}={value!r:.50}: it is a number of {'seconds' if key == 'seconds' else 'bytes, and a whole one'}")
        least, most = (0, LANE_SECONDS_MAX) if key == "seconds" else (1, MAX_ID)
        if not least <= value <= most:  # (a NaN is not)
            raise ValueError(f"limits: {key}={value}: allowed are {least} to {most}")
    if said.get("soft", 0) > said.get("hard", said.get("soft", 0)):
        raise ValueError(f"limits: soft={said['soft']} is over hard={said['hard']}")
    return said or None
