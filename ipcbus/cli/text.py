"""Text for a terminal or a pipe: nothing that came over the bus may move a cursor or fake a line.

Owns escaping, colour, the table layout, and how sizes and times are written. Knows nothing about the bus.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

_UNSAFE = re.compile(r"[^\x20-\x7e]")

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"


def safe(text: str) -> str:
    r"""*text* with what is not printable (control and bidirectional characters, surrogates, …) as ``\uXXXX``.

    What comes out of a JSON encoder is still the same JSON, because there such characters stand within strings only.
    """
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def wants_colour(stream: TextIO) -> bool:
    """Whether *stream* is a terminal whose user did not say NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, colour: bool) -> str:
    """*text* in *style* (an SGR code) where *colour* is true."""
    return f"\x1b[{style}m{text}\x1b[0m" if colour else text


def width_of(text: str) -> int:
    """How many columns *text* takes: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def clip(text: str, columns: int) -> str:
    """*text* cut to *columns*, with an ellipsis where something was cut off."""
    if width_of(text) <= columns:
        return text
    kept, used = [], 0
    for character in text:
        used += width_of(character)
        if used > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + "…" if columns > 0 else ""


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """*text* filled with spaces to *columns*; *right* puts them in front."""
    gap = " " * max(0, columns - width_of(text))
    return gap + text if right else text + gap


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, colour: bool = False) -> list[str]:
    """Lines of a table with *heads*; columns that hold only numbers go to the right. Cells are made safe here."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(heads))]
    widths = [max([width_of(head), *(width_of(row[at]) for row in cells)]) for at, head in enumerate(heads)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(pad(cell, widths[at], right=numeric[at]) for at, cell in enumerate(row)).rstrip()

    return [paint(line(heads), BOLD, colour), *(line(row) for row in cells)]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (list, tuple)):
        return safe(" ".join(str(item) for item in value)) or "-"
    return safe(str(value))


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).replace("-", "", 1).isdigit()


def size(count: float) -> str:
    """*count* bytes for a person: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """*seconds* for a person: ``3.2 s``, ``4 min 5 s``, ``2 h 3 min``, ``5 d 1 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not hours:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def complain(text: str) -> None:
    """One line on stderr, as ``ipcbus: text``; a stderr that is gone is nobody's problem."""
    try:
        print(f"ipcbus: {safe(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def prepare_streams() -> None:
    """Let stdout and stderr write any str: what their encoding lacks comes out escaped instead of as an exception.

    A stream that was closed before the start reads and writes nothing, and its descriptor goes to no socket.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
