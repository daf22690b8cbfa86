"""The last message of each retained topic (L-8)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits
from ..protocol.topics import is_literal, matcher, matches, split_pattern
from .accounts import Accounts
from .origins import Origin
from .quotas import RETAINED, RETAINED_BYTES

#: Deadlines of what was replaced may stay in the heap until they are more than the ones that hold, and more than this.
_STALE_MIN = 1_000
#: Among so many topics it pays to compile a pattern.
_COMPILED_MIN = 200


class Retained:
    """Whole RETAIN frames by topic, in the order in which they were published; some with a deadline (L-11)."""

    def __init__(self, limits: Limits, accounts: Accounts) -> None:
        self.limits = limits
        self._accounts = accounts
        self._origins: dict[str, Origin] = {}  #: who published it, and is charged for it, whether still connected or not (Q-1, I-4)
        self._frames: dict[str, bytes] = {}
        self._deadlines: dict[str, tuple[float, int]] = {}  #: and a number, so that each is unlike any other
        self._heap: list[tuple[float, int, str]] = []
        self._sequence = 0
        self.bytes = 0
        self.earliest: float | None = None  #: nothing is due before it; it may be early, for what was replaced

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, topic: str) -> bool:
        return topic in self._frames

    def get(self, topic: str, now: float) -> bytes | None:
        """What is kept for *topic*."""
        return None if self._is_over(topic, now) else self._frames.get(topic)

    def origin(self, topic: str) -> Origin | None:
        """Who published what is kept for *topic*."""
        return self._origins.get(topic)

    def _is_over(self, topic: str, now: float) -> bool:
        """Whether the time of what is kept for *topic* has passed, though `due` did not come to it yet."""
        until = self._deadlines.get(topic)
        return until is not None and until[0] <= now

    def keep(self, topic: str, frame: bytes, origin: Origin, deadline: float | None = None) -> None:
        """Keep *frame* as the last of *topic*, until *deadline*; raises ``over_limit``, and then what was kept before is gone."""
        before = self._frames.get(topic)
        if before is not None and len(before) == len(frame) and self._origins[topic] is origin:
            del self._frames[topic]  # the usual case: the books stay as they are, and the newest comes last
            if self._deadlines:
                self._deadlines.pop(topic, None)
            self._frames[topic] = frame
            if deadline is not None:
                self._keep_until(topic, deadline)
            return
        self.remove(topic)
        limits = self.limits
        if len(self._frames) >= limits.max_retained_topics:
            raise ProtocolError(
                Code.OVER_LIMIT, f"{len(self._frames)} topics are retained: {topic!r} is not kept (limits.max_retained_topics)"
            )
        size = len(frame) + origin.weight
        if self.bytes + size > limits.max_retained_bytes:
            raise ProtocolError(
                Code.OVER_LIMIT, f"{self.bytes} bytes are retained: {size} more on {topic!r} are not kept (limits.max_retained_bytes)"
            )
        payer = origin.account
        self._accounts.charge(payer, RETAINED, 1)
        try:
            self._accounts.charge(payer, RETAINED_BYTES, size)
        except ProtocolError:
            self._accounts.release(payer, RETAINED, 1)
            raise
        self._frames[topic] = frame
        self._origins[topic] = origin
        self.bytes += size
        if deadline is not None:
            self._keep_until(topic, deadline)

    def _keep_until(self, topic: str, deadline: float) -> None:
        self._sequence += 1
        self._deadlines[topic] = deadline, self._sequence
        heapq.heappush(self._heap, (deadline, self._sequence, topic))
        if len(self._heap) > 2 * len(self._deadlines) + _STALE_MIN:
            self._heap = [(*when, of) for of, when in self._deadlines.items()]
            heapq.heapify(self._heap)
        self.earliest = self._heap[0][0]

    def remove(self, topic: str) -> None:
        """Forget what is kept for *topic*. Idempotent."""
        frame = self._frames.pop(topic, None)
        if frame is None:
            return
        origin = self._origins.pop(topic)
        size = len(frame) + origin.weight
        self.bytes -= size
        self._accounts.release(origin.account, RETAINED, 1)
        self._accounts.release(origin.account, RETAINED_BYTES, size)
        if self._deadlines:
            self._deadlines.pop(topic, None)

    def due(self, now: float, most: int) -> list[tuple[str, Origin]]:
        """Take out what was to be kept until *now* or less, up to *most* of it, in the order of its deadlines: the topics, and who had
        published to them."""
        heap = self._heap
        expired: list[tuple[str, Origin]] = []
        while heap and len(expired) < most and (heap[0][0] <= now or self._deadlines.get(heap[0][2]) != heap[0][:2]):
            deadline, sequence, topic = heapq.heappop(heap)
            if self._deadlines.get(topic) == (deadline, sequence):
                expired.append((topic, self._origins[topic]))
                self.remove(topic)
        self.earliest = heap[0][0] if heap else None
        return expired

    def matching(self, pattern: str, now: float) -> Iterator[tuple[bytes, Origin]]:
        """The frames whose topic a legal *pattern* matches, oldest first, each with who published it."""
        if is_literal(split_pattern(pattern)):
            frame = self.get(pattern, now)
            if frame is not None:
                yield frame, self._origins[pattern]
            return
        good: Callable[[str], object] = matcher(pattern) if len(self._frames) >= _COMPILED_MIN else partial(matches, pattern)
        for topic, frame in self._frames.items():
            if good(topic) and not (self._deadlines and self._is_over(topic, now)):
                yield frame, self._origins[topic]
