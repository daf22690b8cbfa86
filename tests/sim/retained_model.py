"""The reference model of what is kept: the last message of each topic, until when, and at whose expense (L-8, L-11, Q-1)."""

from __future__ import annotations

from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Frame

from .shares_model import ProgramModel, admits


class RetainedModel:
    """Whole frames by topic, in the order in which they came."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._payers: dict[str, ProgramModel] = {}
        self.frames: dict[str, bytes] = {}
        self.until: dict[str, float] = {}  #: of those that have a time to live
        self.most_bytes = 0  #: that there ever were

    def keep(self, frame: Frame, program: ProgramModel, deadline: float | None) -> bool:
        """Keep it as the last of its topic, at the expense of *program*; False where that has no room, and then nothing is kept."""
        topic = frame.elements[2]
        before, payer = self.frames.get(topic), self._payers.get(topic)
        self.forget(topic)
        if not frame.payload_size:
            return True
        if before is None or len(before) != len(frame.raw) or payer is not program:
            topics = [(one, 1) for one in self._payers.values()]
            sizes = [(self._payers[one], len(raw)) for one, raw in self.frames.items()]
            if not admits(self._limits, "retained", topics, program):
                return False
            if not admits(self._limits, "retained_bytes", sizes, program, len(frame.raw)):
                return False
        self.frames[topic], self._payers[topic] = frame.raw, program
        self.most_bytes = max(self.most_bytes, sum(map(len, self.frames.values())))
        if deadline is not None:
            self.until[topic] = deadline
        return True

    def forget(self, topic: str) -> None:
        """Nothing is kept for *topic* any more. Idempotent."""
        for table in (self.frames, self._payers, self.until):
            table.pop(topic, None)  # type: ignore[attr-defined]

    def due(self, now: float) -> list[str]:
        """The topics whose time is over, in the order of their deadlines."""
        late = [topic for topic, deadline in self.until.items() if deadline <= now]
        return sorted(late, key=self.until.__getitem__)  # of the same moment: in the order in which they came
