"""Deliberate faults, each a small change of the source of the broker or the client. `mutants.py` plants them, one at a time.

*old* must stand exactly once in the module: a change of the code that a fault is planted in has to be followed here. A fault is caught
by the simulation, or, where it can only be seen from inside or by a clock, by the unit tests that are named.
"""

from __future__ import annotations

from .bounds_mutations import BOUNDS
from .identity_mutations import IDENTITY
from .mutation import Mutation
from .rights_mutations import RIGHTS_FAULTS

CALLS = "ipcbus.broker.calls"
DELIVERY = "ipcbus.broker.delivery"
LANES = "ipcbus.broker.lanes"
FLOW = "ipcbus.broker.flow"
DROPS = "ipcbus.broker.drops"
STATE = "ipcbus.broker.state"
HOLDING = "ipcbus.broker.holding"
BACKLOGS = "ipcbus.broker.backlogs"
ACCOUNTS = "ipcbus.broker.accounts"
LOSSES = "ipcbus.broker.losses"
PEERS = "ipcbus.broker.peers"
NAMES = "ipcbus.broker.names"
PUBLICATIONS = "ipcbus.broker.publications"
REQUESTS = "ipcbus.broker.requests"
RETAINED = "ipcbus.broker.retained"
SUBSCRIPTIONS = "ipcbus.broker.subscriptions"
BROKER = "ipcbus.broker.broker"
ENDS = "ipcbus.broker.ends"
FRAMING = "ipcbus.protocol.framing"
DECLARATIONS = "ipcbus_client._declarations"
INCOMING = "ipcbus_client._incoming"
CLIENT_LANES = "ipcbus_client._lanes"
OUTBOX = "ipcbus_client._outbox"
PARTS = "ipcbus_client._parts"
POSTS = "ipcbus_client._posts"
SERVICES = "ipcbus_client._services"
SESSION = "ipcbus_client._session"
HEARTBEAT = "ipcbus_client._heartbeat"

MUTATIONS = [
    # --- requests and answers -------------------------------------------------------------------------------------------------------------
    Mutation(
        "lost_cancel",
        "a requester's CANCEL is not passed on to who works at the request (R-3)",
        CALLS,
        "            self._tell_callee_cancelled(pending)\n            self.requests.settle(pending)\n\n    def _tell",
        "            self.requests.settle(pending)\n\n    def _tell",
    ),
    Mutation(
        "late_expiry",
        "a request that expires before the others does not move the bus's next deadline (R-2)",
        REQUESTS,
        "        if self.earliest is None or pending.deadline < self.earliest:\n            self.earliest",
        "        if self.earliest is None:\n            self.earliest",
    ),
    Mutation(
        "second_answer",
        "a request is not settled by its answer: a second one goes through, or it expires later (R-2)",
        CALLS,
        "        self.requests.settle(pending)\n        requester.forwarded += 1\n",
        "        requester.forwarded += 1\n",
    ),
    Mutation(
        "widow",
        "who asked a peer that went is not told (R-2)",
        CALLS,
        "            self._fail(pending, Code.RESPONDER_DIED, ",
        "            self.requests.settle(pending) or str(",
    ),
    Mutation(
        "orphans",
        "the requests of a peer that went stay in flight (R-3)",
        ENDS,
        "        self._calls.requester_went(peer)\n",
        "",
    ),
    Mutation(
        "favourite",
        "of several that serve a method the first gets all requests (R-1)",
        CALLS,
        "        return min(serving, key=lambda claim: len(claim.peer.serving or ())).peer\n",
        "        return serving[0].peer\n",
    ),
    Mutation(
        "half_closed_callee",
        "a peer that is done sending is still reached by its address (H-11)",
        CALLS,
        "        if peer is None or peer.half_closed or peer.closing:\n",
        "        if peer is None:\n",
    ),
    Mutation(
        "free_parts",
        "a PART costs no credit (R-6)",
        CALLS,
        "        pending.credit -= len(frame.raw)\n",
        "",
    ),
    Mutation(
        "endless_allow",
        "credit for parts is passed on beyond max_credit_bytes (R-6)",
        CALLS,
        "        added = min(size, self.limits.max_credit_bytes - pending.credit)\n",
        "        added = size\n",
    ),
    Mutation(
        "one_too_many",
        "a peer may have one request more in flight than limits.max_requests says (R-2)",
        CALLS,
        "        if len(calls or ()) >= self.limits.max_requests:\n",
        "        if len(calls or ()) > self.limits.max_requests:\n",
    ),
    # --- names ----------------------------------------------------------------------------------------------------------------------------
    Mutation(
        "last_in_line",
        "the one who came last gets a name that becomes free (N-1)",
        NAMES,
        "record.waiting.pop(0)",
        "record.waiting.pop()",
    ),
    Mutation(
        "replaced_at_the_end",
        "an owner that was replaced waits behind all others, not first (N-1)",
        NAMES,
        "                record.waiting.insert(0, old)\n",
        "                record.waiting.append(old)\n",
        ("tests/unit/test_broker_names.py",),
    ),
    Mutation(
        "robbery",
        "a name is taken over though its owner did not allow it (N-1)",
        NAMES,
        "        elif replace and record.owners[0].allow_replace:\n",
        "        elif replace:\n",
    ),
    Mutation(
        "unserved_still",
        "a method that is not served any more is still served",
        NAMES,
        "            claim.methods.discard(method)\n",
        "",
    ),
    Mutation(
        "untold_heir",
        "who gets a name that became free is not told (N-1)",
        STATE,
        '            self._delivery.notice(change.acquired, "name_acquired", {"name": name})\n',
        "            str(change.acquired)\n",
    ),
    # --- what is kept, wills --------------------------------------------------------------------------------------------------------------
    Mutation(
        "will_after_bye",
        "who said BYE leaves its wills all the same (W-1)",
        BROKER,
        "        peer.wills = None  # H-10\n",
        "",
    ),
    Mutation(
        "forgotten_will",
        "a will with retain is published and not kept (W-1)",
        PUBLICATIONS,
        "            if will.kind is Kind.RETAIN:\n",
        "            if will.kind is None:\n",
    ),
    Mutation(
        "stolen_value",
        "a bound value goes with the peer that bound it, though another has published since (W-2)",
        PUBLICATIONS,
        "            if kept is not None and kept.elements[1] == peer.id and ",
        "            if kept is not None and ",
    ),
    Mutation(
        "longer_life",
        "a time to live is taken for ten times as long (L-11)",
        PUBLICATIONS,
        "        deadline = None if ttl_ms is None else self._delivery.now + ttl_ms / 1000\n        plain",
        "        deadline = None if ttl_ms is None else self._delivery.now + ttl_ms / 100\n        plain",
    ),
    Mutation(
        "undone_news",
        "a client that comes back overwrites what another has published meanwhile (B-3 restore)",
        PUBLICATIONS,
        "        if kept is not None and kept.elements[1] not in was:\n            return False\n",
        "",
    ),
    Mutation(
        "groups_do_not_count",
        "the confirmation of a publication leaves out the groups (L-11)",
        PUBLICATIONS,
        "        return len(lanes) + len(groups)\n",
        "        return len(lanes)\n",
    ),
    Mutation(
        "two_lives",
        "an old connection of a session is not ended before its new one begins (H-13)",
        BROKER,
        "                self._end(before)\n",
        "                str(before)\n",
    ),
    # --- routing --------------------------------------------------------------------------------------------------------------------------
    Mutation(
        "open_book",
        "a leading wildcard matches the bus's own topics (T-3)",
        SUBSCRIPTIONS,
        '        if tokens[0].startswith("$"):  # T-3: not matched by a leading wildcard\n',
        '        if tokens[0].startswith("$none"):\n',
    ),
    Mutation(
        "silent_expiry",
        "who works at a request is not told that it expired (R-3)",
        CALLS,
        """        self._losses.no_answer(pending, "timed_out")
        self._tell_callee_cancelled(pending)
""",
        """        self._losses.no_answer(pending, "timed_out")
""",
    ),
    Mutation(
        "old_place",
        "a value that is published again keeps its old place among the retained ones (L-8)",
        RETAINED,
        """            del self._frames[topic]  # the usual case""",
        """            self._frames[topic] = frame  # the usual case""",
    ),
    Mutation(
        "old_deadline",
        "a retained value dies at the deadline of the one before it (L-11)",
        RETAINED,
        """            if self._deadlines:
                self._deadlines.pop(topic, None)
            self._frames""",
        """            self._frames""",
    ),
    Mutation(
        "wills_first",
        "the wills of a peer that goes are published while its own subscriptions still stand (W-1)",
        ENDS,
        """        self._delivery.forget_publisher(peer)
        lanes = peer.lanes or {}
""",
        """        self._delivery.forget_publisher(peer)
        self.publications.left(peer)
        lanes = peer.lanes or {}
""",
    ),
    Mutation(
        "stale_route",
        "publishers go on with the receivers that they had before a subscription ended",
        SUBSCRIPTIONS,
        """        self.lanes -= 1
        self._changed(lane.pattern, literal=literal)
""",
        """        self.lanes -= 1
""",
    ),
    Mutation(
        "unheard",
        "publications to nobody are counted once for a run (B-4)",
        PUBLICATIONS,
        """            counters.no_subscriber += count
""",
        """            counters.no_subscriber += 1
""",
    ),
    # --- queues, policies, holds ----------------------------------------------------------------------------------------------------------
    Mutation(
        "free_lunch",
        "a publication that is given at once costs no credit (L-5)",
        DELIVERY,
        """            peer.given += count
            peer.given_bytes += size
            lane.credit -= size
            if not peer""",
        """            peer.given += count
            peer.given_bytes += size
            if not peer""",
    ),
    Mutation(
        "overtakes_the_queue",
        "a message is given at once though the output is full and older ones wait (L-4)",
        DELIVERY,
        "            if lane.credit <= 0 or lane.backlog is not None or peer.out_bytes >= OUTPUT_HIGH_BYTES:\n",
        "            if lane.credit <= 0:\n",
        ("tests/unit/test_broker_lanes.py",),
    ),
    Mutation(
        "unlimited_member",
        "a group's message costs no message credit (L-6)",
        LANES,
        "        lane.messages -= 1\n",
        "",
    ),
    Mutation(
        "busiest_member",
        "the next message goes to the member with the largest load (L-6)",
        LANES,
        "        lane.load += 1\n        lane.rank = rank = lane.load, lane.turn, lane.joined, lane\n",
        "        lane.load += 1\n        lane.rank = rank = -lane.load, lane.turn, lane.joined, lane\n",
        ("tests/unit/test_broker_lanes.py",),
    ),
    Mutation(
        "wrong_order_in_a_group",
        "a group's members take the newest message first (L-6)",
        DELIVERY,
        "            first = backlog.pieces[0]\n            piece = first.piece\n",
        "            backlog.pieces.reverse()\n            first = backlog.pieces[0]\n            piece = first.piece\n",
    ),
    Mutation(
        "silent_loss",
        "who lost messages is not told (L-7)",
        DROPS,
        "        note(backlog.gap, why, entry.count, size)\n",
        "",
    ),
    Mutation(
        "uncounted_loss",
        "one loss in the books is one message, however many were lost (B-4)",
        LOSSES,
        "        setattr(self.counters, name, getattr(self.counters, name) + count)\n",
        "        setattr(self.counters, name, getattr(self.counters, name) + min(count, 1))\n",
    ),
    Mutation(
        "late_notice",
        "lagging is not told at the beginning of an episode (L-7)",
        FLOW,
        "        backlog.lagging = True\n        self._tell_lagging(backlog)\n",
        "        backlog.lagging = True\n",
    ),
    Mutation(
        "never_caught_up",
        "the end of an episode is not told (L-7)",
        FLOW,
        """            self._tell(backlog, "caught_up", {"lost": backlog.lost})
""",
        "",
    ),
    Mutation(
        "soft_is_hard",
        "drop_oldest begins to lose at the soft limit (L-7)",
        FLOW,
        "            limit = backlog.soft if backlog.dropping else backlog.hard\n",
        "            limit = backlog.soft\n",
    ),
    Mutation(
        "never_cut",
        "a queue may be over its soft limit for ever (L-7)",
        FLOW,
        "        for backlog in self.late.due(now, ENDS_AT_ONCE):\n            self._cut(backlog)\n",
        "        self.late.due(now, ENDS_AT_ONCE)\n",
    ),
    Mutation(
        "new_place",
        "policy latest: the newer message goes to the end, not to the place of the one that it replaces (L-7)",
        FLOW,
        "                entry.piece, entry.deadline = frame, deadline\n",
        "                entry.piece, entry.deadline = frame, deadline\n"
        "                backlog.pieces.remove(entry)\n                backlog.pieces.append(entry)\n",
    ),
    Mutation(
        "patient_disconnect",
        "policy disconnect does nothing at the hard limit (L-7)",
        FLOW,
        "            if backlog.bytes > backlog.hard:\n",
        "            if backlog.bytes < 0:\n",
    ),
    Mutation(
        "no_resume",
        "held publishers are not told that they may go on (L-12)",
        HOLDING,
        """            self._outputs.notice(publisher, "resume", {"id": holding.id})
""",
        """            str(publisher)
""",
    ),
    Mutation(
        "held_by_oneself",
        "a subscriber is held by its own queue (L-12)",
        FLOW,
        "            if sender is None or backlog.is_of(sender):\n",
        "            if sender is None:\n",
    ),
    Mutation(
        "endless_budget",
        "holding others costs a program nothing of its budget (L-12)",
        HOLDING,
        "            self.left_s = max(self.left_s - passed, 0.0)\n",
        "            self.left_s = max(self.left_s, 0.0)\n",
    ),
    Mutation(
        "budget_starts_anew",
        "a program's budget is full again at once (L-12)",
        HOLDING,
        "            self.left_s = min(self.left_s + passed * limits.lane_stall_s / limits.stall_window_s, limits.lane_stall_s)\n",
        "            self.left_s = limits.lane_stall_s\n",
    ),
    Mutation(
        "parked_for_ever",
        "who has parked too much is not read again when that has gone (L-12)",
        HOLDING,
        "        elif publisher.parked_bytes <= self.limits.max_parked_bytes // 2:\n",
        "        elif publisher.parked_bytes < 0:\n",
    ),
    Mutation(
        "off_by_one_at_parking",
        "parking has no limit (L-12)",
        HOLDING,
        "        if publisher.parked_bytes > self.limits.max_parked_bytes:\n",
        "        if publisher.parked_bytes > 3 * self.limits.max_parked_bytes:\n",
    ),
    Mutation(
        "muted_for_one_message",
        "a publisher is read no more for one large message that was under way when it was held (L-12)",
        HOLDING,
        "            if size >= 0 and publisher.parked_at != publisher.in_bytes:\n",
        "            if size >= 0:\n",
        ("tests/unit/test_broker_flow_holding.py",),
    ),
    # --- books and accounts ---------------------------------------------------------------------------------------------------------------
    Mutation(
        "leaked_lane",
        "a subscription that ends stays charged (Q-1)",
        STATE,
        "        del peer.lanes[lane.number]\n        self.accounts.release(peer.account, LANES, 1)\n",
        "        del peer.lanes[lane.number]\n",
    ),
    Mutation(
        "leaked_name",
        "a name that was taken over stays charged to who had it (Q-1)",
        NAMES,
        "                self._accounts.release(old.peer.account, NAMES, 1)\n",
        "                str(old)\n",
    ),
    Mutation(
        "leaked_value",
        "a retained value that is removed stays charged (Q-1)",
        RETAINED,
        "        self._accounts.release(origin.account, RETAINED_BYTES, size)\n",
        "",
    ),
    Mutation(
        "leaked_connection",
        "a connection that has gone stays charged (Q-1)",
        ENDS,
        "        self.accounts.leave(peer.account)\n",
        "        str(peer.account)\n",
    ),
    Mutation(
        "leaked_parking",
        "what a publisher parked stays charged to it when the hold ends (L-12)",
        HOLDING,
        "        self.park(publisher, -hold.bytes)\n",
        "",
    ),
    Mutation(
        "optimist",
        "what was in an output when a connection went counts as delivered (B-4)",
        PEERS,
        "            _, self.delivered, self.delivered_bytes = marks.popleft()\n",
        "            _, self.delivered, self.delivered_bytes = 0, self.given, marks.popleft()[2]\n",
        ("tests/unit/test_losses.py",),
    ),
    # --- the client -----------------------------------------------------------------------------------------------------------------------
    Mutation(
        "skipped_replay",
        "after a reconnect declarations are not made again",
        DECLARATIONS,
        "            declaration.said = declaration.owner = declaration.refused = False\n",
        "            declaration.owner = declaration.refused = False\n",
    ),
    Mutation(
        "silent_withdrawal",
        "the bus is not told that a subscription was closed",
        DECLARATIONS,
        "if declaration.said else None\n            self._session.lanes.pop",
        "if not declaration.said else None\n            self._session.lanes.pop",
    ),
    Mutation(
        "credit_twice",
        "what was consumed is granted again and again (L-5)",
        CLIENT_LANES,
        "        self._taken -= size\n        self.held_bytes -= size\n        if count:",
        "        self.held_bytes -= size\n        if count:",
    ),
    Mutation(
        "full_window",
        "after a reconnect the whole window is granted, whatever still waits in the program (L-5)",
        CLIENT_LANES,
        "        return self.window_bytes - self.held_bytes, ",
        "        return self.window_bytes, ",
    ),
    Mutation(
        "forgiven_debt",
        "after a reconnect what overdrew the credit is granted again (L-5)",
        CLIENT_LANES,
        "        debt = max(self.held_bytes - self.window_bytes, 0)  # ",
        "        debt = 0  # ",
    ),
    Mutation(
        "half_a_lane",
        "which lane publications belong to is forgotten at the end of a read (L-3)",
        INCOMING,
        "                    self.lane = number = envelope[2]\n",
        "                    number = envelope[2]\n",
    ),
    Mutation(
        "overtaking",
        "a frame that is no publication is handled before the publications that came before it in the same read",
        INCOMING,
        "                    self._deliver(gathered, size <= MAX_ELEMENTS)\n                    self._handle(kind, envelope)\n",
        "                    self._handle(kind, envelope)\n",
    ),
    Mutation(
        "double_send",
        "what was written before a connection was lost is sent again",
        OUTBOX,
        '            self._sending = b""\n            self._at = 0\n',
        "            self._at = 0\n",
    ),
    Mutation(
        "shuffled_outbox",
        "what a lost connection had not sent is sent in another order",
        OUTBOX,
        "        older, out, deadlines = deque(items), ",
        "        older, out, deadlines = deque(reversed(items)), ",
    ),
    Mutation(
        "confirmed_hope",
        "what the kernel had of a lost connection is not counted as unknown",
        OUTBOX,
        "        self._unknown = unknown\n",
        "",
    ),
    Mutation(
        "forgotten_cancel",
        "who gives up a request does not tell the bus (R-2)",
        SESSION,
        "        if self.calls.pop(call.id, None) is not None and call.to and self.outbox.peer:\n",
        "        if self.calls.pop(call.id, None) is None and call.to and self.outbox.peer:\n",
    ),
    Mutation(
        "waiting_for_ever",
        "calls in flight when a connection is lost never settle",
        SESSION,
        "            if call.declaration is None:\n                call.settle(",
        "            if call.declaration is not None:\n                call.settle(",
    ),
    Mutation(
        "unbound",
        "a value that goes with the connection is not bound to it (W-2)",
        POSTS,
        "            session.declarations.bind(post.topic)\n",
        "            str(post.topic)\n",
    ),
    Mutation(
        "not_restored",
        "a bus that was restarted does not get the retained values again",
        POSTS,
        "            elif everything or post.topic in self._uncertain:\n",
        "            elif post.topic in self._uncertain:\n",
    ),
    Mutation(
        "wrong_sequence",
        "the parts of a streamed reply are not numbered on (R-6)",
        PARTS,
        "        self._sequence += 1\n        self.credit",
        "        self.credit",
    ),
    Mutation(
        "greedy_producer",
        "a generator goes on without credit (R-6)",
        PARTS,
        "        return self.credit > 0 or not self._streams\n",
        "        return True\n",
    ),
    Mutation(
        "deaf_service",
        "a CANCEL does not reach the handler's request (R-3)",
        SERVICES,
        "        request = self._active.pop((sender, identity), None)\n        if request is not None:\n            request.cancel()\n",
        "        return\n",
    ),
    Mutation(
        "patience",
        "a bus that is stopped is never given up",
        HEARTBEAT,
        "        elif self._asked:\n",
        "        elif not self._asked and self._asked:\n",
        ("tests/unit/test_client_heartbeat.py",),
    ),
    *BOUNDS,
    *IDENTITY,
    *RIGHTS_FAULTS,
]
