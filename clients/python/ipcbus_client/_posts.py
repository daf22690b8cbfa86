"""Publications with more than a topic and a payload: retained, confirmed, with a time to live, bound to the connection; and wills.

What this program retained is remembered, so that a bus that was restarted has it again: after the declarations and before what waited in
the outbox. The same bus has it still, except what went with the connection: bound values, those that a will took the place of, and those of
which nothing says that they arrived. What is remembered is restored by `bus/restore` (B-3), which leaves alone what another peer has
published since, and does nothing where the value is there.

Part of the session: same lock, no I/O; the time is the session's clock, which the shell handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import ARGUMENTS_MAX_BYTES
from ipcbus.protocol.messages import Kind, Meta, encode_with_payload
from ipcbus.protocol.payloads import PayloadError, encode_value

from ._calls import WARNING, Call, map_of
from ._encoding import check_topic
from ._errors import Expired, Refused, RequestError

if TYPE_CHECKING:
    from ._session import Session

#: What is remembered of what this program retained; beyond it a value is only published.
REMEMBERED_BYTES = 8 * 1024 * 1024
REMEMBERED_VALUES = 10_000
#: What remembering a value costs besides its topic, headers and payload, about.
_OVERHEAD_BYTES = 200
#: The payload of what travels as an argument to the bus (B-1): a will, a bound value.
ARGUMENT_BYTES = ARGUMENTS_MAX_BYTES - 8192
#: The longest time to live (V-7).
TTL_MAX_S = (2**32 - 1) / 1000
#: Ids that this program had on one bus: so many connections later nobody needs to know them.
_WAS_MAX = 64
_ANSWER_S = 86_400.0


class Post(NamedTuple):
    """One publication, checked and encoded."""

    topic: str
    meta: Meta
    payload: bytes
    retain: bool
    bound: bool
    deadline: float | None  #: of the session's clock: then it is too old


class Posts:
    """The publications of one session that are more than a topic and a payload."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._values: dict[str, Post] = {}  #: what this program retained last, by topic
        self._marks: dict[str, int] = {}  #: the outbox's, by topic: with that much confirmed the value arrived
        self._uncertain: set[str] = set()  #: topics whose value may have been lost with a connection
        self._bytes = 0
        self._full = False  #: the log knows that not everything is remembered
        self._was: deque[int] = deque(maxlen=_WAS_MAX)  #: this program's ids on this bus, before the present one
        self._restoring: dict[str, Call] = {}  #: by topic: said to this connection and not answered yet
        self._restored = b""  #: the incarnation that has everything again

    # --- what goes out ---

    def make(
        self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None, ttl: float | None = None, bound: bool = False
    ) -> Post:
        """Check and encode a publication. Raises BadName, PayloadError, TypeError, ValueError."""
        session = self._session
        check_topic(topic)
        if bound and not retain:
            raise ValueError("bound=True is for what is retained: say retain=True too")
        deadline = None
        if ttl is not None:
            if not isinstance(ttl, (int, float)) or isinstance(ttl, bool):
                raise TypeError(f"a ttl of {ttl!r:.50}: it is a number of seconds, or None")
            if not 0 < ttl <= TTL_MAX_S:
                raise ValueError(f"a ttl of {ttl!r:.50} s: it must be above 0 and at most {TTL_MAX_S:.0f}")
            deadline = session.clock() + ttl
        meta, payload = session.outbox.encode(data, headers, topic, "publish")
        if bound:
            _check_argument(payload, "bound value", topic, "publish")
        if ttl is not None:
            self._need("post", topic)
        return Post(topic, meta, payload, bool(retain), bool(bound), deadline)

    def put(self, post: Post) -> bool:
        """Publish; returns whether the shell has to look after it, as Outbox.publish(). Raises OutboxFull, or what ended the bus."""
        outbox = self._session.outbox
        if outbox.peer:
            outbox.check_room(post.topic, len(post.payload), "publish")
            if outbox.holds.active:
                outbox.holds.keeps(post.topic)
            self._bind(post)
            due = outbox.post(post.topic, post.meta, post.payload, post.retain, post.deadline)
        else:
            due = outbox.post(post.topic, post.meta, post.payload, post.retain, post.deadline)
            self._bind(post)  # what is declared is said before what waits; and nothing, where that has no room
        self._remember(post)
        return due

    def confirm(self, post: Post) -> Call:
        """Publish, with a connection; the answer is the number of lanes. It is never sent again. Raises Refused, Expired; OutboxFull where
        the topic is held.
        """
        session = self._session
        session.outbox.holds.check(post.topic)
        self._need("post", post.topic)
        ttl_ms = session.outbox.ttl_ms(post.deadline)
        if ttl_ms == 0:
            raise Expired(Code.EXPIRED, "it was too old before there was a connection", post.topic)
        self._bind(post)
        call = Call(session.new_id(), post.topic)
        call.operation = "publish"
        call.mark = session.outbox.mark()
        elements = (session.outbox.peer, post.topic, call.id, ttl_ms, post.retain, post.meta)
        session.outbox.put(encode_with_payload(post.payload, Kind.POST, *elements))
        session.calls[call.id] = call
        self._remember(post)
        return call

    def will(self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None) -> Call:
        """Declare what the bus publishes when the connection goes without BYE (W-1)."""
        check_topic(topic, "will")
        meta, payload = self._session.outbox.encode(data, headers, topic, "will")
        _check_argument(payload, "will", topic, "will")
        return self._session.declarations.will(topic, meta, payload, bool(retain))

    def _need(self, feature: str, topic: str) -> None:
        """Raise where the bus that is there is older than what it is asked for; without a connection it shows later."""
        session = self._session
        if session.outbox.peer and feature not in session.features:
            text = f"this bus has no feature {feature!r} (confirm, ttl): its ipcbusd is older than this library"
            raise Refused(Code.UNSUPPORTED, text, topic)

    def _bind(self, post: Post) -> None:
        """Have the bus know, before the value comes, whether it goes with the connection (W-2)."""
        if not post.retain:
            return
        session = self._session
        declared = session.declarations.declared("bind", post.topic) is not None
        bound = post.bound and bool(post.payload)
        if bound and not declared:
            session.check_open()
            session.declarations.bind(post.topic)
        elif declared and not bound:
            session.declarations.withdraw("bind", post.topic)

    # --- what is remembered ---

    def _remember(self, post: Post) -> None:
        if not post.retain:
            return
        self.forget(post.topic)
        if not post.payload:
            return
        size = _size(post)
        if self._bytes + size > REMEMBERED_BYTES or len(self._values) >= REMEMBERED_VALUES:
            self._session.counters["not_remembered"] += 1
            if not self._full:
                self._full = True
                self._session.remark(
                    WARNING,
                    f"{len(self._values)} retained values of {self._bytes} bytes are remembered for a bus that is restarted, which is as "
                    f"many as may be: {post.topic!r} and others are not (not_remembered of stats_local() counts)",
                )
            return
        self._values[post.topic] = post
        self._marks[post.topic] = self._session.outbox.mark()
        self._bytes += size
        if not self._session.outbox.peer or post.topic in self._session.outbox.holds.kept:
            self._uncertain.add(post.topic)  # the outbox may have dropped it, or may yet

    def forget(self, topic: str) -> None:
        """What this program retained there is not restored."""
        post = self._values.pop(topic, None)
        if post is not None:
            self._bytes -= _size(post)
            self._full = False
            del self._marks[topic]
            self._uncertain.discard(topic)

    def stats(self) -> dict[str, int]:
        """Gauges of now."""
        return {"remembered": len(self._values), "remembered_bytes": self._bytes}

    def welcomed(self, before: bytes, last_peer: int) -> None:
        """A connection is ready, after one to the bus *before* as *last_peer*: restore what this bus should have and has not."""
        session = self._session
        if session.incarnation != before:
            self._was.clear()
        elif last_peer:
            self._was.append(last_peer)
        everything = session.incarnation != self._restored
        if not everything and not self._values:
            return
        coming = session.outbox.waiting.retained_topics()
        for post in list(self._values.values()):
            ttl_ms = session.outbox.ttl_ms(post.deadline)
            if ttl_ms == 0:
                self.forget(post.topic)
            elif post.topic in coming:
                self._arrives(post.topic, session.outbox.mark() + len(session.outbox.waiting))
            elif everything or post.topic in self._uncertain:
                self._restore(post, ttl_ms)
        if not self._restoring:
            self._restored = session.incarnation

    def lost(self) -> None:
        """The connection is gone, and its outbox still knows what it had; what was not answered is said again. What may not have arrived,
        was bound to the connection, or has the will of it in its place, is uncertain from here on.
        """
        confirmed, declared = self._session.outbox.confirmed, self._session.declarations.declared
        for topic, post in self._values.items():
            if self._marks[topic] > confirmed or post.bound or declared("will", topic) is not None:
                self._uncertain.add(topic)
        if self._restoring:
            self._restored = b""
        self._restoring.clear()

    def _restore(self, post: Post, ttl_ms: int | None) -> None:
        session = self._session
        size = len(post.payload)
        if size > session.limits.get("max_payload_bytes", size):
            self.forget(post.topic)
            session.remark(WARNING, f"after a reconnect: the retained value of {post.topic!r} is over this bus's payload limit")
            return
        if size > ARGUMENT_BYTES:
            session.outbox.post(post.topic, post.meta, post.payload, True, post.deadline)
            self._arrives(post.topic, session.outbox.mark())
            return
        arguments = {"topic": post.topic, "payload": post.payload, "meta": post.meta, "ttl_ms": ttl_ms, "was": list(self._was)}
        meta, payload = encode_value(arguments)
        call = self._restoring[post.topic] = Call(session.new_id(), "bus/restore")
        call.notify = partial(self._answered, post, call)
        session.put_request(call, meta, payload, _ANSWER_S)

    def _arrives(self, topic: str, mark: int) -> None:
        self._uncertain.discard(topic)
        self._marks[topic] = mark

    def _answered(self, post: Post, call: Call) -> None:
        session = self._session
        if self._restoring.get(post.topic) is not call:
            return  # of a connection that is gone
        if call.error is not None and not isinstance(call.error, RequestError):
            return  # the connection ended with it
        del self._restoring[post.topic]
        if self._values.get(post.topic) is post:
            self._arrives(post.topic, 0)
        if not self._restoring:
            self._restored = session.incarnation
        if call.error is not None:
            session.remark(WARNING, f"after a reconnect: the retained value of {post.topic!r} was not restored: {call.error}")
        elif not map_of(call.meta, call.payload).get("restored") and self._values.get(post.topic) is post:
            self.forget(post.topic)
            session.remark(WARNING, f"after a reconnect: another peer has retained a newer value for {post.topic!r}, which stays")


def _check_argument(payload: bytes, noun: str, who: str, what: str) -> None:
    if len(payload) > ARGUMENT_BYTES:
        raise PayloadError(f"payload of {len(payload)} bytes: a {noun} has at most {ARGUMENT_BYTES}", who=who, what=what)


def _size(post: Post) -> int:
    headers = 0
    if type(post.meta) is dict:
        headers = sum(len(key) + 16 + (len(value) if isinstance(value, (str, bytes)) else 8) for key, value in post.meta.items())
    return len(post.payload) + len(post.topic) + headers + _OVERHEAD_BYTES
