"""This machine's figures, read from /proc: load, memory, each core, network and disk counters, the largest processes.

Owns the parsing, and the rates between two readings. What a machine or container does not have is left out, never
invented.
Knows nothing about the bus: it yields pairs of a topic's last tokens and a map of figures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")

SECTOR_BYTES = 512  #: /proc/diskstats counts in these whatever the disk's own sector is
MAX_SOURCES = 32  #: cores, interfaces and disks each: a demo for people to watch, also on a machine with hundreds

_NOT_IN_TOKEN = re.compile(r"[^A-Za-z0-9_-]")
_VIRTUAL_DISK = re.compile(r"(loop|ram|zram|fd|sr)\d+")


def token(name: str) -> str:
    """*name* as one token of a topic: ``eth0.100`` becomes ``eth0_100``."""
    return _NOT_IN_TOKEN.sub("_", name)


def parse_load(text: str) -> dict[str, Any]:
    """/proc/loadavg."""
    fields = text.split()
    running, _, tasks = fields[3].partition("/")
    averages = dict(zip(("1m", "5m", "15m"), map(float, fields), strict=False))
    return {**averages, "running": int(running), "tasks": int(tasks)}


def parse_memory(text: str) -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    found: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    total = int(found["MemTotal"]) * 1024
    available = int(found.get("MemAvailable", found["MemFree"])) * 1024
    swap = int(found.get("SwapTotal", "0")) - int(found.get("SwapFree", "0"))
    return {
        "total_bytes": total,
        "available_bytes": available,
        "used_bytes": total - available,
        "swap_used_bytes": swap * 1024,
    }


def parse_cores(text: str) -> dict[int, tuple[int, int]]:
    """/proc/stat: for each core (busy, all) in ticks since the machine started."""
    cores = {}
    for core, rest in re.findall(r"^cpu(\d+) (.+)$", text, re.MULTILINE):
        ticks = [int(field) for field in rest.split()][:8]  # guest time is part of user time already
        cores[int(core)] = (sum(ticks) - sum(ticks[3:5]), sum(ticks))
    return cores


def parse_interfaces(text: str) -> dict[str, tuple[int, int]]:
    """/proc/net/dev: for each interface (received, sent) bytes."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) >= 9:
            found[name.strip()] = (int(fields[0]), int(fields[8]))
    return found


def parse_disks(text: str) -> dict[str, tuple[int, int]]:
    """/proc/diskstats: for each whole disk that was ever used (read, written) bytes; no partitions, no virtual disks."""
    found: dict[str, tuple[int, int]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 10 and not _VIRTUAL_DISK.fullmatch(fields[2]):
            found[fields[2]] = (int(fields[5]) * SECTOR_BYTES, int(fields[9]) * SECTOR_BYTES)
    parts = {name for name in found for disk in found if re.fullmatch(re.escape(disk) + r"p?\d+", name)}
    return {name: counts for name, counts in found.items() if name not in parts and any(counts)}


class Machine:
    """Reads *root* (/proc) again and again; leaves out what is not there or not readable. Not thread-safe."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = root
        self._at = 0.0
        self._cores: dict[int, tuple[int, int]] = {}
        self._bytes: dict[str, tuple[int, int]] = {}

    def readings(self, now: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """One reading of everything: (``cpu.0``, figures) and so on.

        *now* is in seconds; rates are since the reading before, and 0 in the first.
        """
        elapsed = now - self._at if self._at else 0.0
        self._at = now
        if load := self._parsed(parse_load, "loadavg"):
            yield "load", load
        if memory := self._parsed(parse_memory, "meminfo"):
            yield "memory", memory
        for core, (busy, ticks) in list((self._parsed(parse_cores, "stat") or {}).items())[:MAX_SOURCES]:
            busy_before, ticks_before = self._cores.get(core, (busy, ticks))
            self._cores[core] = (busy, ticks)
            passed = ticks - ticks_before
            yield f"cpu.{core}", {"busy_percent": round(100 * (busy - busy_before) / passed, 1) if passed > 0 else 0.0}
        for family, parse, file, names in (
            ("net", parse_interfaces, "net/dev", ("received", "sent")),
            ("disk", parse_disks, "diskstats", ("read", "written")),
        ):
            for name, counts in list((self._parsed(parse, file) or {}).items())[:MAX_SOURCES]:
                topic = f"{family}.{token(name)}"
                before = self._bytes.get(topic, counts)
                self._bytes[topic] = counts
                figures: dict[str, Any] = {}
                for word, count, count_before in zip(names, counts, before, strict=True):
                    figures[f"{word}_bytes"] = count
                    figures[f"{word}_bytes_per_s"] = round((count - count_before) / elapsed) if elapsed > 0 else 0
                yield topic, figures

    def summary(self) -> dict[str, Any]:
        """What kind of machine this is."""
        name = os.uname()
        return {
            "host": name.nodename,
            "kernel": f"{name.sysname} {name.release}",
            "architecture": name.machine,
            "cores": os.cpu_count(),
            "load": self._parsed(parse_load, "loadavg"),
            "memory": self._parsed(parse_memory, "meminfo"),
        }

    def uptime_s(self) -> float | None:
        """Seconds since the machine started."""
        return self._parsed(lambda text: float(text.split()[0]), "uptime")

    def processes(self, limit: int = 5) -> list[dict[str, Any]]:
        """The *limit* processes with the largest resident memory, largest first."""
        page = os.sysconf("SC_PAGE_SIZE")
        found: list[dict[str, Any]] = []
        for pid in (entry for entry in self._entries() if entry.isdigit()):
            pages = self._parsed(lambda text: int(text.split()[1]), f"{pid}/statm")
            command = self._parsed(str.strip, f"{pid}/comm")
            if pages is not None and command is not None:
                found.append({"pid": int(pid), "command": command, "resident_bytes": pages * page})
        return sorted(found, key=lambda process: (-process["resident_bytes"], process["pid"]))[:limit]

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self._root)
        except OSError:
            return []

    def _parsed(self, parse: Callable[[str], _T], file: str) -> _T | None:
        try:
            with open(f"{self._root}/{file}", encoding="utf-8", errors="replace") as stream:
                return parse(stream.read())
        except (OSError, ValueError, KeyError, IndexError):
            return None
