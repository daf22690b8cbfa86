"""Where messages ended that nobody got: who lost what, why, and how often, as counters, as lines in the log and as recent episodes.

All ways in which a message can end but arrive come through `Losses`, which counts each at the bus, at the peer and at its topic, so that
the books balance (B-4). An *episode* is what was lost at one place for one reason with no long pause in between: it is logged when it
begins (a place that has one after the other: now and then), and `bus/losses` lists the recent ones. Nothing here is called for a message
that arrives.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import EPISODE_PAUSE_S, LOSS_EPISODES, LOSS_LOG_S, LOSS_WALK_MAX, LOSS_WALK_S
from ..protocol.messages import Kind, clip_text
from ..protocol.walking import frame_end, topic_of
from .backlogs import Backlog
from .counters import Counters, TopicCounters
from .lanes import Group, Lane
from .peers import Peer, Piece
from .requests import Pending

Place = Backlog | Peer

#: Why a message was lost: the word on the wire, and the counter of B-4.
COUNTER_OF = {
    "too_slow": "dropped",
    "replaced": "replaced",
    "expired": "expired_messages",
    "evicted": "evicted",
    "over_quota": "over_quota",
    "unknown": "unknown",
}
#: Episodes of one kind at one peer that are told apart; more are one, of several patterns.
_PLACES_MAX = 8

_SAID = {
    "too_slow": (
        logging.WARNING,
        "does not keep up: messages are dropped and counted (L-7; limits.lane_soft_bytes, limits.lane_hard_bytes, limits.lane_stall_s)",
    ),
    "replaced": (logging.INFO, "does not keep up: newer messages replace those that wait of the same topic (policy latest)"),
    "expired": (logging.INFO, "does not keep up: messages wait longer than their time to live, and are dropped and counted (L-11)"),
    "evicted": (logging.INFO, "ended while messages waited for it, which are counted as evicted"),
    "over_quota": (logging.INFO, "has no room: messages are dropped and counted (over_quota)"),
    "unknown": (logging.INFO, "went while messages were in its output: whether they arrived is not known"),
}


class Episode:
    """What was lost at one place for one reason, without a long pause."""

    __slots__ = ("about", "bytes", "code", "count", "first", "key", "kind", "last", "logged", "number", "place", "sender", "topic", "why")

    def __init__(self, number: int, why: str, key: tuple[str, int, Hashable], now: float) -> None:
        self.number = number
        self.why = why
        self.key = key
        self.first = self.last = now
        self.logged: float | None = None  #: when the log told of this place last
        self.count = 0
        self.bytes = 0
        self.place: dict[str, Any] = {}  #: who lost it, and by which terms
        self.topic = ""  #: of the first
        self.sender: dict[str, Any] = {}  #: of the first
        self.kind = ""  #: refused: of the frames
        self.code = ""  #: refused, closed: the bus's error
        self.about = ""  #: what there is to say: the text of an error, the account or option concerned

    def describe(self, now: float) -> dict[str, Any]:
        """An item of ``losses``."""
        return {
            "number": self.number,
            "why": self.why,
            "count": self.count,
            "bytes": self.bytes,
            "first_s": round(now - self.first, 3),
            "last_s": round(now - self.last, 3),
            **_NOWHERE,
            **self.place,
            "topic": self.topic,
            **_NOBODY,
            **self.sender,
            "kind": self.kind,
            "code": self.code,
            "about": self.about,
        }


_NOWHERE = dict.fromkeys(("pattern", "group", "lane", "peer", "program", "pid", "uid", "policy", "limits"))
_NOBODY = dict.fromkeys(("sender", "sender_program", "sender_pid"))


class Clock(Protocol):
    """Knows the time. An attribute, for it is looked at for each loss."""

    @property
    def now(self) -> float: ...


class Losses:
    """Counts and remembers how messages end that do not arrive."""

    def __init__(self, counters: Counters, topics: TopicCounters, clock: Clock, log: Callable[[int, str], None]) -> None:
        self.counters = counters
        self._topics = topics
        self._clock = clock
        self._log = log
        self._rings: dict[str, OrderedDict[int, Episode]] = {}  #: by why: the latest, in the order of their last loss
        self._current: dict[Hashable, Episode] = {}  #: of these, the last at each place
        self._places: dict[tuple[str, int], int] = {}  #: how many episodes of one kind a peer has
        self._number = 0
        self._walk = 0.0  #: how many more lost frames may be looked at, as of _walk_at
        self._walk_at = -1.0

    def episodes(self) -> dict[int, Episode]:
        """The recent ones by number."""
        return {number: episode for ring in self._rings.values() for number, episode in ring.items()}

    # --- messages that were for a lane or group, or in an output --------------------------------------------------------------------------

    def record(
        self,
        why: str,
        where: Place,
        count: int,
        size: int,
        pieces: Piece | list[Piece] | None = None,
        sender: Peer | None = None,
        about: str = "",
    ) -> None:
        """*count* messages of *size* bytes that were for *where*, a queue or the output of a peer, have ended by *why* (`COUNTER_OF`).

        *pieces*, their frames, say on which topics, and *about* what there is to say beyond it, such as the account and its option.
        """
        frames = pieces if isinstance(pieces, list) else [] if pieces is None else [pieces]
        if not count:
            return
        name = COUNTER_OF[why]
        setattr(self.counters, name, getattr(self.counters, name) + count)
        if where.__class__ is Backlog:
            where.lost += count
            peer, lane, group, backlog = where.payer, where.lane, where.group, where
        else:
            assert isinstance(where, Peer)
            peer, lane, group, backlog = where, None, None, None
        if peer.lost is None:
            peer.lost = {}
        peer.lost[name] = peer.lost.get(name, 0) + count
        if why != "unknown":
            self._count_topics(why, frames, count)
        place = (group.pattern, group.name) if group is not None else lane.number if lane is not None else 0
        episode = self._episode(why, peer.id, place)
        begins = not episode.count
        episode.count += count
        episode.bytes += size
        if begins:
            episode.about = clip_text(about)
            episode.place = _describe(peer, lane, group, backlog)
            if frames:
                episode.topic = topic_of(frames[0]).decode()
            if sender is not None:
                episode.sender = _describe_sender(sender)
            level, said = _SAID[why]
            self._log_first(episode, level, f"{where} {said}{_details(episode)}")
        elif lane is not None and episode.place["lane"] not in (lane.number, None):
            episode.place["pattern"] = episode.place["lane"] = None  # several of them

    def _count_topics(self, why: str, pieces: list[Piece], count: int) -> None:
        """Say at the topics what was lost of them, looking at a bounded number of frames; the rest is the others'."""
        name = "expired" if why == "expired" else "lost"
        now = self._clock.now
        self._walk = min(self._walk + (now - self._walk_at) * LOSS_WALK_S, LOSS_WALK_MAX)
        self._walk_at = now
        for piece in pieces:
            if self._walk < 1:
                break
            at, size = 0, len(piece)
            while at < size and self._walk >= 1:
                self._walk -= 1
                counter = self._topics.find(topic_of(piece, at).decode())
                setattr(counter, name, getattr(counter, name) + 1)
                count -= 1
                at = frame_end(piece, at)
        other = self._topics.other
        setattr(other, name, getattr(other, name) + count)

    # --- what else does not arrive --------------------------------------------------------------------------------------------------------

    def refused(self, peer: Peer, kind: Kind, to: str, count: int, error: ProtocolError) -> None:
        """The bus answered frames of *peer* with an error (E-3, E-4)."""
        self.counters.refused += count
        peer.refused += count
        if error.code is Code.DENIED:
            self.counters.denied += count
            peer.denied += count
        if kind in (Kind.RETAIN, Kind.POST) and error.code is Code.OVER_LIMIT:
            return  # it was delivered: `not_kept` tells it
        self._tell("refused", peer, (error.code, to), count, topic=to, kind=kind.name, code=error.code.label, about=error.text)

    def not_kept(self, topic: str, peer: Peer, error: ProtocolError) -> None:
        """A retained message of *peer* was delivered, but there was no room to keep it (L-8)."""
        self.counters.not_kept += 1
        self._topics.of(topic).not_kept += 1
        self._tell("not_kept", peer, topic, 1, topic=topic, code=error.code.label, about=error.text)

    def no_answer(self, pending: Pending, why: str) -> None:
        """A request was given to a callee that did not answer: *why* is ``timed_out`` or ``responder_died`` (R-2)."""
        episode = self._tell(why, pending.callee, pending.to, 1, topic=pending.to)
        if episode.count == 1:
            episode.sender = _describe_sender(pending.requester)
            said = "did not answer in time" if why == "timed_out" else "went before it answered"
            text = f"{pending.callee} {said}: {pending.to!r} of {pending.requester} (further ones are only counted)"
            self._log_first(episode, logging.INFO, text)

    def closed(self, peer: Peer, error: ProtocolError) -> None:
        """The bus ended a connection (E-2)."""
        self.counters.protocol_errors += 1
        self._tell("closed", peer, 0, 1, code=error.code.label, about=error.text)

    def _tell(self, why: str, peer: Peer, place: Hashable, count: int, **more: str) -> Episode:
        episode = self._episode(why, peer.id, place)
        if not episode.count:
            episode.place = _describe(peer, None, None, None)
            for name, value in more.items():
                setattr(episode, name, clip_text(value))
        episode.count += count
        return episode

    # --- episodes -------------------------------------------------------------------------------------------------------------------------

    def _episode(self, why: str, peer: int, place: Hashable) -> Episode:
        """The episode at a place that something is to be added to; a new one has counted nothing yet."""
        now = self._clock.now
        of_peer = why, peer
        key = (why, peer, place)
        episode = self._current.get(key)
        if episode is None and self._places.get(of_peer, 0) >= _PLACES_MAX:
            key = (why, peer, None)
            episode = self._current.get(key)
        ring = self._rings.setdefault(why, OrderedDict())
        if episode is None or now - episode.last > EPISODE_PAUSE_S:
            before = episode
            if before is not None and self._places[of_peer] >= _PLACES_MAX:
                self._forget(ring.pop(before.number))  # what trickles must not push out what was lost elsewhere
            self._number += 1
            episode = ring[self._number] = self._current[key] = Episode(self._number, why, key, now)
            episode.logged = before.logged if before is not None else None
            self._places[of_peer] = self._places.get(of_peer, 0) + 1
            if len(ring) > LOSS_EPISODES:
                self._forget(ring.popitem(last=False)[1])
        else:
            ring.move_to_end(episode.number)
            episode.last = now
        return episode

    def _log_first(self, episode: Episode, level: int, text: str) -> None:
        """One line for an episode, but not again and again where a trickle is an episode each time."""
        if episode.logged is None or episode.first - episode.logged >= LOSS_LOG_S:
            episode.logged = episode.first
            self._log(level, text)

    def _forget(self, episode: Episode) -> None:
        if self._current.get(episode.key) is episode:
            del self._current[episode.key]
        of_peer = episode.key[:2]
        self._places[of_peer] -= 1
        if not self._places[of_peer]:
            del self._places[of_peer]


def _describe(peer: Peer | None, lane: Lane | None, group: Group | None, backlog: Backlog | None) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if lane is not None:
        place = {"pattern": lane.pattern, "lane": lane.number}
    elif group is not None:
        place = {"pattern": group.pattern, "group": group.name}
    if peer is not None:
        who = peer.credentials
        place |= {"peer": peer.id, "program": peer.program, "pid": who.pid if who else None, "uid": who.uid if who else None}
    if backlog is not None:
        place |= {"policy": backlog.policy, "limits": {"soft": backlog.soft, "hard": backlog.hard, "seconds": backlog.seconds}}
    return place


def _describe_sender(sender: Peer) -> dict[str, Any]:
    who = sender.credentials
    return {"sender": sender.id, "sender_program": sender.program, "sender_pid": who.pid if who else None}


def _details(episode: Episode) -> str:
    """The end of a line of the log: the first that was lost, and what there is to say."""
    topic = f"; the first on {episode.topic!r}" if episode.topic else ""
    sender = f" from peer {episode.sender['sender']} ({episode.sender['sender_program']!r})" if topic and episode.sender else ""
    return f"{topic}{sender}{f'; {episode.about}' if episode.about else ''}"
