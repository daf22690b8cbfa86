"""The workload ``accounting``: what it costs that all that waits is charged to programs and users.

The control is the same daemon in which charging for what waits does nothing, in the same round; and the relay, beside which the floors of
the first version are known (0.40 for msgpack values, 0.45 for bytes): 0.9 of them is the goal.
"""

from __future__ import annotations

from .measures import Measured, Row, Sizes, bus_rate, relay_rate
from .processes import Cast

#: Charges follow what waits in one place; without it nothing is charged and nothing is refused for it.
FREE = "from ipcbus.broker.charges import Charges; Charges.settle = lambda self, peer, now: None"


def accounting(sizes: Sizes) -> Measured:
    """1 publisher to 1 subscriber, 128 B, with charges and without."""
    found = {"relay": relay_rate(1, sizes.messages)}
    for key, before in (("charged", ""), ("free", FREE)):
        for form in ("msgpack", "bytes"):
            with Cast() as cast:
                daemon, address = cast.daemon(before=before)
                found[f"{form}_{key}"], found[f"{form}_{key}_cpu"] = bus_rate(
                    cast, daemon, address, form, sizes.messages, topics=["bench.a.b"], pattern="bench.a.b"
                )
    return found


ROWS = tuple(
    row
    for form, floor in (("msgpack", 0.40), ("bytes", 0.45))
    for row in (
        Row(f"1 to 1, {form}, charged / free", f"{form}_charged", "msg/s", f"{form}_free", ">=", 0.9),
        Row("  beside the relay", f"{form}_charged", "msg/s", "relay", ">=", 0.9 * floor),
        Row("  daemon CPU, charged / free", f"{form}_charged_cpu", "s/M", f"{form}_free_cpu"),
    )
)
