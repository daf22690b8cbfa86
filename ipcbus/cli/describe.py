"""``ipcbus describe`` and ``ipcbus complete``: what introspection says, for a person and for a shell."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .commands import COMMANDS
from .connection import open_bus
from .failures import Exit, usage
from .parsing import arguments_of, parse_arguments
from .signatures import no_such_method, no_such_name, signature_of
from .text import BOLD, DIM, paint, safe, wants_colour
from .values import render

if TYPE_CHECKING:
    import ipcbus_client


def describe(arguments: argparse.Namespace) -> int:
    """Print the methods of a name, or one of them."""
    name, slash, method = arguments.name.partition("/")
    if name.startswith(":"):
        raise usage(safe(f"{name} is a peer, of whom only names are described; `ipcbus peers` lists those it has"))
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

    bus.proxy(name)  # raises BadName
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


#: What `ipcbus complete --bash` prints. Bash takes a word apart at its = and wants what comes after the last one.
BASH = r"""_ipcbus() {
    local words word
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}x"
    words[-1]=${words[-1]%x}
    word=${words[-1]}
    mapfile -t COMPREPLY < <(ipcbus complete -- "${words[@]:1}" 2> /dev/null)
    [[ $COMP_WORDBREAKS != *=* ]] || COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *[/=] ]] || compopt -o nospace
}
complete -F _ipcbus ipcbus"""


def complete(arguments: argparse.Namespace) -> int:
    """Print what the last of the words may become, a candidate on each line; nothing where nobody knows. It never complains, and starts
    no bus: a person has only pressed a key.
    """
    if arguments.bash:
        print(BASH)
        return Exit.OK
    *before, word = arguments.words or [""]
    try:
        if not before:
            found = {command.name for command in COMMANDS}
        elif word.startswith("-"):
            found = _flags(before[0])
        elif before[0] in ("call", "describe"):
            with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
                typed = parse_arguments([*before, word])
            for name in ("address", "bus", "secret_file", "identity"):
                setattr(typed, name, getattr(typed, name) or getattr(arguments, name))
            with open_bus(typed, program="ipcbus complete", wait_s=arguments.timeout, autostart=False) as bus:
                found = set(candidates(bus, typed))
        else:
            found = set()
    except (Exception, SystemExit):  # noqa: BLE001  # the shell would show it in the middle of what is being typed
        return Exit.OK
    for one in sorted(one for one in found if one.startswith(word)):
        print(safe(one))
    return Exit.OK


def _flags(name: str) -> set[str]:
    """The options of a command."""
    command = next(one for one in COMMANDS if one.name == name)
    return {flag for argument in arguments_of(command) for flag in argument.flags if flag.startswith("--")}


def candidates(bus: ipcbus_client.Bus, typed: argparse.Namespace) -> Iterator[str]:
    """What the last word may become of what was *typed* after `call` or `describe`."""
    is_call = typed.chosen.name == "call"
    if is_call and typed.values:
        name, _, method = typed.to.partition("/")
        given = {one.partition("=")[0] for one in typed.values[:-1] if "=" in one}
        parameters = methods_of(bus, name, typed.to).get(method, {}).get("arguments", {})
        for parameter, said in parameters.items():
            kind = said.get("type", "") if isinstance(said, dict) else ""
            if parameter not in given and not kind.startswith("*"):
                yield from _values(parameter, kind)
        return
    word = typed.to if is_call else typed.name
    name, slash, _ = word.partition("/")
    if slash:
        yield from (f"{name}/{one}" for one in methods_of(bus, name, word) if one != "*")
    else:
        yield from (f"{one}{'/' if is_call else ''}" for one in ("bus", *(item["name"] for item in bus.names())))


def _values(parameter: str, kind: str) -> Iterator[str]:
    if "bool" in kind.split(" | "):
        yield from (f"{parameter}=true", f"{parameter}=false")
    else:
        yield f"{parameter}="
