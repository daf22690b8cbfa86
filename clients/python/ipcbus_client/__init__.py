"""The client of ipcbus, blocking: ``with ipcbus_client.connect() as bus: …``. The same for asyncio is ``ipcbus_client.aio``."""

from __future__ import annotations

from time import time

from ipcbus.protocol.addresses import AddressError
from ipcbus.protocol.failures import BusError, use_clock
from ipcbus.protocol.payloads import PayloadError

from ._blocking import Bus, connect
from ._blocking_monitor import Monitor
from ._blocking_replies import ReplyStream
from ._blocking_responders import Responder
from ._blocking_services import Proxy, ProxyMethod, Service
from ._blocking_state import BusState, StateChanges, StateHandle
from ._blocking_streams import Inbox, Subscription
from ._blocking_watch import Watch
from ._current import Request, current_request
from ._errors import (
    BadArguments,
    BadName,
    Closed,
    ConnectError,
    ConnectionLost,
    Denied,
    Expired,
    NoSuchMethod,
    NoSuchName,
    NoSuchPeer,
    OutboxFull,
    Overloaded,
    Refused,
    RequestError,
    ResponderDied,
    ServiceError,
    Timeout,
)
from ._gather import Answer
from ._holds import Hold
from ._message import Message
from ._notices import CaughtUp, Lagging, Lost, Reconnected
from ._policies import Limits
from ._seen import Seen
from ._senders import Credentials, Sender
from ._waiting import Undelivered
from ._watching import Change

use_clock(time)

__all__ = [
    "AddressError",
    "Answer",
    "BadArguments",
    "BadName",
    "Bus",
    "BusError",
    "BusState",
    "CaughtUp",
    "Change",
    "Closed",
    "ConnectError",
    "ConnectionLost",
    "Credentials",
    "Denied",
    "Expired",
    "Hold",
    "Inbox",
    "Lagging",
    "Limits",
    "Lost",
    "Message",
    "Monitor",
    "NoSuchMethod",
    "NoSuchName",
    "NoSuchPeer",
    "OutboxFull",
    "Overloaded",
    "PayloadError",
    "Proxy",
    "ProxyMethod",
    "Reconnected",
    "Refused",
    "ReplyStream",
    "Request",
    "RequestError",
    "Responder",
    "ResponderDied",
    "Seen",
    "Sender",
    "Service",
    "ServiceError",
    "StateChanges",
    "StateHandle",
    "Subscription",
    "Timeout",
    "Undelivered",
    "Watch",
    "connect",
    "current_request",
]
