"""From words to arguments: the parsers, made from the table of commands.

Owns the order of words: options may stand anywhere, as people write them (argparse alone would not take `pub TOPIC --raw VALUE`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from .. import __version__
from .commands import BUS_OPTIONS, COMMANDS, Argument, Command
from .failures import EXIT_CODES
from .values import RENDERING

_NUMBER = re.compile(r"-[0-9.]")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments that *words* give, with the Command as ``chosen``. Ends the program for --help, --version and usage errors."""
    command = next((item for item in COMMANDS if words and item.name == words[0]), None)
    if command is None:
        parser = overview()
        parser.parse_args(words)
        parser.error("give a COMMAND; `ipcbus --help` lists them")
    arguments = parser_of(command).parse_args(options_first(command, words[1:]))
    arguments.chosen = command
    return arguments


def overview() -> argparse.ArgumentParser:
    """The parser of `ipcbus` without a command: for its --help and its errors."""
    parser = argparse.ArgumentParser(
        prog="ipcbus",
        description="Talk to a bus for the programs of this machine. `ipcbus COMMAND --help` has examples.",
        epilog=f"{RENDERING}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ipcbus {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparsers.add_parser(command.name, help=command.summary)
    return parser


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser of one command, with the options that all have."""
    parser = argparse.ArgumentParser(
        prog=f"ipcbus {command.name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=f"examples:{command.text}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in arguments_of(command):
        parser.add_argument(*argument.flags, **argument.options)
    return parser


def options_first(command: Command, words: Sequence[str]) -> list[str]:
    """*words* with the options before the rest. What follows ``--`` stays as it is."""
    valued = {flag for item in arguments_of(command) for flag in item.flags if item.options.get("action") in (None, "append")}
    options, rest = [], []
    at = 0
    while at < len(words) and words[at] != "--":
        word = words[at]
        at += 1
        if not word.startswith("-") or word == "-" or _NUMBER.match(word):
            rest.append(word)
            continue
        options.append(word)
        if word in valued and at < len(words):
            options.append(words[at])
            at += 1
    if "--" in words:
        rest += words[at + 1 :]
    return [*options, "--", *rest] if rest else options


def arguments_of(command: Command) -> tuple[Argument, ...]:
    """Its own, and those that all commands with a bus have."""
    return command.arguments + (BUS_OPTIONS if command.needs_bus else ())
