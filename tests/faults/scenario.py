"""A daemon's life, from its start to its end, as its peers see it: what works, who was cut off, what is left.

The daemon runs on the main thread as `ipcbusd` does, its peers on another. A step whose peer was cut off is done again with a new
connection; that somebody else's step fails, or that one is never done, is what must not be.
"""

from __future__ import annotations

import grp
import os
import resource
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipcbus.cli import daemon as ipcbusd
from ipcbus.daemon import lifecycle
from ipcbus.protocol.messages import Kind, encode, encode_with_payload, pack
from tests.fuzz.bus_targets import check_empty
from tests.wire import Wire

from .injector import MEMORY, Injector, injecting

BIG_BYTES = 600_000  #: more than a socket buffer takes
_TRIES = 4
GROUP = next((group.gr_name for group in grp.getgrall() if group.gr_gid == os.getegid()), "")  #: ours, where it has a name


class GoneError(Exception):
    """The bus ended this peer's connection."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(slots=True)
class Story:
    """How one life went."""

    code: int | None = None  #: ipcbusd's exit code
    ready: bool = False
    gone: dict[str, str] = field(default_factory=dict)  #: peers that the bus cut off without a reason of theirs, and when
    wrong: list[str] = field(default_factory=list)  #: what must not be


class Peers:
    """The programs of a story, by name; each is connected when it is first needed, and again when it was cut off."""

    def __init__(self, addresses: dict[str, str], secret: Path, story: Story) -> None:
        self._addresses = addresses
        self._secret = secret
        self._story = story
        self._wires: dict[str, Wire] = {}
        self._number = 0

    def do(self, *steps: Callable[[], None]) -> None:
        """Each step, and again where a peer was cut off in it."""
        for step in steps:
            for _ in range(_TRIES):
                try:
                    step()
                    break
                except GoneError as error:
                    self._story.gone[error.name] = f"in {step.__name__}"
                    self.leave(error.name)
                    threading.Event().wait(0.01)  # as clients do: where no descriptor is left who comes at once is refused again
            else:
                self._story.wrong.append(f"{step.__name__} does not work any more: {self._story.gone}")
                return

    def _of(self, name: str, setup: Callable[[Wire], None] | None = None) -> Wire:
        if name not in self._wires:
            with _cut_off(name):
                wire = Wire(self._addresses["tcp" if name == "tcp" else "unix"])
                self._wires[name] = wire
                wire.sock.settimeout(5.0)
                wire.hello(name, self._secret.read_bytes() if wire.tcp else None)
                if setup is not None:
                    setup(wire)
        return self._wires[name]

    def leave(self, name: str) -> None:
        wire = self._wires.pop(name, None)
        if wire is not None:
            wire.sock.close()

    def leave_all(self) -> None:
        for name in list(self._wires):
            self.leave(name)

    # --- who there is ---

    @property
    def publisher(self) -> Wire:
        return self._of("publisher")

    @property
    def subscriber(self) -> Wire:
        return self._of("subscriber", lambda wire: wire.subscribe("t.>"))

    @property
    def service(self) -> Wire:
        def serve(wire: Wire) -> None:
            wire.call("own", name="svc", mode="exclusive")
            wire.call("serve", name="svc", methods=["do"])

        return self._of("service", serve)

    # --- what they do ---

    def messages(self) -> None:
        """Publications arrive, in order."""
        subscriber, publisher = self.subscriber, self.publisher
        marks = [self._mark() for _ in range(5)]
        with _cut_off("publisher"):
            for mark in marks:
                publisher.publish("t.n", mark)
            publisher.ping()
        with _cut_off("subscriber"):
            came = [_next(subscriber, Kind.PUBLISH).payload]
            while came[-1] != marks[-1]:
                came.append(_next(subscriber, Kind.PUBLISH).payload)
            assert came[-len(marks) :] == marks, came

    def big(self) -> None:
        """So does a large one, although its reader is slow."""
        subscriber, publisher = self.subscriber, self.publisher
        mark = self._mark() + bytes(BIG_BYTES)
        with _cut_off("publisher"):
            publisher.publish("t.big", mark)
            publisher.ping()
        with _cut_off("subscriber"):
            while _next(subscriber, Kind.PUBLISH).payload != mark:
                pass  # of a try before

    def request(self) -> None:
        """A request finds its service and comes back."""
        service, publisher, mark = self.service, self.publisher, self._mark()
        with _cut_off("publisher"):
            asked = publisher.request("svc/do", mark)
            publisher.ping()
        with _cut_off("service"):
            self._answer(service, mark)
        with _cut_off("publisher"):
            while (frame := _next(publisher, Kind.REPLY, Kind.ERROR)).elements[3] != asked:
                pass
            if frame.kind is Kind.ERROR:
                raise GoneError("service")
            assert frame.payload == mark

    def _answer(self, service: Wire, mark: bytes) -> None:
        """Answer requests until the one with *mark*; others are of a try before."""
        while True:
            frame = _next(service, Kind.REQUEST)
            _, sender, _, number, *_ = frame.elements
            service.send(encode_with_payload(frame.payload, Kind.REPLY, service.peer, f":{sender}", number, None))
            if frame.payload == mark:
                return

    def keep(self) -> None:
        """A value is retained and can be asked for."""
        with _cut_off("publisher"):
            mark = self._mark()
            wire = self.publisher
            wire.send(encode_with_payload(mark, Kind.RETAIN, wire.peer, "kept", 1))
            assert mark in wire.call("get", topic="kept").values()
            wire.send(encode_with_payload(b"", Kind.RETAIN, wire.peer, "kept", 1))
            wire.ping()

    def half_close(self) -> None:
        """Who is done sending still gets what it is due (H-11)."""
        service, wire, mark = self.service, self._of("halfway"), self._mark()
        with _cut_off("halfway"):
            wire.request("svc/do", mark)
            wire.ping()
            wire.sock.shutdown(socket.SHUT_WR)
        with _cut_off("service"):
            try:
                self._answer(service, mark)
            except BaseException:
                self.leave("halfway")  # a new service does not know what the one before was asked
                raise
        with _cut_off("halfway"):
            if (frame := _next(wire, Kind.REPLY, Kind.ERROR)).kind is Kind.ERROR:
                self.leave("halfway")
                raise GoneError("service")
            assert frame.payload == mark
            assert wire.receive() is None
            self.leave("halfway")

    def tcp(self) -> None:
        """A peer with the secret."""
        wire = self._of("tcp")
        with _cut_off("tcp"):
            wire.ping()
        self.leave("tcp")

    def nonsense(self) -> None:
        """Who talks nonsense is told, or cut off; who is gone at once is no trouble. (That they are cut off is in order.)"""
        for data in (b"GET / HTTP/1.1\r\n\r\n", b""):
            try:
                with Wire(self._addresses["unix"]) as wire:
                    wire.sock.settimeout(5.0)
                    wire.send(data)
                    if data:
                        wire.receive()
            except ConnectionError:
                pass

    def reload(self) -> None:
        """SIGHUP changes nothing of this."""
        publisher = self.publisher
        os.kill(os.getpid(), signal.SIGHUP)
        with _cut_off("publisher"):
            publisher.ping()

    def goodbye(self) -> None:
        """In order, and by a cut."""
        wire = self._of("polite")
        with _cut_off("polite"):
            wire.send(encode(Kind.BYE, wire.peer, 0, ""))
            while wire.receive() is not None:
                pass
        self.leave("polite")
        self.leave("subscriber")

    def alone(self) -> None:
        """The last one sees nobody else."""
        for name in [name for name in self._wires if name != "publisher"]:
            self.leave(name)
        with _cut_off("publisher"):
            wire = self.publisher
            wire.request("bus/stats", pack({}))
            for _ in range(500):  # the others' ends are seen in time
                stats = wire.call("stats")
                if (stats["peers"], stats["lanes"], stats["names"], stats["requests"], stats["queued_bytes"]) == (1, 0, 0, 0, 0):
                    return
                threading.Event().wait(0.004)
            raise AssertionError(f"something of those who went is left: {stats}")

    def _mark(self) -> bytes:
        self._number += 1
        return b"%d" % self._number


class _cut_off:
    """An end of the connection of *name* within."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        ended = isinstance(error, AssertionError) and ("the connection ended" in str(error) or "Frame BYE" in str(error))
        if ended or isinstance(error, ConnectionError | FileNotFoundError):
            raise GoneError(self._name) from error
        if isinstance(error, TimeoutError):
            raise AssertionError(f"{self._name} waits in vain") from error


def _next(wire: Wire, *kinds: Kind) -> Any:
    """The next frame of one of *kinds*, skipping others."""
    while (frame := wire.receive()) is None or frame.kind not in kinds:
        assert frame is not None, "the connection ended"
        assert frame.kind is not Kind.BYE, f"the connection ended: {frame}"
    return frame


def live(directory: Path, injector: Injector) -> Story:
    """One life of a daemon in *directory*, on this thread, which must be the main one. It makes all that a first start makes, and removes
    what a killed one left."""
    story = Story()
    daemons: list[lifecycle.Daemon] = []

    class Daemon(lifecycle.Daemon):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            daemons.append(self)

        def run(self) -> None:
            injector.enabled = True
            super().run()
            injector.enabled = injector.kind not in MEMORY

    injector.enabled = injector.kind not in MEMORY

    config, secret, path = directory / "ipcbusd.toml", directory / "secrets" / "bus.secret", directory / "bus.sock"
    rules = directory / "policy.d" / "rules.toml"
    rules.parent.mkdir(mode=0o700, exist_ok=True)
    rules.write_text('[[rule]]\ndeny = "*"\ntopics = "nobodys.>"\n[[rule]]\nallow = "*"\n')  # so that everybody is judged
    config.write_text(f'drain_s = 1.0\npolicy_dir = ["{rules.parent}"]\n' + (f'socket_group = "{GROUP}"\n' if GROUP else ""))
    shutil.rmtree(secret.parent, ignore_errors=True)
    _leave_behind(path)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard - 1), hard))
    real, before = lifecycle.Daemon, _descriptors()
    ready_read, ready_write = os.pipe()
    thread = threading.Thread(target=_peers, args=(ready_read, secret, story, injector.kind != "memory.bus"))
    thread.start()
    lifecycle.Daemon = Daemon  # type: ignore[misc]
    try:
        with injecting(injector):
            story.code = ipcbusd.main([
                "--config", str(config), "--secret-file", str(secret), "--ready-fd", str(ready_write), "--poller", injector.poller,
                f"--listen=unix:{path}", "--listen=tcp:127.0.0.1:0",
            ])  # fmt: skip
    except BaseException as error:  # noqa: BLE001  # what came out of the daemon is what is looked for
        story.wrong.append(f"it raised {error!r}")
    finally:
        lifecycle.Daemon = real  # type: ignore[misc]
        if not story.ready:
            try:
                os.close(ready_write)  # the peers learn that nobody comes
            except OSError:
                pass  # the daemon closed it
        thread.join()
    if story.ready and story.code != 0:
        story.wrong.append(f"it was ready, and ended with {story.code}")
    if not story.ready and not story.code:
        story.wrong.append("it was never ready, and ended with 0")
    left = _descriptors() - before
    if left > 0 and story.ready:  # (else the process ends, and they with it)
        story.wrong.append(f"{left} descriptors are left")
    for daemon in daemons if story.ready and injector.kind != "memory.bus" else ():
        try:
            check_empty(daemon._broker)
        except AssertionError as error:
            story.wrong.append(f"the bus is not empty: {error}")
    return story


def _leave_behind(path: Path) -> None:
    """A socket that nobody listens at any more."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


def _peers(ready: int, secret: Path, story: Story, exact: bool) -> None:
    with os.fdopen(ready) as file:
        addresses = {line.split()[1].partition(":")[0]: line.split()[1] for line in file}
    if len(addresses) < 2:
        return
    story.ready = True
    peers = Peers(addresses, secret, story)
    try:
        peers.do(peers.messages, peers.request, peers.big, peers.keep, peers.half_close, peers.tcp, peers.nonsense, peers.reload)
        peers.do(peers.goodbye, peers.messages, peers.request, peers.big)  # after whatever failed
        if exact:
            peers.do(peers.alone)
    except Exception as error:  # noqa: BLE001  # it is told with the rest
        story.wrong.append(f"{type(error).__name__}: {error}")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        peers.leave_all()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
