"""The client's core, interrupted wherever a signal handler may raise: what was published is sent once, or counted, and every wait settles.

Ctrl-C comes between two steps of the interpreter: when a function begins, and after a call of one in C. A profiler sees just these places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest

from ipcbus.protocol.messages import Kind, encode
from ipcbus_client._errors import ConnectionLost
from ipcbus_client._greeting import FEATURES
from ipcbus_client._lanes import Lane
from ipcbus_client._parts import Parted
from ipcbus_client._session import Session
from ipcbus_client._waiting import Waiting

from .test_session import elements


def welcome(peer: int, incarnation: bytes = b"i") -> bytes:
    return encode(Kind.WELCOME, 0, 1, ["post", "wills"], peer, incarnation * 16, {"max_payload_bytes": 1000})


def interrupt(step: Callable[[], object], number: int) -> bool:
    """Do *step*, and raise at the place with this *number*; whether there was one."""
    places = count(1)

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and argument is not sys.setprofile and next(places) == number:
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        step()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def everywhere(make: Callable[[], Session], step: Callable[[Session], object], judge: Callable[[Session], None]) -> None:
    """Do *step* with a new session, interrupted at its first place, its second, … until it is not any more, and *judge* each."""
    for number in count(1):
        session = make()
        try:
            more = interrupt(lambda: step(session), number)  # noqa: B023  # called here
            judge(session)
        except BaseException as error:
            error.add_note(f"interrupted at place {number}")
            raise
        if not more:
            assert number > 10
            return


def connected(waiting: Waiting | None = None) -> Session:
    session = Session(program="p", library="l", waiting=waiting)
    session.use_clock(lambda: 1.0)
    session.opened()
    session.receive(welcome(7))
    elements(session)
    return session


def published(session: Session) -> None:
    """Some messages that were written in part, and some that were not; and what waits for an answer."""
    posts = session.posts
    posts.put(posts.make("t", b"0", False, None, ttl=60.0))
    for n in b"123":
        session.outbox.publish("t", bytes([n]), False, None)
    session.outbox.wrote(len(session.outbox.chunk()) // 2)
    posts.put(posts.make("t", b"4", False, None, ttl=50.0))
    for n in b"56":
        session.outbox.publish("t", bytes([n]), False, None)


def sent_by(session: Session) -> list[Any]:
    return [element[-1] for element in elements(session) if element[0] in (Kind.PUBLISH, Kind.POST, Kind.RETAIN)]


def test_a_connection_that_ends() -> None:
    def make() -> Session:
        session = connected()
        published(session)
        calls.append(session.request("svc/do", b"", None, 5.0))
        calls.append(session.ping())
        return session

    def judge(session: Session) -> None:
        session.lost("the keeper's", again=True)  # it ends what was interrupted
        assert session.undelivered() == (5, 2)  # (two of four were begun)
        for call in (calls.pop(), calls.pop()):
            assert isinstance(call.error, ConnectionLost)
        session.opened()
        session.receive(welcome(8))
        frames = elements(session)
        assert [frame[-1] for frame in frames[1:]] == [b"2", b"3", b"4", b"5", b"6"]
        assert [frame[4] for frame in frames if frame[0] == Kind.POST] == [49_000 + 1000]

    calls: list[Any] = []
    everywhere(make, lambda session: session.lost("cut", again=True), judge)


def test_a_connection_that_begins() -> None:
    def make() -> Session:
        session = connected()
        published(session)
        session.lost("cut", again=True)
        session.outbox.publish("t", b"7", False, None)
        session.opened()
        return session

    def judge(session: Session) -> None:
        session.lost("interrupted while reading", again=True)
        assert session.undelivered() == (6, 2)
        session.opened()
        session.receive(welcome(9))
        assert sent_by(session) == [b"2", b"3", b"4", b"5", b"6", b"7"]
        assert session.outbox.waiting.bytes == 0

    everywhere(make, lambda session: session.receive(welcome(8)), judge)


def test_the_end() -> None:
    def make() -> Session:
        session = connected()
        published(session)
        calls.append(session.request("svc/do", b"", None, 5.0))
        return session

    def judge(session: Session) -> None:
        session.close()
        assert session.undelivered() == (5, 2)
        assert calls.pop().done

    calls: list[Any] = []
    everywhere(make, lambda session: session.close(), judge)


@pytest.mark.parametrize("what", ["own", "serve", "will", "bind", "subscribe", "stream"])
def test_what_the_program_never_got_is_taken_back(what: str) -> None:
    """A name, a lane or a stream that the caller knows nothing of would stay, and be declared again with each connection."""
    got: list[Any] = []

    def step(session: Session) -> None:
        declare = session.declarations
        if what == "own":
            got.append(declare.own("a.b", "exclusive", False, False))
        elif what == "serve":
            got.append(declare.serve("a.b", "do"))
        elif what == "will":
            got.append(declare.will("t", 1, b"", False))
        elif what == "bind":
            got.append(declare.bind("t"))
        elif what == "subscribe":
            got.append(declare.subscribe(lanes.pop()))
        else:
            got.append(session.streams.open("svc/m", b"", None, 5.0, 1000))

    def make() -> Session:
        got.clear()
        session = connected()
        session.features = FEATURES
        lanes[:] = [Lane(session.new_id(), "t", window_bytes=1000)]
        return session

    def judge(session: Session) -> None:
        kept = len(session.declarations._all) + sum(isinstance(call, Parted) for call in session.calls.values())
        assert kept == len(got)
        assert len(session.lanes) == (len(got) if what == "subscribe" else 0)

    lanes: list[Lane] = []
    everywhere(make, step, judge)


def test_what_is_published_while_a_connection_ends() -> None:
    """A signal handler that publishes within the end of a connection: its message is not lost, and does not go out before HELLO."""
    for number in count(1):
        session = connected()
        published(session)
        places = count(1)

        def look(frame: FrameType, event: str, argument: Any) -> None:
            if event in ("call", "c_return") and next(places) == number:  # noqa: B023
                sys.setprofile(None)
                session.outbox.publish("t", b"late", False, None)  # noqa: B023

        sys.setprofile(look)
        session.lost("cut", again=True)
        over = sys.getprofile() is not None
        sys.setprofile(None)
        if over:
            break
        session.opened()
        session.receive(welcome(8))
        frames = elements(session)
        assert frames[0][0] == Kind.HELLO
        assert [frame[-1] for frame in frames[1:]] == [b"2", b"3", b"4", b"5", b"6", b"late"], f"at place {number}"
        assert session.undelivered() == (0, 2 + 6)
    assert number > 10


def test_who_closes_an_interrupted_subscription_again_tells_the_bus() -> None:
    """It would stay at the bus, and send what nobody takes."""

    def make() -> Session:
        session = connected()
        session.declarations.subscribe(Lane(session.new_id(), "t", window_bytes=1000))
        keys[:] = session.declarations._all
        elements(session)
        return session

    def judge(session: Session) -> None:
        session.declarations.withdraw(*keys[0])
        assert "bus/unsubscribe" in [frame[2] for frame in elements(session) if frame[0] == Kind.REQUEST]
        assert not session.declarations._all
        assert not session.lanes

    keys: list[Any] = []
    everywhere(make, lambda session: session.declarations.withdraw(*keys[0]), judge)
