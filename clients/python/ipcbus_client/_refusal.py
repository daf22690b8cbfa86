"""What a requester and the log are told of an exception. An exception's words are user code, which may do anything: a shell with a lock
makes them where it does not hold it. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable

from ipcbus.protocol.payloads import encode_value

from ._errors import ServiceError
from ._message import Request

TRACEBACK_MAX_BYTES = 32 * 1024  #: of a remote traceback


class Refusal:
    """An error as the answer to a request."""

    __slots__ = ("about", "code", "fault", "text")

    def __init__(self, code: str, text: str, about: bytes, fault: str | None) -> None:
        self.code = code
        self.text = text
        self.about = about  #: the payload, with the traceback where the requester shall see it
        self.fault = fault  #: for the log; None where the error is an answer and no fault


def refusal(request: Request, error: BaseException) -> Refusal:
    """The words for *error*, which the handler of *request* raised, or which its answer met. Not under a lock."""
    about = b"" if request.trace is None else _clipped_trace(request.trace, error)
    if isinstance(error, ServiceError) and isinstance(error.code, str):
        return Refusal(error.code, words(error.text), about, None)
    name = type(error).__name__
    return Refusal(name, words(error), about, f"handler of {request.to} raised {name}")


def words(said: object) -> str:
    """*said* as text; none where that fails: it is user code too. Not under a lock."""
    try:
        return str(said)
    except Exception:  # noqa: BLE001  # the border to user code
        return ""


def _clipped_trace(trace: Callable[[BaseException], str], error: BaseException) -> bytes:
    """The payload of an ERROR with the traceback, of which the end says most."""
    try:
        text = trace(error).encode("utf-8", "backslashreplace")[-TRACEBACK_MAX_BYTES:].decode("utf-8", "ignore")
    except Exception:  # noqa: BLE001  # the border to user code: notes that are none, for example
        return b""
    return encode_value({"traceback": text})[1]
