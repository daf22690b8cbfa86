"""Real processes are killed, stopped, slowed and squeezed, by a plan that a seed makes. Afterwards nothing is left, and what programs wrote
down agrees.

A failure prints the seed and its events; ``--chaos-seed`` and ``--chaos-seconds`` play them again (when exactly each one falls is the
machine's affair).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ipcbus.broker.counters import ENDS
from tests.chaos import verdict
from tests.chaos.events import Stagehand, cast, plan
from tests.chaos.troupe import Troupe

ACT_S = 60.0  #: of a long run
MARGIN_BYTES = 48 << 20  #: by which the daemon's memory may differ from the start: what the allocator keeps of the largest moment
FILES = {"bus.secret", "ipcbusd.toml", "log", "bus.sock.lock"}  #: what an end in order leaves


def test_chaos(short_dir: Path, chaos_seconds: float, chaos_seed: int) -> None:
    troupe = Troupe(short_dir)
    seed, left_s = chaos_seed, chaos_seconds
    try:
        while left_s > 0:
            _act(troupe, seed, min(left_s, ACT_S))
            seed += 1
            left_s -= ACT_S
        assert troupe.daemon.stop() == 0
        assert "fault of the bus" not in troupe.daemon.log()
    finally:
        troupe.close()
    assert {entry.name for entry in short_dir.iterdir() if entry.suffix not in (".journal", ".errors")} == FILES
    assert not _processes_in(short_dir), "a process is left"


def _act(troupe: Troupe, seed: int, seconds: float) -> None:
    """One plan, and what must be true after it."""
    events = plan(seed, seconds)
    happened = 0
    try:
        troupe.programs = []
        descriptors, memory = troupe.descriptors(), troupe.memory_bytes()
        for part, options in cast(seed).items():
            troupe.start(part, options)
        troupe.wait_ready()
        stagehand = Stagehand(troupe)
        began = time.monotonic()
        for event in events:
            while time.monotonic() < began + event.at_s:
                stagehand.run_due()
                time.sleep(0.01)
            happened += 1
            stagehand.happen(event)
        stagehand.run_due(all_of_it=True)
        troupe.wait_ready()
        troupe.finish()
        _nothing_left(troupe, descriptors, memory)
        found = verdict.wrong(troupe.programs)
        assert not found, "\n".join(found[:20])
        _something_happened(troupe)
    except BaseException as error:
        told = "".join(f"\n  {'✓' if number < happened else ' '} {event}" for number, event in enumerate(events))
        error.add_note(f"--chaos-seed {seed} --chaos-seconds {seconds:g}; its events:{told}")
        error.add_note(f"the daemon's log ends:\n{troupe.daemon.log()[-3000:]}")
        raise
    finally:
        for program in troupe.alive():
            troupe.kill(program)


def _nothing_left(troupe: Troupe, descriptors: int, memory: int) -> None:
    """Nobody is connected: every table is empty, every charge is gone, and the daemon is as it was before."""
    troupe.wait_for(lambda: troupe.ask("stats")["peers"] == 1, "connections are left")
    stats = troupe.ask("stats")
    left = {name: stats[name] for name in ("lanes", "names", "requests", "retained", "retained_bytes", "queued_bytes") if stats[name]}
    assert not left, f"left at the bus: {left}"
    ended = {name: stats[name] for name in (*ENDS, "queued")}
    assert stats["offered"] == sum(ended.values()), f"{stats['offered']} messages were offered, and the books say {ended} (B-4)"
    (observer,) = troupe.ask("peers")["items"]
    assert observer["program"] == "conductor"
    for account in troupe.ask("accounts")["items"]:
        used = {name: figures["used"] for name, figures in account["resources"].items() if figures["used"]}
        assert used == {"peers": 1}, f"charges are left: {account}"
    troupe.wait_for(lambda: troupe.descriptors() <= descriptors, f"the daemon has {troupe.descriptors()} descriptors, not {descriptors}")
    grown = troupe.memory_bytes() - memory
    assert grown < MARGIN_BYTES, f"the daemon's memory has grown by {grown} bytes"


def _something_happened(troupe: Troupe) -> None:
    """The act was not empty: messages came, requests were answered."""
    count = verdict.Records(troupe.programs).count()
    for word in ("routed", "came", "answered", "served", "done"):
        assert count[word] > 0, f"no line {word!r} in any journal: {dict(count)}"


def _processes_in(directory: Path) -> list[str]:
    """Processes whose command line or open files name *directory*."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:
            continue  # it has just ended, or is not ours
        if os.fsencode(directory) in command or any(path.startswith(str(directory)) for path in opened):
            found.append(f"{entry.name}: {command!r}")
    return found
