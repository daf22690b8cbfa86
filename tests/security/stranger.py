"""A process of another user, started by root: it gives up being root for good and then does what it is told, one order at a time.

Python and the project may lie where that user may not go (a home of root's). So everything is imported by way of descriptors of the
directories, opened before: that opens nothing else to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import pwd
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

_PR_SET_DUMPABLE = 4
_NEW_USER_NAMESPACE, _NEW_PID_NAMESPACE = 0x1000_0000, 0x2000_0000
_ORDER_BYTES = 65_536


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Be that user, with no way back: no id and no capability of root's is kept."""
    _import_by_descriptors()
    os.chdir("/")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # /proc/self belongs to root after that, unless it is said that nothing of this process is a secret
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _import_by_descriptors() -> None:
    known: dict[str, str] = {}

    def through(path: str) -> str:
        if path not in known:
            known[path] = f"/proc/self/fd/{os.open(path, os.O_RDONLY | os.O_DIRECTORY)}" if os.path.isdir(path) else path
        return known[path]

    sys.path[:] = [through(os.path.abspath(path)) for path in sys.path]
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__[:] = map(through, module.__path__)
    sys.path_importer_cache.clear()


def enter_namespaces() -> None:
    """Be root, as far as this process can tell: in a user namespace of its own, and its children in a pid namespace of their own."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER_NAMESPACE | _NEW_PID_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    for file, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        write(f"/proc/self/{file}", text)


def connect(path: str) -> socket.socket:
    """Be connected to a Unix socket."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(path)
    return made


def connect_from_child(path: str) -> socket.socket:
    """The same in a child, which is the first process of a new pid namespace."""
    made = socket.socket(socket.AF_UNIX)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert (os.getpid(), os.getuid()) == (1, 0)
            made.connect(path)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise OSError("the child could not connect")
    return made


def listen(path: str) -> socket.socket:
    """Listen on a Unix socket that everybody may reach."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    os.chmod(path, 0o777)
    made.listen()
    return made


def read(path: str) -> str:
    """What a file says."""
    with open(path, errors="backslashreplace") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Make a file, or write to one."""
    with open(path, "w") as file:
        file.write(text)


def race(path: str, *targets: str) -> int:
    """Have a child make *path* a directory, a link to one target after the other, and nothing, again and again, as fast as it can."""
    pid = os.fork()
    if pid:
        return pid
    while True:
        for target in (None, *targets):
            with contextlib.suppress(OSError):
                if target is None:
                    os.mkdir(path)
                else:
                    os.symlink(target, path)
            for step in (os.rmdir, os.unlink):
                with contextlib.suppress(OSError):
                    step(path)


def run(words: list[str], environment: dict[str, str], *streams: int) -> int:
    """Start `ipcbus …`, `ipcbusd …` or `python3 FILE …` in a child with these stdout and stderr; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for number, descriptor in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *streams), strict=True):
            os.dup2(descriptor, number)
        os.environ.update(environment)
        code = _program(words)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - this is a child: whatever it is, it must not go on as the stranger
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _program(words: list[str]) -> int:
    sys.argv = words
    if words[0] == "ipcbus":
        from ipcbus.cli.main import main as ipcbus

        return ipcbus(words[1:])
    if words[0] == "ipcbusd":
        from ipcbus.cli.daemon import main as ipcbusd

        return ipcbusd(words[1:])
    sys.argv = words[1:]
    runpy.run_path(words[1], run_name="__main__")
    return 0


def believe(users: dict[str, int], groups: dict[str, int]) -> None:
    """Have this process and its children know these users and groups, as if they were in the machine's database."""
    known = {**{name: pwd.struct_passwd((name, "x", uid, uid, "", "/", "")) for name, uid in users.items()}}
    sets = {**{name: grp.struct_group((name, "x", gid, [])) for name, gid in groups.items()}}
    by_uid = {each.pw_uid: each for each in known.values()}
    by_gid = {each.gr_gid: each for each in sets.values()}
    ask = (pwd.getpwnam, pwd.getpwuid, grp.getgrnam, grp.getgrgid, os.getgrouplist)
    pwd.getpwnam = lambda name: known[name] if name in known else ask[0](name)
    pwd.getpwuid = lambda uid: by_uid[uid] if uid in by_uid else ask[1](uid)
    grp.getgrnam = lambda name: sets[name] if name in sets else ask[2](name)
    grp.getgrgid = lambda gid: by_gid[gid] if gid in by_gid else ask[3](gid)
    os.getgrouplist = lambda name, gid: [gid] if name in known else ask[4](name, gid)


def wait(pid: int) -> int:
    """The exit code of a child that was started, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


ORDERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        enter_namespaces, connect, connect_from_child, listen, read, write, race, run, wait, believe,
        os.symlink, os.unlink, os.mkdir, os.listdir, os.link, os.rename, os.chmod,
    )
}  # fmt: skip


def serve(orders: socket.socket) -> None:
    """Do as told until nobody says anything any more. What comes is [name, arguments] and descriptors, which are arguments too."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, _ORDER_BYTES, 8)
        if not data:
            return
        name, arguments = json.loads(data)
        handed: list[int] = []
        try:
            result = ORDERS[name](*arguments, *descriptors)
            if isinstance(result, socket.socket):
                handed.append(result.detach())
                result = None
            answer: dict[str, Any] = {"result": result}
        except OSError as error:
            answer = {"errno": error.errno, "text": str(error)}
        for descriptor in descriptors:
            os.close(descriptor)
        socket.send_fds(orders, [json.dumps(answer).encode()], handed)
        for descriptor in handed:
            os.close(descriptor)


if __name__ == "__main__":
    _, number, uid, gid, *groups = sys.argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this
    become(int(uid), int(gid), [int(group) for group in groups])
    serve(socket.socket(fileno=int(number)))
