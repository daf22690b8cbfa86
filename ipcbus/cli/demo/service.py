"""The demo's service: ``machine/summary``, ``machine/uptime`` and ``machine/processes``."""

from __future__ import annotations

import json
from typing import Any

import ipcbus_client

from .child import told_to_stop
from .figures import Machine

NAME = "machine"
METHODS = ("summary", "uptime", "processes")


def serve(address: str) -> int:
    """Answer until told to stop, then print how often this process had to reconnect."""
    machine = Machine()

    def answer(request: ipcbus_client.Request) -> Any:
        match request.method:
            case "summary":
                return machine.summary()
            case "uptime":
                return {"uptime_s": machine.uptime_s()}
        return machine.processes()

    with ipcbus_client.connect(address, name=NAME, program="demo service") as bus:
        first_epoch = bus.epoch
        for method in METHODS:
            bus.respond(f"{NAME}/{method}", answer)
        told_to_stop(None)
        print(json.dumps({"reconnects": bus.epoch - first_epoch}))
    return 0
