"""The judge of a chaos sees each kind of fault in journals, and none in good ones; and a seed is a plan."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.chaos.events import cast, plan
from tests.chaos.journal import Offers, parse
from tests.chaos.troupe import Program
from tests.chaos.verdict import wrong

GOOD = {
    "pub": ("publisher", ["ready", *(f"{word} t {n}" for n in range(1, 6) for word in ("offered", "routed")), "done"]),
    "all": ("subscriber", ["ready", *(f"came pub t {n} {n}" for n in range(1, 6)), "done"]),
    "some": ("subscriber", ["ready", "came pub t 1 1", "lost 2 too_slow", "came pub t 4 4", "came pub t 5 5", "done"]),
    "away": ("subscriber", ["ready", "came pub t 1 1", "gap 1", "came pub t 4 4", "came pub t 5 5", "done"]),
    "one": ("group", ["ready", "came pub t 1 1", "came pub t 3 3", "done"]),
    "two": ("group", ["ready", "came pub t 2 2", "came pub t 4 4", "came pub t 5 5", "done"]),
    "ask": ("requester", ["ready", "asked 1", "answered 1", "asked 2", "failed 2 ResponderDied", "done"]),
    "svc": ("responder", ["ready", "served ask 1", "done"]),
}


def judged(directory: Path, changes: dict[str, tuple[str, str]]) -> list[str]:
    """The verdict on GOOD, where in the journals of *changes* a text is replaced."""
    programs = []
    for name, (role, lines) in GOOD.items():
        journal, errors = directory / f"{name}.journal", directory / f"{name}.errors"
        text = "".join(f"{line}\n" for line in lines)
        if name in changes:
            before, after = changes[name]
            assert before in text
            text = text.replace(before, after)
        journal.write_text(text)
        errors.write_text("")
        options = {"role": "subscriber", "group": "g"} if role == "group" else {"role": role}
        programs.append(Program(name, name, options, 0, journal, errors, code=0))
    return wrong(programs)


def test_good_journals(tmp_path: Path) -> None:
    assert judged(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("name", "before", "after", "text"),
    [
        ("all", "came pub t 3 3\n", "", "without a word"),
        ("all", "came pub t 3 3\ncame pub t 4 4\n", "came pub t 4 4\ncame pub t 3 3\n", "came after"),
        ("all", "came pub t 3 3\n", "came pub t 3 3\n" * 2, "came after"),
        ("all", "came pub t 5 5\n", "", "nothing came up to 5"),
        ("all", "came pub t 5 5\n", "came pub t 5 5\ncame pub t 6 6\n", "nobody offered"),
        ("all", "came pub t 5 5\n", "came pub t 5 5\nbroken t 10\n", "broken"),
        ("some", "lost 2", "lost 1", "2 routed messages are missing at the end, and 1 were told"),
        ("some", "lost 2", "lost 9", "9 were told as lost, of 5"),
        ("some", "lost 2 too_slow\ncame pub t 4 4\n", "came pub t 4 4\nlost 2 too_slow\n", "without a word"),
        ("away", "gap 1\n", "", "without a word"),
        ("away", "came pub t 4 4\n", "came pub t 4 4\ncame pub t 2 2\n", "came after"),
        ("one", "came pub t 3 3\n", "came pub t 3 3\ncame pub t 4 4\n", "came to one and to two"),
        ("two", "came pub t 2 2\ncame pub t 4 4\n", "came pub t 4 4\ncame pub t 2 2\n", "came after"),
        ("ask", "answered 1\n", "", "never settled"),
        ("svc", "served ask 1\n", "", "answered by nobody"),
        ("svc", "served ask 1\n", "served ask 1\n" * 2, "served 2 times"),
        ("svc", "done\n", "", "did not come to its end"),
    ],
)
def test_each_fault_is_seen(tmp_path: Path, name: str, before: str, after: str, text: str) -> None:
    assert any(text in sentence for sentence in judged(tmp_path, {name: (before, after)}))


def test_another_order_is_seen(tmp_path: Path) -> None:
    """Of two publishers, where each one's own order is kept."""
    one = {"pub": ("offered t 5", "offered u 1\noffered t 5"), "all": ("came pub t 5", "came other u 1 1\ncame pub t 5")}
    assert judged(tmp_path, one) == []
    both = one | {"some": ("came pub t 5 5\n", "came pub t 5 5\ncame other u 1 1\n")}
    assert any("another order" in sentence for sentence in judged(tmp_path, both))


def test_a_seed_is_a_plan() -> None:
    assert plan(7, 20) == plan(7, 20) != plan(8, 20)
    assert cast(7) == cast(7)
    offers = Offers("me", Random(1))
    for offer in (offers.next(), offers.next(2), offers.next()):
        assert parse(offer.data) == offer
        assert parse(offer.data[:-1]) is None
    assert parse(b"") is None
