"""Where the client looks for the bus, and what it says when the environment is odd."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ipcbus_client
from ipcbus.protocol.addresses import SYSTEM_RUNTIME_DIR, AddressError, UnixAddress
from ipcbus_client import _trust, aio
from ipcbus_client._discovery import find_address, find_order, find_secret_path, read_secret, runtime_dir
from ipcbus_client._trust import given_by_root, started_with_more, trusted_uids


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "unix:/run/x.sock,tcp:127.0.0.1:4222", "unix:/run/x.sock, tcp:127.0.0.1:4222"])
def test_the_first_address_of_the_environment_counts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPCBUS_ADDRESS", text)
    assert str(find_address(None, None)) == "unix:/run/x.sock"
    assert str(find_address("tcp:127.0.0.1:1", None)) == "tcp:127.0.0.1:1"
    with pytest.raises(AddressError):
        find_address("unix:/a", "named")


def test_no_warning_without_a_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "IPCBUS_ADDRESS", "IPCBUS_BUS"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime_dir()
        assert str(find_address(None, "lab")).endswith("/lab.sock")


@pytest.mark.parametrize(("named", "more"), [("65534", {65534}), ("\u00b2", set()), ("\u0664", set()), ("root", set()), ("-1", set())])
def test_the_bus_user_is_a_number(monkeypatch: pytest.MonkeyPatch, named: str, more: set[int]) -> None:
    monkeypatch.setenv("IPCBUS_BUS_UID", named)
    assert trusted_uids("/run/x/bus.sock") == {0, os.geteuid()} | more


def test_a_program_with_more_rights_than_who_started_it_believes_nothing_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "IPCBUS_ADDRESS": "unix:/tmp/theirs.sock", "IPCBUS_BUS": "theirs", "IPCBUS_SECRET_FILE": "/tmp/theirs", "IPCBUS_BUS_UID": "4711",
        "IPCBUS_AUTOSTART": "1", "XDG_RUNTIME_DIR": "/tmp",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert str(find_address(None, None)) == said["IPCBUS_ADDRESS"]
    assert find_secret_path(None, None) == said["IPCBUS_SECRET_FILE"]
    assert 4711 in trusted_uids("/run/x/bus.sock")
    assert find_order(UnixAddress("/run/x/bus.sock"), None, None) is not None
    monkeypatch.setattr(_trust, "started_with_more", lambda path: True)
    ours = f"/run/user/{os.geteuid()}/ipcbus"
    assert str(find_address(None, None)) == f"unix:{ours}/default.sock"
    assert str(find_address(None, "lab")) == f"unix:{ours}/lab.sock"
    assert find_secret_path(None, None) == f"{ours}/default.secret"
    assert 4711 not in trusted_uids("/run/x/bus.sock")
    assert find_order(UnixAddress("/run/x/bus.sock"), None, None) is None
    assert str(find_address("unix:/run/ours.sock", None)) == "unix:/run/ours.sock"  # what the program itself says counts
    assert find_secret_path("/etc/ours", None) == "/etc/ours"


@pytest.mark.parametrize("ids", [("geteuid", "getuid"), ("getegid", "getgid")])
def test_another_effective_user_or_group_is_more_rights(monkeypatch: pytest.MonkeyPatch, ids: tuple[str, str]) -> None:
    assert not _trust.is_privileged()
    monkeypatch.setattr(os, ids[1], lambda: getattr(os, ids[0])() + 1)
    assert _trust.is_privileged()
    assert not _trust.environment()


@pytest.mark.parametrize(
    ("vector", "more"),
    [
        (struct.pack("@6L", 6, 4096, 23, 0, 0, 0), False),
        (struct.pack("@6L", 6, 4096, 23, 1, 0, 0), True),
        (struct.pack("@4L", 6, 23, 0, 0), False),  # 23 as a value
        (b"", False),
        (b"x", True),
        (None, False),  # then the C library is asked
    ],
)
def test_what_the_kernel_says_of_the_start(tmp_path: Path, vector: bytes | None, more: bool) -> None:
    path = tmp_path / "auxv"
    if vector is not None:
        path.write_bytes(vector)
    assert started_with_more(str(path)) is more


@pytest.mark.parametrize("wrong", [ImportError, OSError, AttributeError])
def test_where_nobody_says_it_is_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: type[Exception]) -> None:
    def fail(name: None) -> None:
        raise wrong

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert started_with_more(str(tmp_path / "auxv")) is True


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become another user")
def test_root_that_became_another_user_believes_the_environment_that_it_had(tmp_path: Path) -> None:
    """The kernel shows the auxiliary vector of such a process to root only; who started it had as much to say as it has."""
    out = tmp_path / "out"
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(descriptor, f"{os.access('/proc/self/auxv', os.R_OK)} {_trust.is_privileged()}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(descriptor)
    assert out.read_text() == "False False"


def test_on_the_systems_bus_listens_whom_root_gave_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trust, "given_by_root", {SYSTEM_RUNTIME_DIR: 4711}.get)
    assert 4711 in trusted_uids(f"{SYSTEM_RUNTIME_DIR}/system.sock")
    for path in (f"{SYSTEM_RUNTIME_DIR}/more/system.sock", f"{SYSTEM_RUNTIME_DIR}x/system.sock", "/run/user/1/ipcbus/system.sock"):
        assert 4711 not in trusted_uids(path)


class Found(NamedTuple):
    """What lstat() says."""

    st_mode: int
    st_uid: int


@pytest.mark.parametrize(
    ("above", "here", "owner"),
    [
        (Found(0o040755, 0), Found(0o040755, 4711), 4711),
        (Found(0o040755, 0), Found(0o040700, 4711), 4711),
        (Found(0o040755, 1), Found(0o040755, 4711), None),
        (Found(0o040775, 0), Found(0o040755, 4711), None),
        (Found(0o041777, 0), Found(0o040755, 4711), None),
        (Found(0o040755, 0), Found(0o040775, 4711), None),
        (Found(0o040755, 0), Found(0o040757, 4711), None),
        (Found(0o120777, 0), Found(0o040755, 4711), None),
        (Found(0o040755, 0), Found(0o120755, 4711), None),
        (Found(0o040755, 0), None, None),
    ],
)
def test_only_root_can_have_chosen_the_owner(monkeypatch: pytest.MonkeyPatch, above: Found, here: Found | None, owner: int | None) -> None:
    def lstat(path: str) -> Found:
        found = {"/run": above, "/run/ipcbus": here}[path]
        if found is None:
            raise FileNotFoundError(path)
        return found

    monkeypatch.setattr(_trust.os, "lstat", lstat)
    assert given_by_root("/run/ipcbus") == owner


def test_a_secret_that_somebody_else_put_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bus.secret"
    path.write_bytes(b"s" * 32)
    path.chmod(0o600)
    assert read_secret(str(path)) == b"s" * 32
    if os.geteuid() == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ipcbus_client.ConnectError, match="belongs to uid") as caught:
        read_secret(str(path))
    assert (caught.value.reason, caught.value.who) == ("secret", str(path))


@pytest.mark.parametrize("connect", [ipcbus_client.connect, aio.connect])
@pytest.mark.parametrize("options", [{"address": 3}, {"address": Path("/run/x.sock")}, {"bus": 3}, {"program": 3}])
def test_what_is_no_text_is_told_by_its_option(connect: Callable[..., Any], options: dict[str, Any]) -> None:
    async def connecting() -> None:
        made = connect(**options)
        if connect is aio.connect:
            await made

    (option,) = options
    with pytest.raises(TypeError, match=f"^{option}=.*: it is a str, or None"):
        asyncio.run(connecting())
