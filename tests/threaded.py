"""One test body for both shells of the client: the blocking one's calls run on threads, so that each can be awaited beside others."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import ipcbus_client
from ipcbus_client import aio

WAIT_S = 30.0  #: far above what anything takes
_PLAIN = ("stats_local", "on_change", "changes")


class Threaded:
    """A blocking object, whose methods are awaited; each call is made on a thread."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value):
            return _wrapped(value)
        if name in _PLAIN or isinstance(self.inner, ipcbus_client.StateHandle):
            return lambda *arguments, **options: _wrapped(value(*arguments, **options))

        async def call(*arguments: Any, **options: Any) -> Any:
            return _wrapped(await asyncio.to_thread(value, *arguments, **options))

        return call

    async def __aenter__(self) -> Threaded:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def __aiter__(self) -> Any:
        iterator = iter(self.inner)
        end = object()
        while (item := await asyncio.to_thread(next, iterator, end)) is not end:
            yield item


def _wrapped(value: Any) -> Any:
    ours = type(value).__module__.startswith("ipcbus_client") and type(value).__name__ in aio.__all__
    return Threaded(value) if ours and not isinstance(value, tuple) else value


async def _connect_blocking(*arguments: Any, **options: Any) -> Any:
    return Threaded(await asyncio.to_thread(ipcbus_client.connect, *arguments, **options))


async def _connect_aio(*arguments: Any, **options: Any) -> Any:
    return await aio.connect(*arguments, **options)


Connect = Callable[..., Awaitable[Any]]
SHELLS: dict[str, ModuleType] = {"blocking": ipcbus_client, "aio": aio}


@contextmanager
def connecting(shell: str) -> Iterator[Connect]:
    """connect() of a shell. Afterwards nothing of it may be left: no thread, no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    yield _connect_blocking if shell == "blocking" else _connect_aio
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("ipcbus")], "a thread is left")
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "a descriptor is left")


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Poll until *condition* () holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


async def until(condition: Callable[[], Any], what: str = "it never came true") -> None:
    """As wait_for(), in the loop."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def run(body: Awaitable[Any], limit_s: float = 120.0) -> None:
    """Run the body of a test, for at most *limit_s* seconds."""

    async def bounded() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
        await asyncio.wait_for(body, limit_s)

    asyncio.run(bounded())
