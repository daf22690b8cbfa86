"""The proof of a loopback TCP connection (H-5): both sides show that they hold the same secret, without sending it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from .messages import pack


class Secret(bytes):
    """A secret's bytes (H-6), which no log, no traceback and no message shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__


class Secrets:
    """The secrets of a bus by their names (H-14)."""

    __slots__ = ("_keys", "_nobodys")

    def __init__(self, keys: Mapping[str, Secret], nobodys: bytes) -> None:
        """*nobodys*: random bytes, the secret of all names that there are not."""
        self._keys = dict(keys)
        self._nobodys = Secret(nobodys)

    def of(self, name: str) -> bytes:
        """The secret called *name*. Where there is none it is one that nobody knows, so that who fails cannot tell why."""
        return self._keys.get(name, self._nobodys)

    def changed(self, keys: Mapping[str, Secret]) -> set[str]:
        """The names of those that are gone or others among *keys*."""
        return {name for name, key in self._keys.items() if not same_proof(key, keys.get(name, self._nobodys))}

    def added(self, keys: Mapping[str, Secret]) -> set[str]:
        """The names among *keys* that there were not."""
        return keys.keys() - self._keys.keys()

    def replace(self, keys: Mapping[str, Secret]) -> None:
        """Have other secrets from now on."""
        self._keys = dict(keys)


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
