"""The feeds of a session's state, by hand."""

from __future__ import annotations

import gc

import pytest

from ipcbus_client._session import Session
from ipcbus_client._state import CHANGES_MAX, State, StateFeed, wanted_states


def test_a_feed_has_the_present_and_each_change_in_order() -> None:
    session = Session(program="p", library="l")
    feed = session.watch_state(StateFeed(session.state))
    later = session.watch_state(StateFeed())
    told: list[str] = []
    later.notify = lambda: told.append(later.changes[-1])
    session._change(State.CONNECTED)
    session._change(State.RECONNECTING)
    session.close()
    session._change(State.CONNECTED)  # (never happens)
    assert list(feed.changes) == ["connecting", "connected", "reconnecting", "closed"]
    assert list(later.changes) == told == ["connected", "reconnecting", "closed"]
    assert feed.ended
    assert StateFeed(State.CLOSED).ended


def test_a_feed_that_nobody_reads_is_bounded() -> None:
    for changes in (CHANGES_MAX - 1, CHANGES_MAX, CHANGES_MAX + 1):
        feed = StateFeed(State.CONNECTING)
        for _ in range(changes):
            feed.put(State.CONNECTED)
        assert len(feed.changes) == min(changes + 1, CHANGES_MAX)
        assert (feed.changes[0] == "connecting") is (changes < CHANGES_MAX)


def test_a_feed_that_nobody_holds_is_gone() -> None:
    session = Session(program="p", library="l")
    for _ in range(10):
        session.watch_state(StateFeed())
    gc.collect()
    assert len(session._state_feeds) == 0


def test_a_closed_feed_says_nothing() -> None:
    feed = StateFeed(State.CONNECTED)
    told: list[int] = []
    feed.notify = lambda: told.append(len(feed.changes))
    feed.close()
    feed.put(State.CLOSED)
    assert (list(feed.changes), feed.ended, told) == ([], True, [0])


@pytest.mark.parametrize("value", ["connected", {"connected", "closed"}, ["closed"]])
def test_states_to_wait_for(value: object) -> None:
    assert wanted_states(value) == ({value} if isinstance(value, str) else set(value))  # type: ignore[arg-type,call-overload]


@pytest.mark.parametrize("value", ["", "Connected", [], {"connected", "x"}])
def test_no_states_to_wait_for(value: object) -> None:
    with pytest.raises(ValueError, match="the states of a bus are"):
        wanted_states(value)  # type: ignore[arg-type]
