"""``ipcbus policy``: which rule decides what, from the files themselves; no bus needs to run.

Owns who is meant by the ``--as-…`` options. How rules are judged is ``ipcbus.policy``'s matter, where they lie the daemon's.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from ..daemon import user_database
from ..daemon.config import Config, ConfigError, load
from ..daemon.kernel_identity import own_units
from ..policy import Action, Policy, Rights, Rule, Subject, Verdict
from ..protocol.addresses import SYSTEM_RUNTIME_DIR
from ..protocol.errors import ProtocolError
from ..protocol.topics import check_method, check_name, check_publication, split_pattern
from .failures import CommandError, Exit, usage
from .text import complain, safe
from .values import render

NO_NAME = ":"  #: in the place of a name: a peer that owns none


def policy(arguments: argparse.Namespace) -> int:
    """`ipcbus policy test` and `ipcbus policy list`."""
    if arguments.what == "list" and arguments.words:
        raise usage("policy list takes no more words; --json prints it for programs")
    config = _configuration(arguments)
    in_force = config.policy.in_force(config.kind, _bus_uid(config.kind), open_to_others=config.open_to_others)
    for line in (*config.policy.warnings, *config.not_there()):
        complain(line)
    if arguments.what == "list":
        return _list(config, in_force, arguments.json)
    return _test(in_force, arguments)


def _configuration(arguments: argparse.Namespace) -> Config:
    file, directories = arguments.policy_file, arguments.policy_dir
    flags = {
        "kind": arguments.kind,
        "policy_file": None if file is None else os.path.abspath(file),
        "policy_dir": None if directories is None else list(map(os.path.abspath, directories)),
    }
    try:
        return load(flags=flags, environ=os.environ, path=arguments.config, uids={os.geteuid(), _bus_uid("system")})
    except ConfigError as error:
        for line in error.errors[:-1]:
            complain(line)
        raise usage(error.errors[-1]) from error


def _bus_uid(kind: str) -> int:
    """Who the bus of this *kind* runs as: the caller, or whose the directory of the system's buses is (root where there is none)."""
    if kind == "user":
        return os.geteuid()
    try:
        return os.stat(SYSTEM_RUNTIME_DIR).st_uid
    except OSError:
        return 0


# --- list -----------------------------------------------------------------------------------------------------------------------------


def _list(config: Config, in_force: Policy, as_json: bool) -> int:
    rules = [*in_force.rules, in_force.default]
    if as_json:
        print(render({"rules": [_as_map(rule) for rule in rules], "redact": config.policy.redact, "files": config.policy.files}))
        return Exit.OK
    for rule in rules:
        print(safe(f"{rule.where}: {rule}" + (f"  # {rule.comment}" if rule.comment else "")))
    for pattern in config.policy.redact:
        print(safe(f"redacted for monitors: {pattern}"))
    return Exit.OK


def _as_map(rule: Rule) -> dict[str, object]:
    return {"where": rule.where, "allow": rule.allow, "rule": str(rule), "comment": rule.comment}


# --- test -----------------------------------------------------------------------------------------------------------------------------


def _test(in_force: Policy, arguments: argparse.Namespace) -> int:
    subject = _subject(arguments)
    verdict = judge(in_force.rights(subject), arguments.words)
    answer = "allowed" if verdict.allowed else "denied"
    if arguments.json:
        who = {**asdict(subject), "groups": sorted(subject.groups)}
        print(render({"allowed": verdict.allowed, "why": verdict.why, "rule": _as_map(verdict.rule), "subject": who}))
    else:
        print(safe(f"{answer} by {verdict.rule.where}: {verdict.rule}"))
        print(safe(f"{verdict.why}, for {_described(subject)}"))
    return Exit.OK if verdict.allowed else Exit.REFUSED


def judge(rights: Rights, words: list[str]) -> Verdict:
    """What *rights* say to *words*: an action and what it is done to. Who may not connect may do nothing. Raises CommandError."""
    if not words:
        raise usage(f"policy test needs an ACTION: {', '.join(Action)}")
    action, *targets = words
    try:
        verdict = _judged(rights, action, targets)
    except ProtocolError as error:
        raise usage(error.text) from error
    connect = rights.connect()
    return verdict if connect.allowed else connect


def _judged(rights: Rights, action: str, targets: list[str]) -> Verdict:
    match action, targets:
        case "connect", []:
            return rights.connect()
        case "admin", []:
            return rights.admin()
        case "own", [name]:
            check_name(name)
            return rights.own(name)
        case "send", [name]:
            _check_target(name)
            return rights.send(name)
        case "call", [name, method]:
            return _call(rights, name, method)
        case "call", [to] if "/" in to:
            name, _, method = to.partition("/")
            return _call(rights, name, method)
        case "publish", [topic]:
            check_publication(topic)
            return rights.publish(topic)
        case "subscribe", [pattern]:
            split_pattern(pattern)
            return rights.subscribe(pattern)
        case "monitor", []:
            return rights.monitor(">")
        case "monitor", [pattern]:
            split_pattern(pattern)
            return rights.monitor(pattern)
    raise _misused(action)


def _call(rights: Rights, name: str, method: str) -> Verdict:
    _check_target(name)
    check_method(method)
    return rights.call(name, method)


def _check_target(name: str) -> None:
    if name != NO_NAME:
        check_name(name)


_TARGETS = {
    "connect": "nothing else",
    "own": "a NAME",
    "send": f"a NAME ({NO_NAME} for a peer without one)",
    "call": f"a NAME ({NO_NAME} for a peer without one) and a METHOD",
    "publish": "a TOPIC",
    "subscribe": "a PATTERN",
    "monitor": "a PATTERN, or nothing for >",
    "admin": "nothing else",
}


def _misused(action: str) -> CommandError:
    if action not in _TARGETS:
        return usage(f"{action!r} is no action; there are {', '.join(_TARGETS)}")
    return usage(f"policy test {action} takes {_TARGETS[action]}")


def _subject(arguments: argparse.Namespace) -> Subject:
    """Who is meant: the caller, another user of the machine with the groups of that user but in no unit, or who proved a secret on TCP."""
    machine = (arguments.as_uid, arguments.as_user, arguments.as_gid, arguments.as_group, arguments.as_unit, arguments.as_user_unit)
    if arguments.as_identity is not None:
        if any(given is not None for given in machine):
            raise usage("--as-identity is about TCP, where no uid, group or unit is known: give it alone")
        return Subject(identity=arguments.as_identity)
    if arguments.as_uid is not None and arguments.as_user is not None:
        raise usage("give --as-uid or --as-user, not both")
    uid = arguments.as_uid
    if arguments.as_user is not None:
        uid = user_database.uid_of(arguments.as_user)
        if uid is None:
            raise usage(f"there is no user {arguments.as_user!r}; --as-uid takes any number")
    unit, user_unit = arguments.as_unit or "", arguments.as_user_unit or ""
    if uid is None and not unit and not user_unit:
        unit, user_unit = own_units()
    gid, groups = _groups(uid)
    uid = os.geteuid() if uid is None else uid
    gid = arguments.as_gid if arguments.as_gid is not None else gid
    return Subject(
        uid=uid,
        gid=gid,
        groups=groups | {_gid(group) for group in arguments.as_group or ()},
        unit=unit,
        user_unit=user_unit,
        user=user_database.user_of(uid),
        group="" if gid is None else user_database.group_of(gid),
    )


def _groups(uid: int | None) -> tuple[int | None, frozenset[int]]:
    """The primary group, None where nobody knows it, and the others: the caller's own, or those that *uid* logs in with."""
    return (os.getegid(), frozenset(os.getgroups())) if uid is None else user_database.groups_of(uid)


def _gid(group: str) -> int:
    gid = user_database.gid_of(group)
    if gid is not None:
        return gid
    if group.isascii() and group.isdecimal() and len(group) <= 10:
        return int(group)
    raise usage(f"there is no group {group!r}; a number is taken as it is")


def _described(subject: Subject) -> str:
    if subject.identity:
        return f"identity {subject.identity} on TCP"
    user = f" ({subject.user})" if subject.user else ""
    parts = [f"uid {subject.uid}{user}", f"gid {subject.gid}" if subject.gid is not None else "no known group"]
    if subject.groups - {subject.gid}:
        parts.append("groups " + " ".join(str(gid) for gid in sorted(subject.groups - {subject.gid})))
    parts += [f"{key} {unit}" for key, unit in (("unit", subject.unit), ("user_unit", subject.user_unit)) if unit]
    return ", ".join(parts)
