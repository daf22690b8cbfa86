"""The reference model of names (N-1): who owns what, who waits, who serves what. Written from the clause, not from the broker."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ipcbus.protocol.errors import Code, ProtocolError

Peer = TypeVar("Peer", bound=Hashable)
Notices = list[tuple[Peer, str, str]]  #: receiver, NOTICE name, the name it is about


class _Hold(Generic[Peer]):
    def __init__(self, peer: Peer, mode: str, allow_replace: bool) -> None:
        self.peer = peer
        self.mode = mode
        self.allow_replace = allow_replace
        self.methods: set[str] = set()


class NamesModel(Generic[Peer]):
    """For each name one line: of a shared name all own it, of another the first does."""

    def __init__(self, max_names: int, max_methods: int, admit: Callable[[Peer], None]) -> None:
        """*admit*: raises ``over_limit`` where the account of a peer has no room for another name."""
        self._admit = admit
        self._max_names = max_names
        self._max_methods = max_methods
        self._lines: dict[str, list[_Hold[Peer]]] = {}

    def owners(self, name: str) -> list[Peer]:
        line = self._lines.get(name, [])
        return [hold.peer for hold in (line if line and line[0].mode == "shared" else line[:1])]

    def serves(self, peer: Peer, method: str, name: str | None = None) -> bool:
        """Whether *peer* serves *method* under *name*, or under any name."""
        lines = self._lines.values() if name is None else [self._lines[name]]
        return any(hold.peer == peer and hold.methods & {method, "*"} for line in lines for hold in line)

    def call(self, method: str, peer: Peer, arguments: dict[str, Any]) -> tuple[dict[str, Any] | None, Notices[Peer]]:
        """The result of a request to the bus (None: not modelled) and the notices it causes; raises ProtocolError."""
        if method == "own":
            return self._own(peer, **arguments)
        if method == "release":
            self._hold(peer, arguments["name"])
            return {}, self._remove(peer, arguments["name"])
        if method in ("serve", "unserve"):
            methods = self._hold(peer, arguments["name"]).methods
            if method == "serve":
                self._check_methods(peer, **arguments)
            (methods.update if method == "serve" else methods.difference_update)(arguments["methods"])
            return {}, []
        return None, []

    def _check_methods(self, peer: Peer, name: str, methods: list[str]) -> None:
        """Of one peer, and under one name by those who own it."""
        line = self._lines[name]
        new = set(methods) - self._hold(peer, name).methods
        of_peer = sum(len(hold.methods) for line in self._lines.values() for hold in line if hold.peer == peer) + len(new)
        under_name = set[str]().union(new, *(hold.methods for hold in line if hold is line[0] or line[0].mode == "shared"))
        if of_peer > self._max_methods or len(under_name) > self._max_methods:
            raise ProtocolError(Code.OVER_LIMIT, "methods")

    def leave(self, peer: Peer) -> Notices[Peer]:
        """*peer* gives up everything, in the order in which it claimed it."""
        return [notice for name in self._held_by(peer) for notice in self._remove(peer, name)]

    def count(self, peer: Peer) -> int:
        """How many names it owns or waits for."""
        return len(self._held_by(peer))

    def _held_by(self, peer: Peer) -> list[str]:
        return [name for name, line in self._lines.items() if any(hold.peer == peer for hold in line)]

    def _hold(self, peer: Peer, name: str) -> _Hold[Peer]:
        for hold in self._lines.get(name, []):
            if hold.peer == peer:
                return hold
        raise ProtocolError(Code.NOT_OWNER, name)

    def _own(
        self, peer: Peer, name: str, mode: str = "exclusive", replace: bool = False, allow_replace: bool = False
    ) -> tuple[dict[str, Any], Notices[Peer]]:
        line = self._lines.get(name, [])
        notices: Notices[Peer] = []
        again = [hold for hold in line if hold.peer == peer]
        if again:
            if mode != again[0].mode and "shared" in (mode, again[0].mode):
                raise ProtocolError(Code.NAME_TAKEN, name)
            again[0].mode, again[0].allow_replace = mode, allow_replace
        elif len(self._held_by(peer)) >= self._max_names:
            raise ProtocolError(Code.OVER_LIMIT, name)
        elif line and not self._has_place(line[0], mode, replace):
            raise ProtocolError(Code.NAME_TAKEN, name)
        else:
            self._admit(peer)
            if not line or mode == "shared":
                line.append(_Hold(peer, mode, allow_replace))
            elif replace and line[0].allow_replace:
                notices.append((line[0].peer, "name_lost", name))
                line[0:1] = [_Hold(peer, mode, allow_replace), *([line[0]] if line[0].mode == "queue" else [])]
            else:
                line.append(_Hold(peer, mode, allow_replace))
        self._lines[name] = line
        place = 0 if line[0].mode == "shared" else [hold.peer for hold in line].index(peer)
        return {"owner": place == 0, "position": place}, notices

    @staticmethod
    def _has_place(first: _Hold[Peer], mode: str, replace: bool) -> bool:
        """Whether who claims in *mode* what *first* owns gets it or waits for it."""
        if "shared" in (mode, first.mode):
            return mode == first.mode
        return mode == "queue" or (replace and first.allow_replace)

    def _remove(self, peer: Peer, name: str) -> Notices[Peer]:
        line = self._lines[name]
        owned = line[0].peer == peer and line[0].mode != "shared"
        line[:] = [hold for hold in line if hold.peer != peer]
        if not line:
            del self._lines[name]
        elif owned:
            return [(line[0].peer, "name_acquired", name)]
        return []
