"""The last message of each retained topic (L-8)."""

from __future__ import annotations

from collections.abc import Iterator

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import Limits
from ..protocol.topics import is_literal, matches, split_pattern


class Retained:
    """Whole RETAIN frames by topic, in the order in which they were published."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._frames: dict[str, bytes] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, topic: str) -> bool:
        return topic in self._frames

    def keep(self, topic: str, frame: bytes) -> None:
        """Keep *frame* as the last of *topic*; raises ``over_limit``, and then what was kept before is gone."""
        self.remove(topic)
        limits = self.limits
        if len(self._frames) >= limits.max_retained_topics:
            raise ProtocolError(
                Code.OVER_LIMIT, f"{len(self._frames)} topics are retained: {topic!r} is not kept (limits.max_retained_topics)"
            )
        if self.bytes + len(frame) > limits.max_retained_bytes:
            raise ProtocolError(
                Code.OVER_LIMIT, f"{self.bytes} bytes are retained: {len(frame)} more on {topic!r} are not kept (limits.max_retained_bytes)"
            )
        self._frames[topic] = frame
        self.bytes += len(frame)

    def remove(self, topic: str) -> None:
        """Forget what is kept for *topic*. Idempotent."""
        self.bytes -= len(self._frames.pop(topic, b""))

    def matching(self, pattern: str) -> Iterator[bytes]:
        """The frames whose topic a legal *pattern* matches, oldest first."""
        if is_literal(split_pattern(pattern)):
            if pattern in self._frames:
                yield self._frames[pattern]
            return
        for topic, frame in self._frames.items():
            if matches(pattern, topic):
                yield frame
