"""The log of the client, ``ipcbus_client``. The logging module is imported when there is something to log: a program that never does shall
not pay for it.
"""

from __future__ import annotations


def log_exception(text: str, error: BaseException) -> None:
    """Log an exception with its traceback; not under a lock."""
    import logging

    logging.getLogger("ipcbus_client").error("%s", text, exc_info=error)


def trace_text(error: BaseException) -> str:
    """The traceback of *error* as Python prints it."""
    import traceback

    return "".join(traceback.format_exception(error))
