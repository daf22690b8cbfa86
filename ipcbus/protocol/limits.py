"""Every number of the bus, with its unit and its reason. WELCOME announces the ones that a client must respect (H-8)."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 1  #: the one protocol version of PROTOCOL.md (H-2)

MAX_ID = 2**53 - 1  #: V-7: ids fit a double, so that JavaScript can be a peer
HEADER_BYTES = 5  #: F-1: 0xce and the length
HELLO_MAX_BYTES = 1024  #: F-3: what a stranger may make the bus hold before it is known
ENVELOPE_MAX_BYTES = 65536  #: all of an envelope before its payload; the rest of a frame's limit is payload

HEADERS_MAX_COUNT = 32  #: V-6
HEADERS_MAX_BYTES = 4096  #: V-6, encoded
HEADER_KEY_MAX_BYTES = 64  #: V-6
ENCODING_MAX = 127  #: V-6: one byte on the wire

TOPIC_MAX_BYTES = 255  #: T-1: fits msgpack's str 8, and a file name
TOPIC_MAX_TOKENS = 32  #: T-1: bounds the depth of a walk through the trie
METHOD_MAX_BYTES = 128  #: T-5
GROUP_MAX_BYTES = 128  #: T-5
ERROR_CODE_MAX_BYTES = 64  #: E-1
ERROR_TEXT_MAX_BYTES = 1024  #: E-1

FEATURES_MAX_COUNT = 32  #: H-1
FEATURE_MAX_BYTES = 32  #: H-1
INFO_MAX_COUNT = 16  #: H-1
INFO_KEY_MAX_BYTES = 32  #: H-1
INFO_VALUE_MAX_BYTES = 128  #: H-1
NONCE_BYTES = 32  #: H-5
SECRET_BYTES = 32  #: H-6
INCARNATION_BYTES = 16  #: H-7

READ_BYTES = 262_144  #: one read of a peer in a round: big enough for long runs, small enough to be fair
PAGE_ITEMS = 1_000  #: B-2
MEMBERS_MAX = 100  #: B-3 receivers: members of a group that are named
PAGE_BYTES = 32_768  #: B-2: a page ends early above it: it is made in one go, while everybody waits
ARGUMENTS_MAX_BYTES = 1_048_576  #: B-1: what the bus decodes for a stranger
ARGUMENTS_MAX_ELEMENTS = 20_000  #: B-1: a byte can become an object of 64 bytes
LANE_SECONDS_MAX = 86_400  #: L-7: the longest that a subscription may let others wait: a day
HOLDING_ITEMS = 20  #: B-4 stats: who holds whom; the rest is counted
MAX_INTRODUCED = 4_096  #: I-3: senders that a receiver remembers; above it the one that it was told of first is forgotten
IDENTITY_GROUPS = 1_000  #: I-2: supplementary groups of a peer that count: with subordinate gids anybody can have 65 536
ABOUT_MAX_BYTES = 65_536  #: B-3 serve: what a peer says about one method; a long docstring, not a manual
ABOUT_PEER_MAX_BYTES = 1_048_576  #: B-3 serve: what it says in all, and what introspect says of one name

TCP_STRANGERS_MAX = 1_000  #: H-9: connections by TCP that are not ready: some 3 KiB each, or 4 with a part of HELLO
FAILED_AT_ONCE = 10  #: H-5: wrong proofs that are answered at once; so many come back …
FAILED_WAIT_S = 1.0  #: … one in so long; the answer to any other takes that long, and its connection is not read meanwhile
FAILED_LOG_S = 60.0  #: a user whose handshakes fail on TCP is told in the log once in so long
FAILED_LOOK_S = 1.0  #: how often the bus looks at most whose handshakes these are
FAILED_USERS = 64  #: of whom it remembers when it told them

CHECKPOINT_BYTES = 65_536  #: B-4: how exactly the bus knows, at the end of a connection, which messages of its output had gone
EPISODE_PAUSE_S = 10.0  #: B-3 losses: what is lost at one place for one reason is one episode while no pause is longer
LOSS_LOG_S = 300.0  #: the log tells of losses at one place for one reason again after so long, however many episodes they are
LOSS_EPISODES = 50  #: B-3 losses: episodes of each kind that are remembered
LOSS_WALK_S = 10_000  #: B-3 topics: lost frames a second whose topics are looked at, so that a flood of losses costs little …
LOSS_WALK_MAX = 1_000  #: … and so many at once: all of a second's would be 10 ms for which everybody waits
MONITOR_PAYLOAD_BYTES = 4_096  #: M-3: of a payload; to be looked at by a person
MONITOR_BURST_S = 0.1  #: M-4: so many seconds' frames may be looked at in one go: it is time for which everybody waits
MONITOR_TELL_S = 0.1  #: M-4: how long it may take until a monitor hears what it was not shown, where nothing more comes
ADDRESS_NAMES_MAX = 100  #: P-6: names of one peer by which a message to its address is judged
MONITOR_NAMES = 32  #: M-2: names of one peer that are compared with patterns for each frame to its address


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that the configuration can change; the defaults are the numbers in italics of PROTOCOL.md."""

    max_payload_bytes: int = 16 * 1024 * 1024  #: F-3: a camera picture passes, a mistake does not
    max_peers: int = 100_000  #: the process's fd limit is usually lower and then holds
    max_lanes: int = 100_000  #: subscriptions of one peer
    max_matches: int = 1_000  #: L-1: subscriptions of one peer that one message may be for
    max_names: int = 10_000  #: names that one peer owns or waits for
    max_methods: int = 10_000  #: methods served by one peer in all, and under one name by all its owners
    max_requests: int = 100_000  #: R-2: requests of one peer in flight
    max_callee_requests: int = 10_000  #: R-2: requests in flight at one callee
    max_timeout_ms: int = 86_400_000  #: R-1: a day
    max_credit_bytes: int = 64 * 1024 * 1024  #: L-5
    max_output_bytes: int = 128 * 1024 * 1024  #: E-2 slow_reader: what may wait for one peer; all that can be retained, and as much again
    lane_policy: str = "block"  #: L-7: of subscriptions that state none
    lane_soft_bytes: int = 1024 * 1024  #: L-7: above it a queue lags; block holds its publishers
    lane_hard_bytes: int = 16 * 1024 * 1024  #: L-7: above it messages are lost at once, also a program's own to itself: the largest message
    lane_stall_s: float = 5.0  #: L-7: how long a queue may lag before it loses; L-12: and a program hold others in each …
    stall_window_s: float = 60.0  #: L-12: … so many seconds
    max_parked_bytes: int = 1024 * 1024  #: L-12: what a held publisher may have waiting before it is read no more
    max_retained_topics: int = 100_000  #: L-8
    max_retained_bytes: int = 64 * 1024 * 1024  #: L-8
    max_wills: int = 100  #: W-1: of one peer
    max_will_bytes: int = 1024 * 1024  #: W-1: frames of all wills of one peer; like what is retained, they wait whatever becomes of it
    max_bound: int = 10_000  #: W-2: topics that one peer has bound
    max_program_bytes: int = 256 * 1024 * 1024  #: Q-1: what may wait for all connections of one process, what they send in halves included
    max_user_bytes: int = 512 * 1024 * 1024  #: Q-1: for those of one uid
    max_queued_bytes: int = 1024 * 1024 * 1024  #: Q-1: for everybody
    max_program_peers: int = 50_000  #: Q-1: connections of one process
    max_user_peers: int = 100_000  #: Q-1
    max_program_lanes: int = 500_000  #: Q-1: subscriptions; what routes to them costs the bus about 1 KiB each
    max_user_lanes: int = 1_000_000  #: Q-1
    max_bus_lanes: int = 2_000_000  #: Q-1
    max_program_names: int = 20_000  #: Q-1: names owned or waited for
    max_user_names: int = 100_000  #: Q-1
    max_bus_names: int = 200_000  #: Q-1
    max_program_requests: int = 200_000  #: Q-1: requests in flight, by who made them
    max_user_requests: int = 500_000  #: Q-1
    max_bus_requests: int = 1_000_000  #: Q-1
    quota_grace_s: float = 2.0  #: Q-3: how long more than its share may wait for a peer that takes nothing of it
    max_monitors: int = 64  #: M-1: of the bus; each frame is copied for each that looks at it
    max_monitor_rate: int = 10_000  #: M-4: frames a second that all monitors look at: some per cent of what the bus can do
    max_topic_counters: int = 1_000  #: B-3 topics: the rest is counted as "(all others)"
    max_route_cache: int = 8_192  #: envelope prefixes a peer may keep resolved
    handshake_timeout_s: float = 10.0  #: H-9
    half_close_linger_s: float = 10.0  #: H-11

    @property
    def max_frame_bytes(self) -> int:
        """F-3: the largest N."""
        return self.max_payload_bytes + ENVELOPE_MAX_BYTES
