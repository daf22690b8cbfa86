"""Plays many seeds on all cores, and finds the first that fails."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from .shrinking import failure
from .story import Story

CHUNK = 20  #: seeds that a worker plays before it says what it found


def first_failing(seeds: range) -> int | None:
    """The smallest of *seeds* whose story fails, or None."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if len(chunks) < 3:
        return _first(seeds)
    # spawned, not forked: a fork of a process with threads may inherit a lock that nobody will release
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return next((found for found in pool.map(_first, chunks) if found is not None), None)
        finally:
            pool.shutdown(cancel_futures=True)


def _first(seeds: range) -> int | None:
    return next((seed for seed in seeds if failure(Story(seed)) is not None), None)
