"""Deliberate faults in who may do what (P-2 to P-8); part of `mutations.py`."""

from __future__ import annotations

from .mutation import Mutation

BROKER = "ipcbus.broker.broker"
CALLS = "ipcbus.broker.calls"
PUBLICATIONS = "ipcbus.broker.publications"
REVOCATION = "ipcbus.broker.revocation"
RIGHTS = "ipcbus.broker.rights"
ROUTING = "ipcbus.broker.routing"

#: No simulated bus has a policy.
TESTS = (
    "tests/unit/test_broker_rights.py",
    "tests/unit/test_broker_revocation.py",
    "tests/unit/test_broker_rights_random.py",
)

RIGHTS_FAULTS = [
    Mutation(
        "free_press",
        "what is published is not judged where its route is found (P-3)",
        ROUTING,
        "                self._judge.publish(owner, prefix.to)\n",
        "                str(owner)\n",
        TESTS,
    ),
    Mutation(
        "free_post",
        "what is published with options is not judged (P-3)",
        PUBLICATIONS,
        "        if peer.rights is not None:\n            self._judge.publish(peer, topic)\n",
        "",
        TESTS,
    ),
    Mutation(
        "open_line",
        "a request is not judged (P-6)",
        CALLS,
        "            self._judge.call(peer, to, target, method)\n",
        "            str(peer)\n",
        TESTS,
    ),
    Mutation(
        "eternal_address",
        "what may be sent to an address is judged once, whatever names come there (P-6)",
        ROUTING,
        'generation = _NEVER if prefix.to.startswith(":") else self.generation',
        "generation = self.generation",
        TESTS,
    ),
    Mutation(
        "old_law",
        "routes that were found under the policy before stay (P-8)",
        BROKER,
        "        self.routes.generation += 1\n",
        "",
        TESTS,
    ),
    Mutation(
        "old_calls",
        "calls that were allowed under the policy before stay allowed (P-8)",
        RIGHTS,
        "        peer.may_call = None\n",
        "",
        TESTS,
    ),
    Mutation(
        "squatters_rights",
        "a name that may not be owned any more stays with its owner (P-8)",
        REVOCATION,
        "            self._take_names(peer, owned=True)\n",
        "",
        TESTS,
    ),
]
