"""What `ipcbusd --check-config` says of rules that are each correct."""

from __future__ import annotations

import random

import pytest

from ipcbus.policy import Policy, Rule, parse
from ipcbus.policy.lint import lint
from ipcbus.policy.people import is_part, nobody
from ipcbus.policy.rules import Named, Who

from . import policy_world as world


def said(text: str) -> list[str]:
    parsed = parse(text, "p", users={"alice": 1000, "bob": 1001, "nobody": 65534}.get, groups={"ops": 50, "nogroup": 65534}.get)
    assert not parsed.errors, parsed.errors
    return lint(parsed.rules)


def one(*rules: str) -> str:
    """The one line about these rules."""
    (line,) = said("\n".join(f"[[rule]]\n{rule}" for rule in rules))
    return line


def nothing(*rules: str) -> bool:
    return said("\n".join(f"[[rule]]\n{rule}" for rule in rules)) == []


SECRET_FIRST = ('deny = "publish"\ntopics = "secret.>"', 'allow = "publish"')


def test_rules_that_all_decide_something() -> None:
    assert nothing(*SECRET_FIRST)
    assert nothing('allow = "own"\nuid = 1000\nnames = "a.*"', 'allow = "own"\nuid = 1001\nnames = "a.*"', 'deny = "own"')
    assert nothing('allow = "call"\nnames = "a"\nmethods = "on"', 'deny = "call"\nnames = "a"')
    assert nothing('allow = "subscribe"\ntopics = ">"', 'deny = "subscribe"')  # the topics of the bus are none of ">" (T-3)


def test_a_contradiction_names_both_rules() -> None:
    line = one('allow = "publish"\ntopics = "room.>"', 'deny = "publish"\ntopics = ["room.safe", "room.vault.*"]\nuid = 1000')
    assert line == (
        "rule 2 of p, line 4 denies publish 'room.safe' (and 1 more), but rule 1 of p, line 1 allows it before, and the first decides: "
        "put the narrower rule before the wider one"
    )
    line = one('deny = ["own", "call"]\nnames = "home.*"', 'allow = "call"\nnames = "home.lights"\nmethods = "on"\nuser = "alice"')
    assert line.startswith("rule 2 of p, line 4 allows call of 'on' of 'home.lights', but rule 1 of p, line 1 denies it before")
    assert one('allow = "connect"', 'deny = "connect"\nuid = 1000').startswith("rule 2 of p, line 3 denies connect, but rule 1")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ('["own", "publish"]\nnames = "a"', 'publish on everything: if that is meant, say topics = ">"'),
        ('["subscribe", "monitor", "call"]\nmethods = "m"', 'subscribe, monitor on everything: if that is meant, say topics = ">"'),
        ('["own", "send", "call"]\nmethods = "m"', 'own, send on everything: if that is meant, say names = ">"'),
        ('["call", "publish"]\ntopics = "a"', 'call on everything: if that is meant, say names = ">"'),
    ],
)
def test_a_rule_that_limits_one_action_and_not_another(rule: str, words: str) -> None:
    assert one(f"allow = {rule}") == f"rule 1 of p, line 1 allows {words}; else limit it, or leave it out"
    assert nothing(f"deny = {rule}")  # who denies too much is told of it by others


@pytest.mark.parametrize(
    "rule",
    [
        '["own", "publish"]\nnames = "a"\ntopics = ">"', '"*"\nnames = "a"', '"*"\nmethods = "m"', '"*"\ntopics = "a"', '"*"',
        '["own", "publish"]', '["call", "publish"]\nmethods = "m"\ntopics = "a"', '["connect", "admin", "publish"]\ntopics = "a"',
    ],
)  # fmt: skip
def test_a_rule_that_says_what_it_limits(rule: str) -> None:
    assert nothing(f"allow = {rule}")


def test_a_dead_rule() -> None:
    dead = "never decides anything: rules before it do; it can go, or belongs before them"
    assert one('allow = "publish"\ntopics = "room.>"', 'allow = "publish"\ntopics = ["room.*", "room.a.b"]').endswith(dead)
    assert one(*SECRET_FIRST, 'allow = "publish"\nuid = 1000').endswith(dead)  # partly denied, partly allowed before
    one('allow = "own"\nnames = ["home.*", "home.*.>"]', 'allow = "own"\nnames = "home.>"')  # by two patterns together
    one('allow = "own"\nnames = ">"', 'allow = "own"')  # all names begin with no "$"
    one('allow = "call"\nmethods = ["on", "off"]', 'allow = "call"\nmethods = "off"\nnames = "x.y"')
    one('allow = "*"', 'allow = "monitor"')
    one('allow = "publish"', 'allow = "publish"\ntopics = "a"')
    assert one('allow = ["connect", "admin"]', 'allow = ["connect", "send"]').endswith("never decides connect: rules before it do")


def test_nothing_comes_after_a_rule_for_everything() -> None:
    rules = ('allow = "publish"', 'deny = "publish"\ntopics = "a"', 'deny = "publish"')
    lines = said("\n".join(f"[[rule]]\n{rule}" for rule in rules))
    assert [line.split(",")[0] for line in lines] == ["rule 2 of p", "rule 3 of p"]
    assert all("but rule 1 of p, line 1 allows it before" in line for line in lines)


def test_placeholders_are_compared_as_what_they_are() -> None:
    one('allow = "own"\nnames = "home.%u.>"', 'allow = "own"\nnames = "home.%u.a"')
    one('allow = "own"\nnames = "home.*"', 'allow = "own"\nnames = "home.%u"')
    assert nothing('allow = "own"\nnames = "home.%u"', 'allow = "own"\nnames = "home.alice"')
    assert nothing('allow = "publish"\ntopics = "home.%%u"', 'allow = "publish"\ntopics = "home.%u"')
    assert nothing('allow = "own"\nnames = "home.%u"', 'deny = "own"\nnames = "home.%u"')  # who has no user name is denied all of home.*
    one('deny = "own"\nnames = "home.%u"', 'allow = "own"\nnames = "home.%u"')


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ('uid = 1000\nidentity = "panel"', "has an identity but no uid"),
        ('unit = "a.service"\nidentity = "panel"', "has an identity but no unit"),
        ('user = "nobody-here"', "the system knows no such user"),
        ('group = ["nobody-here"]', "the system knows no such group"),
        ('uid = 1001\nuser = "alice"', "other uids"),
    ],
)
def test_a_rule_for_nobody(rule: str, why: str) -> None:
    line = one(f'allow = "own"\n{rule}')
    assert line.startswith("rule 1 of p, line 1 concerns nobody: ")
    assert why in line


def test_of_a_rule_for_nobody_nothing_more_is_said() -> None:
    rule = '[[rule]]\nallow = "own"\nuid = 65534\nidentity = "panel"\n'
    assert ["concerns nobody" in line for line in said(rule * 2)] == [True, True]


@pytest.mark.parametrize("who", ["uid = [5, 65534]", "gid = 65534", 'user = "nobody"', 'group = "nogroup"'])
def test_nobody_is_also_who_comes_from_elsewhere(who: str) -> None:
    line = one(f'allow = "own"\n{who}')
    assert line == "rule 1 of p, line 1 allows something to 65534 (nobody): that is also who comes from another user namespace"
    assert nothing(f'deny = "own"\n{who}')


def test_who_is_part_of_whom() -> None:
    everybody, alice = Who(), Who(uids=frozenset({1000}))
    wider = Who(uids=frozenset({1000, 1001}))
    named = Who(users=(Named("alice", 1000), Named("nobody-here", None)))
    ops = Who(groups=(Named("ops", 50),))
    assert is_part(alice, everybody)
    assert not is_part(everybody, alice)
    assert is_part(alice, wider)
    assert not is_part(wider, alice)
    assert is_part(named, alice)
    assert is_part(alice, named)
    assert not is_part(wider, named)
    assert is_part(ops, Who(gids=frozenset({50, 51})))
    assert not is_part(ops, Who(gids=frozenset({51})))
    assert not is_part(alice, ops)
    assert is_part(Who(uids=frozenset({1000}), gids=frozenset({50})), ops)
    for narrow, wide, part in (
        ("a.service", "a.service", True), ("a@x.service", "a@*.service", True), ("a@b*.service", "a@*.service", True),
        ("a@*.service", "a@b*.service", False), ("a@*.service", "a@x.service", False), ("*.service", "*", True), ("*", "*.service", False),
        ("a.service*", "a.service", False),
    ):  # fmt: skip
        assert is_part(Who(units=(narrow,)), Who(units=(wide,))) == part, (narrow, wide)
        assert is_part(Who(user_units=(narrow,)), Who(user_units=(wide,))) == part, (narrow, wide)
        assert not is_part(Who(units=(narrow,)), Who(user_units=(wide,)))
    assert is_part(Who(identities=("a",)), Who(identities=("a", "b")))
    assert not is_part(Who(identities=("a", "b")), Who(identities=("a",)))
    assert nobody(alice) == nobody(everybody) == nobody(named) == ""


def test_too_many_kinds_of_people_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Rule(True, who=Who(uids=frozenset({number % 3})), where=f"rule {number}") for number in range(6)]
    for limit, compared in ((2, False), (3, True), (4, True)):
        monkeypatch.setattr("ipcbus.policy.lint.LINT_KINDS_MAX", limit)
        lines = lint(rules)
        assert len(lines) == (3 if compared else 1)
        assert ("were not looked for" in lines[0]) != compared


def test_rules_too_complex_to_compare_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.policy.ordered.POLICY_WALK_MAX", 3)
    assert one('allow = "own"\nnames = ["*", "*.a", "*.*"]', 'allow = "own"\nnames = "*.*"').endswith("they are too complex")


@pytest.mark.parametrize("seed", range(8))
def test_dead_rules_can_go(seed: int) -> None:
    """Random policies: without a rule that is said to be dead, or to be contradicted in all it says, everything is judged alike."""
    chance = random.Random(seed)
    dead = 0
    while dead < 15:
        written = [world.random_rule(chance) for _ in range(5)]
        rules = parse(world.toml(written), "p", users=world.USERS.get, groups=world.GROUPS.get).rules
        gone = [line.split(",")[0] for line in lint(rules) if "never decides anything" in line or "concerns nobody" in line]
        if not gone:
            continue
        dead += 1
        policies = [Policy(kept, default=Rule(False, where="rule 0 of p")) for kept in (rules, without(rules, gone))]
        for who in world.SUBJECTS:
            whole, less = (policy.rights(who) for policy in policies)
            assert whole.connect() == less.connect()
            assert whole.admin() == less.admin()
            for topic in chance.sample(world.TOPICS, 8):
                assert whole.publish(topic) == less.publish(topic), (world.toml(written), gone, who, topic)
                assert whole.monitor(topic) == less.monitor(topic)
            for name in chance.sample(world.NAMES, 8):
                assert whole.own(name) == less.own(name), (world.toml(written), gone, who, name)
                assert whole.call(name, "on") == less.call(name, "on"), (world.toml(written), gone, who, name)


def without(rules: tuple[Rule, ...], gone: list[str]) -> list[Rule]:
    return [rule for rule in rules if rule.where.split(",")[0] not in gone]
