"""Ordered rules over patterns: deep ones against every topic of a small world, and the limit of a walk."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest

from ipcbus.policy import Action, Policy, Rule, Subject
from ipcbus.policy.limits import POLICY_WALK_MAX
from ipcbus.policy.ordered import Ordered, TooComplexError, _Walk
from ipcbus.policy.tree import Node
from ipcbus.protocol.topics import matches

TOPICS = [".".join(tokens) for depth in range(1, 6) for tokens in itertools.product(("a", "b", "x"), repeat=depth)]


@cache
def world(pattern: str) -> frozenset[str]:
    return frozenset(topic for topic in TOPICS if matches(pattern, topic))


def ordered(rules: list[tuple[bool, list[str]]], *, otherwise: bool) -> Ordered:
    root = Node()
    for index, (allow, patterns) in enumerate(rules):
        for pattern in patterns:
            root.add(pattern.split("."), index, allow=allow)
    made = [Rule(allow, where=str(index)) for index, (allow, _) in enumerate(rules)]
    return Ordered([*made, Rule(otherwise, where=str(len(rules)))], (root,))


def some_pattern(chance: random.Random) -> str:
    tokens = chance.choices(("a", "b", "*", "*"), k=chance.choice((1, 2, 3, 4)))
    return ".".join([*tokens[:-1], ">"] if chance.random() < 0.3 else tokens)


@pytest.mark.parametrize("seed", range(10))
def test_deep_patterns(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        rules = [(chance.random() < 0.5, [some_pattern(chance) for _ in range(3)]) for _ in range(chance.choice((2, 4, 6)))]
        otherwise = chance.random() < 0.7
        judged = ordered(rules, otherwise=otherwise)
        for pattern in (">", "*.>", "*.*.*", "*.*.*.*", some_pattern(chance)):
            deciders: dict[str, int] = {}
            for number, (_, patterns) in enumerate(rules):
                for topic in world(pattern) & set().union(*map(world, patterns)):
                    deciders.setdefault(topic, number)
            effects = [allow for allow, _ in rules] + [otherwise]
            denied = {topic for topic in world(pattern) if not effects[deciders.get(topic, len(rules))]}
            found = judged.first_denied(pattern.split("."))
            assert (found is None) == (not denied), (rules, otherwise, pattern, found)
            if found is not None and found[1].count(".") < 5:
                assert found[1] in denied, (rules, otherwise, pattern, found)
                assert found[0].where == str(deciders.get(found[1], len(rules)))


def test_a_topic_of_32_tokens_is_the_deepest() -> None:
    """What denies only topics that cannot be does not deny a pattern."""
    for depth, allowed in ((31, False), (32, False), (33, True)):
        denying = (False, [".".join(["*"] * (depth - 1) + ["a"])])
        assert (ordered([denying], otherwise=True).first_denied([">"]) is None) == allowed, depth
    all_depths = (True, [".".join(["*"] * depth) for depth in range(1, 33)])
    assert ordered([all_depths], otherwise=False).first_denied([">"]) is None
    assert ordered([(True, all_depths[1][:-1])], otherwise=False).first_denied([">"]) is not None


def test_many_rules_need_few_steps() -> None:
    """A service has its own topics, two thousand times: nothing of it is complex."""
    services = [(True, [f"svc{number}.>", f"svc{number}"]) for number in range(2_000)]
    judged = ordered([*services, (True, ["common.*"]), (False, ["common.>"])], otherwise=True)
    for pattern in ("svc7.>", "svc7", "common.*", "svc7.*.*.*.>"):
        walk = _Walk(judged._rules, pattern.split("."))
        assert walk.visit(judged._roots, len(judged._rules) - 1, ()) is None
        assert walk.steps < 20, pattern
    assert judged.first_denied([">"]) is not None


def exploding(width: int) -> Ordered:
    """Rules for which a walk has to look at *width* tokens at two places, each combination for itself."""
    rules = [(True, [f"t{number}.*.end" for number in range(width)]), (False, [f"*.u{number}.no" for number in range(width)])]
    return ordered([*rules, (True, ["*.*.no"])], otherwise=True)


def steps(judged: Ordered, pattern: str) -> int:
    walk = _Walk(judged._rules, pattern.split("."))
    walk.visit(judged._roots, len(judged._rules) - 1, ())
    return walk.steps


def test_a_walk_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = exploding(5)
    needed = steps(judged, "*.*.end")
    assert 20 < needed < 1_000
    for limit, judged_so in ((needed + 1, True), (needed, True), (needed - 1, False)):
        monkeypatch.setattr("ipcbus.policy.ordered.POLICY_WALK_MAX", limit)
        if judged_so:
            assert judged.first_denied(["*", "*", "end"]) is None
        else:
            with pytest.raises(TooComplexError):
                judged.first_denied(["*", "*", "end"])


def test_what_is_too_complex_is_denied_and_says_so() -> None:
    width = 150
    subscribe = frozenset({Action.SUBSCRIBE})
    rules = [
        Rule(True, subscribe, topics=tuple(f"t{number}.*.end" for number in range(width))),
        Rule(False, subscribe, topics=tuple(f"*.u{number}.no" for number in range(width))),
    ]
    rights = Policy(rules, default=Rule(True)).rights(Subject())
    verdict = rights.subscribe("*.*.end")
    assert not verdict.allowed
    assert f"too complex to judge under {POLICY_WALK_MAX} steps" in verdict.why
    assert rights.subscribe("t7.*.end").allowed
    assert rights.publish("t7.u7.no").why.endswith("allows publish to 't7.u7.no'")
