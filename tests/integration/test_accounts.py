"""Accounts with real processes: who is charged is what the kernel says, a program that misbehaves goes alone, and refusals say what to do
(Q-1 … Q-7)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, environment, wait_until
from tests.wire import Wire

WAIT_S = 20.0


@contextmanager
def child(script: str, *arguments: str, uid: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A program of its own; it says "ready" on stdout, and is ended at the end by closing its stdin, or else killed."""
    more = [] if uid is None else [str(uid)]  # set by the script itself, when it has imported what another user may not read
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, *more], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


#: Subscribes and never reads again.
STUCK = """
import sys
from tests.wire import Wire
wire = Wire(sys.argv[1])
wire.hello()
wire.subscribe("bulk.>", credit=1 << 30)
print("ready", flush=True)
sys.stdin.read()
"""

#: Opens connections until one is refused, and says how many it got and what it was told.
GREEDY = """
import os, sys
from ipcbus.protocol.messages import Kind, encode
from tests.wire import Wire
if len(sys.argv) > 2:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
wires = []
while True:
    wire = Wire(sys.argv[1])
    try:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
    except OSError:
        pass  # refused at once: why stands there to be read
    frame = wire.receive()
    if frame.kind is Kind.BYE:
        print(len(wires), frame.elements[2], frame.elements[3], flush=True)
        break
    wires.append(wire)
sys.stdin.read()
"""


def say(process: subprocess.Popen[str], line: str = "") -> str:
    """Write a line to a child, and return the one that it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def accounts(wire: Wire) -> dict[tuple[str, Any, Any], dict[str, dict[str, int]]]:
    return {(item["level"], item["uid"], item["pid"]): item["resources"] for item in wire.call("accounts")["items"]}


def test_processes_are_accounts_of_their_own(daemon: RunningDaemon) -> None:
    with Wire(daemon.address) as wire, child(STUCK, daemon.address) as other:
        wire.hello()
        found = accounts(wire)
        uid = os.getuid()
        assert found["program", uid, os.getpid()]["peers"]["used"] == 1
        assert found["program", uid, other.pid]["lanes"]["used"] == 1
        assert found["user", uid, None]["peers"]["used"] == 2
        other.kill()
        wait_until(lambda: ("program", uid, other.pid) not in accounts(wire), "its account should go with it", WAIT_S)
        assert accounts(wire)["bus", None, None]["lanes"]["used"] == 0


def test_one_stuck_program_dies_alone(daemon_factory: DaemonFactory) -> None:
    """It takes all that it can of what its user may have, and is the only one to go."""
    daemon = daemon_factory(config="[limits]\nmax_user_bytes = 3_000_000\nquota_grace_s = 0.2\nmax_payload_bytes = 1_000_000\n")
    with child(STUCK, daemon.address) as stuck, Wire(daemon.address) as session, Wire(daemon.address) as reader:
        session.hello()
        reader.hello()
        reader.subscribe("bulk.>", credit=1 << 30)
        got = 0
        for n in range(40):
            session.publish("bulk.x", bytes([n]) * 200_000)
            while True:  # it reads all the time
                frame = reader.receive()
                assert frame is not None, daemon.log()
                if frame.kind is Kind.PUBLISH:
                    got += 1
                    break
        wait_until(lambda: "over_quota" in daemon.log(), "the stuck one should be closed", WAIT_S)
        line = next(line for line in daemon.log().splitlines() if "over_quota" in line)
        assert f"pid {stuck.pid} of uid {os.getuid()}" in line
        assert "limits.max_user_bytes" in line
        assert daemon.log().count("over_quota") == 1, daemon.log()
        session.ping()
        session.publish("bulk.x", b"last")
        assert reader.receive() is not None
        assert got == 40
        wait_until(lambda: len(session.call("peers")["items"]) == 2, "it should be gone", WAIT_S)
        wait_until(lambda: accounts(session)["bus", None, None]["bytes"]["used"] == 0, "nothing should wait", WAIT_S)


def test_a_program_that_opens_connections_without_end_leaves_room(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config='log_level = "warning"\n[limits]\nmax_program_peers = 20\n')
    with child(GREEDY, daemon.address) as greedy, Wire(daemon.address) as wire:
        got, code, text = say(greedy).split(maxsplit=2)
        assert (int(got), int(code)) == (20, Code.TOO_MANY_PEERS)
        assert f"pid {greedy.pid} of uid {os.getuid()} has 20 of 20 connections" in text
        assert "limits.max_program_peers" in text
        wire.hello()
        assert daemon.log().count("over quota: pid") == 1
        assert "refusing connections" not in daemon.log(), "the bus has room"
        assert accounts(wire)["program", os.getuid(), greedy.pid]["peers"] == {"used": 20, "limit": 20, "share": 20}


def test_descriptors_are_divided_before_they_run_out(daemon_factory: DaemonFactory) -> None:
    """Connections are refused while there are descriptors to refuse them with, and who is in may go on."""
    daemon = daemon_factory(nofile=60)
    with child(GREEDY, daemon.address) as greedy:
        got, code, text = say(greedy).split(maxsplit=2)
        assert int(code) == Code.TOO_MANY_PEERS
        assert 20 < int(got) < 52
        assert "LimitNOFILE" in text
    wait_until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < 20, "they should be closed", WAIT_S)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be several users")
def test_users_are_accounts_of_their_own(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config='socket_mode = "0666"\n[limits]\nmax_peers = 30\nmax_user_peers = 25\n')
    for directory in (daemon.directory, *daemon.directory.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o711)
    with child(GREEDY, daemon.address, uid=60001) as first, child(GREEDY, daemon.address, uid=60002) as second, Wire(daemon.address) as own:
        got, code, text = say(first).split(maxsplit=2)
        assert (int(got), int(code)) == (9, Code.TOO_MANY_PEERS)
        assert "uid 60001 has 9 connections, and its share is 9 of the bus's 30: 10 are in use" in text
        assert "limits.max_peers" in text
        got, code, text = say(second).split(maxsplit=2)
        assert (int(got), int(code)) == (5, Code.TOO_MANY_PEERS)
        own.hello()
        found = accounts(own)
        assert found["user", 60001, None]["peers"]["used"] == 9
        assert found["program", 60002, second.pid]["peers"]["used"] == 5
        assert found["user", 0, None]["peers"] == {"used": 1, "limit": 25, "share": 16}


def test_half_of_a_frame_is_charged_and_given_back(daemon: RunningDaemon) -> None:
    with Wire(daemon.address) as wire, Wire(daemon.address) as other:
        wire.hello()
        other.hello()
        frame = encode_with_payload(bytes(1 << 20), Kind.PUBLISH, other.peer, "t", None)
        other.send(frame[:500_000])
        bus = ("bus", None, None)
        wait_until(lambda: accounts(wire)[bus]["bytes"]["used"] == 500_000, "it should be charged", WAIT_S)
        other.send(frame[500_000:])
        wait_until(lambda: accounts(wire)[bus]["bytes"]["used"] == 0, "it should be given back", WAIT_S)


#: Subscribes to much, and says the first message of another subscription.
CLIENT = """
import sys
import ipcbus_client
with ipcbus_client.connect(sys.argv[1]) as bus:
    bus.subscribe("bulk.>")
    small = bus.subscribe("small")
    print("ready", flush=True)
    print(next(iter(small)).data, flush=True)
    sys.stdin.read()
"""


def test_a_client_that_was_closed_for_its_quota_comes_back(daemon_factory: DaemonFactory) -> None:
    """It is stopped, and closed alone; when it goes on it connects and subscribes again."""
    daemon = daemon_factory(config="[limits]\nmax_program_bytes = 600_000\nmax_payload_bytes = 100_000\n")
    with child(CLIENT, daemon.address) as client, Wire(daemon.address) as wire:
        wire.hello()
        client.send_signal(signal.SIGSTOP)
        try:
            for _ in range(15):
                wire.publish("bulk.x", bytes(90_000))
            wait_until(lambda: "over_quota" in daemon.log(), "it should be closed", WAIT_S)
        finally:
            client.send_signal(signal.SIGCONT)
        line = next(line for line in daemon.log().splitlines() if "over_quota" in line)
        assert f"pid {client.pid} of uid {os.getuid()} has" in line
        assert "of 600000 bytes that wait (limits.max_program_bytes)" in line

        def back() -> bool:
            return any(item["pid"] == client.pid and item["lanes"] == 2 for item in wire.call("peers")["items"])

        wait_until(back, "it should be back", WAIT_S)
        wire.publish("small", b"hello")
        assert client.stdout is not None
        assert client.stdout.readline() == "b'hello'\n"


def test_quotas_on_the_command_line(daemon: RunningDaemon) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ipcbus", "quotas", "--address", daemon.address, *arguments],
            env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=True,
        )  # fmt: skip
        return done.stdout

    with ipcbus_client.connect(daemon.address, program="lab") as bus:
        bus.subscribe("a")
        bus.subscribe("b")
        bus.publish("kept", 1, retain=True)
        bus.flush()
        lines = run().splitlines()
        assert lines[0].split() == ["user", "program", "resource", "used", "limit", "share", "of", "share"]
        rows = [line.split() for line in lines]
        assert [str(os.getuid()), "lab", "(pid", f"{os.getpid()})", "lanes", "2", "500000", "500000", "0%"] in rows
        assert any(row[:3] == ["(all)", "(all)", "retained"] for row in rows), lines
        items = json.loads(run("--json"))
        assert [item["level"] for item in items][:2] == ["bus", "user"]
        mine = next(item for item in items if item["pid"] == os.getpid())
        assert (mine["programs"], mine["resources"]["lanes"]["used"]) == (["lab"], 2)


def test_half_open_handshakes_of_a_program_are_bounded(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config="[limits]\nmax_program_peers = 5\nhandshake_timeout_s = 60\n")
    silent = [Wire(daemon.address) for _ in range(5)]
    with Wire(daemon.address) as wire:
        wire.expect_bye(Code.TOO_MANY_PEERS)
    silent[0].sock.close()

    def admitted() -> bool:
        with Wire(daemon.address) as wire:
            wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
            frame = wire.receive()
            return frame is not None and frame.kind is Kind.WELCOME

    wait_until(admitted, "its place should be free", WAIT_S)
    for wire in silent[1:]:
        wire.sock.close()
