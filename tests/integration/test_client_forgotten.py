"""Streams of the blocking shell that are forgotten: the garbage collector may come upon them anywhere, also where a bus is locked."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

import ipcbus_client
from tests.daemons import RunningDaemon
from tests.threaded import WAIT_S, wait_for


@pytest.mark.parametrize("iterated", [False, True])
def test_a_forgotten_stream_waits_for_no_lock(daemon: RunningDaemon, iterated: bool) -> None:
    ended: list[int] = []

    def count(request: ipcbus_client.Request) -> Iterator[int]:
        try:
            yield from range(10**6)
        finally:
            ended.append(1)

    with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
        service.respond("svc/count", count)
        stream = bus.stream("svc/count", timeout=WAIT_S)
        values = iter(stream) if iterated else stream
        assert next(values) == 0 if iterated else stream.get(WAIT_S) == 0
        circle = [values]
        circle.append(circle)  # type: ignore[arg-type]
        del stream, values, circle
        with bus._lock:
            collector = threading.Thread(target=gc.collect, daemon=True)
            collector.start()
            collector.join(WAIT_S / 3)
            assert not collector.is_alive()
        wait_for(lambda: ended == [1], "the generator was not ended")
        wait_for(lambda: bus.stats_local()["requests"] == 0, "the call was not ended")


def test_a_stream_whose_iteration_was_left_has_no_more_values(daemon: RunningDaemon) -> None:
    with ipcbus_client.connect(daemon.address) as service, ipcbus_client.connect(daemon.address) as bus:
        service.respond("svc/count", lambda request: (number for number in range(10**6)))
        stream = bus.stream("svc/count", timeout=WAIT_S)
        for number in stream:
            if number == 3:
                break
        wait_for(lambda: bus.stats_local()["requests"] == 0, "the call was not ended")
        with pytest.raises(ipcbus_client.Closed):
            stream.get(WAIT_S)
        assert list(stream) == []
