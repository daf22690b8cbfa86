"""What waits to be written, and what waits for a connection.

Owns the encoding of publications and direct messages: consecutive ones to a topic differ only in their payloads, so everything before the
payload is cached by topic and payload size. Every frame carries the sender's id, which a new connection changes; so what is made while
there is no connection waits as values (_waiting.py), and what was encoded but not yet handed to the kernel when a connection ended is
taken apart again and waits too. What the kernel had is not sent again: it is unknown, unless a fence had confirmed it.

Messages are counted without a step for each: a message is two parts of ``out``, all else says in ``control`` how many parts it is. So the
parts that are moved at once tell the messages. A fence (a PING of ours, a request to the bus itself) remembers how many were before it;
its answer says that the bus had those (H-12).

Knows no socket. The shell calls it under the lock of its bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ipcbus.protocol.errors import ProtocolError
from ipcbus.protocol.messages import Kind, Meta
from ipcbus.protocol.payloads import RAW
from ipcbus.protocol.topics import check_name, parse_peer

from ._encoding import Encoding, check_topic, pack_for
from ._errors import BadName, BusError, OutboxFull, bad_name
from ._frames import enough_parts, head_of, messages_in
from ._holds import Holds
from ._packing import CANNOT
from ._waiting import Item, Undelivered, Waiting, size_of

#: A publication that comes so soon after the last one was written begins a burst. Programs that publish thousands of times a second at
#: even distances stay above it; a loop, also one that is preempted now and then, does not.
NEAR_S = 0.000_15
#: In a burst publications wait so long for more.
BURST_S = 0.001
#: A burst goes on while there are so many in each BURST_S.
BURST_MESSAGES = 8
#: Deadlines that are remembered before it is looked which are still needed.
_DEADLINES = 1000
#: Cached heads of frames, of some 100 bytes each.
_HEADS_MAX = 8192

_PLAIN = {False: Kind.PUBLISH, True: Kind.RETAIN}

#: topic -> size of the payload -> all of a PUBLISH before its payload, and with how many parts in ``out`` there are FLUSH_BYTES of such
_Heads = dict[str, dict[int, tuple[bytes, int]]]


class Outbox(Encoding):
    """The bytes that this connection still has to write, and the publications that wait for the next one."""

    __slots__ = (
        "_at", "_begun", "_confirmed", "_control", "_deadlines", "_ended", "_heads_count", "_joining", "_moved", "_prune_at", "_raw",
        "_sending", "_summed", "_unknown", "_value",
        "batching", "control", "holds", "out", "peer", "tight", "waiting",
    )  # fmt: skip

    def __init__(self, waiting: Waiting | None = None) -> None:
        super().__init__()
        self.out: list[bytes] = []  #: parts that make whole frames, not begun (a growing bytearray would copy itself again and again)
        self.control = 0  #: parts in ``out`` that are no messages; whoever adds such to ``out`` itself adds to it in the next step
        self.batching = False  #: a burst: what is buffered is written by the shell's flusher, or when it is much
        self._joining: Sequence[bytes] = ()  #: parts on their way from out to _sending
        self._sending = b""  #: whole frames, written up to _at
        self._at = 0
        self._control = 0  #: parts in _joining that are no messages
        self._moved = 0  #: messages that went from ``out`` to _sending, ever
        self._begun = 0  #: the same when what is in _sending now was not yet there
        self._confirmed = 0  #: of these, in order, that the bus had or that are unknown for good
        self._unknown = 0  #: messages that earlier connections may have lost
        self.tight = False  #: the bus does not read, and much is here: what is put in is looked at first. Then there are no cached heads
        self._summed = (0, 0)  #: parts of ``out``, and their bytes, that stalled() has counted
        self._ended: BusError | None = None
        self._deadlines: list[float] = []  #: of the last POSTs put in, in order: of all that are not handed to the kernel, at least
        self._prune_at = _DEADLINES  #: with so many of them those that are not needed any more go
        self.peer = 0  #: this connection's id; 0 while there is none
        self.waiting = Waiting() if waiting is None else waiting  #: for the next connection; with one, what is held
        self.holds = Holds(self)  #: which topics the bus has publishers wait with
        self._raw: _Heads = {}
        self._value: _Heads = {}
        self._heads_count = 0

    # --- what goes in ---

    def publish(self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None) -> bool:
        """Encode one publication; returns whether the shell has to look after it: write, begin a burst, or find that there is no
        connection.

        Raises BadName, PayloadError or OutboxFull; then nothing was sent.
        """
        if retain or headers is not None:
            return self._publish_slowly(topic, data, retain, headers)
        shape = type(data)
        if shape is bytes:
            payload = data
            heads = self._raw
        elif shape is bytearray or shape is memoryview:
            return self._publish_slowly(topic, data, retain, headers)
        else:
            try:
                payload = self.pack(data)
            except CANNOT:
                payload = pack_for(data, topic)
            heads = self._value
        try:
            head, enough = heads[topic][len(payload)]
        except (KeyError, TypeError):
            pass  # made below, where what goes wrong is no consequence of this
        else:
            frame = head, payload
            out = self.out
            out += frame  # one step without a call since ``out`` was looked at: a signal handler may publish too
            return len(out) >= enough or not self.batching
        meta = RAW if heads is self._raw else None
        self._cache(heads, topic, meta, len(payload))
        return self._put(Kind.PUBLISH, topic, meta, payload)

    def put(self, *frame: bytes) -> None:
        """Send a whole frame that is no message, in one part or several. (*frame* is made before ``out`` is looked at.)"""
        parts = len(frame)
        self.out += frame  # no call from here on: a signal handler may write what is in ``out``
        self.control += parts

    def send(self, to: str, data: Any, headers: Mapping[str, Any] | None) -> bool:
        """Encode one direct message, as publish() does a publication."""
        if not isinstance(to, str):
            raise BadName(f"a message goes to a name or a peer, a str, not {type(to).__name__}", what="send")
        if parse_peer(to) is None:
            try:
                check_name(to)
            except ProtocolError as error:
                raise bad_name(error, to, "send") from error
        meta, payload = self.encode(data, headers, to, "send")
        return self._put(Kind.SEND, to, meta, payload)

    def post(self, topic: str, meta: Meta, payload: bytes, retain: bool, deadline: float | None) -> bool:
        """Publish what is encoded already, as publish() does; with a *deadline* (of the clock of what waits) it is dropped then.

        With a connection only after check_room() and, where there are holds, their keeps().
        """
        waits = not self.peer or topic in self.holds.kept
        if deadline is None:
            if waits:
                return self._wait(_PLAIN[retain], topic, meta, payload)
            return self._append(_PLAIN[retain], (topic, meta), payload)
        if waits:
            return self._wait(Kind.POST, topic, meta, payload, deadline, retain)
        ttl_ms = self.ttl_ms(deadline)
        if ttl_ms == 0:
            self.waiting.expired += 1
            return False
        if len(self._deadlines) >= self._prune_at:
            del self._deadlines[: -self._unsent() or len(self._deadlines)]
            self._prune_at = 2 * len(self._deadlines) + _DEADLINES
        return self._append(Kind.POST, (topic, None, ttl_ms, retain, meta), payload, deadline)

    def ttl_ms(self, deadline: float | None) -> int | None:
        """What is left until *deadline*: 0 when it has come, None without one."""
        if deadline is None:
            return None
        left = deadline - self.waiting.clock()
        return min(max(1, int(left * 1000)), 2**32 - 1) if left > 0 else 0

    def _publish_slowly(self, topic: str, data: Any, retain: bool, headers: Mapping[str, Any] | None) -> bool:
        check_topic(topic)
        meta, payload = self.encode(data, headers, topic, "publish")
        return self._put(_PLAIN[bool(retain)], topic, meta, payload)

    def _put(self, kind: Kind, to: str, meta: Meta, payload: bytes) -> bool:
        if not self.peer:
            return self._wait(kind, to, meta, payload)
        if self.tight:
            self.check_room(to, len(payload), "send" if kind is Kind.SEND else "publish")
        if self.holds.active and kind is not Kind.SEND and self.holds.keeps(to):
            return self._wait(kind, to, meta, payload)
        return self._append(kind, (to, meta), payload)

    def _append(self, kind: Kind, elements: tuple[Any, ...], payload: bytes, *deadline: float) -> bool:
        head = head_of(kind, self.peer, elements, len(payload))
        frame = head, payload
        self._deadlines += deadline  # no call from here on, so that the one is not there without the other
        self.out += frame
        return not self.batching or len(self.out) >= enough_parts(len(head) + len(payload))

    def _cache(self, heads: _Heads, topic: str, meta: Meta, size: int) -> None:
        """Make the head for a topic and size, after the checks that every later publication then passes; without a connection, where
        there is hardly room, or where the topic is held, only the checks.
        """
        check_topic(topic)
        self.check_size(size, topic, "publish")
        if not self.peer or self.tight or (self.holds.active and self.holds.waits(topic)):
            return
        if self._heads_count >= _HEADS_MAX:
            self.forget_heads()
        self._heads_count += 1
        head = head_of(Kind.PUBLISH, self.peer, (topic, meta), size)
        heads.setdefault(topic, {})[size] = head, enough_parts(len(head) + size)

    def forget_heads(self) -> None:
        """Look at each publication again, until its head is made again."""
        self._raw.clear()
        self._value.clear()
        self._heads_count = 0

    def _wait(self, kind: Kind, to: str, meta: Meta, payload: bytes, *more: Any) -> bool:
        if self._ended is not None:
            raise self._ended.again(who=to, what="send" if kind is Kind.SEND else "publish")
        self.waiting.add((kind, to, meta, payload, *more))
        if self.peer and to not in self.holds.kept:
            self.holds.came_late(to)  # a signal handler read WELCOME, or the resume, since it was looked at
        return True

    # --- the connection ---

    def opened(self, peer: int, max_payload_bytes: int) -> int:
        """A connection is ready: encode what waited for it. Returns how many messages are too large for this bus and were dropped.

        Whoever is interrupted finds each message either here or there: no call is made between its coming and its going.
        """
        self.peer = peer
        self.max_payload_bytes = max_payload_bytes
        waiting = self.waiting
        waiting.drop_expired()
        before = waiting.discarded
        while waiting.items:
            item = waiting.items[0]
            size = size_of(item)
            fits = len(item[3]) <= max_payload_bytes
            frame, deadlines = self.frame_of(item)
            if frame:
                self._deadlines += deadlines
                self.out += frame
            elif fits:
                waiting.expired += 1  # meanwhile
            else:
                waiting.discarded += 1
            del waiting.items[0]
            waiting.bytes -= size
        return waiting.discarded - before

    def frame_of(self, item: Item) -> tuple[tuple[bytes, ...], tuple[float, ...]]:
        """The parts of the frame of what waited, and its deadline where it has one; nothing for what this bus does not carry or is too
        old.
        """
        kind, to, meta, payload, *more = item
        elements: tuple[Any, ...] = to, meta
        if more:
            ttl_ms = self.ttl_ms(more[0])
            if ttl_ms == 0:
                return (), ()
            elements = to, None, ttl_ms, more[1], meta
        if len(payload) > self.max_payload_bytes:
            return (), ()
        return (head_of(kind, self.peer, elements, len(payload)), payload), tuple(more[:1])

    def lost(self) -> None:
        """The connection is gone. Publications and direct messages that the kernel never had wait for the next one, in order; everything
        else is void. Done again it does no harm: for who was interrupted, and for what a signal handler put in meanwhile.
        """
        self.peer = 0  # first: what is published from here on waits with the others
        self.holds.lost()
        self.forget_heads()
        unwritten = self._unwritten()
        items = self._with_deadlines([*unwritten, *messages_in(b"".join(self.out), 0)])
        unknown = self._unknown + self._handed(unwritten) - self._confirmed
        mark, waiting = self.mark(), self.waiting
        size, expires = waiting.measure(items)
        older, out, deadlines = deque(items), list[bytes](), list[float]()
        # All at once, without a call: whoever is interrupted finds it as it was before, or as it is after.
        older += waiting.items
        waiting.items = older
        waiting.bytes += size
        waiting.expires = expires
        self._unknown = unknown
        self._begun = self._moved = self._confirmed = mark  # so that a fence of this connection has nothing to say any more
        self.out, self._joining, self._sending, self._deadlines = out, (), b"", deadlines
        self._at = self.control = self._control = 0
        self.batching = self.tight = False
        self._summed = (0, 0)
        self._prune_at = _DEADLINES
        waiting.trim()

    def _with_deadlines(self, unsent: list[Item]) -> list[Item]:
        """The frames know how long they were to live, not until when: of the POSTs put in the last ones are unsent."""
        posts = sum(item[0] is Kind.POST for item in unsent)
        deadlines = iter(self._deadlines[len(self._deadlines) - posts :])
        return [(*item[:4], next(deadlines), item[4]) if item[0] is Kind.POST else item for item in unsent]

    def end(self, error: BusError) -> int:
        """Nothing is sent any more, and who tries gets *error*; returns how many publications and direct messages were never handed to
        the kernel.
        """
        self.lost()
        self._ended = error
        return self.waiting.discard()

    # --- what became of it ---

    def mark(self) -> int:
        """How many messages were put in so far; for a fence that is put in next."""
        return self._moved + (len(self._joining) - self._control + len(self.out) - self.control) // 2

    @property
    def confirmed(self) -> int:
        """The mark up to which the bus had everything, or it is unknown for good."""
        return self._confirmed

    def confirm(self, mark: int) -> None:
        """The answer to a fence came: the bus had what was before its *mark*. One of an earlier connection says nothing new."""
        if mark > self._confirmed:
            self._confirmed = mark

    @property
    def unanswered(self) -> bool:
        """Whether the bus has yet to read, or to confirm, something on this connection."""
        return bool(self._sending) or self.mark() > self._confirmed

    def undelivered(self) -> Undelivered:
        """What waits or was not handed to the kernel yet, and what was and is not confirmed, on this and earlier connections."""
        handed = self._handed(self._unwritten())
        return Undelivered(len(self.waiting) + self.mark() - handed, self._unknown + handed - self._confirmed)

    def _unsent(self) -> int:
        """Messages that the kernel may not have yet, at most."""
        return self.mark() - (self._begun if self._sending else self._moved)

    def _handed(self, unwritten: list[Item]) -> int:
        """Messages of which the kernel had at least a byte, ever."""
        return self._moved - (0 if self._joining else len(unwritten))

    def _unwritten(self) -> list[Item]:
        """The messages between ``out`` and the kernel of which no byte was written."""
        return messages_in(b"".join(self._joining) if self._joining else self._sending, self._at)

    # --- what the bus does not read ---

    def stalled(self) -> None:
        """The kernel took not all. What waits for it has the limits of what waits for a connection; from half of them on each message is
        looked at before it is put in. (So it costs nothing while the bus reads.)
        """
        waiting = self.waiting
        if not self.tight and (2 * self._held() >= waiting.max_bytes or 2 * self._unsent() >= waiting.max_messages):
            self.tight = True
            self.forget_heads()

    def check_room(self, to: str, size: int, what: str) -> None:
        """Raise OutboxFull where the bus does not read and one message more, with a payload of *size* bytes, is over the limits."""
        if not self._sending:
            self.tight = False
        if not self.tight:
            return
        waiting, held, messages = self.waiting, self._held(), self._unsent()
        if held + size > waiting.max_bytes or messages >= waiting.max_messages:
            raise OutboxFull(
                f"the outbox is full: {messages} messages, {held} bytes, wait for a bus that does not read, and one of {size} bytes more "
                f"does not fit (outbox_messages={waiting.max_messages}, outbox_bytes={waiting.max_bytes})",
                who=to,
                what=what,
                hint="This one was not taken, what waits is kept. See why ipcbusd is stuck, or raise outbox_messages= or outbox_bytes=.",
            )

    def _held(self) -> int:
        """As unsent_bytes, while something is blocked: of ``out`` only what came since is counted."""
        parts, size = self._summed
        size += sum(map(len, self.out[parts:]))
        self._summed = len(self.out), size
        return len(self._sending) - self._at + size

    # --- what goes out ---

    def begin(self) -> bytes:
        """The bytes to write next; empty when there are none. Call wrote() with how many the kernel took of them. Only where nothing is
        ``blocked``.
        """
        if not self._joining:
            if not self.out:
                return b""
            self._joining, self.out, self._control, self.control, self._summed = self.out, [], self.control, 0, (0, 0)
        messages = (len(self._joining) - self._control) // 2
        data = self._sending = b"".join(self._joining)  # interrupted here by a signal handler, it is done again
        self._joining, self._control, self._begun, self._moved = (), 0, self._moved, self._moved + messages
        return data

    def chunk(self) -> memoryview:
        """As begin(), also where something is blocked."""
        if not self._sending:
            self.begin()
        return memoryview(self._sending)[self._at :]

    def wrote(self, count: int) -> None:
        """The kernel took *count* bytes of chunk()."""
        self._at += count
        if self._at >= len(self._sending):
            self._sending = b""
            self._at = 0

    def interrupted(self) -> None:
        """A write was interrupted, and nobody knows what of it the kernel has: it is unknown, for sent again it might come twice. The
        connection ends now.
        """
        self._at = len(self._sending)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of this connection that the kernel does not have yet."""
        return len(self._sending) - self._at + sum(map(len, self._joining)) + sum(map(len, self.out))

    @property
    def blocked(self) -> bool:
        """Whether the kernel took only a part: writing goes on when the socket is writable."""
        return bool(self._sending)

