"""Who may do what on a bus: the rules an administrator writes, and what they mean for one subject.

The package does no I/O and knows neither the broker nor the daemon: texts come in, verdicts go out. Ordered rules (`rules`) are
read from the texts of files (`parsing`) and become a `Policy`; for a `Subject`, what the kernel or a proof says of a peer, a
policy has `Rights`, which give a `Verdict` for each thing that the peer wants to do. The language is POLICY.md's.
"""

from .actions import EVERY_ACTION, Action
from .parsing import ParsedFile, parse
from .policy import EVERYTHING, Policy
from .redaction import Redaction
from .rights import Rights, Verdict
from .rules import EVERYBODY, Named, Rule, Who
from .subjects import Subject

__all__ = [
    "EVERYBODY",
    "EVERYTHING",
    "EVERY_ACTION",
    "Action",
    "Named",
    "ParsedFile",
    "Policy",
    "Redaction",
    "Rights",
    "Rule",
    "Subject",
    "Verdict",
    "Who",
    "parse",
]
