"""``ipcbus``: everything a person types. Owns what every way out of a command looks like.

A command's module is imported only when it was asked for, and the client library only by it, because ``ipcbus pub`` is
called in loops.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands import Command
from .connection import describe
from .failures import CommandError, Exit, explain
from .parsing import parse_arguments
from .text import complain, prepare_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ipcbus`` with *argv* (default: sys.argv) and return its exit code. Errors are one line on stderr."""
    prepare_streams()
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    command: Command = arguments.chosen
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run = getattr(importlib.import_module(f".{command.module}", __package__), command.function)
        code = int(run(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _leave_quietly(Exit.INTERRUPTED)
    except BrokenPipeError:
        return _leave_quietly(Exit.OK)  # the reader of our output has what it wanted, as in `| head -1`
    except CommandError as error:
        complain(error.text)
        return error.exit
    except Exception as error:
        known = explain(error, describe(arguments)) if hasattr(arguments, "address") else None
        if known is None and not isinstance(error, OSError):
            raise  # a fault of ours: its traceback is the best report (exit code 1)
        complain(known.text if known else str(error))
        return known.exit if known else Exit.INTERNAL


def _terminate(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds the stack, so that no command or daemon that we started is left behind."""
    raise SystemExit(128 + signal.SIGTERM)


def _leave_quietly(code: Exit) -> int:
    """Let the interpreter's last flush of stdout go nowhere, where it cannot fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
