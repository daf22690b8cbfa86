"""Who a sender is, from real kernels: other users and groups, other namespaces, and those that came by TCP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipcbus.daemon.kernel_identity import units_in
from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from ipcbus.protocol.payloads import decode_value
from tests.conftest import DaemonFactory
from tests.daemons import ROOT, RunningDaemon, environment
from tests.wire import Wire

ASKS = ("identity",)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


def send(wire: Wire, to: int) -> None:
    wire.send(encode_with_payload(b"hi", Kind.SEND, wire.peer, f":{to}", 1))


def told(wire: Wire) -> dict[str, Any]:
    """NOTICE identity, and behind it the SEND of whom it is about."""
    notice = wire.expect(Kind.NOTICE)
    about: dict[str, Any] = decode_value(None, notice.payload)
    assert notice.elements[2] == "identity"
    assert wire.expect(Kind.SEND).elements[1] == about["peer"]
    return about


def in_a_child(become: Callable[[], None], action: Callable[[], None]) -> int:
    """Run *action* in a child process that has done *become*; returns its pid."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            become()
            action()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    return pid


def become(uid: int, gid: int, groups: list[int]) -> Callable[[], None]:
    def change() -> None:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)

    return change


@pytest.fixture
def bus(daemon_factory: DaemonFactory) -> RunningDaemon:
    """A bus that others may connect to, also by TCP."""
    daemon = daemon_factory("--socket-mode", "0666", "--listen", "tcp:127.0.0.1:0")
    daemon.directory.parent.chmod(0o711)
    daemon.directory.chmod(0o711)
    return daemon


@needs_root
def test_who_others_are(bus: RunningDaemon) -> None:
    """Users, groups, more groups than one look takes, this process itself, and TCP; each as the notice, `bus/identity` and the list say."""
    with Wire(bus.address) as receiver:
        receiver.hello("receiver", features=ASKS)

        def speak() -> None:
            with Wire(bus.address) as wire:
                wire.hello("other")
                send(wire, receiver.peer)
                assert wire.call("ping")

        few = in_a_child(become(4242, 4243, [30, 7, 4243]), speak)
        about = told(receiver)
        expected = {"transport": "unix", "program": "other", "pid": few, "uid": 4242, "gid": 4243, "groups": [7, 30, 4243], "identity": ""}
        assert {key: about[key] for key in expected} == expected
        assert receiver.call("identity", peer=about["peer"]) == about  # though it has gone
        many = list(range(1000, 1600))
        pid = in_a_child(become(4244, 4245, many), speak)
        about = told(receiver)
        assert (about["pid"], about["uid"], about["gid"], about["groups"]) == (pid, 4244, 4245, many)

        send(receiver, receiver.peer)
        about = told(receiver)
        assert (about["pid"], about["uid"], about["groups"]) == (os.getpid(), os.getuid(), sorted(os.getgroups()))
        assert (about["unit"], about["user_unit"]) == units_in(Path("/proc/self/cgroup").read_bytes())

        with Wire(bus.addresses[1]) as wire:
            wire.hello("remote", secret=Path(bus.secret_file).read_bytes(), features=ASKS)
            send(wire, receiver.peer)
            about = told(receiver)
            nothing = dict.fromkeys(("pid", "uid", "gid", "groups", "unit", "user_unit"))
            assert about == {"peer": wire.peer, "transport": "tcp", "program": "remote", "identity": "default", **nothing}
            (item,) = (item for item in receiver.call("peers")["items"] if item["peer"] == wire.peer)
            assert {key: item[key] for key in about} == about
            listed = subprocess.run(
                [sys.executable, "-m", "ipcbus", "peers", "--address", bus.address],
                env=environment(), capture_output=True, text=True, timeout=60, check=True,
            ).stdout.splitlines()  # fmt: skip
            assert listed[0].split()[:5] == ["peer", "program", "pid", "uid", "unit"]
            (line,) = (line for line in listed if "remote" in line)
            assert "tcp as default" in line


READER = """
import json, socket, sys
from ipcbus.daemon.kernel_identity import credentials_of
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
sock, _ = listener.accept()
found = credentials_of(sock)
print(json.dumps([found.pid, found.uid, found.gid, list(found.groups), found.unit, found.user_unit]))
"""


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Skip where none can be made, as in most containers."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    tried = subprocess.run(["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("namespace", ["--pid", "--user"])
def test_a_bus_in_a_namespace_of_its_own(namespace: str, short_dir: Path) -> None:
    """Who is outside has no pid there, or a uid that everybody has who is not in it: nobody is taken for somebody else."""
    path = str(short_dir / "sock")
    how = ["unshare", namespace, "--fork"] if namespace == "--pid" else ["unshare", namespace, "--map-root-user"]
    command = [*how, sys.executable, "-c", READER, path]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "listening\n"
        with socket.socket(socket.AF_UNIX) as sock:

            def connect() -> None:
                sock.connect(path)

            os.chmod(path, 0o666)
            short_dir.chmod(0o711)
            pid = in_a_child(become(4242, 4243, [4244]), connect)
            found = json.loads(reader.stdout.read())
        assert reader.wait(60) == 0
    if namespace == "--pid":
        assert found == [0, 4242, 4243, [4244], "", ""]
    else:
        assert found[:4] == [pid, 65534, 65534, [65534]]


@pytest.mark.usefixtures("namespaces")
def test_a_peer_in_a_namespace_of_its_own(bus: RunningDaemon) -> None:
    """It says that it is root, and pid 1; the bus knows better."""
    script = (
        "import os, socket, sys; assert (os.getuid(), os.getpid()) == (0, 1); sock = socket.socket(socket.AF_UNIX);"
        " sock.connect(sys.argv[1]); sock.send(bytes.fromhex(sys.argv[2])); sock.recv(4096); sock.send(bytes.fromhex(sys.argv[3]));"
        " sock.recv(4096)"
    )
    with Wire(bus.address) as receiver:
        receiver.hello("receiver", features=ASKS)
        peer = receiver.peer + 1
        writes = [
            encode(Kind.HELLO, 0, 1, 1, [], {"program": "inside"}, None).hex(),
            (encode_with_payload(b"hi", Kind.SEND, peer, f":{receiver.peer}", 1) + encode(Kind.PING, peer, 1)).hex(),
        ]
        inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-S", "-c", script, bus.path, *writes]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        about = told(receiver)
    assert (about["uid"], about["program"]) == (0, "inside")  # root of here made it
    assert about["pid"] not in (0, 1)
