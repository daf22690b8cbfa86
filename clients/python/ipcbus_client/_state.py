"""Where a bus object stands."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where the bus object stands; the value is what ``bus.state`` says."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"
