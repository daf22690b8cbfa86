"""What must hold at the end of the demo, and the summary of what was seen. Pure: books and reports in, checks and figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class Ends:
    """What the processes said at their end: how often each reconnected, how the daemon ended, and who had to be killed."""

    reconnects: Mapping[str, int]
    daemon_exit: int
    left_behind: int
    told_lost: int  #: what the bus itself said was lost (NOTICE lost)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold; ``found`` is what was seen."""

    name: str
    held: bool
    found: str


def checks(ledger: Ledger, ends: Ends) -> list[Check]:
    """All checks, in the order of the story."""
    silent = ledger.silent_sources()
    before = sum(1 for source in ledger.sources.values() if source.before)
    stayed = [who for who, count in ends.reconnects.items() if count < 1]
    elsewhere = ledger.failed_elsewhere.total()
    why = f": {ledger.failed_elsewhere.most_common(1)[0][0]}" if elsewhere else ""
    who = ", ".join(stayed or ends.reconnects)
    return [
        Check("messages came from every source before the kill", before > 0, f"{before} sources"),
        Check(
            "and from every one of them after it",
            before > 0 and not silent,
            f"silent: {', '.join(silent[:5])}" if silent else f"{before} sources",
        ),
        Check("requests were answered before it", ledger.answered_before > 0, f"{ledger.answered_before} answers"),
        Check("and after it", ledger.answered_after > 0, f"{ledger.answered_after} answers"),
        Check("everybody reconnected", not stayed, f"not: {who}" if stayed else who),
        Check("no message came twice or out of order", ledger.repeated == 0, f"{ledger.repeated} did"),
        Check(
            "outside the outage no message was lost without being told",
            ledger.lost_elsewhere <= ends.told_lost,
            f"{ledger.lost_elsewhere} lost, {ends.told_lost} told",
        ),
        Check("outside the outage no request failed", elsewhere == 0, f"{elsewhere} failed{why}"),
        Check("the daemon ended in order when asked", ends.daemon_exit == 0, f"exit code {ends.daemon_exit}"),
        Check("no process was left behind", ends.left_behind == 0, f"{ends.left_behind} had to be killed"),
    ]


def figures(ledger: Ledger, ends: Ends, elapsed_s: float, held: Sequence[Check]) -> dict[str, Any]:
    """The summary as one map, for --json and for `lines`."""
    gap = ledger.gap_s
    down = (ledger.restarted_at or 0.0) - (ledger.killed_at or 0.0)
    return {
        "ok": all(check.held for check in held),
        "seconds": round(elapsed_s, 2),
        "messages": {
            "received": ledger.received,
            "per_s": round(ledger.received / elapsed_s, 1) if elapsed_s > 0 else 0.0,
            "topics": len(ledger.sources),
            "delivery_p50_ms": _ms(ledger.delivery_ms(50)),
            "delivery_p99_ms": _ms(ledger.delivery_ms(99)),
        },
        "requests": {
            "answered": len(ledger.request_s),
            "failed_in_outage": dict(ledger.failed_in_outage),
            "failed_elsewhere": dict(ledger.failed_elsewhere),
            "p50_ms": _ms(ledger.request_ms(50)),
            "p99_ms": _ms(ledger.request_ms(99)),
            "max_ms": _ms(ledger.request_ms(100)),
        },
        "outage": {
            "daemon_down_ms": _ms(1000 * down),
            "message_gap_ms": None if gap is None else _ms(1000 * gap),
            "messages_lost": ledger.lost_in_outage,
            "messages_late": ledger.came_late,
            "reconnects": dict(ends.reconnects),
        },
        "lost_elsewhere": ledger.lost_elsewhere,
        "repeated": ledger.repeated,
        "checks": {check.name: check.held for check in held},
    }


def _ms(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def lines(found: Mapping[str, Any], held: Sequence[Check]) -> list[str]:
    """The summary for a person: the figures, then each check with what was seen."""
    messages, requests, outage = found["messages"], found["requests"], found["outage"]
    return [
        f"messages   {messages['received']} on {messages['topics']} topics in {found['seconds']:.1f} s"
        f" ({messages['per_s']:.0f}/s),"
        f" delivered in p50 {messages['delivery_p50_ms']} ms, p99 {messages['delivery_p99_ms']} ms",
        f"requests   {requests['answered']} answered in p50 {requests['p50_ms']} ms, p99 {requests['p99_ms']} ms,"
        f" max {requests['max_ms']} ms; {sum(requests['failed_in_outage'].values())} failed in the outage",
        f"outage     daemon down {outage['daemon_down_ms']:.0f} ms, no message for {outage['message_gap_ms'] or 0:.0f} ms,"
        f" {outage['messages_lost']} messages lost, {outage['messages_late']} came late;"
        f" reconnected: {', '.join(outage['reconnects'])}",
        *(f"{'ok  ' if check.held else 'FAIL'}       {check.name} ({check.found})" for check in held),
    ]
