"""ipcbus.cli.text: what may reach a terminal, and tables."""

from __future__ import annotations

import io

import pytest

from ipcbus.cli.text import clip, duration, pad, paint, safe, size, table, wants_colour, width_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_safe_leaves_what_can_be_printed() -> None:
    assert safe("room.küche 21 °C 猫 😀") == "room.küche 21 °C 猫 😀"


@pytest.mark.parametrize("character", [*"\x1b\x00\n\r\x7f\x85\x9b\u200b\u202e\u2066\ufeff\ud800"])
def test_safe_escapes_what_acts(character: str) -> None:
    assert safe(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_columns() -> None:
    assert [width_of(text) for text in ("abc", "猫", "e\u0301")] == [3, 2, 1]
    assert clip("abcdef", 4) == "abc…"
    assert clip("abcd", 4) == "abcd"
    assert clip("猫猫猫", 4) == "猫…"
    assert clip("abc", 0) == ""
    assert pad("猫", 4) == "猫  "
    assert pad("7", 3, right=True) == "  7"


def test_tables_align_numbers_right_and_escape_cells() -> None:
    lines = table(("name", "n", "list"), [("a\x1b[2J", 5, ["x", "y"]), ("b", 12, []), ("c", None, True)])
    assert lines == [
        f"{'name':10}   n  list",
        "a\\u001b[2J   5  x y",
        f"{'b':10}  12  -",
        f"{'c':10}   -  yes",
    ]
    assert table(("name",), []) == ["name"]


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    assert paint("x", "1", False) == "x"
    assert paint("x", "1", True) == "\x1b[1mx\x1b[0m"


def test_sizes_and_durations() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1536, 5 * 2**20, 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "1048576.0 GiB",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0, 3.24, 65, 3600, 7380, 90_000)] == [
        "0.0 s", "3.2 s", "1 min 5 s", "1 h 0 min", "2 h 3 min", "1 d 1 h",
    ]  # fmt: skip
