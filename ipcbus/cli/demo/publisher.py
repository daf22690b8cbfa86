"""The demo's publisher: this machine's figures on ``machine.…``, each message with a sequence number of its topic."""

from __future__ import annotations

import json
import time
from collections import Counter

import ipcbus_client

from .child import told_to_stop
from .figures import Machine

PERIOD_S = 0.1


def publish(address: str) -> int:
    """Publish until told to stop, then print how many messages went to each topic, for the exact count of what was lost."""
    machine = Machine()
    published: Counter[str] = Counter()
    failed = 0
    with ipcbus_client.connect(address, program="demo publisher") as bus:
        first_epoch = bus.epoch
        while not told_to_stop(PERIOD_S - time.monotonic() % PERIOD_S):
            for name, figures in machine.readings(time.monotonic()):
                topic = f"machine.{name}"
                published[topic] += 1
                try:
                    bus.publish(topic, {"seq": published[topic], "sent": time.monotonic(), **figures})
                except ipcbus_client.BusError:
                    failed += 1  # its number is used up, so it is counted as lost
        bus.flush()
        print(json.dumps({"published": published, "failed": failed, "reconnects": bus.epoch - first_epoch}))
    return 0
