"""The scanner: runs, frames, what is held, and verdicts that do not depend on splits (section 1)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.framing import Prefix, Scanner
from ipcbus.protocol.messages import Frame, Kind, encode, encode_with_payload
from tests.unit.harness import publication


class Route:
    def __init__(self, generation: int, name: str) -> None:
        self.generation = generation
        self.name = name


class Counter:
    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


class Router:
    """Routes by the first token of `to`, one route object for each."""

    def __init__(self) -> None:
        self.generation = 1
        self.routes: dict[tuple[int, str], Route] = {}
        self.counters: dict[str, Counter] = {}
        self.resolved: list[str] = []
        self.owners: list[Any] = []

    def resolve(self, prefix: Prefix, owner: Any) -> Route:
        self.resolved.append(prefix.to)
        self.owners.append(owner)
        first = prefix.to.split(".")[0]
        prefix.route = self.routes.setdefault((self.generation, first), Route(self.generation, first))
        prefix.counter = self.counters.setdefault(prefix.to, Counter())
        return prefix.route


def make(limit: int = 100_000, prefixes_max: int = 100) -> tuple[Scanner, Router]:
    router = Router()
    scanner = Scanner(router, prefixes_max=prefixes_max)
    scanner.open(7, limit)
    return scanner, router


def seen(scanner: Scanner, data: bytes) -> list[Any]:
    """What a scan yields: (route name, bytes, frames) for a run, the kind for a frame, the code where it ends with an error."""
    items: list[Any] = []
    try:
        for item in scanner.scan(data):
            if isinstance(item, Frame):
                items.append(item.kind)
            else:
                route, buffer, start, end, last, count = item
                assert start <= last < end
                items.append((route.name, buffer[start:end], count))
    except ProtocolError as error:
        items.append(error.code)
    return items


def joined(items: list[Any]) -> list[Any]:
    """Neighbouring runs of a route as one: splits may cut a run, nothing else."""
    result: list[Any] = []
    for item in items:
        if isinstance(item, tuple) and result and isinstance(result[-1], tuple) and result[-1][0] == item[0]:
            result[-1] = (item[0], result[-1][1] + item[1], result[-1][2] + item[2])
        else:
            result.append(item)
    return result


def test_frames_of_one_prefix_are_one_run() -> None:
    scanner, router = make()
    frame = publication(7, "a.b", b"12345")
    first, rest = seen(scanner, frame * 4)
    assert (first, rest) == (("a", frame, 1), ("a", frame * 3, 3))  # the first is decoded, the rest known
    assert seen(scanner, frame * 3) == [("a", frame * 3, 3)]
    assert router.resolved == ["a.b"]
    assert (router.counters["a.b"].messages, router.counters["a.b"].bytes) == (7, 7 * len(frame))


def test_a_run_goes_on_over_sizes_and_topics_with_the_same_route() -> None:
    scanner, _ = make()
    a, b, other = publication(7, "a.b", b"1"), publication(7, "a.c", b"22"), publication(7, "z", b"1")
    seen(scanner, a + b + other)
    data = a + publication(7, "a.b", b"4444") + a + a + b + b + other + a
    assert seen(scanner, data) == [("a", data[: -len(other) - len(a)], 6), ("z", other, 1), ("a", a, 1)]


def test_a_change_of_generation_resolves_again() -> None:
    scanner, router = make()
    frame = publication(7, "a.b")
    seen(scanner, frame)
    router.generation = 2
    assert seen(scanner, frame * 2) == [("a", frame * 2, 2)]
    assert router.resolved == ["a.b", "a.b"]


def test_a_change_of_generation_between_two_items_is_seen() -> None:
    scanner, router = make()
    scanner.owner = "whose"
    a, z = publication(7, "a"), publication(7, "z")
    seen(scanner, a + z)
    generations = []
    for item in scanner.scan(a + z + a):
        assert not isinstance(item, Frame)
        generations.append(item[0].generation)
        router.generation += 1
    assert generations == [1, 2, 3]
    assert set(router.owners) == {"whose"}  # wherever a route is asked for


@pytest.mark.parametrize("to", ["x", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "ä.ö.ü"])
def test_prefixes_of_every_length_of_to(to: str) -> None:
    scanner, router = make()
    frame = publication(7, to, b"payload")
    whole = joined(seen(scanner, frame * 3))
    assert whole == [(to.split(".")[0], frame * 3, 3)]
    assert len(router.resolved) == (3 if to == "x" * 256 else 1)  # beyond str 8 nothing is cached: it is illegal anyway


def test_headers_are_decoded_each_time() -> None:
    scanner, router = make()
    frame = publication(7, "a", meta={"k": "v"})
    assert joined(seen(scanner, frame * 2)) == [("a", frame * 2, 2)]
    assert router.resolved == ["a", "a"]


def test_the_cache_of_prefixes_is_bounded() -> None:
    scanner, router = make(prefixes_max=3)
    frames = [publication(7, f"t{i}") for i in range(4)]
    seen(scanner, b"".join(frames))
    router.resolved.clear()
    seen(scanner, frames[3])  # the oldest went for it
    assert router.resolved == []
    seen(scanner, frames[0])
    assert router.resolved == ["t0"]


def test_the_oldest_prefixes_go_and_not_all() -> None:
    scanner, router = make(prefixes_max=100)
    frames = [publication(7, f"t{i}") for i in range(101)]
    seen(scanner, b"".join(frames))
    router.resolved.clear()
    seen(scanner, b"".join(frames[32:]))
    assert router.resolved == []
    seen(scanner, frames[31])
    assert router.resolved == ["t31"]


def test_kinds_that_are_no_runs_are_frames() -> None:
    scanner, _ = make()
    ping = encode(Kind.PING, 7, 1)
    a = publication(7, "a")
    assert seen(scanner, a + a + ping + a) == [("a", a, 1), ("a", a, 1), Kind.PING, ("a", a, 1)]


def test_before_welcome_everything_is_a_frame_and_small() -> None:
    scanner = Scanner(Router(), prefixes_max=10)
    assert seen(scanner, publication(0, "a")) == [Kind.PUBLISH]
    scanner = Scanner(Router(), prefixes_max=10)
    assert seen(scanner, b"\xce\x00\x00\x04\x01") == [Code.TOO_LARGE]
    scanner = Scanner(Router(), prefixes_max=10)
    assert seen(scanner, b"\xce\x00\x00\x04\x00") == []  # 1024: at the limit


CASES: dict[str, tuple[bytes, list[Any]]] = {
    "first byte": (b"GET / HTTP/1.1\r\n", [Code.BAD_FRAME]),
    "tls": (bytes.fromhex("16030100c8"), [Code.BAD_FRAME]),
    "length 0": (bytes.fromhex("ce00000000"), [Code.BAD_FRAME]),
    "length 1": (bytes.fromhex("ce0000000190"), [Code.BAD_FRAME]),
    "at the limit": (b"\xce" + (1000).to_bytes(4, "big"), []),
    "above the limit": (b"\xce" + (1001).to_bytes(4, "big"), [Code.TOO_LARGE]),
    "4 GiB": (b"\xce\xff\xff\xff\xff", [Code.TOO_LARGE]),
    "forged": (publication(8, "a"), [Code.FORGED_SENDER]),
    "array shorter than its frame, a forged frame behind it": (
        bytes.fromhex("ce0000001a") + publication(7, "a", b"")[5:] + publication(8, "a", b""),
        [Code.BAD_ENVELOPE],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts_do_not_depend_on_splits(name: str) -> None:
    data, expected = CASES[name]
    good = publication(7, "a", b"123") + publication(7, "a", b"123") + publication(7, "a", b"4")
    for before in (b"", good):
        whole = before + data
        want = ([("a", good, 3)] if before else []) + expected
        scanner, _ = make(limit=1000)
        assert joined(seen(scanner, whole)) == want
        for seed in range(20):
            scanner, _ = make(limit=1000)
            rng = random.Random(seed)
            at, items = 0, []
            while at < len(whole) and (not items or not isinstance(items[-1], Code)):
                step = 1 if seed == 0 else rng.randint(1, 20)
                items += seen(scanner, whole[at : at + step])
                at += step
            assert joined(items) == want


def known(scanner: Scanner) -> bytes:
    """Make the prefix to topic a known; returns its frame with a payload of 3 bytes."""
    frame = publication(7, "a", b"123")
    seen(scanner, frame)
    return frame


def test_lengths_of_a_known_prefix_must_agree() -> None:
    scanner, _ = make()
    frame = known(scanner)
    inner = frame[: 5 + 7] + (2).to_bytes(4, "big") + frame[-3:]  # the payload says 2, the frame has 3
    assert seen(scanner, frame + inner) == [("a", frame, 1), Code.BAD_ENVELOPE]


def test_a_known_prefix_in_a_frame_that_is_too_large() -> None:
    scanner, _ = make(limit=100)
    frame = known(scanner)
    large = publication(7, "a", b"x" * 200)
    assert seen(scanner, frame + large) == [("a", frame, 1), Code.TOO_LARGE]


def test_a_known_prefix_behind_a_wrong_first_byte() -> None:
    scanner, _ = make()
    frame = known(scanner)
    assert seen(scanner, frame + b"\xcf" + frame[1:]) == [("a", frame, 1), Code.BAD_FRAME]


def test_what_is_not_whole_is_held_and_counted() -> None:
    scanner, _ = make()
    frame = known(scanner)
    assert seen(scanner, frame[:3]) == []
    assert scanner.held_bytes == 3
    assert seen(scanner, frame[3:7]) == []
    assert scanner.held_bytes == 7
    assert seen(scanner, frame[7:] + frame + frame[:1]) == [("a", frame, 1), ("a", frame, 1)]
    assert scanner.held_bytes == 1


def test_a_large_frame_comes_in_chunks_of_any_size() -> None:
    payload = bytes(range(256)) * 200
    frame = encode_with_payload(payload, Kind.REQUEST, 7, "svc/m", 1, 1000, None)
    for step in (1, 100, 4095, 4096, 5000, len(frame)):
        scanner, _ = make()
        items = [item for at in range(0, len(frame), step) for item in scanner.scan(frame[at : at + step])]
        assert len(items) == 1
        assert isinstance(items[0], Frame)
        assert items[0].payload == payload
        assert scanner.held_bytes == 0


def test_random_streams_come_through_whole() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        frames = []
        for _ in range(40):
            if rng.random() < 0.2:
                frames.append(encode(Kind.PING, 7, rng.randint(1, 300)))
            else:
                frames.append(publication(7, rng.choice(["a", "a.b", "z"]), bytes(rng.choice([0, 3, 3, 3, 70000]))))
        data = b"".join(frames)
        scanner, _ = make()
        want = joined(seen(scanner, data))
        scanner, _ = make()
        at, items = 0, []
        while at < len(data):
            step = rng.choice([1, 7, 50, 1000, 70_000])
            items += seen(scanner, data[at : at + step])
            at += step
        assert joined(items) == want
        assert b"".join(item[1] for item in want if isinstance(item, tuple)) == b"".join(f for f in frames if f[6] != Kind.PING)
