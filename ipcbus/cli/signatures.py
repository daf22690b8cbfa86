"""What introspection says of a method, against what a person typed: words become values, and a wrong word is told with the right one.

Owns how `ipcbus call` reads its words. Knows nothing about connections. A service is the judge of its arguments; what is checked here is
what a typing error looks like, before anything is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .failures import CommandError, Exit, usage
from .text import safe
from .values import parse

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
#: Types whose values are written as they are, without quotes.
_TEXTS = frozenset({"str", "date", "time", "datetime", "Decimal", "UUID", "Path"})
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "None": (type(None),), "bool": (bool,), "int": (int,), "float": (float, int), "str": (str,), "list": (list,), "dict": (dict,),
    "bytes": (),
}  # fmt: skip

About = Mapping[str, Any]


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with what of *known* is like *word*, or nothing."""
    import difflib  # here: only who mistypes pays for it

    near = difflib.get_close_matches(word, [*known], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def no_such_name(to: str, names: Iterable[str]) -> CommandError:
    """Nobody owns the name in *to*."""
    near = suggestion(to.partition("/")[0], names)
    return CommandError(Exit.REFUSED, safe(f"nobody owns the name of {to}{near or '; `ipcbus names` lists who is there'}"))


def no_such_method(to: str, methods: Sequence[str]) -> CommandError:
    """The name in *to* has no such method."""
    name, _, method = to.partition("/")
    has = f"{name} has {', '.join(sorted(methods)[:20]) or 'no methods'}{', …' if len(methods) > 20 else ''}"
    return CommandError(Exit.REFUSED, safe(f"{to} is not served{suggestion(method, methods) or ':'} {has}"))


def signature_of(method: str, about: About) -> str:
    """The signature that a service gives of a method, or one made of what else it says."""
    signature = about.get("signature")
    if isinstance(signature, str):
        return signature
    arguments = about.get("arguments")
    return f"{method}({', '.join(map(str, arguments)) if isinstance(arguments, Mapping) else '…' if not about else ''})"


def value_of(words: Sequence[str], to: str, about: About) -> Any:
    """The payload that *words* mean, for a method of which introspection says *about*: nothing, one JSON value, or several and KEY=VALUE,
    which are arguments. Raises CommandError.
    """
    keywords = {}
    values = []
    for word in words:
        found = _KEYWORD.fullmatch(word)
        if found is None:
            values.append(word)
        elif found[1] in keywords:
            raise usage(f"{found[1]} is given twice")
        else:
            keywords[found[1]] = found[2]
    parameters = _parameters(about)
    types = [_type(one) for one in (parameters or {}).values() if not _type(one).startswith("**")]
    if types and types[-1].startswith("*"):
        types += types[-1:] * len(values)
    types += [""] * len(values)
    if len(values) == 1 and not keywords:
        value = _arguments_map(values[0], parameters or {}) or _typed(values[0], types[0], "VALUE")
    else:
        given = [_typed(word, types[at], f"VALUE {at + 1}") for at, word in enumerate(values)]
        named = {name: _typed(word, _type((parameters or {}).get(name)), name, by_name=True) for name, word in keywords.items()}
        value = {"*": given, **named} if given and named else given or named or None
    if parameters is not None:
        _check(value, to, about, parameters)
    return value


def _parameters(about: About) -> dict[str, Mapping[str, Any]] | None:
    """The parameters as a service of ours tells them; None where nobody tells them so (the bus itself does in words)."""
    arguments = about.get("arguments")
    if not isinstance(arguments, Mapping) or not all(isinstance(one, Mapping) for one in arguments.values()):
        return None
    return {str(name): one for name, one in arguments.items()}


def _type(parameter: Mapping[str, Any] | None) -> str:
    text = parameter.get("type", "") if parameter else ""
    return text if isinstance(text, str) else ""


def _arguments_map(word: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments by name where *word* is a JSON map of nothing but these: what it is also where the first of them is a text."""
    try:
        value = parse(word)
    except CommandError:
        return None
    return value if isinstance(value, dict) and value.keys() <= parameters.keys() else None


def _typed(word: str, type_text: str, where: str, *, by_name: bool = False) -> Any:
    """The value of a *word* where a parameter of this type is expected: of JSON, or the word itself where that is no mistake in JSON."""
    parts = type_text.lstrip("*").split(" | ")
    texts = any(map(_is_text, parts))
    try:
        value = parse(word, where)
    except CommandError:
        if texts or (not word.startswith(("{", "[", '"')) if type_text else by_name):
            return word  # a text without quotes; where there can be none, _check() says what is expected
        raise
    if texts and not isinstance(value, str) and not _fits(value, [part for part in parts if not _is_text(part)]):
        return word  # 21 is a text where only that fits
    return value


def _is_text(part: str) -> bool:
    """Whether it is a type, or one literal, whose values are written as they are."""
    return part in _TEXTS or part.startswith(("'", '"'))


def _fits(value: Any, parts: Sequence[str]) -> bool:
    """Whether a JSON value can be of one of these types; what is not known here may be anything."""
    for part in parts:
        types = _JSON_TYPES.get(part.partition("[")[0])
        if types is None or (isinstance(value, types) and (not isinstance(value, bool) or bool in types)):
            return True
    return False


def _check(value: Any, to: str, about: About, parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a CommandError where *value* is not what the parameters take."""
    method = to.partition("/")[2]
    right = f"{to.partition('/')[0]}/{signature_of(method, about)}"
    given, named = _arguments(value)
    takes_all = any(_type(one).startswith("**") for one in parameters.values())
    takes_more = any(_type(one).startswith("*") and not _type(one).startswith("**") for one in parameters.values())
    names = [name for name, one in parameters.items() if not _type(one).startswith("*")]
    for name in named:
        if name not in names and not takes_all:
            raise usage(safe(f"{to} has no parameter {name!r}{suggestion(name, names) or ':'} {right}"))
    if len(given) > len(names) and not takes_more:
        raise usage(safe(f"{to} takes at most {len(names)} arguments, not {len(given)}: {right}"))
    for name in names[len(given) :]:
        if parameters[name].get("required") is True and name not in named:
            raise usage(safe(f"{to} needs {name} ({_type(parameters[name])}): {right}"))
    for name, item in [*zip(names, given, strict=False), *named.items()]:
        expected = _type(parameters.get(name))
        parts = expected.split(" | ")
        if expected and not _fits(item, parts) and not (isinstance(item, str) and any(map(_is_text, parts))):
            if expected == "bytes":
                expected = "bytes, which --raw sends"
            raise usage(safe(f"{to}: {name}: expected {expected}, got {json.dumps(item, ensure_ascii=False)[:60]}: {right}"))


def _arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that a payload means (PROTOCOL.md, end of section 8)."""
    if value is None:
        return [], {}
    if isinstance(value, list):
        return value, {}
    if not isinstance(value, dict):
        return [value], {}
    given = value.get("*", [])
    return (given if isinstance(given, list) else []), {name: item for name, item in value.items() if name != "*"}
