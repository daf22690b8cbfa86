"""What a chaos happens to: one daemon that is killed and started again, and the programs around it. Owns all processes, knows no events."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.journal import END_TOPIC, read
from tests.daemons import ROOT, RunningDaemon, environment
from tests.wire import Wire

PATIENCE_S = 90.0  #: for anything to come about: far above what it takes

#: Option names (without ``limits.``) to values.
Limits = Mapping[str, float]

#: What the bus has when nothing is squeezed. Small where a chaos shall meet it.
USUAL: Limits = {
    "half_close_linger_s": 1.0, "handshake_timeout_s": 2.0, "lane_soft_bytes": 65_536, "lane_stall_s": 0.3,
    "stall_window_s": 3.0,
}  # fmt: skip


@dataclass(eq=False)
class Program:
    """One running program. A *part* goes on in another program when one is killed."""

    name: str
    part: str
    options: dict[str, str]
    pid: int
    journal: Path
    errors: Path
    killed: bool = False
    code: int | None = None

    @property
    def subscribes(self) -> bool:
        """Whether it ends by itself, with the last message."""
        return self.options["role"].startswith("subscriber")

    def said(self, word: str) -> bool:
        """Whether its journal has a line that begins with *word*."""
        return any(line[0] == word for line in read(self.journal))


class Troupe:
    """The processes of a chaos. close() leaves none of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs: list[Program] = []  #: of this act, ended ones too
        self._started = 0
        self._limits: Limits = USUAL
        self._addresses: list[str] | None = None
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True,
        )  # fmt: skip
        self.daemon = self._new_daemon()
        self._addresses = list(self.daemon.addresses)

    def close(self) -> None:
        """End everything. Idempotent."""
        self.daemon.kill()
        if self._zygote.stdin is not None and self._zygote.stdout is not None:
            self._zygote.stdin.close()
            self._zygote.wait(PATIENCE_S)
            self._zygote.stdout.close()

    # --- the daemon ---

    def _new_daemon(self) -> RunningDaemon:
        listen = self._addresses or [f"unix:{self.directory}/bus.sock", "tcp:127.0.0.1:0"]
        return RunningDaemon(self.directory, ["--log-level", "info"], listen=listen, config=self._config())

    def _config(self) -> str:
        return "[limits]\n" + "".join(f"{name} = {value}\n" for name, value in self._limits.items())

    def start_daemon(self) -> None:
        """Start it where it was, after it has gone."""
        self.daemon = self._new_daemon()

    def start_command(self) -> list[str]:
        """The command line that would start it, without a descriptor to say so."""
        command = list(self.daemon.command)
        at = command.index("--ready-fd")
        del command[at : at + 2]
        return command

    def set_limits(self, limits: Limits) -> None:
        """Other limits, by SIGHUP."""
        self._limits = USUAL | dict(limits)
        self.daemon.config_file.write_text(self._config())
        self.daemon.signal(signal.SIGHUP)

    def squeeze_descriptors(self, spare: int | None) -> None:
        """Leave the daemon only *spare* descriptors more than it has; None: as many as this process may have."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        now = len(os.listdir(f"/proc/{self.daemon.pid}/fd"))
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (hard if spare is None else now + spare, hard))

    def memory_bytes(self) -> int:
        """The daemon's resident memory."""
        lines = Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        """How many the daemon has."""
        return len(os.listdir(f"/proc/{self.daemon.pid}/fd"))

    def ask(self, method: str, **arguments: Any) -> Any:
        """A method of the bus, asked by hand over a connection of its own."""
        with Wire(self.daemon.address) as wire:
            wire.hello("conductor")
            return wire.call(method, **arguments)

    # --- programs ---

    def _order(self, command: dict[str, Any]) -> Any:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(command) + "\n")
        self._zygote.stdin.flush()
        line = self._zygote.stdout.readline()
        assert line, "the zygote has ended"
        return json.loads(line)

    def start(self, part: str, options: dict[str, str]) -> Program:
        """Start the next program of a part. *options*: role, transport, and those of `programs.Part`."""
        self._started += 1
        name = f"{part}-{self._started}"
        journal, errors = self.directory / f"{name}.journal", self.directory / f"{name}.errors"
        rest = {key: value for key, value in options.items() if key not in ("role", "transport")}
        arguments = {
            "role": options["role"],
            "name": name,
            "address": self.daemon.addresses[options["transport"] == "tcp"],
            "secret": self.daemon.secret_file,
            "journal": str(journal),
            "errors": str(errors),
            **rest,
        }
        program = Program(name, part, options, self._order({"start": arguments})["pid"], journal, errors)
        self.programs.append(program)
        return program

    def alive(self) -> list[Program]:
        """Who runs."""
        ended = {int(pid): code for pid, code in self._order({"reap": True})["ended"].items()}
        for program in self.programs:
            if program.code is None:
                program.code = ended.get(program.pid)
        return [program for program in self.programs if program.code is None]

    def of_part(self, part: str) -> Program:
        """The program that plays a part now."""
        return next(program for program in reversed(self.programs) if program.part == part)

    def signal(self, program: Program, number: int) -> None:
        """A signal to a program. Nothing happens to one that has ended: it is not reaped before alive() says so, so its pid is its own."""
        if program.code is None:
            os.kill(program.pid, number)

    def kill(self, program: Program) -> None:
        """SIGKILL."""
        program.killed = True
        self.signal(program, signal.SIGKILL)

    # --- waiting ---

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Poll until *condition* () holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def wait_ready(self) -> None:
        """Until every program that runs has what it declares."""
        waiting = self.alive()

        def ready() -> bool:
            waiting[:] = [program for program in waiting if not program.said("ready")]
            alive = self.alive()
            gone = [program.name for program in waiting if program not in alive]
            assert not gone, f"ended before they were ready: {gone}"
            return not waiting

        self.wait_for(ready, "not every program became ready")

    def finish(self) -> None:
        """Have all programs end in order: who publishes and asks, then who answers, then who subscribes."""
        for others in (False, True):
            asked = [p for p in self.alive() if not p.subscribes and p.options["role"].startswith("responder") is others]
            for program in asked:
                self.signal(program, signal.SIGUSR2)
            names = ", ".join(program.name for program in asked)
            self.wait_for(lambda asked=asked: not {*asked} & {*self.alive()}, f"one of {names} does not end")
        with Wire(self.daemon.address) as wire:
            wire.hello("conductor")

            def ended() -> bool:
                wire.publish(END_TOPIC, b"")
                wire.ping()
                time.sleep(0.05)
                return not self.alive()

            self.wait_for(ended, "a subscriber does not see the last message")
