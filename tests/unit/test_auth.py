"""The proof of a loopback TCP connection (H-5)."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from ipcbus.protocol.auth import Secret, Secrets, proof, same_proof

SECRET = bytes(range(32))
COVERED: dict[str, Any] = {
    "role": "client",
    "hello": bytes.fromhex("97 01 00 01 01 90 80 c0"),
    "version": 1,
    "features": ["a"],
    "nonce": b"\x07" * 32,
    "bus_address": "127.0.0.1:4222",
    "client_address": "[::1]:50000",
}

#: The transcript of COVERED, byte by byte.
TRANSCRIPT = (
    b"\x98\xa8ipcbus-1\xa6client\xc4\x08\x97\x01\x00\x01\x01\x90\x80\xc0\x01\x91\xa1a\xc4\x20"
    + b"\x07" * 32
    + b"\xae127.0.0.1:4222\xab[::1]:50000"
)


def test_the_transcript_is_as_the_protocol_says() -> None:
    assert proof(SECRET, **COVERED) == hmac.new(SECRET, TRANSCRIPT, hashlib.sha256).digest()


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("role", "bus"),
        ("hello", b""),
        ("version", 2),
        ("features", []),
        ("nonce", b"\x08" * 32),
        ("bus_address", "127.0.0.1:4223"),
        ("client_address", "[::1]:50001"),
    ],
)
def test_everything_is_covered(what: str, other: Any) -> None:
    assert proof(SECRET, **COVERED) != proof(SECRET, **{**COVERED, what: other})


def test_another_secret_gives_another_proof() -> None:
    assert proof(SECRET, **COVERED) != proof(bytes(32), **COVERED)


def test_comparison() -> None:
    assert same_proof(b"a" * 32, b"a" * 32)
    assert not same_proof(b"a" * 32, b"a" * 31 + b"b")
    assert not same_proof(b"a" * 32, b"a" * 31)


def test_a_secret_does_not_show() -> None:
    secret = Secret(SECRET)
    assert secret == SECRET
    for text in (str(secret), repr(secret), f"{secret}", repr({"key": secret}), str(ValueError(secret))):
        assert "<secret>" in text
        assert repr(SECRET)[2:10] not in text


def test_a_name_that_there_is_not_has_a_secret_that_nobody_knows() -> None:
    secrets = Secrets({"default": Secret(SECRET)}, b"n" * 32)
    assert secrets.of("default") == SECRET
    assert secrets.of("panel") == secrets.of("") == b"n" * 32


def test_which_secrets_changed() -> None:
    one, two, three = (Secret(bytes([n]) * 32) for n in (1, 2, 3))
    secrets = Secrets({"default": one, "panel": two, "gone": three}, bytes(32))
    others = {"default": one, "panel": three, "new": two}
    assert (secrets.changed(others), secrets.added(others)) == ({"panel", "gone"}, {"new"})
    secrets.replace(others)
    assert (secrets.of("panel"), secrets.of("gone"), secrets.of("new")) == (three, bytes(32), two)
    assert secrets.changed(others) == secrets.added(others) == set()
