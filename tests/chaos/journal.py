"""Journals: what a program knows when it is killed. Lines in a file, each one a ``write`` of its own, so that SIGKILL loses none.

What is published says from whom it is and which it is, so that whoever reads the journals of all programs can say what became of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

TOPICS = 3  #: of each publisher
END_TOPIC = "chaos.end"  #: the last message of an act: whoever sees it leaves in order


class Journal:
    """A program's own, to write. The words of its lines:

    - publishers: ``offered TOPIC NUMBER`` before it is tried, ``routed TOPIC NUMBER`` when the bus said so, ``failed TOPIC NUMBER ERROR``;
    - subscribers: ``came PUBLISHER TOPIC NUMBER PLACE``, ``lost COUNT WHY``, ``gap EPOCH`` (a reconnect), ``told WHAT`` (other notices),
      ``broken TEXT`` for a message that nobody published like that;
    - requesters: ``asked NUMBER``, ``answered NUMBER``, ``failed NUMBER ERROR``; responders: ``served REQUESTER NUMBER``;
    - all: ``ready`` and, at an end in order, ``done``.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, *words: object) -> None:
        """One line."""
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())


def read(path: Path) -> Iterator[list[str]]:
    """The whole lines of a journal, as words. A program that was killed within its last one has not said it."""
    text = path.read_bytes().decode() if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield line.split()


@dataclass(frozen=True, slots=True)
class Offer:
    """One message of a publisher: number *number* of its *topic*, its *place*-th of all."""

    publisher: str
    topic: str
    number: int
    place: int
    size: int

    @property
    def data(self) -> bytes:
        """The payload, from which parse() makes an Offer again."""
        head = f"{self.publisher} {self.topic} {self.number} {self.place} {self.size} ".encode()
        return head.ljust(self.size, b".")


def parse(data: bytes) -> Offer | None:
    """What a payload says; None where no publisher made it."""
    words = data.split(b" ", 5)
    try:
        offer = Offer(words[0].decode(), words[1].decode(), *(int(word) for word in words[2:5]))  # type: ignore[arg-type]
    except (ValueError, IndexError, TypeError):
        return None
    return offer if offer.data == data else None


class Offers:
    """The messages of one publisher, one after the other, of all sizes."""

    def __init__(self, publisher: str, rng: Random) -> None:
        self._publisher = publisher
        self._rng = rng
        self._numbers = [0] * TOPICS
        self._place = 0

    def next(self, index: int | None = None) -> Offer:
        """The next message, of topic *index* or of any."""
        index = self._rng.randrange(TOPICS) if index is None else index
        size = self._rng.choice((100, 100, 100, 1000, 10_000, 100_000 if self._rng.random() < 0.1 else 100))
        self._numbers[index] += 1
        self._place += 1
        return Offer(self._publisher, f"chaos.{self._publisher}.{index}", self._numbers[index], self._place, size)
