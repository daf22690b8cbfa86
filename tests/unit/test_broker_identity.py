"""Who a sender is: what the bus knows of its peers."""

from __future__ import annotations

import msgpack

from ipcbus.broker import Broker
from ipcbus.protocol.auth import proof
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.messages import Kind, encode


def test_a_tcp_peer_is_who_it_has_proved_to_be() -> None:
    secret, addresses = b"s" * 32, ("127.0.0.1:1", "127.0.0.1:2")
    broker = Broker(incarnation=b"i" * 16, random_bytes=lambda size: b"r" * size, now=0.0, limits=Limits(), secret=secret)
    peer = broker.connect(0.0, transport="tcp", addresses=addresses)
    hello = encode(Kind.HELLO, 0, 1, 1, [], {}, b"n" * 32)
    broker.receive(peer, hello, 0.0)
    assert (peer.identity, peer.credentials) == ("", None)
    assert msgpack.unpackb(peer.out[-1][5:])[0] == Kind.CHALLENGE
    answer = proof(secret, "client", hello[5:], 1, [], b"r" * 32, *addresses)
    broker.receive(peer, encode(Kind.PROOF, 0, answer), 0.0)
    assert msgpack.unpackb(peer.out[-1][5:])[0] == Kind.WELCOME
    assert (peer.identity, peer.credentials) == ("default", None)
