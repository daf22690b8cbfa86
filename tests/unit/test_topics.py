"""Topics, patterns, names, methods and addresses (section 4)."""

from __future__ import annotations

import random

import pytest

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.topics import (
    check_group,
    check_method,
    check_name,
    check_topic,
    is_literal,
    is_name,
    matcher,
    matches,
    parse_peer,
    peer_address,
    split_method,
    split_pattern,
)

TOO_DEEP = ".".join("a" * 33)


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "a.b",
        "a*",
        "*a",
        "**",
        "a>.b",
        ">>",
        "a.$b",
        "$bus.x",
        "küche.温度",
        "a\u00a0b",
        "!~",
        "t" * 255,
        "ä" * 127,
        ".".join("a" * 32),
    ],
)
def test_legal_topics(topic: str) -> None:
    check_topic(topic)
    assert is_literal(split_pattern(topic))


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "0 bytes"),
        ("t" * 256, "256 bytes"),
        ("ä" * 128, "256 bytes"),
        (TOO_DEEP, "33 tokens"),
        (".", "empty token"),
        ("a.", "empty token"),
        (".a", "empty token"),
        ("a..b", "empty token"),
        ("a b", "space or control"),
        ("a\n", "space or control"),
        ("\0", "space or control"),
        ("a\x1f", "space or control"),
        ("a\x7f", "space or control"),
        ("a\x80", "space or control"),
        ("a\x9f", "space or control"),
        ("\ud800", "not valid Unicode"),
        ("*", "wildcard"),
        ("a.*", "wildcard"),
        (">", "wildcard"),
        ("a.>", "wildcard"),
    ],
)
def test_illegal_topics(topic: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason) as raised:
        check_topic(topic)
    assert raised.value.code is Code.BAD_TOPIC
    assert not raised.value.code.fatal


@pytest.mark.parametrize(
    ("pattern", "tokens", "literal"),
    [
        ("a.b", ["a", "b"], True),
        ("*", ["*"], False),
        (">", [">"], False),
        ("a.*.>", ["a", "*", ">"], False),
        ("*.a", ["*", "a"], False),
        ("a*.>b", ["a*", ">b"], True),
    ],
)
def test_legal_patterns(pattern: str, tokens: list[str], literal: bool) -> None:
    assert split_pattern(pattern) == tokens
    assert is_literal(tokens) is literal


@pytest.mark.parametrize("pattern", ["", ">.a", "a.>.b", ">.>", "a..>", "a *", "p" * 256, TOO_DEEP])
def test_illegal_patterns(pattern: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        split_pattern(pattern)
    assert raised.value.code is Code.BAD_TOPIC


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a", ["a"], ["b", "A", "a.b"]),
        ("*", ["a", "b"], ["a.b", "$s"]),
        (">", ["a", "a.b", "a.b.c"], ["$s", "$s.a"]),
        ("a.*", ["a.b"], ["a", "a.b.c", "b.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        ("*.b", ["a.b"], ["b", "a.b.c", "$s.b"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b", "a.b.c.d"]),
        ("a.b", ["a.b"], ["a", "a.b.c"]),
        ("*.>", ["a.b", "a.b.c"], ["a", "$s.a"]),
        ("$s.*", ["$s.a"], ["$s", "$t.a"]),
        ("$s.>", ["$s.a", "$s.a.b"], ["$s"]),
        ("a*", ["a*"], ["ab", "a"]),
    ],
)
def test_matching(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(map(matcher(pattern), yes))
    assert not any(map(matcher(pattern), no))
    assert [topic for topic in yes + no if matches(pattern, topic)] == yes


@pytest.mark.parametrize("name", ["n", "0", "_", "-", "camera.front", "business", "my.bus", "n" * 255, ".".join("n" * 32)])
def test_legal_names(name: str) -> None:
    check_name(name)
    assert is_name(name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", Code.BAD_NAME),
        ("a b", Code.BAD_NAME),
        ("a..b", Code.BAD_NAME),
        (".a", Code.BAD_NAME),
        ("a.", Code.BAD_NAME),
        ("a\n", Code.BAD_NAME),
        ("küche", Code.BAD_NAME),
        ("a/b", Code.BAD_NAME),
        (":1", Code.BAD_NAME),
        ("*", Code.BAD_NAME),
        ("n" * 256, Code.BAD_NAME),
        (".".join("n" * 33), Code.BAD_NAME),
        ("bus", Code.RESERVED),
        ("bus.x", Code.RESERVED),
    ],
)
def test_illegal_names(name: str, code: Code) -> None:
    with pytest.raises(ProtocolError) as raised:
        check_name(name)
    assert raised.value.code is code
    assert len(raised.value.text) < 1024, "it must fit an ERROR (E-1)"


@pytest.mark.parametrize("method", ["m", "_m", "get.all-of.it2", "M", "m" * 128])
def test_legal_methods(method: str) -> None:
    check_method(method)


@pytest.mark.parametrize("method", ["", "1m", ".m", "-m", "a b", "a/b", "m\n", "größe", "*", "m" * 129, "m" * 5000])
def test_illegal_methods(method: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        check_method(method)
    assert raised.value.code is Code.BAD_NAME
    assert len(raised.value.text) < 1024


@pytest.mark.parametrize("group", ["g", "workers.a-1", "bus", "g" * 128])
def test_legal_groups(group: str) -> None:
    check_group(group)


@pytest.mark.parametrize("group", ["", "a b", "a..b", "g" * 129])
def test_illegal_groups(group: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        check_group(group)
    assert raised.value.code is Code.BAD_NAME


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (":1", 1),
        (":0", 0),
        (":42", 42),
        (":9007199254740991", 2**53 - 1),
        (":9007199254740992", None),
        (":99999999999999999", None),
        (":01", None),
        (":", None),
        ("42", None),
        (":-1", None),
        (":+1", None),
        (":1 ", None),
        (":1\n", None),
        (":x", None),
        (":١", None),
        ("", None),
    ],
)
def test_peer_addresses(address: str, peer: int | None) -> None:
    assert parse_peer(address) == peer
    if peer is not None:
        assert peer_address(peer) == address


def test_a_request_goes_to_a_name_and_a_method() -> None:
    assert split_method("n.x/get.all") == ("n.x", "get.all")
    assert split_method(":42/m") == (":42", "m")


@pytest.mark.parametrize("to", ["n", "", "n/", "n/1m", "n/a/b"])
def test_requests_that_go_nowhere(to: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        split_method(to)
    assert raised.value.code is Code.BAD_NAME


def test_the_compiled_matcher_agrees_with_the_reference() -> None:
    rng = random.Random(4)
    words = ["a", "b", "$bus", "*x", "x>", "a+b", "(", "\\", "[^.]", "ä", "$"]
    for _ in range(3000):
        pattern = ".".join(rng.choice([*words, "*", "*"]) for _ in range(rng.randint(1, 4)))
        if rng.random() < 0.3:
            pattern = f"{pattern}.>" if rng.random() < 0.8 else ">"
        split_pattern(pattern)
        topic = ".".join(rng.choice(words) for _ in range(rng.randint(1, 5)))
        assert bool(matcher(pattern)(topic)) == matches(pattern, topic), (pattern, topic)
