"""The bounds of policies: what one file may hold, and how much work one judgement may be."""

from __future__ import annotations

MAX_FILE_BYTES = 1 << 20  #: one file of rules
MAX_RULES = 10_000  #: in one file, and in all files of a policy together
MAX_VALUES = 1_000  #: in one list of a rule, and in the list of redacted topics
MAX_TEXT_BYTES = 1_024  #: a comment, and the name of a user, group, unit or identity

#: Steps of the walk that judges a subscription (or a monitor's pattern) against all topics that it can match. A step is one token
#: of one rule looked at; a policy of a thousand rules needs some hundreds. Above it the pattern is denied: what cannot be judged
#: must not be allowed, and a peer must not keep the bus busy with patterns.
POLICY_WALK_MAX = 20_000
