"""What is written into the outputs of peers, and who was written to since the daemon looked last."""

from __future__ import annotations

from ..protocol.messages import Kind, encode_with_payload, pack
from .peers import Peer, Piece


class Outputs:
    """Appends frames to peers' outputs. Owns no sockets: a peer whose record changed is in ``touched``."""

    def __init__(self) -> None:
        self.now = 0.0  #: set by the broker on entry
        self.touched: list[Peer] = []

    def touch(self, peer: Peer) -> None:
        """Have the daemon look at *peer* at the end of the round."""
        if not peer.touched:
            self.touched.append(peer)
            peer.touched = True

    def put(self, peer: Peer, frame: Piece) -> None:
        """Append one frame that needs no credit to a peer's output."""
        peer.out.append(frame)
        peer.out_bytes += len(frame)
        if not peer.touched:
            self.touched.append(peer)
            peer.touched = True

    def notice(self, peer: Peer, name: str, content: dict[str, object]) -> None:
        """Send a NOTICE (E-6)."""
        self.put(peer, encode_with_payload(pack(content), Kind.NOTICE, 0, name, None))
