"""``ipcbus ping``: round trips to the bus, and their percentiles. Owns what the percentiles of a list of times are."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

from .connection import open_bus
from .failures import Exit
from .values import dump


def percentile(times: Sequence[float], percent: float) -> float:
    """The smallest of *times* that at least *percent* % of them do not exceed; nan where there are none."""
    if not times:
        return math.nan
    return sorted(times)[max(0, math.ceil(len(times) * percent / 100) - 1)]


def ping(arguments: argparse.Namespace) -> int:
    """Send PINGs one after the other; print each round trip, and the figures at the end, also after Ctrl-C."""
    times: list[float] = []
    with open_bus(arguments, program="ipcbus ping", wait_s=arguments.timeout) as bus:
        try:
            while True:
                times.append(bus.ping())
                if not arguments.json:
                    print(f"{bus.address}: seq {len(times)}: {times[-1] * 1000:.3f} ms", flush=True)
                if len(times) == arguments.count:
                    break
                time.sleep(arguments.interval)
        finally:
            if times:
                _conclude(times, arguments.json)
    return Exit.OK


def _conclude(times: Sequence[float], as_json: bool) -> None:
    figures = {
        "min_ms": min(times),
        "avg_ms": sum(times) / len(times),
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "max_ms": max(times),
    }
    rounded = {key: round(value * 1000, 3) for key, value in figures.items()}
    if as_json:
        print(dump({"count": len(times), **rounded}), flush=True)
    else:
        words = ", ".join(f"{key.removesuffix('_ms')} {value:.3f}" for key, value in rounded.items())
        print(f"{len(times)} round trips in ms: {words}", flush=True)
