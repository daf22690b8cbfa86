"""The present state of what is retained under a pattern, and each change of it: from a subscription's stream, gaps included. No I/O.

A stream begins, and begins again after a reconnect, with all that the bus keeps (L-8); the answer to ``subscribe`` says how many messages
that is. Compared with what was known before, it gives the changes that happened meanwhile, removals too. Where messages were lost the state
is uncertain: then it must be subscribed anew, which begins the stream once more.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from ._message import Message
from ._notices import Lost, Reconnected, Snapshot

#: What a bus that refuses to keep more still delivers makes the state grow beyond what is kept. At twice what it was, and some more, it is
#: asked for again.
_SPARE_TOPICS = 1000
_SPARE_BYTES = 16 * 1024 * 1024
_TOPIC_BYTES = 100  #: about what a message costs besides its payload


class Change(NamedTuple):
    """One change of the state: a value that is new, or was published again, or that is there no more."""

    topic: str
    message: Message | None  #: with sender, headers, …; None where the value was removed
    removed: bool  #: nothing is kept for the topic any more
    initial: bool  #: it was there when the watch began

    @property
    def data(self) -> Any:
        """The value, as a message's ``data``; None where it was removed. Raises PayloadError, which concerns this change only."""
        return None if self.message is None else self.message.data


class Watching:
    """The state of one watch, and the changes that it has not told yet."""

    def __init__(self, epoch: int) -> None:
        self.state: dict[str, Message] = {}
        self.changes: deque[Change] = deque()  #: at most one message's, or one stream's beginning
        self.complete = False  #: the state was known once
        self._most_topics = self._most_bytes = 0  #: above them the state is asked for again
        self.begin(epoch)

    def begin(self, epoch: int) -> None:
        """The stream begins, on the connection of *epoch*: what is kept comes first."""
        self.uncertain = False  #: it must be subscribed anew
        self._epoch = epoch
        self._came: set[str] | None = set()  #: topics of what is kept that came already; None when that is over
        self._count = 0  #: messages of what is kept that came already
        self._expected: int | None = None  #: how many there are; None: not known yet
        self._bytes = 0

    def take(self, item: Any) -> None:
        """The next item of the stream."""
        if isinstance(item, Message):
            if item.retained:
                self._set(item)
        elif isinstance(item, Reconnected):
            self.begin(item.epoch)
        elif isinstance(item, Lost):
            self.uncertain = True
        elif isinstance(item, Snapshot) and item.epoch == self._epoch and self._came is not None:
            self._expected = item.retained
            self._compare()

    def _set(self, message: Message) -> None:
        topic, state = message.topic, self.state
        before = state.get(topic)
        if message.payload:
            state[topic] = message
        elif before is not None:
            del state[topic]
        self._bytes += len(message.payload) + _TOPIC_BYTES
        if self._came is not None:
            self._came.add(topic)
            self._count += 1
            if before is None or before[3:] != message[3:]:
                self.changes.append(Change(topic, message, False, not self.complete))
            self._compare()
        else:
            if message.payload:
                self.changes.append(Change(topic, message, False, False))
            elif before is not None:
                self.changes.append(Change(topic, None, True, False))
            if len(state) > self._most_topics or self._bytes > self._most_bytes:
                self._measure()

    def _compare(self) -> None:
        """Where all that is kept came: what did not is kept no more."""
        came = self._came
        if came is None or self._expected is None or self._count < self._expected:
            return
        for topic in [topic for topic in self.state if topic not in came]:
            del self.state[topic]
            self.changes.append(Change(topic, None, True, False))
        self._came = None
        self.complete = True
        self._bytes = self._size()
        self._most_topics = 2 * len(self.state) + _SPARE_TOPICS
        self._most_bytes = 2 * self._bytes + _SPARE_BYTES

    def _measure(self) -> None:
        """Much came since the beginning: is it more state, or only more changes?"""
        self._bytes = self._size()
        self.uncertain = len(self.state) > self._most_topics or 2 * self._bytes > self._most_bytes

    def _size(self) -> int:
        return sum(len(message.payload) + _TOPIC_BYTES for message in self.state.values())
