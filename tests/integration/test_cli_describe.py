"""`ipcbus describe`, the checks of `ipcbus call`, and what shells are told to complete, with a real daemon and a real service."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon
from tests.integration.test_cli import Cli, cli

__all__ = ["cli"]  # its fixture


class Thermostat:
    def set_target(self, target: float, *, hold: bool = False, room: str = "hall") -> str:
        """Set the target in degrees Celsius.

        With *hold* it stays.
        """
        return f"{room} {target} {hold}"

    def say(self, text: str) -> str:
        return text

    def escape(self) -> None:
        """Nothing \x1b[31m of this may colour a terminal."""


@pytest.fixture
def service(daemon: RunningDaemon) -> Iterator[None]:
    with ipcbus_client.connect(daemon.address) as bus:
        bus.serve("home.thermostat", Thermostat())
        bus.respond("home.plain/*", lambda request: request.data)
        yield


def test_describe_prints_for_a_person_and_for_a_program(cli: Cli, service: None) -> None:
    text = cli.ok("describe", "home.thermostat")
    assert text.startswith("home.thermostat  (exclusive, owned by :")
    assert "\n  set_target(target: float, *, hold: bool = False, room: str = 'hall') -> str\n" in text
    assert " -> str\n      Set the target in degrees Celsius.\n" in text
    assert "\n\n      With *hold* it stays.\n" in text
    assert "\x1b" not in text
    assert "\\u001b[31m" in text
    one = cli.ok("describe", "home.thermostat/say")
    assert "say(text: str) -> str" in one
    assert "set_target" not in one
    said = json.loads(cli.ok("describe", "home.thermostat", "--json"))
    assert said["methods"]["set_target"]["arguments"]["hold"] == {"type": "bool", "required": False, "default": False}
    assert "own(name, mode, replace, allow_replace)" in cli.ok("describe", "bus")
    assert "*(…)\n      (nothing is said about it)" in cli.ok("describe", "home.plain")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("describe", "home.termostat"), 5, "did you mean home.thermostat?"),
        (("describe", "home.thermostat/sey"), 5, "did you mean say?"),
        (("describe", ":1"), 2, ":1 is a peer, of whom only names are described"),
        (("describe", "a b"), 2, "name 'a b' is not"),
        (("describe", ""), 2, "name '' is not"),
        (("call", "home.termostat/say", "x"), 5, "did you mean home.thermostat?"),
        (("call", "home.thermostat/set_taget", "1"), 5, "did you mean set_target?"),
        (("call", "home.thermostat/set_target", "taget=1"), 2, "did you mean target?"),
        (("call", "home.thermostat/set_target"), 2, "needs target (float): home.thermostat/set_target(target: float"),
        (("call", "home.thermostat/set_target", "target=warm"), 2, 'home.thermostat/set_target: target: expected float, got "warm": home.'),
        (("call", "home.thermostat/set_target", "1", "true"), 6, "BadArguments"),  # by the service: only it knows which have no place
        (("call", "home.thermostat/say", "--raw", "a", "b"), 2, "--raw takes one VALUE"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_right(cli: Cli, service: None, words: tuple[str, ...], code: int, says: str) -> None:
    done = cli(*words)
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (("home.thermostat/set_target", "21.5"), "hall 21.5 False"),
        (("home.thermostat/set_target", "target=21.5", "hold=true", "room=the attic"), "the attic 21.5 True"),
        (("home.thermostat/set_target", "21", "room=7"), "7 21.0 False"),
        (("home.thermostat/set_target", '{"target": 3}'), "hall 3.0 False"),
        (("home.thermostat/say", "hello"), "hello"),
        (("home.thermostat/say", "21"), "21"),
        (("home.plain/any", "a=1", "b=x"), {"a": 1, "b": "x"}),
        (("home.plain/any", "1", "2"), [1, 2]),
        (("home.plain/any",), None),
    ],
)
def test_words_are_arguments(cli: Cli, service: None, words: tuple[str, ...], reply: object) -> None:
    assert json.loads(cli.ok("call", *words)) == reply


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (("call", "ho"), ["home.plain/", "home.thermostat/"]),
        (("describe", "home.t"), ["home.thermostat"]),
        (("call", "home.thermostat/s"), ["home.thermostat/say", "home.thermostat/set_target"]),
        (("call", "home.thermostat/set_target", ""), ["hold=false", "hold=true", "room=", "target="]),
        (("call", "home.thermostat/set_target", "target=1", "ro"), ["room="]),
        (("call", "home.thermostat/set_target", "hold=t"), ["hold=true"]),
        (("call", "bus/pi"), ["bus/ping"]),
        (("call", "nobody/x"), []),
        (("call", "home.plain/"), []),
        (("pub", "x"), []),
        (("pub", "--ret"), ["--retain"]),
        (("call", "--ti"), ["--timeout"]),
        (("nothing", "--ti"), []),
        (("call", "--bus"), ["--bus"]),
        (("call", "--raw", "--timeout", "9", "home.th"), ["home.thermostat/"]),
        (("call", "--help", "home.th"), []),
        (("call", "--wrong", "home.th"), []),
        (("describe", "home.thermostat", ""), []),
        (("ca",), ["call"]),
        (("pe",), ["peers"]),
    ],
)
def test_completion(cli: Cli, service: None, words: tuple[str, ...], candidates: list[str]) -> None:
    assert cli.ok("complete", "--", *words).split() == candidates


def test_completion_says_nothing_where_there_is_no_bus(cli: Cli) -> None:
    done = cli("complete", "--address", "unix:/nowhere/bus.sock", "--", "call", "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_completion_asks_the_bus_that_is_typed_and_starts_none(cli: Cli, service: None, short_dir: Path) -> None:
    cli.env |= {"IPCBUS_AUTOSTART": "1", "IPCBUS_ADDRESS": f"unix:{short_dir}/none/bus.sock"}
    assert cli.ok("complete", "--", "call", "home.th") == ""
    assert not (short_dir / "none").exists()
    assert cli.ok("complete", "--", "call", "--address", cli.address, "home.th") == "home.thermostat/\n"
    assert cli.ok("complete", "--address", cli.address, "--", "call", "home.th") == "home.thermostat/\n"


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("ipcbus ca", ["call"]),
        ("ipcbus call home.th", ["home.thermostat/"]),
        ("ipcbus call home.thermostat/s", ["home.thermostat/say", "home.thermostat/set_target"]),
        ("ipcbus call home.thermostat/set_target ", ["hold=false", "hold=true", "room=", "target="]),
        ("ipcbus call home.thermostat/set_target hold=t", ["true"]),  # bash puts it behind the =
    ],
)
def test_completion_in_bash(cli: Cli, service: None, line: str, replies: list[str]) -> None:
    script = f"""
        ipcbus() {{ {shlex.quote(sys.executable)} -m ipcbus.cli.main "$@"; }}
        compopt() {{ :; }}  # it works only where bash itself completes
        eval "$(ipcbus complete --bash)"
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _ipcbus
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    bash = shutil.which("bash")
    assert bash is not None, "this test needs bash"
    done = subprocess.run([bash, "-c", script], env=cli.env, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.split(), done.stderr) == (replies, "")
