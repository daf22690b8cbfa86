"""The log's lines: harmless, one per event, bounded."""

from __future__ import annotations

import json
import logging
import sys

from ipcbus.daemon.limits import LOG_BURST_LINES
from ipcbus.daemon.logs import JsonFormatter, RateLimit, TextFormatter


def record(text: str, *args: object, fault: bool = False) -> logging.LogRecord:
    made = logging.LogRecord("ipcbus", logging.WARNING, "file", 1, text, args, None)
    made.created, made.msecs = 0.25, 250.0
    if fault:
        try:
            raise ValueError("bad\nINJECTED")
        except ValueError:
            made.exc_info = sys.exc_info()
    return made


def test_a_stranger_cannot_begin_a_line() -> None:
    line = TextFormatter().format(record("peer %s", "x\n2026 info: fake\x1b[31m\u2028\udc80é"))
    assert line.endswith(r"warning: peer x\n2026 info: fake\x1b[31m\u2028\udc80é")
    assert "\n" not in line
    line.encode()


def test_tracebacks_are_indented() -> None:
    lines = TextFormatter().format(record("fault", fault=True)).splitlines()
    assert lines[0].endswith(".250" + lines[0][23:28] + " warning: fault")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "ValueError" in lines[-2]


def test_json_is_one_line() -> None:
    line = JsonFormatter().format(record("a\nb", fault=True))
    assert "\n" not in line
    event = json.loads(line)
    assert (event["level"], event["message"]) == ("warning", "a\nb")
    assert "ValueError" in event["traceback"]


def test_rate_limit_tells_what_it_kept_back() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    passed = sum(limit.filter(record("x")) for _ in range(LOG_BURST_LINES + 70))
    assert passed == LOG_BURST_LINES
    now = 1.0
    made = record("after %s", "all")
    assert limit.filter(made)
    assert made.getMessage() == "(70 lines kept back, more than 50 a second) after all"
    assert limit.filter(record("next"))
