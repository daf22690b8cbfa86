"""What must be true of one bus at every moment, and when all is quiet or gone. This looks inside: at its queues, its holds, its books."""

from __future__ import annotations

from collections.abc import Iterator

from ipcbus.broker.backlogs import Backlog
from ipcbus.broker.peers import Peer
from ipcbus.broker.quotas import LANES, NAMES, RETAINED, RETAINED_BYTES

from .oracle import Oracle
from .violations import ViolationError
from .watched import WatchedBroker

MOMENT_S = 0.001  #: what is due is done when the clock says so
ONE_READ_BYTES = 16_384 + 5_000  #: and the rest of a frame that had begun


class Auditor:
    """Looks into one bus again and again."""

    def __init__(self, broker: WatchedBroker, oracle: Oracle) -> None:
        self.broker = broker
        self.oracle = oracle
        self._over: dict[Backlog, float] = {}  #: since when a queue is over its soft limit, without having been at half of it
        self._held: dict[object, tuple[int, int]] = {}  #: what held somebody at the last look, and whose it is
        self._budgets: dict[tuple[int, int], float] = {}  #: seconds that a program may still hold others
        self._parked: dict[Peer, tuple[int, int, int]] = {}  #: at the last look: since which read, how much, and which read it was
        self._at = 0.0
        self._turn = 0

    def look(self, now: float) -> None:
        """The bus did something. (Not all is looked at each time: what is wrong mostly stays wrong.)"""
        backlogs = set(self._backlogs())
        low = self.broker.late.low
        self._over = {backlog: since for backlog, since in self._over.items() if backlog in backlogs and backlog not in low}
        low.clear()
        for backlog in backlogs:
            self._check_time(backlog, now)
        self._turn += 1
        if self._turn % 3:
            return
        for backlog in backlogs:
            self._check_size(backlog)
        self._check_holds(now)
        self._check_books(sum(backlog.count for backlog in backlogs))
        self._check_accounts()

    def _backlogs(self) -> Iterator[Backlog]:
        for peer in self.broker.peers.values():
            for lane in peer.waiting or ():
                if lane.backlog is not None:
                    yield lane.backlog
            for lane in peer.grouped or ():
                if lane.group is not None and lane.group.backlog is not None:
                    yield lane.group.backlog

    def _check_size(self, backlog: Backlog) -> None:
        """L-7: each policy keeps its limits. What is retained may wait in a new queue, until its oldest messages are lost."""
        trimmed = backlog.lane is None or (backlog.lost and backlog.policy != "drop_newest")
        kept = 0 if trimmed else self.oracle.retained.most_bytes
        most = (backlog.soft if backlog.dropping and backlog.policy != "drop_newest" else backlog.hard) + kept
        own = backlog.bytes - backlog.parked
        if backlog.policy == "block" and not backlog.dropping:
            most += ONE_READ_BYTES  # of the publisher that came first
        if own > most and backlog.count > 1 and not backlog.payer.closing:
            raise ViolationError(f"{own} bytes in {backlog.count} messages wait for {backlog} ({backlog.policy}), at most {most} may")

    def _check_time(self, backlog: Backlog, now: float) -> None:
        """L-7: nothing is over its soft limit for longer than it says, and loses nothing."""
        if backlog.bytes <= backlog.soft // 2 or backlog.dropping or backlog.policy == "block":
            self._over.pop(backlog, None)
            return
        if backlog.lane is not None and not self.oracle.by_id[backlog.lane.peer.id].lanes[backlog.lane.number].live:
            return  # only what is retained waits: that may
        if backlog.bytes > backlog.soft:
            self._over.setdefault(backlog, now)
        if now - self._over.get(backlog, now) > backlog.seconds + MOMENT_S:
            raise ViolationError(f"{backlog} ({backlog.policy}) is over its soft limit for too long: {backlog.bytes} bytes")

    def _check_holds(self, now: float) -> None:
        """L-12: nobody is held for longer than the queue says, nor for longer than the budget of its program allows."""
        limits = self.broker.limits
        passed, self._at = now - self._at, now
        held: dict[object, tuple[int, int]] = {}
        for holding in self.broker._delivery.holds:
            backlog = holding.backlog
            if now - holding.since > backlog.seconds + MOMENT_S:
                raise ViolationError(f"{backlog} has held {len(holding.holds)} publishers for {now - holding.since:.2f} s")
            gone = [publisher for publisher in holding.holds if publisher.half_closed or publisher.closing]
            if gone:
                raise ViolationError(f"{backlog} holds {gone[0]}, which publishes no more")
            who = backlog.payer.credentials
            if backlog.lane is not None and who is not None:
                held[holding] = who.uid, who.pid
        drained = {held[holding] for holding in held.keys() & self._held.keys()}
        for program in {*self._budgets, *held.values()}:
            left = self._budgets.get(program, limits.lane_stall_s)
            if program in drained:
                left -= passed
            else:
                left = min(left + passed * limits.lane_stall_s / limits.stall_window_s, limits.lane_stall_s)
            self._budgets[program] = left
            if left < -MOMENT_S:
                raise ViolationError(f"program {program} holds others for longer than its budget allows")
        self._held = held
        parked, self._parked = self._parked, {}
        for peer in self.broker.peers.values():
            one_read = len(peer.holds or ()) * ONE_READ_BYTES  # what it brings may be parked in each queue
            most = max(limits.max_parked_bytes, one_read) + one_read  # the first may be more, and is nothing to mute it for
            if peer.parked_bytes > most or peer.parked_bytes < 0:
                raise ViolationError(f"{peer} has parked {peer.parked_bytes} bytes, at most {most} may be")
            if peer.held:
                wrong = peer.parked_bytes <= limits.max_parked_bytes // 2
            else:  # what one read brought may be more, and nothing after it
                before = parked.get(peer, (0, 0, 0))
                grew = before[0] == peer.parked_at != before[2] and peer.parked_bytes > before[1]
                wrong = peer.parked_bytes > limits.max_parked_bytes and grew
            if peer.parked_bytes:
                self._parked[peer] = peer.parked_at, peer.parked_bytes, peer.in_bytes
            if wrong:
                raise ViolationError(f"{peer} has parked {peer.parked_bytes} bytes; that it is not read is {bool(peer.held)}")

    def _check_books(self, waiting: int) -> None:
        """B-4: every pair of message and lane ends in one way, at every moment; and what nobody wanted is counted too. *waiting* for
        credit is what was counted here."""
        broker, oracle = self.broker, self.oracle
        offered, ends = broker.books()
        if offered != sum(ends.values()):
            raise ViolationError(f"{offered} messages were offered, and {sum(ends.values())} ended or wait: {ends}")
        if offered != oracle.offered:
            raise ViolationError(f"{oracle.offered} messages were offered, the bus says {offered}")
        in_outputs = ends["queued"] - waiting
        if not ends["delivered"] <= oracle.handed <= ends["delivered"] + in_outputs + ends["unknown"]:
            raise ViolationError(f"{oracle.handed} messages left the bus whole; it says {ends}, {in_outputs} of what waits in outputs")
        counters = broker.counters
        if oracle.unwanted != counters.no_subscriber:
            raise ViolationError(f"{oracle.unwanted} publications to nobody, {counters.no_subscriber} counted")
        no_subscriber = lost = expired = 0
        for _, counter in broker.topics.items():
            no_subscriber += counter.no_subscriber
            lost += counter.lost
            expired += counter.expired
        sums, whole = (no_subscriber, lost, expired), (counters.no_subscriber, counters.lost, counters.expired_messages)
        if sums != whole:
            raise ViolationError(f"the topics say {sums}: {whole} (nobody wanted them, lost, expired)")

    def _check_accounts(self) -> None:
        """Q-1: what is charged is what there is, at each level."""
        broker = self.broker
        accounts = broker.accounts
        by_users = [sum(figures) for figures in zip(*(user.used for user in accounts.users.values()), strict=True)]
        if by_users and accounts.used != by_users:
            raise ViolationError(f"the bus is charged for {accounts.used}, its users for {by_users}")
        there = {program: [0, 0] for user in accounts.users.values() for program in user.programs.values()}
        for peer in broker.peers.values():
            if not peer.closing:
                has = there[peer.account]
                has[0] += len(peer.lanes or ())
                has[1] += len(peer.claims or ())
        for program, has in there.items():
            charged = [program.used[LANES], program.used[NAMES]]
            if charged != has:
                raise ViolationError(f"{program} is charged for {charged} subscriptions and names, and has {has}")

    def check_quiet(self) -> None:
        """Everybody gave credit: nothing waits any more."""
        queued = self.broker.queued_bytes()
        if queued:
            raise ViolationError(f"{queued} bytes still wait after everybody gave credit")
        self._check_books(0)

    def check_empty(self) -> None:
        """Nothing is left in the bus after everybody left."""
        broker = self.broker
        left = {
            "peers": len(broker.peers),
            "names": len(broker.names),
            "lanes": broker.lane_count,
            "requests": len(broker.requests),
            "queued bytes": broker.queued_bytes(),
            "holds": len(broker._delivery.holds),
            "held publishers": broker._delivery.holds.publishers,
            "deadline": broker.next_deadline() or 0,
            "sessions": len(broker._sessions),
        }
        if any(left.values()):
            raise ViolationError(f"left behind: { ({what: count for what, count in left.items() if count}) }")
        accounts = broker.accounts
        charged = {resource: used for resource, used in enumerate(accounts.used) if used}
        kept = {RETAINED: len(broker.retained), RETAINED_BYTES: broker.retained.bytes}
        if charged != {resource: used for resource, used in kept.items() if used}:
            raise ViolationError(f"{charged} is still charged, and {kept} is kept")
        for resource in kept:  # it stays its users', who have no programs any more
            if sum(user.used[resource] for user in accounts.users.values()) != kept[resource]:
                raise ViolationError(f"users are charged for {[user.used for user in accounts.users.values()]}, {kept} is kept")
        if any(user.programs or user.direct or user.leaving for user in accounts.users.values()) or accounts.leaving:
            raise ViolationError(f"accounts are left: {list(map(str, accounts.users.values()))}")
        self._check_books(0)
