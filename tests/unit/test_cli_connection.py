"""ipcbus.cli.connection: how long a command waits for its bus, and how it calls it."""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.cli.connection import ANSWER_TIMEOUT_S, describe, open_bus


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    """Nothing of the developer's own."""
    for name in ("IPCBUS_ADDRESS", "IPCBUS_BUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))


def common(address: str | None = None, bus: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(address=address, bus=bus, secret_file=None, identity=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ipcbus_client.connect` was called with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ipcbus_client, "connect", lambda *address, **options: calls.append({"address": address, **options}))
    return calls


@pytest.fixture(params=["unix", "unix with a space", "tcp"])
def listener(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[tuple[str, socket.socket]]:
    """Something that listens, and its address."""
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{made.getsockname()[1]}"
    else:
        made = socket.socket(socket.AF_UNIX)
        path = short_dir / ("x y.sock" if " " in request.param else "x.sock")
        made.bind(str(path))
        made.listen(0)
        address = f"unix:{path}"
    with made:
        yield address, made


@pytest.mark.parametrize(("wait_s", "timeout"), [(None, ANSWER_TIMEOUT_S), (0.2, 0.2), (60.0, 60.0)])
def test_the_bus_has_the_time_that_help_promises(
    listener: tuple[str, socket.socket], asked: list[dict[str, Any]], wait_s: float | None, timeout: float
) -> None:
    open_bus(common(listener[0]), program="unit", wait_s=wait_s)
    assert [call["timeout"] for call in asked] == [timeout]


def test_the_bus_hears_nothing_of_the_look_at_its_socket(short_dir: Path, asked: list[dict[str, Any]]) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{short_dir}/x.sock")
        made.listen(0)
        open_bus(common(f"unix:{short_dir}/x.sock"), program="unit", wait_s=None)
        made.setblocking(False)
        with pytest.raises(BlockingIOError):
            made.accept()


def missing(short_dir: Path, how: str) -> str:
    if how == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as made:
            return f"tcp:127.0.0.1:{made.getsockname()[1]}"
    if how == "dead":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"{short_dir}/x.sock")
    return f"unix:{short_dir}/x.sock"


@pytest.mark.parametrize("how", ["none", "dead", "tcp"])
def test_a_bus_that_is_not_there_is_told_soon(short_dir: Path, asked: list[dict[str, Any]], how: str) -> None:
    address = missing(short_dir, how)
    begun = time.monotonic()
    with pytest.raises(ipcbus_client.ConnectError, match=f"nothing listens on {address}"):
        open_bus(common(address), program="unit", wait_s=None)
    assert time.monotonic() - begun < 2.0
    assert asked == []


def test_why_it_cannot_be_reached(short_dir: Path, asked: list[dict[str, Any]]) -> None:
    (short_dir / "file").touch()
    with pytest.raises(ipcbus_client.ConnectError, match=r"file/x\.sock: Not a directory"):
        open_bus(common(f"unix:{short_dir}/file/x.sock"), program="unit", wait_s=None)


def test_who_gives_a_timeout_waits_for_a_bus_that_starts(short_dir: Path, asked: list[dict[str, Any]]) -> None:
    open_bus(common(f"unix:{short_dir}/x.sock"), program="unit", wait_s=2.0)
    assert [call["timeout"] for call in asked] == [2.0]


def test_describe(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    assert describe(common("unix:/a b/x.sock")) == "unix:/a b/x.sock"
    assert describe(common()) == f"unix:{short_dir}/ipcbus/default.sock"
    monkeypatch.setenv("IPCBUS_BUS", "lab")
    assert describe(common()) == f"unix:{short_dir}/ipcbus/lab.sock"
    monkeypatch.setenv("IPCBUS_ADDRESS", "unix:/a b/y.sock, tcp:127.0.0.1:1")
    assert describe(common()) == "unix:/a b/y.sock (from $IPCBUS_ADDRESS)"
    assert describe(common(bus="other")) == f"unix:{short_dir}/ipcbus/other.sock"
    assert describe(common(bus="../x")) == "bus '../x'"
    assert describe(common("nonsense")) == "nonsense"


def test_a_runtime_directory_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise PermissionError("runtime directory /tmp/runtime-1 is a symlink; set XDG_RUNTIME_DIR instead")

    monkeypatch.setattr("platformdirs.user_runtime_dir", refuse)
    assert describe(common(bus="lab")) == "bus 'lab'"
    with pytest.raises(ipcbus_client.ConnectError, match="set XDG_RUNTIME_DIR instead"):
        open_bus(common(), program="unit", wait_s=None)
