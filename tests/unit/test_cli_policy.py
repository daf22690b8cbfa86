"""``ipcbus policy``: which rule decides, asked without a bus."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ipcbus.cli import policy as command
from ipcbus.cli.failures import CommandError
from ipcbus.cli.parsing import parse_arguments
from ipcbus.cli.text import complain
from ipcbus.daemon import user_database

RULES = """
[[rule]]
deny = "subscribe"
topics = "room.secret"

[[rule]]
allow = ["publish", "subscribe"]
uid = 4242
topics = "room.>"

[[rule]]
allow = "*"
group = "operators"
comment = "they know\\tbest"

[[rule]]
allow = "call"
unit = "panel@*.service"
names = ["lights", ":"]
methods = ["on", "off"]

[[rule]]
allow = ["monitor", "publish"]
identity = "panel"
topics = "room.%i"

[redact]
topics = "secret.>"
"""


@pytest.fixture(autouse=True)
def nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own: neither files nor groups."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("IPCBUS_CONFIG", "IPCBUS_KIND", "IPCBUS_POLICY_FILE", "IPCBUS_POLICY_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(user_database, "gid_of", {"operators": 77}.get)


@pytest.fixture
def policy(tmp_path: Path) -> list[str]:
    """The options that name the file."""
    path = tmp_path / "p.toml"
    path.write_text(RULES)
    return ["--kind", "system", "--policy-file", str(path), "--policy-dir", f"{tmp_path}/none"]


AS = ["--as-uid", "4242"]


def main(words: list[str]) -> int:
    """As `ipcbus` does it, and nothing happens to the signals of this process."""
    arguments = parse_arguments(words)
    try:
        return command.policy(arguments)
    except CommandError as error:
        complain(error.text)
        return error.exit


@pytest.mark.parametrize(
    ("words", "code", "by"),
    [
        ([*AS, "publish", "room.a"], 0, "rule 2 "),
        (["publish", "room.a", *AS], 0, "rule 2 "),
        ([*AS, "publish", "hall.a"], 5, "the default of a system bus"),
        ([*AS, "subscribe", "room.a.*"], 0, "rule 2 "),
        ([*AS, "subscribe", "room.*"], 5, "rule 1 "),
        (["--as-uid", "4243", "--as-group", "operators", "subscribe", "room.*"], 5, "rule 1 "),
        (["--as-uid", "4243", "--as-group", "operators", "subscribe", "hall.*"], 0, "rule 3 "),
        (["--as-uid", "4243", "--as-group", "1", "--as-group", "77", "subscribe", "hall.*"], 0, "rule 3 "),
        (["--as-uid", "4243", "--as-gid", "77", "subscribe", "hall.*"], 0, "rule 3 "),
        (["--as-uid", "4243", "--as-gid", "78", "subscribe", "hall.*"], 5, "the default"),
        ([*AS, "--as-unit", "panel@1.service", "call", "lights", "on"], 0, "rule 4 "),
        ([*AS, "--as-unit", "panel@1.service", "call", "lights/on"], 0, "rule 4 "),
        ([*AS, "--as-unit", "panel@1.service", "call", ":", "off"], 0, "rule 4 "),
        ([*AS, "--as-unit", "panel@1.service", "call", "lights", "dim"], 5, "the default"),
        ([*AS, "--as-user-unit", "panel@1.service", "call", "lights", "on"], 5, "the default"),
        ([*AS, "--as-unit", "panel@1.service", "send", "lights"], 5, "the default"),
        (["--as-identity", "panel", "publish", "room.panel"], 0, "rule 5 "),
        (["--as-identity", "panel", "monitor", "room.panel"], 0, "rule 5 "),
        (["--as-identity", "panel", "monitor"], 5, "the default"),
        (["--as-identity", "default", "admin"], 0, "the default"),
        ([*AS, "admin"], 5, "the default"),
        ([*AS, "connect"], 0, "the default"),
        ([*AS, "own", "lights"], 5, "the default"),
        (["--as-uid", "0", "admin"], 0, "the default"),
    ],
)
def test_one_action(policy: list[str], words: list[str], code: int, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", *policy, *words]) == code
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{'denied' if code else 'allowed'} by {by}")
    assert second


def test_what_it_says(policy: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["policy", "test", *policy, *AS, "subscribe", "room.*"])
    assert capsys.readouterr().out == (
        f"denied by rule 1 of {tmp_path}/p.toml, line 2: deny subscribe for everybody on topics room.secret\n"
        f"rule 1 of {tmp_path}/p.toml, line 2 denies subscribe to 'room.*', which would also match 'room.secret', "
        "for uid 4242, no known group\n"
    )
    main(["policy", "test", *policy, *AS, "--json", "publish", "room.a"])
    found = json.loads(capsys.readouterr().out)
    assert (found["allowed"], found["rule"]["where"]) == (True, f"rule 2 of {tmp_path}/p.toml, line 6")
    assert found["subject"]["uid"] == 4242


def test_who_asks_is_meant_where_nobody_is_named(
    policy: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "own_units", lambda: ("session-1.scope", "mine.service"))
    main(["policy", "test", *policy, "--json", "connect"])
    subject = json.loads(capsys.readouterr().out)["subject"]
    assert (subject["uid"], subject["gid"], subject["groups"]) == (os.geteuid(), os.getegid(), sorted(os.getgroups()))
    assert (subject["unit"], subject["user_unit"]) == ("session-1.scope", "mine.service")
    main(["policy", "test", *policy, "--json", "--as-unit", "other.service", "connect"])
    subject = json.loads(capsys.readouterr().out)["subject"]
    assert (subject["uid"], subject["unit"], subject["user_unit"]) == (os.geteuid(), "other.service", "")
    main(["policy", "test", *policy, "--json", "--as-user", "root", "connect"])
    subject = json.loads(capsys.readouterr().out)["subject"]
    assert (subject["uid"], subject["gid"], subject["user"], subject["unit"]) == (0, 0, "root", "")
    assert 0 in subject["groups"]


def test_who_may_not_connect_may_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[rule]]\nallow = "publish"\n')
    words = ["policy", "test", "--kind", "user", "--policy-file", str(file), "--as-uid", str(os.geteuid() + 4242), "publish", "a"]
    assert main(words) == 5
    assert "denies connect" in capsys.readouterr().out


def test_the_user_of_the_system_bus_is_whose_its_directory_is(
    policy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks is not who runs it."""
    monkeypatch.setattr(command, "SYSTEM_RUNTIME_DIR", "/nowhere")
    assert main(["policy", "test", *policy, "--as-uid", "4242", "admin"]) == 5
    monkeypatch.setattr(command, "_bus_uid", lambda kind: 4242)
    assert main(["policy", "test", *policy, "--as-uid", "4242", "admin"]) == 0
    capsys.readouterr()


def test_list(policy: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["policy", "list", *policy]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"rule 2 of {tmp_path}/p.toml, line 6: allow publish, subscribe for uid 4242 on topics room.>"
    assert lines[2].endswith("allow everything for group operators  # they know\\u0009best"), "no control character comes through"
    assert [line.partition(" (")[0] for line in lines[5:10]] == ["the default of a system bus"] * 5
    assert lines[9].endswith(": deny everything for everybody")
    assert lines[10:] == ["redacted for monitors: secret.>"]
    assert main(["policy", "list", *policy, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rule["allow"] for rule in found["rules"]] == [False, True, True, True, True, True, True, True, True, False]
    assert (found["redact"], found["files"]) == (["secret.>"], [f"{tmp_path}/p.toml"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["test"], "policy test needs an ACTION: connect, own,"),
        (["test", "fly"], "'fly' is no action; there are connect,"),
        (["test", "publish"], "policy test publish takes a TOPIC"),
        (["test", "publish", "a", "b"], "policy test publish takes a TOPIC"),
        (["test", "publish", "a.*"], "wildcard"),
        (["test", "publish", "$bus.a"], "bus's own"),
        (["test", "own", ":"], "name ':'"),
        (["test", "call", "a"], "policy test call takes a NAME"),
        (["test", "call", "a/1"], "method '1'"),
        (["test", "subscribe", "a.>.b"], "'>' before its last token"),
        (["test", "--as-identity", "x", "--as-uid", "1", "connect"], "give it alone"),
        (["test", "--as-user", "root", "--as-uid", "1", "connect"], "not both"),
        (["test", "--as-user", "no-such-user", "connect"], "there is no user 'no-such-user'"),
        (["test", "--as-group", "no-such-group", "connect"], "there is no group 'no-such-group'"),
        (["list", "connect"], "policy list takes no more words"),
    ],
)
def test_misuse(policy: list[str], words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", *words, *policy]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [["judge"], ["test", "--as-uid", "-1"], ["test", "--as-gid", "4294967295"], ["test", "--kind", "x"]])
def test_misuse_that_the_parser_sees(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["policy", *words])
    assert caught.value.code == 2


def test_paths_may_be_relative(policy: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["policy", "test", "--kind=system", "--policy-file=p.toml", "--policy-dir=none", *AS, "publish", "room.a"]) == 0


def test_a_policy_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[rule]]\nallow = "fly"\n[[rule]]\nallow = "call"\ntopics = "a"\n')
    assert main(["policy", "list", "--policy-file", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("ipcbus: rule ") for line in lines)


def test_a_name_that_the_machine_does_not_know_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[[rule]]\nallow = "*"\ngroup = "wheel"\n')
    assert main(["policy", "list", "--policy-file", str(file)]) == 0
    assert "'wheel'" in capsys.readouterr().err


def test_a_directory_that_is_not_there_is_told(policy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", "connect", *policy]) == 0
    assert f"there is no directory {tmp_path}/none" in capsys.readouterr().err
