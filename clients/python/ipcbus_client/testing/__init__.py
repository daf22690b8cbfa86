"""For tests of programs that use ipcbus: a bus in memory with a virtual clock, and a real daemon in a directory of its own.

    def test_alarm():
        with testing.FakeBus() as kit:
            bus = kit.connect(name="thermostat")
            ...

`FakeBus` has the clock, the connections and the faults; run() is for a test that is a coroutine; `Daemon` is a real ``ipcbusd``. The pytest
plugin, installed with ipcbus, has them as the fixtures ``ipcbus_bus``, ``ipcbus_daemon`` and ``ipcbus_address``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import StuckError

if TYPE_CHECKING:
    from ._daemon import Daemon
    from ._kit import FakeBus

__all__ = ["Daemon", "FakeBus", "StuckError", "run"]

T = TypeVar("T")


def run(main: Callable[[FakeBus], Coroutine[Any, Any, T]], **options: Any) -> T:
    """Run the coroutine function *main* with a new `FakeBus` (made with *options*) as its argument, on that kit's clock."""
    from ._kit import FakeBus

    with FakeBus(**options) as kit:
        return kit.run_async(main(kit))


def __getattr__(name: str) -> Any:
    """The broker and the rest are loaded when they are used: every run of pytest imports this package for its plugin."""
    if name == "FakeBus":
        from ._kit import FakeBus

        return FakeBus
    if name == "Daemon":
        from ._daemon import Daemon

        return Daemon
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
