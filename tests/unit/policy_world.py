"""A small world in which random policies are written, and a naive evaluator that says what they mean.

The evaluator knows nothing of trees, walks and selections: it takes the rules as they were written, goes through them in order, and
asks the protocol's own `matches` for each topic. The world has two tokens that rules mention and one that none does, and one token
more of depth than any pattern: deeper topics differ in nothing.
"""

from __future__ import annotations

import itertools
import json
import random
from functools import cache

from ipcbus.policy import Subject
from ipcbus.protocol.topics import matches

TOKENS = ("a", "b", "other")
TOPICS = [
    ".".join(tokens)
    for depth in (1, 2, 3, 4)
    for tokens in itertools.product((*TOKENS, "$a", "$other"), *[TOKENS] * (depth - 1))
]  # fmt: skip
NAMES = [topic for topic in TOPICS if "$" not in topic]
METHODS = ("on", "off", "other")

USERS = {"a": 1000, "b": 1001}
GROUPS = {"ops": 50, "a": 60}
SUBJECTS = (
    Subject(1000, 100, frozenset({50}), unit="a.service", user="a", group="b"),
    Subject(1001, 60, frozenset({50, 100}), unit="b@x.service", user="b", group="a"),
    Subject(1002, 100, frozenset(), unit="session-2.scope", user_unit="app.service", user="x.y", group="b"),
    Subject(0, 0),
    Subject(identity="a"),
    Subject(),
)
WHO = {
    "uid": (0, 1000, 1001, 1002),
    "gid": (0, 50, 60, 100),
    "user": ("a", "b", "nobody-here"),
    "group": ("ops", "a", "nobody-here"),
    "unit": ("a.service", "b@*.service", "*.scope"),
    "user_unit": ("app.service",),
    "identity": ("a", "b"),
}
PATTERN_TOKENS = ("a", "b", "*", "*", "%u", "%i", "%g")
ACTIONS = ("connect", "own", "send", "call", "publish", "subscribe", "monitor", "admin")

Written = dict[str, object]


def random_rule(chance: random.Random) -> Written:
    """What an administrator might write."""
    actions = chance.choice((["*"], chance.sample(ACTIONS, chance.choice((1, 2, 4)))))
    rule: Written = {chance.choice(("allow", "deny")): actions}
    for key in chance.sample(list(WHO), chance.choice((0, 0, 1, 1, 2))):
        rule[key] = chance.sample(WHO[key], chance.randint(1, len(WHO[key])))
    if {"own", "send", "call"} & set(actions) or (actions == ["*"] and chance.random() < 0.5):
        if chance.random() < 0.7:
            rule["names"] = [random_pattern(chance).replace("$", "") for _ in range(chance.choice((1, 2)))]
        if ("call" in actions or actions == ["*"]) and chance.random() < 0.5:
            rule["methods"] = chance.sample(METHODS[:2], chance.choice((1, 2)))
    if {"publish", "subscribe", "monitor"} & set(actions) and chance.random() < 0.9:
        rule["topics"] = [random_pattern(chance) for _ in range(chance.choice((1, 2, 4)))]
    return rule


def random_pattern(chance: random.Random) -> str:
    tokens = [chance.choice(PATTERN_TOKENS) for _ in range(chance.choice((1, 2, 2, 3)))]
    if chance.random() < 0.1:
        tokens[0] = "$a"
    if chance.random() < 0.4:
        tokens[-1] = ">"
    return ".".join(tokens)


def asked(pattern: str) -> str:
    """A pattern that somebody subscribes to: there are no placeholders."""
    return pattern.replace("%u", "a").replace("%i", "b").replace("%g", "other")


def toml(rules: list[Written]) -> str:
    return "".join("[[rule]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in rule.items()) for rule in rules)


# --- the naive evaluator ---


def concerns(rule: Written, who: Subject) -> bool:
    numbers = [who.gid, *who.groups]
    facts = {
        "uid": lambda value: who.uid == value,
        "gid": lambda value: value in numbers,
        "user": lambda value: who.uid is not None and who.uid == USERS.get(value),
        "group": lambda value: value in GROUPS and GROUPS[value] in numbers,
        "unit": lambda value: unit_fits(value, who.unit),
        "user_unit": lambda value: unit_fits(value, who.user_unit),
        "identity": lambda value: who.identity == value,
    }
    return all(any(fact(value) for value in rule[key]) for key, fact in facts.items() if key in rule)  # type: ignore[attr-defined, no-untyped-call]


def unit_fits(pattern: str, unit: str) -> bool:
    return unit == pattern or any(unit == pattern.replace("*", text) for text in ("x", "session-2"))


def has(rule: Written, action: str) -> bool:
    actions = rule.get("allow") or rule["deny"]
    if actions != ["*"]:
        return action in actions  # type: ignore[operator]
    limits = {"methods": ("call",), "names": ("own", "send", "call"), "topics": ("publish", "subscribe", "monitor")}
    if "methods" in rule:
        limits.pop("names")
    about = [action for key, actions in limits.items() if key in rule for action in actions]
    return not about or action in about


@cache
def filled(template: str, who: Subject, allow: bool) -> str | None:
    tokens = []
    for token in template.split("."):
        for letter, value in (("%u", who.user), ("%i", who.identity), ("%g", who.group)):
            if letter in token:
                if value == "" or "." in value:
                    if allow:
                        return None
                    token = "*"
                    break
                token = token.replace(letter, value)
        tokens.append(token)
    return ".".join(tokens)


@cache
def world(pattern: str) -> frozenset[str]:
    """The topics of the world that a pattern matches."""
    return frozenset(topic for topic in TOPICS if matches(pattern, topic))


Candidates = list[tuple[int, frozenset[str] | None, list[str] | None]]


def candidates(rules: list[Written], who: Subject, action: str) -> Candidates:
    """The rules that may decide: their numbers, the targets of the world that they match (None: all), their methods."""
    key = {"own": "names", "send": "names", "call": "names", "connect": "", "admin": ""}.get(action, "topics")
    found: Candidates = []
    for number, rule in enumerate(rules, 1):
        if has(rule, action) and concerns(rule, who):
            patterns = [filled(text, who, "allow" in rule) for text in rule.get(key, ())]  # type: ignore[attr-defined]
            targets = frozenset().union(*(world(pattern) for pattern in patterns if pattern)) if key in rule else None
            found.append((number, targets, rule.get("methods") if action == "call" else None))  # type: ignore[arg-type]
    return found


def deciding(rules: Candidates, target: str = "", method: str = "") -> int:
    """The number of the first rule that fits, 0 for the default."""
    for number, targets, methods in rules:
        if (targets is None or target in targets) and (methods is None or method in methods):
            return number
    return 0
