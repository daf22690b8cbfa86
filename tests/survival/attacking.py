"""What the attacks have in common: their talk with the test, and raw connections that go on until the test has seen enough."""

from __future__ import annotations

import itertools
import json
import select
import sys
from collections.abc import Iterator
from typing import Any

from ipcbus.protocol.messages import Kind, encode_with_payload, pack
from tests.wire import Wire

MIB = 1 << 20
CREDIT = 64 * MIB


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def over() -> bool:
    """Whether the test has seen enough."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def until_over() -> Iterator[int]:
    """1, 2, 3 … after saying that the attack is under way; pauses where it has nothing to do are the attack's own."""
    say("attacking")
    for number in itertools.count(1):
        if over():
            return
        yield number


def hello(address: str, program: str = "attacker") -> Wire:
    wire = Wire(address)
    wire.hello(program)
    wire.sock.settimeout(1.0)
    return wire


def send(wire: Wire, data: bytes) -> bool:
    """Write all of *data*, as slowly as the bus reads it; False when the connection or the attack is over."""
    view = memoryview(data)
    while view:
        try:
            view = view[wire.sock.send(view) :]
        except TimeoutError:
            if over():
                return False
        except OSError:
            return False
    return True


def requests(wire: Wire, *calls: tuple[str, dict[str, Any]]) -> bytes:
    """REQUESTs to the bus in one piece."""
    return b"".join(
        encode_with_payload(pack(arguments), Kind.REQUEST, wire.peer, f"bus/{method}", number, 60_000, None)
        for number, (method, arguments) in enumerate(calls, 1)
    )


def answers(wire: Wire, count: int) -> bool:
    """Read *count* answers; False when the connection or the attack is over."""
    while count:
        try:
            frame = wire.receive()
        except TimeoutError:
            if over():
                return False
            continue
        except OSError:
            return False
        if frame is None:
            return False
        count -= frame.kind in (Kind.REPLY, Kind.ERROR)
    return True


def subscribe_all(wire: Wire, patterns: list[str], first: int = 1, credit: int = CREDIT) -> None:
    """A lane for each pattern, in a few writes."""
    wire.sock.settimeout(30)
    for start in range(0, len(patterns), 500):
        some = patterns[start : start + 500]
        calls = [("subscribe", {"pattern": pattern, "lane": first + start + at, "credit": credit}) for at, pattern in enumerate(some)]
        wire.send(requests(wire, *calls))
        assert answers(wire, len(some)), "a subscription failed"
    wire.sock.settimeout(1.0)


def publications(wire: Wire, topics: list[str], payload: bytes, size: int) -> bytes:
    """About *size* bytes of PUBLISH, the topics in turn."""
    cycle = b"".join(encode_with_payload(payload, Kind.PUBLISH, wire.peer, topic, 1) for topic in topics)
    return cycle * max(1, size // len(cycle))
