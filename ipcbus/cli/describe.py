"""``ipcbus describe`` and the hidden ``ipcbus complete``: what introspection says, for a person and for a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .connection import open_bus
from .failures import Exit
from .signatures import no_such_method, no_such_name, signature_of
from .text import BOLD, DIM, paint, safe, wants_colour
from .values import render

if TYPE_CHECKING:
    import ipcbus_client


def describe(arguments: argparse.Namespace) -> int:
    """Print the methods of a name, or one of them."""
    name, slash, method = arguments.name.partition("/")
    with open_bus(arguments, program="ipcbus describe", wait_s=arguments.timeout) as bus:
        methods = methods_of(bus, name, arguments.name)
        owners = next((item for item in bus.names() if item.get("name") == name), {})
    if slash and method not in methods:
        raise no_such_method(arguments.name, [*methods])
    if slash:
        methods = {method: methods[method]}
    if arguments.json:
        print(render({"name": name, "methods": methods}))
        return Exit.OK
    colour = wants_colour(sys.stdout)
    if not slash:
        print(paint(safe(name), BOLD, colour) + _owners(owners))
    for line in _lines(methods, colour):
        print(line)
    return Exit.OK


def methods_of(bus: ipcbus_client.Bus, name: str, to: str) -> dict[str, Any]:
    """The methods of *name*, with what is said about each. Raises a CommandError with the names that are like it."""
    from ipcbus_client import NoSuchName

    try:
        found = bus.introspect(name).get("methods", {})
    except NoSuchName:
        raise no_such_name(to, [str(item.get("name")) for item in bus.names()]) from None
    return {str(method): about if isinstance(about, dict) else {} for method, about in found.items()}


def _owners(item: Mapping[str, Any]) -> str:
    owners = item.get("owners") or ()
    return f"  ({item.get('mode')}, owned by {', '.join(f':{owner}' for owner in owners)})" if owners else ""


def _lines(methods: Mapping[str, Any], colour: bool) -> Iterator[str]:
    if not methods:
        yield "  serves no methods"
    for method, about in sorted(methods.items()):
        yield ""
        streams = "   (streams)" if about.get("streams") is True else ""
        yield f"  {paint(safe(signature_of(method, about)), BOLD, colour)}{streams}"
        doc = about.get("doc")
        for line in doc.splitlines() if isinstance(doc, str) else ():
            yield f"      {safe(line)}".rstrip()
        arguments = about.get("arguments")
        if isinstance(arguments, dict) and "signature" not in about:
            for name, words in arguments.items():
                yield f"      {safe(str(name))}: {safe(str(words))}"
        if not about:
            yield f"      {paint('(nothing is said about it)', DIM, colour)}"


def complete(arguments: argparse.Namespace) -> int:
    """Print what the last of the words may become, a candidate on each line; nothing where nobody knows. It never complains."""
    try:
        with open_bus(arguments, program="ipcbus complete", wait_s=arguments.timeout) as bus:
            found = sorted(set(candidates(bus, arguments.words)))
    except Exception:  # noqa: BLE001  # the shell would show it in the middle of what is being typed
        return Exit.OK
    for word in found:
        print(safe(word))
    return Exit.OK


def candidates(bus: ipcbus_client.Bus, words: list[str]) -> Iterator[str]:
    """What the last of *words* may become; before it are the command, call or describe, and its words so far."""
    command, *rest = words
    if command not in ("call", "describe") or not rest:
        return
    *before, word = rest
    if before and command == "describe":
        return
    if before:
        name, _, method = before[0].partition("/")
        given = {one.partition("=")[0] for one in before[1:] if "=" in one}
        parameters = methods_of(bus, name, before[0]).get(method, {}).get("arguments", {})
        for parameter, said in parameters.items():
            kind = said.get("type", "") if isinstance(said, dict) else ""
            if parameter not in given and not kind.startswith("*"):
                yield from (one for one in _values(parameter, kind) if one.startswith(word))
        return
    name, slash, method = word.partition("/")
    if slash:
        yield from (f"{name}/{one}" for one in methods_of(bus, name, word) if one != "*" and one.startswith(method))
        return
    end = "/" if command == "call" else ""
    yield from (f"{one}{end}" for one in ("bus", *(item["name"] for item in bus.names())) if one.startswith(word))


def _values(parameter: str, kind: str) -> Iterator[str]:
    if "bool" in kind.split(" | "):
        yield from (f"{parameter}=true", f"{parameter}=false")
    else:
        yield f"{parameter}="
