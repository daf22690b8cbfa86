"""What must hold for any policy file: parsed or refused with words, and whatever is accepted can be judged, shown and compared."""

from __future__ import annotations

import json
import random
import re

from ipcbus.policy import Action, Policy, Rule, Subject, parse
from ipcbus.policy.lint import lint
from ipcbus.policy.parsing import joined
from ipcbus.protocol.topics import matches

from . import grammar
from .engine import Target, mark

_USERS = {"alice": 1000, "root": 0}
_SUBJECTS = (
    Subject(1000, 100, frozenset({50}), "lights@a.service", "", user="alice", group="users"),
    Subject(0, 0, user="root", group="root"),
    Subject(1001, 100, user_unit="app.scope", user="$x", group="a b"),
    Subject(identity="panel"),
)
_VARIES = re.compile(r"'.*?'|\".*?\"|\d+")  #: what errors quote
_DEFAULT = Rule(False, where="the default")


def read_policy(data: bytes) -> None:
    """Lines for people that control no terminal, or rules that judge everybody, and a pattern no milder than its topics."""
    parsed = parse(data.decode(errors="surrogateescape"), "p.toml", users=_USERS.get, groups=_USERS.get)
    whole = joined([parsed])
    for line in (*whole.errors, *whole.warnings):
        assert line, line
        assert line.isprintable(), line
        assert len(line) < 1500, "the text grows with what came"
    for line in whole.errors:
        mark(_VARIES.sub("", line)[:40])
    if whole.errors:
        return
    for rule in whole.rules:
        assert str(rule).isprintable(), str(rule)
        mark(rule.allow, *sorted(rule.actions))
        for pattern in rule.topics or ():
            mark(*sorted({"*", ">", "%"} & set(pattern)))
    assert all(line.isprintable() for line in lint(whole.rules))
    policy = Policy(whole.rules, default=_DEFAULT)
    topics = {text for rule in whole.rules for text in rule.topics or ()}
    for who in _SUBJECTS:
        rights = policy.rights(who)
        seen = [rights.connect(), rights.admin(), rights.own("a"), rights.own("a.b"), rights.send(":"), rights.call("a", "on")]
        for pattern in (">", "a.*", *(text for text in sorted(topics)[:3] if "%" not in text)):
            verdict = rights.subscribe(pattern)
            seen += [verdict, rights.monitor(pattern)]
            for topic in ("a", "a.b", "room.x.y"):
                if verdict.allowed and matches(pattern, topic):
                    assert policy.rights(who).subscribe(topic).allowed, (who, pattern, topic)
        assert all(len(verdict.why) < 1500 for verdict in seen)
        assert all(verdict.allowed for verdict in seen) or not rights.unrestricted


_LISTS: dict[str, tuple[object, ...]] = {
    "uid": (0, 1000, -1, 2**32 - 1, True, "1000"), "gid": (50, 100, 1.5), "user": ("alice", "x", "a\tb"), "group": ("root", "x", ""),
    "unit": ("lights@*.service", "a.service", "a", "*.*.scope"), "user_unit": ("app.scope", "*"), "identity": ("panel", "ä"),
    "names": ("a", "a.b", "home.%u", "bus", "bus.x", ":", "a.>", ">.a", "ä", "*"), "methods": ("on", "*", "1x", "a.b"),
    "topics": ("a", "a.*", "room.>", "%u.%i", "%%", "%x", "a..b", "k*", "$bus.x", ">"), "comment": ("why", 1), "other": (1,),
}  # fmt: skip


def _make_policy(chance: random.Random) -> bytes:
    lines = []
    for _ in range(chance.choice((0, 1, 2, 4))):
        actions = chance.sample([*Action, "*", "other"], chance.choice((1, 1, 2, 3)))
        lines += ["[[rule]]", f"{chance.choice(('allow', 'allow', 'deny'))} = {json.dumps(actions)}"]
        for key in chance.sample(list(_LISTS), chance.choice((0, 1, 1, 2))):
            values = [chance.choice(_LISTS[key][:2] if chance.random() < 0.7 else _LISTS[key]) for _ in range(chance.choice((1, 1, 2)))]
            if key == "topics" and chance.random() < 0.3:
                values.append(grammar.pattern(chance))
            lines.append(f"{key} = {json.dumps(values[0] if key == 'comment' or len(values) == 1 else values)}")
    if chance.random() < 0.2:
        lines += ["[redact]", f"topics = {json.dumps(chance.sample(_LISTS['topics'], 2))}"]
    return "\n".join(lines).encode()


TARGETS = (
    Target(
        "policy", "a policy's file: errors for people, or rules that judge everybody", read_policy, _make_policy,
        (b"[[rule]]\n", b"[redact]\n", b"allow = ", b'"*"', b"\ntopics = ", b"\nnames = ", b"[", b'"""', b"%u", b".>", b"0x", b"\\u"),
    ),
)  # fmt: skip
