"""The text of a policy's file: what is a rule, and what each error says."""

from __future__ import annotations

import pytest

from ipcbus.policy import Action, Named, ParsedFile, Rule, Who, parse
from ipcbus.policy.actions import EVERY_ACTION, OF_NAMES, OF_TOPICS
from ipcbus.policy.parsing import joined

FILE = "/etc/ipcbus/policy.toml"


def read(text: str) -> ParsedFile:
    return parse(text, FILE, users={"alice": 1000, "root": 0}.get, groups={"ops": 50}.get)


def rule(text: str) -> Rule:
    """The one rule of keys below [[rule]]."""
    parsed = read(f"[[rule]]\n{text}\n")
    assert parsed.errors == (), parsed.errors
    return parsed.rules[0]


def error(text: str) -> str:
    """The one error of keys below [[rule]], without the place that all have."""
    parsed = read(f"[[rule]]\n{text}\n")
    assert len(parsed.errors) == 1, parsed.errors
    assert parsed.rules == ()
    place = f"rule 1 of {FILE}, line 1"
    assert parsed.errors[0].startswith(place)
    return parsed.errors[0].removeprefix(place).removeprefix(", ")


def test_a_rule_with_all_keys() -> None:
    assert rule(
        """
        allow = ["own", "call", "publish"]
        uid = [1000, 1001]
        gid = 50
        user = ["alice", "root"]
        group = "ops"
        unit = "lights@*.service"
        user_unit = ["app.service"]
        names = ["home.lights", "home.%u.>"]
        methods = ["on", "off"]
        topics = "room.*"
        comment = "the lights"
        """
    ) == Rule(
        True,
        frozenset({Action.OWN, Action.CALL, Action.PUBLISH}),
        Who(
            uids=frozenset({1000, 1001}),
            gids=frozenset({50}),
            users=(Named("alice", 1000), Named("root", 0)),
            groups=(Named("ops", 50),),
            units=("lights@*.service",),
            user_units=("app.service",),
        ),
        names=("home.lights", "home.%u.>"),
        methods=("on", "off"),
        topics=("room.*",),
        where=f"rule 1 of {FILE}, line 1",
        comment="the lights",
    )
    assert rule('deny = "connect"\nidentity = "panel"').who == Who(identities=("panel",))


def test_an_empty_file_has_no_rules() -> None:
    assert read("") == read("# nothing\n") == ParsedFile()


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        ("", EVERY_ACTION),
        ('names = "a"', OF_NAMES),
        ('methods = "on"', {Action.CALL}),
        ('names = "a"\nmethods = "on"', {Action.CALL}),
        ('topics = "a"', OF_TOPICS),
        ('names = "a"\ntopics = "a"', OF_NAMES | OF_TOPICS),
    ],
)
def test_all_actions_are_those_that_the_targets_are_about(keys: str, meant: set[Action]) -> None:
    assert rule(f'deny = "*"\n{keys}').actions == meant
    assert rule(f'allow = ["own", "*"]\n{keys}').actions == meant


def test_a_peer_without_a_name_may_be_meant() -> None:
    assert rule('allow = "send"\nnames = [":", "*"]').names == (":", "*")


def test_methods_may_be_all() -> None:
    assert rule('allow = "call"\nmethods = ["on", "*"]').methods is None


def test_every_error_of_a_file_is_told_with_its_line() -> None:
    first, second = '[[rule]]\nallow = "own"\nuid = "x"\ngid = -1\n\n', '  [[ rule ]]\ndeny = "fly"\n'
    parsed = read(f'foo = 1\n{first}{second}[redact]\ntopics = ["a..b"]\nnames = 1\n')
    assert [line.split(":")[0] for line in parsed.errors] == [
        FILE,
        f"rule 1 of {FILE}, line 2, uid",
        f"rule 1 of {FILE}, line 2, gid",
        f"rule 2 of {FILE}, line 7, deny",
        f"[redact] of {FILE}",
        f"[redact] of {FILE}, topics",
    ]


def test_the_name_of_a_file_is_fit_for_clients_and_logs() -> None:
    for name, shown in (("/\udce4.toml", r"/\udce4.toml"), ("/a\n\x1b[2J.toml", r"/a\n\x1b[2J.toml"), ("x" * 4096, "x" * 300)):
        parsed = parse('[[rule]]\ndeny = "publish"\nuser = "gone"\n', name, users={}.get, groups={}.get)
        assert parsed.rules[0].where == f"rule 1 of {shown}, line 1"
        assert parsed.warnings[0].startswith(f"rule 1 of {shown}, line 1, user: ")
        assert parse("[", name, users={}.get, groups={}.get).errors[0].startswith(f"{shown}: not TOML: ")


def test_without_headers_there_are_no_lines() -> None:
    assert read("rule = [{allow = 'own'}, {deny = 'own'}]").rules[1].where == f"rule 2 of {FILE}"
    confusing = read('[[rule]]\nallow = "own"\ncomment = """x\n[[rule]]\n"""')
    assert [rule.where for rule in confusing.rules] == [f"rule 1 of {FILE}"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", ": a rule has either 'allow' or 'deny', a list of connect, own"),
        ('allow = "own"\ndeny = "call"', ": a rule has either 'allow' or 'deny'"),
        ("allow = []", "allow: an empty list fits nothing; leave the key out"),
        ("allow = 1", "allow: 1 is not a text"),
        ('allow = "Own"', "allow: no such action: 'Own'; there are connect, own, send, call, publish, subscribe, monitor, admin"),
        ('allow = "own"\nwho = 1', "who: unknown key; a rule has allow, deny, uid"),
        ('allow = "own"\nuid = "alice"', "uid: 'alice' is not a number of 0 to 4294967294; for a name there is 'user'"),
        ('allow = "own"\ngid = true', "gid: True is not a number of 0 to 4294967294; for a name there is 'group'"),
        ('allow = "own"\nuid = 1.0', "uid: 1.0 is not a number"),
        ('allow = "own"\nuid = [[1]]', "uid: a list is not a number"),
        ('allow = "own"\nuid = {a = 1}', "uid: a table is not a number"),
        ('allow = "own"\nuid = 2024-01-01', "uid: a date or time is not a number"),
        (f'allow = "own"\nuid = 0x{"f" * 9000}', "uid: a number that large is not a number of 0"),
        ('allow = "own"\nuser = 1000', "user: 1000 is not a text"),
        ('allow = "own"\nuser = "a\\u001b[2J"', "user: 'a\\x1b[2J' is not a text of 1 to 1024 bytes of printable characters"),
        ('allow = "own"\nunit = "lights"', "unit: 'lights' has no suffix: write 'lights.service'"),
        ('allow = "own"\nuser_unit = "*@*.service"', "user_unit: '*@*.service' has more than one '*'"),
        ('allow = "own"\nnames = "a.b*"', "names: 'a.b*' has a wildcard inside a token"),
        ('allow = "own"\nnames = "a.ä"', "names: 'a.ä' is no pattern over names"),
        ('allow = "own"\nnames = "bus.x"', "names: 'bus.x': name 'bus.x' is the bus's own"),
        ('allow = "own"\nnames = ">.a"', "names: '>.a': pattern '>.a' has '>' before its last token"),
        ('allow = "own"\nnames = "a.%x"', "names: 'a.%x' has the unknown placeholder '%x'; there are %u the user's name"),
        ('allow = "own"\nnames = "a%"', "names: 'a%' has the unknown placeholder '%'"),
        ('allow = "own"\ntopics = "a"', "topics: no action of this rule has them: they limit publish, subscribe, monitor"),
        ('allow = "own"\nmethods = "a"', "methods: no action of this rule has them: they limit call"),
        ('allow = ["connect", "publish"]\nnames = "a"', "names: no action of this rule has them: they limit own, send, call"),
        ('allow = "call"\nmethods = "1x"', "methods: '1x' is no method"),
        ('allow = "publish"\ntopics = "a..b"', "topics: 'a..b': pattern 'a..b' has an empty token"),
        ('allow = "publish"\ntopics = "a b"', "topics: 'a b': pattern 'a b' has a space"),
        ('allow = "publish"\ntopics = ""', "topics: '' is not a text of 1 to 1024 bytes"),
        ('allow = "own"\ncomment = 1', "comment: not a text of at most 1024 bytes"),
    ],
)
def test_what_is_wrong_with_a_rule(keys: str, said: str) -> None:
    assert error(keys).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]", "not TOML: "),
        ("uid = " + "9" * 5000, "not TOML: "),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("rule = 1", "'rule' is not a list of tables: write [[rule]] above each rule"),
        ("[rule]\nallow = 'own'", "'rule' is not a list of tables"),
        ("rule = [1]", "'rule' is not a list of tables"),
        ("[rules]\n", "unknown key 'rules': a policy has [[rule]] tables and [redact]"),
        ("'a\\u001bb' = 1".replace("'", '"'), "unknown key 'a\\x1bb'"),
        ("redact = 1", "not a table: write [redact] and below it topics"),
        ("[redact]\ntopics = 'home.%u'", "'home.%u' has a placeholder, but redaction is the same for everybody: use *"),
    ],
)
def test_what_is_wrong_with_a_file(text: str, said: str) -> None:
    (line,) = read(text).errors
    assert FILE in line
    assert said in line
    assert line.isprintable()


def test_names_that_the_system_does_not_know_are_warnings() -> None:
    parsed = read('[[rule]]\nallow = "own"\nuser = ["alice", "gone"]\ngroup = "lost"\n')
    assert parsed.errors == ()
    assert parsed.warnings == (
        f"rule 1 of {FILE}, line 1, user: the system knows no user 'gone': that name fits nobody until a reload",
        f"rule 1 of {FILE}, line 1, group: the system knows no group 'lost': that name fits nobody until a reload",
    )


def test_redacted_topics() -> None:
    parsed = read('[redact]\ntopics = ["secret.>", "100%%"]')
    assert parsed == ParsedFile(redact=("secret.>", "100%"))
    assert read("[redact]\n") == ParsedFile()


# --- limits ---


@pytest.mark.parametrize(("over", "said"), [(-1, None), (0, None), (1, "1048577 bytes: at most 1048576 are allowed; split it")])
def test_the_size_of_a_file(over: int, said: str | None) -> None:
    parsed = read("#" * ((1 << 20) + over))
    assert [said in line for line in parsed.errors] == ([True] if said else [])


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_values_of_a_list(over: int, fits: bool) -> None:
    text = f'allow = "own"\nuid = [{", ".join(map(str, range(1000 + over)))}]'
    if fits:
        assert len(rule(text).who.uids or ()) == 1000 + over
    else:
        assert error(text) == "uid: 1001 values: at most 1000 are allowed; use patterns, or several rules"
    redacted = read(f"[redact]\ntopics = {[f't{number}' for number in range(1000 + over)]}")
    assert (redacted.errors == ()) == fits


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_bytes_of_a_text(over: int, fits: bool) -> None:
    for key, text in (("user", "x" * (1024 + over)), ("comment", "x" * (1024 + over)), ("identity", "ä" * 511 + "x" * (2 + over))):
        parsed = read(f'[[rule]]\nallow = "own"\n{key} = "{text}"')
        assert (parsed.errors == ()) == fits, key


@pytest.mark.parametrize(("number", "fits"), [(4294967293, True), (4294967294, True), (4294967295, False), (0, True), (-1, False)])
def test_numbers_of_users(number: int, fits: bool) -> None:
    assert (read(f'[[rule]]\nallow = "own"\nuid = {number}\ngid = {number}').errors == ()) == fits


@pytest.mark.parametrize(("size", "fits"), [(254, True), (255, True), (256, False)])
def test_bytes_of_a_pattern(size: int, fits: bool) -> None:
    for key, action in (("names", "own"), ("topics", "publish")):
        assert (read(f'[[rule]]\nallow = "{action}"\n{key} = "{"x" * size}"').errors == ()) == fits


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_rules_of_a_policy(over: int, fits: bool) -> None:
    one, many = ParsedFile((Rule(True),)), ParsedFile((Rule(False),) * (4_999 + over), ("a",), warnings=("hm",))
    whole = joined([one, many, ParsedFile(errors=("bad",))])
    assert len(whole.rules) == 5_000 + over
    assert whole.rules[0] == Rule(True)
    assert (whole.redact, whole.warnings) == (("a",), ("hm",))
    too_many = "5001 rules in all files: at most 5000 are allowed; one rule may list many names or topics"
    assert whole.errors == (("bad",) if fits else ("bad", too_many))


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_patterns_of_a_policy(over: int, fits: bool) -> None:
    methods = Rule(True, names=("a",) * 100, methods=("m",) * 100)
    topics = Rule(True, topics=("a",) * (9_998 + over))  # and one for the names that it does not limit
    whole = joined([ParsedFile((methods,)), ParsedFile((topics, Rule(False)))])
    assert (whole.errors == ()) == fits
    assert fits or "20001 names (for each method) and topics" in whole.errors[0]
