"""What is tried to start a bus, as a table: by what there is on the machine."""

from __future__ import annotations

from typing import Any

import pytest

from ipcbus.protocol.addresses import AddressError, TcpAddress, UnixAddress
from ipcbus_client import _discovery
from ipcbus_client._autostart import Around, Order, Skipped, Step, environment_of_daemon, plan, wanted

DEFAULT = "/run/user/7/ipcbus/default.sock"
AROUND = Around(
    manager=True,
    systemctl="/bin/systemctl",
    systemd_run="/bin/systemd-run",
    unit_socket=True,
    default_path=DEFAULT,
    daemon=("/bin/ipcbusd",),
    environment={},
)
DAEMON = ("/bin/ipcbusd", "--bus", "default", "--listen", f"unix:{DEFAULT}", "--exit-idle", "60")
NO_MANAGER = "no systemd user manager can be reached"

TABLE: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("all is there", {}, DEFAULT, ["step", "step", "step"]),
    ("no user manager", {"manager": False}, DEFAULT, [NO_MANAGER, NO_MANAGER, "step"]),
    ("no systemctl", {"systemctl": None}, DEFAULT, ["there is no systemctl", "step", "step"]),
    ("the unit is not installed", {"unit_socket": False}, DEFAULT, ["it is not installed", "step", "step"]),
    ("another bus", {}, "/run/user/7/ipcbus/lab.sock", [f"it listens on {DEFAULT}", "step", "step"]),
    ("no systemd-run", {"systemd_run": None}, DEFAULT, ["step", "there is no systemd-run", "step"]),
    ("no ipcbusd", {"daemon": ()}, DEFAULT, ["step", "ipcbusd is not installed", "ipcbusd is not installed"]),
]


@pytest.mark.parametrize(("changes", "path", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_plan(changes: dict[str, Any], path: str, expected: list[str]) -> None:
    found = plan(Order(path, "default"), AROUND._replace(**changes))
    assert [one.why if isinstance(one, Skipped) else "step" for one in found] == expected
    assert [one.what for one in found] == ["the user's ipcbusd.socket", "a transient user service", "a process of its own"]
    assert [isinstance(one, Step) and one.detached for one in found][:2] == [False, False]


def test_the_commands() -> None:
    socket_unit, service, process = plan(Order(DEFAULT, "default"), AROUND._replace(environment={"PYTHONPATH": "/a:/b", "HOME": "/h"}))
    assert isinstance(socket_unit, Step)
    assert isinstance(service, Step)
    assert socket_unit.command == ("/bin/systemctl", "--user", "start", "ipcbusd.socket")
    assert service.command[:5] == ("/bin/systemd-run", "--user", "--quiet", "--collect", "--unit=ipcbusd-default")
    assert "--setenv=PYTHONPATH=/a:/b" in service.command
    assert service.command[service.command.index("--") + 1 :] == DAEMON
    assert process == Step("a process of its own", DAEMON, detached=True)


def test_the_daemons_environment_is_its_users_and_not_the_programs() -> None:
    given = {"PATH": "p", "HOME": "h", "LC_ALL": "C", "XDG_RUNTIME_DIR": "r", "IPCBUS_ADDRESS": "unix:/x", "TOKEN": "t", "LD_PRELOAD": "l"}
    assert environment_of_daemon(given) == {"PATH": "p", "HOME": "h", "LC_ALL": "C", "XDG_RUNTIME_DIR": "r"}


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [
        (None, None, False), (None, "", False), (None, "0", False), (None, "false", False), (None, "No", False),
        (None, "1", True), (None, "TRUE", True), (None, " yes ", True),
        (True, "0", True), (False, "1", False),
    ],
)  # fmt: skip
def test_whether_it_is_wanted(argument: bool | None, variable: str | None, expected: bool) -> None:
    assert wanted(argument, {} if variable is None else {"IPCBUS_AUTOSTART": variable}) is expected


def test_what_is_neither_yes_nor_no() -> None:
    with pytest.raises(AddressError, match="IPCBUS_AUTOSTART='maybe': allowed are 1, true, yes and 0, false, no"):
        wanted(None, {"IPCBUS_AUTOSTART": "maybe"})
    with pytest.raises(TypeError, match="autostart=1: it is True, False or None"):
        wanted(1, {})  # type: ignore[arg-type]


def test_only_a_unix_socket_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPCBUS_AUTOSTART", raising=False)
    assert _discovery.find_order(UnixAddress(DEFAULT), None, None) is None
    assert _discovery.find_order(UnixAddress(DEFAULT), None, True) == Order(DEFAULT, "default")
    assert _discovery.find_order(UnixAddress("/r/lab.one.sock"), None, True) == Order("/r/lab.one.sock", "lab.one")
    assert _discovery.find_order(UnixAddress("/r/socket"), None, True) == Order("/r/socket", "default")
    assert _discovery.find_order(UnixAddress("/r/o dd.sock"), None, True) == Order("/r/o dd.sock", "default")
    with pytest.raises(AddressError, match="only a bus on a Unix socket can be started; run `ipcbusd --listen tcp:127"):
        _discovery.find_order(TcpAddress("127.0.0.1", 4222), None, True)
    monkeypatch.setenv("IPCBUS_AUTOSTART", "1")
    assert _discovery.find_order(UnixAddress(DEFAULT), None, None) == Order(DEFAULT, "default")
    assert _discovery.find_order(UnixAddress(DEFAULT), None, False) is None
    assert _discovery.find_order(TcpAddress("127.0.0.1", 4222), None, None) is None
