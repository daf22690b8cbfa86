"""The client's side of the handshake (H-1 to H-8): what is said first, and what the bus may say until its WELCOME is accepted.

Part of the session: same lock, no I/O. Until then nothing but this module sees what comes; what it does not expect ends the connection, so
that on TCP nothing is declared, published or served to a listener that did not prove that it holds the secret (H-5).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from ipcbus.protocol.errors import code_label
from ipcbus.protocol.limits import ENVELOPE_MAX_BYTES, HEADER_BYTES, INCARNATION_BYTES, MAX_ID, NONCE_BYTES, VERSION
from ipcbus.protocol.messages import Kind, encode

from ._calls import WARNING
from ._errors import ConnectError, Verdict, verdict
from ._holds import FEATURE as HOLD
from ._parts import FEATURE as PARTS
from ._senders import FEATURE as IDENTITY
from ._state import State

if TYPE_CHECKING:
    from ._session import Session

#: H-3: what this client can use beyond version 1's base.
FEATURES = ("post", "wills", PARTS, HOLD, IDENTITY)
#: The frames of a handshake are small: whoever has not said WELCOME has no more of this program's memory.
GREETING_MAX_BYTES = ENVELOPE_MAX_BYTES


class Stage(enum.Enum):
    """How far the handshake of this connection is; the value says what the bus may do next."""

    HELLO = "say CHALLENGE, with the proof that it holds the secret (H-5)"
    CHALLENGED = "say WELCOME"
    READY = "say everything else"


#: What may come at each stage besides BYE, and the next stage. On a Unix socket there is no CHALLENGE: there the first stage is CHALLENGED.
_NEXT: dict[Stage, dict[int, Stage]] = {
    Stage.HELLO: {Kind.CHALLENGE: Stage.CHALLENGED},
    Stage.CHALLENGED: {Kind.WELCOME: Stage.READY},
    Stage.READY: {},
}


class Greeting:
    """The handshakes of one session, one after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stage = Stage.HELLO
        self._secret = b""
        self._hello = b""
        self._addresses = ("", "")
        self._challenged: tuple[str, ...] | None = None  #: TCP: the features of CHALLENGE, which the proofs cover
        self._distrusts = False  #: the log knows that another listens there

    def begin(self, secret: bytes | None, nonce: bytes | None, addresses: tuple[str, str], identity: str, session_id: str) -> None:
        """Put HELLO into the outbox."""
        session = self._session
        info = {"program": session.program, "library": session.client_library}
        if identity:
            info["identity"] = identity
        if session_id:
            info["session"] = session_id
        hello = encode(Kind.HELLO, 0, VERSION, VERSION, FEATURES, info, nonce)
        self._stage = Stage.CHALLENGED if nonce is None else Stage.HELLO
        self._secret, self._addresses = secret or b"", addresses
        self._challenged = None
        self._hello = hello[HEADER_BYTES:]
        session.outbox.put(hello)

    def take(self, envelope: tuple[Any, ...]) -> None:
        """A frame before WELCOME, or WELCOME. Raises what a malformed one leads to, ValueError where it is not its turn."""
        kind = envelope[0]
        if kind == Kind.BYE:
            self._end(envelope)
            return
        after = _NEXT[self._stage].get(kind)
        if after is None:
            if self._stage is Stage.HELLO and kind == Kind.WELCOME:
                self._distrust("it let this program in without showing that it holds the secret (H-5): another program has this address")
                return
            name = Kind(kind).name if type(kind) is int and kind in Kind.__members__.values() else f"kind {kind!r}"
            raise ValueError(f"{name} before it may: it has yet to {self._stage.value}")
        if after is Stage.CHALLENGED:
            self._prove(envelope)
        else:
            self._accept(envelope)
        self._stage = after

    def _end(self, envelope: tuple[Any, ...]) -> None:
        """BYE. On TCP anybody can say so who took the address of a bus that was there, until it has proved that it is the bus."""
        _, _, code, text = envelope
        known = self._session.state is not State.CONNECTING
        if known and self._stage is Stage.HELLO and verdict(code) is Verdict.END:
            said = f"{code_label(code)}: {text}"
            self._distrust(f"it ended the connection ({said}) without showing that it holds the secret (H-5)")
        else:
            self._session.on_bye(envelope)

    def _prove(self, envelope: tuple[Any, ...]) -> None:
        """H-5: the bus's proof first, then ours."""
        _, _, version, features, nonce, shown = envelope
        if version != VERSION or type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
            raise ValueError("a CHALLENGE that is not in PROTOCOL.md")
        from ipcbus.protocol.auth import proof, same_proof  # here: it loads OpenSSL, which a program on a Unix socket does not need

        def of(role: str) -> bytes:
            return proof(self._secret, role, self._hello, version, list(features), nonce, *self._addresses)

        bus, client = of("bus"), of("client")
        self._secret = b""
        if same_proof(bus, shown):
            self._challenged = tuple(features)
            self._session.outbox.put(encode(Kind.PROOF, 0, client))
        else:
            self._distrust("it does not hold this secret (H-5): another program, or another bus's file?")

    def _distrust(self, why: str) -> None:
        """What listens there is not our bus. Where it never was, that is the end; a bus that was there may come back, and until it does
        nothing is said to the other (which the log hears of once).
        """
        session = self._session
        error = ConnectError(f"refusing to talk to what listens there: {why}", reason="secret", who=session.address)
        if session.state is State.CONNECTING:
            session.fatal(error)
        else:
            session.hangup = str(error)
            if not self._distrusts:
                self._distrusts = True
                session.remark(WARNING, f"{error}; looking again until the bus is back")

    def _accept(self, envelope: tuple[Any, ...]) -> None:
        _, _, version, features, peer, incarnation, info = envelope
        sizes = type(incarnation) is bytes and len(incarnation) == INCARNATION_BYTES
        kinds = isinstance(info, dict) and isinstance(features, tuple)
        if self._challenged is not None and features != self._challenged:
            raise ValueError("a WELCOME with other features than the CHALLENGE, which the proofs cover (H-5)")
        if version != VERSION or type(peer) is not int or not 1 <= peer <= MAX_ID or not sizes or not kinds:
            raise ValueError("a WELCOME that is not in PROTOCOL.md")
        limits = {key: value for key, value in info.items() if type(value) is int and value > 0}
        self._distrusts = False
        self._session.welcomed(peer, incarnation, limits, features)
