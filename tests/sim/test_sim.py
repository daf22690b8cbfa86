"""Seeded runs of the whole bus on the fake network. A failing seed is made small and says how to run it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from . import many
from .shrinking import shrink
from .story import Story, cast, parse, play

#: What happens in enough stories: frames, notices, reasons of losses, refusals, ends.
ALL = {
    *("PUBLISH", "RETAIN", "SEND", "REQUEST", "REPLY", "ERROR", "CANCEL", "PART", "ALLOW", "NOTICE", "LANE", "PONG", "BYE"),
    *("lost", "lagging", "dropping", "caught_up", "hold", "resume", "name_lost", "name_acquired"),
    *("block", "drop_oldest", "drop_newest", "latest", "disconnect", "too_slow", "replaced", "expired", "disconnected"),
    *("will", "bound value", "restored", "not restored", "ended by its session", "handshake_timeout"),
    *("max_requests", "max_callee_requests", "max_lanes", "max_wills", "max_bound"),
    *("over_quota", "sent away for its quota", "not kept", "max_program_lanes", "max_program_names", "too_many_peers"),
}


def test_promises_hold(seeds: range, story_text: str | None) -> None:
    if story_text is not None:
        play(parse(seeds[0], story_text))
        return
    seen = many.judge(seeds)
    if len(seeds) >= 300:
        assert seen >= ALL, "a model that nothing reaches would find nothing"


def test_a_seed_is_one_story() -> None:
    """The same seed gives the same bytes, in another process with other hashes too, or a failing one could not be looked at again."""
    code = "from tests.sim.story import play; print([play(seed).trace for seed in range(8)])"
    mine = [play(seed).trace for seed in range(8)]
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        theirs = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert theirs.stdout.strip() == str(mine)


def test_a_story_is_its_own_reproduction() -> None:
    story = Story(17, clients=(0, 2), programs=(), faults=(0, 1, 2), until=3.25, without=("call", "send"))
    assert str(story) == "--seed 17 --story clients=0+2,programs=,faults=0+1+2,until=3.25,without=call+send"
    assert parse(17, "clients=0+2,programs=,faults=0-2,until=3.25,without=call+send") == story
    assert parse(17, "") == Story(17)
    assert str(Story(17)) == "--seed 17"
    with pytest.raises(ValueError, match="a story has no 'client'"):
        parse(17, "client=1")


def test_shrinking_leaves_out_what_a_failure_does_not_need() -> None:
    seed = next(seed for seed in range(100) if len(cast(seed).clients) > 2 and len(cast(seed).faults) > 2)

    def needs_two_things(story: Story) -> str | None:
        assert story.clients is not None
        assert story.faults is not None
        assert story.until is not None
        if 1 in story.clients and 2 in story.faults and story.until > 0.5 and "post" not in story.without:
            return "both"
        return "another failure" if story.faults else None

    smallest = shrink(Story(seed), needs_two_things)
    assert (smallest.clients, smallest.programs, smallest.faults) == ((1,), (), (2,))
    assert smallest.until is not None
    assert 0.5 < smallest.until < 0.7
    assert "post" not in smallest.without
    assert "publish" in smallest.without
