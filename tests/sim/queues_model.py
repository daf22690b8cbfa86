"""The reference model of what waits for a subscription: its order, its policy, and what it must be told of losses (L-4 … L-7, L-12).

Written from the clauses. It does not know when a message went from the queue into the output: what it judges holds whenever that was.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from ipcbus.protocol.errors import Code, ProtocolError
from ipcbus.protocol.limits import READ_BYTES, Limits

from .violations import ViolationError, frame_of


@dataclass(frozen=True, slots=True)
class TermsModel:
    """L-7: policy and limits in force."""

    policy: str
    soft: int
    hard: int
    seconds: float


def terms_of(arguments: dict[str, Any], limits: Limits) -> TermsModel:
    """What a subscription states, and the bus's where it states nothing; raises ``bad_argument``."""
    stated = arguments.get("limits") or {}
    soft = stated.get("soft", min(limits.lane_soft_bytes, stated.get("hard", limits.lane_soft_bytes)))
    if stated.get("hard", soft) < stated.get("soft", 0) or (arguments.get("policy") == "disconnect" and "group" in arguments):
        raise ProtocolError(Code.BAD_ARGUMENT, "limits, or a group with the policy disconnect")
    hard = max(soft, stated.get("hard", limits.lane_hard_bytes))
    return TermsModel(arguments.get("policy") or limits.lane_policy, soft, hard, stated.get("seconds", limits.lane_stall_s))


@dataclass(eq=False, slots=True)
class GroupModel:
    """L-6: each message of the pattern goes to one member."""

    terms: TermsModel
    outstanding: dict[bytes, list[int]] = field(default_factory=dict)  #: frame → its places in the total order (removals look the same)
    members: set[LaneModel] = field(default_factory=set)
    lost: int = 0  #: told to some member
    member_left: bool = False  #: what was on its way to that member is unknown

    def check_joins(self, arguments: dict[str, Any]) -> None:
        """L-7: a later member states the same or nothing; raises ``bad_argument``."""
        stated = {"policy": arguments.get("policy"), **(arguments.get("limits") or {})}
        if any(value is not None and value != getattr(self.terms, name) for name, value in stated.items()):
            raise ProtocolError(Code.BAD_ARGUMENT, "another policy")


@dataclass(eq=False, slots=True)
class LaneModel:
    """L-1: what one subscription must still receive, and what it was told."""

    where: str  #: for a person
    owner: int  #: the peer's id; its own publications never hold it
    pattern: str
    terms: TermsModel
    group: GroupModel | None
    granted_bytes: int
    granted_messages: int
    expected: deque[bytes] = field(default_factory=deque)
    sent_bytes: int = 0
    sent_messages: int = 0
    losses: Counter[str] = field(default_factory=Counter)  #: told, and not yet matched with what is missing
    lost_bytes: int = 0
    lagging: bool = False
    dropping: bool = False
    episode_lost: int = 0  #: told since there was no episode
    excused: bool = False  #: it may lose something though its policy is block: it was over hard, and nobody was there to be held
    vague: bool = False  #: latest: something was lost from the middle; what, shows only at the end
    last_place: int = -1  #: in a group: of the last message
    live: bool = False  #: something came after what was retained
    open: bool = True

    def fail(self, why: str) -> None:
        """A promise was broken."""
        raise ViolationError(f"{self.where}: {why}")

    def offer(self, raw: bytes, *, retained: bool = False, nobody_to_hold: bool = False) -> None:
        """A message for it."""
        self.expected.append(raw)
        self.live |= not retained
        self.excuse(nobody_to_hold)

    def excuse(self, nobody_to_hold: bool) -> None:
        """L-12: where nobody is there to be held the oldest messages go, and only when more than ``hard`` can wait."""
        self.excused |= nobody_to_hold and sum(map(len, self.expected)) > self.terms.hard

    # --- what it is told ----------------------------------------------------------------------------------------------------------------

    def told_lagging(self, content: dict[str, Any]) -> None:
        """NOTICE lagging: at the beginning of an episode, and again when messages begin to be lost for time (L-7)."""
        terms = TermsModel(content["policy"], content["soft"], content["hard"], content["seconds"])
        if terms != self.terms:
            self.fail(f"lags by {terms}, it was subscribed with {self.terms}")
        if self.group is not None:
            return  # it may have joined in the middle
        if (self.lagging, self.dropping) != (content["dropping"], False):
            self.fail(f"lagging {content} out of turn: it was lagging {self.lagging}, dropping {self.dropping}")
        # (drop_newest also where one message that comes is too large for what is left)
        if not content["dropping"] and content["bytes"] <= self.terms.soft and self.terms.policy != "drop_newest":
            self.fail(f"lags with {content['bytes']} bytes, {self.terms.soft} may wait")
        if content["count"] > len(self.expected) or content["bytes"] > sum(map(len, self.expected)):
            self.fail(f"lags with {content}, more than can wait: {len(self.expected)} messages")
        self.lagging, self.dropping = True, content["dropping"]

    def told_caught_up(self, content: dict[str, Any]) -> None:
        """NOTICE caught_up: the end of an episode."""
        if self.group is not None:
            return
        if not self.lagging:
            self.fail("has caught up, and did not lag")
        if content["lost"] > self.episode_lost:
            self.fail(f"caught up with {content['lost']} lost, it was told of {self.episode_lost}")
        self.lagging = self.dropping = False
        self.episode_lost = 0

    def told_lost(self, why: str, count: int, size: int) -> None:
        """NOTICE lost."""
        if self.group is not None:
            self.group.lost += count
            return
        if why == "too_slow" and not self.lagging:
            self.fail(f"{count} messages are lost ({why}), and nobody said before that it lags")
        if why == "too_slow" and self.terms.policy == "block" and not self.dropping and not self.excused:
            self.fail(f"{count} messages are lost (too_slow) though it holds its publishers and was not cut")
        if why == "too_slow" and self.terms.policy in ("drop_oldest", "latest") and not self.dropping:
            waited = sum(map(len, self.expected))  # what is lost now included
            if waited <= self.terms.hard:
                self.fail(f"{count} messages are lost (too_slow) though only {waited} bytes waited, {self.terms.hard} may")
        if why == "too_slow" and self.terms.policy == "disconnect":
            self.fail(f"{count} messages are lost (too_slow), its policy is to be disconnected")
        if why == "replaced" and self.terms.policy != "latest":
            self.fail(f"{count} messages were replaced, its policy is {self.terms.policy}")
        self.losses[why] += count
        self.lost_bytes += size
        self.episode_lost += count

    # --- what it gets -------------------------------------------------------------------------------------------------------------------

    def received(self, raw: bytes, now: float, mortal: dict[bytes, float]) -> Counter[str]:
        """A publication. Returns what was lost before it."""
        if self.sent_bytes - max(READ_BYTES, len(raw)) >= self.granted_bytes:
            self.fail("credit was overdrawn (L-5)")
        self.sent_bytes += len(raw)
        if self.group is not None:
            self._received_in_group(self.group, raw)
            return Counter()
        if self.terms.policy == "latest":
            self._received_latest(raw)
            return Counter()
        lost = self.match_losses(now, mortal)
        if not self.expected or self.expected.popleft() != raw:
            self.fail(f"{frame_of(raw)} is not the next message (L-4), and nothing was said to be lost")
        return lost

    def match_losses(self, now: float, mortal: dict[bytes, float]) -> Counter[str]:
        """What was said to be lost comes next. What too slow a lane and time took may be mixed, so it is judged together."""
        told = self.losses
        count = told.total()
        if not count:
            return told
        if count > len(self.expected):
            self.fail(f"{count} messages are lost, {len(self.expected)} were to come")
        gone = [self.expected.popleft() for _ in range(count)]
        size = sum(map(len, gone))
        if size != self.lost_bytes:
            self.fail(f"{size} bytes are missing, {self.lost_bytes} were said to be lost ({told})")
        late = sum(mortal.get(raw, now) < now for raw in gone)
        if told["expired"] > late:
            self.fail(f"{told['expired']} are said to have expired, {late} could")
        self.losses, self.lost_bytes = Counter(), 0
        return told

    def _received_latest(self, raw: bytes) -> None:
        """Policy latest: of what waits with one topic only the last comes, in the place of the first."""
        topic = frame_of(raw).elements[2]
        same = [other for other in self.expected if frame_of(other).elements[2] == topic]
        if raw not in same:
            self.fail(f"{frame_of(raw)} does not wait: it came before, was replaced or was lost")
        if self.losses.total() != self.losses["replaced"]:
            self.vague = True
        if not self.vague and frame_of(self.expected[0]).elements[2] != topic:
            self.fail(f"{frame_of(raw)} is not in the place of the first of its topic: that is {frame_of(self.expected[0])}")
        replaced = same[: same.index(raw)]
        self.vague |= same.count(raw) > 1  # removals look the same
        for other in (*replaced, raw):
            self.expected.remove(other)
        if len(replaced) > self.losses.total():
            self.fail(f"{len(replaced)} messages on {topic} were replaced, only {self.losses} were said to be lost")
        if not self.vague:
            self.losses["replaced"] -= len(replaced)
            self.lost_bytes -= sum(map(len, replaced))
        else:  # whatever they were
            for _ in replaced:
                self.losses[max(self.losses, key=self.losses.__getitem__)] -= 1

    def _received_in_group(self, group: GroupModel, raw: bytes) -> None:
        self.sent_messages += 1
        if self.sent_messages > self.granted_messages:
            self.fail("message credit was overdrawn (L-6)")
        places = group.outstanding.get(raw, [])
        # latest: a message takes an earlier one's place, so the order of a member need not be the total order
        last = -1 if group.terms.policy == "latest" else self.last_place
        place = next((place for place in places if place > last), None)
        if place is None:
            raise ViolationError(f"{self.where} got {frame_of(raw)}: not its group's, twice, or out of order (L-6)")
        places.remove(place)
        self.last_place = place

    def missing(self) -> int:
        """Messages that it neither got nor was told to have lost."""
        return 0 if self.group is not None else len(self.expected) - self.losses.total()
