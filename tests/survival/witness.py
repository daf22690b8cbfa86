"""The witness: an innocent publisher and requester in one process, their subscriber and responder in another, and what they saw.

They use the ordinary client. The source publishes numbered messages, ten and then a request, as fast as its answers come; the sink looks
whether each message arrives once and in order, and answers. What they measure is for the table; what a test asserts is that nothing was
lost, late for its turn, or answered wrongly.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.daemons import ROOT, environment

PATIENCE_S = 60.0  #: for any one answer: far above what a loaded machine takes


@dataclass
class Figures:
    """What the witness saw in one phase."""

    messages_s: float  #: publications that arrived, per second
    p50_ms: float  #: of a request
    p99_ms: float
    max_ms: float
    delivery_p99_ms: float  #: of a publication, from publish() to the subscriber's loop
    count: int  #: publications


@dataclass
class Report:
    """One attack: what others saw of it before, during and after, and what the daemon used."""

    attack: str
    phases: dict[str, Figures] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)  #: MiB of the daemon at the end of each phase
    done: dict[str, Any] = field(default_factory=dict)  #: what the attackers did

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Report:
        """The report of which *found* is what as_dict() gave."""
        phases = {phase: Figures(**figures) for phase, figures in found["phases"].items()}
        return cls(**{**found, "phases": phases})

    @staticmethod
    def table(reports: list[Report]) -> list[str]:
        """Lines for a terminal."""
        head = f"{'attack':<34} {'phase':<7} {'msg/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'delivery p99':>12} {'RSS MiB':>8}"
        lines = [head]
        for report in reports:
            for number, (phase, seen) in enumerate(report.phases.items()):
                lines.append(
                    f"{'' if number else report.attack:<34} {phase:<7} {seen.messages_s:>8.0f} {seen.p50_ms:>8.2f} {seen.p99_ms:>8.2f} "
                    f"{seen.max_ms:>8.1f} {seen.delivery_p99_ms:>12.2f} {report.memory.get(phase, 0):>8.0f}"
                )
        return lines


class Role:
    """A process of tests/survival that talks in lines of JSON; it ends when this one does."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.label = " ".join(arguments)
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.survival.{module}", *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, text: str) -> None:
        """One line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """One value from it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.label} ended with exit code {self.process.wait(PATIENCE_S)}"
        return json.loads(line)

    def end(self) -> None:
        """Have it come to its end. Idempotent."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def finish(self) -> int:
        """Have it end, and wait for it; returns its exit code. Idempotent."""
        self.end()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


class Witness:
    """The innocent pairs of one daemon."""

    def __init__(self, address: str) -> None:
        self._sink = Role("innocents", "sink", address)
        self._sink.hear()
        self._source = Role("innocents", "source", address)
        self._source.hear()

    def watch(self, seconds: float) -> Figures:
        """Go on for *seconds*; asserts that nothing was lost, doubled, out of order or answered wrongly."""
        self._source.say(str(seconds))
        seen = self._source.hear()
        assert seen["faults"] == [], seen["faults"]
        assert seen["received"] == seen["sent"] > 0
        return Figures(
            messages_s=seen["sent"] / seen["seconds"],
            p50_ms=seen["p50_ms"],
            p99_ms=seen["p99_ms"],
            max_ms=seen["max_ms"],
            delivery_p99_ms=seen["delivery_p99_ms"],
            count=seen["sent"],
        )

    def finish(self) -> None:
        """End both processes in order."""
        assert self._source.finish() == 0
        assert self._sink.finish() == 0


@contextlib.contextmanager
def attackers(address: str, *names: str) -> Iterator[list[Role]]:
    """Attacks in processes of their own, under way; ended afterwards."""
    roles = [Role("attacks", name, address) for name in names]
    try:
        for role in roles:
            assert role.hear() == "attacking"
        yield roles
    finally:
        for role in roles:
            role.end()
        for role in roles:
            role.finish()
