"""Users who may not connect, and try: a line for the first time, and one a minute while they go on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from ipcbus.broker import Credentials
from ipcbus.daemon.denials import Denials
from ipcbus.daemon.limits import DENIALS_TELL_S, DENIALS_USERS
from ipcbus.protocol.addresses import UnixAddress

ADDRESS = UnixAddress("/run/ipcbus/system.sock")


class Story:
    """A clock that a test turns, and the lines of the log."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[float], None]]] = []
        self._log = log
        self._denials = Denials(lambda when, callback: self.timers.append((when, callback)))

    def refuse(self, uid: int, times: int = 1) -> None:
        for _ in range(times):
            self._denials.note(Credentials(7, uid, uid), ADDRESS, "rule 1 denies connect", self.now)

    def minute(self) -> None:
        ((when, callback),) = self.timers
        assert when == self.now + DENIALS_TELL_S
        self.timers.clear()
        self.now = when
        callback(when)

    def lines(self) -> list[str]:
        found = [record.getMessage() for record in self._log.records]
        self._log.clear()
        return found


@pytest.fixture
def story(caplog: pytest.LogCaptureFixture) -> Story:
    caplog.set_level(logging.INFO, "ipcbus.daemon")
    return Story(caplog)


def test_the_first_and_then_how_many_until_it_stops(story: Story) -> None:
    first = f"refused pid 7 uid 4242 at {ADDRESS}: rule 1 denies connect"
    story.refuse(4242, times=10_000)
    assert story.lines() == [first]
    story.minute()
    assert story.lines() == ["refused 9999 more connections of uid 4242"]
    story.refuse(4242)
    story.minute()
    assert story.lines() == ["refused 1 more connection of uid 4242"]
    story.minute()
    assert story.lines() == []
    assert not story.timers, "it is forgotten, and nothing is looked at any more"
    story.refuse(4242)
    assert story.lines() == [first]


def test_so_many_users_have_lines_of_their_own(story: Story) -> None:
    for uid in range(DENIALS_USERS + 100):
        story.refuse(uid)
    lines = story.lines()
    assert [line.split()[4] for line in lines] == [str(uid) for uid in range(DENIALS_USERS + 1)]
    assert lines[-1].endswith("and maybe other users, of whom there are too many for lines of their own")
    assert "other users" not in lines[-2]
    story.refuse(3)
    story.minute()
    assert story.lines() == ["refused 1 more connection of uid 3", "refused 99 more connections of users without lines of their own"]
    story.refuse(DENIALS_USERS)
    assert len(story.lines()) == 1, "there is room for whom it could not tell apart before"
