"""What every exception says that a user of the bus may get: about whom, in which operation, when, and what to do about it.

Knows no clock: who wants ``when`` hands one in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

_clock: Callable[[], float] = float


def use_clock(clock: Callable[[], float]) -> None:
    """Have *clock* say ``when``."""
    global _clock
    _clock = clock


class BusError(Exception):
    """Everything that ipcbus_client raises about the bus; also bad names, addresses and payloads. (A wrong type or number is a plain
    TypeError or ValueError.)

    ``who`` is the name, peer, topic, file or address that it is about, or empty; ``what`` the operation; ``when`` the time.time() at which
    it was made; ``hint`` what to do about it; str() is one sentence of what happened. Pickling and copying keep them.
    """

    who = ""
    what = ""
    when = 0.0
    hint = "See the log of this program and of ipcbusd."

    def __init__(self, text: str = "", *, who: str = "", what: str = "", hint: str = "") -> None:
        super().__init__(text)
        self.when = _clock()
        self.about(who=who, what=what, hint=hint)

    def about(self, *, who: str = "", what: str = "", hint: str = "") -> Self:
        """Itself, with these attributes where they are not empty."""
        for name, value in (("who", who), ("what", what), ("hint", hint)):
            if value:
                setattr(self, name, value)
        return self

    def again(self, *, who: str = "", what: str = "") -> Self:
        """One like it, to be raised now: an exception that is raised twice keeps the frames of both."""
        made = _remake(type(self), self.args)
        made.__dict__.update(self.__dict__)
        made.when = _clock()
        return made.about(who=who, what=what)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self.args), self.__dict__


_E = TypeVar("_E", bound=BusError)


def _remake(cls: type[_E], args: tuple[Any, ...]) -> _E:
    """An exception as it was, whatever its constructor takes."""
    made = cls.__new__(cls)
    made.args = args
    return made
