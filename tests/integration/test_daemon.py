"""A daemon's life: one per address, whatever was left behind, and an orderly end."""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from ipcbus.daemon.listeners import ListenError, open_listeners
from ipcbus.protocol.addresses import UnixAddress
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind
from tests.conftest import DaemonFactory
from tests.daemons import RunningDaemon, command, environment, run_ipcbusd, wait_until
from tests.wire import Wire


def test_serves_and_stops(daemon: RunningDaemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o600
    with Wire(daemon.address) as wire:
        wire.hello("first")
        stats = wire.call("stats")
        assert stats["pid"] == daemon.pid
        assert daemon.stop() == 0
        wire.expect_bye(Code.SHUTTING_DOWN)
    assert not os.path.exists(daemon.path)
    assert f"listening on unix:{daemon.path}" in daemon.log()
    assert "stopped" in daemon.log()


def test_identity_is_the_kernels(daemon: RunningDaemon) -> None:
    with Wire(daemon.address) as wire:
        wire.hello("me")
        (item,) = wire.call("peers")["items"]
        assert (item["pid"], item["uid"], item["gid"]) == (os.getpid(), os.getuid(), os.getgid())
        assert item["program"] == "me"


def test_second_start_is_told_the_pid(daemon: RunningDaemon) -> None:
    second = run_ipcbusd("--listen", daemon.address)
    assert second.returncode == 3
    assert f"already running at {daemon.address} (pid {daemon.pid})" in second.stderr
    with Wire(daemon.address) as wire:
        wire.hello()


def test_lock_file_removed_under_a_daemon(daemon: RunningDaemon) -> None:
    os.unlink(daemon.path + ".lock")
    second = run_ipcbusd("--listen", daemon.address)
    assert second.returncode == 3
    assert f"(pid {daemon.pid})" in second.stderr
    with Wire(daemon.address) as wire:
        wire.hello()


def test_stale_socket_after_kill(daemon_factory: DaemonFactory) -> None:
    first = daemon_factory()
    first.kill()
    assert os.path.exists(first.path)
    second = daemon_factory(at=first.directory)
    with Wire(second.address) as wire:
        wire.hello()


@pytest.mark.parametrize("what", ["symlink", "file", "directory", "dangling"])
def test_only_a_stale_socket_is_replaced(short_dir: Path, what: str) -> None:
    path = short_dir / "bus.sock"
    target = short_dir / "precious"
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("precious")
    else:
        if what == "symlink":
            target.write_text("precious")
        path.symlink_to(target)
    done = run_ipcbusd("--listen", f"unix:{path}")
    assert done.returncode == 4
    assert f"{path} exists and is not a socket" in done.stderr
    assert os.path.lexists(path)
    assert target.exists() == (what == "symlink")


def test_a_socket_of_another_type_may_be_in_use(short_dir: Path) -> None:
    path = short_dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        done = run_ipcbusd("--listen", f"unix:{path}")
        assert done.returncode == 4
        assert f"{path} exists, and it does not show whether it is in use" in done.stderr
        other.connect(str(path))


@pytest.mark.parametrize("mode", [0o700, 0o711])
def test_a_directory_that_keeps_everybody_from_the_socket_is_told(daemon_factory: DaemonFactory, short_dir: Path, mode: int) -> None:
    place = short_dir / "place"
    place.mkdir()
    place.chmod(mode)
    daemon = daemon_factory("--kind", "system", "--policy-dir", str(short_dir), listen=[f"unix:{place}/bus.sock"])
    told = f"socket_mode lets everybody connect, but {place} has mode 0700 and keeps others from it: chmod o+x {place}\n"
    assert (told in daemon.log()) == (mode == 0o700)


def test_symlink_at_the_lock(short_dir: Path) -> None:
    (short_dir / "bus.sock.lock").symlink_to(short_dir / "target")
    done = run_ipcbusd("--listen", f"unix:{short_dir}/bus.sock")
    assert done.returncode == 4
    assert "symbolic link" in done.stderr
    assert not (short_dir / "target").exists()


def test_fifty_starts_at_once_make_one_daemon(short_dir: Path) -> None:
    path = short_dir / "bus.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    line = command("--listen", f"unix:{path}", "--log-level", "error")
    started = [subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(50)]
    try:
        wait_until(lambda: sum(process.poll() is not None for process in started) == 49, "49 starts should have ended", 60)
        (alive,) = [process for process in started if process.poll() is None]
        with Wire(f"unix:{path}") as wire:
            wire.hello()
            assert wire.call("stats")["pid"] == alive.pid
        assert {process.returncode for process in started if process is not alive} == {3}
        alive.send_signal(signal.SIGTERM)
        assert alive.wait(10) == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_unlinks_only_its_own_socket(daemon: RunningDaemon) -> None:
    os.rename(daemon.path, daemon.path + ".moved")
    other = socket.socket(socket.AF_UNIX)
    other.bind(daemon.path)
    other.close()
    assert daemon.stop() == 0
    assert stat.S_ISSOCK(os.lstat(daemon.path).st_mode)


def test_missing_directories_are_made_for_us_alone(short_dir: Path) -> None:
    daemon = RunningDaemon(short_dir, listen=[f"unix:{short_dir}/a/b/bus.sock"])
    assert stat.S_IMODE(os.stat(short_dir / "a").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(short_dir / "a" / "b").st_mode) == 0o700
    daemon.finish()


def test_directory_that_others_may_write(short_dir: Path) -> None:
    (short_dir / "open").mkdir()
    (short_dir / "open").chmod(0o770)
    done = run_ipcbusd("--listen", f"unix:{short_dir}/open/bus.sock")
    assert done.returncode == 4
    assert "chmod go-w" in done.stderr
    done = run_ipcbusd("--listen", "unix:/tmp/ipcbus-test-refused.sock")
    assert done.returncode == 4
    assert not os.path.exists("/tmp/ipcbus-test-refused.sock")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a directory of somebody else")
def test_directory_of_somebody_else(short_dir: Path) -> None:
    (short_dir / "theirs").mkdir()
    os.chown(short_dir / "theirs", 4242, -1)
    done = run_ipcbusd("--listen", f"unix:{short_dir}/theirs/bus.sock")
    assert done.returncode == 4
    assert "belongs to uid 4242" in done.stderr
    (short_dir / "theirs").chmod(0o777)
    assert run_ipcbusd("--listen", f"unix:{short_dir}/theirs/ours/bus.sock").returncode == 4


def as_user(uid: int, gid: int, action: Callable[[], None]) -> int:
    """Run *action* in a child that is *uid* and in the group *gid* only; returns the child's pid when it did not raise."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            action()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - this is a child: whatever it is, it must not go on as the test
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    return pid


def reachable(daemon: RunningDaemon) -> None:
    """Let others as far as the socket, whose mode then decides."""
    daemon.directory.parent.chmod(0o711)
    daemon.directory.chmod(0o711)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


@needs_root
def test_other_users_are_refused(daemon: RunningDaemon) -> None:
    """By the kernel, and by the bus where somebody changed the mode behind its back."""
    reachable(daemon)

    def stopped_by_the_kernel() -> None:
        with pytest.raises(PermissionError):
            Wire(daemon.address)

    def refused() -> None:
        with Wire(daemon.address) as wire:
            wire.expect_bye(Code.DENIED)

    as_user(4242, 4242, stopped_by_the_kernel)
    os.chmod(daemon.path, 0o666)
    pid = as_user(4242, 4242, refused)
    assert f"refused pid {pid} uid 4242" in daemon.log()
    assert "whoever can reach" not in daemon.log()


@needs_root
def test_socket_mode_lets_other_users_in(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--socket-mode", "0666")
    reachable(daemon)

    def uses_it() -> None:
        with Wire(daemon.address) as wire:
            wire.hello("guest")
            (item,) = wire.call("peers")["items"]
            assert (item["pid"], item["uid"], item["gid"]) == (os.getpid(), 4242, 4243)

    as_user(4242, 4243, uses_it)
    assert "socket mode 0666: whoever can reach the socket and write to it may connect, not only uid 0 and root" in daemon.log()


@needs_root
def test_socket_group_lets_its_members_in(daemon_factory: DaemonFactory) -> None:
    group = next(item for item in grp.getgrall() if item.gr_gid not in (0, os.getgid()))
    daemon = daemon_factory("--socket-mode", "0660", "--socket-group", group.gr_name)
    reachable(daemon)

    def member() -> None:
        with Wire(daemon.address) as wire:
            wire.hello()

    def stranger() -> None:
        with pytest.raises(PermissionError):
            Wire(daemon.address)

    as_user(4242, group.gr_gid, member)
    as_user(4242, group.gr_gid + 1, stranger)
    assert f"socket mode 0660, group {group.gr_name}: whoever" in daemon.log()


@needs_root
@pytest.mark.parametrize("which", ["uid", "gid"])
def test_who_started_it_as_another_is_not_trusted(which: str) -> None:
    """As a setuid or setgid program has it: what the environment says is that one's."""
    code = f"import os, sys; os.setres{which}(4242, 0, 0); from ipcbus.cli.daemon import main; sys.exit(main(['--check-config']))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ipcbusd: does not run setuid or setgid")


@needs_root
def test_a_group_that_the_bus_is_not_in_is_told(short_dir: Path) -> None:
    os.chown(short_dir, 4242, 4242)

    def start() -> None:
        address = UnixAddress(f"{short_dir}/bus.sock")
        with pytest.raises(ListenError, match=r"socket_group: uid 4242 is not in the group 4711, so .* name another one"):
            open_listeners([address], mode=0o660, group=4711)
        assert os.listdir(short_dir) == ["bus.sock.lock"]

    as_user(4242, 4242, start)


@needs_root
def test_reload_changes_who_may_connect(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory()
    reachable(daemon)

    def let_in() -> None:
        with Wire(daemon.address) as wire:
            wire.hello()

    def refused() -> None:
        with Wire(daemon.address) as wire:
            wire.expect_bye(Code.DENIED)

    def reload(config: str, expected: str) -> None:
        daemon.config_file.write_text(config)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: expected in daemon.log(), f"{expected!r} should be logged")

    reload('socket_mode = "0666"', 'socket_mode is now "0666"')
    as_user(4242, 4242, let_in)
    assert "socket mode 0666: whoever can reach the socket" in daemon.log()
    reload('socket_mode = "0600"', 'socket_mode is now "0600"')
    os.chmod(daemon.path, 0o666)
    as_user(4242, 4242, refused)


def test_several_addresses(daemon_factory: DaemonFactory, short_dir: Path) -> None:
    daemon = daemon_factory(listen=[f"unix:{short_dir}/one.sock", f"unix:{short_dir}/two.sock"])
    for address in daemon.addresses:
        with Wire(address) as wire:
            wire.hello()


def test_socket_mode_and_group(daemon_factory: DaemonFactory) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    daemon = daemon_factory("--socket-mode", "0660", "--socket-group", group)
    found = os.stat(daemon.path)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())


def test_a_group_that_may_not_connect_is_told(daemon_factory: DaemonFactory) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    daemon = daemon_factory("--socket-group", group)
    assert f"socket mode 0600, group {group}: the group may not connect; socket_mode 0660 would let it" in daemon.log()


def test_nothing_leaks(daemon: RunningDaemon) -> None:
    """Descriptors of peers that came and went in every way are closed."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.pid}/fd"))

    before = descriptors()
    wires = []
    for turn in range(60):
        wire = Wire(daemon.address)
        wires.append(wire)
        if turn % 3:
            wire.hello()
        if turn % 3 == 1:
            wire.send(b"garbage")
    assert descriptors() > before
    for wire in wires:
        wire.sock.close()
    wait_until(lambda: descriptors() == before, "descriptors should be closed")


def test_all_addresses_or_none(daemon: RunningDaemon, short_dir: Path) -> None:
    done = run_ipcbusd("--listen", f"unix:{short_dir}/free.sock", "--listen", daemon.address)
    assert done.returncode == 3
    assert not (short_dir / "free.sock").exists()


def stuck(daemon: RunningDaemon, size: int) -> Wire:
    """A peer that does not read, with *size* bytes on their way to it."""
    wire = Wire(daemon.address)
    wire.hello("stuck")
    wire.subscribe("bulk")
    with Wire(daemon.address) as publisher:
        publisher.hello("publisher")
        publisher.publish("bulk", bytes(size))
        publisher.ping()
    return wire


def test_sigterm_drains(daemon: RunningDaemon) -> None:
    with stuck(daemon, 4 << 20) as wire:
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stopping" in daemon.log(), "the signal should be logged")
        with pytest.raises(OSError, match=r"refused|No such file"):
            Wire(daemon.address)
        wire.expect(Kind.LANE)
        assert len(wire.expect(Kind.PUBLISH).payload) == 4 << 20
        wire.expect_bye(Code.SHUTTING_DOWN)
        assert daemon.wait() == 0


@pytest.mark.parametrize(("number", "drain_s"), [(signal.SIGTERM, "0.2"), (signal.SIGINT, "60")])
def test_draining_is_bounded(daemon_factory: DaemonFactory, number: int, drain_s: str) -> None:
    daemon = daemon_factory("--drain-s", drain_s)
    with stuck(daemon, 4 << 20):
        began = time.monotonic()
        daemon.signal(number)
        assert daemon.wait() == 0
        assert time.monotonic() - began < 8


def test_second_signal_stops_at_once(daemon_factory: DaemonFactory) -> None:
    daemon = daemon_factory("--drain-s", "600")
    with stuck(daemon, 4 << 20):
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stopping" in daemon.log(), "the signal should be logged")
        assert daemon.process.poll() is None
        assert run_ipcbusd("--listen", daemon.address).returncode == 3  # the address is ours until the end
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0


def answers(address: str) -> bool:
    try:
        with Wire(address) as wire:
            wire.hello()
    except OSError:
        return False
    return True


def test_ready_descriptor_that_nobody_reads(short_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    line = command("--listen", f"unix:{short_dir}/bus.sock", "--ready-fd", str(write))
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True, pass_fds=(write,))
    os.close(write)
    try:
        wait_until(lambda: answers(f"unix:{short_dir}/bus.sock"), "it should listen")
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "cannot write to the ready descriptor" in log


def test_a_starter_that_blocks_signals_does_not_make_it_deaf(daemon_factory: DaemonFactory) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
    try:
        daemon = daemon_factory()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP: nothing changed" in daemon.log(), "it did not hear SIGHUP")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
