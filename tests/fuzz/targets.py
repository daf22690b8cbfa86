"""All targets, by name."""

from __future__ import annotations

from . import bus_targets, policy_targets, program_targets, protocol_targets
from .engine import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (*protocol_targets.TARGETS, *policy_targets.TARGETS, *program_targets.TARGETS, *bus_targets.TARGETS)
}
