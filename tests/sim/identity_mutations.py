"""Deliberate faults in who is told of whom (I-1 to I-4); part of `mutations.py`."""

from __future__ import annotations

from .mutation import Mutation

CALLS = "ipcbus.broker.calls"
DELIVERY = "ipcbus.broker.delivery"
INTRODUCTIONS = "ipcbus.broker.introductions"
PUBLICATIONS = "ipcbus.broker.publications"
BUS = "ipcbus.broker.bus"
ROUTING = "ipcbus.broker.routing"
KERNEL = "ipcbus.daemon.kernel_identity"

KERNEL_TESTS = ("tests/unit/test_kernel_identity.py",)
BROKER_TESTS = ("tests/unit/test_broker_identity.py",)

IDENTITY = [
    Mutation(
        "publisher_not_introduced",
        "a route is found and nobody is told whose it is (I-1)",
        ROUTING,
        "        self.introduce(owner.origin, lanes, groups)\n",
        "",
    ),
    Mutation(
        "group_not_introduced",
        "a publisher is introduced to lanes, and to no member of a group (I-1)",
        INTRODUCTIONS,
        "        for group in groups:\n",
        "        for group in groups[:0]:\n",
    ),
    Mutation(
        "late_member_not_told",
        "who joins a group while something waits is not told who sent that (I-1)",
        DELIVERY,
        "if backlog.strangers is not None and lane.peer in backlog.strangers:",
        "if False:",
    ),
    Mutation(
        "request_not_introduced",
        "a request comes from nobody known (I-1)",
        CALLS,
        "        if callee.introduced is not None and peer.id not in callee.introduced:\n",
        "        if False:\n",
    ),
    Mutation(
        "answer_not_introduced",
        "an answer comes from nobody known (I-1)",
        CALLS,
        "        if requester.introduced is not None and peer.id not in requester.introduced:\n",
        "        if False:\n",
    ),
    Mutation(
        "send_not_introduced",
        "a SEND comes from nobody known (I-1)",
        CALLS,
        "        if receiver.introduced is not None and sender.id not in receiver.introduced:\n",
        "        if False:\n",
    ),
    Mutation(
        "post_not_introduced",
        "a POST, a will or a removal comes from nobody known (I-1)",
        PUBLICATIONS,
        "            self._delivery.introduce_all(origin, lanes, groups)\n",
        "            pass\n",
    ),
    Mutation(
        "kept_not_introduced",
        "a new subscription is not told who had published what is kept (I-1)",
        BUS,
        "                self._delivery.introduce(origin, peer)\n                self._delivery.offer_retained(lane, frame)\n",
        "                self._delivery.offer_retained(lane, frame)\n",
    ),
    Mutation(
        "introduced_again_and_again",
        "that somebody was introduced is not remembered (I-1)",
        INTRODUCTIONS,
        "        introduced[number] = None\n",
        "",
        BROKER_TESTS,
    ),
    Mutation(
        "introductions_without_end",
        "a receiver remembers one more than it should (I-3)",
        INTRODUCTIONS,
        "            if len(introduced) > (",
        "            if len(introduced) > 1 + (",
        BROKER_TESTS,
    ),
    Mutation(
        "introductions_fill_an_output",
        "who comes and goes fills the output of one that does not read (I-1 costs no credit)",
        INTRODUCTIONS,
        "        if receiver.out_bytes < OUTPUT_HIGH_BYTES:\n",
        "        if True:\n",
        BROKER_TESTS,
    ),
    Mutation(
        "unit_of_the_dead",
        "the unit of a process that has ended is believed: its number may be another's (I-2)",
        KERNEL,
        "return units_in(text) if not _has_ended(pidfd) else _NO_UNIT",
        "return units_in(text)",
        KERNEL_TESTS,
    ),
    Mutation(
        "unit_anywhere",
        "a unit is believed wherever its name stands in the path (I-2)",
        KERNEL,
        '        if not name.endswith(".slice"):\n            break\n',
        "",
        KERNEL_TESTS,
    ),
    Mutation(
        "forged_cgroup_line",
        "what a user calls a cgroup of its own can look like a line of the kernel (I-2)",
        KERNEL,
        '.split("\\n"):  #',
        ".splitlines():  #",
        KERNEL_TESTS,
    ),
]
