"""The two shells have the same names, parameters and defaults; one blocks where the other awaits."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus_client import aio

#: what the language spells differently
DUNDERS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}
CLASSES = [
    "Bus", "BusState", "Inbox", "Responder", "StateChanges", "StateHandle", "Subscription", "ReplyStream", "Service", "Proxy",
    "ProxyMethod", "Watch", "Monitor",
]  # fmt: skip
#: what waits for nothing, in neither shell
PLAIN = {
    ("Bus", "holds"), ("Bus", "proxy"), ("Bus", "stats_local"), ("BusState", "changes"), ("BusState", "on_change"),
    ("ProxyMethod", "with_"), ("StateHandle", "close"),
}


def public(cls: type) -> list[str]:
    """The public names of a class in the order of its source, as the blocking shell spells them."""
    every = [name for base in cls.__mro__[:-1] for name in vars(base)]
    names = [name for name in every if not name.startswith("_") or name in {*DUNDERS, *DUNDERS.values()}]
    blocking = {value: key for key, value in DUNDERS.items()}
    return [blocking.get(name, name) for name in names]


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", CLASSES)
def test_same_names_in_the_same_order(name: str) -> None:
    assert public(getattr(ipcbus_client, name)) == public(getattr(aio, name))


@pytest.mark.parametrize("name", CLASSES)
def test_same_parameters_and_defaults(name: str) -> None:
    blocking, awaiting = getattr(ipcbus_client, name), getattr(aio, name)
    for attribute in public(blocking):
        one = inspect.getattr_static(blocking, attribute)
        other = inspect.getattr_static(awaiting, DUNDERS.get(attribute, attribute))
        assert type(one) is type(other), attribute
        if not isinstance(one, property):
            assert parameters(one) == parameters(other), attribute


def test_connect_and_everything_else() -> None:
    assert parameters(ipcbus_client.connect) == parameters(aio.connect)
    assert set(aio.__all__) == set(ipcbus_client.__all__)  # errors too: who imports aio needs nothing else
    assert ipcbus_client.Message is aio.Message
    assert aio.ConnectionLost is ipcbus_client.ConnectionLost


BLOCKING = {"_keeper", "_producing", "_waiter", "_wire", "_wire_socket", "_worker", "threading"}


def test_neither_wraps_the_other() -> None:
    """No module of the one shell imports one of the other; what both import is neither's."""
    for path in Path(aio.__file__).parent.glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in imports for name in (*(alias.name for alias in node.names), getattr(node, "module", None) or "")}
        awaits = names & {"asyncio", "aio"} or {name for name in names if name.startswith(("_aio", "_loop"))}
        blocks = names & BLOCKING or {name for name in names if name.startswith("_blocking")}
        if path.stem.startswith(("_aio", "_loop")) or path.stem == "aio":
            assert blocks <= ({"threading"} if path.stem == "_loop_keeper" else set()), path  # a thread of its own starts the bus
        else:
            assert not awaits, path


def test_what_returns_without_waiting_does_so_in_both() -> None:
    for cls in CLASSES:
        for name in public(getattr(aio, cls)):
            function = inspect.getattr_static(getattr(aio, cls), DUNDERS.get(name, name))
            if inspect.isfunction(function) and name != "__iter__":
                assert inspect.iscoroutinefunction(function) is ((cls, name) not in PLAIN), name


def test_the_blocking_shell_is_light_to_import() -> None:
    code = "import sys, ipcbus_client; print(sorted({'asyncio', 'logging', 'platformdirs', 'random', 'subprocess'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
