"""The log of the client, ``ipcbus_client``. The logging module is imported when there is something to log: a program that never does shall
not pay for it. Not under a lock: a handler or filter of the log is user code, and may do anything. Where it fails that is told on stderr,
and is not the end of the bus.
"""

from __future__ import annotations

ERROR, CRITICAL = 40, 50  #: levels of the logging module


def log(level: int, text: str, error: BaseException | None = None) -> None:
    """Log *text*, with the traceback of *error*."""
    import logging

    try:
        logging.getLogger("ipcbus_client").log(level, "%s", text, exc_info=error)
    except Exception:  # noqa: BLE001  # the border to user code
        import traceback

        traceback.print_exc()


def log_exception(text: str, error: BaseException) -> None:
    """Log an *error* with its traceback."""
    log(ERROR, text, error)


def trace_text(error: BaseException) -> str:
    """The traceback of *error* as Python prints it."""
    import traceback

    return "".join(traceback.format_exception(error))
