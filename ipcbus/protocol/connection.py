"""The bus's end of one connection: which frame is allowed when (K-1), and the handshake (section 5).

Owns the state and the scanner. It knows nothing of other peers: the broker asks it whether a frame may come now, and does the rest.
"""

from __future__ import annotations

import enum
from typing import Any

from .addresses import BUS_SECRET
from .auth import Secrets, proof, same_proof
from .errors import Code, ProtocolError
from .framing import Router, Scanner, check_sender
from .limits import VERSION, Limits
from .messages import Frame, Kind, encode
from .topics import BUS_NAME

#: H-3: what this bus can do beyond version 1's base.
FEATURES: tuple[str, ...] = ("post", "wills", "parts", "hold", "identity")


class State(enum.Enum):
    """Where a connection stands (K-1)."""

    __hash__ = object.__hash__  # Enum's is a Python function; the table is looked up for every frame

    HELLO = "hello"
    PROOF = "proof"
    READY = "ready"
    CLOSED = "closed"


_READY = frozenset(
    {
        Kind.BYE,
        Kind.PING,
        Kind.PONG,
        Kind.PUBLISH,
        Kind.RETAIN,
        Kind.POST,
        Kind.SEND,
        Kind.REQUEST,
        Kind.REPLY,
        Kind.PART,
        Kind.ERROR,
        Kind.CANCEL,
        Kind.CREDIT,
        Kind.ALLOW,
    }
)

#: K-1 as a table: what is missing is a protocol error.
ALLOWED: dict[State, frozenset[Kind]] = {
    State.HELLO: frozenset({Kind.HELLO}),
    State.PROOF: frozenset({Kind.PROOF}),
    State.READY: _READY,
    State.CLOSED: frozenset(),
}


class Connection:
    """State and scanner of one connection. On TCP, *addresses* are the bus's and the client's end as the kernel reports them, and
    *secrets* are needed."""

    __slots__ = ("_expected_proof", "_limits", "_secrets", "addresses", "features", "info", "peer", "scanner", "state", "version")

    def __init__(self, router: Router, limits: Limits, *, secrets: Secrets | None = None, addresses: tuple[str, str] | None = None) -> None:
        if addresses is not None and secrets is None:
            raise ValueError("a TCP connection needs the bus's secrets (H-5)")
        self.state = State.HELLO
        self.scanner = Scanner(router, prefixes_max=limits.max_route_cache)
        self.peer = 0
        self.version = 0
        self.features: tuple[str, ...] = ()
        self.info: dict[str, str] = {}
        self._limits = limits
        self._secrets = secrets
        self.addresses = addresses
        self._expected_proof = b""

    @property
    def identity(self) -> str:
        """On TCP: which secret the client said in HELLO that it has (H-14), which is not known to be true before PROOF."""
        return self.info.get("identity") or BUS_SECRET

    def check(self, frame: Frame) -> None:
        """Raise unless *frame* may come now (K-1) and from this sender (V-4)."""
        kind = frame.kind
        if kind not in ALLOWED[self.state]:
            raise ProtocolError(Code.BAD_STATE, f"{kind.name} is not allowed from a client in state {self.state.value} (K-1)")
        if frame.elements[1] != self.peer and not (
            kind is Kind.REQUEST and frame.elements[1] == 0 and frame.elements[2].startswith(BUS_NAME + "/")
        ):
            check_sender(self.peer, frame)

    def hello(self, frame: Frame, nonce: bytes) -> bytes | None:
        """Take HELLO (H-1 … H-3). On TCP: the CHALLENGE to send, made with *nonce*; on a Unix socket None: `welcome` follows at once."""
        _, _, low, high, features, info, client_nonce = frame.elements
        if (client_nonce is None) != (self.addresses is None):
            raise ProtocolError(Code.BAD_STATE, "HELLO has a nonce on TCP, and nil on a Unix socket (H-1)")
        if low > high or not low <= VERSION <= high:
            raise ProtocolError(Code.BAD_VERSION, f"the client speaks versions {low} to {high}, this bus speaks version {VERSION} (H-2)")
        self.version = VERSION
        self.features = tuple(name for name in features if name in FEATURES)
        self.info = info
        if self.addresses is None or self._secrets is None:
            return None
        transcript: tuple[Any, ...] = (frame.raw[5:], self.version, list(self.features), nonce, *self.addresses)
        secret = self._secrets.of(self.identity)
        self._expected_proof = proof(secret, "client", *transcript)
        self.state = State.PROOF
        return encode(Kind.CHALLENGE, 0, self.version, list(self.features), nonce, proof(secret, "bus", *transcript))

    def prove(self, frame: Frame) -> None:
        """Take PROOF; raises ``auth_failed`` (H-5)."""
        if not same_proof(self._expected_proof, frame.elements[2]):
            raise ProtocolError(Code.AUTH_FAILED, "the proof is wrong: client and bus must use the same secret file (H-5)")
        self._expected_proof = b""

    def welcome(self, peer: int, incarnation: bytes, software: str) -> bytes:
        """Make the connection ready as *peer*: the WELCOME to send (H-7, H-8)."""
        limits = self._limits
        self.peer = peer
        self.state = State.READY
        self.scanner.open(peer, limits.max_frame_bytes)
        info = {
            "software": software,
            "max_frame_bytes": limits.max_frame_bytes,
            "max_payload_bytes": limits.max_payload_bytes,
            "max_credit_bytes": limits.max_credit_bytes,
            "max_lanes": limits.max_lanes,
            "max_requests": limits.max_requests,
            "max_timeout_ms": limits.max_timeout_ms,
        }
        return encode(Kind.WELCOME, 0, self.version, list(self.features), peer, incarnation, info)

    def close(self) -> None:
        """Nothing is accepted any more. Idempotent."""
        self.state = State.CLOSED
