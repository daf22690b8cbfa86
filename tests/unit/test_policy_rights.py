"""Rights: which rule decides, for whom, and on what."""

from __future__ import annotations

from ipcbus.policy import EVERYTHING, Action, Named, Policy, Rule, Subject, Who

ALICE = Subject(1000, 100, frozenset({44}), user="alice", group="users", unit="lights.service")
NOBODY = Rule(False, where="the default")


def policy(*rules: Rule) -> Policy:
    return Policy(rules, default=NOBODY)


def on(*actions: Action) -> frozenset[Action]:
    return frozenset(actions)


def test_everything_is_unrestricted() -> None:
    rights = EVERYTHING.rights(Subject())
    assert rights.unrestricted
    assert rights.connect().allowed
    assert rights.call(":", "x").allowed
    assert rights.subscribe(">").allowed


def test_the_first_rule_decides_and_the_why_names_it() -> None:
    rights = policy(
        Rule(False, on(Action.PUBLISH), topics=("room.kitchen",), where="rule 1 of a"),
        Rule(True, on(Action.PUBLISH), topics=("room.*",), where="rule 2 of a"),
    ).rights(ALICE)
    assert not rights.unrestricted
    assert rights.publish("room.kitchen").why == "rule 1 of a denies publish to 'room.kitchen'"
    assert rights.publish("room.bath").why == "rule 2 of a allows publish to 'room.bath'"
    assert rights.publish("room").why == "the default denies publish to 'room'"


def test_a_subscription_is_judged_by_all_that_it_can_match() -> None:
    rights = policy(
        Rule(False, topics=("secret.>",), actions=on(Action.SUBSCRIBE), where="rule 1 of a"),
        Rule(True, on(Action.SUBSCRIBE), where="rule 2 of a"),
    ).rights(ALICE)
    assert rights.subscribe("room.>").allowed
    verdict = rights.subscribe(">")
    assert not verdict.allowed
    assert verdict.why == "rule 1 of a denies subscribe to '>', which would also match 'secret.x'"


def test_names_methods_and_users() -> None:
    lights = policy(
        Rule(True, on(Action.CALL), Who(users=(Named("alice", 1000),)), names=("home.lights",), methods=("on", "off"), where="rule 1 of a"),
        Rule(True, on(Action.OWN), names=("home.%u.>",), where="rule 2 of a"),
    )
    assert lights.rights(ALICE).call("home.lights", "on").allowed
    assert not lights.rights(ALICE).call("home.lights", "burn").allowed
    assert not lights.rights(ALICE).call(":", "on").allowed
    assert not lights.rights(Subject(1001)).call("home.lights", "on").allowed
    assert lights.rights(ALICE).own("home.alice.x").allowed
    assert not lights.rights(Subject(1001, user="bob")).own("home.alice.x").allowed
