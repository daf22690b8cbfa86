"""Placeholders in the patterns of rules: ``home.%u.>`` is, for the user alice, ``home.alice.>``."""

from __future__ import annotations

import re

from .subjects import Subject

#: What may follow a percent sign.
MEANINGS = {
    "u": "the user's name",
    "U": "the uid",
    "g": "the name of the primary group",
    "G": "the primary gid",
    "n": "the system unit without its suffix",
    "i": "the TCP identity",
    "%": "a percent sign",
}

_PLACEHOLDER = re.compile("%(.?)", re.DOTALL)
#: What a value must not have to stand in a topic: it has to be part of one token, and never the bus's own or a wildcard.
_NO_TOPIC_TOKEN = re.compile("[\x00-\x20\x7f-\x9f.*>$]")
_NAME_TOKEN = re.compile("[A-Za-z0-9_-]+")


def unknown_placeholder(template: str) -> str | None:
    """The first placeholder of *template* that means nothing, or None."""
    return next((found[0] for found in _PLACEHOLDER.finditer(template) if found[1] not in MEANINGS), None)


def example(template: str) -> str:
    """*template* with a harmless value in each place: what has to be a legal pattern."""
    return _PLACEHOLDER.sub(lambda found: "%" if found[1] == "%" else "x", template)


def is_personal(template: str) -> bool:
    """Whether *template* is not the same for every subject."""
    return "%" in template.replace("%%", "")


def fill(token: str, subject: Subject, *, allow: bool, of_names: bool) -> str | None:
    """What one *token* of a pattern is for *subject*.

    Where a value is not known, or is not part of one legal token, nothing may be allowed by it (None) and everything that could be
    meant is denied: the whole token becomes ``*``.
    """
    if "%" not in token:
        return token
    values = [_value(found[1], subject, of_names=of_names) for found in _PLACEHOLDER.finditer(token)]
    if None in values:
        return None if allow else "*"
    pieces = _PLACEHOLDER.split(token)[::2]
    return "".join(piece + (value or "") for piece, value in zip(pieces, [*values, ""], strict=True))


def _value(letter: str, subject: Subject, *, of_names: bool) -> str | None:
    """What stands in the place of ``%letter``, or None where it is not known or would not be one token."""
    if letter == "%":
        return "%"
    value = {
        "u": subject.user,
        "U": "" if subject.uid is None else str(subject.uid),
        "g": subject.group,
        "G": "" if subject.gid is None else str(subject.gid),
        "n": subject.unit.rpartition(".")[0],
        "i": subject.identity,
    }[letter]
    legal = _NAME_TOKEN.fullmatch(value) is not None if of_names else value != "" and not _NO_TOPIC_TOKEN.search(value)
    return value if legal else None
