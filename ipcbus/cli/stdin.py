"""What a command sends: VALUE, or what stdin has, as JSON or as bytes.

Owns the reading of stdin and its limits. Knows nothing about the bus.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..protocol.limits import Limits
from .failures import usage
from .values import parse

MAX_BYTES = Limits().max_payload_bytes  #: more than a bus takes by default is refused before it is read into memory


def read_value(arguments: argparse.Namespace) -> Any:
    """The one value that VALUE and --raw say: of JSON, or bytes. Raises CommandError for what cannot be used."""
    text: str | None = arguments.value
    if text == "-":
        data = _read(sys.stdin.buffer)
        return data if arguments.raw else parse(data, "stdin")
    if arguments.raw:
        return b"" if text is None else text.encode(errors="surrogateescape")  # the bytes that the shell gave
    return None if text is None else parse(text)


def read_lines(arguments: argparse.Namespace) -> Iterator[Any]:
    """A value for each line of stdin, as it comes; empty lines are left out unless --raw.

    Raises CommandError, with the line's number.
    """
    number = 0
    while line := sys.stdin.buffer.readline(MAX_BYTES + 2):
        number += 1
        content = line.removesuffix(b"\n")
        if len(content) > MAX_BYTES:
            raise usage(f"line {number} of stdin is longer than {MAX_BYTES} bytes, the most that a message may have")
        if arguments.raw:
            yield content
        elif content.strip():
            yield parse(content, f"line {number} of stdin")


def _read(stream: BinaryIO) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise usage(f"stdin has more than {MAX_BYTES} bytes, the most that a message may have")
    return data
