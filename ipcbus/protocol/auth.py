"""The proof of a loopback TCP connection (H-5): both sides show that they hold the bus's secret, without sending it."""

from __future__ import annotations

import hashlib
import hmac

from .messages import pack


def proof(
    secret: bytes, role: str, hello: bytes, version: int, features: list[str], nonce: bytes, bus_address: str, client_address: str
) -> bytes:
    """H-5: the 32 bytes that *role* (``bus`` or ``client``) sends. *hello* is the client's HELLO envelope without its length.

    The addresses are the two ends as the caller's own kernel reports them: who relays the handshake between two connections has others.
    """
    transcript = pack(["ipcbus-1", role, hello, version, features, nonce, bus_address, client_address])
    return hmac.new(secret, transcript, hashlib.sha256).digest()


def same_proof(one: bytes, other: bytes) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(one, other)
