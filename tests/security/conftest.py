"""One system bus and three users for all tests of this directory that run in one process; nothing that a test does changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.daemons import RunningDaemon, system_bus
from tests.security.people import ALICE, BOB, MALLORY, OPERATORS, Stranger

POLICY = f"""
[[rule]]
comment = "alice's own"
allow = "*"
uid = {ALICE}
names = ["vault", "vault.>"]
topics = ["private.>", "open.>"]

[[rule]]
comment = "anybody may serve guests, talk in the open, and ask the vault for what is public"
allow = ["own", "send", "call", "publish", "subscribe"]
names = "guest.>"
topics = "open.>"

[[rule]]
allow = "call"
names = "vault"
methods = "public"

[[rule]]
allow = ["own", "call", "send", "monitor"]
gid = {OPERATORS}
names = ["office.>", ":"]
topics = "open.>"
"""


@pytest.fixture(scope="session")
def bus() -> Iterator[RunningDaemon]:
    """A system bus with POLICY, on a Unix socket for everybody and on loopback TCP."""
    with system_bus(POLICY) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def person() -> Iterator[Callable[[int], Stranger]]:
    """The process of a user, started when it is first asked for."""
    started: dict[int, Stranger] = {}

    def of(uid: int) -> Stranger:
        if uid not in started:
            started[uid] = Stranger(uid)
        return started[uid]

    yield of
    for each in started.values():
        each.close()


@pytest.fixture
def alice(person: Callable[[int], Stranger]) -> Stranger:
    """A user of whom others want something."""
    return person(ALICE)


@pytest.fixture
def bob(person: Callable[[int], Stranger]) -> Stranger:
    """A user who does nothing wrong."""
    return person(BOB)


@pytest.fixture
def mallory(person: Callable[[int], Stranger]) -> Stranger:
    """A user with no rights but those of everybody, who tries everything."""
    return person(MALLORY)
