"""What the bus says where it does not do what a frame asks for, and the connection goes on (E-3, E-4)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..protocol.errors import ProtocolError
from ..protocol.messages import Frame, Kind, error_frame, pack
from ..protocol.topics import peer_address
from .delivery import Delivery
from .losses import Losses
from .peers import Peer
from .quotas import OverQuota


class Refusals:
    """Answers refused frames, counts them, and logs the first of each code to a peer."""

    def __init__(self, losses: Losses, delivery: Delivery, log: Callable[[int, str], None]) -> None:
        self._losses = losses
        self._delivery = delivery
        self._log = log
        self.told: Callable[[Peer, Kind, str, int, int, ProtocolError], None] | None = None  #: who else hears of it

    def frame(self, peer: Peer, frame: Frame, error: ProtocolError) -> None:
        """One frame: with its id where it asked under one (E-3)."""
        if frame.kind is Kind.REQUEST or (frame.kind is Kind.POST and frame.elements[3] is not None):
            self._refuse(peer, frame.kind, frame.elements[2], frame.elements[3], 1, error, b"")
        else:
            self.frames(peer, frame.kind, frame.elements[2], 1, error)

    def frames(self, peer: Peer, kind: Kind, to: str, count: int, error: ProtocolError) -> None:
        """Frames that have no id, one answer for all (E-4)."""
        self._refuse(peer, kind, to, 0, count, error, pack({"kind": kind.value, "to": to, "count": count}))

    def _refuse(self, peer: Peer, kind: Kind, to: str, request: int, count: int, error: ProtocolError, content: bytes) -> None:
        self._losses.refused(peer, kind, to, count, error)
        if self.told is not None:
            self.told(peer, kind, to, request, count, error)
        if peer.logged is None:
            peer.logged = set()
        if error.code not in peer.logged and not isinstance(error, OverQuota):  # the account has logged that, once an episode
            peer.logged.add(error.code)
            self._log(logging.WARNING, f"{peer}: {kind.name} refused: {error.code.label}: {error.text} (further ones are only counted)")
        self._delivery.put(peer, error_frame(peer_address(peer.id), request, error.code, error.text, content))
