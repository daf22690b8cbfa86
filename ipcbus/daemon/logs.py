"""The log: one line per event on standard error, as text or JSON, never more than the disk can bear.

Owns the format and the rate. Must not know what is logged. Text of strangers (program names, topics) is made harmless here, at the border.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable

from .limits import LOG_BURST_LINES, LOG_LINES_PER_S

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _harmless(text: str) -> str:
    """*text* without characters that could begin a line of their own or steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


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
            record.msg = f"({self._kept_back} lines kept back, more than {LOG_LINES_PER_S:g} a second) {record.getMessage()}"
            record.args = None
            self._kept_back = 0
        return True


def set_up(level: str, form: str) -> None:
    """Write the log to standard error at *level* (an option's word), as *form* (``text`` or ``json``). May be called again (SIGHUP)."""
    logger = logging.getLogger("ipcbus")
    if not logger.handlers:
        logging.raiseExceptions = False  # standard error may be gone: that must not stop the bus
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(RateLimit(time.monotonic))
        logger.addHandler(handler)
        logger.propagate = False
    logger.handlers[0].setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger.setLevel(level.upper())
