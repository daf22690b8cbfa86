"""``ipcbus names``, ``peers``, ``topics`` and ``stats``: what the bus says about itself, as tables or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .connection import ANSWER_TIMEOUT_S, open_bus
from .failures import Exit
from .reasons import explain_holding, summary
from .text import duration, safe, size, table, wants_colour
from .values import render

if TYPE_CHECKING:
    import ipcbus_client

Row = Mapping[str, Any]


def names(arguments: argparse.Namespace) -> int:
    """List the names."""
    heads = ("name", "mode", "owners", "waiting", "methods")
    return _list(arguments, lambda bus: bus.names(), heads, lambda item: [item.get(head) for head in heads])


def peers(arguments: argparse.Namespace) -> int:
    """List the peers. The one that asks is among them."""
    heads = ("peer", "program", "pid", "uid", "unit", "names", "lanes", "in", "out", "queued", "lost", "refused", "held", "connected")
    lost = ("dropped", "replaced", "expired_messages", "evicted", "over_quota")

    def row(item: Row) -> Sequence[object]:
        return [
            *(item.get(key) for key in ("peer", "program", "pid", "uid")),
            _unit(item),
            *(item.get(key) for key in ("names", "lanes")),
            item.get("in_messages"),
            item.get("out_messages"),
            size(item.get("queued_bytes", 0)),
            sum(item.get(key, 0) for key in lost),
            item.get("refused"),
            bool(item.get("held")),
            duration(item.get("connected_s", 0)),
        ]

    return _list(arguments, lambda bus: bus.peers(), heads, row)


def _unit(item: Row) -> str | None:
    """What systemd runs it as, the user's own manager named before its unit; who came by TCP has the name of its secret instead."""
    if item.get("identity"):
        return f"tcp as {item['identity']}"
    return "/".join(filter(None, (item.get("unit"), item.get("user_unit")))) or None


def topics(arguments: argparse.Namespace) -> int:
    """List the topics, the busiest first."""

    def row(item: Row) -> Sequence[object]:
        return [
            item.get("topic"),
            item.get("messages"),
            size(item.get("bytes", 0)),
            item.get("lanes"),
            bool(item.get("retained")),
            *(item.get(key) for key in ("no_subscriber", "lost", "expired")),
        ]

    def busiest_first(bus: ipcbus_client.Bus) -> list[Any]:
        return sorted(bus.topics(), key=lambda item: (-item.get("messages", 0), item.get("topic", "")))

    return _list(arguments, busiest_first, ("topic", "messages", "size", "lanes", "retained", "unwanted", "lost", "expired"), row)


def quotas(arguments: argparse.Namespace) -> int:
    """List who uses how much of what."""
    items: list[Row] = []
    with open_bus(arguments, program="ipcbus quotas", wait_s=arguments.timeout) as bus:
        after = None
        while True:
            page = bus.request("bus/accounts", {"after": after}, timeout=arguments.timeout or ANSWER_TIMEOUT_S, idempotent=True)
            items += page["items"]
            after = page["next"]
            if after is None:
                break
    if arguments.json:
        print(render(items))
    else:
        _print(("user", "program", "resource", "used", "limit", "share", "of share"), quota_rows(items))
    return Exit.OK


def quota_rows(items: Iterable[Row]) -> Iterable[Sequence[object]]:
    """A row for each resource that somebody uses; programs with their user's name once, and the bus last."""
    of_bus = [item for item in items if item.get("level") == "bus"]
    for item in [*(item for item in items if item.get("level") != "bus"), *of_bus]:
        level = item.get("level")
        user = "(all)" if level == "bus" else item.get("uid")
        program = "(all)" if level != "program" else _program(item)
        for name, figures in item.get("resources", {}).items():
            used, limit = figures.get("used", 0), figures.get("limit", 0)
            share = figures.get("share", limit)
            if used:
                shown = [size(value) if name.endswith("bytes") else value for value in (used, limit, share)]
                yield [user, program, name, *shown, f"{used / share:.0%}" if share else "-"]


def _program(item: Row) -> str:
    names = ", ".join(filter(None, item.get("programs", ()))) or "-"
    if item.get("pid"):
        return f"{names} (pid {item['pid']})"
    return f"{names} (peer {item['peer']})" if item.get("peer") else names


def stats(arguments: argparse.Namespace) -> int:
    """Print the counters and gauges (B-4)."""
    with open_bus(arguments, program="ipcbus stats", wait_s=arguments.timeout) as bus:
        found = bus.stats()
    if arguments.json:
        print(render(found))
    else:
        _print(("counter", "value"), ([key, _gauge(key, value)] for key, value in found.items() if key != "holding"))
        for item in found.get("holding", ()):
            print(f"\n{safe(explain_holding(item).what)}")
        if "offered" in found:
            print(f"\n{summary(found)}")
    return Exit.OK


def _list(
    arguments: argparse.Namespace,
    ask: Callable[[ipcbus_client.Bus], Iterable[Row]],
    heads: Sequence[str],
    row: Callable[[Row], Sequence[object]],
) -> int:
    with open_bus(arguments, program=f"ipcbus {arguments.chosen.name}", wait_s=arguments.timeout) as bus:
        items = list(ask(bus))
    if arguments.json:
        print(render(items))
    else:
        _print(heads, (row(item) for item in items))
    return Exit.OK


def _print(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for line in table(heads, rows, colour=wants_colour(sys.stdout)):
        print(line)


def _gauge(key: str, value: object) -> object:
    if isinstance(value, (int, float)) and key.endswith("_bytes"):
        return f"{value} ({size(value)})" if value >= 1024 else value
    return duration(value) if isinstance(value, (int, float)) and key.endswith("_s") else value
