"""The bounds of policies: what one file may hold, and how much work one judgement may be."""

from __future__ import annotations

MAX_FILE_BYTES = 1 << 20  #: one file of rules
MAX_RULES = 5_000  #: of a policy, all its files together: each new kind of subject is compared with each of them
MAX_PATTERNS = 20_000  #: of a policy: names for each method and topics, as they stand in memory
MAX_VALUES = 1_000  #: in one list of a rule, and in the list of redacted topics
MAX_TEXT_BYTES = 1_024  #: a comment, and the name of a user, group, unit or identity

#: Steps of the walk that judges a subscription (or a monitor's pattern) against all topics that it can match. A step is one token
#: of one rule looked at; a policy of a thousand rules needs some hundreds. Above it the pattern is denied: what cannot be judged
#: must not be allowed, and a peer must not keep the bus busy with patterns.
POLICY_WALK_MAX = 20_000

LINT_KINDS_MAX = 500  #: kinds of people whose rules are compared with each other; above it nothing is said of dead rules
