"""``ipcbus`` as a person runs it: real processes against a real daemon; stdout, stderr and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import ipcbus_client
from ipcbus.cli.connection import open_bus
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment
from tests.wire import Wire

WAIT_S = 20.0  #: far above what anything here takes


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ipcbus.cli.main", *arguments]


class Cli:
    """Runs ``ipcbus`` against one daemon; ends what it started."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self.env = environment(IPCBUS_ADDRESS=daemon.address)
        self.address = daemon.address
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command(*arguments), env=self.env, input=stdin, capture_output=True, timeout=WAIT_S, check=False)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, stdin: bytes = b"") -> str:
        done = self(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self._started.append(subprocess.Popen(command(*arguments), env=self.env, **pipes))
        return self._started[-1]

    def subscribe(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `ipcbus sub` and return when the bus knows it."""
        with ipcbus_client.connect(self.address, program="test") as bus:
            lanes = bus.stats()["lanes"]
            child = self.start("sub", *arguments, **options)
            until(lambda: bus.stats()["lanes"] > lanes)
        return child

    def serve(self, to: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `ipcbus serve` and return when the bus knows the method."""
        child = self.start("serve", to, *arguments)
        with ipcbus_client.connect(self.address, program="test") as bus:
            name, _, method = to.partition("/")
            until(lambda: any(item["name"] == name and method in item["methods"] for item in bus.names()))
        return child

    def finish(self) -> None:
        for child in self._started:
            if child.poll() is None:
                child.kill()
            child.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def cli(daemon: RunningDaemon) -> Iterator[Cli]:
    runner = Cli(daemon)
    yield runner
    runner.finish()


@pytest.fixture
def bus(daemon: RunningDaemon) -> Iterator[ipcbus_client.Bus]:
    with ipcbus_client.connect(daemon.address, program="test") as connected:
        yield connected


# --- get ----------------------------------------------------------------------------------------------------------


def test_get_prints_what_is_kept(cli: Cli) -> None:
    cli.ok("pub", "room.hall", "--retain", '{"t": 21.5}')
    assert cli.ok("get", "room.hall") == '{"t": 21.5}\n'
    said = json.loads(cli.ok("get", "room.hall", "--json"))
    assert (said["topic"], said["data"], said["retained"], said["headers"]) == ("room.hall", {"t": 21.5}, True, {})
    cli.ok("pub", "room.hall", "--retain", "--raw", "-", stdin=b"\xff\x00")
    done = subprocess.run(command("get", "room.hall", "--raw"), env=cli.env, capture_output=True, timeout=WAIT_S, check=True)
    assert done.stdout == b"\xff\x00"
    for words, code, says in (
        (("room.attic",), 5, "nothing is kept for room.attic"),
        (("room.*",), 2, "room.*"),
        (("room.hall", "--raw", "--json"), 2, "exclude each other"),
    ):
        failed = cli("get", *words)
        assert (failed.returncode, failed.stdout) == (code, "")
        assert says in failed.stderr


def test_pub_tells_how_many_took_it_and_how_long_it_lives(cli: Cli, bus: ipcbus_client.Bus) -> None:
    assert cli.ok("pub", "door.ring", "--confirm", "1") == "0\n"
    one, two = bus.subscribe("door.*"), bus.subscribe(">")
    assert cli.ok("pub", "door.ring", "--confirm", "--lines", stdin=b"1\n2\n") == "2\n2\n"
    assert [one.get(WAIT_S).data, one.get(WAIT_S).data, two.get(WAIT_S).data] == [1, 2, 1]
    cli.ok("pub", "door.state", "--retain", "--ttl", "0.05", "3")
    until(lambda: bus.get("door.state") is None)


# --- pub and sub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "data"),
    [
        (['{"t": 21.5}'], b"", {"t": 21.5}),
        (["-5"], b"", -5),
        (['"text"'], b"", "text"),
        ([], b"", None),
        (["-"], b'[1, "\xc3\xa9"]', [1, "é"]),
        (["--raw", "it's"], b"", b"it's"),
        (["--raw", "-"], b"\xff\x00\n", b"\xff\x00\n"),
    ],
)
def test_pub_sends_the_value(cli: Cli, bus: ipcbus_client.Bus, arguments: list[str], stdin: bytes, data: Any) -> None:
    subscription = bus.subscribe("room.*")
    assert cli.ok("pub", "room.kitchen", *arguments, stdin=stdin) == ""
    message = subscription.get(timeout=WAIT_S)
    assert (message.topic, message.data, message.retained) == ("room.kitchen", data, False)


def test_pub_lines(cli: Cli, bus: ipcbus_client.Bus) -> None:
    subscription = bus.subscribe("log")
    cli.ok("pub", "log", "--lines", stdin=b'1\n\n"two"\n{"three": 3}')
    cli.ok("pub", "log", "--lines", "--raw", stdin=b"a\n\nb\n")
    assert [subscription.get(timeout=WAIT_S).data for _ in range(6)] == [1, "two", {"three": 3}, b"a", b"", b"b"]


def test_a_bad_line_names_itself_and_the_ones_before_are_sent(cli: Cli, bus: ipcbus_client.Bus) -> None:
    subscription = bus.subscribe("log")
    done = cli("pub", "log", "--lines", stdin=b"1\n2\nthree\n4\n")
    assert done.returncode == 2
    assert done.stderr.startswith("ipcbus: line 3 of stdin is not JSON: 'three'")
    assert [subscription.get(timeout=WAIT_S).data for _ in range(2)] == [1, 2]


def test_retained_values_come_first_and_can_be_removed(cli: Cli) -> None:
    cli.ok("pub", "--retain", "room.a", "1")
    assert cli.ok("sub", "room.*", "--count", "1", "--timeout", "20") == "room.a 1\n"
    assert cli("sub", "room.*", "--no-retained", "--timeout", "0.3").returncode == 4
    cli.ok("pub", "--retain", "--raw", "room.a", "")
    assert cli("sub", "room.*", "--timeout", "0.3").returncode == 4


def test_sub_prints_a_line_at_a_time(cli: Cli, bus: ipcbus_client.Bus) -> None:
    child = cli.subscribe("room.>", "--count", "2")
    assert child.stdout is not None
    bus.publish("room.a", {"t": 1})
    bus.flush()
    assert child.stdout.readline() == b'room.a {"t": 1}\n'  # it is a pipe, and the line is here before the end
    bus.publish("room.b.c", "x\x1b[31m")
    bus.flush()
    assert child.communicate(timeout=WAIT_S) == (b'room.b.c "x\\u001b[31m"\n', b"")
    assert child.returncode == 0


def test_sub_json_has_everything(cli: Cli, bus: ipcbus_client.Bus) -> None:
    child = cli.subscribe("room.*", "--json", "--count", "3")
    bus.publish("room.a", {1: b"\xff"}, headers={"unit": "K"}, retain=True)
    bus.publish("room.b", msgpack.Timestamp(0, 0))
    bus.publish("room.c", headers={"encoding": 77})
    out, err = child.communicate(timeout=WAIT_S)
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "topic": "room.a",
            "data": {"$map": [[1, {"$base64": "/w=="}]]},
            "sender": bus.peer_id,
            "retained": True,
            "headers": {"unit": "K"},
        },
        {
            "topic": "room.b",
            "data": {"$time": "1970-01-01T00:00:00.000000000Z"},
            "sender": bus.peer_id,
            "retained": False,
            "headers": {},
        },
        {"topic": "room.c", "data": {"$undecodable": "wA=="}, "sender": bus.peer_id, "retained": False, "headers": {}},
    ]
    assert b"encoding 77" in err


def test_sub_raw_prints_the_bytes(cli: Cli, bus: ipcbus_client.Bus) -> None:
    child = cli.subscribe("camera", "--raw", "--count", "1")
    bus.publish("camera", b"\xff\x00\n")
    assert child.communicate(timeout=WAIT_S)[0] == b"\xff\x00\n"


def test_several_patterns_and_a_group(cli: Cli, bus: ipcbus_client.Bus) -> None:
    child = cli.subscribe("a", "b", "--group", "g", "--count", "2")
    until(lambda: bus.stats()["lanes"] == 2)
    bus.publish("a", 1)
    bus.publish("b", 2)
    assert sorted(child.communicate(timeout=WAIT_S)[0].splitlines()) == [b"a 1", b"b 2"]


def test_a_reader_that_leaves_ends_sub_quietly(cli: Cli, bus: ipcbus_client.Bus) -> None:
    child = cli.subscribe("a")
    assert child.stdout is not None
    assert child.stderr is not None
    bus.publish("a", 1)
    assert child.stdout.readline() == b"a 1\n"
    child.stdout.close()  # as `head -1` does; no further message is needed
    assert child.wait(WAIT_S) == 0
    assert child.stderr.read() == b""


def test_a_reader_that_leaves_a_flood_too(cli: Cli, bus: ipcbus_client.Bus) -> None:
    for number in range(2000):
        bus.publish(f"t.{number}", "x" * 100, retain=True)
    bus.flush()
    line = f"{sys.executable} -m ipcbus.cli.main sub 't.*' | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], env=cli.env, capture_output=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stderr, done.stdout[:4]) == (0, b"", b"t.0 ")


def test_ctrl_c_ends_sub_with_130(cli: Cli) -> None:
    child = cli.subscribe(">")
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=WAIT_S) == (b"", b"")
    assert child.returncode == 130


def test_sub_tells_a_reconnect(cli: Cli, daemon: RunningDaemon, daemon_factory: DaemonFactory) -> None:
    child = cli.subscribe("a", "--count", "1", "--timeout", "20")
    daemon.kill()
    again = daemon_factory(at=daemon.directory)
    with ipcbus_client.connect(again.address) as bus:
        until(lambda: bus.stats()["lanes"] == 1)
        bus.publish("a", 1)
    out, err = child.communicate(timeout=WAIT_S)
    assert out == b"a 1\n"
    assert b"ipcbus: reconnected: messages of a may be missing here\n" in err


def test_what_the_bus_refuses_is_told(daemon_factory: DaemonFactory) -> None:
    cli = Cli(daemon_factory(config="[limits]\nmax_retained_topics = 0\n"))
    done = cli("pub", "--retain", "a", "1")
    assert done.returncode == 5
    assert "ipcbus: the bus refused 1 of the messages to a, as said above; where it only keeps no more" in done.stderr


def test_pub_waits_while_the_bus_holds_it(daemon_factory: DaemonFactory) -> None:
    """L-7: a subscriber that does not read holds publishers for lane_stall_s, which is no reason to give up."""
    daemon = daemon_factory(config="[limits]\nlane_stall_s = 1.5\n")
    cli = Cli(daemon)
    with Wire(daemon.address) as stuck:
        stuck.hello("stuck")
        stuck.subscribe("log")
        begun = time.monotonic()
        done = cli("pub", "log", "--lines", "--raw", stdin=(b"x" * 99_999 + b"\n") * 200)
        assert done.returncode == 0
        assert "ipcbus: publications to 'log' are held by the subscription 'log' of :1 (stuck), for which" in done.stderr
        assert time.monotonic() - begun > 1.0, "it was held"


def test_a_bad_line_is_told_although_the_bus_is_gone(cli: Cli, bus: ipcbus_client.Bus, daemon: RunningDaemon) -> None:
    subscription = bus.subscribe("log")
    child = cli.start("pub", "log", "--lines", stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b"1\n")
    child.stdin.flush()
    assert subscription.get(timeout=WAIT_S).data == 1
    daemon.kill()
    _, err = child.communicate(b"three\n", timeout=WAIT_S)
    assert (child.returncode, err.startswith(b"ipcbus: line 2 of stdin is not JSON")) == (2, True), err


# --- call and serve -----------------------------------------------------------------------------------------------


def test_call_and_serve_with_json(cli: Cli) -> None:
    cli.serve("math/double", "--", sys.executable, "-c", "import json, sys; print(json.dumps(json.load(sys.stdin) * 2))")
    assert cli.ok("call", "math/double", "21") == "42\n"
    assert cli.ok("call", "math/double", '"ab"') == '"abab"\n'


def test_serve_raw_text_and_any_method(cli: Cli) -> None:
    cli.serve("cat/raw", "--raw", "--", "cat")
    cli.serve("say/*", "--text", "--", "sh", "-c", 'echo "$IPCBUS_METHOD from $IPCBUS_SENDER"')
    assert cli.ok("call", "--raw", "cat/raw", "-", stdin=b"\x01\n") == "\x01\n"
    assert cli.ok("call", "say/hello").startswith('"hello from ')


def test_a_command_knows_who_asks(cli: Cli) -> None:
    says = 'echo "$IPCBUS_SENDER_UID,$IPCBUS_SENDER_GID,$IPCBUS_SENDER_IDENTITY,$IPCBUS_SENDER_PID,${IPCBUS_SENDER_UNIT-none}"'
    cli.serve("who/asks", "--text", "--", "sh", "-c", says)
    uid, gid, identity, pid, unit = cli.ok("call", "who/asks").strip().strip('"').split(",")
    assert (int(uid), int(gid), identity) == (os.getuid(), os.getgid(), "")
    assert int(pid) > 1
    assert unit != "none"


def test_a_command_that_fails_is_an_error_of_the_service(cli: Cli) -> None:
    child = cli.serve("bad/method", "--count", "1", "--", "sh", "-c", "echo reason >&2; exit 7")
    done = cli("call", "bad/method")
    assert done.returncode == 6
    assert done.stderr == "ipcbus: bad/method answered with exit-7: reason\n"
    assert child.wait(WAIT_S) == 0  # after --count answers


def test_output_that_is_not_json_says_what_to_do(cli: Cli) -> None:
    child = cli.serve("bad/method", "--count", "1", "--", "date")
    done = cli("call", "bad/method")
    assert (done.returncode, "bad-output" in done.stderr) == (6, True)
    assert b"--raw" in child.communicate(timeout=WAIT_S)[1]


def test_a_command_is_killed_when_its_caller_gives_up(cli: Cli, short_dir: Path) -> None:
    pid_file = short_dir / "pid"
    cli.serve("slow/method", "--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 100")
    done = cli("call", "slow/method", "--timeout", "0.5")
    assert done.returncode == 4
    assert "--timeout" in done.stderr
    until(pid_file.exists)
    until(lambda: gone(int(pid_file.read_text())))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_service_that_is_ended_leaves_no_command_behind(cli: Cli, short_dir: Path, number: int, code: int) -> None:
    pid_file = short_dir / "pid"
    child = cli.serve("slow/method", "--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 100")
    caller = cli.start("call", "slow/method", "--timeout", "50")
    until(lambda: pid_file.exists() and pid_file.read_text() != "")
    child.send_signal(number)
    assert child.wait(WAIT_S) == code
    assert gone(int(pid_file.read_text()))
    assert caller.wait(WAIT_S) == 6
    assert b"stopping" in caller.communicate()[1]


def test_nohup(cli: Cli) -> None:
    line = f"trap '' HUP; exec {shlex.join(command('sub', 'x', '--timeout', '1'))}"
    child = subprocess.Popen(["sh", "-c", line], env=cli.env, stdout=subprocess.DEVNULL)
    with ipcbus_client.connect(cli.address, program="test") as bus:
        until(lambda: bus.stats()["lanes"] > 0)
    child.send_signal(signal.SIGHUP)
    assert child.wait(WAIT_S) == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_requests_that_wait_at_the_end_start_no_command(cli: Cli, short_dir: Path, number: int, code: int) -> None:
    pids = short_dir / "pids"
    child = cli.serve("slow/method", "--", "sh", "-c", f"echo $$ >> {pids}; exec sleep 100")
    callers = [cli.start("call", "slow/method", "--timeout", "50") for _ in range(4)]
    until(lambda: pids.exists() and pids.read_text() != "")
    with ipcbus_client.connect(cli.address, program="test") as bus:
        until(lambda: bus.stats()["requests"] == 4)
    child.send_signal(number)
    assert child.wait(WAIT_S) == code
    started = pids.read_text().split()
    assert (len(started), [gone(int(pid)) for pid in started]) == (1, [True])
    assert [caller.wait(WAIT_S) for caller in callers] == [6, 6, 6, 6]


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.mark.parametrize(
    ("to", "code", "says"),
    [("nobody/method", 5, "ipcbus names"), ("bus/nothing", 5, "names"), (":99999/x", 5, "ipcbus peers"), ("bad name/x", 2, "bad name")],
)
def test_calls_that_cannot_work(cli: Cli, to: str, code: int, says: str) -> None:
    done = cli("call", to)
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_reply_that_cannot_be_printed_is_the_services_fault(cli: Cli, bus: ipcbus_client.Bus) -> None:
    def deep(request: ipcbus_client.Request) -> Any:
        value: Any = None
        for _ in range(505):  # as deep as msgpack packs
            value = [value]
        return value

    bus.respond("deep/value", deep)
    done = cli("call", "deep/value")
    assert (done.returncode, done.stdout, "nested too deeply" in done.stderr) == (6, "", True), done


def test_a_taken_name_is_refused(cli: Cli, bus: ipcbus_client.Bus) -> None:
    bus.own("mine")
    done = cli("serve", "mine/method", "--", "true")
    assert done.returncode == 5
    assert "mine" in done.stderr


# --- lists --------------------------------------------------------------------------------------------------------


def test_lists(cli: Cli, bus: ipcbus_client.Bus) -> None:
    bus.respond("thermostat/set", lambda request: None)
    bus.publish("room.a", 1, retain=True)
    bus.flush()
    names = json.loads(cli.ok("names", "--json"))
    assert [(item["name"], item["owners"], item["methods"]) for item in names] == [("thermostat", [bus.peer_id], ["set"])]
    assert cli.ok("names").splitlines()[0].split() == ["name", "mode", "owners", "waiting", "methods"]
    peers = json.loads(cli.ok("peers", "--json"))
    assert {"test", "ipcbus peers"} <= {item["program"] for item in peers}
    assert f"{os.getpid()}" in cli.ok("peers")
    topics = json.loads(cli.ok("topics", "--json"))
    assert [(item["topic"], item["messages"]) for item in topics if item["topic"] == "room.a"] == [("room.a", 1)]
    assert "room.a" in cli.ok("topics")
    assert json.loads(cli.ok("stats", "--json"))["retained"] == 1
    assert "retained_bytes" in cli.ok("stats")
    assert json.loads(cli.ok("call", "bus/stats"))["retained"] == 1


def test_a_program_name_cannot_act_on_the_terminal(cli: Cli, daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address, program="evil\x1b[2J"):
        assert "evil\\u001b[2J" in cli.ok("peers")


def test_ping(cli: Cli) -> None:
    lines = cli.ok("ping", "--count", "3", "--interval", "0.001").splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("3 round trips in ms: min ")
    figures = json.loads(cli.ok("ping", "--count", "3", "--interval", "0.001", "--json"))
    assert set(figures) == {"count", "min_ms", "avg_ms", "p50_ms", "p99_ms", "max_ms"}
    assert 0 < figures["min_ms"] <= figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_a_bus_that_answers_late_is_waited_for(daemon: RunningDaemon) -> None:
    """Without --timeout it is 5 s, as --help says, however soon the bus was connected."""
    arguments = argparse.Namespace(address=daemon.address, bus=None, secret_file=None, identity=None)
    with open_bus(arguments, program="test", wait_s=None) as bus:
        daemon.signal(signal.SIGSTOP)
        later = threading.Timer(1.0, daemon.signal, (signal.SIGCONT,))
        later.start()
        try:
            assert bus.stats()["pid"] == daemon.pid
        finally:
            later.join()


# --- errors and the parser ----------------------------------------------------------------------------------------


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**env), input="", capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pub", "a", "hello"], "--raw"),
        (["pub", "a", "--lines", "1"], "stdin"),
        (["pub"], "TOPIC"),
        (["sub", "a", "--count", "0"], "at least 1"),
        (["sub", "a", "--timeout", "-1"], "seconds above 0"),
        (["sub", "a", "--raw", "--json"], "exclude"),
        (["serve", "a/b", "--", "no-such-command-here"], "$PATH"),
        (["serve", "a/b", "--raw", "--text", "--", "true"], "exclude"),
        (["demo", "--seconds", "1"], "use 4"),
        (["names", "--address", "nonsense"], "unix:/absolute/path"),
        (["names", "--address", "unix:/x", "--bus", "y"], "not both"),
        (["names", "--address", "tcp:10.0.0.1:1"], "loopback"),
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("topic", ["a..b", "a.*", "$bus.x", ""])
def test_illegal_topics_are_usage_errors(cli: Cli, topic: str) -> None:
    done = cli("pub", topic, "1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done


def test_values_that_cannot_be_sent_are_usage_errors(cli: Cli) -> None:
    done = cli("pub", "a", "123456789012345678901234567890")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done


@pytest.mark.parametrize("bind", [False, True], ids=["no socket", "a dead socket"])
def test_no_bus_says_how_to_start_one_at_once(short_dir: Path, bind: bool) -> None:
    if bind:
        subprocess.run(
            [sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).bind('{short_dir}/x.sock')"], check=True, timeout=WAIT_S
        )
    begun = time.monotonic()
    done = run("names", "--address", f"unix:{short_dir}/x.sock")
    assert done.returncode == 3
    assert done.stderr.startswith(f"ipcbus: no bus at unix:{short_dir}/x.sock: start one with `ipcbusd`")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - begun < 4.0


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_reason_to_fail(cli: Cli, redirection: str) -> None:
    line = f"{sys.executable} -m ipcbus.cli.main names {redirection}"
    assert subprocess.run(["sh", "-c", line], env=cli.env, capture_output=True, timeout=WAIT_S, check=False).returncode == 0


def test_a_full_disk_is_told(cli: Cli) -> None:
    line = f"{sys.executable} -m ipcbus.cli.main names > /dev/full"
    done = subprocess.run(["sh", "-c", line], env=cli.env, capture_output=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done


def test_the_default_address_is_named(short_dir: Path) -> None:
    done = run("names", "--bus", "lab", XDG_RUNTIME_DIR=str(short_dir))
    assert done.returncode == 3
    assert f"no bus at unix:{short_dir}/ipcbus/lab.sock" in done.stderr


def test_help_has_examples_for_every_subcommand() -> None:
    from ipcbus.cli.commands import COMMANDS

    assert "exit codes:" in run("--help").stdout
    assert {item.name for item in COMMANDS} == {
        "pub", "sub", "get", "call", "serve", "names", "peers", "topics", "quotas", "stats", "why", "ping", "demo", "describe", "complete",
        "policy", "monitor",
    }  # fmt: skip
    for item in COMMANDS:
        done = run(item.name, "--help")
        assert done.returncode == 0
        assert f"  ipcbus {item.name}" in done.stdout
    assert run("--version").stdout.startswith("ipcbus ")


def test_pub_imports_only_what_it_needs(cli: Cli) -> None:
    script = (
        "import sys; from ipcbus.cli.main import main; code = main(['pub', 'a', '1']);"
        "print(code, [m for m in ('asyncio', 'platformdirs', 'ipcbus.broker', 'ipcbus.daemon', 'ipcbus.cli.demo', 'subprocess')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=cli.env, capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout == "0 []\n"
