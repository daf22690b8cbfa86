"""The policy's files: which there are, in which order, what is in them, and what holds where they say nothing.

Owns the order of files and the rules that are built in. Must not know how rules are judged (``ipcbus.policy`` does). The main file comes
first, then the files of the drop-in directories together in the order of their names, each name once: that of the first directory which
has it, so that an administrator's file can take the place of one that a package ships.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..policy import EVERYBODY, Action, ParsedFile, Policy, Redaction, Rule, Who, parse
from ..policy.parsing import joined
from ..protocol.addresses import BUS_SECRET
from . import user_database
from .limits import CONFIG_FILE_MAX_BYTES, POLICY_FILES_MAX
from .namespaces import UNKNOWN_UID
from .places import PlaceError
from .trusted_files import list_trusted, read_trusted


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What all files of a policy say, in order."""

    files: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    redact: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  #: what is legal and yet not what somebody meant
    named: bool = False  #: somebody said where rules are, be there any or none

    def in_force(self, kind: str, uid: int, *, open_to_others: bool) -> Policy:
        """The policy of a bus of this *kind* that runs as *uid*; *open_to_others* says that its socket_mode lets others connect."""
        own, default = built_in(kind, uid, open_to_others=open_to_others and not self.files and not self.named)
        return Policy((*self.rules, *own), default=default)

    def described(self) -> str:
        """What there is, for a person."""
        if not self.files:
            return "no policy file"
        redacted = f", {_counted(len(self.redact), 'redacted pattern')}" if self.redact else ""
        return f"{_counted(len(self.rules), 'policy rule')} in {_counted(len(self.files), 'file')}{redacted}"

    def kept_out(self, uid: int) -> str | None:
        """The first rule that lets others than root and *uid* connect; None where there is none that says so of a user or group."""
        ours = {0, uid, None}
        return next(
            (
                rule.where
                for rule in self.rules
                if rule.allow
                and Action.CONNECT in rule.actions
                and (
                    not ours.issuperset(rule.who.uids or ())
                    or not ours.issuperset(named.number for named in rule.who.users or ())
                    or rule.who.gids is not None
                    or rule.who.groups is not None
                )
            ),
            None,
        )

    @property
    def redaction(self) -> Redaction:
        """The topics whose payloads no monitor sees."""
        return Redaction(self.redact)

    @property
    def needs_names(self) -> bool:
        """Whether a rule speaks of the name of a peer's user or group."""
        return any("%u" in text or "%g" in text for rule in self.rules for text in _patterns(rule))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _patterns(rule: Rule) -> tuple[str, ...]:
    """What may have placeholders."""
    return tuple(text.replace("%%", "") for text in (*(rule.names or ()), *(rule.topics or ())))


def built_in(kind: str, uid: int, *, open_to_others: bool) -> tuple[tuple[Rule, ...], Rule]:
    """The rules that come after all files, and what holds where none of them decides."""
    # Who proved the bus's own secret can read its file, which only the bus's user and root can.
    ours = (Who(uids=frozenset({0, uid})), Who(identities=(BUS_SECRET,)))
    if kind == "system":
        where = "the default of a system bus (what no rule allows is denied)"
        admin = frozenset({Action.ADMIN})
        rules = (
            Rule(True, frozenset({Action.CONNECT}), EVERYBODY, where=where),
            # `names` lists for everybody who owns what; this tells of its changes, for which clients wait.
            Rule(True, frozenset({Action.SUBSCRIBE}), EVERYBODY, topics=("$bus.names.>",), where=where),
            *(Rule(True, admin, who, where=where) for who in ours),
        )
        return rules, Rule(False, where=where)
    if open_to_others:
        where = "the default of a user bus whose socket_mode lets others connect"
    else:
        where = f"the default of a user bus (all for uid {uid} and root, nothing for others)"
    return tuple(Rule(True, who=who, where=where) for who in ours), Rule(open_to_others, where=where)


def read_policy(main: str | None, directories: Sequence[str], uids: Collection[int] | None, errors: list[str]) -> PolicyFiles:
    """Read the *main* file (None: there is none) and the drop-ins of *directories*; what is wrong with any of them goes to *errors*."""
    paths = ([main] if main else []) + _drop_ins(directories, uids, errors)
    policy = joined(_read(path, uids) for path in paths)
    errors.extend(policy.errors)
    named = bool(main or directories)
    return PolicyFiles(tuple(paths), policy.rules, tuple(dict.fromkeys(policy.redact)), policy.warnings, named)


def _read(path: str, uids: Collection[int] | None) -> ParsedFile:
    """What one file says, or what is wrong with it."""
    try:
        text = read_trusted(path, max_bytes=CONFIG_FILE_MAX_BYTES, uids=uids).decode()
    except PlaceError as error:
        return ParsedFile(errors=(str(error),))
    except OSError as error:
        return ParsedFile(errors=(f"{path}: {error.strerror}",))
    except UnicodeDecodeError as error:
        return ParsedFile(errors=(f"{path}: not TOML: {error}",))
    return parse(text, path, users=user_database.uid_of, groups=user_database.gid_of)


def _drop_ins(directories: Sequence[str], uids: Collection[int] | None, errors: list[str]) -> list[str]:
    """The files of the drop-in directories, in order."""
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = list_trusted(directory, suffix=".toml", uids=uids)
        except PlaceError as error:
            errors.append(str(error))
            continue
        except OSError as error:
            errors.append(f"{error.filename or directory}: {error.strerror}")
            continue
        if len(names) > POLICY_FILES_MAX:
            errors.append(f"{directory} has {len(names)} policy files, more than {POLICY_FILES_MAX}: put their rules into fewer")
            continue
        for name in names:
            found.setdefault(name, os.path.join(directory, name))
    return [found[name] for name in sorted(found, key=os.fsencode)]


def not_of_this_machine(files: PolicyFiles, uid: int, ids: str | None, *, units_hidden: bool) -> list[str]:
    """Why rules cannot be used here: about users and groups where the kernel knows *ids* only in part (``namespaces.maps_some_only``),
    about units where they are hidden (``namespaces.hides_others``). The rules that are built in are about *uid*, the bus's own.
    """
    lines: list[str] = []
    if ids is not None:
        if uid == UNKNOWN_UID:
            lines.append(
                f"the bus runs as uid {uid}, which in this user namespace is also everybody whom it does not know: it could not tell its "
                "own user from others. Run it as a uid that the namespace maps, or outside"
            )
        lines += [
            f"{rule.where} is about users or groups, but this process runs in a user namespace that knows only some {ids} "
            "(PrivateUsers=yes, a container without root): everybody else would be 65534 here. Run the bus outside of it, or use rules "
            "about unit or identity"
            for rule in files.rules
            if _is_about(rule, (rule.who.uids, rule.who.gids, rule.who.users, rule.who.groups), "uUgG")
        ]
    if units_hidden:
        lines += [
            f"{rule.where} is about units, but /proc hides from this process what others are in (hidepid=, ProtectProc=): nobody would be "
            "in one. Run the bus without that, or use rules about users, groups or identity"
            for rule in files.rules
            if _is_about(rule, (rule.who.units, rule.who.user_units), "n")
        ]
    return lines


def _is_about(rule: Rule, given: Sequence[object], placeholders: str) -> bool:
    """Whether *rule* asks for one of these values of who it concerns, or has one of *placeholders*."""
    return any(value is not None for value in given) or any(f"%{mark}" in text for text in _patterns(rule) for mark in placeholders)
