"""Plays many seeds on all cores, finds the first that fails, and makes it small."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from .shrinking import failure, shrink
from .story import Story, play

CHUNK = 20  #: seeds that a worker plays before it says what it found


@dataclass
class Found:
    """What came of some seeds."""

    failing: int | None = None  #: the smallest seed that fails
    how: str = ""  #: its error, with the story's log
    seen: set[str] = field(default_factory=set)  #: what happened in the others


def judge(seeds: range) -> set[str]:
    """What happened in the stories of *seeds*; raises how the first fails that does, with the shortest way to see it again."""
    found = play_all(seeds)
    if found.failing is not None:
        story = Story(found.failing)
        smallest = shrink(story) if failure(story) else story
        try:
            play(smallest)
        except Exception as error:
            error.add_note(f"again: python -m pytest tests/sim {smallest}")
            raise
        raise AssertionError(f"seed {found.failing} failed once and not again, so it is not one story. It was:\n{found.how}")
    return found.seen


def play_all(seeds: range) -> Found:
    """Play *seeds* until one fails."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if len(chunks) < 3:
        return _play_some(seeds)
    found = Found()
    # spawned, not forked: a fork of a process with threads may inherit a lock that nobody will release
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for some in pool.map(_play_some, chunks):
            found.seen |= some.seen
            if some.failing is not None:
                found.failing, found.how = some.failing, some.how
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return found


def _play_some(seeds: range) -> Found:
    found = Found()
    gc.disable()  # a story's garbage is full of cycles: it costs less at the end of some than all the time
    try:
        for seed in seeds:
            try:
                world = play(seed)
            except Exception as error:  # noqa: BLE001  # whatever it breaks: it is played again and looked at
                found.failing, found.how = seed, "".join(traceback.format_exception(error))
                break
            found.seen |= {kind for oracle in world.oracles for kind in oracle.checked}
    finally:
        gc.enable()
    return found
