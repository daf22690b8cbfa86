"""``python -m tests.faults``: lives of a daemon in each of which one call fails, the Nth of its kind, N = 1, 2, … until none fails.

``--runs 0`` tries every N with every error; without it each kind is tried at some of them, spread over the whole life.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from ipcbus.daemon import admission

from .injector import KINDS, Injector
from .scenario import Story, live


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; repeatable")
    parser.add_argument("--error", help="only this one of the kind's errors")
    parser.add_argument("--at", type=int, help="only this N")
    parser.add_argument("--runs", type=int, default=12, help="lives for each kind and error; 0: every N (default 12)")
    parser.add_argument("--first", action="store_true", help="only the first error of each kind")
    given = parser.parse_args()
    log = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_APPEND)
    stderr = os.dup(2)
    os.dup2(log, 2)
    bad = 0
    admission.ACCEPT_PAUSE_S = 0.02
    with tempfile.TemporaryDirectory(prefix="ipcbus-", dir="/tmp") as place:
        run(Path(place), "recv", "ECONNRESET", 0)  # imports and caches, so that what is left is left by a fault
        for kind in given.kind or KINDS:
            for error in KINDS[kind][:1] if given.first else KINDS[kind]:
                if given.error in (None, error):
                    bad += faults(Path(place), kind, error, given.runs, given.at, stderr)
    return int(bad > 0)


def faults(place: Path, kind: str, error: str, runs: int, at: int | None, stderr: int) -> int:
    """All lives of one kind of failure; returns how many went wrong."""
    began = time.monotonic()
    total = run(place, kind, error, 0)[0].count
    numbers = range(1, total + 1) if not runs else sorted({1 + index * max(total - 1, 0) // max(runs - 1, 1) for index in range(runs)})
    bad = tried = 0
    for number in numbers if at is None else [at]:
        injector, story = run(place, kind, error, number)
        if not injector.failed:
            continue  # this life had fewer calls
        tried += 1
        wrong = list(story.wrong)
        if kind == "memory.bus":  # the bus lives and ends in order; who else noticed is not judged: nothing takes back half a change
            wrong = [text for text in wrong if text.startswith("it")]
        elif len(story.gone) > 1:
            wrong.append(f"one failure, and more than one peer was cut off: {story.gone}")
        said = os.pread(2, 1 << 20, 0).decode(errors="replace")
        if not story.ready and not said.strip():
            wrong.append("it did not start, and did not say why")
        if wrong:
            bad += 1
            print(f"WRONG {kind} {error} {number} at {injector.where}: {'; '.join(wrong)}\n{said[-3000:]}")
            print(f"python -m tests.faults --kind {kind} --error {error} --at {number}", flush=True)
    print(json.dumps({"kind": kind, "error": error, "calls": total, "tried": tried, "wrong": bad, "s": round(time.monotonic() - began, 2)}))
    return bad


def run(place: Path, kind: str, error: str, at: int) -> tuple[Injector, Story]:
    """One life, with a log of its own."""
    os.ftruncate(2, 0)
    logger = logging.getLogger("ipcbus")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    injector = Injector(kind, error, at)
    return injector, live(place, injector)


if __name__ == "__main__":
    sys.exit(main())
