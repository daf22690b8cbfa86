"""The log: one line per event on standard error, as text or JSON, never more than the disk can bear, and never waited for.

Owns the format, the rate and the writing. Must not know what is logged. Text of strangers (program names, topics) is made harmless here,
at the border.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Callable

from .limits import LOG_BURST_LINES, LOG_LINES_PER_S, LOG_WRITE_BYTES


def _harmless(text: str) -> str:
    """*text* without characters that could begin a line of their own, steer a terminal, or change the order in which one shows the rest."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123+0100 warning: message``; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One event; it has several lines only where there is a traceback."""
        text = f"{_when(record)} {record.levelname.lower()}: {_harmless(record.getMessage())}"
        if record.exc_info:
            text += "".join("\n    " + _harmless(line) for line in self.formatException(record.exc_info).splitlines())
        return text


class JsonFormatter(logging.Formatter):
    """An object per line: ``time``, ``level``, ``message``, and ``traceback`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One event, one line."""
        event = {"time": _when(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event)


def _when(record: logging.LogRecord) -> str:
    local = time.localtime(record.created)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(record.msecs):03d}{time.strftime('%z', local)}"


class RateLimit(logging.Filter):
    """Lets LOG_BURST_LINES through and then LOG_LINES_PER_S; the first line after a silence says how many were kept back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._at = clock()
        self._tokens = float(LOG_BURST_LINES)
        self._kept_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether *record* may be written now."""
        now = self._clock()
        self._tokens = min(LOG_BURST_LINES, self._tokens + (now - self._at) * LOG_LINES_PER_S)
        self._at = now
        if self._tokens < 1:
            self._kept_back += 1
            return False
        self._tokens -= 1
        if self._kept_back:
            _put_before(record, f"({self._kept_back} lines kept back, more than {LOG_LINES_PER_S:g} a second)")
            self._kept_back = 0
        return True


def _put_before(record: logging.LogRecord, text: str) -> None:
    record.msg, record.args = f"{text} {record.getMessage()}", None


class StderrHandler(logging.Handler):
    """Writes to a descriptor without ever waiting for its reader, because the thread that logs is the one that serves the bus.

    Records come out whole: of one that the kernel takes a part of, the rest goes first next time. Until it is gone others are dropped,
    and the next one that is written says how many.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._own = _own_description(descriptor)
        self._fd = descriptor if self._own is None else self._own
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._rest = b""  #: of one record
        self._kept_back = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, or count it. An error (its reader left, the disk is full, no memory is left) is no more than a lost line."""
        if not self._push():
            self._kept_back += 1
            return
        try:
            if self._kept_back:
                record = copy.copy(record)  # other handlers have it too
                _put_before(record, f"({self._kept_back} lines kept back, standard error took no more)")
            self._rest = self.format(record).encode(errors="backslashreplace") + b"\n"
            self._write()
            self._kept_back = 0
        except Exception:  # noqa: BLE001  # who logs has other things to do
            self._rest = b""
            self._kept_back += 1

    def flush(self) -> None:
        """Offer the rest of the last record once more."""
        self._push()

    def close(self) -> None:
        """Give back what the constructor opened. Idempotent; the descriptor that it got stays open."""
        if self._own is not None:
            os.close(self._own)
            self._own = None
        self._rest = b""
        super().close()

    def _push(self) -> bool:
        """Whether nothing of former records is left."""
        try:
            self._write()
        except (OSError, MemoryError):
            self._rest = b""
        return not self._rest

    def _write(self) -> None:
        """Write what the kernel takes now. Raises OSError for anything but that it takes no more."""
        while self._rest and self._poll.poll(0):
            try:
                self._rest = self._rest[os.write(self._fd, self._rest[:LOG_WRITE_BYTES]) :]
            except BlockingIOError:
                return


def _own_description(descriptor: int) -> int | None:
    """A non-blocking descriptor for the same pipe or terminal, None for what cannot be opened again (a socket) or needs not (a file).

    O_NONBLOCK belongs to the open file description, which an inherited standard error shares with the shell and others. Without one of
    our own a poll must do, which somebody who writes to the same pipe at the same moment can make wrong.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's, or /proc is not there
        return None


def set_up(level: str, form: str) -> None:
    """Write the log to standard error at *level* (an option's word), as *form* (``text`` or ``json``). May be called again (SIGHUP)."""
    logger = logging.getLogger("ipcbus")
    if not logger.handlers:
        logging.raiseExceptions = False  # a line that cannot be made into text must not stop the bus
        handler = StderrHandler(sys.stderr.fileno())
        handler.addFilter(RateLimit(time.monotonic))
        logger.addHandler(handler)
        logger.propagate = False
    logger.handlers[0].setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger.setLevel(level.upper())
