"""The error codes of section 9, and the exception that carries one through the bus."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """A code that the bus says (E-1). ``fatal`` ones end the connection (E-2)."""

    OK = 0
    BAD_FRAME = 1
    TOO_LARGE = 2
    BAD_ENVELOPE = 3
    UNKNOWN_KIND = 4
    BAD_STATE = 5
    FORGED_SENDER = 6
    BAD_VERSION = 7
    AUTH_FAILED = 8
    BAD_REPLY = 9
    DUPLICATE_ID = 10
    SLOW_READER = 11
    HANDSHAKE_TIMEOUT = 12
    SHUTTING_DOWN = 13
    TOO_MANY_PEERS = 14
    INTERNAL = 15
    OVER_QUOTA = 16
    NO_SUCH_NAME = 20
    NO_SUCH_PEER = 21
    NO_SUCH_METHOD = 22
    RESPONDER_DIED = 23
    EXPIRED = 24
    DENIED = 25
    OVERLOADED = 26
    NO_SUCH_REQUEST = 27
    BAD_TOPIC = 28
    BAD_NAME = 29
    RESERVED = 30
    BAD_ARGUMENT = 31
    NAME_TAKEN = 32
    NOT_OWNER = 33
    OVER_LIMIT = 34
    UNSUPPORTED = 35
    NO_SUCH_LANE = 36
    LANE_IN_USE = 37

    @property
    def fatal(self) -> bool:
        """Whether the connection ends with it."""
        return 0 < self < 20

    @property
    def label(self) -> str:
        """The code's name as PROTOCOL.md, logs and the command line write it."""
        return self.name.lower()


def code_label(code: int | str) -> str:
    """A code for a person: the name of a bus code, a service's own code as it is, ``code 99`` for one from a newer bus."""
    if isinstance(code, str):
        return code
    try:
        return Code(code).label
    except ValueError:
        return f"code {code}"


class ProtocolError(Exception):
    """A peer broke PROTOCOL.md, or asked for what cannot be had.

    ``code`` says what and whether the connection ends (``code.fatal``), ``text`` says it to a person: what was wrong, the limit, the way
    out.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code.label}: {self.text}"
