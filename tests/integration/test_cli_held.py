"""``ipcbus pub`` before a slow subscriber, and ``ipcbus sub`` as one: what a person is told on stderr."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon
from tests.integration.test_cli import WAIT_S, Cli, command


@pytest.fixture
def cli(daemon: RunningDaemon) -> Iterator[Cli]:
    runner = Cli(daemon)
    yield runner
    runner.finish()


def lines(count: int) -> bytes:
    return b"".join(b"%06d%s\n" % (n, b"x" * 994) for n in range(count))


def test_pub_says_who_holds_it_and_waits(cli: Cli, daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, program="tail") as reader:
        limits = {"soft": 20_000, "seconds": 60.0}
        sub = reader.subscribe("log", policy="block", limits=limits, window_bytes=1000)
        child = cli.start("pub", "log", "--lines", "--raw", stdin=subprocess.PIPE)
        assert child.stdin is not None
        assert child.stderr is not None
        count = 0
        while not select.select([child.stderr], [], [], 0.01)[0]:
            child.stdin.write(b"%06d%s\n" % (count, b"x" * 993))
            child.stdin.flush()
            count += 1
            assert count < 1000
        said = child.stderr.readline().decode()
        who = rf"ipcbus: publications to 'log' are held by the subscription 'log' of :{reader.peer_id} \(tail\), for which \d+ bytes wait"
        assert re.match(who, said), said
        assert [int(sub.get(WAIT_S).payload[:6]) for _ in range(count)] == list(range(count))
        child.communicate(timeout=WAIT_S)
        assert child.returncode == 0


#: It is for the connection too.
TIMEOUT = ("--timeout", "2")


def test_pub_with_a_timeout_gives_up(cli: Cli, daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, program="tail") as reader:
        reader.subscribe("log", policy="block", limits={"soft": 20_000, "seconds": 60.0}, window_bytes=1000)
        child = cli.start("pub", "log", "--lines", "--raw", *TIMEOUT, stdin=subprocess.PIPE)
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for line in lines(1000).splitlines(keepends=True):  # one by one, and no more than the bus parks
                child.stdin.write(line)
                child.stdin.flush()
                time.sleep(0.01)
        said = child.communicate(timeout=WAIT_S)[1].decode()
        assert child.returncode == 4
        assert f"are held by the subscription 'log' of :{reader.peer_id} (tail)" in said.splitlines()[-1]
        assert said.endswith("this one was not taken; give it more with --timeout SECONDS\n"), said


def test_pub_that_is_not_read_any_more_says_who_holds_it_too(cli: Cli, daemon: RunningDaemon) -> None:
    """It may have written more than the bus parks before it reads the notice, and gives up where the kernel takes nothing."""
    with ipcbus_client.connect(daemon.address, program="tail") as reader:
        reader.subscribe("log", policy="block", limits={"soft": 20_000, "seconds": 60.0}, window_bytes=1000)
        done = cli("pub", "log", "--lines", "--raw", *TIMEOUT, stdin=lines(20_000))
        assert done.returncode == 4
        assert f"the subscription 'log' of :{reader.peer_id} (tail), for which " in done.stderr.splitlines()[-1]
        assert done.stderr.endswith("; give it more with --timeout SECONDS\n"), done.stderr


def test_sub_that_is_too_slow_is_told_what_it_lost(cli: Cli, daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as bus:
        child = cli.subscribe("log", "--raw", "--policy", "drop_oldest", "--soft", "100000", "--hard", "200000", "--seconds", "60")
        for n in range(4000):  # more than its window and the pipe hold
            bus.publish("log", b"%06d%s" % (n, b"x" * 993 + b"\n"))
        bus.flush(WAIT_S)
        bus.publish("log", "last")
        bus.flush(WAIT_S)
        assert child.stdout is not None
        assert child.stderr is not None
        seen = []
        while not seen or seen[-1] != 3999:
            seen.append(int(child.stdout.readline()[:6]))
        said = [child.stderr.readline().decode() for _ in range(3)]
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=WAIT_S)
        assert re.fullmatch(r"ipcbus: log lags behind: \d+ messages of \d+ bytes wait at the bus\n", said[0]), said
        assert said[1] == f"ipcbus: {4000 - len(seen)} messages of log were lost (too_slow)\n"
        assert said[2] == f"ipcbus: log has caught up; {4000 - len(seen)} messages were lost meanwhile\n"
        assert seen == sorted(seen)


@pytest.mark.parametrize("arguments", [("--policy", "drop"), ("--soft", "0"), ("--hard", "x"), ("--seconds", "-1")])
def test_illegal_options(arguments: tuple[str, str]) -> None:
    done = subprocess.run(command("sub", "t", *arguments), capture_output=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert arguments[0].encode() in done.stderr


def test_limits_that_contradict_each_other(cli: Cli) -> None:
    done = cli("sub", "t", "--soft", "2", "--hard", "1")
    assert (done.returncode, done.stderr) == (2, "ipcbus: limits: soft=2 is over hard=1\n")
    done = cli("sub", "t", "--group", "g", "--policy", "disconnect")
    assert (done.returncode, "not for a group" in done.stderr) == (2, True)
