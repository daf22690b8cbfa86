"""POLICY.md: its examples are legal, decide what it says, and its numbers are the limits."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ipcbus.cli import policy as command
from ipcbus.cli.parsing import parse_arguments
from ipcbus.daemon import user_database
from ipcbus.policy import Action, limits, parse
from ipcbus.policy.lint import lint
from ipcbus.policy.parsing import _KEYS
from ipcbus.policy.placeholders import MEANINGS

DOCUMENT = (Path(__file__).resolve().parents[2] / "ipcbus" / "POLICY.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
USERS, GROUPS = {"guest": 1001}, {"operators": 50}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_legal_and_not_odd(text: str) -> None:
    parsed = parse(text, "POLICY.md", users=USERS.get, groups=GROUPS.get)
    assert (parsed.errors, parsed.warnings) == ((), ())
    assert parsed.rules or parsed.redact
    assert lint(parsed.rules) == []


def test_what_it_says_that_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = "/etc/ipcbus/policy.d/50-lights.toml"
    assert place in EXAMPLES[0]
    file, drop_ins = tmp_path / "50-lights.toml", tmp_path / "policy.d"
    drop_ins.mkdir(mode=0o700)
    file.write_text(EXAMPLES[0])
    file.chmod(0o600)
    for name in ("IPCBUS_CONFIG", "IPCBUS_POLICY_FILE", "IPCBUS_POLICY_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("IPCBUS_KIND", "system")
    monkeypatch.setattr(user_database, "gid_of", GROUPS.get)
    monkeypatch.setattr(user_database, "uid_of", USERS.get)
    (session,) = re.findall(r"```console\n\$ export IPCBUS_KIND=system\n(.*?)```", DOCUMENT, re.DOTALL)
    asked = re.findall(r"\$ ipcbus (.*)\n(.*)\n", session)
    assert len(asked) == 5
    for line, answer in asked:
        command.policy(parse_arguments([*shlex.split(line), "--policy-file", str(file), "--policy-dir", str(drop_ins)]))
        said = capsys.readouterr().out.splitlines()
        assert said[0].replace(str(file), place) == answer
    assert "which would also match" in DOCUMENT


def test_all_words_of_the_language_are_there() -> None:
    for word in (*_KEYS, *Action):
        assert f"`{word}`" in DOCUMENT, word
    for letter in MEANINGS:
        assert f"`%{letter}`" in DOCUMENT, letter


def test_the_limits_are_those_that_hold() -> None:
    said = DOCUMENT[DOCUMENT.index("## Limits") :]
    for number in (limits.MAX_RULES, limits.MAX_PATTERNS, limits.MAX_VALUES, limits.MAX_TEXT_BYTES):
        assert f"| {number:,}".replace(",", " ") in said
    assert "1 MiB" in said
    assert limits.MAX_FILE_BYTES == 1 << 20
    assert f"{limits.POLICY_WALK_MAX:,} steps".replace(",", " ") in DOCUMENT
