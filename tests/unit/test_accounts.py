"""Accounts: who is charged, the formula of shares, each limit at each level, and what is said when there is no room (Q-1, Q-2, Q-4)."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from ipcbus.broker.accounts import Accounts, Program
from ipcbus.broker.quotas import (
    BYTES,
    LANES,
    NAMES,
    PEERS,
    REQUESTS,
    RESOURCES,
    RETAINED,
    RETAINED_BYTES,
    UNDIVIDED,
    OverQuota,
    caps,
    fair_share,
    may_add,
    reserve,
)
from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits

BIG = 10**9

#: The options of each level, by resource; kept messages have one option for all.
PROGRAM = {
    BYTES: "max_program_bytes", PEERS: "max_program_peers", LANES: "max_program_lanes", NAMES: "max_program_names",
    REQUESTS: "max_program_requests",
}  # fmt: skip
USER = {
    BYTES: "max_user_bytes", PEERS: "max_user_peers", LANES: "max_user_lanes", NAMES: "max_user_names", REQUESTS: "max_user_requests",
    RETAINED: "max_retained_topics", RETAINED_BYTES: "max_retained_bytes",
}  # fmt: skip
BUS = {
    BYTES: "max_queued_bytes", PEERS: "max_peers", LANES: "max_bus_lanes", NAMES: "max_bus_names", REQUESTS: "max_bus_requests",
    RETAINED: "max_retained_topics", RETAINED_BYTES: "max_retained_bytes",
}  # fmt: skip


def wide(**limits: int) -> Limits:
    """Limits that are in nobody's way, but for these."""
    names = {*PROGRAM.values(), *USER.values(), *BUS.values()}
    return Limits(**(dict.fromkeys(names, BIG) | limits))


def room(accounts: Accounts, program: Program, resource: int, most: int = 10_000) -> int:
    """How many single ones are admitted."""
    for count in range(most):
        try:
            accounts.charge(program, resource, 1)
        except OverQuota:
            return count
    return most


# --- the formula (Q-2) ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "users", "share", "amount", "admitted"),
    [
        (0, 1, 0, 50, True),  # the first gets half …
        (0, 1, 0, 51, False),  # … and no more,
        (50, 1, 50, 0, True),
        (50, 1, 50, 1, False),
        (50, 2, 0, 16, True),  # the second a third of the rest,
        (50, 2, 0, 17, False),
        (66, 3, 0, 8, True),  # the third a quarter of what they left
        (66, 3, 0, 9, False),
        (100, 4, 0, 1, False),
        (120, 4, 0, 0, False),  # a limit that became smaller
    ],
)
def test_the_formula(used: int, users: int, share: int, amount: int, admitted: bool) -> None:
    assert may_add(100, used, users, share, amount) is admitted


@pytest.mark.parametrize("users", [1, 2, 3, 7, 50])
def test_what_the_formula_leaves_is_what_it_says_beforehand(users: int) -> None:
    limit, shares = 100_000, [0] * users
    for index in range(users):
        fair = fair_share(limit, sum(shares), index + 1, 0)
        assert may_add(limit, sum(shares), index + 1, 0, fair)
        assert not may_add(limit, sum(shares), index + 1, 0, fair + 1)
        shares[index] = fair
    assert sum(shares) < limit, "something is left for the next one"
    assert all(share > limit / (users + 1) ** 2 / 2 for share in shares)


@pytest.mark.parametrize(("limit", "kept"), [(1, 0), (UNDIVIDED, 0), (UNDIVIDED + 1, 125), (80_000, 10_000)])
def test_the_reserve_is_an_eighth_of_what_can_be_divided(limit: int, kept: int) -> None:
    assert reserve(limit) == kept


# --- one limit at a time (Q-1) --------------------------------------------------------------------


@pytest.mark.parametrize("resource", PROGRAM)
def test_the_limit_of_a_program(resource: int) -> None:
    accounts = Accounts(wide(**{PROGRAM[resource]: 5}))
    program = accounts.enter(1000, 10)
    mine = program.used[resource]
    assert room(accounts, program, resource) == 5 - mine
    with pytest.raises(OverQuota) as caught:
        accounts.charge(program, resource, 1)
    assert f"pid 10 of uid 1000 has 5 of 5 {RESOURCES[resource].words}" in str(caught.value)
    assert f"limits.{PROGRAM[resource]}" in str(caught.value)
    assert program.used[resource] == 5
    accounts.release(program, resource, 1)
    accounts.charge(program, resource, 1)
    if resource != PEERS:
        other = accounts.enter(1000, 11)
        accounts.charge(other, resource, 5)  # another program of the user has a limit of its own


@pytest.mark.parametrize("resource", [BYTES, LANES, NAMES, REQUESTS])
def test_one_program_gets_half_of_what_a_user_has(resource: int) -> None:
    accounts = Accounts(wide(**{USER[resource]: 100}))
    first, second = accounts.enter(1000, 10), accounts.enter(1000, 11)
    assert room(accounts, first, resource) == 50
    assert room(accounts, second, resource) == 16
    with pytest.raises(OverQuota) as caught:
        accounts.charge(first, resource, 1)
    assert "its share is 50 of the 100 that uid 1000 may have: 66 are in use" in str(caught.value)
    assert f"limits.{USER[resource]}" in str(caught.value)


@pytest.mark.parametrize("resource", [BYTES, LANES, NAMES, REQUESTS])
@pytest.mark.parametrize(("amount", "admitted"), [(19, True), (20, True), (21, False)])
def test_the_limit_of_a_user_holds_for_what_was_charged_without_asking(resource: int, amount: int, admitted: bool) -> None:
    accounts = Accounts(wide(**{USER[resource]: 20}))
    program = accounts.enter(1000, 10)
    accounts.add(program, resource, amount)
    assert accounts.is_full(program, resource) is not admitted


@pytest.mark.parametrize("resource", [PEERS, RETAINED, RETAINED_BYTES])
@pytest.mark.parametrize(("limit", "first", "second"), [(5, 5, 0), (1000, 1000, 0), (8000, 7000, 333)])
def test_a_program_leaves_the_last_eighth_to_others(resource: int, limit: int, first: int, second: int) -> None:
    accounts = Accounts(wide(**{USER[resource]: limit}))
    program = accounts.enter(1000, 10)
    assert program.used[resource] + room(accounts, program, resource) == first
    try:
        other = accounts.enter(1000, 11)
    except OverQuota:
        assert resource == PEERS
        assert second == 0
    else:
        assert other.used[resource] + room(accounts, other, resource) == second


@pytest.mark.parametrize("resource", BUS)
@pytest.mark.parametrize("uid", [0, 1000])
def test_the_bus_s_own_user_and_root_may_have_what_remains(resource: int, uid: int) -> None:
    accounts = Accounts(wide(**{BUS[resource]: 100}), owners=frozenset({0, 1000}))
    stranger = accounts.enter(2000, 10)
    assert stranger.used[resource] + room(accounts, stranger, resource) == 50
    own = accounts.enter(uid, 10)
    assert own.used[resource] + room(accounts, own, resource) == 50
    assert accounts.used[resource] == 100


@pytest.mark.parametrize("resource", BUS)
def test_other_users_get_shares_of_the_bus(resource: int) -> None:
    accounts = Accounts(wide(**{BUS[resource]: 100}), owners=frozenset({0, 1000}))
    stranger = accounts.enter(2000, 10)
    assert stranger.used[resource] + room(accounts, stranger, resource) == 50
    with pytest.raises(OverQuota) as caught:
        accounts.charge(stranger, resource, 1)
    assert "uid 2000" in str(caught.value)
    assert f"limits.{BUS[resource]}" in str(caught.value)
    another = accounts.enter(3000, 10)
    assert another.used[resource] + room(accounts, another, resource) == 16
    own = accounts.enter(1000, 10)
    assert own.used[resource] + room(accounts, own, resource) > 16


def test_no_level_has_more_than_the_one_above_it_and_names_the_option_that_counts() -> None:
    made = caps(wide(max_queued_bytes=10, max_user_lanes=20, max_program_names=30))
    assert (made[BYTES].program, made[BYTES].user, made[BYTES].program_option) == (10, 10, "limits.max_queued_bytes")
    assert (made[LANES].program, made[LANES].program_option) == (20, "limits.max_user_lanes")
    assert (made[NAMES].program, made[NAMES].program_option) == (30, "limits.max_program_names")


def test_connections_are_bounded_by_descriptors_too() -> None:
    accounts = Accounts(wide(max_peers=100))
    accounts.have_descriptors(3)
    program = accounts.enter(1000, 10)
    assert room(accounts, program, PEERS) == 2
    with pytest.raises(OverQuota, match="LimitNOFILE") as caught:
        accounts.enter(1000, 11)
    assert caught.value.of_bus
    accounts.reconfigure(wide(max_peers=2))
    with pytest.raises(OverQuota, match=r"limits\.max_peers"):
        accounts.enter(1000, 11)


def test_a_connection_that_is_not_admitted_leaves_no_account() -> None:
    accounts = Accounts(wide(max_peers=1))
    first = accounts.enter(1000, 10)
    with pytest.raises(OverQuota) as caught:
        accounts.enter(2000, 20)
    assert caught.value.code is Code.TOO_MANY_PEERS
    assert list(accounts.users) == [1000]
    accounts.leave(first)
    assert accounts.is_empty


def test_codes_of_refusals() -> None:
    program = Accounts(wide()).enter(1000, 10)
    for resource in range(len(RESOURCES)):
        accounts = Accounts(wide(**{BUS[resource]: 1}))
        program = accounts.enter(1000, 10)
        with pytest.raises(OverQuota) as caught:
            accounts.charge(program, resource, 2)
        expected = {BYTES: Code.OVER_QUOTA, PEERS: Code.TOO_MANY_PEERS}.get(resource, Code.OVER_LIMIT)
        assert caught.value.code is expected


# --- who is who -----------------------------------------------------------------------------------


def test_connections_of_a_process_are_one_program() -> None:
    accounts = Accounts(wide())
    one, two = accounts.enter(1000, 10), accounts.enter(1000, 10)
    assert one is two
    assert accounts.enter(1001, 10) is not one, "the same pid of another user"
    assert one.used[PEERS] == 2
    accounts.leave(one)
    assert not one.gone
    accounts.leave(one)
    assert one.gone


def test_without_a_pid_each_connection_is_a_program() -> None:
    accounts = Accounts(wide())
    one, two, tcp = accounts.enter(1000, 0), accounts.enter(1000, 0), accounts.enter("tcp", 0)
    assert one is not two
    assert one.user is two.user is not tcp.user
    assert str(one) == "one connection of uid 1000"
    assert str(tcp) == "one connection of the clients on TCP"
    for program in (one, two, tcp):
        accounts.leave(program)
    assert accounts.is_empty


def test_what_a_program_retained_is_its_user_s_when_it_has_gone() -> None:
    accounts = Accounts(wide())
    program = accounts.enter(1000, 10)
    accounts.charge(program, RETAINED, 3)
    accounts.charge(program, RETAINED_BYTES, 300)
    accounts.leave(program)
    user = accounts.users[1000]
    assert (user.used[RETAINED], user.actors[RETAINED], user.actors[RETAINED_BYTES]) == (3, 0, 0), "nobody is counted for it"
    assert accounts.is_empty, "but for what is kept"
    again = accounts.enter(1000, 10)
    assert again is not program
    accounts.charge(again, RETAINED, 1)
    assert user.actors[RETAINED] == 1
    accounts.release(program, RETAINED, 3)
    accounts.release(program, RETAINED_BYTES, 300)
    accounts.release(again, RETAINED, 1)
    accounts.leave(again)
    assert accounts.is_empty
    assert not accounts.users


def test_the_last_that_a_user_retained_takes_its_account_along() -> None:
    accounts = Accounts(wide())
    program = accounts.enter(1000, 10)
    accounts.charge(program, RETAINED, 1)
    accounts.leave(program)
    assert 1000 in accounts.users
    accounts.release(program, RETAINED, 1)
    assert not accounts.users
    assert not any(accounts.used)


@pytest.mark.parametrize("resource", [BYTES, PEERS, LANES, NAMES, REQUESTS])
def test_a_charge_that_nobody_gave_back_is_seen(resource: int) -> None:
    accounts = Accounts(wide())
    program = accounts.enter(1000, 10)
    accounts.charge(program, resource, 1)
    accounts.leave(program)
    assert not accounts.is_empty


def test_actors_are_those_who_have_something() -> None:
    accounts = Accounts(wide())
    one, two = accounts.enter(1000, 10), accounts.enter(1000, 11)
    user = one.user
    accounts.charge(one, LANES, 2)
    accounts.charge(two, LANES, 1)
    assert (user.actors[LANES], accounts.actors[LANES]) == (2, 1)
    accounts.release(one, LANES, 1)
    assert user.actors[LANES] == 2
    accounts.release(one, LANES, 1)
    assert user.actors[LANES] == 1
    accounts.release(two, LANES, 1)
    assert (user.actors[LANES], accounts.actors[LANES]) == (0, 0)


# --- limits that change (SIGHUP) ------------------------------------------------------------------


def test_a_limit_that_becomes_smaller_takes_nothing_away() -> None:
    accounts = Accounts(wide())
    program = accounts.enter(1000, 10)
    accounts.charge(program, LANES, 50)
    accounts.reconfigure(wide(max_program_lanes=10))
    with pytest.raises(OverQuota, match="has 50 of 10"):
        accounts.charge(program, LANES, 1)
    accounts.release(program, LANES, 41)
    accounts.charge(program, LANES, 1)
    accounts.release(program, LANES, 10)
    accounts.leave(program)
    assert accounts.is_empty


# --- the log (Q-4) --------------------------------------------------------------------------------


def test_the_first_refusal_of_an_episode_is_logged() -> None:
    lines: list[tuple[int, str]] = []
    accounts = Accounts(wide(max_program_lanes=10), lambda level, text: lines.append((level, text)))
    program = accounts.enter(1000, 10)

    def refuse() -> None:
        with pytest.raises(OverQuota):
            accounts.charge(program, LANES, 11)

    accounts.charge(program, LANES, 10)
    refuse()
    refuse()
    assert len(lines) == 1
    assert lines[0][0] == logging.WARNING
    assert "over quota: pid 10 of uid 1000 has 10 of 10 subscriptions" in lines[0][1]
    assert "limits.max_program_lanes" in lines[0][1]
    accounts.release(program, LANES, 5)
    refuse()
    assert len(lines) == 1, "half is not below half"
    accounts.release(program, LANES, 1)
    refuse()
    assert len(lines) == 2


def test_users_have_episodes_of_their_own() -> None:
    lines: list[str] = []
    accounts = Accounts(wide(max_user_lanes=10), lambda level, text: lines.append(text))
    first, second = accounts.enter(1000, 10), accounts.enter(1000, 11)
    for program in (first, second):
        accounts.add(program, LANES, 5)
    for program in (first, second, first):
        with pytest.raises(OverQuota):
            accounts.charge(program, LANES, 1)
    assert len(lines) == 1
    assert "uid 1000 has 10 of 10 subscriptions, pid 10 of uid 1000 5 of them" in lines[0]


# --- what waits: fair, full, excess ---------------------------------------------------------------


def test_fair_full_and_excess_agree() -> None:
    accounts = Accounts(wide(max_user_bytes=1000))
    one, two = accounts.enter(1000, 10), accounts.enter(1000, 11)
    accounts.add(two, BYTES, 100)
    for amount in range(1, 1400):
        accounts.add(one, BYTES, 1)
        excess = accounts.excess(one, BYTES)
        assert accounts.is_fair(one, BYTES) is (excess == 0), amount
        assert accounts.is_full(one, BYTES) is (accounts.overdraft(one) > 0), amount
        if excess:
            accounts.release(one, BYTES, excess)
            assert accounts.excess(one, BYTES) == 0, amount
            accounts.add(one, BYTES, 1)
            assert accounts.excess(one, BYTES) == 1, amount
            accounts.add(one, BYTES, excess - 1)


def test_a_stranger_s_excess_is_the_bus_s_too() -> None:
    accounts = Accounts(wide(max_queued_bytes=1000), owners=frozenset({0}))
    one = accounts.enter(1000, 10)
    accounts.add(one, BYTES, 500)
    assert accounts.excess(one, BYTES) == 0
    accounts.add(one, BYTES, 3)
    assert accounts.excess(one, BYTES) == 3
    assert not accounts.is_fair(one, BYTES)


def test_what_leaves_soon_stands_in_nobody_s_way() -> None:
    accounts = Accounts(wide(max_program_bytes=100))
    one = accounts.enter(1000, 10)
    accounts.add(one, BYTES, 150)
    assert accounts.overdraft(one) == 50
    accounts.leave_soon(one, 60)
    assert accounts.overdraft(one) == -10
    accounts.leave_soon(one, -60)
    accounts.release(one, BYTES, 150)
    accounts.leave(one)
    assert accounts.is_empty


def test_shares_are_told_as_they_are_admitted() -> None:
    limits = dataclasses.replace(wide(), max_user_lanes=1000, max_program_lanes=400, max_bus_lanes=800)
    for owners in (None, frozenset({0})):
        accounts = Accounts(limits, owners=owners)
        one, two = accounts.enter(1000, 10), accounts.enter(1000, 11)
        accounts.charge(two, LANES, 30)
        said = accounts.share(one, LANES)
        assert room(accounts, one, LANES) == said
        assert accounts.of_program(one)["lanes"]["used"] == said
        assert accounts.of_user(one.user)["lanes"]["used"] == said + 30
        assert accounts.of_bus()["lanes"] == {"used": said + 30, "limit": 800}
