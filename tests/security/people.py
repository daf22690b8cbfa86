"""Who takes part: users that are no one else's, and what a test has them do in processes of their own (stranger.py)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from ipcbus.daemon.namespaces import maps_some_only
from tests.daemons import ROOT, STOP_S, RunningDaemon, environment
from tests.wire import Wire

#: Numbers that no machine is likely to have given to anybody.
ALICE, BOB, MALLORY, OPERATORS = 46001, 46002, 46666, 46100

needs_users = pytest.mark.skipif(
    os.geteuid() != 0 or maps_some_only() is not None,
    reason="takes root, and a user namespace that knows all uids, to be other users",
)


class Program:
    """A program that a stranger runs. What it prints goes to memory, so that it never waits for us."""

    def __init__(self, of: Stranger, line: str, extra: Mapping[str, str]) -> None:
        self._of = of
        self._streams = [os.memfd_create("out"), os.memfd_create("err")]
        self._said = ["", ""]
        self.code: int | None = None
        self.pid: int = of.do("run", shlex.split(line), dict(extra), descriptors=tuple(self._streams))

    @property
    def out(self) -> str:
        """What it printed so far."""
        return self._read()[0]

    @property
    def err(self) -> str:
        """What it complained about so far."""
        return self._read()[1]

    def _read(self) -> list[str]:
        if self.code is not None:
            return self._said
        return [os.pread(each, 1 << 20, 0).decode(errors="backslashreplace") for each in self._streams]

    def wait(self) -> int:
        """Its exit code."""
        if self.code is None:
            code = self._of.do("wait", self.pid)
            self._said = self._read()
            self.code = code
            for each in self._streams:
                os.close(each)
        return self.code

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        if self.code is None:
            os.kill(self.pid, signal.SIGTERM)
        return self.wait()


class Stranger:
    """A process of user *uid*. Sockets that it makes are handed to us: to the kernel, and so to the bus, they are its own."""

    def __init__(self, uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> None:
        self.uid, self.gid, self.groups = uid, uid if gid is None else gid, groups
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(60)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.security.stranger", *map(str, (theirs.fileno(), uid, self.gid, *groups))],
                env=environment(),
                cwd=ROOT,
                pass_fds=(theirs.fileno(),),
            )
        self.pid = self._process.pid

    def do(self, name: str, *arguments: Any, descriptors: tuple[int, ...] = ()) -> Any:
        """Have it do one of ORDERS; raises the OSError that it got."""
        socket.send_fds(self._orders, [json.dumps([name, arguments]).encode()], descriptors)
        data, handed, _, _ = socket.recv_fds(self._orders, 1 << 20, 1)
        assert data, f"the process of uid {self.uid} ended"
        answer = json.loads(data)
        if "errno" in answer:
            raise OSError(answer["errno"] or 0, answer["text"])
        return socket.socket(fileno=handed[0]) if handed else answer["result"]

    def connect(self, daemon: RunningDaemon) -> Wire:
        """A connection to the bus, before HELLO."""
        return Wire(daemon.address, self.do("connect", daemon.path))

    def join(self, daemon: RunningDaemon, program: str = "test", features: tuple[str, ...] = ()) -> Wire:
        """A connection to the bus, after WELCOME."""
        wire = self.connect(daemon)
        wire.hello(program, features=features)
        return wire

    def start(self, line: str, **extra: str) -> Program:
        """Start a program (stranger.run) by a command line, with *extra* in the environment."""
        return Program(self, line, extra)

    def run(self, line: str, **extra: str) -> Program:
        """The same, to its end."""
        program = self.start(line, **extra)
        program.wait()
        return program

    def close(self) -> None:
        """End it."""
        self._orders.close()
        self._process.wait(STOP_S)
