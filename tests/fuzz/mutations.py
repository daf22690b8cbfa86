"""Bytes made a little wrong: what a mutation does to an input."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Where comparisons tend to be off by one: the borders of msgpack's forms, of UTF-8 and of signs.
_BYTES = (0x00, 0x01, 0x1F, 0x20, 0x2E, 0x7F, 0x80, 0x8F, 0x90, 0x95, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC3, 0xC4, 0xC6, 0xC7, 0xCA, 0xCB,
          0xCC, 0xCE, 0xCF, 0xD3, 0xD4, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xE0, 0xED, 0xF0, 0xFF)  # fmt: skip
_NUMBERS = (0, 1, 4, 5, 6, 127, 128, 255, 256, 1024, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53 - 1, 2**53, 2**63, 2**64 - 1)


def mutate(data: bytes, chance: random.Random, tokens: Sequence[bytes], other: bytes) -> bytes:
    """*data* after one to six changes; *other* is an input that pieces may come from."""
    changed = bytearray(data)
    for _ in range(min(1 + int(chance.expovariate(0.8)), 6)):
        _change(changed, chance, tokens, other)
    return bytes(changed)


def _change(data: bytearray, chance: random.Random, tokens: Sequence[bytes], other: bytes) -> None:
    at = chance.randrange(len(data) + 1)
    what = chance.randrange(10)
    if what == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif what == 1 and at < len(data):
        data[at] = chance.choice(_BYTES)
    elif what == 2 and at < len(data):
        data[at] = (data[at] + chance.choice((-1, 1))) & 0xFF
    elif what == 3:
        del data[at : at + _length(chance)]
    elif what == 4:
        data[at:at] = chance.randbytes(_length(chance))
    elif what == 5:
        data[at:at] = data[at : at + _length(chance)] * chance.choice((1, 1, 2, 20))
    elif what == 6 and other:
        begin = chance.randrange(len(other))
        piece = other[begin : begin + _length(chance)]
        data[at : at + chance.choice((0, len(piece)))] = piece
    elif what == 7 and tokens:
        token = chance.choice(tokens)
        data[at : at + chance.choice((0, len(token)))] = token
    elif what == 8:
        width = chance.choice((1, 2, 4, 8))
        data[at : at + width] = (chance.choice(_NUMBERS) & (256**width - 1)).to_bytes(width, "big")
    else:
        del data[at:]


def _length(chance: random.Random) -> int:
    return chance.choice((1, 1, 1, 2, 4, 5, 8, 16, 64, 256))
