"""Configuration of a real daemon: checking, printing, reloading; and TCP, which needs the secret."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, encode
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, command, environment, run_ipcbusd, wait_until
from tests.wire import Wire

TCP = ["tcp:127.0.0.1:0"]


def test_check_config_says_everything(short_dir: Path) -> None:
    file = short_dir / "c.toml"
    file.write_text('bsu = "x"\npoller = "kqueue"\ndrain_s = -1\n[limits]\nmax_peer = 1\nmax_lanes = "many"\n')
    done = run_ipcbusd("--config", str(file), "--check-config", "--listen", "tcp:192.168.1.1:80", IPCBUS_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 7
    for line, expected in zip(
        lines,
        [
            "bsu: there is no such option; did you mean bus?",
            "poller: 'kqueue' is not one of epoll, poll, select",
            "drain_s: -1 is not a number of seconds from 0 to 3600",
            "limits.max_peer: there is no such option; did you mean limits.max_peers?",
            "limits.max_lanes: 'many' is not a whole number from 1 to",
            "IPCBUS_LOG_LEVEL: 'loud' is not one of debug, info, warning, error",
            "192.168.1.1 is not loopback",
        ],
        strict=True,
    ):
        assert expected in line
    assert run_ipcbusd("--config", str(file), "--listen", f"unix:{short_dir}/bus.sock").returncode == 2
    assert not (short_dir / "bus.sock").exists()


def test_check_config_of_a_good_one(short_dir: Path) -> None:
    file = short_dir / "c.toml"
    file.write_text('log_level = "debug"\n[limits]\nmax_peers = 7\n')
    done = run_ipcbusd("--config", str(file), "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(file) in done.stdout


def test_print_config_round_trip(short_dir: Path) -> None:
    file = short_dir / "c.toml"
    file.write_text('log_level = "debug"\nsocket_mode = "0660"\ndrain_s = 3\n[limits]\nmax_peers = 7\nlane_stall_s = 1\n')
    first = run_ipcbusd("--config", str(file), "--print-config", "--listen", f"unix:{short_dir}/a.sock", IPCBUS_BUS="lab")
    assert first.returncode == 0
    values = tomllib.loads(first.stdout)
    assert values["bus"] == "lab"
    assert values["limits"]["max_peers"] == 7
    assert f"file {file}" in next(line for line in first.stdout.splitlines() if line.startswith("max_peers"))
    assert "environment IPCBUS_BUS" in next(line for line in first.stdout.splitlines() if line.startswith("bus"))
    assert "flag --listen" in next(line for line in first.stdout.splitlines() if line.startswith("listen"))
    printed = short_dir / "printed.toml"
    printed.write_text(first.stdout)
    second = run_ipcbusd("--config", str(printed), "--print-config")
    assert tomllib.loads(second.stdout) == values



@pytest.mark.parametrize("flag", ["--print-config", "--check-config"])
@pytest.mark.parametrize(
    ("where", "code", "says"), [("> /dev/full", 1, "No space left"), (">&-", 0, ""), ("| true", 0, ""), (">&- 2>&-", 0, "")]
)
def test_output_that_nobody_takes(flag: str, where: str, code: int, says: str) -> None:
    line = shlex.join(command(flag, "--config", "/dev/null", "--listen", "unix:/x/y.sock")) + " " + where
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", line], env=environment(), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == code, done
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == (1 if says else 0)


def test_usage(short_dir: Path) -> None:
    assert run_ipcbusd("--no-such-flag").returncode == 2
    assert run_ipcbusd("--config", f"{short_dir}/missing.toml").returncode == 2
    assert run_ipcbusd("--version").stdout.startswith("ipcbusd ")
    assert "exit codes" in run_ipcbusd("--help").stdout


def test_default_place_and_named_bus(short_dir: Path, daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(
        "--bus", "lab", listen=[], env={"XDG_RUNTIME_DIR": str(short_dir), "IPCBUS_ADDRESS": "unix:/nonexistent/x.sock"}
    )
    assert daemon.address == f"unix:{short_dir}/ipcbus/lab.sock"
    with Wire(daemon.address) as wire:
        wire.hello()


def reload(daemon: RunningDaemon, config: str, expected: str) -> None:
    daemon.config_file.write_text(config)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: expected in daemon.log(), f"{expected!r} should be logged: {daemon.log()}")


def test_reload(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(config='log_level = "info"\n[limits]\nmax_peers = 1\n')
    with Wire(daemon.address) as first:
        first.hello()
        with Wire(daemon.address) as second:
            second.expect_bye(Code.TOO_MANY_PEERS)
        new = 'socket_mode = "0660"\npoller = "poll"\n[limits]\nmax_peers = 2\nmax_lanes = 3\n'
        reload(daemon, new, "limits.max_lanes changed in the configuration; that needs a restart")
        assert "limits.max_peers is now 2 (was 1)" in daemon.log()
        assert "poller changed in the configuration; that needs a restart" in daemon.log()
        assert stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o660
        with Wire(daemon.address) as second:
            second.hello()
        reload(daemon, 'poller = "epoll', "not TOML")
        reload(daemon, "[limits]\nmax_peers = 0\n", "limits.max_peers: 0 is not a whole number")
        assert daemon.log().count("the configuration stays as it was") == 2
        with Wire(daemon.address) as second:
            second.hello()
        reload(daemon, 'log_format = "json"\nsocket_mode = "0660"\n[limits]\nmax_peers = 2\n', "log_format")
        event = json.loads(daemon.log().splitlines()[-1])
        assert (event["level"], event["message"]) == ("info", 'SIGHUP: log_format is now "json" (was "text")')
        reload(daemon, 'log_format = "json"\nsocket_mode = "0660"\n[limits]\nmax_peers = 2\n', "nothing changed")
        first.ping()


def test_reload_checks_what_will_be_in_force(daemon_factory: DaemonFactory) -> None:
    """limits.max_payload_bytes needs a restart, so what is new must fit the old one."""
    daemon = daemon_factory()
    reload(daemon, "[limits]\nmax_payload_bytes = 1000\nmax_output_bytes = 75000000\nmax_peers = 7\n", "stays as it was")
    assert "limits.max_output_bytes: 75000000 is too little for limits.max_payload_bytes of 16777216" in daemon.log()
    assert "is now" not in daemon.log()


def test_reload_survives_a_place_that_is_lost(daemon_factory: DaemonFactory, short_dir: Path) -> None:
    """platformdirs raises where somebody else made the directory that it falls back on."""
    made = short_dir / "platformdirs.py"
    made.write_text(
        "import os\n"
        "def user_config_dir(*args, **options): return '/nonexistent'\n"
        "def user_runtime_dir(*args, **options):\n"
        f"    if os.path.exists('{short_dir}/taken'): raise PermissionError('/x is not ours; set XDG_RUNTIME_DIR instead')\n"
        f"    return '{short_dir}/ipcbus'\n"
    )
    daemon = daemon_factory(listen=[], env={"PYTHONPATH": f"{short_dir}:{environment()['PYTHONPATH']}"})
    assert daemon.address == f"unix:{short_dir}/ipcbus/default.sock"
    (short_dir / "taken").touch()
    reload(daemon, "", "set XDG_RUNTIME_DIR instead")
    with Wire(daemon.address) as wire:
        wire.hello()
    done = run_ipcbusd("--bus", "other", PYTHONPATH=f"{short_dir}:{environment()['PYTHONPATH']}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert "/x is not ours; set XDG_RUNTIME_DIR instead" in done.stderr


def test_reload_keeps_saying_what_needs_a_restart(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory()
    reload(daemon, 'poller = "poll"\n', "poller changed")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.log().count("poller changed") == 2, "the running poller is still the old one")


def test_tcp_with_the_secret(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(listen=TCP)
    found = os.stat(daemon.secret_file)
    assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o600, 32)
    secret = Path(daemon.secret_file).read_bytes()
    assert not daemon.address.endswith(":0")
    with Wire(daemon.address) as wire:
        wire.hello(secret=secret)
        (item,) = wire.call("peers")["items"]
        assert (item["transport"], item["pid"]) == ("tcp", None)
    daemon.stop()
    assert secret.hex() not in daemon.log()
    again = daemon_factory(at=daemon.directory, listen=TCP)
    assert Path(again.secret_file).read_bytes() == secret


def test_ipv6_loopback(daemon_factory: DaemonFactory) -> None:
    try:
        daemon = daemon_factory(listen=["tcp:[::1]:0"])
    except RuntimeError as error:
        if "cannot listen" not in str(error):
            raise
        pytest.skip("this machine has no IPv6 loopback")
    with Wire(daemon.address) as wire:
        wire.hello(secret=Path(daemon.secret_file).read_bytes())


def test_tcp_with_a_wrong_proof(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(listen=TCP)
    with Wire(daemon.address) as wire:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, bytes(32)))
        wire.expect(Kind.CHALLENGE)
        wire.send(encode(Kind.PROOF, 0, bytes(32)))
        wire.expect_bye(Code.AUTH_FAILED)
    with Wire(daemon.address) as wire:
        wire.send(encode(Kind.HELLO, 0, 1, 1, [], {}, bytes(32)) + encode(Kind.PING, 0, 1))
        wire.expect_bye(Code.BAD_STATE)


def test_port_in_use(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory(listen=TCP)
    done = run_ipcbusd("--listen", daemon.address, "--secret-file", daemon.secret_file)
    assert done.returncode == 4
    assert "cannot listen on" in done.stderr


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:4222", "tcp:10.0.0.1:4222", "tcp:[::]:4222", "tcp:example.org:80"])
def test_never_beyond_loopback(address: str) -> None:
    done = run_ipcbusd("--listen", address)
    assert done.returncode == 2
    assert "loopback" in done.stderr


def bad_secret(path: Path, how: str) -> None:
    path.write_bytes(bytes(31 if how == "short" else 33 if how == "long" else 32))
    path.chmod(0o640 if how == "readable" else 0o600)
    if how == "link":
        path.rename(path.with_name("real"))
        path.symlink_to("real")
    elif how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    elif how == "theirs":
        os.chown(path, 4242, -1)


@pytest.mark.parametrize("how", ["short", "long", "readable", "link", "directory", "fifo", "theirs"])
def test_secrets_that_are_none(short_dir: Path, how: str) -> None:
    if how == "theirs" and os.getuid() != 0:
        pytest.skip("needs root to give a file away")
    bad_secret(short_dir / "secret", how)
    done = run_ipcbusd("--listen", TCP[0], "--secret-file", f"{short_dir}/secret")
    assert done.returncode == 4
    assert f"secret file {short_dir}/secret" in done.stderr


def test_checking_secrets(short_dir: Path) -> None:
    named = short_dir / "named"
    named.mkdir(0o700)
    flags = "--check-config", "--listen", TCP[0], "--secret-file", f"{short_dir}/secret", "--secret-dir", str(named)
    done = run_ipcbusd(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(short_dir) == ["named"], "a check makes nothing"
    bad_secret(named / "panel.secret", "readable")
    done = run_ipcbusd(*flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"ipcbusd: secret file {named}/panel.secret has mode 0640" in done.stderr


def test_a_unix_bus_makes_no_secret(daemon: RunningDaemon) -> None:
    assert not os.path.exists(daemon.secret_file)
