"""What the bus must be told again after a reconnect: subscriptions, names, served methods, in the order made (H-4).

A declaration that is refused when it is first said is the caller's error and forgotten. One that was accepted before and is refused on a
replay is tried again where that can help (somebody else took the name meanwhile), and given up loudly where it cannot. Part of the
session: same lock, no I/O, time comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Meta
from ipcbus.protocol.payloads import encode_value

from ._calls import ERROR, WARNING, Call, Declaration, Key, map_of
from ._errors import Closed, Denied, Refused, RequestError, Verdict, verdict
from ._lanes import Lane

if TYPE_CHECKING:
    from ._session import Session

#: Between attempts to get back what a replay was refused.
RETRY_S = 1.0
_ANSWER_S = Limits().max_timeout_ms / 1000  #: the bus answers its own methods at once; the caller's patience is the shell's business


class Declarations:
    """The declarations of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._all: dict[Key, Declaration] = {}  #: in the order made; what is withdrawn goes
        self._refused: dict[Key, float | None] = {}  #: when to try again; None: from the next tick() on

    # --- what the program declares ---

    def subscribe(self, lane: Lane) -> Call:
        """Subscribe *lane*. Its messages come before the answer where they are retained (L-8)."""
        arguments: dict[str, Any] = {"pattern": lane.pattern, "lane": lane.number, "retained": lane.retained}
        if lane.group is not None:
            arguments["group"] = lane.group
        if lane.policy is not None:
            arguments["policy"] = lane.policy
        if lane.limits:
            arguments["limits"] = lane.limits
        return self._declare(("subscribe", lane.number), "subscribe", arguments, lane)

    def subscribe_anew(self, lane: Lane) -> None:
        """Subscribe *lane*, which is declared, under another number: what is kept comes again, all else on its way is dropped."""
        declaration = self._take_out(("subscribe", lane.number))
        session = self._session
        session.lanes.pop(lane.number, None)
        if declaration is not None and declaration.said:
            session.request("bus/unsubscribe", {"lane": lane.number}, None, _ANSWER_S)
        lane.renumber(session.new_id())
        call = self.subscribe(lane)
        call.notify = lambda: lane.close(call.error) if call.error is not None else None

    def monitor(self, lane: Lane, kinds: list[str] | None, payloads: bool) -> Call:
        """Have *lane* show what others send (M-1). It is ended as a subscription."""
        arguments: dict[str, Any] = {"pattern": lane.pattern, "lane": lane.number, "payloads": payloads}
        if kinds is not None:
            arguments["kinds"] = kinds
        if lane.limits:
            arguments["limits"] = lane.limits
        return self._declare(("subscribe", lane.number), "monitor", arguments, lane)

    def own(self, name: str, mode: str, replace: bool, allow_replace: bool) -> Call:
        """Claim *name*."""
        arguments: dict[str, Any] = {"name": name, "mode": mode, "replace": replace, "allow_replace": allow_replace}
        return self._declare(("own", name), "own", arguments)

    def serve(self, name: str, method: str, about: Mapping[str, Any] | None = None) -> Call:
        """Serve a method under *name*, which is declared already, and say what introspection shows *about* it. Raises PayloadError."""
        arguments: dict[str, Any] = {"name": name, "methods": [method]}
        if about is not None:
            arguments["about"] = {method: dict(about)}
            encode_value(arguments)  # what cannot be packed is the caller's error, here and not at a replay
        return self._declare(("serve", name, method), "serve", arguments)

    def will(self, topic: str, meta: Meta, payload: bytes, retain: bool) -> Call:
        """Set a will (W-1)."""
        arguments: dict[str, Any] = {"topic": topic, "meta": meta, "payload": payload, "retain": retain}
        return self._declare(("will", topic), "will", arguments)

    def bind(self, topic: str) -> Call:
        """Bind what is retained for *topic* to the connection (W-2)."""
        return self._declare(("bind", topic), "bind", {"topic": topic})

    def declared(self, *key: Any) -> Declaration | None:
        """The declaration with this key: its method, then its lane, name, or name and method."""
        return self._all.get(key)

    def withdraw(self, *key: Any) -> Call | None:
        """Take a declaration back; a call to wait for where the bus has to be told. Taking back what is not declared is fine. Who still
        waits for the declaration gets Closed.
        """
        declaration = self._all.get(key)
        if declaration is None:
            return None
        if declaration.lane is not None:
            # Said before it is forgotten: where a signal handler interrupts this, who closes it again tells the bus, perhaps twice.
            number = declaration.lane.number
            call = self._session.request("bus/unsubscribe", {"lane": number}, None, _ANSWER_S) if declaration.said else None
            self._session.lanes.pop(number, None)
            declaration.lane.close()
            self._take_out(key)
            return call
        self._take_out(key)
        arguments = declaration.arguments
        if declaration.method == "own":
            for other in [other for other in self._all if other[0] == "serve" and other[1] == key[1]]:
                self._take_out(other)  # the bus forgets the methods with the name
        if not declaration.said:
            return None
        method, told = {
            "own": ("release", {"name": arguments.get("name")}),
            "serve": ("unserve", {"name": arguments.get("name"), "methods": arguments.get("methods")}),
            "will": ("will", {"topic": arguments.get("topic")}),
            "bind": ("unbind", arguments),
        }[declaration.method]
        return self._session.request(f"bus/{method}", told, None, _ANSWER_S)

    def withdraw_all(self) -> None:
        """Take back what lets something come in: the end of the session begins. Wills and bound values end with the connection itself."""
        for key in list(self._all):
            if key[0] not in ("bind", "will"):
                self.withdraw(*key)

    def _take_out(self, key: Key) -> Declaration | None:
        self._refused.pop(key, None)
        declaration = self._all.pop(key, None)
        if declaration is not None:
            text = f"{declaration.call.to}: it was taken back before the bus had answered"
            declaration.settle(error=Closed(text, who=declaration.who(), what=declaration.method))
        return declaration

    def _declare(self, key: Key, method: str, arguments: dict[str, Any], lane: Lane | None = None) -> Call:
        call = Call(self._session.new_id(), f"bus/{method}")
        declaration = Declaration(key, method, arguments, call, lane)
        call.declaration = declaration
        earlier = self._all.get(key)
        if earlier is not None and not earlier.call.done:
            declaration.earlier = earlier
        self._refused.pop(key, None)
        try:
            self._all[key] = declaration
            if lane is not None:
                self._session.told.meet(lane)
                self._session.lanes[lane.number] = lane
            if self._session.outbox.peer:
                self._say(declaration)
        except BaseException:  # of a signal handler: nobody has the call, so nobody else can take it back
            self.withdraw(*key)
            raise
        return call

    # --- connections ---

    def replay(self) -> None:
        """Tell this connection everything that it was not told yet."""
        peer = self._session.outbox.peer
        for declaration in list(self._all.values()):
            # A will waits for WELCOME: of what it publishes this side must know the sender, to tell it from what others published.
            if not declaration.said and (peer or declaration.method != "will"):
                self._say(declaration)

    def lost(self) -> None:
        """The connection is gone: the next one knows nothing."""
        self._refused.clear()
        for declaration in self._all.values():
            declaration.said = declaration.owner = declaration.refused = False

    def tick(self, now: float) -> float | None:
        """Say again what was refused and is due; returns when to call again, None: not before something is refused."""
        for key, due in list(self._refused.items()):
            if due is None:
                self._refused[key] = now + RETRY_S
            elif due <= now:
                del self._refused[key]
                self._say(self._all[key])
        return min((due for due in self._refused.values() if due is not None), default=None)

    def take_calls(self) -> list[Call]:
        """The first calls that nobody answered yet; for the end of the session."""
        calls = []
        for declaration in self._all.values():
            waited: Declaration | None = declaration
            while waited is not None:
                if not waited.call.done:
                    calls.append(waited.call)
                waited = waited.earlier
        return calls

    def ownership(self, name: str, owner: bool) -> None:
        """NOTICE name_acquired or name_lost (N-1, N-2)."""
        declaration = self._all.get(("own", name))
        if declaration is None:
            return
        declaration.owner = owner
        if not owner:
            self._session.remark(WARNING, f"name {name!r} was taken over by another peer")
            if declaration.arguments["mode"] != "queue":
                declaration.said = False  # not ours any more, nothing to release
                self.withdraw("own", name)

    def _say(self, declaration: Declaration) -> None:
        session = self._session
        arguments = declaration.arguments
        if declaration.lane is not None:
            credit, messages = declaration.lane.restart()
            arguments = {**arguments, "credit": credit}
            if declaration.lane.group is not None:
                arguments["messages"] = messages
        meta, payload = encode_value(arguments)
        call = Call(session.new_id(), declaration.call.to, declaration)
        if declaration.method == "will" and len(payload) > session.limits.get("max_payload_bytes", len(payload)):
            # Only a will can be so large. Such a frame would be the end of the connection, and of the bus object.
            self.answered(call, None, b"", Refused(Code.TOO_LARGE, "it is over this bus's payload limit", call.to))
            return
        declaration.said = True
        session.put_request(call, meta, payload, _ANSWER_S)

    def answered(self, call: Call, meta: Meta, payload: bytes, error: RequestError | None) -> None:
        """The bus answered a declaration."""
        declaration = call.declaration
        if declaration is None:
            return
        key = declaration.key
        if self._all.get(key) is not declaration:  # declared anew meanwhile; whoever waited for this one still has to be told
            declaration.settle(meta, payload, error)
            return
        first = not declaration.call.done
        if error is not None:
            error.about(who=declaration.who(), what=declaration.method)
        if error is None:
            if declaration.method == "own":
                result = map_of(meta, payload)
                declaration.owner = bool(result.get("owner"))
            elif declaration.lane is not None:
                declaration.lane.accepted(self._session.epoch, map_of(meta, payload).get("retained", 0))
            declaration.refused = False
            declaration.settle(meta, payload)
        elif first:
            self._forget(key, declaration)
            declaration.settle(error=error)
            if declaration.method == "bind":  # nobody waits for it
                self._session.remark(ERROR, f"the retained value of {key[1]!r} is not bound to the connection: {error}")
        elif verdict(error.code, declaration=True) is Verdict.RETRY:
            if not declaration.refused:
                declaration.refused = True
                self._session.remark(WARNING, f"after a reconnect: {error}; trying again every {RETRY_S:g} s")
            declaration.said = False  # there is nothing to take back
            self._refused[key] = None
            self._session.on_state()
        else:
            self._session.remark(ERROR, f"after a reconnect: {error}; given up: {declaration.method} {declaration.who()!r}")
            self._give_up(key, declaration, error)

    def revoked(self, about: Mapping[str, Any]) -> None:
        """NOTICE revoked: the bus took a declaration back, for its policy was changed. The bus knows it, and is told nothing."""
        what, why = about.get("what"), str(about.get("why"))
        keys: list[Any] = [("subscribe", about.get("lane"))]  # a monitor, too
        if what == "own":
            keys = [("own", about.get("name"))]
        elif what == "publish":
            keys = [("will", about.get("topic")), ("bind", about.get("topic"))]
        for key in keys:
            declaration = self._all.get(key)
            if declaration is not None:
                who, method = declaration.who(), declaration.method
                self._session.remark(ERROR, f"the bus's policy was changed, and ended this: {method} {who!r}: {why}")
                self._give_up(key, declaration, Denied(Code.DENIED, why, who=who, what=method))

    def _give_up(self, key: Key, declaration: Declaration, error: RequestError) -> None:
        """What was accepted before is refused for good. A subscription's stream ends with *error*, after what has come."""
        self._forget(key, declaration)
        if declaration.method == "own":
            for other in [other for other in self._all.values() if other.key[:2] == ("serve", key[1])]:
                self._forget(other.key, other)  # the bus forgets the methods with the name
                other.settle(error=error)
        elif declaration.method == "bind":
            self._session.posts.forget(str(key[1]))  # what is not bound to the connection any more must not come back without it
        declaration.settle(error=error)
        if declaration.lane is not None:
            declaration.lane.close(error)

    def _forget(self, key: Key, declaration: Declaration) -> None:
        self._refused.pop(key, None)
        del self._all[key]
        if declaration.lane is not None:
            self._session.lanes.pop(declaration.lane.number, None)
