"""The log's lines: harmless, one per event, bounded."""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import sys

import pytest

from ipcbus.daemon import logs
from ipcbus.daemon.limits import LOG_BURST_LINES
from ipcbus.daemon.logs import JsonFormatter, RateLimit, StderrHandler, TextFormatter


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


def test_a_stranger_cannot_turn_a_line_around() -> None:
    line = TextFormatter().format(record("peer %s", "a\u202eb\u2066c\u200fd\ufeffe\xa0f ü漢"))
    assert line.endswith(r"warning: peer a\u202eb\u2066c\u200fd\ufeffe\xa0f ü漢")


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


@pytest.mark.parametrize("own", [True, False])
def test_a_pipe_that_is_full_is_not_waited_for(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not own:  # a standard error that cannot be opened anew: another user's, a socket
        monkeypatch.setattr(logs, "_own_description", lambda fd: None)
    reader, writer = os.pipe()
    handler = StderrHandler(writer)
    try:
        for number in range(3000):
            handler.emit(record("%d %s", number, "x" * 100))
        assert os.get_blocking(writer)
        assert not select.select([], [writer], [], 0)[1]
        first = os.read(reader, 1 << 20)
        written = first.count(b"\n")
        handler.emit(record("after"))
        handler.emit(record("last"))
        text = (first + os.read(reader, 1 << 20)).decode().splitlines()
    finally:
        handler.close()
        os.close(reader)
        os.close(writer)
    assert [int(line.split()[0]) for line in text[:-2]] == list(range(len(text) - 2))  # all of them whole
    assert len(text) - 2 in (written, written + 1)
    assert text[-2:] == [f"({3000 - (len(text) - 2)} lines kept back, standard error took no more) after", "last"]


def test_a_record_longer_than_a_pipe_goes_on_later() -> None:
    reader, writer = os.pipe()
    handler = StderrHandler(writer)
    try:
        handler.emit(record("%s", "x" * 300_000))
        read = b""
        while b"end" not in read:
            read += os.read(reader, 1 << 20)
            handler.emit(record("end"))
    finally:
        handler.close()
        os.close(reader)
        os.close(writer)
    first, second = read.decode().splitlines()[:2]
    assert first == "x" * 300_000
    assert second.endswith("lines kept back, standard error took no more) end")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_standard_error_that_fails_is_no_fault(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    handler = StderrHandler(writer)

    def fail(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(logs.os, "write", fail)
            handler.emit(record("lost"))
        handler.emit(record("there"))
        assert os.read(reader, 1000) == b"(1 lines kept back, standard error took no more) there\n"
    finally:
        handler.close()
        os.close(reader)
        os.close(writer)
