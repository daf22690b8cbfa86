"""The limits of a story's bus. Small, so that a few messages reach them; and in some stories one resource is scarcer still."""

from __future__ import annotations

import random
from dataclasses import replace

from ipcbus.broker.peers import BYTES_FREE
from ipcbus.protocol.limits import Limits

#: What must never be reached (a callee's output) is large.
USUAL = Limits(
    max_payload_bytes=64 * 1024,
    lane_soft_bytes=6_000,
    lane_hard_bytes=20_000,
    lane_stall_s=1.5,
    stall_window_s=6.0,
    max_parked_bytes=8_000,
    handshake_timeout_s=5.0,
    half_close_linger_s=3.0,
    max_output_bytes=8 * 1024 * 1024,
    max_lanes=7,
    max_names=3,
    max_methods=3,
    max_wills=3,
    max_bound=3,
    max_requests=8,
    max_callee_requests=5,
)
FEW_BYTES_FREE = 1_000


def limits_of(dice: random.Random) -> tuple[Limits, int]:
    """The limits, and how many bytes may wait for a connection before they are charged (Q-3)."""
    limits, bytes_free = USUAL, BYTES_FREE
    if dice.random() < 0.25:
        limits = replace(limits, max_retained_topics=4, max_retained_bytes=dice.choice([3_000, 100_000]))
    if dice.random() < 0.25:
        limits = replace(limits, max_program_lanes=5, max_user_lanes=9, max_bus_lanes=dice.choice([10, 14]))
        limits = replace(limits, max_program_names=2, max_user_names=3, max_bus_names=dice.choice([4, 6]))
        limits = replace(limits, max_program_peers=dice.choice([1, 2]))
    if dice.random() < 0.25:
        limits = replace(limits, max_program_bytes=20_000, max_user_bytes=40_000, max_queued_bytes=dice.choice([40_000, 70_000]))
        limits, bytes_free = replace(limits, quota_grace_s=0.7), FEW_BYTES_FREE
    return limits, bytes_free
