"""What a peer gets, against what the oracle says that it must get: every frame that leaves the bus is compared here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.protocol.errors import Code
from ipcbus.protocol.messages import IN_RUNS, Frame, Kind
from ipcbus.protocol.payloads import decode_value

from .models import PeerModel
from .violations import ViolationError, check, matches

if TYPE_CHECKING:
    from .oracle import Oracle


class Receipts:
    """Judges what leaves one bus."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def receive(self, peer: PeerModel, frame: Frame, now: float) -> None:
        """*frame* left the bus for *peer*."""
        kind, elements = frame.kind, frame.elements
        self._oracle.checked[kind.name] += 1
        self._oracle.handed += kind in IN_RUNS
        if elements[1] and peer.asks_identity:
            check(elements[1] in peer.introduced, peer, frame, "its sender was not introduced (I-1)")
        if kind is Kind.WELCOME:
            check(elements[4] == peer.id != 0, peer, frame, f"the id is {peer.id}")
        elif kind is Kind.LANE:
            peer.lane = peer.lanes.get(elements[2])
            check(peer.lane is not None, peer, frame, "no such lane")
        elif kind in (Kind.PUBLISH, Kind.RETAIN):
            self._publication(peer, frame, now)
        elif kind in (Kind.SEND, Kind.REQUEST, Kind.ALLOW, Kind.CANCEL):
            if frame.raw in self._oracle.floating and peer in self._oracle.floating[frame.raw]:
                del self._oracle.floating[frame.raw]
            else:
                check(bool(peer.direct) and peer.direct.popleft() == frame.raw, peer, frame, "not the next one to it")
        elif kind in (Kind.REPLY, Kind.ERROR):
            self._answer(peer, frame, now)
        elif kind is Kind.PART:
            request = peer.requests.get(elements[3])
            good = request is not None and bool(request.parts) and not request.told and request.parts.popleft() == frame.raw
            check(good, peer, frame, "not the next part of a request of its own (R-6)")
        elif kind is Kind.PONG:
            check(bool(peer.pings) and peer.pings.popleft() == elements[2], peer, frame, "not the next PONG")
        elif kind is Kind.NOTICE:
            self._notice(peer, frame)
        elif kind is Kind.BYE:
            allowed = (peer.said_bye, Code.SHUTTING_DOWN.value)
            check(elements[2] in allowed, peer, frame, "nothing fatal was sent")
            peer.said_bye = -1
        else:
            check(False, peer, frame, "the bus does not send this")

    def _publication(self, peer: PeerModel, frame: Frame, now: float) -> None:
        if peer.lane is None:
            raise ViolationError(f"{peer}: {frame} without a LANE before it (L-3)")
        self._oracle.checked.update(peer.lane.received(frame.raw, now, self._oracle.mortal))

    def _answer(self, peer: PeerModel, frame: Frame, now: float) -> None:
        number = frame.elements[3]
        if number == 0:
            count = decode_value(None, frame.payload)["count"]
            peer.refusals[frame.elements[4]] -= count
            check(peer.refusals[frame.elements[4]] >= 0, peer, frame, "nothing was to be refused with this code")
            return
        request = peer.requests.get(number)
        if request is None or request.outcome is None or request.told:
            raise ViolationError(f"{peer}: {frame} answers what was not asked, has not settled or has been answered (R-2)")
        request.told = True
        check(not request.parts, peer, frame, f"{len(request.parts)} parts were to come before it (R-6)")
        what = request.outcome[0]
        if what == "frame":
            check(frame.raw == request.outcome[1], peer, frame, "not the callee's answer")
        elif what == "code":
            good = frame.kind is Kind.ERROR and frame.elements[4] == request.outcome[1]
            check(good, peer, frame, f"expected {request.outcome[1].label}")
        elif what == "value":
            value = decode_value(None, frame.payload)
            check(frame.kind is Kind.REPLY and value == request.outcome[1], peer, frame, f"expected {request.outcome[1]}")
            if isinstance(value, dict) and value.get("sender") and peer.asks_identity:
                check(value["sender"] in peer.introduced, peer, frame, "it names a sender who was not introduced (I-1)")
        elif what == "dropped":
            lane = request.outcome[1]
            if lane.group is None:
                dropped = decode_value(None, frame.payload)["dropped"]
                check(dropped == lane.missing(), peer, frame, f"{dropped} dropped, {lane.missing()} missing")
        else:
            check(what == "any", peer, frame, f"expected {what}")

    def _notice(self, peer: PeerModel, frame: Frame) -> None:
        name, content = frame.elements[2], decode_value(None, frame.payload)
        self._oracle.checked[name] += 1
        if name in ("lagging", "caught_up", "lost"):
            lane = peer.lanes[content["lane"]]
            if name == "lagging":
                lane.told_lagging(content)
                self._oracle.checked["dropping"] += content["dropping"]
            elif name == "caught_up":
                lane.told_caught_up(content)
            else:
                lane.told_lost(content["why"], content["count"], content["bytes"])
                self._oracle.checked[content["why"]] += 1
        elif name == "hold":
            check(content["id"] not in peer.holds, peer, frame, "it is held so already (L-12)")
            check(content["peer"] != peer.id, peer, frame, "nobody is held by itself (L-12)")
            topics = [topic for topic in peer.published if matches(content["pattern"], topic)]
            check(bool(topics), peer, frame, "it never published such a thing (L-12)")
            peer.holds[content["id"]] = content["pattern"]
        elif name == "resume":
            check(peer.holds.pop(content["id"], None) is not None, peer, frame, "nothing held it (L-12)")
        elif name == "identity":
            self._introduction(peer, frame, content)
        else:
            check((name, content["name"]) in peer.notices, peer, frame, f"expected {peer.notices}")
            peer.notices.remove((name, content["name"]))

    def _introduction(self, peer: PeerModel, frame: Frame, content: dict[str, Any]) -> None:
        """I-1, I-2: who asks is told the truth, and once. (Nobody here meets so many that somebody is forgotten.)"""
        number = content["peer"]
        check(peer.asks_identity and number not in peer.introduced, peer, frame, "it did not ask for it, or was told before")
        sender = next((one for one in self._oracle.peers if one.id == number), None)
        if sender is None:
            raise ViolationError(f"{peer}: {frame} is about nobody who ever was")
        program = sender.program
        told = (content["transport"], content["uid"], content["pid"], content["program"], "gone" in content)
        truth = ("unix", program.uid, program.pid, sender.calls_itself, False)
        check(told == truth, peer, frame, f"expected {truth}")
        peer.introduced.add(number)

    def check_quiet(self) -> None:
        """Nothing is under way any more: everything that a connected peer was to get, it got."""
        for peer in self._oracle.peers:
            if peer.gone or peer.done_sending:
                continue
            left = {
                "messages": sum(lane.missing() for lane in peer.lanes.values() if lane.open),
                "ends of lagging": sum(lane.lagging for lane in peer.lanes.values() if lane.open),
                "resumes": len(peer.holds),
                "direct": len(peer.direct),
                "requests": sum(not request.told and request.outcome != ("nothing",) for request in peer.requests.values()),
                "parts": sum(len(request.parts) for request in peer.requests.values()),
                "refusals": sum(peer.refusals.values()),
                "notices": len(peer.notices),
                "pongs": len(peer.pings),
            }
            if any(left.values()):
                raise ViolationError(f"{peer} never got { ({what: count for what, count in left.items() if count}) }")
        for (pattern, name), group in self._oracle.groups.items():
            missing = sum(map(len, group.outstanding.values())) - group.lost
            if missing < 0 or (missing and not group.member_left):
                raise ViolationError(f"group {name} on {pattern}: {missing} messages are neither delivered nor said to be lost")
