"""Faults that are no peer's: the loop goes on, unless nothing but faults comes. tests/faults makes them of real calls."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ipcbus.daemon import admission as admission_module
from ipcbus.daemon.admission import Admission
from ipcbus.daemon.limits import FAULTS_MAX
from ipcbus.daemon.loop import Loop
from ipcbus.protocol.messages import Kind, encode

from .test_loop import Bench, FailingListener, frames


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


class Watched:
    """Readable all the time; raises for as often as it is told."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(b"x")

    def on_ready(self, now: float) -> None:
        self.times -= 1
        if self.times >= 0:
            raise MemoryError
        self.ours.recv(1)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.mark.parametrize("times", [1, FAULTS_MAX - 1])
def test_faults_of_nobody_do_not_end_the_loop(bench: Bench, times: int) -> None:
    good, _ = bench.ready()
    watched = Watched(times)
    bench.loop.watch(watched.ours, watched)
    good.sendall(encode(Kind.PING, 1, 1))
    bench.run(0.2)
    assert watched.times < 0
    assert [frame.kind for frame in frames(good)] == [Kind.PONG]
    bench.loop.unwatch(watched.ours)
    watched.close()


def test_nothing_but_faults_ends_the_loop(bench: Bench) -> None:
    watched = Watched(FAULTS_MAX)
    bench.loop.watch(watched.ours, watched)
    with pytest.raises(MemoryError):
        bench.run(20)
    assert watched.times == 0
    bench.loop.unwatch(watched.ours)
    watched.close()


def test_what_was_due_and_failed_is_tried_again(bench: Bench) -> None:
    called: list[float] = []

    def callback(now: float) -> None:
        called.append(now)
        if len(called) < 3:
            raise MemoryError
        bench.loop.stop()

    bench.loop.at(time.monotonic(), callback)
    bench.loop.run()
    assert len(called) == 3


@pytest.mark.parametrize("method", ["register", "modify", "unregister"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), MemoryError(), KeyError(5)])
def test_a_poller_that_refuses_costs_the_peer_only(
    bench: Bench, method: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, _ = bench.ready()
    bad, peer = bench.ready()
    real = getattr(bench.loop._selector, method)

    def refuse(fd: int, *rest: Any) -> Any:
        if fd == getattr(peer.link, "fd", None):
            raise error
        return real(fd, *rest)

    link: Any = peer.link
    monkeypatch.setattr(bench.loop._selector, method, refuse)
    if method == "register":
        monkeypatch.setattr(link, "interest", 0)  # it was held until now
        real_unregister = bench.loop._selector.unregister
        real_unregister(link.fd)
    elif method == "modify":
        link.blocked = True
    else:
        peer.held = 1
    bench.broker._delivery.touch(peer)
    bench.run()
    assert peer.closed
    assert peer.link is None
    assert bad.recv(1) == b""
    good.sendall(encode(Kind.PING, 1, 1))
    bench.run()
    assert [frame.kind for frame in frames(good)] == [Kind.PONG]


def test_an_end_that_fails_is_begun_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, peer = bench.ready()
    real, failed = bench.broker._calls.requester_went, []

    def fail_once(who: Any) -> None:
        if not failed:
            failed.append(who)
            raise MemoryError
        real(who)

    monkeypatch.setattr(bench.broker._calls, "requester_went", fail_once)
    bad.close()
    bench.run()
    assert failed == [peer]
    assert peer.closed
    assert not bench.broker.peers
    assert bench.broker.accounts.is_empty


def test_listeners_that_cannot_be_watched_again_are_looked_at_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "ACCEPT_PAUSE_S", 0.01)
    listeners: list[Any] = [FailingListener(errno.ENOMEM), FailingListener()]
    admission = Admission(bench.broker, bench.loop)
    admission.open(listeners)
    admission.accept(listeners[0], time.monotonic())
    assert not admission._open
    watch, failures = Loop.watch, [1, 1]

    def refuse(loop: Loop, sock: Any, watched: Any) -> None:
        if sock is listeners[1] and failures:
            failures.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(loop, sock, watched)

    monkeypatch.setattr(Loop, "watch", refuse)
    bench.run(1.0)
    assert not failures
    assert admission._open
    admission.close()
    for listener in listeners:
        listener.close()
