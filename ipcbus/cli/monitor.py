"""``ipcbus monitor``: what passes over the bus, a line each.

Owns what a frame looks like to a person. All that others wrote (names, topics, texts, what a program calls itself) is untrusted.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import TYPE_CHECKING, Any

from .connection import ANSWER_TIMEOUT_S, open_bus
from .failures import Exit
from .pubsub import Printer
from .text import safe
from .values import dump, plain, undecodable

if TYPE_CHECKING:
    import ipcbus_client


def monitor(arguments: argparse.Namespace) -> int:
    """Print what matches the PATTERNs until --count, --seconds, Ctrl-C, or nobody reads our output any more."""
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    with open_bus(arguments, program="ipcbus monitor", wait_s=ANSWER_TIMEOUT_S, reconnect=True) as bus:
        printer = Lines(arguments)
        for pattern in arguments.patterns or [">"]:
            frames = bus.monitor(pattern, kinds=arguments.kind, payloads=not arguments.no_payloads, notices=True)
            threading.Thread(target=printer.follow, args=(frames,), name=pattern, daemon=True).start()
        printer.wait(deadline)
    return Exit.TIMEOUT if printer.printed < (arguments.count or 0) else Exit.OK


class Lines(Printer):
    """Prints frames as `Printer` does messages."""

    def _print(self, item: Any) -> None:
        print(as_json(item) if self._arguments.json else as_line(item), flush=True)


def as_line(seen: ipcbus_client.Seen) -> str:
    """When, what, from whom, to whom, and what is in it."""
    parts = [f"{seen.at:12.6f}  {seen.kind:8} {_peer(seen.sender)} -> {seen.to}"]
    if seen.id:
        parts.append(f"#{seen.id}")
    if seen.request is not None:
        parts.append(f"of {seen.request}")
    if seen.receiver is not None:
        parts.append(f"to :{seen.receiver}")
    if seen.code is not None:
        parts.append(f"{seen.label}: {seen.text}" if seen.text else f"{seen.label}")
    if seen.headers:
        parts.append(dump(plain(seen.headers)))
    parts += _contents(seen)
    return safe("  ".join(parts))


def as_json(seen: ipcbus_client.Seen) -> str:
    """One JSON object of all that is known of it; what it does not have is left out."""
    who = seen.sender.credentials
    shown: dict[str, Any] = {"at_s": seen.at, "kind": seen.kind, "sender": int(seen.sender), "program": who.program if who else None}
    shown |= {"to": seen.to, "size": seen.size, "redacted": seen.redacted, "headers": plain(seen.headers)}
    for name in ("id", "request", "code", "text", "receiver", "receivers", "frames"):
        shown[name] = getattr(seen, name)
    if seen.payload is not None:
        shown |= {"data": undecodable(seen.payload) if seen.clipped else _value(seen), "clipped": seen.clipped}
    return dump({key: value for key, value in shown.items() if value is not None or key == "data"})


def _peer(sender: ipcbus_client.Sender) -> str:
    if not sender:
        return "bus"
    who = sender.credentials
    return f":{sender} ({who.program})" if who is not None and who.program else f":{sender}"


def _contents(seen: ipcbus_client.Seen) -> list[str]:
    """What is in it, in words where that is not to be seen; nothing for what has no payload."""
    if seen.redacted:
        return [f"({seen.size} bytes, redacted)"]
    if seen.payload is None:
        return [f"({seen.size} bytes)"] if seen.kind not in ("cancel", "error") or seen.size else []
    if seen.clipped:
        return [f"({seen.size} bytes, which begin {dump(plain(seen.payload[:_SHOWN_BYTES]))})"]
    return [dump(_value(seen))] if seen.kind != "cancel" else []


#: Of a payload that is too long to be decoded.
_SHOWN_BYTES = 32


def _value(seen: ipcbus_client.Seen) -> Any:
    """What a payload has, for `dump`."""
    try:
        return plain(seen.data)
    except (ValueError, RecursionError):
        return undecodable(seen.payload or b"")
