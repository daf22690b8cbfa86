"""The border to user code in asyncio: what may come out of it, and whose it is."""

from __future__ import annotations

import asyncio
import sys

from ._turns import Turns


def raise_here(error: BaseException) -> None:
    """From the event loop: out of it."""
    raise error


def pull(turns: Turns) -> BaseException | None:
    """Take one item of what came and ask user code for its key; what that raised."""
    item = turns.source.popleft()
    turns.pulling = True
    try:
        turns.park(item, turns.key(item) if turns.key is not None and turns.asks(item) else None)
    except BaseException as error:  # noqa: BLE001  # the border to user code
        return error
    finally:
        turns.pulling = False
    return None


def is_ours(error: BaseException) -> bool:
    """Whether *error* ends the task that runs user code, and does not just come out of that: who awaits something that was cancelled gets
    a CancelledError too. To be called by the task's own coroutine, not by one that it awaits.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    if isinstance(error, GeneratorExit):  # of a coroutine that is collected, unless user code raised it in the running task
        task = asyncio.current_task() if asyncio._get_running_loop() else None
        return task is None or getattr(task.get_coro(), "cr_frame", None) is not sys._getframe(1)
    return False
