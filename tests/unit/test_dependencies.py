"""What ipcbus needs of others: little, and nothing with a hole that is known. No network is asked, so new holes are added here by hand."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: The first version without the holes that were published of a dependency, and which those are. Looked up in November 2026.
SOUND_SINCE: dict[str, tuple[str, str]] = {
    "msgpack": ("1.2.1", "GHSA-6v7p-g79w-8964, CVE-2026-57585: an Unpacker that is used again after an error may crash the process"),
    "platformdirs": ("3", "none is known of any version; before 3 macOS had other places"),
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def test_there_are_two_dependencies() -> None:
    """Another one needs a paragraph in DESIGN.md, and a line above."""
    assert sorted(re.split(r"[<>=!~ ]", line)[0] for line in PROJECT["dependencies"]) == sorted(SOUND_SINCE)


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_no_version_with_a_known_hole_is_allowed(line: str) -> None:
    name, lowest = re.fullmatch(r"([a-z]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
    sound, holes = SOUND_SINCE[name]
    assert version(lowest) >= version(sound), holes
    assert version(importlib.metadata.version(name)) >= version(sound), f"what is installed here has: {holes}"


def test_nothing_else_is_imported() -> None:
    """But by what says so: the plugin of pytest is imported by pytest."""
    allowed = {*sys.stdlib_module_names, *SOUND_SINCE, "ipcbus", "ipcbus_client"}
    found = set()
    for package in (ROOT / "ipcbus", ROOT / "clients" / "python" / "ipcbus_client"):
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                found |= {(path.name, name) for name in names if name.partition(".")[0] not in allowed}
    assert found == {("plugin.py", "pytest")}
