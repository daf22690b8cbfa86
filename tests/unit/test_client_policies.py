"""What subscribe() says of policy and limits: what is legal, what the bus is told, again after a reconnect too; Lagging and CaughtUp."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgpack
import pytest

from ipcbus.protocol.limits import MAX_ID
from ipcbus.protocol.messages import Kind, encode_with_payload
from ipcbus_client import CaughtUp, Lagging, Limits, Lost, Reconnected
from ipcbus_client._lanes import Lane
from ipcbus_client._policies import POLICIES, check_policy
from tests.unit.test_client_notices import answer, connected, frames, lost, message, reconnect, select, stream, subscribed


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (None, None),
        ({}, None),
        (Limits(), None),
        ({"soft": None}, None),
        ({"soft": 1, "hard": 1, "seconds": 0}, {"soft": 1, "hard": 1, "seconds": 0}),
        ({"soft": MAX_ID, "hard": MAX_ID, "seconds": 86_400}, {"soft": MAX_ID, "hard": MAX_ID, "seconds": 86_400}),
        ({"soft": 5, "hard": 5}, {"soft": 5, "hard": 5}),
        (Limits(soft=1, seconds=2.5), {"soft": 1, "seconds": 2.5}),
        (Limits(hard=2), {"hard": 2}),
    ],
)
def test_limits(limits: Any, said: Any) -> None:
    for policy in (None, *POLICIES):
        assert check_policy(policy, limits, None) == said


@pytest.mark.parametrize(
    ("policy", "limits", "group", "error", "words"),
    [
        ("", None, None, ValueError, "block, drop_oldest, drop_newest, latest, disconnect"),
        ("Block", None, None, ValueError, "'Block'"),
        (5, None, None, ValueError, "5"),
        ("disconnect", None, "g", ValueError, "not for a group"),
        (None, 5, None, TypeError, "soft, hard, seconds"),
        (None, {"sofd": 1}, None, ValueError, "no 'sofd'"),
        (None, {"soft": 1.5}, None, TypeError, "whole"),
        (None, {"soft": True}, None, TypeError, "soft=True"),
        (None, {"seconds": "5"}, None, TypeError, "seconds='5'"),
        (None, {"seconds": -1}, None, ValueError, "0 to 86400"),
        (None, {"seconds": 86_401}, None, ValueError, "0 to 86400"),
        (None, {"seconds": float("nan")}, None, ValueError, "0 to 86400"),
        (None, {"seconds": float("inf")}, None, ValueError, "0 to 86400"),
        (None, {"hard": 0}, None, ValueError, "1 to"),
        (None, {"soft": 0}, None, ValueError, "1 to"),
        (None, {"soft": MAX_ID + 1}, None, ValueError, "1 to"),
        (None, Limits(soft=6, hard=5), None, ValueError, "soft=6 is over hard=5"),
    ],
)
def test_what_is_illegal(policy: Any, limits: Any, group: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_policy(policy, limits, group)


@pytest.mark.parametrize(("policy", "limits"), [("latest", {"soft": 1}), (None, {"seconds": 2.5}), ("block", None), (None, None)])
def test_the_bus_is_told_again_after_a_reconnect(policy: str | None, limits: Any) -> None:
    session = connected()
    lane = Lane(session.new_id(), "a.>", window_bytes=1000, group="g", policy=policy, limits=limits)
    session.declarations.subscribe(lane)
    expected = {key: value for key, value in (("policy", policy), ("limits", limits)) if value is not None}
    for arguments in (answer(session), reconnect(session)):
        assert {key: arguments[key] for key in ("policy", "limits") if key in arguments} == expected


# --- notices ---


def lagging(lane: Lane, count: int = 10, *, dropping: bool = False) -> bytes:
    about = {
        "lane": lane.number, "bytes": 100 * count, "count": count, "policy": "block", "soft": 500, "hard": 5000, "seconds": 5.0,
        "dropping": dropping,
    }  # fmt: skip
    return encode_with_payload(msgpack.packb(about), Kind.NOTICE, 0, "lagging", None)


def caught_up(lane: Lane, lost: int = 0) -> bytes:
    return encode_with_payload(msgpack.packb({"lane": lane.number, "lost": lost}), Kind.NOTICE, 0, "caught_up", None)


def test_at_their_place() -> None:
    session = connected()
    lane = subscribed(session)
    frames_in = [
        select(lane), message(b"1"), lagging(lane), message(b"2"), lagging(lane, 20, dropping=True), message(b"3"), lost(lane, 4),
        message(b"4"), caught_up(lane, 4), message(b"5"),
    ]  # fmt: skip
    session.receive(b"".join(frames_in))
    assert stream(lane) == [
        b"1", Lagging(1000, 10, False, "a.>"), b"2", Lagging(2000, 20, True, "a.>"), b"3", Lost(4, "too_slow", "a.>"), b"4",
        CaughtUp(4, "a.>"), b"5",
    ]  # fmt: skip
    assert session.stats()["lagging"] == 1
    assert lane.lost == 4


def test_without_notices_they_are_counted_and_logged_once() -> None:
    session = connected()
    lane = subscribed(session, notices=False)
    session.remarks.clear()
    for _ in range(3):
        session.receive(lagging(lane) + lagging(lane, dropping=True) + caught_up(lane))
    assert not lane.messages
    assert session.stats()["lagging"] == 3
    assert [remark.text for remark in session.remarks] == [
        "subscription 'a.>' lags behind: 10 messages of 1000 bytes wait at the bus, over its soft limit of 500 (policy block); `lagging` "
        "of stats_local() counts on"
    ]


def test_of_a_lane_that_is_gone() -> None:
    session = connected()
    lane = subscribed(session)
    session.declarations.withdraw("subscribe", lane.number)
    frames(session)
    session.receive(lagging(lane) + caught_up(lane))
    assert session.hangup is None
    assert not lane.messages


@pytest.mark.parametrize("group", [None, "g"])
def test_without_a_message_between_them_they_are_few_and_the_last_is_there(group: str | None) -> None:
    for kinds in product("LDCXR", repeat=4):
        lane = Lane(1, "a.>", group=group, window_bytes=1000, notices=True)
        stands: Any = None
        losses = 0
        for n, kind in enumerate(kinds * 3):
            if kind == "R":
                lane.reconnected(n, False)
                stands, losses = stands and CaughtUp, 0
            elif kind == "X":
                lane.missed(1, "too_slow")
                losses += 1
            elif kind == "C":
                lane.caught_up(0)
                stands = CaughtUp
            else:
                lane.waits(1000, 10, kind == "D")
                stands = Lagging
        notices = stream(lane)
        assert len(notices) <= 8
        assert sum(isinstance(notice, Reconnected) for notice in notices) == ("R" in kinds)
        standing = [type(notice) for notice in notices if isinstance(notice, (Lagging, CaughtUp))]
        assert standing[-1:] == ([] if stands is None else [stands])
        after = [index for index, notice in enumerate(notices) if isinstance(notice, Reconnected)]
        assert sum(notice.count for notice in notices[after[0] if after else 0 :] if isinstance(notice, Lost)) >= losses
        # They cost no credit and are no messages of a group: all is as it was when they are taken.
        lane.messages.clear()
        for _ in notices:
            lane.handled()
        assert lane.grant(idle=True) == (0, 0)
        assert lane.held_bytes == 0


def test_a_reconnect_ends_it() -> None:
    session = connected()
    lane = subscribed(session)
    session.receive(select(lane) + message(b"1") + lagging(lane) + lost(lane, 3))
    reconnect(session)
    session.receive(select(lane) + message(b"2"))
    reconnect(session)
    assert stream(lane) == [
        b"1", Lagging(1000, 10, False, "a.>"), Lost(3, "too_slow", "a.>"), CaughtUp(3, "a.>"), Reconnected(1, False, "a.>"), b"2",
        Reconnected(2, False, "a.>"),
    ]  # fmt: skip
