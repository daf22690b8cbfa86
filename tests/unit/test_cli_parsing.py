"""ipcbus.cli.parsing: options anywhere, as people write them."""

from __future__ import annotations

import os
import select

import pytest

from ipcbus.cli.commands import MAX_SECONDS
from ipcbus.cli.parsing import parse_arguments


@pytest.mark.parametrize(
    "words",
    ["pub --raw --timeout 2 room x", "pub room x --raw --timeout 2", "pub room --raw x --timeout=2", "pub --timeout 2 room --raw -- x"],
)
def test_options_may_stand_anywhere(words: str) -> None:
    arguments = parse_arguments(words.split())
    assert (arguments.topic, arguments.value, arguments.raw, arguments.timeout) == ("room", "x", True, 2.0)
    assert arguments.chosen.name == "pub"


@pytest.mark.parametrize("value", ["-", "-5", "-.5", "", "a b", "{}"])
def test_values_that_look_like_something_else(value: str) -> None:
    assert parse_arguments(["pub", "--retain", "room", value]).value == value


def test_after_two_dashes_nothing_is_an_option() -> None:
    assert parse_arguments(["pub", "room", "--", "--raw"]).value == "--raw"
    arguments = parse_arguments(["serve", "a/b", "--text", "--", "git", "log", "--raw", "-n", "1"])
    assert (arguments.to, arguments.command, arguments.raw) == ("a/b", ["git", "log", "--raw", "-n", "1"], False)


def test_patterns_around_options() -> None:
    assert parse_arguments(["sub", "a", "--count", "1", "b", "--bus", "lab"]).patterns == ["a", "b"]


@pytest.mark.parametrize(
    "words",
    [
        "", "nonsense", "pub", "pub a b c", "sub", "names x", "sub a --count", "pub a --nonsense", "ping --count 0",
        "sub x --timeout 3000000", "call a/b --timeout nan",
    ],
)
def test_usage_errors(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(words.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_the_longest_timeout_is_one_that_poll_takes() -> None:
    longest = parse_arguments(["sub", "x", "--timeout", str(MAX_SECONDS)]).timeout
    reader, writer = os.pipe()
    os.close(writer)
    poll = select.poll()
    poll.register(reader)
    assert poll.poll(longest * 1000)
    os.close(reader)
