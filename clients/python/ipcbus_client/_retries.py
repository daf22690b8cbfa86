"""request(idempotent=True): which failures are worth another try, and how long to wait before it. Pure: the jitter comes in.

The connection may end, or the service, with the request in the air: doing it twice is harmless, the program says, so it is done again. A
bus or a service that just started may not have the name yet; so once either went away, a name or method that is not there is waited for
too. Every other answer is an answer.
"""

from __future__ import annotations

from ._backoff import Backoff
from ._errors import ConnectionLost, NoSuchMethod, NoSuchName, Overloaded, RequestError, ResponderDied

_BACKOFF = Backoff(first_s=0.02, cap_s=0.5)


class Retries:
    """The tries of one request."""

    def __init__(self) -> None:
        self._attempt = 0
        self._went_away = False

    def delay_s(self, error: ConnectionLost | RequestError, jitter: float) -> float | None:
        """In how many seconds to try again after *error*; None: not again. (request() itself waits for the connection.)"""
        if isinstance(error, ConnectionLost):
            self._went_away = True
            return 0.0
        if isinstance(error, ResponderDied):
            self._went_away = True
        elif not (isinstance(error, Overloaded) or (self._went_away and isinstance(error, (NoSuchName, NoSuchMethod)))):
            return None
        delay = _BACKOFF.delay_s(self._attempt, jitter)
        self._attempt += 1
        return delay
