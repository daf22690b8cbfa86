"""``ipcbus why``: what became of messages that did not arrive."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..protocol.errors import ProtocolError
from ..protocol.topics import is_literal, parse_peer, split_pattern
from .connection import open_bus
from .failures import Exit, usage
from .reasons import Reason, concerns, explain_holding, explain_loss, explain_peer, explain_topic, explain_unwanted, nearest, summary
from .text import safe
from .values import render

if TYPE_CHECKING:
    import ipcbus_client

#: How many receivers are looked at, or patterns compared with a topic that nobody subscribes to.
_COMPARED = 20_000
_OTHERS = "(all others)"  #: the item of `bus/topics` for what is not counted by name (B-3)


def why(arguments: argparse.Namespace) -> int:
    """Say what was lost of late, why, and what to do about it."""
    if arguments.what is not None and not arguments.what.startswith(":"):
        try:
            split_pattern(arguments.what.partition("/")[0])
        except ProtocolError as error:
            raise usage(error.text) from error
    with open_bus(arguments, program="ipcbus why", wait_s=arguments.timeout) as bus:
        found = _Findings(bus, arguments.what)
    if arguments.json:
        print(render(found.as_data()))
    else:
        for line in found.lines(arguments.count):
            print(safe(line))
    return Exit.OK


class _Findings:
    """What the bus says about losses, as far as it has to do with what was asked for."""

    def __init__(self, bus: ipcbus_client.Bus, what: str | None) -> None:
        self.what = what
        self.stats = bus.stats()
        self.losses = sorted(bus.losses(), key=lambda item: item["last_s"])
        self.topics = bus.topics()
        self.names = [item["name"] for item in bus.names()]
        self.holding: list[dict[str, Any]] = self.stats.get("holding", [])
        self.unwanted = [item for item in self.topics if item["no_subscriber"]]
        self.peers: list[dict[str, Any]] = []  #: those that were asked for: by id, by name, by what the program calls itself
        self.topic: dict[str, Any] | None = None  #: that was asked for, where it is counted by name
        self.others = next((item for item in self.topics if item["topic"] == _OTHERS), None)
        self.receivers: list[dict[str, Any]] = []  #: of that topic
        self.about_topic = False
        self.near: list[str] = []  #: what may have been meant instead
        if what is not None:
            self._narrow(bus, what)
        #: topics that reach somebody, or would: patterns, and topics that somebody wanted
        self.wanted: set[str] = set()
        if self.unwanted or (self.about_topic and not self.receivers):
            self.wanted = {item["pattern"] for item in _list(bus, "patterns")}
            self.wanted |= {item["topic"] for item in self.topics if item["messages"] > item["no_subscriber"]}

    def _narrow(self, bus: ipcbus_client.Bus, what: str) -> None:
        """Leave out what has nothing to do with *what*: a peer's address, a topic or pattern, a name or a program."""
        peer = parse_peer(what)
        owners = {owner for item in bus.names() if item["name"] == what for owner in item["owners"]}
        self.peers = [item for item in bus.peers() if item["peer"] == peer or item["peer"] in owners or item["program"] == what]
        ids = {item["peer"] for item in self.peers} | ({peer} if peer is not None else set())
        may_be = [item for item in self.losses if item["why"] == "unknown" and not concerns(item, what, ids)]
        self.losses = [item for item in self.losses if concerns(item, what, ids)]
        self.holding = [item for item in self.holding if concerns(item, what, ids)]
        self.unwanted = [item for item in self.unwanted if concerns({"topic": item["topic"]}, what, set())]
        if peer is not None or "/" in what or not is_literal(split_pattern(what)):
            return
        self.topic = next((item for item in self.topics if item["topic"] == what), None)
        self.receivers = _list(bus, "receivers", topic=what)
        self.about_topic = bool(self.topic or self.receivers or not (self.peers or self.losses))
        if self.topic is not None:  # some of these may have been on it
            self.losses = sorted([*self.losses, *may_be], key=lambda item: item["last_s"])
        if self.about_topic and self.topic is None:
            self.near = nearest(what, [*(item["topic"] for item in self.topics), *self.names])

    def reasons(self) -> list[Reason]:
        """All of it in words, the newest first."""
        reasons = [*map(explain_holding, self.holding), *(explain_loss(item, self.names) for item in self.losses)]
        reasons += [explain_unwanted(item, self.wanted) for item in self.unwanted]
        return sorted(reasons, key=lambda reason: reason.ago_s)

    def lines(self, most: int) -> list[str]:
        """For a person."""
        lines: list[str] = []
        if self.what is not None and self.about_topic:
            near = nearest(self.what, self.wanted)
            lines += [*explain_topic(self.what, self.topic, self.others, self.receivers, near, self.near), ""]
        if self.peers:
            lines += [*map(explain_peer, self.peers), ""]
        elif self.what is not None and self.what.startswith(":"):
            lines += [f"no peer {self.what} is connected", ""]
        reasons = self.reasons()
        for reason in reasons[:most]:
            lines += [*reason.lines(), ""]
        if len(reasons) > most:
            lines += [f"and {len(reasons) - most} more that are older: --count N shows them", ""]
        if not reasons:
            about = f" about {self.what!r}" if self.what is not None else ""
            lines += [f"nothing{about} is known to have been lost", ""]
        return [*lines, summary(self.stats)] if self.what is None else lines[:-1]

    def as_data(self) -> dict[str, Any]:
        """For a program."""
        return {
            "losses": self.losses,
            "unwanted": [{**item, "near": nearest(item["topic"], self.wanted)} for item in self.unwanted],
            "holding": self.holding,
            "topic": self.topic,
            "receivers": self.receivers,
            "peers": self.peers,
            "stats": self.stats,
        }


def _list(bus: ipcbus_client.Bus, method: str, **arguments: Any) -> list[dict[str, Any]]:
    """The items of a list of the bus (B-2), up to about _COMPARED."""
    items: list[dict[str, Any]] = []
    while len(items) < _COMPARED:
        page = bus.request(f"bus/{method}", arguments, idempotent=True)
        items += page["items"]
        arguments["after"] = page["next"]
        if page["next"] is None:
            break
    return items
