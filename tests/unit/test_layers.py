"""Imports point one way, and what decides does no I/O (DESIGN.md, layers): read from the syntax trees, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Where each import package lies.
PACKAGES = {"ipcbus": ROOT / "ipcbus", "ipcbus_client": ROOT / "clients" / "python" / "ipcbus_client"}

#: Layer: the layers that it may import, besides itself. The longest prefix of a module's name says its layer.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "ipcbus": frozenset(),
    "ipcbus.protocol": frozenset({"ipcbus"}),
    "ipcbus.policy": frozenset({"ipcbus", "ipcbus.protocol"}),
    "ipcbus.broker": frozenset({"ipcbus", "ipcbus.protocol", "ipcbus.policy"}),
    "ipcbus.daemon": frozenset({"ipcbus", "ipcbus.protocol", "ipcbus.policy", "ipcbus.broker"}),
    "ipcbus_client": frozenset({"ipcbus", "ipcbus.protocol"}),
    "ipcbus_client.testing": frozenset({"ipcbus", "ipcbus.protocol", "ipcbus.policy", "ipcbus.broker", "ipcbus_client"}),
    "ipcbus.cli": frozenset({"ipcbus", "ipcbus.protocol", "ipcbus.policy", "ipcbus.daemon", "ipcbus_client"}),
    "ipcbus.__main__": frozenset({"ipcbus.cli"}),
}

#: All of these packages, and this module with everything of its own package that it imports, do no I/O.
PURE_PACKAGES = ("ipcbus.protocol", "ipcbus.policy", "ipcbus.broker")
PURE_CORE = "ipcbus_client._session"

#: What would bring sockets, clocks, threads, randomness or the operating system in.
IMPURE = frozenset({
    "_socket", "_thread", "asyncio", "concurrent", "contextvars", "datetime", "fcntl", "glob", "importlib", "io",
    "logging.config", "logging.handlers", "mmap", "multiprocessing", "os", "pathlib", "platformdirs", "queue", "random",
    "resource", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess",
    "sys", "syslog", "tempfile", "threading", "time", "uuid",
})  # fmt: skip
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})


@cache
def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package, directory in PACKAGES.items():
        for path in sorted(directory.rglob("*.py")):
            parts = (package, *path.relative_to(directory).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(), str(modules()[module]))


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """What *module* imports anywhere in it, also where only a type checker looks: dotted name and line."""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                found.append((whole if whole in modules() or whole in IMPURE else origin, node.lineno))
    return tuple(found)


def layer(module: str) -> str:
    """The layer of a module of ours."""
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def pure_modules() -> list[str]:
    """The modules of the pure packages, and the session with what it is made of."""
    pure = {module for module in modules() if any(f"{module}.".startswith(f"{package}.") for package in PURE_PACKAGES)}
    waiting = [PURE_CORE] if PURE_CORE in modules() else []
    while waiting:
        module = waiting.pop()
        if module not in pure:
            pure.add(module)
            waiting += [name for name, _ in imports(module) if name in modules() and name != "ipcbus_client"]
    return sorted(pure)


def violations_of_direction(module: str) -> Iterator[str]:
    own = layer(module)
    for imported, line in imports(module):
        if is_ours(imported) and layer(imported) != own and layer(imported) not in MAY_IMPORT[own]:
            allowed = ", ".join(sorted(MAY_IMPORT[own])) or "nothing of ours"
            yield f"{modules()[module]}:{line}: {own} may import {allowed}, not {imported}; move the thing down or pass a callable"


def violations_of_purity(module: str) -> Iterator[str]:
    where = modules()[module]
    for imported, line in imports(module):
        if any(f"{imported}.".startswith(f"{name}.") for name in IMPURE):
            yield f"{where}:{line}: {module} does no I/O and must not import {imported}; pass in time, ids, randomness, callables"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield f"{where}:{node.lineno}: {module} does no I/O and must not call {node.func.id}()"


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    assert not [*violations_of_direction(module)]


@pytest.mark.parametrize("module", pure_modules())
def test_what_decides_does_no_io(module: str) -> None:
    assert not [*violations_of_purity(module)]


def test_the_layers_are_there() -> None:
    assert {"ipcbus.protocol", "ipcbus.broker", "ipcbus.daemon", "ipcbus.cli", "ipcbus_client"} <= {layer(module) for module in modules()}
    assert PURE_CORE in pure_modules()


def test_the_test_sees_what_it_should(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import time\nfrom os import path\nfrom typing import TYPE_CHECKING\n"
        "from concurrent.futures import Future\nfrom logging import handlers\n"
        "from ..daemon import loop\nimport ipcbus.cli.main\nfrom ipcbus import broker\nfrom .topics import check_name\n"
        "if TYPE_CHECKING:\n    from ..broker.broker import Broker\ndef late():\n    import socket\n    open('x')\n"
    )
    monkeypatch.setitem(modules(), "ipcbus.protocol.bad", bad)
    directions = [*violations_of_direction("ipcbus.protocol.bad")]
    assert [text.split(":")[1] for text in directions] == ["6", "7", "8", "11"]
    assert sorted(int(text.split(":")[1]) for text in violations_of_purity("ipcbus.protocol.bad")) == [1, 2, 4, 5, 13, 14]
