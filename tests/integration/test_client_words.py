"""The words of an exception are user code: the blocking shell asks for them with no lock held (contract, line 6)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S


class WordyError(Exception):
    """Its words can be had only while another thread can use the bus."""

    bus: ipcbus_client.Bus
    heard: list[bool]

    def __str__(self) -> str:
        done = threading.Event()
        threading.Thread(target=lambda: (self.bus.stats_local(), done.set()), daemon=True).start()
        self.heard.append(done.wait(WAIT_S / 3))
        return "words"


class WordyAnswerError(ipcbus_client.ServiceError, WordyError):
    @property
    def text(self) -> Any:
        return WordyError.__str__(self)

    @text.setter
    def text(self, value: str) -> None: ...


class Failing:
    """A service whose errors have words."""

    def fault(self) -> None:
        raise WordyError

    def answer(self) -> None:
        raise WordyAnswerError("too hot")

    def values(self) -> Iterator[int]:
        yield 1
        raise WordyError



@pytest.mark.parametrize("method", ["fault", "answer", "values"])
@pytest.mark.parametrize("concurrency", [None, 2])
def test_words_are_made_with_no_lock_held(daemon: RunningDaemon, method: str, concurrency: int | None) -> None:
    heard: list[bool] = []
    with ipcbus_client.connect(daemon.address) as bus, ipcbus_client.connect(daemon.address) as other:
        WordyError.bus, WordyError.heard = bus, heard
        bus.serve("svc", Failing(), concurrency=concurrency, tracebacks=True)
        with pytest.raises(ipcbus_client.ServiceError, match="words"):
            list(other.stream(f"svc/{method}", timeout=WAIT_S))
        assert heard
        assert all(heard)
