"""How long to wait before the next attempt to connect. Pure: the jitter comes in."""

from __future__ import annotations

from typing import NamedTuple


class Backoff(NamedTuple):
    """Doubling waits between attempts, capped, jittered, forgotten after a stable connection."""

    first_s: float = 0.05  #: a daemon that restarts is back within a few of these
    cap_s: float = 2.0  #: a bus that comes back after an hour is noticed this fast
    stable_s: float = 10.0  #: a connection that held so long starts over

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Seconds before attempt number *attempt* (from 0); *jitter* in [0, 1) spreads it over the upper half, so that clients do not
        come in step.
        """
        full = self.cap_s if attempt > 30 else min(self.cap_s, self.first_s * 2.0**attempt)
        return full * (0.5 + 0.5 * jitter)

    def next_attempt(self, attempt: int, connected_s: float | None) -> int:
        """The number of the next attempt, after *attempt* that led to a connection of *connected_s* seconds (None: to none)."""
        if connected_s is not None and connected_s >= self.stable_s:
            return 0
        return attempt + 1
