"""The bus as a service: the methods under the name ``bus`` (section 8).

One table says which method has which arguments; checking, introspection and the error texts come from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import ABOUT_MAX_BYTES, ABOUT_PEER_MAX_BYTES, ARGUMENTS_MAX_BYTES, ARGUMENTS_MAX_ELEMENTS, MAX_ID, PAGE_ITEMS
from ..protocol.messages import Frame, brief, is_meta, pack, pack_map_head
from ..protocol.payloads import PayloadError, decode_value
from ..protocol.topics import BUS_NAME, check_group, check_topic
from .delivery import Delivery
from .effort import BYTES_A_UNIT, KEPT_MATCH, LOOK
from .lanes import Lane
from .listing import Lists
from .monitors import KINDS, Monitor
from .names import MODES
from .peers import Peer
from .terms import POLICIES, parse_terms

if TYPE_CHECKING:
    from .state import State

Arguments = dict[str, Any]

#: L-6: what a group lane starts with
_GROUP_MESSAGES = 1


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a method: whether a value is good, and what good is in words."""

    words: str
    good: Callable[[Any], bool]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One method: what it does, and its arguments."""

    doc: str
    call: Callable[[Peer, Arguments], Any]  #: its result, packed already where it is bytes
    arguments: dict[str, Argument] = field(default_factory=dict)
    admin: bool = False  #: whether it takes the right `admin` (P-7)


def _int(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_map(value: Any) -> bool:
    return type(value) is dict


def _are_kinds(value: Any) -> bool:
    return value is None or (type(value) is list and bool(value) and all(type(kind) is str and kind in KINDS for kind in value))


_CREDIT = Argument("bytes, an int of 0 to 4294967295", _int(0, 2**32 - 1), required=True)
_NAME = Argument("a name", _is_str, required=True)
_TOPIC = Argument("a topic", _is_str, required=True)
_META = Argument("nil, an encoding or a map of headers", is_meta)
_METHODS = Argument("an array of methods", lambda value: type(value) is list and all(type(item) is str for item in value), required=True)
_ABOUT = Argument("a map from some of the methods to a map each", lambda value: type(value) is dict and all(map(_is_map, value.values())))
_PAGE = {
    "after": Argument("a cursor that a list gave as `next`", lambda value: value is None or type(value) in (str, int)),
    "limit": Argument(f"an int of 1 to {PAGE_ITEMS}", _int(1, PAGE_ITEMS)),
}


class BusService:
    """Answers requests to ``bus/METHOD``."""

    def __init__(self, broker: State, delivery: Delivery) -> None:
        self._broker = broker
        self._delivery = delivery
        lists = Lists(broker)
        lane = Argument(f"a lane number of 1 to {MAX_ID}", _int(1, MAX_ID), required=True)
        self._methods: dict[str, Method] = {
            "subscribe": Method(
                "Open a lane for the publications that match a pattern.",
                self._subscribe,
                {
                    "pattern": Argument("a pattern", _is_str, required=True),
                    "lane": lane,
                    "credit": _CREDIT,
                    "messages": Argument("an int of 0 to 4294967295", _int(0, 2**32 - 1)),
                    "group": Argument("a group's name or nil", lambda value: value is None or type(value) is str),
                    "retained": Argument("a bool", _is_bool),
                    "policy": Argument(f"one of {', '.join(POLICIES)}, or nil", lambda value: value is None or value in POLICIES),
                    "limits": Argument("a map of soft, hard, seconds, or nil", lambda value: value is None or type(value) is dict),
                },
            ),
            "unsubscribe": Method("Close a lane.", self._unsubscribe, {"lane": lane}),
            "own": Method(
                "Claim a name.",
                self._own,
                {
                    "name": _NAME,
                    "mode": Argument(f"one of {', '.join(MODES)}", lambda value: value in MODES),
                    "replace": Argument("a bool", _is_bool),
                    "allow_replace": Argument("a bool", _is_bool),
                },
            ),
            "release": Method("Give up a name, or the place in line for it.", self._release, {"name": _NAME}),
            "serve": Method("Serve methods under a name.", self._serve, {"name": _NAME, "methods": _METHODS, "about": _ABOUT}),
            "unserve": Method("Serve methods under a name no more.", self._unserve, {"name": _NAME, "methods": _METHODS}),
            "names": Method("List the names that are owned.", lists.names, _PAGE),
            "peers": Method("List the peers.", lists.peers, _PAGE),
            "accounts": Method("List who uses how much of what, and how much they may.", lists.accounts, _PAGE, admin=True),
            "topics": Method("List the topics that were published to or are retained.", lists.topics, _PAGE, admin=True),
            "patterns": Method("List the patterns that somebody subscribes to.", lists.patterns, _PAGE, admin=True),
            "receivers": Method(
                "List who gets what is published to a topic, and what waits there.",
                lists.receivers,
                {"topic": _TOPIC, **_PAGE},
                admin=True,
            ),
            "losses": Method("List the recent episodes in which messages ended that nobody got.", lists.losses, _PAGE, admin=True),
            "stats": Method("Counters and gauges of the bus.", lists.stats),
            "identity": Method(
                "Say who a peer is.", self._identity, {"peer": Argument("a peer id", _int(0, MAX_ID), required=True)}
            ),
            "ping": Method("Answer at once.", self._ping),
            "introspect": Method("List the methods under a name.", self._introspect, {"name": Argument("a name", _is_str)}),
            "get": Method("Get the retained message of a topic.", self._get, {"topic": _TOPIC}),
            "will": Method(
                "Set the message of a topic that is published when this peer goes without BYE; without a payload take it back.",
                self._will,
                {
                    "topic": _TOPIC,
                    "payload": Argument("bytes", lambda value: value is None or type(value) is bytes),
                    "meta": _META,
                    "retain": Argument("a bool", _is_bool),
                },
            ),
            "bind": Method("Have the retained message of a topic go with this peer, who publishes it.", self._bind, {"topic": _TOPIC}),
            "unbind": Method("Let the retained message of a topic stay.", self._unbind, {"topic": _TOPIC}),
            "restore": Method(
                "Retain a message unless another peer has published what is retained.",
                self._restore,
                {
                    "topic": _TOPIC,
                    "payload": Argument("bytes", lambda value: type(value) is bytes, required=True),
                    "meta": _META,
                    "ttl_ms": Argument("nil or an int of 0 to 4294967295", lambda value: value is None or _int(0, 2**32 - 1)(value)),
                    "was": Argument("an array of peer ids", lambda value: type(value) is list and all(type(item) is int for item in value)),
                },
            ),
            "monitor": Method(
                "Open a lane for copies of what others send.",
                self._monitor,
                {
                    "lane": lane,
                    "credit": _CREDIT,
                    "pattern": Argument("a pattern", _is_str),
                    "kinds": Argument(f"nil or an array of some of {', '.join(KINDS)}", _are_kinds),
                    "payloads": Argument("a bool", _is_bool),
                    "limits": Argument("a map of soft, hard, seconds, or nil", lambda value: value is None or type(value) is dict),
                },
            ),
        }

    def call(self, peer: Peer, name: str, frame: Frame) -> bytes:
        """The payload of the reply to a request. Raises ProtocolError; fatal is only ``slow_reader``: a read full of requests must not
        become replies without end before the round is over."""
        self._check_room(peer)
        method = self._methods.get(name)
        if method is None:
            raise ProtocolError(Code.NO_SUCH_METHOD, f"the bus has no method {name!r}; it has {', '.join(sorted(self._methods))}")
        if method.admin and peer.rights is not None:
            self._broker.judge.admin(peer)
        effort = self._broker.effort
        effort.spent += frame.payload_size // BYTES_A_UNIT
        result = method.call(peer, self._arguments(name, method, frame))
        answer = result if type(result) is bytes else pack(result)
        effort.spent += len(answer) // BYTES_A_UNIT
        return answer

    def _check_room(self, peer: Peer) -> None:
        """Raise ``slow_reader`` where more waits for *peer* than may (E-2)."""
        if peer.queued_bytes > self._broker.limits.max_output_bytes:
            raise ProtocolError(Code.SLOW_READER, f"{peer.queued_bytes} bytes wait for this peer (limits.max_output_bytes)")

    @staticmethod
    def _arguments(name: str, method: Method, frame: Frame) -> Arguments:
        """The arguments, checked against the table (B-1)."""
        if frame.elements[5] is not None or frame.payload_size > ARGUMENTS_MAX_BYTES:
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name} takes msgpack (meta nil) of at most {ARGUMENTS_MAX_BYTES} bytes")
        try:
            arguments = decode_value(None, frame.payload, ARGUMENTS_MAX_ELEMENTS)
        except PayloadError as error:
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name}: {error}") from error
        if arguments is None:
            arguments = {}
        if type(arguments) is not dict:
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name} takes a map of arguments, not {type(arguments).__name__}")
        for key, value in arguments.items():
            argument = method.arguments.get(key) if isinstance(key, str) else None
            if argument is None:
                known = ", ".join(method.arguments) or "none"
                raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name} has no argument {str(key)[:64]!r}; it has: {known}")
            if not argument.good(value):
                raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name}: {key} must be {argument.words}, not {brief(value)}")
        for key, argument in method.arguments.items():
            if argument.required and key not in arguments:
                raise ProtocolError(Code.BAD_ARGUMENT, f"bus/{name} needs {key}: {argument.words}")
        return arguments

    # --- lanes ------------------------------------------------------------------------------------

    def _subscribe(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        broker = self._broker
        number = self._free_lane(peer, arguments)
        broker.judge.subscribe(peer, arguments["pattern"])
        group = arguments.get("group")
        terms = parse_terms(arguments.get("policy"), arguments.get("limits"), group=group is not None)
        lane = Lane(peer, number, arguments["pattern"], min(arguments["credit"], broker.limits.max_credit_bytes), terms)
        if group is not None:
            check_group(group)
            present = broker.routes.group(lane.pattern, group)
            if present is not None:
                terms.check_joins(present.terms, broker.limits)
                lane.terms = present.terms
            lane.messages = arguments.get("messages", _GROUP_MESSAGES)
        broker.publications.expire(broker.now)
        broker.add_lane(lane, group)
        policy = lane.terms.policy or broker.limits.lane_policy
        if group is not None:
            assert lane.group is not None
            self._delivery.member_joined(lane.group, peer)
            self._delivery.dispatch(lane.group)
            return {"retained": 0, "policy": policy}
        count = 0
        if arguments.get("retained", True) and len(broker.retained):
            broker.effort.spent += KEPT_MATCH * len(broker.retained)
            for frame, origin in broker.retained.matching(lane.pattern, broker.now):
                self._check_room(peer)
                self._delivery.introduce(origin, peer)
                self._delivery.offer_retained(lane, frame)
                count += 1
        return {"retained": count, "policy": policy}

    def _free_lane(self, peer: Peer, arguments: Arguments) -> int:
        """The number that a new lane is to have (L-1)."""
        number: int = arguments["lane"]
        lanes = peer.lanes or {}
        if number in lanes:
            raise ProtocolError(Code.LANE_IN_USE, f"lane {number} has the pattern {lanes[number].pattern!r} already")
        if len(lanes) >= self._broker.limits.max_lanes:
            raise ProtocolError(Code.OVER_LIMIT, f"this peer has {len(lanes)} lanes (limits.max_lanes)")
        return number

    def _monitor(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        limits = self._broker.limits
        number, pattern = self._free_lane(peer, arguments), arguments.get("pattern", ">")
        self._broker.judge.monitor(peer, pattern)
        monitor = Monitor(
            peer,
            number,
            pattern,
            min(arguments["credit"], limits.max_credit_bytes),
            limits,
            terms=parse_terms("drop_oldest", arguments.get("limits"), group=False),
            kinds=arguments.get("kinds") or KINDS,
            payloads=arguments.get("payloads", True),
        )
        self._broker.add_lane(monitor, None)
        return {"policy": "drop_oldest"}

    def _unsubscribe(self, peer: Peer, arguments: Arguments) -> dict[str, int]:
        lane = (peer.lanes or {}).get(arguments["lane"])
        if lane is None:
            raise ProtocolError(Code.NO_SUCH_LANE, f"this peer has no lane {arguments['lane']}")
        return {"dropped": self._broker.remove_lane(lane)}

    # --- retained messages and wills --------------------------------------------------------------

    def _get(self, peer: Peer, arguments: Arguments) -> dict[str, Any] | None:
        topic = arguments["topic"]
        check_topic(topic)
        self._broker.judge.subscribe(peer, topic)
        kept = self._broker.publications.kept(topic)
        origin = self._broker.retained.origin(topic)
        if kept is None or origin is None:
            return None
        self._delivery.introduce(origin, peer)
        return {"topic": topic, "sender": kept.elements[1], "meta": kept.elements[3], "payload": kept.payload}

    def _will(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        topic, payload = arguments["topic"], arguments.get("payload")
        publications = self._broker.publications
        if payload is None:
            publications.drop_will(peer, topic)
        else:
            publications.set_will(peer, topic, arguments.get("meta"), payload, retain=arguments.get("retain", False))
        return {}

    def _bind(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        self._broker.publications.bind(peer, arguments["topic"])
        return {}

    def _unbind(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        self._broker.publications.unbind(peer, arguments["topic"])
        return {}

    def _restore(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        restored = self._broker.publications.restore(
            peer, arguments["topic"], arguments.get("meta"), arguments["payload"], arguments.get("ttl_ms"), arguments.get("was", [])
        )
        return {"restored": restored}

    # --- names ------------------------------------------------------------------------------------

    def _own(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        self._broker.judge.own(peer, arguments["name"])
        position, change = self._broker.names.own(
            peer,
            arguments["name"],
            arguments.get("mode", "exclusive"),
            replace=arguments.get("replace", False),
            allow_replace=arguments.get("allow_replace", False),
        )
        self._broker.announce(change)
        return {"owner": position == 0, "position": position}

    def _release(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        self._broker.announce(self._broker.names.release(peer, arguments["name"]))
        return {}

    def _serve(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        methods = arguments["methods"]
        name = self._broker.names.get(arguments["name"])
        claims = name.owners if name is not None else []
        self._broker.effort.spent += LOOK * (len(peer.claims or ()) + sum(1 + len(claim.methods) for claim in claims))
        self._broker.names.serve(peer, arguments["name"], methods, _packed_about(arguments.get("about", {}), methods))
        return {}

    def _unserve(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        self._broker.names.unserve(peer, arguments["name"], arguments["methods"])
        return {}

    # --- the bus itself ------------------------------------------------------------------------------

    def _identity(self, peer: Peer, arguments: Arguments) -> bytes:
        number = arguments["peer"]
        origin = self._delivery.origin_of(number)
        if origin is None:
            what = "peer 0 is the bus itself" if not number else f"there is no peer {number}, or it has gone"
            raise ProtocolError(Code.NO_SUCH_PEER, what)
        return origin.said

    def _ping(self, peer: Peer, arguments: Arguments) -> dict[str, Any]:
        return {"now_s": round(self._broker.now - self._broker.started_at, 6)}

    def _introspect(self, peer: Peer, arguments: Arguments) -> dict[str, Any] | bytes:
        """What is kept of methods is put together as bytes: decoded, a megabyte of it can be 64 of objects."""
        wanted = arguments.get("name", BUS_NAME)
        if wanted == BUS_NAME:
            methods = {
                name: {"doc": method.doc, "arguments": {key: argument.words for key, argument in method.arguments.items()}}
                for name, method in self._methods.items()
            }
            return {"name": BUS_NAME, "methods": methods}
        name = self._broker.names.get(wanted)
        if name is None:
            raise ProtocolError(Code.NO_SUCH_NAME, f"nobody owns the name {wanted!r}")
        nothing = pack({})
        parts: list[bytes] = []
        left = ABOUT_PEER_MAX_BYTES
        for method in sorted(name.methods()):
            about = name.about(method)
            left -= len(about)
            parts += (pack(method), about if about and left >= 0 else nothing)
        return b"".join((pack_map_head(2), pack("name"), pack(wanted), pack("methods"), pack_map_head(len(parts) // 2), *parts))


def _packed_about(about: Arguments, methods: list[str]) -> dict[str, bytes]:
    """What a peer says about its methods, as it is kept: bytes, for small values may be large objects."""
    packed = {}
    for method, said in about.items():
        if method not in methods:
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/serve: about names the method {str(method)[:64]!r}, which methods does not")
        try:
            packed[method] = pack([[said]])[2:]  # introspect's reply has it as deep
        except (ValueError, TypeError, RecursionError) as error:  # older packers go less deep than any decoder
            raise ProtocolError(Code.BAD_ARGUMENT, f"bus/serve: what about says of {method!r} cannot be kept: {error}") from error
        if len(packed[method]) > ABOUT_MAX_BYTES:
            raise ProtocolError(
                Code.OVER_LIMIT, f"bus/serve: about says {len(packed[method])} bytes of {method!r}: at most {ABOUT_MAX_BYTES} (B-3)"
            )
    return packed
