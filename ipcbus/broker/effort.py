"""What the bus's work for a peer costs, in units, so that nobody gets more than a slice of it before the others had their turn.

The broker knows no clock, and a simulated bus must do the same work whatever the machine: so the price of a thing is a number. A unit is
about what one message to one lane costs. The numbers are rough; what matters is that nothing expensive is cheap here. Who sends expensive
things is slowed down by its own turns; nothing is refused for it.
"""

from __future__ import annotations

UNLIMITED = 2**63

FRAME = 40  #: a frame that is decoded: a request, an answer, CREDIT
RUN = 4  #: a run, besides its messages and whom it reaches
WAIT = 10  #: a run that has to wait in one queue
TOLD = 10  #: a notice to a member of a group: all are told, and what a tiny soft limit costs is its publishers' work and nobody else's
INTRODUCED = 12  #: telling a receiver who a sender is
REPLACE = 8  #: a message that has to wait where the policy is latest
RESOLVE = 40  #: finding out whom a topic reaches
JUDGE = 30  #: asking the policy about one thing; a pattern costs its steps beside that
JUDGE_STEP = 2
REFUSED = 60  #: an error for the sender
LITERAL_CHANGE = 40  #: a subscription to one topic that comes or goes
WILDCARD_CHANGE = 400  #: one to many topics: after it all publishers have to find out again whom they reach
BYTES_A_UNIT = 8  #: arguments that the bus decodes for itself, and lists that it packs
KEPT_MATCH = 1  #: comparing a pattern with the topic of one kept message
LOOK = 1  #: at one of many: a claim, an owner, a lane, a node of the trie, an item of a list

#: So many subscriptions, requests, kept messages or strangers end in one go; where more end at once the rest does in the next rounds.
ENDS_AT_ONCE = 256

#: A slice does not end between the claim of a name and the methods served under it, which come in one write: who sees the name and calls
#: at once finds them. It ends all the same after so many units.
CLAIM_WORK = 8192
CLAIMS = frozenset({"bus/own", "bus/serve"})


class Effort:
    """The work done so far. It only grows."""

    __slots__ = ("spent",)

    def __init__(self) -> None:
        self.spent = 0
