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

#: SIGHUP: the terminal was closed; the kernel and the shell may each send one
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ipcbus`` with *argv* (default: sys.argv) and return its exit code. Errors are one line on stderr."""
    prepare_streams()
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    command: Command = arguments.chosen
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _terminate)
    try:
        run = getattr(importlib.import_module(f".{command.module}", __package__), command.function)
        code = int(run(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _leave_quietly(Exit.INTERRUPTED)
    except SystemExit as leaving:
        _leave_quietly(Exit.OK)
        raise leaving
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


def _terminate(number: int, _frame: object) -> NoReturn:
    """The signal unwinds the stack, so that no command or daemon that we started is left behind. A second one must not end that."""
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _leave_quietly(code: Exit) -> int:
    """Let the interpreter's last flush of stdout go nowhere, where it cannot fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
