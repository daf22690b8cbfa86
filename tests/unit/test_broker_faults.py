"""A fault in the middle of a peer's end, for want of memory: who calls again has the rest done."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest

from ipcbus.broker.effort import ENDS_AT_ONCE
from ipcbus.protocol.errors import Code
from tests.unit.harness import Bus


@pytest.mark.parametrize("begun", ["disconnect", "half_close", "expel"])
@pytest.mark.parametrize(
    "step",
    [
        *("_delivery.forget_publisher", "_delivery.abandon", "routes.remove", "routes.leave", "publications.left", "names.release_all"),
        *("_calls.callee_died", "_calls.requester_went", "_delivery.touch"),
    ],
)
def test_an_end_that_was_interrupted_goes_on(step: str, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus(lane_soft_bytes=100)
    peer, other = bus.peer(), bus.peer(pid=11)
    for lane in range(1, ENDS_AT_ONCE + 3):
        peer.ask("subscribe", pattern=f"t.{lane}", lane=lane, credit=0)
    other.ask("subscribe", pattern="busy", lane=1, credit=0)
    other.publish("t.1")
    peer.publish("busy", bytes(200))
    for one, name in ((peer, "mine"), (other, "theirs")):
        one.ask("own", name=name)
        one.ask("serve", name=name, methods=["do"])
    peer.request("theirs/do")
    other.request("mine/do")
    broker = bus.broker
    assert peer.peer.holds

    owner, _, name = step.rpartition(".")
    target: Any = attrgetter(owner)(broker)
    real, failed = getattr(target, name), []

    def fail_once(*arguments: Any) -> Any:
        if not failed:
            failed.append(1)
            raise MemoryError
        return real(*arguments)

    def end() -> None:
        if begun == "half_close":
            broker.half_close(peer.peer, bus.now)
        if begun == "expel":
            broker.expel(peer.peer, Code.INTERNAL, "a fault", bus.now)
        else:
            broker.disconnect(peer.peer, bus.now)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail_once)
        with pytest.raises(MemoryError):
            end()
    broker.disconnect(peer.peer, bus.now)
    other.leave()
    bus.advance(0.0)
    assert not broker.peers
    assert not len(broker.names)
    assert not broker.lane_count
    assert not len(broker.requests)
    assert not broker.queued_bytes()
    assert broker.accounts.is_empty
    offered, ends = broker.books()
    assert offered == sum(ends.values())
