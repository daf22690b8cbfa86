"""The demo on a terminal: one screen that is redrawn in place, or plain lines where that is not possible.

Owns the layout. `screen` and `status` are pure: books in, lines out.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import BOLD, CYAN, DIM, GREEN, RED, YELLOW, clip, pad, paint, safe, size, wants_colour
from .ledger import Ledger, Source

REDRAW_S = 0.1
STATUS_S = 1.0  #: between two status lines of the plain form
MAX_EVENTS = 8
_BARS = "▁▂▃▄▅▆▇█"
_PERCENTILES = (("p50", 50), ("p99", 99), ("max", 100))


def describe(topic: str, source: Source) -> str:
    """A source's latest figures for a person."""
    figures = source.figures
    match topic.split(".")[1:2]:
        case ["load"]:
            return f"{figures['1m']:.2f} {figures['5m']:.2f} {figures['15m']:.2f}, {figures['tasks']} tasks"
        case ["memory"]:
            return f"{size(figures['used_bytes'])} of {size(figures['total_bytes'])} used"
        case ["cpu"]:
            percent = [float(item["busy_percent"]) for item in source.history]
            return f"{percent[-1]:5.1f} % {bars(percent, 100.0)}"
        case ["net"]:
            return f"in {_rate(figures, 'received')}, out {_rate(figures, 'sent')}"
        case ["disk"]:
            return f"read {_rate(figures, 'read')}, written {_rate(figures, 'written')}"
    return ""


def _rate(figures: Mapping[str, Any], word: str) -> str:
    return f"{size(figures[f'{word}_bytes_per_s'])}/s of {size(figures[f'{word}_bytes'])}"


def bars(values: Sequence[float], top: float) -> str:
    """*values* from 0 to *top* as a line of little bars."""
    return "".join(_BARS[min(len(_BARS) - 1, max(0, int(value / top * len(_BARS))))] for value in values)


def status(ledger: Ledger, now: float) -> str:
    """The plain form's line of the state."""
    line = f"{ledger.rate(now):.0f} messages/s, {ledger.received} in all, {ledger.lost} lost"
    if ledger.request_s:
        line += f"; {len(ledger.request_s)} requests, p50 {ledger.request_ms(50):.2f} ms, p99 {ledger.request_ms(99):.2f} ms"
    return line


def screen(
    ledger: Ledger, events: Sequence[str], head: str, now: float, *, columns: int, rows: int, colour: bool
) -> list[str]:
    """The redrawn form's lines: at most *rows*, each at most *columns* wide."""
    down = ledger.killed_at is not None and not ledger.back
    lamp = paint("●", RED if down else GREEN, colour)
    state = "daemon killed, coming back" if down else "running"
    first = clip(f" ipcbus demo   {state}   {head}", columns - 1)
    width = min(32, max([12, *(len(topic) for topic in ledger.sources)]))
    above = [lamp + paint(first, BOLD, colour), ""]
    heads = f"  {pad('topic', width)} {'rate/s':>7} {'count':>7} {'lost':>5}  latest"
    above.append(paint(clip(heads, columns), DIM, colour))
    requests = "  requests to machine/…: none answered yet"
    if ledger.request_s:
        requests = f"  requests to machine/…: {len(ledger.request_s)} answered, "
        requests += f"{ledger.failed_in_outage.total()} failed in the outage   "
        requests += "   ".join(f"{word} {ledger.request_ms(at):.2f} ms" for word, at in _PERCENTILES)
    messages = f"  messages: {status(ledger, now).partition(';')[0]}   delivery p50 {ledger.delivery_ms(50):.2f} ms"
    below = ["", clip(messages, columns), clip(requests, columns), ""]
    below += [paint(clip(f"  {safe(event)}", columns), CYAN, colour) for event in events[-MAX_EVENTS:]]
    room = max(1, rows - len(above) - len(below))
    topics = sorted(ledger.sources)
    shown = topics if len(topics) <= room else topics[: room - 1]
    middle = []
    for topic in shown:
        source = ledger.sources[topic]
        counts = f"{source.rate(now):7.1f} {source.received:7d} {source.lost:5d}"
        line = clip(f"  {pad(clip(safe(topic), width), width)} {counts}  {describe(topic, source)}", columns)
        middle.append(paint(line, YELLOW, colour) if source.lost and down else line)
    if len(shown) < len(topics):
        middle.append(paint(f"  … and {len(topics) - len(shown)} more", DIM, colour))
    return (above + middle + below)[:rows]


class View:
    """Shows the books while the demo runs. *form* is ``screen``, ``plain`` or ``silent``. Used by one thread.

    ``close`` is idempotent.
    """

    def __init__(self, form: str, ledger: Ledger, started: float) -> None:
        self._form = form
        self._ledger = ledger
        self._started = started
        self._events: list[str] = []
        self._drawn = 0  # lines on the screen that are ours
        self._status_at = started
        self._colour = wants_colour(sys.stdout)
        if form == "screen":
            sys.stdout.write("\x1b[?25l")  # no cursor

    def event(self, text: str) -> None:
        """Something happened that a person should see."""
        line = f"{time.monotonic() - self._started:5.1f} s  {text}"
        self._events.append(line)
        del self._events[:-MAX_EVENTS]
        if self._form == "plain":
            print(safe(line), flush=True)

    def refresh(self, head: str) -> None:
        """Show the present state, if it is time."""
        now = time.monotonic()
        if self._form == "plain" and now >= self._status_at + STATUS_S:
            self._status_at = now
            with self._ledger.lock:
                line = status(self._ledger, now)
            print(f"{now - self._started:5.1f} s  {line}", flush=True)
        elif self._form == "screen":
            columns, rows = shutil.get_terminal_size()
            with self._ledger.lock:
                lines = screen(
                    self._ledger, self._events, head, now, columns=columns - 1, rows=rows - 1, colour=self._colour
                )
            up = f"\x1b[{self._drawn}A" if self._drawn else ""
            sys.stdout.write(f"\r{up}\x1b[J" + "".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
            self._drawn = len(lines)

    def close(self) -> None:
        """Give the terminal back as it was; the last screen stays."""
        if self._form == "screen":
            self._form = "silent"
            try:
                sys.stdout.write("\x1b[?25h")
                sys.stdout.flush()
            except OSError:
                pass  # it was closed, which ends the demo; there is nothing to give back
