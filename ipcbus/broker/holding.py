"""Who holds whom, for how long it still may, and who pays for what is parked meanwhile (L-12).

A queue with the policy block that is over its soft limit holds its publishers: they are told and are read on; what they still publish to it
stands in it in order but is charged to them, and only who has parked too much is read no more. A program whose queues hold somebody uses up
its budget of time for that, whatever its connections do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from ..protocol.limits import Limits
from .backlogs import Backlog
from .deadlines import Deadlines
from .outputs import Outputs
from .peers import Peer

#: A program that used up its budget holds nobody before this part of it has come back, or it would hold for a moment again and again.
BUDGET_START = 0.1
#: So often the log says of a program that it holds others. A fast publisher and a busy subscriber are in step by many short holds.
HOLD_LOG_S = 60.0
#: Budgets that are full again are forgotten when there are more than this, and twice what was left the last time.
_BUDGETS_MIN = 1_000

Key = tuple[int, int] | tuple[int] | str


class Hold:
    """One publisher held by one queue. What it parked there refers to this; when the hold ends the queue's payer is charged for it."""

    __slots__ = ("bytes", "publisher")

    def __init__(self, publisher: Peer) -> None:
        self.publisher: Peer | None = publisher  #: None: the hold has ended
        self.bytes = 0  #: parked


class Holding:
    """One queue that holds its publishers, from the first of them until it lets all go."""

    __slots__ = ("backlog", "budget", "holds", "id", "logged", "since", "told")

    def __init__(self, number: int, backlog: Backlog, budget: Budget, since: float) -> None:
        self.id = number
        self.backlog = backlog
        self.budget = budget
        self.since = since
        self.holds: dict[Peer, Hold] = {}
        self.told = 0  #: how many publishers it has held
        self.logged = False  #: the log says that it began, and will say that it is over


class Budget:
    """Seconds for which a program may hold its publishers; it drains while it holds at least one, and refills while it holds none."""

    __slots__ = ("at", "holdings", "left_s", "logged_at")

    def __init__(self, left_s: float, now: float) -> None:
        self.left_s = left_s
        self.at = now
        self.holdings: dict[Holding, None] = {}
        self.logged_at: float | None = None  #: when the log said last that it holds others

    def look(self, limits: Limits, now: float) -> float:
        """Bring it up to *now*; what is left."""
        passed = max(now - self.at, 0.0)
        self.at = now
        if self.holdings:
            self.left_s = max(self.left_s - passed, 0.0)
        else:
            self.left_s = min(self.left_s + passed * limits.lane_stall_s / limits.stall_window_s, limits.lane_stall_s)
        return self.left_s


def program_key(peer: Peer) -> Key:
    """Which program a peer is, also when it comes back on another connection."""
    who = peer.credentials
    if who is None:
        return peer.transport
    return (who.uid, who.pid) if who.pid else (who.uid,)


class Holds:
    """All queues that hold somebody. *cut* is called for one that has to stop."""

    def __init__(self, outputs: Outputs, limits: Limits, log: Callable[[int, str], None]) -> None:
        self.limits = limits
        self.publishers = 0  #: how many are held now
        self.exhausted: Deadlines[Budget] = Deadlines()
        self._outputs = outputs
        self._log = log
        self._holdings: dict[Holding, None] = {}
        self._budgets: dict[Key, Budget] = {}
        self._budgets_max = _BUDGETS_MIN
        self._last = 0

    def __len__(self) -> int:
        return len(self._holdings)

    def __iter__(self) -> Iterator[Holding]:
        return iter(self._holdings)

    # --- holding ----------------------------------------------------------------------------------

    def begin(self, backlog: Backlog, first: Peer) -> bool:
        """Hold *first*, and from now on whoever publishes to *backlog*; False where its program has no time left for that."""
        now = self._outputs.now
        self._forget_budgets(now)
        budget = max((self._budget(member.peer) for member in backlog.members()), key=lambda budget: budget.look(self.limits, now))
        if not budget.holdings and budget.left_s < BUDGET_START * self.limits.lane_stall_s:
            return False
        self._last += 1
        holding = backlog.holding = Holding(self._last, backlog, budget, now)
        if not budget.holdings:
            self.exhausted.start(budget, now + budget.left_s)
        budget.holdings[holding] = None
        self._holdings[holding] = None
        holding.logged = budget.logged_at is None or now - budget.logged_at >= HOLD_LOG_S
        if holding.logged:
            budget.logged_at = now
        self._log(
            logging.WARNING if holding.logged else logging.DEBUG,
            f"{backlog} does not keep up and holds its publishers, first {first}: {backlog.bytes} bytes wait, {backlog.soft} may"
            " (L-12; limits.lane_soft_bytes, limits.lane_stall_s; policy block)",
        )
        self.join(holding, first)
        return True

    def join(self, holding: Holding, publisher: Peer) -> Hold:
        """Hold one more publisher."""
        hold = holding.holds[publisher] = Hold(publisher)
        holding.told += 1
        if publisher.holds is None:
            publisher.holds = {}
            self.publishers += 1
        publisher.holds[holding] = hold
        if "hold" in publisher.connection.features:
            self._outputs.notice(publisher, "hold", _describe(holding))
        return hold

    def end(self, backlog: Backlog) -> None:
        """Let all publishers of *backlog* go; what they parked is its payer's now. Idempotent."""
        holding = backlog.holding
        if holding is None:
            return
        for hold in holding.holds.values():
            self._let_go(holding, hold)
        self._close(holding)

    def release(self, holding: Holding, publisher: Peer) -> None:
        """Let one publisher go, which is done sending or takes from the queue itself now. Without any the queue holds nobody any more."""
        hold = (publisher.holds or {})[holding]
        holding.holds.pop(publisher, None)  # a fault may have come between the two before
        self._let_go(holding, hold)
        if not holding.holds:
            self._close(holding)

    def _let_go(self, holding: Holding, hold: Hold) -> None:
        publisher, backlog = hold.publisher, holding.backlog
        assert publisher is not None
        assert publisher.holds is not None
        hold.publisher = None
        backlog.parked -= hold.bytes
        backlog.payer.backlog_bytes += hold.bytes
        del publisher.holds[holding]
        if not publisher.holds:
            publisher.holds = None
            self.publishers -= 1
        self.park(publisher, -hold.bytes)
        self._outputs.touch(backlog.payer)
        if "hold" in publisher.connection.features:
            self._outputs.notice(publisher, "resume", {"id": holding.id})

    def _close(self, holding: Holding) -> None:
        now = self._outputs.now
        budget = holding.budget
        budget.look(self.limits, now)
        del budget.holdings[holding], self._holdings[holding]
        if not budget.holdings:
            self.exhausted.stop(budget)
        holding.backlog.holding = None
        self._log(
            logging.INFO if holding.logged else logging.DEBUG,
            f"{holding.backlog} held {holding.told} publisher{'s' * (holding.told != 1)} for {now - holding.since:.1f} s and lets them go",
        )

    # --- what is parked ---------------------------------------------------------------------------

    def park(self, publisher: Peer, size: int) -> None:
        """*size* bytes more wait at the expense of *publisher*: over its limit it is read no more, until it is below half. What one read
        brought may be more: a large message may be under way when its publisher hears that it is held, and is nothing to mute it for.
        """
        if not publisher.parked_bytes:
            publisher.parked_at = publisher.in_bytes
        publisher.parked_bytes += size
        if publisher.parked_bytes > self.limits.max_parked_bytes:
            if size >= 0 and publisher.parked_at != publisher.in_bytes:
                publisher.held = 1
        elif publisher.parked_bytes <= self.limits.max_parked_bytes // 2:
            publisher.held = 0
        self._outputs.touch(publisher)

    # --- budgets ----------------------------------------------------------------------------------

    def _budget(self, peer: Peer) -> Budget:
        key = program_key(peer)
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = Budget(self.limits.lane_stall_s, self._outputs.now)
        return budget

    def _forget_budgets(self, now: float) -> None:
        """Those that are full again are as good as new ones. Not while one is chosen: it would be a program's second."""
        if len(self._budgets) < self._budgets_max:
            return
        full = self.limits.lane_stall_s
        self._budgets = {key: budget for key, budget in self._budgets.items() if budget.look(self.limits, now) < full or budget.holdings}
        self._budgets_max = max(2 * len(self._budgets), _BUDGETS_MIN)

    def due(self, now: float, most: int) -> list[Backlog]:
        """The queues, up to *most*, of programs that have used up their budget: they are to hold nobody any more."""
        backlogs: list[Backlog] = []
        for budget in self.exhausted.due(now):
            budget.look(self.limits, now)
            some = [holding.backlog for holding in islice(budget.holdings, most - len(backlogs))]
            backlogs += some
            if len(some) < len(budget.holdings):
                self.exhausted.start(budget, now)
        return backlogs

    def reconfigure(self, limits: Limits, now: float) -> None:
        """Other limits from now on."""
        for budget in self._budgets.values():
            left_s = budget.look(self.limits, now)
            budget.left_s = min(left_s, limits.lane_stall_s)
            if budget in self.exhausted:
                self.exhausted.start(budget, now + budget.left_s)
        self.limits = limits
        for holding in self._holdings:
            for publisher in holding.holds:
                self.park(publisher, 0)

    # --- what is told -----------------------------------------------------------------------------

    def items(self, most: int) -> list[dict[str, Any]]:
        """What `stats` says of who holds whom (B-4)."""
        now = self._outputs.now
        items: list[dict[str, Any]] = []
        for holding in self._holdings:
            if len(items) == most:
                break
            who = holding.backlog.payer.credentials
            items.append(
                _describe(holding)
                | {"pid": who.pid if who else None, "publishers": len(holding.holds), "held_s": round(now - holding.since, 3)}
            )
        return items


def _describe(holding: Holding) -> dict[str, Any]:
    backlog = holding.backlog
    return {
        "id": holding.id,
        "pattern": backlog.pattern,
        "group": backlog.group.name if backlog.group is not None else None,
        "peer": backlog.payer.id,
        "program": backlog.payer.program,
        "bytes": backlog.bytes,
    }
