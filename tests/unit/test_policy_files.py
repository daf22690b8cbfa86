"""The policy's files: order, what hides what, what is wrong with them, what holds without them, and which bus they are for."""

from __future__ import annotations

import dataclasses
import errno
import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipcbus.broker import Credentials
from ipcbus.daemon import config as config_module
from ipcbus.daemon import places, policy_files, user_database
from ipcbus.daemon.config import Config, ConfigError, as_toml, load
from ipcbus.daemon.namespaces import covers_all, hides_others, maps_some_only
from ipcbus.daemon.options import SYSTEM_DEFAULTS
from ipcbus.daemon.policy_files import PolicyFiles, built_in, not_of_this_machine, read_policy
from ipcbus.daemon.policy_in_force import PolicyInForce
from ipcbus.policy import Policy, Rights, Subject
from ipcbus.protocol.addresses import UnixAddress

BUS_UID = 1000
STRANGER = os.geteuid() + 4242
RULE = '[[rule]]\nallow = "publish"\ntopics = "{}"\n'


def rule(topic: str) -> str:
    return RULE.format(topic)


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of our own: nothing of the real one is read."""
    for name in ("run", "etc/policy.d", "lib", "home/ipcbus"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(places, "SYSTEM_CONFIG_DIR", str(tmp_path / "etc"))
    monkeypatch.setattr(places, "SYSTEM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setitem(SYSTEM_DEFAULTS, "policy_dir", (f"{tmp_path}/etc/policy.d", f"{tmp_path}/lib"))
    return tmp_path


def read(main: Path | None, *directories: Path) -> tuple[PolicyFiles, list[str]]:
    errors: list[str] = []
    found = read_policy(None if main is None else str(main), [str(directory) for directory in directories], None, errors)
    return found, errors


def topics(files: PolicyFiles) -> list[str]:
    return [topic for found in files.rules for topic in found.topics or ()]


def test_order_of_files(system: Path) -> None:
    etc, lib = system / "etc" / "policy.d", system / "lib"
    (system / "etc" / "policy.toml").write_text(rule("main"))
    (lib / "10-early.toml").write_text(rule("early"))
    (etc / "50-lights.toml").write_text(rule("lights.ours"))
    (lib / "50-lights.toml").write_text(rule("lights.theirs"))
    (etc / "90-late.toml").write_text(rule("late"))
    (lib / "README").write_text("not read")
    files, errors = read(system / "etc" / "policy.toml", etc, lib, system / "nowhere")
    assert errors == []
    assert topics(files) == ["main", "early", "lights.ours", "late"]
    assert [str(Path(path).relative_to(system)) for path in files.files] == [
        "etc/policy.toml", "lib/10-early.toml", "etc/policy.d/50-lights.toml", "etc/policy.d/90-late.toml",
    ]  # fmt: skip
    assert files.rules[1].where == f"rule 1 of {lib}/10-early.toml, line 1"
    assert files.described() == "4 policy rules in 4 files"
    assert dataclasses.replace(files, redact=("a",)).described() == "4 policy rules in 4 files, 1 redacted pattern"
    (etc / "10-early.toml").write_text("")
    assert topics(read(None, etc, lib)[0]) == ["lights.ours", "late"], "an empty file takes the place of one that says something"


def test_every_error_of_every_file(system: Path) -> None:
    etc = system / "etc" / "policy.d"
    (etc / "1.toml").write_text('[[rule]]\nallow = "fly"\n')
    (etc / "2.toml").write_text("[[rule]\n")
    (etc / "3.toml").write_bytes(b"\xff")
    (etc / "4.toml").symlink_to("1.toml")
    (etc / "5.toml").write_text(rule("good"))
    (etc / "5.toml").chmod(0o666)
    (etc / "6.toml").mkdir()
    _, errors = read(system / "missing.toml", etc)
    assert len(errors) == 7
    for line, expected in zip(
        errors,
        [
            "missing.toml: No such file",
            "1.toml, line 1, allow: no such action",
            "2.toml: not TOML",
            "3.toml: not TOML",
            "4.toml is a symbolic link",
            "5.toml has mode 0666",
            "6.toml is not a regular file",
        ],
        strict=True,
    ):
        assert expected in line


def test_limits_of_files(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc = system / "etc" / "policy.d"
    for number in range(3):
        (etc / f"{number}.toml").write_text(rule(f"t{number}"))
    for most, wrong in ((4, 0), (3, 0), (2, 1)):
        monkeypatch.setattr(policy_files, "POLICY_FILES_MAX", most)
        assert len(read(None, etc)[1]) == wrong
    assert "has 3 policy files, more than 2" in read(None, etc)[1][0]
    monkeypatch.setattr(policy_files, "POLICY_FILES_MAX", 3)
    size = len(rule("t0"))
    for most, wrong in ((size + 1, 0), (size, 0), (size - 1, 3)):
        monkeypatch.setattr(policy_files, "CONFIG_FILE_MAX_BYTES", most)
        assert len(read(None, etc)[1]) == wrong


def test_a_directory_that_others_may_write_to(system: Path) -> None:
    etc = system / "etc" / "policy.d"
    (etc / "1.toml").write_text(rule("a"))
    etc.chmod(0o1777)
    files, errors = read(None, etc)
    assert files.rules == ()
    assert len(errors) == 1
    assert f"{etc} has mode 1777" in errors[0]


# --- what holds without rules -------------------------------------------------------------------------------------------------------------


def rights(kind: str, subject: Subject, *, open_to_others: bool = False) -> Rights:
    rules, default = built_in(kind, BUS_UID, open_to_others=open_to_others)
    return Policy(rules, default=default).rights(subject)


def allowed(given: Rights) -> list[bool]:
    verdicts = [given.connect(), given.own("a"), given.send("a"), given.call("a", "m"), given.publish("a"), given.subscribe(">")]
    return [verdict.allowed for verdict in (*verdicts, given.monitor(">"), given.admin())]


ALL, NOTHING, CONNECT, ADMIN = [True] * 8, [False] * 8, [True, *[False] * 7], [True, *[False] * 6, True]


@pytest.mark.parametrize(
    ("kind", "opened", "subject", "expected"),
    [
        ("user", False, Subject(uid=BUS_UID), ALL),
        ("user", False, Subject(uid=0), ALL),
        ("user", False, Subject(identity="default"), ALL),
        ("user", False, Subject(uid=BUS_UID - 1), NOTHING),
        ("user", False, Subject(uid=BUS_UID + 1), NOTHING),
        ("user", False, Subject(uid=65534, groups=frozenset({0, BUS_UID})), NOTHING),
        ("user", False, Subject(identity="panel"), NOTHING),
        ("user", True, Subject(uid=BUS_UID + 1), ALL),
        ("system", False, Subject(uid=BUS_UID), ADMIN),
        ("system", False, Subject(uid=0), ADMIN),
        ("system", False, Subject(identity="default"), ADMIN),
        ("system", False, Subject(uid=BUS_UID + 1), CONNECT),
        ("system", False, Subject(identity="panel"), CONNECT),
        ("system", True, Subject(uid=BUS_UID + 1), CONNECT),
    ],
)
def test_defaults(kind: str, opened: bool, subject: Subject, expected: list[bool]) -> None:
    given = rights(kind, subject, open_to_others=opened)
    assert allowed(given) == expected
    assert given.unrestricted == (expected == ALL)


def test_a_policy_file_closes_what_socket_mode_opened() -> None:
    stranger = Subject(uid=4242)
    assert PolicyFiles().in_force("user", BUS_UID, open_to_others=True).rights(stranger).unrestricted
    files = PolicyFiles(files=("/etc/empty.toml",))
    assert not files.in_force("user", BUS_UID, open_to_others=True).rights(stranger).connect().allowed


def test_the_last_policy_file_that_goes_opens_nothing(system: Path) -> None:
    file = system / "lib" / "a.toml"
    file.write_text('[[rule]]\ndeny = "connect"\n')
    stranger = Subject(uid=STRANGER)
    for there in (True, False):
        config = configure(policy_dir=[f"{system}/lib"], socket_mode="0666")
        assert bool(config.policy.files) == there
        opened = config.policy.in_force(config.kind, BUS_UID, open_to_others=config.open_to_others)
        assert not opened.rights(stranger).connect().allowed
        file.unlink(missing_ok=True)


def test_a_directory_of_rules_that_leads_nowhere(system: Path) -> None:
    os.rmdir(system / "etc" / "policy.d")
    assert configure(kind="system").oddities() == [], "nobody named it"
    os.symlink(f"{system}/libb", system / "etc" / "policy.d")
    with pytest.raises(ConfigError, match=r"policy\.d: No such file"):
        configure(kind="system")


def test_what_cannot_be_seen_is_not_taken_for_missing(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [f"{system}/home/ipcbus/{name}" for name in (places.CONFIG_NAME, places.POLICY_NAME)]
    real = os.lstat
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def lstat(path: str) -> os.stat_result:
        if path in hidden:
            raise refused
        return real(path)

    def read(path: str, **_: Any) -> bytes:
        raise refused

    assert configure().path is None
    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(config_module, "read_trusted", read)
    monkeypatch.setattr(policy_files, "read_trusted", read)
    with pytest.raises(ConfigError) as caught:
        configure()
    assert list(caught.value.errors) == [f"{path}: Permission denied" for path in hidden]


def test_what_a_denied_one_reads() -> None:
    assert rights("user", Subject(uid=7)).connect().why == (
        "the default of a user bus (all for uid 1000 and root, nothing for others) denies connect"
    )
    assert rights("system", Subject(uid=7)).publish("a.b").why == (
        "the default of a system bus (what no rule allows is denied) denies publish to 'a.b'"
    )


# --- the configuration --------------------------------------------------------------------------------------------------------------------


def configure(**flags: Any) -> Config:
    return load(flags=flags, environ={})


def test_a_user_bus(system: Path) -> None:
    config = configure()
    assert (config.kind, config.policy_file, config.policy_dir, config.policy) == ("user", None, (), PolicyFiles())
    (system / "home" / "ipcbus" / "policy.toml").write_text(rule("mine"))
    (system / "etc" / "policy.toml").write_text(rule("system"))
    config = configure()
    assert config.policy_file == f"{system}/home/ipcbus/policy.toml"
    assert topics(config.policy) == ["mine"]
    assert load(flags={}, environ={}, path=os.devnull).policy_file is None, "who names another configuration names its policy too"
    assert load(flags={"kind": "system"}, environ={}, path=os.devnull).policy_file == f"{system}/etc/policy.toml"
    other = system / "other.toml"
    other.write_text(rule("other"))
    assert topics(configure(policy_file=str(other)).policy) == ["other"]
    assert topics(configure(policy_dir=[f"{system}/etc"]).policy) == ["mine", "system"]
    with pytest.raises(ConfigError, match="No such file"):
        configure(policy_file=f"{system}/missing.toml")


def test_a_directory_that_somebody_named_and_that_is_not_there_is_told(system: Path) -> None:
    assert configure(kind="system").not_there() == []
    (system / "lib").rmdir()
    assert configure(kind="system").oddities() == [], "the directories that every system bus has by default need not exist"
    config = configure(kind="system", policy_dir=[f"{system}/etc", f"{system}/ect"])
    told = [f"policy_dir (flag --policy-dir): there is no directory {system}/ect, and so no rules in it"]
    assert config.not_there() == config.oddities() == told


def test_a_system_bus(system: Path) -> None:
    (system / "home" / "ipcbus" / "policy.toml").write_text(rule("mine"))
    (system / "home" / "ipcbus" / "ipcbusd.toml").write_text('log_level = "debug"\n')
    (system / "etc" / "ipcbusd.toml").write_text("drain_s = 3\n")
    (system / "etc" / "policy.toml").write_text(rule("main"))
    (system / "etc" / "policy.d" / "a.toml").write_text(rule("etc"))
    (system / "lib" / "b.toml").write_text(rule("lib"))
    config = configure(kind="system")
    assert topics(config.policy) == ["main", "etc", "lib"]
    assert config.listen == (UnixAddress(f"{system}/run/system.sock"),)
    assert (config.bus, config.socket_mode, config.directory_mode) == ("system", 0o666, 0o755)
    assert (config.drain_s, config.log_level) == (3, "info"), "the system's own file, not that of whoever starts it"
    assert config.limits.lane_policy == "drop_oldest"
    config = configure(kind="system", policy_dir=[f"{system}/lib"], socket_mode="0600", bus="house")
    assert topics(config.policy) == ["main", "lib"]
    assert (config.socket_mode, config.listen) == (0o600, (UnixAddress(f"{system}/run/house.sock"),))


def test_the_kind_may_come_from_the_file(system: Path) -> None:
    file = system / "c.toml"
    file.write_text(f'kind = "system"\npolicy_dir = ["{system}/lib"]\n[limits]\nlane_policy = "block"\n')
    (system / "lib" / "b.toml").write_text(rule("lib"))
    config = load(flags={}, environ={}, path=str(file))
    assert (config.kind, config.socket_mode, config.limits.lane_policy) == ("system", 0o666, "block")
    assert topics(config.policy) == ["lib"]
    printed = system / "printed.toml"
    printed.write_text(as_toml(config))
    assert load(flags={}, environ={}, path=str(printed)).values == config.values
    assert load(flags={"kind": "user"}, environ={}, path=str(file)).kind == "user"
    assert load(flags={}, environ={"IPCBUS_KIND": "system", "IPCBUS_POLICY_DIR": f"{system}/lib:{system}/etc"}).policy_dir == (
        f"{system}/lib", f"{system}/etc",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("allow", "who", "told"),
    [
        ("connect", f"uid = {STRANGER}", True),
        ("*", 'user = ["root", "alice"]', True),
        ("connect", "gid = 0", True),
        ("connect", 'group = "staff"', True),
        ("publish", f"uid = {STRANGER}", False),
        ("connect", "uid = 0", False),
        ("connect", 'user = "root"', False),
        ("connect", 'user = "nobody-knows-him"', False),
        ("connect", 'unit = "a.service"', False),
        ("connect", 'identity = "panel"', False),
    ],
)
def test_a_socket_that_keeps_out_whom_a_rule_lets_in(
    system: Path, monkeypatch: pytest.MonkeyPatch, allow: str, who: str, told: bool
) -> None:
    monkeypatch.setattr(user_database, "uid_of", {"alice": STRANGER, "root": 0}.get)
    monkeypatch.setattr(user_database, "gid_of", {"staff": 50}.get)
    file = system / "home" / "ipcbus" / "policy.toml"
    file.write_text(f'[[rule]]\nallow = "{allow}"\n{who}\n')

    def said(**flags: Any) -> list[str]:
        return [line for line in configure(**flags).oddities() if "socket_mode" in line]

    lines = said()
    assert len(lines) == told
    for line in lines:
        assert line.startswith(f"rule 1 of {file}, line 1 lets others connect, but socket_mode 0600 keeps them from the socket")
    assert not said(socket_mode="0660")
    assert not said(listen=["tcp:127.0.0.1:0"])
    file.write_text(f'[[rule]]\ndeny = "{allow}"\n{who}\n')
    assert not said()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"kind": "session"}, "--kind: 'session' is not one of user, system"),
        ({"policy_file": "policy.toml"}, "--policy-file: 'policy.toml' is not an absolute path"),
        ({"policy_dir": ["/a", "b"]}, "--policy-dir: ['/a', 'b'] is not a list of absolute paths"),
    ],
)
def test_messages(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(**flags)
    (line,) = caught.value.errors
    assert line.startswith(expected)


def test_the_configuration_file_is_trusted_no_more_than_the_policy(system: Path) -> None:
    file = system / "c.toml"
    file.write_text("drain_s = 1\n")
    file.chmod(0o620)
    with pytest.raises(ConfigError, match=f"{file} has mode 0620, so others could change"):
        load(flags={}, environ={}, path=str(file))
    file.chmod(0o644)
    (system / "link.toml").symlink_to(file)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        load(flags={}, environ={"IPCBUS_CONFIG": str(system / "link.toml")})
    (system / "home" / "ipcbus" / "ipcbusd.toml").symlink_to(system / "nowhere")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        load(flags={}, environ={})
    assert load(flags={}, environ={}, path=os.devnull).path is None


# --- namespaces ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("         0          0 4294967295\n", True),
        ("0 0 4294967294\n", False),
        ("1 1 4294967294\n", False),
        ("0 1000 1\n", False),
        ("0 1000 1\n1 100000 65536\n", False),
        ("1 1 4294967294\n0 1000 1\n", True),
        ("0 0 1000\n1001 1001 4294966294\n", False),
        ("", False),
    ],
)
def test_which_uids_a_namespace_has(text: str, whole: bool) -> None:
    assert covers_all(text) is whole


def test_this_namespace_can_be_read() -> None:
    assert maps_some_only() in (None, "uids", "gids", "uids and gids")


@pytest.mark.parametrize(
    ("who", "means_them"),
    [
        ("uid = 1", True),
        ("gid = 1", True),
        ('user = "root"', True),
        ('group = "root"', True),
        ('unit = "a.service"', False),
        ('user_unit = "a.service"', False),
        ('identity = "panel"', False),
        ('topics = "home.%u"', True),
        ('topics = "home.%G"', True),
        ('topics = "home.%n"', False),
        ("", False),
    ],
)
def test_rules_about_users_need_the_machines_uids(system: Path, who: str, means_them: bool) -> None:
    (system / "p.toml").write_text(f'[[rule]]\nallow = ["publish"]\n{who}\n')
    files, errors = read(system / "p.toml")
    assert errors == []
    assert not_of_this_machine(files, BUS_UID, None, units_hidden=False) == []
    lines = not_of_this_machine(files, BUS_UID, "uids", units_hidden=False)
    assert len(lines) == means_them
    for line in lines:
        assert line.startswith(f"rule 1 of {system}/p.toml, line 1 is about users or groups")
        assert "unit or identity" in line


@pytest.mark.parametrize(
    ("who", "means_them"),
    [
        ('unit = "a.service"', True),
        ('user_unit = "a.service"', True),
        ('topics = "home.%n"', True),
        ('topics = "home.%%n"', False),
        ("uid = 1", False),
        ('topics = "home.%u"', False),
    ],
)
def test_rules_about_units_need_to_see_them(system: Path, who: str, means_them: bool) -> None:
    (system / "p.toml").write_text(f'[[rule]]\ndeny = ["publish"]\n{who}\n')
    files, _ = read(system / "p.toml")
    lines = not_of_this_machine(files, BUS_UID, None, units_hidden=True)
    assert len(lines) == means_them
    for line in lines:
        assert line.startswith(f"rule 1 of {system}/p.toml, line 1 is about units, but /proc hides")


def test_a_bus_that_cannot_tell_its_user_from_strangers() -> None:
    (line,) = not_of_this_machine(PolicyFiles(), 65534, "uids", units_hidden=False)
    assert line.startswith("the bus runs as uid 65534, which in this user namespace is also everybody")
    for uid, ids in ((65533, "uids"), (65535, "uids"), (65534, None)):
        assert not_of_this_machine(PolicyFiles(), uid, ids, units_hidden=False) == []


def test_whether_proc_hides_others(tmp_path: Path) -> None:
    assert not hides_others(str(tmp_path)), "no /proc at all"
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert hides_others(str(tmp_path))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "cgroup").write_text("0::/\n")
    assert not hides_others(str(tmp_path))


# --- names of users -----------------------------------------------------------------------------------------------------------------------


def test_the_machines_users() -> None:
    me = pwd.getpwuid(0)
    assert user_database.uid_of(me.pw_name) == me.pw_uid
    assert user_database.user_of(me.pw_uid) == me.pw_name
    assert user_database.gid_of(grp.getgrgid(me.pw_gid).gr_name) == me.pw_gid
    assert user_database.groups_of(me.pw_uid) == (me.pw_gid, frozenset(os.getgrouplist(me.pw_name, me.pw_gid)))
    for name in ("no-such-user", "a\0b", "a\ud800", ""):
        assert user_database.uid_of(name) is None
        assert user_database.gid_of(name) is None
    assert user_database.user_of(2**32 - 2) == user_database.group_of(2**32 - 2) == ""
    assert user_database.groups_of(2**32 - 2) == (None, frozenset())


def test_names_are_asked_for_once_and_forgotten_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(uid: int) -> str:
        asked.append(uid)
        return "" if uid == 3 else f"user{uid}"

    monkeypatch.setattr(user_database, "user_of", ask)
    monkeypatch.setattr(user_database, "NAMES_MAX", 2)
    cache = user_database.NameCache()
    assert [cache.user(uid) for uid in (3, 3, 1, 3, 1)] == ["", "", "user1", "", "user1"]
    assert asked == [3, 1], "also that there is none"
    assert [cache.user(uid) for uid in (2, 1, 2, 3)] == ["user2", "user1", "user2", ""]
    assert asked == [3, 1, 2, 3]


@pytest.mark.parametrize(("topic", "asks"), [("home.%u", True), ("home.%g", True), ("home.%U", False), ("home", False)])
def test_users_are_looked_up_only_where_a_rule_needs_their_names(
    system: Path, monkeypatch: pytest.MonkeyPatch, topic: str, asks: bool
) -> None:
    monkeypatch.setattr(user_database, "user_of", lambda uid: "alice")
    monkeypatch.setattr(user_database, "group_of", lambda gid: "staff")
    (system / "home" / "ipcbus" / "policy.toml").write_text(rule(topic))
    in_force = PolicyInForce(configure())
    peer: Any = SimpleNamespace(credentials=Credentials(1, 1000, 100, (5, 7), "a.service", "b.service"), identity="")
    names = {"user": "alice", "group": "staff"} if asks else {}
    assert in_force.subject_of(peer) == Subject(
        uid=1000, gid=100, groups=frozenset({5, 7}), unit="a.service", user_unit="b.service", **names
    )
    assert in_force.subject_of(SimpleNamespace(credentials=None, identity="panel")) == Subject(identity="panel")  # type: ignore[arg-type]


def test_a_reload_puts_another_policy_in_its_place(system: Path) -> None:
    file = system / "home" / "ipcbus" / "policy.toml"
    stranger = Credentials(1, STRANGER, STRANGER)
    in_force = PolicyInForce(configure())
    assert not in_force.may_connect(stranger).allowed
    file.write_text(f'[[rule]]\nallow = "connect"\nuid = {STRANGER}\n')
    in_force.use(configure())
    assert in_force.may_connect(stranger).allowed
    assert in_force.may_connect(stranger).rule.where == f"rule 1 of {file}, line 1"
    assert not in_force.may_connect(Credentials(1, STRANGER + 1, STRANGER)).allowed
