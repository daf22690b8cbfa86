"""From the rounds' measurements to lines with a verdict, a table and JSON."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measures import Measured, Row
from .workloads import ROWS

HEAD = ("figure", "median (min–max)", "control", "ratio", "goal", "met")


def lines(rounds: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """One record for each row of each workload that ran."""
    return [_line(name, row, measured) for name, measured in rounds.items() if measured for row in ROWS[name]]


def _line(workload: str, row: Row, rounds: list[Measured]) -> dict[str, Any]:
    values = [measured[row.key] for measured in rounds]
    line: dict[str, Any] = {"workload": workload, "figure": row.label, "unit": row.unit, **_spread("", values)}
    judged = line["median"]
    if row.control is not None:
        controls = [measured[row.control] for measured in rounds]
        line |= _spread("control_", controls)
        # each round's own ratio: the machine drifts, but both sides of a round saw the same machine
        judged = line["ratio"] = statistics.median(_ratio(v, c) for v, c in zip(values, controls, strict=True))
    if row.goal is not None:
        line["goal"] = f"{row.goal} {row.bound:g}" + (" ×" if row.control else f" {row.unit}")
        line["met"] = judged >= row.bound if row.goal == ">=" else judged <= row.bound
    return line


def _spread(prefix: str, values: list[float]) -> dict[str, float]:
    return {f"{prefix}median": statistics.median(values), f"{prefix}min": min(values), f"{prefix}max": max(values)}


def _ratio(value: float, control: float) -> float:
    return value / control if control else float("inf")


def table(report: list[dict[str, Any]]) -> str:
    """The lines as text, a block for each workload."""
    cells = [_cells(line) for line in report]
    widths = [max(len(row[column]) for row in (HEAD, *cells)) for column in range(len(HEAD))]
    out, workload = [], ""
    for line, row in zip(report, cells, strict=True):
        if line["workload"] != workload:
            workload = line["workload"]
            out += ["", f"== {workload}", _join(HEAD, widths)]
        out.append(_join(row, widths))
    return "\n".join(out)


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    return (
        line["figure"],
        f"{_show(line, '')} {line['unit']}",
        _show(line, "control_") if "control_median" in line else "",
        f"{line['ratio']:.2f} ×" if "ratio" in line else "",
        line.get("goal", ""),
        {True: "yes", False: "NO", None: ""}[line.get("met")],
    )


def _show(line: dict[str, Any], prefix: str) -> str:
    median, low, high = (_number(line[prefix + part]) for part in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _join(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def machine() -> dict[str, Any]:
    """Where this was measured."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "linux": platform.release(),
        "python": platform.python_version(),
        "msgpack": version("msgpack"),
    }
