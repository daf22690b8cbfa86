"""Deliberate faults in what bounds, holds and shares, and in what both sides tell of it: L-5 … L-12, B-4, section 12."""

from __future__ import annotations

from .mutation import Mutation

ENDS = "ipcbus.broker.ends"
DELIVERY = "ipcbus.broker.delivery"
FLOW = "ipcbus.broker.flow"
DROPS = "ipcbus.broker.drops"
HOLDING = "ipcbus.broker.holding"
TERMS = "ipcbus.broker.terms"
ACCOUNTS = "ipcbus.broker.accounts"
PEERS = "ipcbus.broker.peers"
CHARGES = "ipcbus.broker.charges"
QUOTAS = "ipcbus.broker.quotas"
DECLARATIONS = "ipcbus_client._declarations"
CLIENT_LANES = "ipcbus_client._lanes"
HOLDS = "ipcbus_client._holds"
TOLD = "ipcbus_client._told"
WAITING = "ipcbus_client._waiting"

BOUNDS = [
    Mutation(
        "holds_till_empty",
        "publishers are let go when a queue is empty, and not at half of its soft limit (L-12)",
        FLOW,
        "            and backlog.bytes <= backlog.soft // 2\n",
        "            and backlog.bytes < 0\n",
        (
            "tests/unit/test_broker_flow_holding.py",
            "tests/unit/test_broker_flow.py",
        ),
    ),
    Mutation(
        "resumes_late",
        "publishers are let go below half of the soft limit, and not at it (L-12)",
        FLOW,
        "            and backlog.bytes <= backlog.soft // 2\n",
        "            and backlog.bytes < backlog.soft // 2\n",
        (
            "tests/unit/test_broker_flow_holding.py",
            "tests/unit/test_broker_flow.py",
        ),
    ),
    Mutation(
        "heir_pays_nothing",
        "what was parked is nobody's charge when the hold ends (L-12)",
        HOLDING,
        "        backlog.payer.backlog_bytes += hold.bytes\n",
        "",
    ),
    Mutation(
        "never_refilled",
        "a program's budget of time does not come back (L-12)",
        HOLDING,
        "            self.left_s = min(self.left_s + passed * limits.lane_stall_s / limits.stall_window_s, limits.lane_stall_s)\n",
        "            self.left_s = min(self.left_s, limits.lane_stall_s)\n",
        ("tests/unit/test_broker_flow_holding.py",),
    ),
    Mutation(
        "holds_again_at_once",
        "who has used up its budget holds others again for every moment of it that comes back (L-12)",
        HOLDING,
        "        if not budget.holdings and budget.left_s < BUDGET_START * self.limits.lane_stall_s:\n            return False\n",
        "",
        ("tests/unit/test_broker_flow_holding.py",),
    ),
    Mutation(
        "new_connection_new_budget",
        "a program that comes back may hold others anew (L-12)",
        HOLDING,
        "    return (who.uid, who.pid) if who.pid else (who.uid,)\n",
        '    return f"{peer.id}"\n',
        ("tests/unit/test_broker_flow_holding.py",),
    ),
    Mutation(
        "poorest_member",
        "a group uses the time of its member with the least left (L-12)",
        HOLDING,
        "        budget = max((self._budget(member.peer)",
        "        budget = min((self._budget(member.peer)",
        ("tests/unit/test_broker_flow_holding.py",),
    ),
    Mutation(
        "memory_order",
        "which of equally long queues loses is as they lie in memory (Q-3)",
        FLOW,
        "for number, backlog in enumerate(backlogs)]",
        "for number, backlog in enumerate(set(backlogs))]",
        unit=("tests/unit/test_same_order.py",),
    ),
    Mutation(
        "removal_not_of_bus",
        "a full queue takes what the bus publishes, and loses nothing for it (L-11, L-12)",
        FLOW,
        "            if sender is None or backlog.is_of(sender):\n",
        "            if sender is None:\n                return\n            if backlog.is_of(sender):\n",
        unit=("tests/unit/test_bus_holds_nobody.py",),
    ),
    Mutation(
        "silent_cut",
        "that messages begin to be lost for time is not told (L-7)",
        FLOW,
        "        self.holds.end(backlog)\n        self._tell_lagging(backlog)\n",
        "        self.holds.end(backlog)\n",
    ),
    Mutation(
        "late_gap",
        "a loss is told after the next message, not before it (L-7)",
        DELIVERY,
        "            self._tell_lost(backlog, lane)\n            self._emit(lane, entry.piece, len(entry.piece), entry.count)\n",
        "            self._emit(lane, entry.piece, len(entry.piece), entry.count)\n            self._tell_lost(backlog, lane)\n",
    ),
    Mutation(
        "one_less",
        "a queue is kept below its limit, and not within it (L-7)",
        DROPS,
        "        while backlog.bytes > limit:\n",
        "        limit -= 1\n        while backlog.bytes > limit:\n",
        ("tests/unit/test_broker_flow.py",),
    ),
    Mutation(
        "lags_at_the_limit",
        "a queue lags at its soft limit, and not over it (L-7)",
        FLOW,
        "        if backlog.bytes > backlog.soft or payer.backlog_bytes > self",
        "        if backlog.bytes >= backlog.soft or payer.backlog_bytes > self",
        ("tests/unit/test_broker_flow.py",),
    ),
    Mutation(
        "other_terms",
        "a later member of a group may state another policy, and nobody says that it does not hold (L-7)",
        TERMS,
        "            if stated is not None and stated != of_group:\n",
        "            if stated is not None and stated != stated:\n",
    ),
    Mutation(
        "all_fits",
        "policy drop_newest loses nothing (L-7)",
        FLOW,
        '        elif backlog.policy == "drop_newest" and backlog.pieces:\n',
        '        elif backlog.policy == "newest" and backlog.pieces:\n',
    ),
    Mutation(
        "holds_the_dead",
        "a publisher that went stays held (L-12)",
        ENDS,
        "        self._delivery.forget_publisher(peer)\n",
        "",
        ("tests/unit/test_broker_lanes.py",),
    ),
    Mutation(
        "immortal",
        "what is past its time to live is delivered when credit comes (L-11)",
        DELIVERY,
        "            deadline = pieces[0].deadline\n",
        "            deadline = None\n",
        ("tests/unit/test_broker_posts.py",),
    ),
    Mutation(
        "unpaid_queue",
        "when who pays for a group's queue leaves, the next one pays nothing (L-7)",
        FLOW,
        "            backlog.payer.backlog_bytes += own\n",
        "",
        ("tests/unit/test_broker_lanes.py",),
    ),
    Mutation(
        "untold_quota",
        "what an account had no room for is lost without a word (Q-3)",
        DROPS,
        "        note(backlog.gap, why, entry.count, size)\n",
        '        if why != "over_quota":\n            note(backlog.gap, why, entry.count, size)\n',
        ("tests/unit/test_accounts_broker.py",),
    ),
    Mutation(
        "early_mark",
        "of what is in an output a byte too much counts as delivered (B-4)",
        PEERS,
        "        while marks and marks[0][0] <= self.written_bytes:\n",
        "        while marks and marks[0][0] <= self.written_bytes + 1:\n",
        ("tests/unit/test_losses.py",),
    ),
    Mutation(
        "vanished",
        "what was in an output when its connection went is in no book (B-4)",
        ENDS,
        '        self.accounts.leave(peer.account)\n        self.losses.record("unknown", peer, peer.given - peer.delivered, '
        "peer.given_bytes - peer.delivered_bytes)\n",
        "        self.accounts.leave(peer.account)\n",
    ),
    Mutation(
        "unbooked_eviction",
        "what waited for a subscription that ends is in no book (B-4)",
        FLOW,
        "        if evicted:\n",
        "        if not evicted:\n",
    ),
    Mutation(
        "leaked_bytes",
        "what waited for a connection that has gone stays charged (Q-3)",
        CHARGES,
        "        self._charge(peer, -peer.charged)\n",
        "",
        ("tests/unit/test_accounts_broker.py",),
    ),
    Mutation(
        "leaked_inflow",
        "direct messages to a connection that has gone stay charged to who sent them (Q-5)",
        ENDS,
        "        self._inflows.forget(peer)\n        self.accounts.leave",
        "        self.accounts.leave",
        ("tests/unit/test_accounts_broker.py",),
    ),
    Mutation(
        "generous_share",
        "nothing is left of an account for who comes next (Q-2)",
        QUOTAS,
        "    return (users + 1) * (share + amount) - share <= limit - used\n",
        "    return users * (share + amount) - share <= limit - used\n",
        ("tests/unit/test_accounts.py",),
    ),
    Mutation(
        "grace_for_ever",
        "who stands still beyond its share may do so for ever (Q-3)",
        CHARGES,
        "            if before != _progress(peer) or peer.unread",
        "            if before >= 0 or peer.unread",
        ("tests/unit/test_accounts_broker.py",),
    ),
    Mutation(
        "wrong_victim",
        "where an account is full the peer that has least loses it (Q-3)",
        CHARGES,
        "        return user.leaving - user.used[BYTES], program.leaving - program.used[BYTES], -peer.charged, self._ranked, peer\n",
        "        return user.used[BYTES] - user.leaving, program.used[BYTES] - program.leaving, peer.charged, self._ranked, peer\n",
        ("tests/unit/test_accounts_broker.py",),
    ),
    Mutation(
        "chatterbox",
        "each refusal of an account is logged, not the first of an episode (Q-4)",
        ACCOUNTS,
        "        if resource in account.logged:\n            return\n",
        "",
        (
            "tests/unit/test_accounts.py",
            "tests/unit/test_accounts_broker.py",
        ),
    ),
    Mutation(
        "resume_ignored",
        "publications wait on after the bus has said that they may go (L-12)",
        HOLDS,
        '        if self.some.pop(about.get("id", 0), None) is not None:\n',
        '        if self.some.get(about.get("id", 0), None) is not None:\n',
        ("tests/unit/test_client_holds.py",),
    ),
    Mutation(
        "holds_everything",
        "a hold stops publications to all topics (L-12)",
        HOLDS,
        "if matches(held[0].pattern, topic)), None)",
        "if held[0].pattern), None)",
        ("tests/unit/test_client_holds.py",),
    ),
    Mutation(
        "hold_for_life",
        "a hold outlives its connection (L-12)",
        HOLDS,
        "            self.some.clear()\n            self._look_again(0)\n",
        "            self._look_again(0)\n",
        ("tests/unit/test_client_holds.py",),
    ),
    Mutation(
        "deaf_to_holds",
        "what is held is published all the same (L-12)",
        TOLD,
        "            session.outbox.holds.began(about)\n",
        "            str(about)\n",
        ("tests/unit/test_client_holds.py",),
    ),
    Mutation(
        "overtakes_the_kept",
        "a message overtakes those on its topic that were kept while it was held",
        HOLDS,
        "            self.kept.add(topic)\n",
        "            return self.kept.add(topic) is not None\n",
        ("tests/unit/test_client_holds.py",),
    ),
    Mutation(
        "policy_of_the_bus",
        "a subscription does not state its policy (B-3)",
        DECLARATIONS,
        '            arguments["policy"] = lane.policy\n',
        '            arguments["policy"] = None\n',
        ("tests/unit/test_client_policies.py",),
    ),
    Mutation(
        "uncounted_gap",
        "a subscription does not count what it lost",
        CLIENT_LANES,
        "        self.lost += count\n",
        "",
    ),
    Mutation(
        "lags_for_ever",
        "a subscription that has caught up still lags",
        CLIENT_LANES,
        '        """Nothing waits there any more; *lost* messages were dropped since it lagged."""\n        self.lags = False\n',
        '        """Nothing waits there any more; *lost* messages were dropped since it lagged."""\n',
        ("tests/unit/test_client_policies.py",),
    ),
    Mutation(
        "secret_drop",
        "what a full outbox drops is not counted",
        WAITING,
        "        self.dropped += 1\n",
        "",
        (
            "tests/unit/test_client_outbox.py",
            "tests/unit/test_client_holds.py",
        ),
    ),
    Mutation(
        "leaked_lanes",
        "the subscriptions of a peer that goes with many stay charged (Q-1)",
        ENDS,
        "            self.accounts.release(peer.account, LANES, len(lanes))\n",
        "",
        ("tests/unit/test_accounts_broker.py",),
    ),
]
