"""``ipcbus call --stream``: real processes against a real daemon."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon, environment
from tests.threaded import WAIT_S, wait_for


class Service:
    """A program with generators, and what became of them."""

    def __init__(self, address: str) -> None:
        self.bus = ipcbus_client.connect(address)
        self.closed = threading.Event()
        self.made = 0
        for method in ("count", "forever", "fail", "raw"):
            self.bus.respond(f"svc/{method}", getattr(self, method))
        self.bus.respond("svc/plain", lambda request: {"no": "generator"})

    def count(self, request: ipcbus_client.Request) -> Iterator[Any]:
        for number in range(request.data):
            yield {"n": number}
        return "done"

    def raw(self, request: ipcbus_client.Request) -> Iterator[bytes]:
        yield request.data
        yield b"\x00\n"

    def fail(self, request: ipcbus_client.Request) -> Iterator[int]:
        yield 1
        raise ipcbus_client.ServiceError("too_hot", "stop it")

    def forever(self, request: ipcbus_client.Request) -> Iterator[str]:
        try:
            while True:
                self.made += 1
                yield "x" * 100
        finally:
            self.closed.set()


@pytest.fixture
def service(daemon: RunningDaemon) -> Iterator[Service]:
    made = Service(daemon.address)
    yield made
    made.bus.close()


def start(daemon: RunningDaemon, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ipcbus.cli.main", "call", *arguments]
    env = environment(IPCBUS_ADDRESS=daemon.address)
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("arguments", "out", "says", "code"),
    [
        (["svc/count", "3", "--stream"], b'{"n": 0}\n{"n": 1}\n{"n": 2}\n', b"", 0),
        (["svc/count", "0", "--stream"], b'"done"\n', b"", 0),
        (["svc/plain", "--stream"], b'{"no": "generator"}\n', b"", 0),
        (["svc/count", "2"], b'[{"n": 0}, {"n": 1}]\n', b"", 0),
        (["svc/raw", "ab", "--raw", "--stream"], b"ab\x00\n", b"", 0),
        (["svc/fail", "--stream"], b"1\n", b"too_hot: stop it", 6),
        (["svc/nothing", "--stream"], b"", b"not served", 5),
    ],
)
def test_values_are_lines(daemon: RunningDaemon, service: Service, arguments: list[str], out: bytes, says: bytes, code: int) -> None:
    child = start(daemon, *arguments)
    stdout, stderr = child.communicate(timeout=WAIT_S)
    assert (stdout, child.returncode) == (out, code), stderr
    assert says in stderr


@pytest.mark.parametrize("how", ["ctrl-c", "reader goes", "timeout"])
def test_a_stream_without_end_ends_cleanly(daemon: RunningDaemon, service: Service, how: str) -> None:
    child = start(daemon, "svc/forever", "--stream", *(["--timeout", "2"] if how == "timeout" else []))
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        assert child.stdout.readline() == b'"' + b"x" * 100 + b'"\n'
        if how == "reader goes":
            child.stdout.close()
        elif how == "ctrl-c":
            child.send_signal(signal.SIGINT)
        wait_for(service.closed.is_set, "the generator was not closed")
        if how == "timeout":
            child.stdout.read()
        code = child.wait(WAIT_S)
        assert b"Traceback" not in child.stderr.read()
    finally:
        child.kill()
        child.stdout.close()
        child.stderr.close()
        child.wait()
    if how == "ctrl-c":
        assert code == 130
    elif how == "timeout":
        assert code == 4
