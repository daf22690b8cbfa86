"""Attacks by what is small to say and much to do, and by what ends all at once. `attacks` runs them."""

from __future__ import annotations

from ipcbus.protocol.messages import Kind, encode, encode_with_payload
from tests.survival.attacking import CREDIT, answers, hello, requests, send, until_over


def dear_frames(address: str) -> dict[str, int]:
    """Small frames that are much to do, of a peer with thousands of names, of lanes to one topic, and of members of one group."""
    wire = hello(address)
    wire.sock.settimeout(30)
    several = [("subscribe", {"pattern": "attack.all", "lane": lane, "credit": 0}) for lane in range(1, 501)]
    several += [
        ("subscribe", {"pattern": "attack.one", "lane": lane, "credit": CREDIT, "messages": 5, "group": "g"}) for lane in range(501, 2501)
    ]
    several += [("own", {"name": f"attack.{number}"}) for number in range(2000)]
    for start in range(0, len(several), 500):
        wire.send(requests(wire, *several[start : start + 500]))
        assert answers(wire, 500)
    wire.sock.settimeout(1.0)
    dear = requests(wire, *[("serve", {"name": "attack.1", "methods": ["m"]}), ("stats", {}), ("peers", {"limit": 1})] * 5)
    dear += b"".join(
        encode_with_payload(b"", Kind.REQUEST, wire.peer, f":{wire.peer}/none", 100 + number, 1000, None) for number in range(5)
    )
    dear += encode_with_payload(b"x", Kind.POST, wire.peer, "attack.all", None, None, False, None) * 20
    dear += encode_with_payload(b"x", Kind.PUBLISH, wire.peer, "attack.one", 1) * 1000
    dear += b"".join(encode(Kind.CREDIT, wire.peer, lane, 100, 1) for lane in range(501, 1501))
    rounds = 0
    for _ in until_over():
        if not (send(wire, dear) and answers(wire, 20)):
            break
        rounds += 1
    return {"rounds": rounds}


def all_at_once(address: str) -> dict[str, int]:
    """Thousands of requests and kept messages whose time ends in the same moment; every other time who made them, and the owner of a
    thousand names, goes before."""
    expired = went = 0
    for number in until_over():
        wire, callee = hello(address), hello(address)
        callee.sock.settimeout(30)
        callee.send(requests(callee, *[("own", {"name": f"attack.{name}"}) for name in range(1000)]))
        callee.send(requests(callee, ("serve", {"name": "attack.1", "methods": ["m"]})))
        assert answers(callee, 1001)
        time_ms = 100 if number % 2 else 60_000
        blob = b"".join(encode_with_payload(b"", Kind.REQUEST, wire.peer, "attack.1/m", 10 + at, time_ms, None) for at in range(3000))
        blob += b"".join(encode_with_payload(b"x", Kind.POST, wire.peer, f"attack.{at}", None, 100, True, None) for at in range(3000))
        blob += requests(wire, ("ping", {}))
        if not (send(wire, blob) and answers(wire, 3001 if number % 2 else 1)):
            break
        expired += number % 2
        went += not number % 2
        wire.sock.close()
        callee.sock.close()
    return {"expired": expired, "went": went}
