"""Whose turn it is: the order, the bound, and what is charged to a lane."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from ipcbus_client._lanes import Lane
from ipcbus_client._names import check_handling
from ipcbus_client._turns import CONCURRENCY_MAX, Turns


def fill(turns: Turns) -> list[tuple[Any, Any]]:
    """Take what may begin, as a shell does."""
    begun = []
    while turns.can_begin:
        if turns.can_pull:
            item = turns.source.popleft()
            turns.park(item, None if turns.key is None else turns.key(item))
        turn = turns.begin()
        if turn is not None:
            begun.append(turn)
    return begun


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_at_most_so_many_begin_and_in_the_order_they_came(concurrency: int) -> None:
    turns = Turns(deque(range(5)), concurrency, None)
    begun = fill(turns)
    assert [item for _, item in begun] == list(range(concurrency))
    assert (turns.at_work, len(turns.source), turns.parked) == (concurrency, 5 - concurrency, 0)
    turns.end(begun[0][0])
    assert [item for _, item in fill(turns)] == [concurrency]


def test_a_key_at_work_holds_its_own_and_no_other() -> None:
    turns = Turns(deque(["a1", "a2", "b1", "a3", "c1"]), 2, lambda item: item[0])
    (a, first), (_, second) = fill(turns)
    assert (first, second) == ("a1", "b1")
    assert turns.parked == 1  # a2: it was looked at to find b1
    turns.end(a)
    ((a, first),) = fill(turns)
    assert first == "a2"
    turns.end(a)
    assert [item for _, item in fill(turns)] == ["a3"]
    assert not turns.idle


def test_nothing_overtakes_an_item_whose_key_is_being_asked() -> None:
    turns = Turns(deque(["a1", "a2"]), 2, lambda item: item[0])
    turns.pulling = True
    assert not turns.can_pull
    assert not turns.can_begin
    assert not turns.idle


def test_a_key_that_cannot_be_hashed_is_refused_and_leaves_nothing() -> None:
    turns = Turns(deque(), 2, lambda item: [item])
    with pytest.raises(TypeError):
        turns.park(1, [1])
    assert turns.idle


def test_clear_forgets_what_has_not_begun() -> None:
    turns = Turns(deque(["a1", "a2", "b1", "b2", "c1"]), 2, lambda item: item[0])
    begun = fill(turns)
    assert turns.clear() == 3
    for token, _ in begun:
        turns.end(token)
    assert turns.idle
    assert fill(turns) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_ends_keeps_the_order_of_each_key_and_the_bound(seed: int) -> None:
    chance = random.Random(seed)
    concurrency = chance.randint(1, 5)
    keyed = chance.random() < 0.7
    items = [(chance.choice("abcd"), number) for number in range(200)]
    turns = Turns(deque(), concurrency, (lambda item: item[0]) if keyed else None)
    waiting, at_work, done = list(items), [], []
    while waiting or at_work or not turns.idle:
        if waiting and chance.random() < 0.5:
            turns.source.append(waiting.pop(0))
        at_work += fill(turns)
        assert len(at_work) <= concurrency
        if keyed:
            assert len({item[0] for _, item in at_work}) == len(at_work)
        if at_work and chance.random() < 0.6:
            token, item = at_work.pop(chance.randrange(len(at_work)))
            turns.end(token)
            done.append(item)
    assert turns.idle
    assert sorted(done, key=items.index) == items
    if keyed:
        for key in "abcd":
            assert [item for item in done if item[0] == key] == [item for item in items if item[0] == key]


# --- the window of a lane bounds what is parked ---


def message(size: int) -> Any:
    return (1, 2, "t", None, bytes(size))


def test_what_is_parked_is_not_granted_again_until_it_begins() -> None:
    lane = Lane(1, "t", window_bytes=1000)
    turns = Turns(lane.messages, 2, lambda item: item[1], lane)
    for _ in range(4):
        lane.messages.append(message(100))
    lane.arrived(4, 600)
    ((token, _),) = fill(turns)  # all have the same key: three are parked
    assert (turns.parked, lane.parked_bytes) == (3, 3 * 133)
    assert lane.grant() == (0, 0)
    assert lane.restart()[0] == 1000 - 3 * 133  # a new connection: what is here still counts
    for _ in range(3):
        turns.end(token)
        ((token, _),) = fill(turns)
    assert lane.parked_bytes == 0
    assert lane.restart()[0] == 1000


def test_others_get_their_share_of_the_window_while_one_key_is_stuck() -> None:
    """What may still be granted is small then, so less than half of the window is worth a frame."""
    lane = Lane(1, "t", window_bytes=1000)
    lane.parked_bytes = 600
    for _ in range(8):
        lane.messages.append(message(92))
    lane.arrived(8, 1000)
    while len(lane.messages) > 2:
        lane.messages.popleft()
    lane.arrived(0, 0)
    assert lane.grant() == (0, 0)  # not all of the read was consumed
    lane.messages.clear()
    assert lane.grant() == (400, 0)
    assert lane.grant() == (0, 0)
    lane.parked_bytes = 0
    assert lane.grant() == (600, 0)


@pytest.mark.parametrize("concurrency", [0, CONCURRENCY_MAX + 1, -1])
def test_a_concurrency_that_means_nothing_is_refused(concurrency: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        check_handling(concurrency, None, "log")


@pytest.mark.parametrize("concurrency", [1.5, "2", True, 2.0])
def test_a_concurrency_is_a_whole_number(concurrency: Any) -> None:
    with pytest.raises(TypeError, match="it is a whole number"):
        check_handling(concurrency, None, "log")


def test_what_may_be_asked_of_user_code() -> None:
    for concurrency in (None, 1, CONCURRENCY_MAX):
        check_handling(concurrency, len, "raise")
    with pytest.raises(TypeError, match="key is a function"):
        check_handling(1, "topic", "log")
    with pytest.raises(ValueError, match="errors='ignore'"):
        check_handling(1, None, "ignore")
