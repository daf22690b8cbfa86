"""Bytes between real sockets and the daemon: every I/O call is partial, every peer may stop or vanish, descriptors run out."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, command, environment, wait_until
from tests.wire import Wire


@pytest.fixture(params=["epoll", "poll", "select"])
def polled(request: pytest.FixtureRequest, daemon_factory: DaemonFactory) -> RunningDaemon:
    """A daemon with each of the pollers, on a Unix socket and on TCP."""
    daemon = daemon_factory("--poller", request.param, "--listen", "tcp:127.0.0.1:0")
    assert f", {request.param}, " in daemon.log()
    return daemon


def cpu_s(pid: int) -> float:
    """Processor time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_byte_by_byte(polled: RunningDaemon) -> None:
    with Wire(polled.address) as wire:
        frames = encode(Kind.HELLO, 0, 1, 1, [], {}, None) + encode_with_payload(b"", Kind.REQUEST, 0, "bus/ping", 7, 1000, None)
        for index in range(len(frames)):
            wire.send(frames[index : index + 1])
        wire.expect(Kind.WELCOME)
        assert wire.expect(Kind.REPLY).elements[3] == 7


def test_large_message_to_a_slow_reader_holds_up_nobody_else(polled: RunningDaemon) -> None:
    payload = os.urandom(1 << 20) * 8
    with Wire(polled.address) as slow, Wire(polled.address) as publisher, Wire(polled.address) as other:
        slow.hello()
        slow.subscribe("bulk")
        publisher.hello()
        publisher.publish("bulk", payload)
        other.hello()
        for number in range(1, 50):
            other.ping(number)
        slow.expect(Kind.LANE)
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert slow.expect(Kind.PUBLISH).payload == payload


def test_many_messages_wait_in_order(polled: RunningDaemon) -> None:
    with Wire(polled.address) as reader, Wire(polled.address) as publisher:
        reader.hello()
        for lane, pattern in enumerate(["t.*", "t.>"], 1):
            reader.subscribe(pattern, lane)
        publisher.hello()
        frames = [encode_with_payload(b"%d" % index, Kind.PUBLISH, publisher.peer, f"t.{index % 7}", 1) for index in range(20_000)]
        publisher.send(b"".join(frames))
        publisher.ping()
        seen: dict[int, list[int]] = {1: [], 2: []}
        lane = 0
        while min(len(numbers) for numbers in seen.values()) < len(frames):
            frame = reader.receive()
            assert frame is not None
            if frame.kind is Kind.LANE:
                lane = frame.elements[2]
            else:
                seen[lane].append(int(frame.payload))
        assert seen[1] == seen[2] == list(range(len(frames)))


def test_writes_and_reads_at_once(polled: RunningDaemon) -> None:
    """Both directions full at the same time must not deadlock the loop."""
    with Wire(polled.address) as wire:
        wire.hello()
        wire.subscribe("echo")
        frame = encode_with_payload(bytes(60_000), Kind.PUBLISH, wire.peer, "echo", 1)
        sender = threading.Thread(target=wire.send, args=(frame * 200,))
        sender.start()
        got = 0
        while got < 200:
            frame_got = wire.receive()
            assert frame_got is not None, "the connection ended"
            assert frame_got.kind in (Kind.LANE, Kind.NOTICE, Kind.PUBLISH), frame_got  # where it reads slowly it is told that it lags
            if frame_got.kind is Kind.PUBLISH:
                assert len(frame_got.payload) == 60_000
                got += 1
        sender.join()


def serve(wire: Wire, name: str) -> None:
    wire.hello()
    wire.call("own", name=name)
    wire.call("serve", name=name, methods=["m"])


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_half_close_still_gets_its_reply(polled: RunningDaemon, transport: str) -> None:
    secret = Path(polled.secret_file).read_bytes()
    with Wire(polled.address) as callee, Wire(polled.addresses[transport == "tcp"]) as caller:
        serve(callee, "svc")
        caller.hello(secret=secret)
        caller.request("svc/m")
        caller.sock.shutdown(socket.SHUT_WR)
        request = callee.expect(Kind.REQUEST)
        before = cpu_s(polled.pid)
        time.sleep(0.3)
        assert cpu_s(polled.pid) - before < 0.15, "the loop spins while a half-closed peer waits"
        callee.send(encode_with_payload(b"\x2a", Kind.REPLY, callee.peer, f":{request.elements[1]}", request.elements[3], None))
        assert caller.expect(Kind.REPLY).payload == b"\x2a"
        assert caller.receive() is None


def test_close_tells_the_callee_at_once(polled: RunningDaemon) -> None:
    with Wire(polled.address) as callee:
        serve(callee, "svc")
        with Wire(polled.address) as caller:
            caller.hello()
            caller.request("svc/m")
            callee.expect(Kind.REQUEST)
        callee.expect(Kind.CANCEL)


def test_end_in_the_middle_of_a_frame(polled: RunningDaemon) -> None:
    with Wire(polled.address) as other:
        other.hello()
        for cut in (1, 4, 5, 9):
            with Wire(polled.address) as wire:
                wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None)[:cut])
        with Wire(polled.address) as wire:
            wire.hello()
            wire.send(encode_with_payload(bytes(1000), Kind.PUBLISH, wire.peer, "t", 1)[:500])
        wait_until(lambda: len(other.call("peers")["items"]) == 1, "the others should be gone")


def test_reset_releases_names(polled: RunningDaemon) -> None:
    with Wire(polled.address) as other:
        other.hello()
        other.subscribe("$bus.names.gone")
        wire = Wire(polled.addresses[1])
        wire.hello(secret=Path(polled.secret_file).read_bytes())
        wire.call("own", name="gone")
        other.expect(Kind.LANE)
        other.expect(Kind.PUBLISH)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.sock.close()
        assert other.expect(Kind.PUBLISH).payload == pack({"name": "gone", "owners": []})


def test_vanishes_with_output_waiting(polled: RunningDaemon) -> None:
    with Wire(polled.address) as publisher:
        publisher.hello()
        with Wire(polled.address) as reader:
            reader.hello()
            reader.subscribe("bulk")
            publisher.publish("bulk", bytes(4 << 20))
            publisher.ping()
        publisher.publish("bulk", bytes(1 << 20))
        wait_until(lambda: len(publisher.call("peers")["items"]) == 1, "the reader should be gone")


def test_signals_in_the_middle_of_everything(polled: RunningDaemon) -> None:
    """EINTR: system calls that a signal interrupts go on."""
    with Wire(polled.address) as reader, Wire(polled.address) as publisher:
        reader.hello()
        reader.subscribe("t")
        publisher.hello()
        for number in range(30):
            publisher.publish("t", b"%d" % number * 20_000)
            polled.signal(signal.SIGHUP)
        reader.expect(Kind.LANE)
        for number in range(30):
            assert reader.expect(Kind.PUBLISH).payload == b"%d" % number * 20_000


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", os.urandom(4096), b"\n" * 100_000]
)
def test_garbage_is_named_and_closed(daemon: RunningDaemon, garbage: bytes) -> None:
    with Wire(daemon.address) as other, Wire(daemon.address) as wire:
        other.hello()
        wire.send(garbage)
        wire.expect_bye(Code.BAD_FRAME)
        other.ping()
    assert daemon.log().count("bad_frame") == 1


def test_a_peer_that_is_closed_and_does_not_read(daemon: RunningDaemon) -> None:
    """What is due to it waits a bounded time only."""
    with Wire(daemon.address) as reader, Wire(daemon.address) as publisher:
        reader.hello()
        reader.subscribe("bulk")
        publisher.hello()
        publisher.publish("bulk", bytes(8 << 20))
        publisher.ping()
        reader.send(b"garbage")
        wait_until(lambda: len(publisher.call("peers")["items"]) == 1, "the reader should be closed")


def connect_until_refused(daemon: RunningDaemon, most: int) -> tuple[list[Wire], str]:
    """Peers that were let in, and the text of the BYE to the first that was not."""
    peers: list[Wire] = []
    for _ in range(most):
        wire = Wire(daemon.address)
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
        frame = wire.receive()
        assert frame is not None
        if frame.kind is Kind.BYE:
            assert frame.elements[2] == Code.TOO_MANY_PEERS
            wire.sock.close()
            return peers, str(frame.elements[3])
        wire.peer = frame.elements[4]
        peers.append(wire)
    raise AssertionError(f"{most} connections were let in")


def assert_full_and_empty_again(daemon: RunningDaemon, peers: list[Wire]) -> None:
    """Who is in is served, who comes is refused; when one leaves there is room; the log has one line for each."""
    for wire in (peers[0], peers[-1]):
        wire.ping()
    with Wire(daemon.address) as wire:
        wire.expect_bye(Code.TOO_MANY_PEERS)
    for wire in peers:
        wire.sock.close()
    deadline = time.monotonic() + 10
    while True:
        with Wire(daemon.address) as wire:
            wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, None))
            frame = wire.receive()
            if frame is not None and frame.kind is Kind.WELCOME:
                break
        assert time.monotonic() < deadline
    assert daemon.log().count("refusing connections") == 1
    assert daemon.log().count("there is room for connections again") == 1


def test_descriptors_run_out(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(nofile=40)
    peers, text = connect_until_refused(daemon, 60)
    assert len(peers) > 15
    assert "LimitNOFILE" in text
    before = cpu_s(daemon.pid)
    waiting = [Wire(daemon.address) for _ in range(100)]
    time.sleep(0.3)
    assert cpu_s(daemon.pid) - before < 0.2, "the loop spins when no descriptor is left"
    for wire in waiting:
        wire.expect_bye(Code.TOO_MANY_PEERS)
        wire.sock.close()
    assert_full_and_empty_again(daemon, peers)


def test_select_refuses_what_it_cannot_hold(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--poller", "select", nofile=4096)
    peers, text = connect_until_refused(daemon, 1100)
    assert len(peers) > 1000
    assert "--poller epoll" in text
    assert_full_and_empty_again(daemon, peers)


def test_max_peers(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config="[limits]\nmax_peers = 5\n")
    peers, text = connect_until_refused(daemon, 10)
    assert len(peers) == 5
    assert "limits.max_peers" in text
    assert_full_and_empty_again(daemon, peers)


def test_handshake_timeout(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config="[limits]\nhandshake_timeout_s = 0.2\n")
    with Wire(daemon.address) as wire:
        wire.expect_bye(Code.HANDSHAKE_TIMEOUT)


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_log_that_nobody_reads_stops_nothing(short_dir: Path, kind: str) -> None:
    """More log than the kernel holds for standard error; then it is read again, and says what is missing."""
    if kind == "socket":
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        reader, writer = ours.detach(), theirs.detach()
    elif kind == "terminal":
        reader, writer = os.openpty()
    else:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    path = f"{short_dir}/bus.sock"
    daemon = subprocess.Popen(
        command("--config", "/dev/null", "--listen", f"unix:{path}", "--log-level", "debug"),
        env=environment(), stdin=subprocess.DEVNULL, stderr=writer,
    )  # fmt: skip
    try:
        wait_until(lambda: os.path.exists(path), "it listens")
        for _ in range(300):  # each makes the bus write a line of 150 bytes
            with Wire(f"unix:{path}") as wire:
                wire.hello("p" * 100)
                assert wire.call("stats")["pid"] == daemon.pid
        assert os.get_blocking(writer), "whom it shares standard error with was not asked"
        os.set_blocking(reader, False)
        wait_until(lambda: _read_out(reader, daemon, path), "it says how many lines it kept back")
        daemon.terminate()
        assert daemon.wait(20) == 0
    finally:
        os.close(writer)
        os.close(reader)
        daemon.kill()
        daemon.wait(20)


def _read_out(reader: int, daemon: subprocess.Popen[bytes], path: str) -> bool:
    """Read what there is and have it log one line more; whether it told of lines that it kept back."""
    found = b""
    try:
        while data := os.read(reader, 1 << 16):
            found += data
    except BlockingIOError:
        pass
    with Wire(f"unix:{path}") as wire:
        wire.hello("again")
    return b"lines kept back, standard error took no more) peer" in found
