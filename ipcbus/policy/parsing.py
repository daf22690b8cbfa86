"""Rules from the text of a file: every error in it is told, each with its file, rule, line, key and the way out (POLICY.md)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..protocol.errors import ProtocolError
from ..protocol.limits import METHOD_MAX_BYTES
from ..protocol.topics import check_method, check_name, split_pattern
from .actions import EVERY_ACTION, OF_NAMES, OF_TOPICS, Action
from .limits import MAX_FILE_BYTES, MAX_PATTERNS, MAX_RULES, MAX_TEXT_BYTES, MAX_VALUES
from .placeholders import MEANINGS, example, is_personal, unknown_placeholder
from .rights import NO_NAME
from .rules import Named, Rule, Who

Resolve = Callable[[str], int | None]  #: the number of a user or group, None where the system knows no such name

_KEYS = ("allow", "deny", "uid", "gid", "user", "group", "unit", "user_unit", "identity", "names", "methods", "topics", "comment")
_MAX_NUMBER = 2**32 - 2  # 4294967295 is "no id" to the kernel
_HEADER = re.compile(r"\s*\[\[\s*rule\s*\]\]")
_NAME_PATTERN = re.compile(r"(?:[A-Za-z0-9_-]+|[*>])(?:\.(?:[A-Za-z0-9_-]+|[*>]))*")


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """What one file says. With *errors* none of it may be used; *warnings* are for people."""

    rules: tuple[Rule, ...] = ()
    redact: tuple[str, ...] = ()  #: patterns of topics whose payloads no monitor sees
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(text: str, where: str, *, users: Resolve, groups: Resolve) -> ParsedFile:
    """The rules of *text*, a file that people know as *where*. *users* and *groups* give the numbers of names. Raises nothing."""
    where = _shown(where)  # verdicts carry it to clients and logs, and a file's name may be any bytes
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_FILE_BYTES:
        return ParsedFile(errors=(f"{where}: {size} bytes: at most {MAX_FILE_BYTES} are allowed; split it into several files",))
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of more digits than Python reads
        return ParsedFile(errors=(f"{where}: not TOML: {_shown(str(error))}",))
    except RecursionError:
        return ParsedFile(errors=(f"{where}: not a policy: lists or tables are nested too deeply",))
    return _File(text, where, users, groups).read(document)


def joined(files: Iterable[ParsedFile]) -> ParsedFile:
    """All files of a policy as one, in order, with an error where together they hold too much."""
    found = list(files)
    rules = tuple(rule for file in found for rule in file.rules)
    errors = [error for file in found for error in file.errors]
    if len(rules) > MAX_RULES:
        errors.append(f"{len(rules)} rules in all files: at most {MAX_RULES} are allowed; one rule may list many names or topics")
    patterns = sum(map(_weight, rules))
    if patterns > MAX_PATTERNS:
        errors.append(f"{patterns} names (for each method) and topics in all rules: at most {MAX_PATTERNS} are allowed; use wildcards")
    return ParsedFile(
        rules,
        tuple(pattern for file in found for pattern in file.redact),
        tuple(errors),
        tuple(warning for file in found for warning in file.warnings),
    )


def _weight(rule: Rule) -> int:
    """The patterns of a rule, as its selection holds them."""
    return max(len(rule.names or ()), 1) * max(len(rule.methods or ()), 1) + len(rule.topics or ())


@dataclass
class _File:
    """One file while it is read: what was found wrong so far, and where the rules begin."""

    text: str
    where: str
    users: Resolve
    groups: Resolve
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def read(self, document: Mapping[str, Any]) -> ParsedFile:
        for key in document:
            if key not in ("rule", "redact"):
                self.errors.append(f"{self.where}: unknown key {_quoted(key)}: a policy has [[rule]] tables and [redact]")
        tables = document.get("rule", [])
        rules: list[Rule] = []
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.errors.append(f"{self.where}: 'rule' is not a list of tables: write [[rule]] above each rule")
        else:
            lines = self._lines(len(tables))
            for number, (table, line) in enumerate(zip(tables, lines, strict=True), 1):
                where = f"rule {number} of {self.where}" + (f", line {line}" if line else "")
                rule = _Table(self, table, where).rule()
                if rule is not None:
                    rules.append(rule)
        redact = self._redact(document.get("redact", {}))
        return ParsedFile(tuple(rules), redact, tuple(self.errors), tuple(self.warnings))

    def _lines(self, count: int) -> list[int]:
        """The line of each [[rule]]; zeros where the text has others that look like it, or rules that are written otherwise."""
        lines = [number for number, line in enumerate(self.text.split("\n"), 1) if _HEADER.match(line)]
        return lines if len(lines) == count else [0] * count

    def _redact(self, table: object) -> tuple[str, ...]:
        where = f"[redact] of {self.where}"
        if not isinstance(table, dict):
            self.errors.append(f'{where}: not a table: write [redact] and below it topics = ["secret.>"]')
            return ()
        for key in table:
            if key != "topics":
                self.errors.append(f"{where}: unknown key {_quoted(key)}: it has only 'topics'")
        found = _Table(self, table, where)
        patterns = found.patterns("topics") or ()
        for pattern in patterns:
            if is_personal(pattern):
                self.errors.append(f"{where}, topics: {_quoted(pattern)} has a placeholder, but redaction is the same for everybody: use *")
        return tuple(pattern.replace("%%", "%") for pattern in patterns)


class _Table:
    """One [[rule]] while it is read. Each method returns None where the key is absent or wrong, after telling what is wrong."""

    def __init__(self, file: _File, table: Mapping[str, Any], where: str) -> None:
        self._file = file
        self._table = table
        self._where = where

    def rule(self) -> Rule | None:
        before = len(self._file.errors)
        for key in self._table:
            if key not in _KEYS:
                self._wrong(key, f"unknown key; a rule has {', '.join(_KEYS)}")
        actions = self._actions()
        who = self._who()
        names, topics, methods = self.patterns("names"), self.patterns("topics"), self._methods()
        comment = self._table.get("comment", "")
        if not isinstance(comment, str) or len(comment.encode(errors="replace")) > MAX_TEXT_BYTES:
            self._wrong("comment", f"not a text of at most {MAX_TEXT_BYTES} bytes; '#' begins a comment of any length")
        if actions is None or len(self._file.errors) > before:
            return None
        if actions == EVERY_ACTION:
            actions = self._meant()
        self._check_used(actions)
        if len(self._file.errors) > before:
            return None
        return Rule("allow" in self._table, actions, who, names, methods, topics, self._where, comment)

    def _actions(self) -> frozenset[Action] | None:
        if ("allow" in self._table) == ("deny" in self._table):
            self._file.errors.append(f"{self._where}: a rule has either 'allow' or 'deny', a list of {', '.join(Action)} or \"*\"")
            return None
        key = "allow" if "allow" in self._table else "deny"
        texts = self._texts(key)
        if texts is None:
            return None
        unknown = [text for text in texts if text != "*" and text not in list(Action)]
        for text in unknown:
            self._wrong(key, f'no such action: {_quoted(text)}; there are {", ".join(Action)} and "*" for all')
        if unknown:
            return None
        return EVERY_ACTION if "*" in texts else frozenset(map(Action, texts))

    def _meant(self) -> frozenset[Action]:
        """What "*" means: every action, or all those that the rule's targets are about."""
        meant: frozenset[Action] = frozenset()
        if "methods" in self._table:
            meant |= {Action.CALL}
        elif "names" in self._table:
            meant |= OF_NAMES
        if "topics" in self._table:
            meant |= OF_TOPICS
        return meant or EVERY_ACTION

    def _check_used(self, actions: frozenset[Action]) -> None:
        for key, users in (("names", OF_NAMES), ("methods", frozenset({Action.CALL})), ("topics", OF_TOPICS)):
            if key in self._table and not users & actions:
                words = ", ".join(action for action in Action if action in users)
                self._wrong(key, f"no action of this rule has them: they limit {words}; leave '{key}' out or add the action")

    def _who(self) -> Who:
        return Who(
            uids=self._numbers("uid"),
            gids=self._numbers("gid"),
            users=self._named("user", self._file.users),
            groups=self._named("group", self._file.groups),
            units=self._units("unit"),
            user_units=self._units("user_unit"),
            identities=self._texts("identity"),
        )

    def _values(self, key: str) -> list[Any] | None:
        """The values of a list, or of the one that may stand for it."""
        if key not in self._table:
            return None
        value = self._table[key]
        values = value if isinstance(value, list) else [value]
        if not values:
            self._wrong(key, "an empty list fits nothing; leave the key out for all, or name what is meant")
            return None
        if len(values) > MAX_VALUES:
            self._wrong(key, f"{len(values)} values: at most {MAX_VALUES} are allowed; use patterns, or several rules")
            return None
        return values

    def _numbers(self, key: str) -> frozenset[int] | None:
        values = self._values(key)
        if values is None:
            return None
        for value in values:
            if type(value) is not int or not 0 <= value <= _MAX_NUMBER:  # a bool is an int
                name = "user" if key == "uid" else "group"
                self._wrong(key, f"{_quoted(value)} is not a number of 0 to {_MAX_NUMBER}; for a name there is '{name}'")
                return None
        return frozenset(values)

    def _texts(self, key: str) -> tuple[str, ...] | None:
        values = self._values(key)
        if values is None:
            return None
        for value in values:
            if not isinstance(value, str) or not value or len(value.encode(errors="replace")) > MAX_TEXT_BYTES or not value.isprintable():
                self._wrong(key, f"{_quoted(value)} is not a text of 1 to {MAX_TEXT_BYTES} bytes of printable characters")
                return None
        return tuple(dict.fromkeys(values))

    def _named(self, key: str, resolve: Resolve) -> tuple[Named, ...] | None:
        texts = self._texts(key)
        if texts is None:
            return None
        found = tuple(Named(text, resolve(text)) for text in texts)
        for named in found:
            if named.number is None:
                self._file.warnings.append(
                    f"{self._where}, {key}: the system knows no {key} {_quoted(named.name)}: that name fits nobody until a reload"
                )
        return found

    def _units(self, key: str) -> tuple[str, ...] | None:
        texts = self._texts(key)
        for text in texts or ():
            if text.count("*") > 1:
                self._wrong(key, f"{_quoted(text)} has more than one '*'; write the unit exactly, or with one: \"lights@*.service\"")
            elif "." not in text:
                self._wrong(key, f"{_quoted(text)} has no suffix: write {_quoted(text + '.service')}, as systemctl shows it")
        return texts

    def _methods(self) -> tuple[str, ...] | None:
        texts = self._texts("methods")
        if texts is None or "*" in texts:
            return None
        for text in texts:
            try:
                check_method(text)
            except ProtocolError:
                self._wrong(
                    "methods",
                    f"{_quoted(text)} is no method: 1 to {METHOD_MAX_BYTES} of A-Z a-z 0-9 _ - . beginning with a letter or _; * is all",
                )
        return texts

    def patterns(self, key: str) -> tuple[str, ...] | None:
        """The patterns over names or topics, with their placeholders."""
        texts = self._texts(key)
        for text in texts or ():
            self._check_pattern(key, text)
        return texts

    def _check_pattern(self, key: str, text: str) -> None:
        unknown = unknown_placeholder(text)
        if unknown is not None:
            meanings = ", ".join(f"%{letter} {meaning}" for letter, meaning in MEANINGS.items())
            self._wrong(key, f"{_quoted(text)} has the unknown placeholder {_quoted(unknown)}; there are {meanings}")
            return
        filled = example(text)
        if any(len(token) > 1 and ("*" in token or ">" in token) for token in filled.split(".")):
            self._wrong(key, f"{_quoted(text)} has a wildcard inside a token: '*' stands for one whole token, '>' for all that follow")
            return
        try:
            split_pattern(filled)
            if key == "names" and filled != NO_NAME:
                if not _NAME_PATTERN.fullmatch(filled):
                    self._wrong(key, f"{_quoted(text)} is no pattern over names: tokens of A-Z a-z 0-9 _ - or *, > as the last")
                    return
                check_name(filled.replace("*", "x").replace(">", "x"))
        except ProtocolError as error:
            self._wrong(key, f"{_quoted(text)}: {_shown(error.text)}")

    def _wrong(self, key: str, text: str) -> None:
        self._file.errors.append(f"{self._where}, {_shown(key)}: {text}")


def _shown(text: str) -> str:
    """*text* on one line: what a file holds must not control the terminal that shows its errors."""
    return repr(text[:300])[1:-1]


def _quoted(value: object) -> str:
    """A value of a file, for people. Lists and tables may be endless, and of a huge number Python shows nothing."""
    if isinstance(value, str):
        return repr(value[:300])
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**64):
        return str(value)
    return {int: "a number that large", list: "a list", dict: "a table"}.get(type(value), "a date or time")
