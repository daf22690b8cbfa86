"""One run of a command that answers a request: its input, its bounded output, its end.

Owns the child process: it is always waited for, and killed with all that it started when nobody wants its answer.
Knows nothing about the bus.
"""

from __future__ import annotations

import functools
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..protocol.limits import Limits
from .demo.child import die_with_parent

MAX_OUTPUT_BYTES = Limits().max_payload_bytes  #: the most that a reply may have
STDERR_TAIL_BYTES = 1024  #: what an error's text may have (E-1)
POLL_S = 0.1  #: how soon a caller that gave up is noticed
PENDING_BYTES = 65536  #: what waits for a slow reader of our stderr; what is older is dropped
_READ_BYTES = 65536
_WRITE_BYTES = 4096  #: what a pipe that poll() calls writable takes without blocking
_stderr_lock = threading.Lock()  #: between poll() and write() nobody else of us may fill the pipe


@dataclass(frozen=True, slots=True)
class Output:
    """How a run ended: ``failure`` is empty, or the code of the error with ``why`` for a person."""

    stdout: bytes
    failure: str = ""
    why: str = ""


def pass_on(pending: bytearray) -> None:
    """Write to our stderr what it takes now, off the front of *pending*; keep at most PENDING_BYTES of the rest. Never blocks.

    A reader of our stderr that stands still must cost no request its answer, its --timeout or its cancellation.
    """
    if pending and _stderr_lock.acquire(timeout=POLL_S):
        try:
            out = sys.stderr.fileno()
            poll = select.poll()
            poll.register(out, select.POLLOUT)
            while pending and any(events & select.POLLOUT for _, events in poll.poll(0)):
                del pending[: os.write(out, pending[:_WRITE_BYTES])]
        except (OSError, ValueError):
            pending.clear()  # a stderr that is gone is nobody's problem
        finally:
            _stderr_lock.release()
    del pending[:-PENDING_BYTES]


class Run:
    """A command with *given* on stdin, until it ends, is cancelled, or *limit_s* seconds have passed (None: no limit)."""

    def __init__(
        self,
        command: Sequence[str],
        given: bytes,
        environment: Mapping[str, str],
        cancelled: Callable[[], bool],
        limit_s: float | None,
    ) -> None:
        self._cancelled = cancelled
        self._deadline = None if limit_s is None else time.monotonic() + limit_s
        stdin = os.memfd_create("request", os.MFD_CLOEXEC)  # the command may read it late, or not at all
        try:
            with open(stdin, "wb", closefd=False) as file:
                file.write(given)
            os.lseek(stdin, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **environment},
                preexec_fn=functools.partial(die_with_parent, os.getpid()),  # we may be killed, and then nobody calls kill()
                start_new_session=True,  # Ctrl-C is for us, and kill() reaches what the command started
            )
        finally:
            os.close(stdin)

    def finish(self) -> Output:
        """Wait for the end. stderr is passed on to ours as it comes, if that takes it; its last line explains a failure."""
        with self._process, selectors.DefaultSelector() as selector:
            try:
                return self._read(selector)
            finally:
                self.kill()

    def kill(self) -> None:
        """Kill the command and what it started. Idempotent; safe from another thread than finish()'s."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _read(self, selector: selectors.BaseSelector) -> Output:
        streams = {self._process.stdout: bytearray(), self._process.stderr: bytearray()}
        stdout, tail = streams.values()
        pending = bytearray()
        for stream in streams:
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, streams[stream])
        while selector.get_map():
            if self._cancelled():
                return Output(b"", "cancelled", "the caller gave up")
            if self._deadline is not None and time.monotonic() > self._deadline:
                return Output(b"", "too-slow", "the command took longer than --timeout of `ipcbus serve`")
            for key, _ in selector.select(POLL_S):
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data is stdout:
                    stdout += data
                    if len(stdout) > MAX_OUTPUT_BYTES:
                        return Output(b"", "too-large", f"the command wrote more than {MAX_OUTPUT_BYTES} bytes")
                else:
                    pending += data
                    tail += data
                    del tail[:-STDERR_TAIL_BYTES]
            pass_on(pending)
        return self._ended(bytes(stdout), bytes(tail))

    def _ended(self, stdout: bytes, tail: bytes) -> Output:
        """The output is closed; the process may go on a little, so its end is waited for like the output was."""
        while True:
            try:
                code = self._process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                if self._cancelled() or (self._deadline is not None and time.monotonic() > self._deadline):
                    return Output(b"", "too-slow", "the command closed its output and did not end")
        lines = tail.decode(errors="replace").strip().splitlines()
        why = lines[-1].strip() if lines else ""
        if code < 0:
            return Output(b"", f"signal-{-code}", why or f"the command was ended by signal {-code}")
        if code > 0:
            return Output(b"", f"exit-{code}", why or f"the command exited with {code}")
        return Output(stdout)
