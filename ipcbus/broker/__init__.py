"""Layer 1: what the bus decides. Bytes of peers in, bytes for peers out; no sockets, no clock, no threads, no randomness (DESIGN.md has
the interface)."""

from .broker import Broker
from .peers import Credentials, Peer
from .quotas import OverQuota

__all__ = ["Broker", "Credentials", "OverQuota", "Peer"]
