"""The events of a chaos: what happens to the daemon, to programs and around them; and the plan of an act, which a seed decides alone."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from tests.chaos.troupe import Limits, Troupe
from tests.daemons import STOP_S, environment

#: Parts of an ordinary act: what each program does. The seed says which shell and transport each has.
PARTS: dict[str, dict[str, str]] = {
    "confirming": {"role": "publisher"},
    "bursting": {"role": "burster"},
    "hasty": {"role": "burster"},
    "blocking": {"role": "subscriber", "policy": "block"},
    "oldest": {"role": "subscriber", "policy": "drop_oldest"},
    "newest": {"role": "subscriber", "policy": "drop_newest"},
    "latest": {"role": "subscriber", "policy": "latest"},
    "brittle": {"role": "subscriber", "policy": "disconnect"},
    "member": {"role": "subscriber", "group": "workers"},
    "fellow": {"role": "subscriber", "group": "workers"},
    "asking": {"role": "requester"},
    "answering": {"role": "responder"},
    "sharing": {"role": "responder"},
}

_HOLD_S = 0.7  #: how long what is stopped, slow or squeezed stays so; the bus's stall times are shorter

#: Other limits by SIGHUP.
_SQUEEZES: tuple[Limits, ...] = (
    {"max_output_bytes": 90_000_000, "max_queued_bytes": 20_000_000},
    {"lane_soft_bytes": 4096, "lane_stall_s": 0.05},
    {"max_callee_requests": 1, "max_route_cache": 1},
    {"max_retained_topics": 0, "max_retained_bytes": 0, "max_wills": 0},
    {"max_parked_bytes": 4096, "stall_window_s": 1.0},
    {"half_close_linger_s": 0.05, "handshake_timeout_s": 0.05},
)


@dataclass(frozen=True, slots=True)
class Event:
    """At *at_s* of the act *what* happens to *whom* (a part, or a number that the event reads)."""

    at_s: float
    what: str
    whom: str

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} s  {self.what} {self.whom}"


def cast(seed: int) -> dict[str, dict[str, str]]:
    """The parts of an act with their shells and transports."""
    rng = Random(f"cast {seed}")
    parts = {}
    for part, options in PARTS.items():
        role = options["role"] + rng.choice(("", "_aio"))
        parts[part] = options | {"role": role, "transport": rng.choice(("unix", "unix", "tcp"))}
    return parts


def plan(seed: int, seconds: float) -> list[Event]:
    """The events of an act."""
    rng = Random(f"plan {seed}")
    events = []
    at_s = 0.3
    while at_s < seconds:
        what = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        whom = rng.choice(list(PARTS)) if what in ON_PARTS else str(rng.randrange(1 << 16))
        events.append(Event(round(at_s, 2), what, whom))
        at_s += rng.uniform(0.02, 0.5)
    return events


class Stagehand:
    """Makes events happen, and undoes those that last."""

    def __init__(self, troupe: Troupe) -> None:
        self._troupe = troupe
        self._later: list[tuple[float, Callable[[], None]]] = []

    def happen(self, event: Event) -> None:
        """One event."""
        getattr(self, f"_{event.what}")(event.whom)

    def run_due(self, *, all_of_it: bool = False) -> None:
        """Undo what has lasted long enough."""
        now = time.monotonic()
        due = [undo for when, undo in self._later if all_of_it or when <= now]
        self._later = [] if all_of_it else [(when, undo) for when, undo in self._later if when > now]
        for undo in due:
            undo()

    def _after(self, seconds: float, undo: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, undo))

    # --- programs ---

    def _kill(self, part: str) -> None:
        """kill -9 of a program, whatever it is at; another one takes its part."""
        program = self._troupe.of_part(part)
        self._troupe.kill(program)
        self._troupe.start(part, program.options)

    def _stop(self, part: str) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        program = self._troupe.of_part(part)
        self._troupe.signal(program, signal.SIGSTOP)
        self._after(_HOLD_S, lambda: self._troupe.signal(program, signal.SIGCONT))

    def _slow(self, part: str) -> None:
        """Its handlers take their time."""
        if self._troupe.of_part(part).said("ready"):  # (before, it does not listen to signals yet)
            self._troupe.signal(self._troupe.of_part(part), signal.SIGUSR1)

    # --- strangers ---

    def _storm(self, number: str) -> None:
        """Many connections at once: some say HELLO, some half of it, some nothing, some stay a while."""
        rng = Random(number)
        hello = encode(Kind.HELLO, 0, 1, 1, [], {"program": "storm"}, None)
        kept = []
        for _ in range(200):
            stranger = self._stranger(hello[: rng.choice((0, 3, len(hello) // 2, len(hello)))])
            if stranger is None:
                continue
            if rng.random() < 0.3:
                kept.append(stranger)
            else:
                stranger.close()
        self._after(_HOLD_S, lambda: [stranger.close() for stranger in kept] and None)

    def _garbage(self, number: str) -> None:
        """Bytes that are no protocol: random ones, and a good beginning with one byte changed."""
        rng = Random(number)
        good = encode(Kind.HELLO, 0, 1, 1, [], {}, None) + encode(Kind.PING, 0, 1) * 3
        for _ in range(20):
            data = bytearray(good)
            data[rng.randrange(len(data))] = rng.randrange(256)
            stranger = self._stranger(rng.randbytes(rng.randrange(1, 3000)) if rng.random() < 0.5 else bytes(data))
            if stranger is not None:
                stranger.close()

    def _deaf(self, number: str) -> None:
        """Somebody subscribes to everything, gives all credit, and never reads."""
        lane = pack({"pattern": "chaos.>", "lane": 1, "credit": 1 << 26})
        hello = encode(Kind.HELLO, 0, 1, 1, [], {"program": "deaf"}, None)
        stranger = self._stranger(hello + encode_with_payload(lane, Kind.REQUEST, 0, "bus/subscribe", 1, 10_000, None))
        if stranger is not None:
            self._after(2 * _HOLD_S, stranger.close)

    def _stranger(self, data: bytes) -> socket.socket | None:
        """A connection that says *data*; None where nobody can connect now."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(self._troupe.daemon.path)
            sock.send(data)
        except OSError:
            sock.close()
            return None
        return sock

    # --- the daemon ---

    def _daemon_killed(self, number: str) -> None:
        """kill -9 and a new one."""
        self._troupe.daemon.kill()
        self._troupe.start_daemon()

    def _daemon_ended(self, number: str) -> None:
        """An end in order, or kill -9 in the middle of it, and a new one."""
        daemon = self._troupe.daemon
        daemon.signal(signal.SIGTERM)
        if int(number) % 2:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(int(number) / (1 << 16) * 0.1)
            daemon.kill()
        else:
            assert daemon.stop() == 0, "the daemon did not stop in order"
        self._troupe.start_daemon()

    def _daemon_stillborn(self, number: str) -> None:
        """Killed, as are those that start in its place, at any moment of their start; then two start at once, of which one gives way."""
        troupe, rng = self._troupe, Random(number)
        troupe.daemon.kill()
        for _ in range(3):
            unlucky = subprocess.Popen(troupe.start_command(), env=environment(), stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                unlucky.wait(rng.uniform(0.02, 0.3))
            unlucky.kill()
            unlucky.wait(STOP_S)
        troupe.start_daemon()
        second = subprocess.run(troupe.start_command(), env=environment(), stderr=subprocess.DEVNULL, timeout=STOP_S, check=False)
        assert second.returncode == 3, "a second daemon did not give way"

    def _daemon_stopped(self, number: str) -> None:
        """The daemon is stopped for a while."""
        daemon = self._troupe.daemon
        daemon.signal(signal.SIGSTOP)
        self._after(_HOLD_S / 2, lambda: daemon.signal(signal.SIGCONT))

    def _limits_squeezed(self, number: str) -> None:
        """Other limits by SIGHUP, and back."""
        limits = _SQUEEZES[int(number) % len(_SQUEEZES)]
        self._troupe.set_limits(limits)
        self._after(_HOLD_S, lambda: self._troupe.set_limits({}))

    def _descriptors_squeezed(self, number: str) -> None:
        """Hardly a descriptor is left, while somebody connects."""
        self._troupe.squeeze_descriptors(int(number) % 3)
        self._after(_HOLD_S, lambda: self._troupe.squeeze_descriptors(None))
        self._storm(number)


#: How often each happens, relative to the others.
WEIGHTS: dict[str, float] = {
    "kill": 5, "stop": 4, "slow": 4, "storm": 2, "garbage": 2, "deaf": 1, "daemon_killed": 1.5, "daemon_ended": 0.5,
    "daemon_stillborn": 0.3, "daemon_stopped": 1, "limits_squeezed": 2, "descriptors_squeezed": 1,
}  # fmt: skip
ON_PARTS = frozenset({"kill", "stop", "slow"})
