"""Configuration: every option in every layer, precedence, and messages that say what to do."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ipcbus.daemon.config import Config, ConfigError, as_toml, difference, load
from ipcbus.daemon.options import BY_NAME, OPTIONS
from ipcbus.protocol.addresses import TcpAddress, UnixAddress
from ipcbus.protocol.limits import Limits


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def configure(tmp_path: Path, text: str = "", *, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Config:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load(flags=flags or {}, environ=environ or {}, path=str(file))


def errors(tmp_path: Path, text: str = "", **more: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, text, **more)
    return caught.value.errors


def test_a_row_for_each_limit_with_its_default() -> None:
    rows = {option.name.removeprefix("limits."): option.default for option in OPTIONS if option.name.startswith("limits.")}
    assert rows == dataclasses.asdict(Limits())


def test_rows_are_unique() -> None:
    assert len(BY_NAME) == len(OPTIONS)
    for attribute in ("env", "flag"):
        given = [getattr(option, attribute) for option in OPTIONS if getattr(option, attribute)]
        assert len(set(given)) == len(given)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.default is not None], ids=lambda option: str(option.name))
def test_every_default_survives_its_own_toml(option: Any) -> None:
    assert option.type.from_toml(tomllib.loads(f"x = {option.type.to_toml(option.default)}")["x"]) == option.default


def test_defaults(tmp_path: Path) -> None:
    config = load(flags={}, environ={}, path=None)
    assert config.listen == (UnixAddress("/run/user/1234/ipcbus/default.sock"),)
    assert config.secret_file == "/run/user/1234/ipcbus/default.secret"
    assert config.limits == Limits()
    assert (config.poller, config.socket_mode, config.drain_s, config.path) == ("epoll", 0o600, 5.0, None)
    assert set(config.sources.values()) == {"default"}
    assert not config.needs_secret


def test_precedence(tmp_path: Path) -> None:
    text = 'poller = "poll"\nlog_level = "debug"\nlog_format = "json"\n'
    config = configure(
        tmp_path,
        text,
        environ={"IPCBUS_POLLER": "select", "IPCBUS_LOG_LEVEL": "error", "IPCBUS_BUS": ""},
        flags={"log_level": "warning", "bus": None},
    )
    assert (config.log_format, config.poller, config.log_level, config.bus) == ("json", "select", "warning", "default")
    assert config.sources["log_format"] == f"file {tmp_path}/c.toml"
    assert config.sources["poller"] == "environment IPCBUS_POLLER"
    assert config.sources["log_level"] == "flag --log-level"


def test_which_file(tmp_path: Path) -> None:
    home = tmp_path / "home" / "ipcbus"
    home.mkdir(parents=True)
    (home / "ipcbusd.toml").write_text("drain_s = 1\n")
    (tmp_path / "env.toml").write_text("drain_s = 2\n")
    (tmp_path / "flag.toml").write_text("drain_s = 3\n")
    environ = {"IPCBUS_CONFIG": str(tmp_path / "env.toml")}
    assert load(flags={}, environ={}).drain_s == 1
    assert load(flags={}, environ=environ).drain_s == 2
    assert load(flags={}, environ=environ, path=str(tmp_path / "flag.toml")).drain_s == 3
    with pytest.raises(ConfigError, match="No such file"):
        load(flags={}, environ={"IPCBUS_CONFIG": str(tmp_path / "missing.toml")})


def test_addresses(tmp_path: Path) -> None:
    config = configure(tmp_path, environ={"IPCBUS_ADDRESS": "unix:/run/a.sock, tcp:localhost:0"})
    assert config.listen == (UnixAddress("/run/a.sock"), TcpAddress("127.0.0.1", 0))
    assert config.needs_secret
    config = configure(tmp_path, 'listen = ["unix:/run/b.sock"]', flags={"listen": ["tcp:[::1]:4222"]})
    assert config.listen == (TcpAddress("::1", 4222),)


def test_another_bus_does_not_take_the_first_ones_address(tmp_path: Path) -> None:
    lab = (UnixAddress("/run/user/1234/ipcbus/lab.sock"),)
    address = {"IPCBUS_ADDRESS": "unix:/run/a.sock"}
    assert configure(tmp_path, environ=address, flags={"bus": "lab"}).listen == lab
    assert configure(tmp_path, 'listen = ["unix:/run/a.sock"]', environ={"IPCBUS_BUS": "lab"}).listen == lab
    assert configure(tmp_path, environ={**address, "IPCBUS_BUS": "lab"}).listen == (UnixAddress("/run/a.sock"),)
    assert configure(tmp_path, flags={"bus": "lab", "listen": ["unix:/run/a.sock"]}).listen == (UnixAddress("/run/a.sock"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("drain = 1", "drain: there is no such option; did you mean drain_s?"),
        ("max_peers = 1", "max_peers: there is no such option; did you mean limits.max_peers?"),
        ("zzzz = 1", "zzzz: there is no such option; `ipcbusd --print-config` lists them all"),
        ("[limit]\nmax_peers = 1", "limit.max_peers: there is no such option; did you mean limits.max_peers?"),
        ("limits = 1", "limits: there is no such option"),
        ("bus = 1", "bus: 1 is not a bus name"),
        ('bus = ""', "bus: '' is not a bus name"),
        ('bus = "../x"', "bus name '../x'"),
        ('bus = "' + 99 * "x" + '"', "a Unix socket's path has at most"),
        ('listen = "unix:/x"', "listen: 'unix:/x' is not a list of addresses"),
        ("listen = []", "listen: [] is not a list of addresses"),
        ("listen = [1]", "listen: [1] is not a list of addresses"),
        ('listen = ["unix:x"]', "give an absolute path"),
        ('listen = ["unix:/x", "unix:/x"]', "/x is given twice"),
        ('listen = ["unix:/x", "unix:/nowhere/../x"]', "/x is given twice"),
        ('poller = "Epoll"', "poller: 'Epoll' is not one of epoll, poll, select"),
        ("drain_s = true", "drain_s: True is not a number of seconds"),
        ("drain_s = nan", "drain_s: nan is not a number of seconds"),
        ('secret_file = "x"', "secret_file: 'x' is not an absolute path"),
        ("socket_mode = 384", "socket_mode: 384 is not an octal mode"),
        ('socket_mode = "0400"', "socket_mode: '0400' is not an octal mode"),
        ('socket_mode = "0777"', "socket_mode: '0777' is not an octal mode"),
        ('socket_group = "no-such-group"', "there is no group 'no-such-group'"),
        ("[limits]\nmax_peers = 0", "limits.max_peers: 0 is not a whole number from 1 to"),
        ("[limits]\nmax_peers = 1.0", "limits.max_peers: 1.0 is not a whole number"),
        ("[limits]\nmax_payload_bytes = 4294967295", "limits.max_payload_bytes: 4294967295 is not a whole number from 0 to 4294901759"),
        ("[limits]\nlane_stall_s = 0", "limits.lane_stall_s: 0 is not a number of seconds"),
        (
            "[limits]\nmax_output_bytes = 88145919",
            "limits.max_output_bytes: 88145919 is too little for limits.max_payload_bytes of 16777216 and "
            "limits.max_retained_bytes of 67108864: "
            "give it at least 88145920",
        ),
        (
            "[limits]\nmax_payload_bytes = 200_000_000\nmax_output_bytes = 150_000_000",
            "limits.max_output_bytes: 150000000 is too little for limits.max_payload_bytes of 200000000 and "
            "limits.max_retained_bytes of 67108864: "
            "give it at least 271368704",
        ),
        (
            "[limits]\nmax_program_bytes = 16842751",
            "limits.max_program_bytes: 16842751 is too little for limits.max_payload_bytes of 16777216: give it at least 16842752",
        ),
        ("[limits]\nmax_user_bytes = 1", "limits.max_user_bytes: 1 is too little for limits.max_payload_bytes of 16777216"),
        ("[limits]\nmax_queued_bytes = 1", "limits.max_queued_bytes: 1 is too little for limits.max_payload_bytes of 16777216"),
        ("[limits]\nmax_program_lanes = 0", "limits.max_program_lanes: 0 is not a whole number from 1 to"),
        ("[limits]\nquota_grace_s = 0", "limits.quota_grace_s: 0 is not a number of seconds"),
        ("drain_s = ", "not TOML"),
        ("drain_s = " + 5000 * "1", "not TOML"),
        ("drain_s = " + 5000 * "[", "nested too deeply"),
    ],
)
def test_messages(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = errors(tmp_path, text)
    assert expected in line


def test_output_that_just_holds_the_largest_message(tmp_path: Path) -> None:
    assert configure(tmp_path, "[limits]\nmax_output_bytes = 88145920\n").limits.max_output_bytes == 88_145_920
    text = "[limits]\nmax_payload_bytes = 0\nmax_retained_bytes = 0\nmax_output_bytes = 4259840\n"
    assert configure(tmp_path, text).limits.max_output_bytes == 4_259_840


def test_accounts_that_just_hold_the_largest_message(tmp_path: Path) -> None:
    for name in ("max_program_bytes", "max_user_bytes", "max_queued_bytes"):
        assert getattr(configure(tmp_path, f"[limits]\n{name} = 16842752\n").limits, name) == 16_842_752


def test_a_runtime_directory_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise PermissionError("runtime directory /tmp/runtime-1 is a symlink; set XDG_RUNTIME_DIR instead")

    monkeypatch.setattr("platformdirs.user_runtime_dir", refuse)
    (line,) = errors(tmp_path)
    assert line == "listen: runtime directory /tmp/runtime-1 is a symlink; set XDG_RUNTIME_DIR instead"
    (line,) = errors(tmp_path, 'listen = ["tcp:127.0.0.1:0"]')
    assert line == "secret_file: runtime directory /tmp/runtime-1 is a symlink; set XDG_RUNTIME_DIR instead"
    assert configure(tmp_path, 'listen = ["tcp:127.0.0.1:0"]\nsecret_file = "/run/a.secret"').secret_file == "/run/a.secret"
    assert configure(tmp_path, 'listen = ["unix:/run/a.sock"]').secret_file is None, "nobody needs it"


def test_a_link_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody swaps it for a directory and back: what is there decides when the bus listens."""
    (tmp_path / "link").symlink_to("elsewhere")
    text = f'listen = ["unix:{tmp_path}/link/a", "unix:{tmp_path}/link/b"]'

    def gone(path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "readlink", gone)
    assert len(configure(tmp_path, text).listen) == 2
    assert "is given twice" in errors(tmp_path, text.replace("/b", "/a"))[0]


def test_messages_name_the_place(tmp_path: Path) -> None:
    lines = errors(tmp_path, "drain_s = -1", environ={"IPCBUS_DRAIN_S": "soon"}, flags={"drain_s": "never"})
    assert lines == (
        f"{tmp_path}/c.toml: drain_s: -1 is not a number of seconds from 0 to 3600",
        "IPCBUS_DRAIN_S: 'soon' is not a number of seconds from 0 to 3600",
        "--drain-s: 'never' is not a number of seconds from 0 to 3600",
    )


def test_printed_configuration_is_the_same(tmp_path: Path) -> None:
    first = configure(tmp_path, 'secret_file = "/a \\"b\\" \\\\ \\u0007"\nsocket_mode = "0660"\n[limits]\nlane_stall_s = 1\n')
    again = tmp_path / "printed.toml"
    again.write_text(as_toml(first))
    second = load(flags={}, environ={}, path=str(again))
    assert second.values == first.values
    assert second.limits == first.limits


@pytest.mark.parametrize("name", ["a\nlisten = 3", "a\rb", "a\x1b[31mb", "a\x7fb", "a\u2028b", "a\udcffb"])
def test_the_name_of_the_file_cannot_be_part_of_what_is_printed(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("drain_s = 3\n")
    first = load(flags={}, environ={}, path=str(file))
    again = tmp_path / "printed.toml"
    again.write_text(as_toml(first), newline="")
    second = load(flags={}, environ={}, path=str(again))
    assert second.values == first.values
    assert as_toml(first).splitlines()[0] == f"# {tmp_path}/{name}".translate(str.maketrans("\n\r\x1b\x7f\u2028\udcff", "??????"))


def test_difference(tmp_path: Path) -> None:
    old = configure(tmp_path, "")
    new = configure(tmp_path, 'log_level = "debug"\npoller = "poll"\n[limits]\nmax_peers = 3\nmax_lanes = 3\n')
    live, fixed = difference(old, new)
    assert [option.name for option in live] == ["log_level", "limits.max_peers"]
    assert [option.name for option in fixed] == ["poller", "limits.max_lanes"]
    assert difference(old, old) == ([], [])


def test_what_welcome_announced_needs_a_restart() -> None:
    """H-8: the numbers that clients were told stay true while they are connected."""
    for name in ("max_payload_bytes", "max_credit_bytes", "max_lanes", "max_requests", "max_timeout_ms"):
        assert not BY_NAME[f"limits.{name}"].live
