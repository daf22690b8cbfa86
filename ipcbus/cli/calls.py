"""``ipcbus call`` and ``ipcbus serve``. Owns how a request becomes a run of a command, and its output a reply."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..protocol.payloads import PayloadError, encode_value
from .connection import ANSWER_TIMEOUT_S, open_bus
from .describe import methods_of
from .failures import CommandError, Exit, usage
from .signatures import no_such_method, value_of
from .stdin import read_value
from .streams import print_values
from .text import safe
from .values import parse, render

if TYPE_CHECKING:
    import ipcbus_client

    from .runs import Run


def call(arguments: argparse.Namespace) -> int:
    """Send a request and print its reply."""
    words = arguments.values
    if arguments.raw and len(words) > 1:
        raise usage("--raw takes one VALUE, which is sent as it is")
    arguments.value = words[0] if words else None
    said = None if arguments.raw or words == ["-"] else words
    value = read_value(arguments) if said is None else None
    with open_bus(arguments, program="ipcbus call", wait_s=arguments.timeout) as bus:
        about = _about(bus, arguments.to)
        if said is not None:
            value = value_of(said, arguments.to, about)
        encode_value(value)  # what cannot be sent is the user's fault, a reply that cannot be decoded the service's
        if arguments.stream:
            return print_values(bus, value, arguments)
        try:
            reply = bus.request(arguments.to, value, timeout=arguments.timeout or ANSWER_TIMEOUT_S)
        except PayloadError as error:
            raise CommandError(Exit.SERVICE, f"the reply of {arguments.to}: {error}") from error
    if arguments.raw and isinstance(reply, bytes):
        sys.stdout.buffer.write(reply)
        return Exit.OK
    try:
        print(render(reply))
    except RecursionError:
        raise CommandError(Exit.SERVICE, f"the reply of {arguments.to} is nested too deeply to print") from None
    return Exit.OK


def _about(bus: ipcbus_client.Bus, to: str) -> dict[str, Any]:
    """What introspection says of a method; of a peer's it says nothing. Raises a CommandError where nobody serves it."""
    name, slash, method = to.partition("/")
    if not slash or name.startswith(":"):
        return {}  # the request itself says what is wrong
    methods = methods_of(bus, name, to)
    if method not in methods and "*" not in methods:
        raise no_such_method(to, [*methods])
    about: dict[str, Any] = methods.get(method, {})
    return about


def serve(arguments: argparse.Namespace) -> int:
    """Answer requests with the output of a command until Ctrl-C, SIGTERM or --count."""
    if arguments.raw and arguments.text:
        raise usage("--raw and --text exclude each other")
    command = [shutil.which(arguments.command[0]) or "", *arguments.command[1:]]
    if not command[0]:
        missing = arguments.command[0]
        raise usage(f"no command {missing!r} in $PATH; write COMMAND after -- as in: serve clock/now --text -- date")
    server = Server(command, arguments)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL:  # Ctrl-\ must not leave behind what the command started
        signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGTERM))
    with open_bus(arguments, program="ipcbus serve", wait_s=None, reconnect=True) as bus:
        try:
            bus.respond(arguments.to, server.answer, mode=arguments.mode)
            _say(f"serving {arguments.to} on {bus.address}; Ctrl-C ends it")
            server.done.wait()
        finally:
            server.stop()
    return Exit.OK


def _say(text: str) -> None:
    """`complain`, for a service: it never waits for whoever reads stderr."""
    from .runs import pass_on

    pass_on(bytearray(f"ipcbus: {safe(text)}\n".encode(sys.stderr.encoding or "utf-8", "backslashreplace")))


def _sender_of(request: ipcbus_client.Request) -> dict[str, str]:
    """Who asks, for a command. Each variable is there, empty where it is not known: it must not come from whoever started us."""
    who = request.sender.credentials
    known = {} if who is None else {"PID": who.pid, "UID": who.uid, "GID": who.gid, "UNIT": who.unit, "IDENTITY": who.identity}
    said = {key: "" if known.get(key) is None else str(known[key]) for key in ("PID", "UID", "GID", "UNIT", "IDENTITY")}
    return {"IPCBUS_SENDER": str(request.sender), **{f"IPCBUS_SENDER_{key}": value for key, value in said.items()}}


class Server:
    """Runs the command for each request. ``answer`` may be called by several threads at once.

    ``done`` is set after --count answers.
    """

    def __init__(self, command: list[str], arguments: argparse.Namespace) -> None:
        self.done = threading.Event()
        self._command = command
        self._arguments = arguments
        self._lock = threading.Lock()
        self._runs: set[Run] = set()
        self._taken = 0  #: requests that a command was started for
        self._answered = 0
        self._stopped = False

    def answer(self, request: ipcbus_client.Request) -> Any:
        """The reply to *request*; raises ServiceError with the codes that `ipcbus serve --help` names."""
        from ipcbus_client import ServiceError

        from .runs import Run

        arguments = self._arguments
        given = request.payload if arguments.raw else render(request.data).encode() + b"\n"
        environment = {"IPCBUS_METHOD": request.method, **_sender_of(request)}
        with self._lock:  # also while the command starts: stop() must not come between that and our knowing of it
            if self._stopped or self._taken == arguments.count:
                raise ServiceError("stopping", "the service is being stopped")
            run = Run(self._command, given, environment, lambda: bool(request.cancelled), arguments.timeout)
            self._taken += 1
            self._runs.add(run)
        try:
            output = run.finish()
        finally:
            with self._lock:
                self._runs.discard(run)
                self._answered += 1
                if self._answered == arguments.count:
                    self.done.set()
        if output.failure and self._stopped:  # it was we who killed it
            raise ServiceError("stopping", "the service is being stopped")
        if output.failure:
            raise ServiceError(output.failure, output.why)
        return self._reply(output.stdout)

    def stop(self) -> None:
        """Kill what still runs, and start nothing any more. Idempotent."""
        with self._lock:
            self._stopped = True
            for run in self._runs:
                run.kill()

    def _reply(self, stdout: bytes) -> Any:
        from ipcbus_client import ServiceError

        if self._arguments.raw:
            return stdout
        if self._arguments.text:
            return stdout.decode(errors="replace").removesuffix("\n")
        try:
            return parse(stdout, "the command's output") if stdout.strip() else None
        except CommandError as error:
            _say(error.text)
            raise ServiceError("bad-output", "the command's output is not JSON") from None
