"""Other hashes for the objects of bus, client and simulation: a set of them, gone through, then comes in another order.

An object's hash is made of its address, which differs from process to process and from story to story. Whatever follows the order of such
a set would be another story each time: a failure that comes once and never again, and a bus that nobody can understand.
"""

from __future__ import annotations

import sys
from enum import Enum

OURS = ("ipcbus", "ipcbus_client", "tests")


def scatter(salt: int) -> int:
    """Have all objects that are equal only to themselves hash by their address and *salt*. For a process that ends after that: what was
    hashed before is not found again. Returns how many classes they are of."""
    mask = (1 << 60) - 1

    def scattered(self: object) -> int:
        return (id(self) >> 4) * (2 * salt + 1) * 0x9E3779B97F4A7C15 & mask

    count = 0
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] not in OURS:
            continue
        for one in tuple(vars(module).values()):
            if not isinstance(one, type) or one.__module__ != name or issubclass(one, Enum):
                continue
            if one.__hash__ is object.__hash__ and one.__eq__ is object.__eq__:
                one.__hash__ = scattered  # type: ignore[assignment]
                count += 1
    return count
