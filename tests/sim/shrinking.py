"""Makes a failing story small: leaves out what it does not need."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

from .story import Story, cast, play
from .violations import ViolationError

PLAYS_MAX = 200  #: a shrunken story is worth some seconds, not minutes
ACTIONS = (
    *("publish", "post", "confirm", "send", "call", "cancel", "ping"),
    *("subscribe", "unsubscribe", "own", "serve", "release", "declare", "leave"),
)  #: of the model client and of the programs


def failure(story: Story) -> str | None:
    """How it fails; None if all promises hold. One broken promise is as good as another, for where a fault shows first depends on all else.
    Of other exceptions: the kind and the two innermost places in the code.
    """
    try:
        play(story)
    except ViolationError:
        return "a promise is broken"
    except Exception as error:  # noqa: BLE001  # a KeyError in the broker is as good a failure as a broken promise
        frames = traceback.extract_tb(error.__traceback__)[-2:]
        return " ".join([type(error).__name__, *(f"{frame.name}:{frame.lineno}" for frame in frames)])
    return None


def shrink(story: Story, failure: Callable[[Story], str | None] = failure) -> Story:
    """The smallest story found that fails as *story* does."""
    smallest = cast(story.seed).full(story)
    how = failure(smallest)
    plays = 0
    again = True
    while again:
        again = False
        for smaller in _smaller(smallest):
            if plays >= PLAYS_MAX:
                return smallest
            plays += 1
            if failure(smaller) == how:
                smallest, again = smaller, True
                break
    return smallest


def _smaller(story: Story) -> Iterator[Story]:
    """Stories with a little less in them, the largest steps first."""
    for name in ("programs", "faults", "clients"):
        present = getattr(story, name)
        if len(present) > 1:
            yield replace(story, **{name: ()})
        for one in present:
            yield replace(story, **{name: tuple(other for other in present if other != one)})
    assert story.until is not None
    for share in (0.25, 0.5, 0.75, 0.9):
        until = round(story.until * share, 2)
        if until >= 0.2:
            yield replace(story, until=until)
    for action in ACTIONS:
        if action not in story.without:
            yield replace(story, without=(*story.without, action))
