"""connect(autostart=True) with nothing there, under both shells: a real daemon is started, once, detached, and it goes when idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import _autostart, _starter, aio
from tests.daemons import environment, wait_until

WAIT_S = 60.0


class Home:
    """A user's directories, with nothing in them, and the daemons that were started there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "run" / "ipcbus" / "default.sock")
        self.log = directory / "state" / "ipcbus" / "default.log"

    def pid(self) -> int:
        """The daemon that has the lock of the socket; 0 without one."""
        with contextlib.suppress(OSError, ValueError):
            return int(Path(self.path + ".lock").read_text())
        return 0

    def variables(self) -> dict[str, str]:
        return {
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "HOME": str(self.directory),
        }


@pytest.fixture
def home(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """This process has such a home; whatever was started in it is ended."""
    made = Home(short_dir)
    (short_dir / "run").mkdir(mode=0o700)
    for name in [name for name in os.environ if name.startswith("IPCBUS_")]:
        monkeypatch.delenv(name)
    for name, value in made.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    yield made
    while pid := made.pid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: made.pid() != pid, "the daemon does not end", WAIT_S)  # type: ignore[misc]


def idle_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(_autostart, "EXIT_IDLE_S", seconds)


@pytest.fixture(params=["blocking", "aio"])
def connected(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """connect(), look at the bus, and close, in a shell: the stats of the bus."""

    def blocking(**options: Any) -> Any:
        with ipcbus_client.connect(timeout=WAIT_S, **options) as bus:
            return bus.stats()

    async def awaiting(**options: Any) -> Any:
        async with aio.connect(timeout=WAIT_S, **options) as bus:
            return await bus.stats()

    return blocking if request.param == "blocking" else lambda **options: asyncio.run(awaiting(**options))


def test_a_bus_is_started_as_a_process_of_its_own(home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "of this program")
    monkeypatch.setenv("IPCBUS_LOG_LEVEL", "debug")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        assert connected(autostart=True)["peers"] == 1
    finally:
        os.close(write)
        os.close(read)
    pid = home.pid()
    assert pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["PPid"]) != os.getpid()
    assert status["Umask"] == "0077"
    given = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert not [one for one in given if one.startswith(("SECRET_TOKEN", "IPCBUS_", "PYTEST"))]
    assert f"XDG_RUNTIME_DIR={home.directory}/run" in given
    targets = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert (targets[0], targets[1], targets[2]) == (os.devnull, str(home.log), str(home.log))
    assert not [target for target in targets.values() if target.startswith("pipe:")]
    assert stat.S_IMODE(os.stat(home.log).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(home.path).st_mode) == 0o600
    assert b"--exit-idle\x0060" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert connected()["pid"] == pid  # it is there now, for everybody


def test_without_it_nothing_is_started(home: Home) -> None:
    for autostart in (None, False):
        with pytest.raises(ipcbus_client.ConnectError) as caught:
            ipcbus_client.connect(timeout=0.2, autostart=autostart)
        assert caught.value.reason == "nothing_listens"
    assert home.pid() == 0


def test_the_environment_says_so_and_a_named_bus_is_another(
    home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPCBUS_AUTOSTART", "yes")
    first = connected()["pid"]
    lab = Home(home.directory)
    lab.path = lab.path.replace("default", "lab")
    try:
        assert connected(bus="lab")["pid"] == lab.pid() != first
        assert (home.directory / "state" / "ipcbus" / "lab.log").exists()
    finally:
        os.kill(lab.pid(), signal.SIGTERM)
        wait_until(lambda: lab.pid() == 0, "the daemon does not end", WAIT_S)


PROGRAM = """
import sys, ipcbus_client
sys.stdin.readline()
with ipcbus_client.connect(timeout=120, autostart=True) as bus:
    print(bus.stats()["pid"], flush=True)
    sys.stdin.readline()
"""


def test_fifty_processes_at_once_start_one_bus(home: Home) -> None:
    env = {**environment(), **home.variables()}
    command = [sys.executable, "-c", PROGRAM]
    programs = [subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(50)]
    try:
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        pids = set()
        for program in programs:
            assert program.stdout is not None
            pids.add(program.stdout.readline().strip())
        assert pids == {str(home.pid())}
        assert home.log.read_text().count("listening on") == 1
        assert "already running" not in home.log.read_text()
    finally:
        for program in programs:
            program.communicate("end\n", timeout=WAIT_S)
    assert [program.returncode for program in programs] == [0] * 50


def test_it_ends_when_idle_and_is_started_again_by_who_comes_back(
    home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_after(monkeypatch, 0.1)
    first = connected(autostart=True)["pid"]
    wait_until(lambda: home.pid() == 0 and not os.path.exists(home.path), "it does not end", WAIT_S)
    assert connected(autostart=True)["pid"] != first


def test_connecting_races_with_its_end(home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With 50 ms of patience the bus ends again and again just when somebody comes: nobody is lost."""
    idle_after(monkeypatch, 0.05)
    pids = set()
    for n in range(12):
        pids.add(connected(autostart=True)["pid"])
        if n % 3:
            deadline_pid = home.pid()
            wait_until(lambda pid=deadline_pid: home.pid() != pid, "it does not end", WAIT_S)  # type: ignore[misc]
    assert len(pids) > 3


def test_a_client_that_lost_its_bus_starts_another(home: Home) -> None:
    with ipcbus_client.connect(timeout=WAIT_S, autostart=True, name="keeper") as bus:
        first = home.pid()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: bus.epoch == 1, "it does not come back", WAIT_S)
        assert bus.stats()["pid"] != first
        assert [name["name"] for name in bus.names()] == ["keeper"]


def test_what_could_not_be_done_is_told_in_order(home: Home, connected: Callable[..., Any]) -> None:
    config = home.directory / "config" / "ipcbus"
    config.mkdir(parents=True)
    (config / "ipcbusd.toml").write_text("poler = 1\n")
    with pytest.raises(ipcbus_client.ConnectError) as caught:
        connected(autostart=True)
    assert caught.value.reason == "autostart"
    text = str(caught.value)
    order = [
        "the user's ipcbusd.socket: no systemd user",
        "a transient user service: no systemd user",
        "a process of its own: it ended at once",
    ]
    assert [text.find(part) for part in order] == sorted(text.find(part) for part in order)
    assert all(part in text for part in order)
    assert "poler: there is no such option" in text
    assert str(home.log) in text


def test_never_for_tcp_and_never_in_a_directory_of_another_user(
    home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ipcbus_client.AddressError, match="only a bus on a Unix socket"):
        connected(address="tcp:127.0.0.1:1", autostart=True)
    for name in ("geteuid", "getuid"):
        monkeypatch.setattr(os, name, lambda: 12345)
    with pytest.raises(ipcbus_client.ConnectError, match="started by that user only") as caught:
        connected(autostart=True)
    assert caught.value.reason == "autostart"
    assert home.pid() == 0


def test_never_with_rights_of_another_user(home: Home, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(ipcbus_client.ConnectError, match="whoever started it may not have") as caught:
        connected(address=f"unix:{home.path}", autostart=True)
    assert caught.value.reason == "autostart"
    assert home.pid() == 0


FAKE = """#!{python}
import json, os, subprocess, sys
with open({log!r}, "a") as log:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=log)
{body}
"""


@pytest.fixture
def fake(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a program of systemd on the path, and pretends that there is a user manager."""
    programs = home.directory / "bin"
    programs.mkdir()
    (home.directory / "run" / "systemd").mkdir()
    (home.directory / "run" / "systemd" / "private").touch()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def make(name: str, body: str) -> None:
        program = programs / name
        program.write_text(FAKE.format(python=sys.executable, log=str(home.directory / "calls"), body=body))
        program.chmod(0o755)

    return make


def calls(home: Home) -> list[Any]:
    import json

    return [json.loads(line) for line in (home.directory / "calls").read_text().splitlines()]


#: Starts what comes after -- and comes back, as the manager would.
RUN = (
    "subprocess.Popen(sys.argv[sys.argv.index('--') + 1 :], start_new_session=True, "
    "stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
)


def test_the_installed_socket_unit_comes_first(home: Home, fake: Callable[[str, str], None], connected: Callable[..., Any]) -> None:
    start = [sys.executable, "-m", "ipcbus.cli.daemon", "--listen", f"unix:{home.path}"]
    fake("systemctl", f"if sys.argv[2] == 'start':\n    sys.argv += ['--', *{start!r}]\n    {RUN}")
    fake("systemd-run", "sys.exit(1)")
    assert connected(autostart=True)["peers"] == 1
    assert calls(home) == [["systemctl", "--user", "cat", "ipcbusd.socket"], ["systemctl", "--user", "start", "ipcbusd.socket"]]


def test_without_it_a_transient_service(home: Home, fake: Callable[[str, str], None], connected: Callable[..., Any]) -> None:
    fake("systemctl", "sys.exit('No files found for ipcbusd.socket.')")
    fake("systemd-run", RUN)
    assert connected(autostart=True)["peers"] == 1
    (_, run) = calls(home)
    assert run[:5] == ["systemd-run", "--user", "--quiet", "--collect", "--unit=ipcbusd-default"]
    assert run[-6:] == ["--bus", "default", "--listen", f"unix:{home.path}", "--exit-idle", "60"]


def test_where_neither_works_a_process_of_its_own(home: Home, fake: Callable[[str, str], None], connected: Callable[..., Any]) -> None:
    fake("systemctl", "sys.exit('Failed to start ipcbusd.socket' if sys.argv[2] == 'start' else 0)")
    fake("systemd-run", "sys.exit('Failed to connect to bus')")
    assert connected(autostart=True)["peers"] == 1
    assert [call[0] for call in calls(home)] == ["systemctl", "systemctl", "systemd-run"]
    assert home.log.exists()


def test_what_systemd_said_is_told(home: Home, fake: Callable[[str, str], None], connected: Callable[..., Any]) -> None:
    fake("systemctl", "sys.exit('Failed to start the unit' if sys.argv[2] == 'start' else 0)")
    fake("systemd-run", "sys.exit('Failed to connect to bus')")
    config = home.directory / "config" / "ipcbus"
    config.mkdir(parents=True)
    (config / "ipcbusd.toml").write_text("poler = 1\n")
    with pytest.raises(ipcbus_client.ConnectError) as caught:
        connected(autostart=True)
    assert "ipcbusd.socket: systemctl ended with 1: Failed to start the unit; a transient" in str(caught.value)
    assert "a transient user service: systemd-run ended with 1: Failed to connect to bus; a process" in str(caught.value)


def test_who_does_not_get_the_lock_waits_for_who_has_it(home: Home) -> None:
    order = _autostart.Order(home.path, "default")
    lock = _starter._lock(order)
    assert lock is not None
    try:
        _starter.start(order)
        assert home.pid() == 0  # it left that to us
    finally:
        os.close(lock)
    _starter.start(order)
    assert home.pid()


def test_the_command_line(home: Home) -> None:
    def ipcbus(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ipcbus", *arguments]
        env = {**environment(), **home.variables(), **more}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert ipcbus("names").returncode == 3
    assert ipcbus("names", "--autostart").returncode == 0
    first = home.pid()
    assert first
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: home.pid() == 0, "the daemon does not end", WAIT_S)
    assert ipcbus("pub", "t", "1", IPCBUS_AUTOSTART="1").returncode == 0
    assert home.pid()
    refused = ipcbus("names", IPCBUS_AUTOSTART="perhaps")
    assert refused.returncode == 2
    assert "IPCBUS_AUTOSTART='perhaps'" in refused.stderr
