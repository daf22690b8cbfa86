"""Type hints as text, and what to say of a value that is not what its hint says. For _convert.py, and for what introspection shows."""

from __future__ import annotations

import types
import typing
from typing import Any

from ._packing import at, step

UNIONS = (typing.Union, types.UnionType)
WRAPPERS = (typing.Final, typing.ClassVar, typing.Required, typing.NotRequired, getattr(typing, "ReadOnly", typing.Final))


class MismatchError(ValueError):
    """A value is not what its hint says. ``path`` leads to it, from the innermost key outwards."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.path: list[Any] = []

    def describe(self, root: str) -> str:
        """What is wrong, and where below *root*."""
        path = root
        for key in reversed(self.path):
            path = step(path, key)
        return at(path, self.text)


def text_of(hint: Any) -> str:
    """*hint* as a person would write it."""
    if hint is None or hint is type(None):
        return "None"
    if hint is Ellipsis:
        return "..."
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin in WRAPPERS:
        return text_of(arguments[0])
    if origin in UNIONS:
        return " | ".join(map(text_of, arguments))
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin is not None and arguments:
        return f"{text_of(origin)}[{', '.join(map(text_of, arguments))}]"
    if isinstance(hint, type):
        return hint.__qualname__.rpartition(".<locals>.")[2]
    return repr(hint) if isinstance(hint, str) else str(hint).removeprefix("typing.")


def expected(what: str, value: Any) -> MismatchError:
    """*value* came where *what* was expected."""
    shown = f"{type(value).__name__} {value!r:.60}" if value is not None else "None"
    return MismatchError(f"expected {what}, got {shown}")
