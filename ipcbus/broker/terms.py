"""The terms of a subscription: its policy, and the limits at which the policy acts (L-7, L-12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import LANE_SECONDS_MAX, MAX_ID, Limits
from ..protocol.messages import brief

POLICIES = ("block", "drop_oldest", "drop_newest", "latest", "disconnect")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a subscription says of itself. None: what the bus's limits say, whenever it matters."""

    policy: str | None = None
    soft: int | None = None
    hard: int | None = None
    seconds: float | None = None

    def resolve(self, limits: Limits) -> tuple[str, int, int, float]:
        """Policy, soft, hard, seconds as they hold now. No limit is above half of what may wait for a peer, or it would never act: the peer
        that pays for the queue, and in a group then the next one, would be closed first."""
        policy, soft, hard, seconds = self._stated(limits)
        most = limits.max_output_bytes // 2
        return policy, min(soft, most), min(hard, most), seconds

    def _stated(self, limits: Limits) -> tuple[str, int, int, float]:
        """What it says, and where it says nothing the bus's. The hard limit is never below the soft one: what is stated holds."""
        hard = limits.lane_hard_bytes if self.hard is None else self.hard
        soft = limits.lane_soft_bytes if self.soft is None else self.soft
        if self.soft is None and self.hard is not None:
            soft = min(soft, hard)
        seconds = limits.lane_stall_s if self.seconds is None else self.seconds
        return self.policy or limits.lane_policy, soft, max(soft, hard), seconds

    def check_joins(self, opener: Terms, limits: Limits) -> None:
        """Raise ``bad_argument`` where these, of a later member of a group, say otherwise than those of the member that opened it."""
        for name, stated, of_group in zip(
            ("policy", "soft", "hard", "seconds"), (self.policy, self.soft, self.hard, self.seconds), opener._stated(limits), strict=True
        ):
            if stated is not None and stated != of_group:
                raise ProtocolError(
                    Code.BAD_ARGUMENT, f"the group has {name} {of_group}, as its first member said: a later one says the same, or nothing"
                )


#: One object for the many subscriptions that say nothing.
NO_TERMS = Terms()


def parse_terms(policy: str | None, limits: dict[str, Any] | None, *, group: bool) -> Terms:
    """The terms that the arguments *policy* and *limits* of ``subscribe`` state. Raises ``bad_argument``."""
    if policy is None and not limits:
        return NO_TERMS
    if group and policy == "disconnect":
        raise ProtocolError(Code.BAD_ARGUMENT, "bus/subscribe: the policy disconnect is not for groups, whose members share one queue")
    for key, value in (limits or {}).items():
        if key in ("soft", "hard"):
            if type(value) is not int or not 1 <= value <= MAX_ID:
                words = f"bytes, an int of 1 to {MAX_ID}"
                raise ProtocolError(Code.BAD_ARGUMENT, f"bus/subscribe: limits.{key} must be {words}, not {brief(value)}")
        elif key == "seconds":
            if type(value) not in (int, float) or not 0 <= value <= LANE_SECONDS_MAX:
                raise ProtocolError(
                    Code.BAD_ARGUMENT, f"bus/subscribe: limits.seconds must be a number of 0 to {LANE_SECONDS_MAX}, not {brief(value)}"
                )
        else:
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/subscribe: limits has no {str(key)[:64]!r}; it has: soft, hard, seconds")
    terms = Terms(policy, **(limits or {}))
    if terms.soft is not None and terms.hard is not None and terms.hard < terms.soft:
        raise ProtocolError(Code.BAD_ARGUMENT, f"bus/subscribe: limits.hard ({terms.hard}) is below limits.soft ({terms.soft})")
    return terms
