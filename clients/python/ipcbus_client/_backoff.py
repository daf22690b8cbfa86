"""How long to wait before the next attempt to connect. Pure: the jitter comes in.

Waits double up to a cap, and half of each is random: the "equal jitter" of M. Brooker, Exponential Backoff And Jitter (AWS Architecture
Blog, 2015). What is forgotten when is our own rule: a bus that was restarted ten times today must be found as fast as the first time, and
one that lets us in and drops us must not be tried in a tight loop. So time with a connection takes attempts back, one for each
``forgive_s``: after a second nothing is left of the longest backoff, while a connection that holds for no longer than that counts as one
that failed.
"""

from __future__ import annotations

from typing import NamedTuple


class Backoff(NamedTuple):
    """Doubling waits between attempts, capped, jittered, taken back while a connection holds."""

    first_s: float = 0.05  #: a daemon that restarts is back within a few of these
    cap_s: float = 2.0  #: a bus that comes back after an hour is noticed this fast
    forgive_s: float = 0.125  #: a connection takes back one attempt for each of these; well above what it takes to be let in and dropped

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Seconds before attempt number *attempt* (from 0); *jitter* in [0, 1) spreads it over the upper half, so that clients do not
        come in step.
        """
        full = self.cap_s if attempt > 30 else min(self.cap_s, self.first_s * 2.0**attempt)
        return full * (0.5 + 0.5 * jitter)

    def next_attempt(self, attempt: int, connected_s: float | None) -> int:
        """The number of the next attempt, after *attempt* that led to a connection of *connected_s* seconds (None: to none)."""
        if self.first_s * 2.0 ** min(attempt, 30) < self.cap_s:
            attempt += 1  # those after the cap was reached would only be more to take back
        return max(attempt - int((connected_s or 0.0) / self.forgive_s), 0)
