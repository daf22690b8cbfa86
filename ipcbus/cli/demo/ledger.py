"""The demo's books: what came on each topic, what is missing, how long requests took, and when the outage was.

Owns the accounting by sequence numbers. Knows no clock, no bus and no screen: moments (monotonic, in seconds) are passed in.
Not thread-safe by itself; who shares a Ledger holds its ``lock``.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from ..ping import percentile

MAX_TIMES = 100_000  #: of the latest requests and deliveries, for the percentiles
RATE_WINDOW_S = 2.0
MAX_REASONS = 20  #: different reasons of failed requests that are told apart


class Source:
    """One topic: its publisher numbers its messages 1, 2, 3, …"""

    def __init__(self) -> None:
        self.last = 0  #: the highest sequence number that came
        self.received = 0
        self.lost = 0
        self.repeated = 0  #: numbers that were not above the one before: duplicates, or out of order
        self.before = 0  #: messages that came before the daemon was started again
        self.after = 0  #: and since
        self.figures: Mapping[str, Any] = {}
        self.history: deque[Mapping[str, Any]] = deque(maxlen=24)
        self._began = 0.0
        self._moments: deque[float] = deque(maxlen=1000)

    def arrived(self, now: float, figures: Mapping[str, Any]) -> None:
        """A message came."""
        self._began = self._began or now
        self.received += 1
        self.figures = figures
        self.history.append(figures)
        self._moments.append(now)

    def rate(self, now: float) -> float:
        """Messages per second in the latest RATE_WINDOW_S, or since the first one where that is less."""
        while self._moments and self._moments[0] < now - RATE_WINDOW_S:
            self._moments.popleft()
        return len(self._moments) / min(RATE_WINDOW_S, max(RATE_WINDOW_S / 4, now - self._began))


class Ledger:
    """All sources and requests, and the outage: from `killed` until `restarted` and each source and the service is back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sources: dict[str, Source] = {}
        self._ended: set[str] = set()  #: sources that had nothing more to publish: a disk or interface that went away
        self.lost_in_outage = 0
        self.lost_elsewhere = 0  #: must be 0: the daemon ran, and nobody was slow
        self.killed_at: float | None = None
        self.restarted_at: float | None = None
        self.last_before: float | None = None  #: when the last message came before the restart
        self.first_after: float | None = None  #: when the first one came after it
        self.came_late = 0  #: messages that waited at their publisher for the daemon
        self.delivery_s: deque[float] = deque(maxlen=MAX_TIMES)
        self.request_s: deque[float] = deque(maxlen=MAX_TIMES)
        self.answered_before = 0
        self.answered_after = 0
        self.answered_again_at: float | None = None
        self.failed_in_outage: Counter[str] = Counter()
        self.failed_elsewhere: Counter[str] = Counter()

    # --- what happens ---------------------------------------------------------------------------------------------

    def message(self, topic: str, data: Mapping[str, Any], now: float) -> None:
        """A message came, with its ``seq``, the moment ``sent``, and figures."""
        source = self.sources.setdefault(topic, Source())
        seq = int(data["seq"])
        if seq <= source.last:
            source.repeated += 1
        else:
            self._missing(source, seq - source.last - 1)
            source.last = seq
        if self.restarted_at is None:
            source.before += 1
            self.last_before = now
        else:
            source.after += 1
            self.first_after = self.first_after or now
        source.arrived(now, data)
        sent = float(data["sent"])
        if self.killed_at is not None and self.killed_at <= sent and (self.first_after is None or sent <= self.first_after):
            self.came_late += 1
        else:
            self.delivery_s.append(max(0.0, now - sent))

    def published(self, totals: Mapping[str, int]) -> None:
        """The publisher's own count per topic, at its end: what did not come until now is lost."""
        for topic, total in totals.items():
            source = self.sources.setdefault(topic, Source())
            if total <= source.last and not source.after:
                self._ended.add(topic)
            self._missing(source, max(0, total - source.last))
            source.last = max(source.last, total)

    def missing(self, totals: Mapping[str, int]) -> int:
        """How many messages of *totals* may still be on their way."""
        last = {topic: source.last for topic, source in self.sources.items()}
        return sum(max(0, total - last.get(topic, 0)) for topic, total in totals.items())

    def answered(self, took_s: float, now: float) -> None:
        """A request was answered after *took_s*; one that waited through the outage says nothing about latency."""
        if not self.service_away:
            self.request_s.append(took_s)
        if self.restarted_at is None:
            self.answered_before += 1
        else:
            self.answered_after += 1
            self.answered_again_at = self.answered_again_at or now

    def failed(self, reason: str) -> None:
        """A request failed: because of the outage if the service was not back yet. While it is only starting that is as it should be."""
        if not self.answered_before:
            return
        reasons = self.failed_in_outage if self.service_away else self.failed_elsewhere
        reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else "other"] += 1

    def killed(self, now: float) -> None:
        """The daemon is being killed."""
        self.killed_at = now

    def restarted(self, now: float) -> None:
        """A new daemon is ready."""
        self.restarted_at = now

    def _missing(self, source: Source, count: int) -> None:
        source.lost += count
        if self.killed_at is not None and source.after == 0:
            self.lost_in_outage += count  # the source's first sign of life since the kill
        else:
            self.lost_elsewhere += count

    # --- what it amounts to ---------------------------------------------------------------------------------------

    @property
    def service_away(self) -> bool:
        """Whether the daemon was killed and the service has not answered since."""
        return self.killed_at is not None and self.answered_again_at is None

    @property
    def flowing(self) -> bool:
        """Whether sources and service have begun."""
        return bool(self.sources) and min(s.received for s in self.sources.values()) >= 2 and self.answered_before > 0

    @property
    def back(self) -> bool:
        """Whether every source that was there before the restart has been heard since, and the service has answered."""
        return self.answered_after > 0 and bool(self.sources) and not self.silent_sources()

    def silent_sources(self) -> list[str]:
        """The topics that were heard before the restart and not since, although their source goes on."""
        return sorted(
            topic for topic, source in self.sources.items() if source.before and not source.after and topic not in self._ended
        )

    def rate(self, now: float) -> float:
        """Messages per second now."""
        return sum(source.rate(now) for source in self.sources.values())

    @property
    def received(self) -> int:
        """Messages that came."""
        return sum(source.received for source in self.sources.values())

    @property
    def lost(self) -> int:
        """Messages that did not come, by their numbers."""
        return self.lost_in_outage + self.lost_elsewhere

    @property
    def repeated(self) -> int:
        """Messages that came twice or out of order."""
        return sum(source.repeated for source in self.sources.values())

    @property
    def gap_s(self) -> float | None:
        """From the last message before the restart to the first after it."""
        if self.last_before is None or self.first_after is None:
            return None
        return self.first_after - self.last_before

    def request_ms(self, percent: float) -> float:
        """A percentile of the answered requests; nan where there are none."""
        return 1000 * percentile(self.request_s, percent)

    def delivery_ms(self, percent: float) -> float:
        """A percentile of the time from publish() to the subscriber; nan where nothing came."""
        return 1000 * percentile(self.delivery_s, percent)
