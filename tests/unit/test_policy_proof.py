"""Two thousand random policies: what the rights say is what a naive evaluator says, which tries every topic of a small world."""

from __future__ import annotations

import random

import pytest

from ipcbus.policy import Policy, Rule, Verdict, parse

from .policy_world import (
    ACTIONS,
    GROUPS,
    METHODS,
    NAMES,
    SUBJECTS,
    TOPICS,
    USERS,
    asked,
    candidates,
    deciding,
    random_pattern,
    random_rule,
    toml,
    world,
)


@pytest.mark.parametrize("seed", range(20))
def test_random_policies(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        judge_one_policy(chance)


def judge_one_policy(chance: random.Random) -> None:
    rules = [random_rule(chance) for _ in range(chance.choice((0, 1, 2, 4, 7)))]
    text = toml(rules)
    parsed = parse(text, "p", users=USERS.get, groups=GROUPS.get)
    assert not parsed.errors, (text, parsed.errors)
    policy = Policy(parsed.rules, default=Rule(chance.random() < 0.3, where="rule 0 of p"))
    effects = [policy.default.allow, *("allow" in rule for rule in rules)]
    for who in chance.sample(SUBJECTS, 2):
        rights = policy.rights(who)
        context = text, who
        applying = {action: candidates(rules, who, action) for action in ACTIONS}
        seen = [rights.connect(), rights.admin()]
        assert [said(verdict) for verdict in seen] == [deciding(applying[action]) for action in ("connect", "admin")], context
        for topic in chance.sample(TOPICS, 4):
            seen.append(rights.publish(topic))
            assert said(seen[-1]) == deciding(applying["publish"], topic), (*context, topic)
        for name in chance.sample(NAMES, 3):
            method = chance.choice(METHODS)
            seen += [rights.own(name), rights.send(name), rights.call(name, method)]
            wanted = [deciding(applying[action], name, method) for action in ("own", "send", "call")]
            assert [said(verdict) for verdict in seen[-3:]] == wanted, (*context, name, method)
        for action, judge in (("subscribe", rights.subscribe), ("monitor", rights.monitor)):
            for pattern in (chance.choice((">", "*.>")), asked(random_pattern(chance))):
                deciders = {deciding(applying[action], topic) for topic in world(pattern)}
                seen.append(judge(pattern))
                assert seen[-1].allowed == all(effects[number] for number in deciders), (*context, action, pattern)
                assert said(seen[-1]) in deciders, (*context, action, pattern)
        assert all(verdict.allowed == effects[said(verdict)] for verdict in seen), context
        first = [next(iter(applying[action]), (0, None, None)) for action in ACTIONS]
        assert rights.unrestricted == all(effects[number] and rest == [None, None] for number, *rest in first), context


def said(verdict: Verdict) -> int:
    """The number of the rule that a verdict names."""
    assert verdict.why.startswith(f"{verdict.rule.where} {'allows' if verdict.allowed else 'denies'} ")
    return int(verdict.rule.where.split()[1])
