"""Rights: which rule decides, for whom, and on what."""

from __future__ import annotations

import pytest

from ipcbus.policy import EVERYTHING, Action, Named, Policy, Redaction, Rule, Subject, Who
from ipcbus.policy.selection import Selection

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


@pytest.mark.parametrize("action", Action)
def test_each_action_is_judged_by_its_own_rules(action: Action) -> None:
    """Allowed by a rule for it alone, which allows nothing else; denied by one, which denies nothing else."""
    for allow in (True, False):
        rights = Policy([Rule(allow, on(action), where="rule 1 of a")], default=Rule(not allow, where="the default")).rights(ALICE)
        verdicts = {
            Action.CONNECT: rights.connect(),
            Action.OWN: rights.own("a.b"),
            Action.SEND: rights.send("a.b"),
            Action.CALL: rights.call("a.b", "on"),
            Action.PUBLISH: rights.publish("a.b"),
            Action.SUBSCRIBE: rights.subscribe("a.>"),
            Action.MONITOR: rights.monitor("a.*"),
            Action.ADMIN: rights.admin(),
        }
        assert not rights.unrestricted
        assert {key for key, verdict in verdicts.items() if verdict.allowed == allow} == {action}
        assert verdicts[action].rule.where == "rule 1 of a"
        assert action in verdicts[action].why


def test_the_words_of_a_verdict() -> None:
    rights = policy().rights(ALICE)
    assert [verdict.why.removeprefix("the default denies ") for verdict in (
        rights.connect(), rights.admin(), rights.own("a"), rights.send("a"), rights.send(":"),
        rights.call("a", "on"), rights.call(":", "on"), rights.publish("a"),
        rights.subscribe("a"), rights.subscribe("a.*"), rights.monitor(">"),
    )] == [
        "connect", "admin", "own of 'a'", "send to 'a'", "send to a peer without a name", "call of 'on' of 'a'",
        "call of 'on' of a peer without a name", "publish to 'a'", "subscribe to 'a'", "subscribe to 'a.*', which would also match 'a.x'",
        "monitor of '>', which would also match 'x'",
    ]  # fmt: skip


def test_what_others_chose_cannot_control_a_terminal_nor_fill_a_line() -> None:
    rights = policy().rights(ALICE)
    for topic in ("a\u202eb", "x" * 255, "\U000e0001" * 60):
        for verdict in (rights.publish(topic), rights.subscribe(topic), rights.subscribe(f"{topic[:200]}.>")):
            assert verdict.why.isprintable()
            assert len(verdict.why.encode()) < 1024


# --- whom a rule concerns ---


@pytest.mark.parametrize(
    ("who", "subject", "concerned"),
    [
        (Who(), Subject(), True),
        (Who(uids=frozenset({1000})), Subject(1000), True),
        (Who(uids=frozenset({1000})), Subject(1001), False),
        (Who(uids=frozenset({0})), Subject(), False),
        (Who(gids=frozenset({44})), ALICE, True),  # supplementary
        (Who(gids=frozenset({100})), ALICE, True),  # primary
        (Who(gids=frozenset({45})), ALICE, False),
        (Who(gids=frozenset({0})), Subject(), False),
        (Who(users=(Named("alice", 1000),)), ALICE, True),
        (Who(users=(Named("bob", 1001),)), ALICE, False),
        (Who(users=(Named("gone", None),)), Subject(), False),
        (Who(users=(Named("gone", None),)), Subject(user="gone"), False),
        (Who(groups=(Named("video", 44), Named("gone", None))), ALICE, True),
        (Who(groups=(Named("gone", None),)), Subject(), False),
        (Who(units=("lights.service",)), ALICE, True),
        (Who(units=("light.service",)), ALICE, False),
        (Who(units=("*",)), Subject(), False),
        (Who(units=("*",)), ALICE, True),
        (Who(units=("lights@*.service",)), Subject(unit="lights@.service"), True),
        (Who(units=("lights@*.service",)), Subject(unit="lights@a.b.service"), True),
        (Who(units=("lights@*.service",)), Subject(unit="lights@.servic"), False),
        (Who(units=("ab*ba",)), Subject(unit="aba"), False),  # one b is not two
        (Who(units=("ab*ba",)), Subject(unit="abba"), True),
        (Who(user_units=("app.service",)), Subject(user_unit="app.service"), True),
        (Who(user_units=("app.service",)), Subject(unit="app.service"), False),
        (Who(units=("app.service",)), Subject(user_unit="app.service"), False),
        (Who(identities=("panel", "lamp")), Subject(identity="lamp"), True),
        (Who(identities=("panel",)), Subject(identity="lamp"), False),
        (Who(identities=("",)), Subject(), False),
        (Who(uids=frozenset({1000}), gids=frozenset({44})), ALICE, True),
        (Who(uids=frozenset({1000}), gids=frozenset({45})), ALICE, False),
    ],
)
def test_whom_a_rule_concerns(who: Who, subject: Subject, concerned: bool) -> None:
    assert who.concerns(subject) == concerned
    assert policy(Rule(True, who=who)).rights(subject).unrestricted == concerned


# --- placeholders ---


def may_publish(template: str, subject: Subject, topic: str, *, allow: bool = True) -> bool:
    rule = Rule(allow, on(Action.PUBLISH), topics=(template,))
    return Policy([rule], default=Rule(not allow)).rights(subject).publish(topic).allowed


def test_placeholders() -> None:
    for template, topic in (
        ("home.%u.>", "home.alice.x"),
        ("%U", "1000"),
        ("a.%g-%G.x", "a.users-100.x"),
        ("%n.*", "lights.on"),
        ("100%%.%%u", "100%.%u"),
        ("%%%u", "%alice"),
    ):
        assert may_publish(template, ALICE, topic), template
        assert not may_publish(template, ALICE, f"y{topic}"), template
    assert may_publish("%i.x", Subject(identity="panel"), "panel.x")


@pytest.mark.parametrize("name", ["", "a.b", "*", ">", "$bus", "a b", "a*", "x\x1b", "x\u009b", "\n"])
def test_a_value_that_is_not_a_token_allows_nothing_and_denies_all(name: str) -> None:
    subject = Subject(7, user=name)
    for template, topic in (("home.%u", "home.x"), ("home.%u", f"home.{name}"), ("home.x%u", "home.y"), ("%u.a", "x.a")):
        assert not may_publish(template, subject, topic)
        assert not may_publish(template, subject, topic, allow=False) or "." in name
    assert may_publish("home.%u", subject, "home.x.y", allow=False)
    rights = policy(Rule(True, on(Action.PUBLISH), topics=("home.%u", "common"))).rights(subject)
    assert rights.publish("common").allowed  # the other patterns of the rule hold


def test_a_value_in_a_name_has_the_letters_of_names() -> None:
    rule = Rule(True, on(Action.OWN, Action.PUBLISH), names=("home.%n",), topics=("home.%n",))
    for unit, name in (("lights.service", True), ("lights@x.service", False), ("ä.service", False), ("lights", False)):
        rights = policy(rule).rights(Subject(1, unit=unit))
        assert rights.own(f"home.{unit.removesuffix('.service')}").allowed == name
        assert rights.publish(f"home.{unit.removesuffix('.service')}").allowed == (unit != "lights")  # no suffix: no unit


def test_rights_of_one_are_not_those_of_another() -> None:
    homes = policy(Rule(True, on(Action.PUBLISH, Action.SUBSCRIBE), topics=("home.%u.>", "common.>")))
    alice, bob = homes.rights(ALICE), homes.rights(Subject(1001, user="bob"))
    for rights, own, other in ((alice, "alice", "bob"), (bob, "bob", "alice")):
        assert rights.publish(f"home.{own}.x").allowed
        assert rights.subscribe(f"home.{own}.>").allowed
        assert rights.subscribe("common.>").allowed
        assert not rights.publish(f"home.{other}.x").allowed
        assert not rights.subscribe(f"home.{other}.>").allowed
        assert not rights.subscribe("home.*.>").allowed


# --- topics, names and methods ---


def test_the_topics_of_the_bus_are_no_wildcards_matter() -> None:
    """T-3: a pattern that begins with a wildcard does not match them, in a rule or in a subscription."""
    rights = policy(
        Rule(False, on(Action.SUBSCRIBE), topics=("$bus.secret.>",)),
        Rule(True, on(Action.SUBSCRIBE), topics=(">", "$bus.*")),
    ).rights(ALICE)
    assert rights.subscribe(">").allowed
    assert rights.subscribe("$bus.peers").allowed
    assert rights.subscribe("$bus.*").allowed
    assert not rights.subscribe("$bus.secret.x").allowed
    assert not rights.subscribe("$bus.>").allowed
    assert not rights.subscribe("$other").allowed


def test_methods() -> None:
    rights = policy(
        Rule(False, on(Action.CALL), names=("home.safe",), methods=("open",)),
        Rule(True, on(Action.CALL), names=("home.*",)),
        Rule(True, on(Action.CALL), methods=("a.status",)),
    ).rights(ALICE)
    for name, method, allowed in (
        ("home.safe", "close", True), ("home.safe", "open", False), ("home.lamp", "open", True), ("home.a.b", "open", False),
        ("other", "a.status", True), (":", "a.status", True), (":", "a", False), ("a.status", "x", False),
    ):  # fmt: skip
        assert rights.call(name, method).allowed == allowed, (name, method)


def test_peers_without_a_name() -> None:
    for names, allowed in ((None, True), ((">",), True), (("*",), True), ((":",), True), (("*.*",), False), (("a",), False)):
        assert policy(Rule(True, on(Action.SEND), names=names)).rights(ALICE).send(":").allowed == allowed


def test_a_rule_without_any_pattern_left_matches_nothing() -> None:
    for action, ask in ((Action.CALL, lambda rights: rights.call("a", "b")), (Action.OWN, lambda rights: rights.own("a"))):
        assert not ask(policy(Rule(True, on(action), names=())).rights(ALICE)).allowed


# --- what a policy remembers ---


def test_subjects_of_one_kind_share_what_is_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("ipcbus.policy.policy.Selection", lambda *args: made.append(args) or Selection(*args))
    rules = policy(Rule(True, who=Who(uids=frozenset({1000}))), Rule(True, on(Action.OWN), names=("a",)))
    for number in range(50):
        assert rules.rights(Subject(2000 + number)).own("a").allowed
    assert len(made) == 1
    assert rules.rights(ALICE).unrestricted
    assert len(made) == 2
    assert rules.rights(ALICE) is rules.rights(ALICE)
    assert rules.rights(Subject(2000)) is rules.rights(Subject(2001, 5, unit="x.service"))
    personal = policy(Rule(True, on(Action.OWN), names=("100%%.%u",)))
    assert personal.rights(Subject(1)) is not personal.rights(Subject(2))
    assert personal.rights(Subject(1)) is personal.rights(Subject(1))


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_what_a_policy_remembers_is_bounded(over: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipcbus.policy.policy._SUBJECTS", 10)
    monkeypatch.setattr("ipcbus.policy.policy._KINDS", 5)
    rules = Policy([Rule(True, who=Who(uids=frozenset({number}))) for number in range(20)], default=NOBODY)
    first = rules.rights(Subject(0))
    for number in range(1, 10 + over):
        assert rules.rights(Subject(number)).unrestricted
    assert len(rules._rights) == min(10 + over, 10)
    assert len(rules._kinds) == 5
    assert (rules.rights(Subject(0)) is first) == (over < 1)
    assert first.unrestricted  # who has forgotten rights keeps them


def test_redaction() -> None:
    redaction = Redaction(["secret.>", "*.pin"])
    assert redaction.patterns == ("secret.>", "*.pin")
    for topic, hidden in (("secret.a", True), ("secret", False), ("door.pin", True), ("door.pin.x", False), ("$bus.pin", False)):
        assert redaction.hides(topic) == hidden
    assert not Redaction().hides("a")


def test_rules_are_shown_to_people() -> None:
    who = Who(uids=frozenset({5, 1000}), groups=(Named("ops", 50),), units=("a.service", "b@*.service"))
    rule = Rule(False, on(Action.CALL, Action.OWN), who, names=("a.*", "b"), methods=("on",))
    assert str(rule) == "deny own, call for uid 5, 1000 and group ops and unit a.service, b@*.service on names a.*, b and methods on"
    assert str(Rule(True)) == "allow everything for everybody"
