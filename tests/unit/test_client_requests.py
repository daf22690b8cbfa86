"""Requests that are more than one: again until they are answered, and to many at once."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

import ipcbus_client
from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import Kind, decode, encode, encode_with_payload
from ipcbus_client import ConnectionLost, Expired, PayloadError, Refused
from ipcbus_client._errors import request_error
from ipcbus_client._gather import Asked, Gathering, listed, matching
from ipcbus_client._retries import Retries
from ipcbus_client._session import Session

LOST = ConnectionLost("cut")


def refused(code: int | str) -> ipcbus_client.RequestError:
    return request_error(code, "", "svc/do")


AGAIN = {Code.RESPONDER_DIED, Code.OVERLOADED}
AGAIN_AFTER_IT_WENT = {*AGAIN, Code.NO_SUCH_NAME, Code.NO_SUCH_METHOD}


@pytest.mark.parametrize("code", [*Code, "services_own"])
def test_what_is_asked_again(code: Any) -> None:
    assert (Retries().delay_s(refused(code), 0.0) is not None) is (code in AGAIN)
    for went in (LOST, refused(Code.RESPONDER_DIED)):
        retries = Retries()
        assert retries.delay_s(went, 0.0) is not None
        assert (retries.delay_s(refused(code), 0.0) is not None) is (code in AGAIN_AFTER_IT_WENT)
    retries = Retries()
    assert retries.delay_s(refused(Code.OVERLOADED), 0.0) is not None  # it is there: a missing method stays missing
    assert retries.delay_s(refused(Code.NO_SUCH_METHOD), 0.0) is None


def test_waits_between_tries_grow_and_a_lost_connection_is_waited_for_elsewhere() -> None:
    retries = Retries()
    died = refused(Code.RESPONDER_DIED)
    delays = [retries.delay_s(died, 0.5) or 0.0 for _ in range(8)]
    assert delays == sorted(delays)
    assert 0.01 <= delays[0] <= 0.02
    assert delays[-1] == pytest.approx(0.375)
    assert retries.delay_s(LOST, 0.5) == 0.0


NAMES = [
    {"name": "lab.a", "mode": "exclusive", "owners": [3], "methods": ["get", "set"]},
    {"name": "lab.b", "mode": "queue", "owners": [4, 9], "methods": ["*"]},
    {"name": "lab.c", "mode": "shared", "owners": [5, 6], "methods": ["get"]},
    {"name": "lab.d", "mode": "shared", "owners": [7], "methods": ["get"]},
    {"name": "lab.e", "mode": "exclusive", "owners": [8], "methods": ["set"]},
    {"name": "lab.f", "mode": "queue", "owners": [], "methods": ["get"]},
    {"name": "other", "mode": "exclusive", "owners": [3], "methods": ["get"]},
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (
            "lab.*",
            [
                Asked("lab.a/get", "lab.a/get", 3), Asked("lab.b/get", "lab.b/get", 4), Asked("lab.c/get", ":5/get", 5),
                Asked("lab.c/get", ":6/get", 6), Asked("lab.d/get", "lab.d/get", 7),
            ],
        ),
        ("other", [Asked("other/get", "other/get", 3)]),
        ("lab.e", []),
        ("nobody.>", []),
    ],
)  # fmt: skip
def test_who_is_asked_for_a_pattern(pattern: str, found: list[Asked]) -> None:
    assert matching(pattern, "get", NAMES) == found


def connected(max_requests: int = 5) -> Session:
    session = Session(program="p", library="l")
    session.opened()
    session.receive(encode(Kind.WELCOME, 0, 1, [], 7, b"i" * 16, {"max_requests": max_requests}))
    sent(session)
    return session


def sent(session: Session) -> list[tuple[Any, ...]]:
    found = []
    while session.outbox.unsent_bytes:
        data = bytes(session.outbox.chunk())
        session.outbox.wrote(len(data))
        at = 0
        while at < len(data):
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            found.append(decode(data[at:end]).elements)
            at = end
    return found


def reply(sender: int, identity: int, value: Any) -> bytes:
    return encode_with_payload(msgpack.packb(value), Kind.REPLY, sender, ":7", identity, None)


def error(sender: int, identity: int, code: Any) -> bytes:
    return encode_with_payload(b"", Kind.ERROR, sender, ":7", identity, code, "why", None)


@pytest.mark.parametrize("by_name", [True, False])
def test_answers_errors_and_silence(by_name: bool) -> None:
    session = connected()
    asked = [Asked(f"s{n}/do", f"s{n}/do", 20 + n) for n in range(5)]
    gathering = Gathering(session, asked, by_name=by_name)
    told: list[int] = []
    gathering.notify = lambda: told.append(1)
    gathering.ask({"x": 1}, None, 3.0)
    requests = sent(session)
    assert [(frame[0], frame[2], frame[4]) for frame in requests] == [(Kind.REQUEST, f"s{n}/do", 3000) for n in range(5)]
    ids = [frame[3] for frame in requests]
    session.receive(reply(33, ids[0], "yes") + error(34, ids[1], "too_hot") + error(0, ids[2], Code.NO_SUCH_METHOD.value))
    session.receive(encode_with_payload(b"\xc1", Kind.REPLY, 35, ":7", ids[3], None))
    assert (gathering.open, told) == (1, [])
    gathering.cancel()
    assert [(frame[0], frame[2], frame[3]) for frame in sent(session)] == [(Kind.CANCEL, "s4/do", ids[4])]
    assert not session.calls
    answers = {answer.to: answer for answer in gathering.answers(3.0)}
    assert ("s2/do" in answers) is by_name
    assert (answers["s0/do"].data, answers["s0/do"].peer, answers["s0/do"].result()) == ("yes", 33, "yes")
    assert answers["s1/do"].peer == 34
    with pytest.raises(ipcbus_client.ServiceError, match="s1/do: too_hot: why"):
        answers["s1/do"].result()
    assert isinstance(answers["s3/do"].error, PayloadError)
    late = answers["s4/do"].error
    assert isinstance(late, Expired)
    assert (late.who, late.what, late.to) == ("s4/do", "request_all", "s4/do")
    if by_name:
        assert (answers["s2/do"].peer, type(answers["s2/do"].error)) == (22, ipcbus_client.NoSuchMethod)


def test_all_settle_when_the_connection_ends() -> None:
    session = connected()
    gathering = Gathering(session, [Asked("a/do", "a/do", 0), Asked("b/do", "b/do", 0)], by_name=True)
    told: list[int] = []
    gathering.notify = lambda: told.append(1)
    gathering.ask(None, None, 3.0)
    (first, _) = sent(session)
    session.receive(reply(33, first[3], 1))
    session.lost("cut", again=True)
    assert told == [1]
    gathering.cancel()
    one, other = gathering.answers(3.0)
    assert one.result() == 1
    assert isinstance(other.error, ConnectionLost)


@pytest.mark.parametrize(("in_flight", "count", "allowed"), [(0, 5, True), (0, 6, False), (2, 3, True), (2, 4, False), (5, 0, True)])
def test_no_more_at_once_than_the_bus_allows(in_flight: int, count: int, allowed: bool) -> None:
    session = connected(max_requests=5)
    for _ in range(in_flight):
        session.request("svc/do", None, None, 5.0)
    sent(session)
    asked = listed((f"s{n}/do" for n in range(count)), session)
    if allowed:
        Gathering(session, asked, by_name=True).ask(None, None, 3.0)
        assert len(sent(session)) == count
    else:
        with pytest.raises(Refused, match=f"over_limit: {count} requests at once.*the bus allows 5"):
            Gathering(session, asked, by_name=True)
        assert not sent(session)


def test_an_endless_list_is_not_read_to_its_end() -> None:
    def endless() -> Any:
        while True:
            yield "svc/do"

    assert len(listed(endless(), connected(max_requests=5))) == 6
