"""What must hold for any bytes of the protocol's pure parts: frames, streams, payloads, text, topics."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import msgpack

from ipcbus.broker.subscriptions import SubscriptionIndex
from ipcbus.protocol import addresses, messages, payloads, topics
from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.framing import Prefix, Scanner
from ipcbus.protocol.messages import Frame, Kind

from . import grammar
from .engine import Target, mark, mark_error

# --- one frame ---

_LARGE = bytes(6000)  #: more than what is decoded in one call


def decode_frame(data: bytes) -> None:
    """Whatever is accepted has one encoding, which is what came, and is accepted with a payload of any size; nothing else is raised."""
    if len(data) < 2:
        return  # F-2: the scanner does not let it through
    found = _decode(data)
    larger = _with_larger_payload(data)
    if larger is not None:
        verdict = _decode(larger)  # (which of two faults is found first may differ)
        small, large = (repr(getattr(result, "elements", None)) for result in (found, verdict))  # (a NaN is not equal to itself)
        assert small == large, f"small: {found}, large: {verdict}"
    if isinstance(found, ProtocolError):
        return
    mark(found.kind, len(found.elements))
    kind, elements = found.kind, found.elements
    if kind in messages.WITH_PAYLOAD:
        again = messages.encode_with_payload(found.payload, kind, *elements[1:])
    else:
        again = messages.encode(kind, *elements[1:])
    assert again == found.raw == grammar.framed(data), again
    assert grammar.framed(grammar.body(list(elements), found.payload if kind in messages.WITH_PAYLOAD else None)) == again
    for (name, check), value in zip(messages.LAYOUTS[kind], elements[1:], strict=True):
        assert check(value), f"the short way accepted what the table does not: {name} {value!r}"
    plain = msgpack.unpackb(data, use_list=False, strict_map_key=False)
    assert repr(plain[: len(elements)]) == repr(elements)


def _decode(data: bytes) -> Frame | ProtocolError:
    try:
        return messages.decode(grammar.framed(data))
    except ProtocolError as error:
        assert error.code in (Code.BAD_ENVELOPE, Code.UNKNOWN_KIND), error
        assert len(error.text) < 1000, "the text grows with what came"
        mark_error(error)
        return error


def _with_larger_payload(data: bytes) -> bytes | None:
    """The same envelope with more payload, where it ends with one."""
    at = data.rfind(b"\xc6", 0, 2000)
    if at < 1 or not at + 5 <= len(data) <= 4000 or data[at + 1 : at + 5] != (len(data) - at - 5).to_bytes(4, "big"):
        return None
    try:
        envelope = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if type(envelope) is not list or not envelope or type(envelope[-1]) is not bytes or envelope[-1] != data[at + 5 :]:
        return None  # the end of a number may look like one
    return data[: at + 1] + (len(data) - at - 5 + len(_LARGE)).to_bytes(4, "big") + data[at + 5 :] + _LARGE


# --- a stream of frames ---


class Route:
    def __init__(self, to: str, generation: int) -> None:
        self.to = to
        self.generation = generation


class Traffic:
    messages = 0
    bytes = 0


class Router:
    """Gives each receiver a route and counter; the topics that begin alike share one."""

    def __init__(self) -> None:
        self.generation = 0
        self.counters: dict[str, Traffic] = {}
        self._routes: dict[tuple[str, int], Route] = {}

    def resolve(self, prefix: Prefix, owner: Any) -> Route:
        key = prefix.to[:1], self.generation
        prefix.route = self._routes.setdefault(key, Route(*key))
        prefix.counter = self.counters.setdefault(prefix.to, Traffic())
        return prefix.route


#: Frames above it are too large, so that some are.
_LIMIT = 3000


def _scan(stream: bytes, sizes: Any, greeted: bool) -> tuple[Any, ...]:
    """All that a scanner makes of *stream*, which comes in pieces of *sizes*: in a form in which runs are as long as they can be."""
    router = Router()
    scanner = Scanner(router, prefixes_max=3)
    if greeted:
        scanner.open(1, _LIMIT)
    seen: list[Any] = []
    verdict: Any = None
    at = 0
    try:
        while at < len(stream):
            size = next(sizes)
            piece = stream[at : at + size]
            at += size
            for event in scanner.scan(piece):
                if isinstance(event, Frame):
                    seen.append((event.kind, event.elements, event.payload))
                    if event.kind is Kind.PING:
                        router.generation += 1  # as a SUBSCRIBE between two publications does
                    if event.kind is Kind.HELLO and not greeted:
                        scanner.open(1, _LIMIT)
                        greeted = True
                else:
                    route, data, start, end, last, count = event
                    assert route.generation == router.generation, "a route of another generation"
                    assert start <= last < end
                    seen.append([route.to, data[start:end], count, data[last:end]])
    except ProtocolError as error:
        assert error.code.fatal, error
        verdict = error.code
        mark_error(error)
    joined: list[Any] = []
    for item in seen:
        before = joined[-1] if joined else None
        if type(item) is list and type(before) is list and before[0] == item[0]:
            before[1] += item[1]
            before[2] += item[2]
            before[3] = item[3]
        else:
            joined.append(item)
    for item in joined:
        if type(item) is list:
            _check_run(item)
    counted = {to: (counter.messages, counter.bytes) for to, counter in router.counters.items() if counter.messages}
    return joined, verdict, 0 if verdict else scanner.held_bytes, counted


def _check_run(run: list[Any]) -> None:
    """A run is whole frames, as many as it says, and its last one is the last one; each would be accepted alone."""
    _, data, count, last = run
    at = 0
    while at < len(data):
        start = at
        at += 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        assert messages.decode(bytes(data[start:at])).elements[1] == 1
        count -= 1
    assert (at, count, bytes(data[start:])) == (len(data), 0, bytes(last))


def scan_stream(data: bytes) -> None:
    """What a stream is cut into, and whether it is refused, does not depend on how it comes; runs have only legal frames."""
    if len(data) < 2:
        return
    greeted, seed, stream = data[0] & 1 == 0, data[0] >> 1, data[1:]
    chance = random.Random(seed)

    def some() -> Any:
        while True:
            yield chance.choice((1, 2, 3, 4, 5, 6, 9, 20, 80, 400))

    whole = _scan(stream, iter([len(stream)]), greeted)
    for kind in {item[0] for item in whole[0]}:
        mark("frame" if isinstance(kind, Kind) else "run", kind)
    assert (split := _scan(stream, some(), greeted)) == whole, (split, whole)
    if len(stream) < 400:
        assert (split := _scan(stream, iter([1] * len(stream)), greeted)) == whole, (split, whole)


def _make_stream(chance: random.Random) -> bytes:
    frames: list[bytes] = []
    for _ in range(chance.choice((1, 3, 8))):
        if chance.random() < 0.6:
            to, carried = chance.choice(("a.b", "a.c", "b", "ä" * 40)), chance.choice((b"", b"x", b"y" * 300))
            kind, encoding = chance.choice((8, 8, 9, 11)), chance.choice((None, 1))
            frames += [grammar.framed(grammar.body([kind, 1, to, encoding], carried))] * chance.choice((1, 2, 5))
        else:
            frames.append(grammar.frame(chance))
    return chance.randbytes(1) + b"".join(frames)


# --- payloads ---

_METAS: tuple[Any, ...] = (None, None, 1, 2, 3, 4, {}, {"encoding": 2}, {"encoding": 3, "a": 1})


def decode_payload(data: bytes) -> None:
    """Only PayloadError comes out; what was decoded goes in again, and comes out the same."""
    meta, payload = _METAS[(data[0] if data else 0) % len(_METAS)], data[1:]
    try:
        value = payloads.decode_value(meta, payload)
    except payloads.PayloadError as error:
        assert str(error)
        mark_error(error.__cause__ or error)
        return
    mark(str(meta), type(value))
    if payloads.encoding_of(meta) == payloads.JSON:
        assert json.dumps(json.loads(payload)) == json.dumps(value)
        return
    try:
        second, again = payloads.encode_value(value)
    except payloads.PayloadError as error:
        mark_error(error)
        assert payloads.encoding_of(meta) is None, "bytes and text can always be sent"
        return
    assert repr(payloads.decode_value(second, again)) == repr(value)


def count_elements(data: bytes) -> None:
    """The walk over msgpack's headers says "more than n elements" as counting the decoded ones does, and never ends anywhere else."""
    limit = 1 + (data[0] if data else 0) % 12
    payload = data[1:]
    found = payloads._has_more_elements(payload, limit)
    unpacker = msgpack.Unpacker(strict_map_key=False, object_pairs_hook=list)
    unpacker.feed(payload)
    try:
        value = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        mark_error(error)  # how many there would be is nobody's interest, as long as the walk ends
        return
    mark(found, type(value))
    assert found == (_elements(value) > limit)


def _elements(value: Any) -> int:
    if type(value) is list:
        return 1 + sum(_elements(item) for item in value)
    if type(value) is tuple:  # a pair of a map: the map itself is counted, not the pair
        return sum(_elements(item) for item in value)
    return 1


# --- text ---


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


class Subscription:
    """As much of a lane as the index looks at."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.group = None


def match_topics(data: bytes) -> None:
    """Patterns and topics are refused with their code; the index, `matches` and a regular expression agree on what matches; an index from
    which everything was removed is empty.
    """
    topic, *patterns = _text(data).split("\0")
    index = SubscriptionIndex()
    lanes: list[Any] = []
    for pattern in patterns[:12]:
        lane: Any = Subscription(pattern)
        try:
            index.add(lane, None)
        except ProtocolError as error:
            assert error.code is Code.BAD_TOPIC
            mark_error(error)
        else:
            lanes.append(lane)
    try:
        topics.check_topic(topic)
    except ProtocolError as error:
        assert error.code is Code.BAD_TOPIC
        mark_error(error)
    else:
        expected = [lane for lane in lanes if _expression(lane.pattern).fullmatch(topic)]
        mark(len(lanes), len(expected))
        assert [lane for lane in lanes if topics.matches(lane.pattern, topic)] == expected
        found, groups = index.receivers(topic)
        assert sorted(map(id, found)) == sorted(map(id, expected)), (topic, [lane.pattern for lane in found])
        assert groups == ()
    for lane in lanes:
        index.remove(lane)
    assert (index.lanes, index._literal, index._root.empty) == (0, {}, True)


def _expression(pattern: str) -> re.Pattern[str]:
    """T-2 and T-3 once more, by other means."""
    tokens = pattern.split(".")
    parts = [r"[^.]+" if token == "*" else r".+" if token == ">" else re.escape(token) for token in tokens]
    guard = r"(?!\$)" if tokens[0] in ("*", ">") else ""
    return re.compile(guard + r"\.".join(parts), re.DOTALL)


def _make_topics(chance: random.Random) -> bytes:
    texts = [grammar.topic(chance), *(grammar.pattern(chance) for _ in range(chance.choice((1, 3, 8))))]
    return "\0".join(texts).encode(errors="surrogatepass")


def parse_text(data: bytes) -> None:
    """Names, methods, groups, peers and targets of requests are refused with their code; what is accepted is what the grammar says."""
    text = _text(data)
    for check, expression, most in (
        (topics.check_name, r"[\w-]+(\.[\w-]+){0,31}", 255),
        (topics.check_method, r"[A-Za-z_][\w.-]*", 128),
        (topics.check_group, r"[\w-]+(\.[\w-]+)*", 128),
    ):
        legal = re.fullmatch(expression, text, re.ASCII) is not None and len(text) <= most
        reserved = check is topics.check_name and (text == "bus" or text.startswith("bus."))
        try:
            check(text)
        except ProtocolError as error:
            mark_error(error)
            assert error.code is (Code.RESERVED if legal and reserved else Code.BAD_NAME)
        else:
            mark(check.__name__)
            assert legal
            assert not reserved
    peer = topics.parse_peer(text)
    if peer is not None:
        mark("peer")
        assert topics.peer_address(peer) == text
    try:
        target, method = topics.split_method(text)
    except ProtocolError as error:
        mark_error(error)
        assert error.code is Code.BAD_NAME
    else:
        assert f"{target}/{method}" == text


def _make_text(chance: random.Random) -> bytes:
    name = ".".join(chance.choice(("a", "bus", "A-1", "_", "x" * 40)) for _ in range(chance.choice((1, 2, 3, 33))))
    method = chance.choice(("do", "do.it", "_x", "x" * 129, "1"))
    return chance.choice((name, method, f"{name}/{method}", ":1/do", f":{chance.choice((0, 1, 2**53 - 1, 2**53))}")).encode()


def parse_address(data: bytes) -> None:
    """Only AddressError comes out, and what an address becomes is written as one that becomes the same."""
    text = _text(data)
    try:
        found = addresses.parse_address(text)
    except addresses.AddressError as error:
        assert str(error)
        mark_error(error)
    else:
        mark(type(found))
        assert addresses.parse_address(str(found)) == found
        if isinstance(found, addresses.TcpAddress):
            assert addresses.is_loopback(found.host)
    try:
        address = addresses.default_address("/run/x", text)
    except addresses.AddressError as error:
        mark_error(error)
    else:
        assert "/" not in text
        assert addresses.parse_address(str(address)) == address


def _make_address(chance: random.Random) -> bytes:
    host = chance.choice(("127.0.0.1", "127.1.2.3", "localhost", "[::1]", "10.0.0.1", "[::2]", "0.0.0.0", "256.0.0.1"))
    port = chance.choice(("0", "1", "4222", "65535", "65536", "99999"))
    return chance.choice((f"tcp:{host}:{port}", "unix:/run/x.sock", "unix:/" + "x" * 105, "unix:x", "lab", "default.1")).encode()


def _prefixed(make: Any) -> Any:
    return lambda chance: chance.randbytes(1) + make(chance)


TARGETS = (
    Target(
        "frame", "one frame: decode, encode, and the table of kinds agree", decode_frame,
        lambda chance: grammar.body(*grammar.envelope(chance)), grammar.WIRE_TOKENS,
    ),
    Target("stream", "a stream of frames is cut the same way however it is split", scan_stream, _make_stream, grammar.WIRE_TOKENS),
    Target("payload", "payloads of every encoding: only PayloadError, and the way back", decode_payload, _prefixed(grammar.payload)),
    Target("elements", "the count of a payload's elements without decoding it", count_elements, _prefixed(grammar.packed)),
    Target("topics", "topics, patterns, and what matches", match_topics, _make_topics, (b".", b"*", b">", b"$", b"\0", b"\0a.*", b".>")),
    Target("text", "names, methods, groups, peers", parse_text, _make_text, (b".", b"/", b":", b"bus.", b"\xc3\xa9", b"\xd9\xa1")),
    Target("address", "addresses of a bus", parse_address, _make_address, (b"unix:/", b"tcp:", b"127.0.0.1", b"::1", b":0", b"\xd9\xa1")),
)  # fmt: skip
