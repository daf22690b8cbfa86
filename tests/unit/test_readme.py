"""README's commands are the ones that are run: CI's line is its second, its program compiles, its links lead to files."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from ipcbus_client import testing

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_are_one_line_each_and_ci_runs_the_second() -> None:
    demo, tests = (block.strip() for block in _blocks("sh")[:2])
    assert "\n" not in demo
    assert "\n" not in tests
    assert demo.endswith(".venv/bin/ipcbus demo")
    assert tests.endswith(".venv/bin/python -m pytest -q")
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_program_compiles_and_has_ten_lines_at_most() -> None:
    program = _blocks("python")[0]
    ast.parse(program)
    assert len([line for line in program.splitlines() if line.strip()]) <= 10


def test_every_relative_link_leads_to_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_users_test_in_it_passes() -> None:
    program = next(block for block in _blocks("python") if "def test_alarm" in block)
    found: dict[str, Any] = {}
    exec(program, found)
    with testing.FakeBus() as kit:
        found["test_alarm"](kit)
        assert kit.now >= 3600


def test_the_tour_runs_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    program = next(block for block in _blocks("python") if "class Heater" in block)
    with testing.FakeBus() as kit, kit.patched():
        exec(program, {})
    assert capsys.readouterr().out.splitlines()[:3] == ["20.0", "21.0", "room.hall.temp 20.5 False"]
