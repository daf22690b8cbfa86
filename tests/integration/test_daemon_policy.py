"""Real daemons with policy files, and peers of several users: root becomes them for as long as a connection takes to be made."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ipcbus.daemon.namespaces import maps_some_only
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from ipcbus.protocol.payloads import decode_value
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, command, environment, run_ipcbusd, system_bus, wait_until
from tests.wire import Wire

pytestmark = pytest.mark.skipif(maps_some_only() is not None, reason="rules about users are refused in this user namespace")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be other users")

ALICE, BOB, CAROL, STAFF = 4242, 4243, 4244, 4300

POLICY = f"""
[[rule]]
deny = "connect"
uid = {CAROL}

[[rule]]
deny = "subscribe"
topics = "room.secret"

[[rule]]
allow = ["publish", "subscribe", "monitor"]
gid = {STAFF}
topics = "room.>"

[[rule]]
allow = "own"
names = ["home%U", "home.%u"]

[[rule]]
allow = ["call", "send"]
uid = [{ALICE}, {BOB}]
names = ["lights.*"]

[[rule]]
allow = "call"
uid = {BOB}
names = "heater"
methods = ["on", "off"]
"""


@contextlib.contextmanager
def as_user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be *uid* for a moment: the kernel tells who connects as it was at that time."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def connect_as(daemon: RunningDaemon, uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Wire:
    with as_user(uid, gid, groups):
        return Wire(daemon.address)


@pytest.fixture(scope="module")
def system() -> Iterator[RunningDaemon]:
    """A system bus with one file of rules, which no test changes."""
    with system_bus(POLICY) as daemon:
        yield daemon


@needs_root
def test_who_may_connect(system: RunningDaemon) -> None:
    with connect_as(system, ALICE) as wire:
        wire.hello()
    with connect_as(system, CAROL) as wire:
        why = wire.expect_bye(Code.DENIED)
    rule = f"rule 1 of {system.directory}/policy.toml, line 2 denies connect"
    assert why == f"{rule}; you are uid {CAROL}"
    assert f"refused pid {os.getpid()} uid {CAROL} at {system.address}: {rule}" in system.log()
    assert "a system bus with 6 policy rules in 1 file\n" in system.log()


def outcome(wire: Wire, what: str, target: str) -> tuple[str, str]:
    """How the bus answers: "" where it does what is wanted, else the error's name; and the error's text."""
    if what in ("publish", "send"):
        kind = Kind.PUBLISH if what == "publish" else Kind.SEND
        wire.send(encode_with_payload(b"x", kind, wire.peer, target, 1) + encode(Kind.PING, wire.peer, 7))
    elif what == "call":
        wire.request(target)
    elif what == "admin":
        wire.request(f"bus/{target}", pack({}))
    elif what == "own":
        wire.request("bus/own", pack({"name": target}))
    else:
        wire.request(f"bus/{what}", pack({"pattern": target, "lane": 1, "credit": 1000}))
    while True:
        frame = wire.receive()
        assert frame is not None
        if frame.kind is Kind.ERROR:
            return Code(frame.elements[4]).label, frame.elements[5]
        if frame.kind in (Kind.PONG, Kind.REPLY):
            return "", ""


MEMBER = (ALICE, ALICE, (STAFF,))


@needs_root
@pytest.mark.parametrize(
    ("who", "what", "target", "error", "by"),
    [
        ((ALICE, STAFF), "publish", "room.a", "", ""),
        (MEMBER, "publish", "room.a", "", ""),
        (MEMBER, "publish", "room", "denied", "default"),
        (MEMBER, "publish", "hall.a", "denied", "default"),
        ((ALICE, STAFF - 1), "publish", "room.a", "denied", "default"),
        ((STAFF, ALICE, (STAFF + 1,)), "publish", "room.a", "denied", "default"),
        ((0, 0), "publish", "room.a", "denied", "default"),
        (MEMBER, "subscribe", "room.a", "", ""),
        (MEMBER, "subscribe", "room.*.*", "", ""),
        (MEMBER, "subscribe", "room.secret", "denied", "rule 2 "),
        (MEMBER, "subscribe", "room.*", "denied", "rule 2 "),
        (MEMBER, "subscribe", "room.>", "denied", "rule 2 "),
        (MEMBER, "subscribe", ">", "denied", ""),
        (MEMBER, "monitor", "room.>", "", ""),
        (MEMBER, "monitor", ">", "denied", "default"),
        ((ALICE, ALICE), "monitor", "room.a", "denied", "default"),
        ((ALICE, ALICE), "own", f"home{ALICE}", "", ""),
        ((ALICE, ALICE), "own", f"home{BOB}", "denied", "default"),
        ((BOB, BOB), "own", f"home{BOB}", "", ""),
        ((ALICE, ALICE), "own", "home.root", "denied", "default"),
        ((0, 0), "own", "home.root", "", ""),
        ((ALICE, ALICE), "call", "lights.hall/on", "no_such_name", ""),
        ((ALICE, ALICE), "call", "lights/on", "denied", "default"),
        ((ALICE, ALICE), "call", "heater/on", "denied", "default"),
        ((BOB, BOB), "call", "heater/on", "no_such_name", ""),
        ((BOB, BOB), "call", "heater/heat", "denied", "default"),
        ((BOB, BOB), "send", "lights.hall", "no_such_name", ""),
        ((BOB, BOB), "send", "heater", "denied", "default"),
        ((BOB + 1000, BOB), "send", "lights.hall", "denied", "default"),
        ((BOB, BOB), "admin", "topics", "denied", "default"),
        ((0, BOB), "admin", "topics", "", ""),
        ((BOB, 0, (0,)), "admin", "topics", "denied", "default"),
        ((BOB, BOB), "admin", "stats", "", ""),
    ],
)
def test_every_kind_of_rule(system: RunningDaemon, who: tuple[Any, ...], what: str, target: str, error: str, by: str) -> None:
    with connect_as(system, *who) as wire:
        wire.hello()
        found, why = outcome(wire, what, target)
    assert found == error, why
    assert by in why


def test_who_knows_the_secret_is_the_user_of_the_bus(system: RunningDaemon) -> None:
    secret = Path(system.secret_file).read_bytes()
    with Wire(system.addresses[1]) as wire:
        wire.hello(secret=secret)
        assert outcome(wire, "admin", "topics") == ("", "")
        assert outcome(wire, "publish", "room.a")[0] == "denied"


@needs_root
def test_the_command_line_says_what_the_bus_does(system: RunningDaemon) -> None:
    words = ["--kind", "system", "--policy-file", f"{system.directory}/policy.toml", "--policy-dir", f"{system.directory}/none"]
    done = subprocess.run(
        [sys.executable, "-m", "ipcbus.cli.main", "policy", "test", *words, f"--as-uid={BOB}", "subscribe", "room.*"],
        env=environment(IPCBUS_CONFIG=os.devnull),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    with connect_as(system, BOB) as wire:
        wire.hello()
        _, why = outcome(wire, "subscribe", "room.*")
    assert done.returncode == 5, done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{why}, for uid {BOB}")


def reload(daemon: RunningDaemon, expected: str) -> None:
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: expected in daemon.log(), f"{expected!r} should be logged: {daemon.log()}")


@needs_root
def test_a_reload_judges_anew(daemon_factory: DaemonFactory, short_dir: Path) -> None:
    rules = short_dir / "rules"
    rules.mkdir(mode=0o755)
    short_dir.chmod(0o711)
    file = rules / "10-bob.toml"
    file.write_text(f'[[rule]]\nallow = "*"\nuid = [{ALICE}, {BOB}]\n')
    daemon = daemon_factory("--socket-mode", "0666", "--policy-dir", str(rules))
    daemon.directory.chmod(0o711)
    alice, bob = connect_as(daemon, ALICE), connect_as(daemon, BOB)
    alice.hello()
    bob.hello()
    bob.call("own", name="bobs")
    bob.subscribe("room.>")
    file.write_text(f'[[rule]]\nallow = "*"\nuid = {BOB}\n')
    reload(daemon, "there is a new policy: 1 policy rule in 1 file")
    with alice:
        assert "the default of a user bus" in alice.expect_bye(Code.DENIED)
    bob.ping()
    file.write_text(f'[[rule]]\nallow = "connect"\nuid = {BOB}\n')
    reload(daemon, "loses its subscription")
    with bob:
        told = [decode_value(frame.elements[-1], frame.payload) for frame in (bob.expect(Kind.NOTICE), bob.expect(Kind.NOTICE))]
        assert [(item["what"], item.get("name", item.get("pattern"))) for item in told] == [("subscribe", "room.>"), ("own", "bobs")]
        bob.ping()
    assert "SIGHUP: peer" in daemon.log()
    with connect_as(daemon, ALICE) as wire:
        assert "the default of a user bus" in wire.expect_bye(Code.DENIED)
    file.write_text(f'[[rule]]\nallow = "*"\nuid = {ALICE}\n[[rule]]\nallow = "fly"\n')
    reload(daemon, "the configuration stays as it was")
    assert f"SIGHUP: rule 2 of {file}, line 4, allow: no such action" in daemon.log()
    file.chmod(0o666)
    reload(daemon, f"SIGHUP: {file} has mode 0666")
    with connect_as(daemon, BOB) as wire:
        wire.hello()


def test_a_kind_is_for_life(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory()
    daemon.config_file.write_text('kind = "system"\n')
    reload(daemon, "SIGHUP: kind: a user bus becomes a system bus only by a restart")
    assert os.stat(daemon.path).st_mode & 0o777 == 0o600
    assert "is now" not in daemon.log()


def test_check_config(short_dir: Path) -> None:
    good, bad = short_dir / "good.toml", short_dir / "bad.toml"
    good.write_text(
        '[[rule]]\nallow = "publish"\ntopics = "room.>"\n[[rule]]\ndeny = "publish"\ntopics = "room.secret"\n'
        '[[rule]]\nallow = "publish"\ntopics = "room.kitchen"\n[[rule]]\nallow = "own"\nuser = "no-such-user"\n'
    )
    bad.write_text('[[rule]]\nallow = "publish"\nnames = "a"\n[[rule]]\nalow = "call"\n')
    done = run_ipcbusd("--config", os.devnull, "--check-config", "--policy-file", str(good))
    assert (done.returncode, done.stderr) == (0, "")
    *warnings, last = done.stdout.splitlines()
    assert all(line.startswith("ipcbusd: warning: rule ") for line in warnings)
    assert [line.split(": ")[2].partition(",")[2] for line in warnings] == [
        " line 10, user",
        f" line 4 denies publish 'room.secret', but rule 1 of {good}, line 1 allows it before, and the first decides",
        " line 7 never decides anything",
        " line 10 concerns nobody",
    ]
    assert last == "ipcbusd: the configuration is good (no file; 4 policy rules in 1 file)"
    done = run_ipcbusd("--config", os.devnull, "--policy-file", str(bad), "--listen", f"unix:{short_dir}/bus.sock")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) > 2
    assert all(line.startswith(f"ipcbusd: rule {number} of {bad}") for line, number in zip(lines, (1, 2, 2), strict=False))
    assert not (short_dir / "bus.sock").exists()


def test_rules_about_users_in_a_user_namespace(short_dir: Path) -> None:
    """The daemon would see 65534 for everybody it has no number for."""
    unshare = ["unshare", "--user", "--map-root-user"]
    try:
        possible = subprocess.run([*unshare, sys.executable, "-c", ""], capture_output=True, timeout=20, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no user namespace can be made here")
    file = short_dir / "policy.toml"
    line = [*unshare, *command("--config", os.devnull, "--listen", f"unix:{short_dir}/bus.sock", "--policy-file", str(file))]
    file.write_text('[[rule]]\nallow = "publish"\nuid = 1000\n[[rule]]\nallow = "publish"\nunit = "a.service"\n')
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"ipcbusd: rule 1 of {file}, line 1 is about users or groups")
    assert "unit or identity" in said
    line = ["unshare", "--user", *command("--config", os.devnull, "--listen", f"unix:{short_dir}/bus.sock")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "the bus runs as uid 65534, which in this user namespace is also everybody" in done.stderr
    assert not (short_dir / "bus.sock").exists()


def test_what_no_monitor_sees(daemon_factory: DaemonFactory, short_dir: Path) -> None:
    file = short_dir / "policy.toml"
    file.write_text('[redact]\ntopics = "secret.>"\n')
    daemon = daemon_factory("--policy-file", str(file))
    with Wire(daemon.address) as wire:
        wire.hello()
        wire.call("monitor", lane=1, pattern=">", credit=1 << 20, payloads=True, kinds=["publish"])

        def seen(topic: str) -> Any:
            wire.publish(topic, b"1234")
            while (frame := wire.receive()) is None or frame.kind is not Kind.PUBLISH:  # LANE comes before the first
                assert frame is not None
            found = decode_value(frame.elements[-1], frame.payload)
            assert found["to"] == topic
            return found

        assert seen("open.a")["payload"] == b"1234"
        found = seen("secret.a")
        assert (found["redacted"], found["size"], "payload" in found) == (True, 4, False)
        file.write_text('[redact]\ntopics = "open.>"\n')
        reload(daemon, "there is a new policy")
        assert seen("secret.b")["payload"] == b"1234"
        assert seen("open.b")["redacted"]
