"""Monitors: who sees what passes over the bus, and cannot slow it (section 14).

A monitor is a lane: its copies are publications of the bus that wait, are lost and are counted as all others. Publications to what it
looks at have a route of their own class (`routing`), so that those to anything else cost what they did before. The handlers of directed
frames are changed for others that tell of them, while there is somebody to tell. What is looked at is counted in frames a second, for all
monitors together, and the sender does not pay for it; what comes beyond that is counted as lost and not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any

from ..policy.redaction import Redaction
from ..protocol.errors import Code, ProtocolError
from ..protocol.limits import MONITOR_BURST_S, MONITOR_NAMES, MONITOR_PAYLOAD_BYTES, MONITOR_TELL_S, READ_BYTES, Limits
from ..protocol.messages import Frame, Kind, Meta, clip_text, encode_with_payload, pack
from ..protocol.payloads import encoding_of
from ..protocol.topics import BUS_NAME, MONITOR_TOPIC, parse_peer, peer_address
from ..protocol.walking import frame_end, head_of
from .backlogs import Backlog
from .deadlines import Deadlines
from .delivery import Delivery
from .effort import ENDS_AT_ONCE
from .lanes import Lane
from .peers import Peer, Piece
from .requests import Pending
from .routing import PublishRoute, RouteTable
from .terms import Terms

if TYPE_CHECKING:
    from .calls import Calls
    from .refusals import Refusals

#: What may be looked at: kinds of section 3, and what the bus answers with an ERROR (M-3).
KINDS = ("publish", "retain", "send", "request", "reply", "part", "error", "cancel")

Handler = Callable[[Peer, Frame], None]
Content = dict[str, Any]


class Monitor(Lane):
    """A lane for what others send."""

    __slots__ = ("kinds", "missed", "missed_bytes", "payloads", "refilled_at", "skipping", "tokens", "unseen")
    watches = True

    def __init__(
        self, peer: Peer, number: int, pattern: str, credit: int, limits: Limits, *, terms: Terms, kinds: Iterable[str], payloads: bool
    ) -> None:
        super().__init__(peer, number, pattern, credit, terms)
        self.kinds = frozenset(kinds)
        self.payloads = payloads
        self.tokens = inf  #: how many frames it may look at, as of ``refilled_at``; at first all that it may at once
        self.refilled_at = 0.0
        self.skipping = False  #: it had too few: it goes on when it has half of what it may have at once, and not for each one
        self.missed = 0  #: frames that it did not look at and that are not in the books yet; it is in `Monitors.untold` then
        self.missed_bytes = 0
        self.unseen = Backlog(self, None, peer, terms.resolve(limits))  #: where what it did not look at is counted; nothing waits in it


class Monitors:
    """All monitors of the bus. Nothing here raises but `add`."""

    def __init__(self, limits: Limits, routes: RouteTable, delivery: Delivery, peers: dict[int, Peer], now: float) -> None:
        self.limits = limits
        self.untold: Deadlines[Monitor] = Deadlines()  #: those that did not look at something, and when they are told at the latest
        self._routes = routes
        self._delivery = delivery
        self._peers = peers
        self._started_at = now
        self._all: dict[Monitor, None] = {}
        self._redaction = Redaction()
        self._known: dict[tuple[str, ...], tuple[tuple[Monitor, ...], bool]] = {}  #: found before, by names: `_judged`
        self._taps: dict[Kind, tuple[Handler, Handler]] = {}  #: of directed frames: the handler, and the one that tells of it
        self._handlers: dict[Kind, Handler] = {}
        self._calls: Calls | None = None

    def __len__(self) -> int:
        return len(self._all)

    @property
    def redaction(self) -> Redaction:
        """What of topics and names no monitor sees but that and how much it is (M-5)."""
        return self._redaction

    @redaction.setter
    def redaction(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._known = {}

    def attach(self, handlers: dict[Kind, Handler], calls: Calls, refusals: Refusals) -> None:
        """The places in which directed frames pass."""
        self._handlers, self._calls = handlers, calls
        taps = dict.fromkeys((Kind.REPLY, Kind.PART, Kind.ERROR), self._on_answer) | {
            Kind.REQUEST: self._on_request,
            Kind.CANCEL: self._on_cancel,
        }
        self._taps = {kind: (handlers[kind], tap) for kind, tap in taps.items()}
        refusals.told = self._refused
        calls.told = self._failed

    # --- who monitors -----------------------------------------------------------------------------

    def add(self, monitor: Monitor) -> None:
        """One more. Raises ``bad_topic``, ``over_limit``."""
        if len(self._all) >= self.limits.max_monitors:
            raise ProtocolError(Code.OVER_LIMIT, f"the bus has {len(self._all)} monitors: no more are allowed (limits.max_monitors)")
        self._routes.watch(monitor)
        self._all[monitor] = None
        self._changed()

    def remove(self, monitor: Monitor) -> int:
        """One less; how many frames it did not look at and was not told of."""
        self._book(monitor)
        self.untold.stop(monitor)
        self._routes.unwatch(monitor)
        del self._all[monitor]
        self._changed()
        return monitor.unseen.untold()

    def _changed(self) -> None:
        self._known = {}
        for kind, (handler, tap) in self._taps.items():
            self._handlers[kind] = tap if self._all else handler
        if self._calls is not None:
            self._calls.give = self._give if self._all else self._calls.send

    # --- runs -------------------------------------------------------------------------------------

    def publication(self, route: PublishRoute, piece: Piece, count: int) -> None:
        """*count* frames, all to one topic of one sender, were published by a route that has monitors."""
        kind, sender, topic, meta, span = head_of(piece)
        receivers = len(route.lanes) + len(route.groups)
        self._run(route.monitors, Kind(kind), (topic,), piece, count, (sender, topic, meta, span), {"receivers": receivers})

    def _give(self, peer: Peer, to: str, piece: Piece, size: int, count: int) -> None:
        """In the place of `Calls.send`."""
        assert self._calls is not None
        names = self._names_at(to.partition("/")[0])  # what has a method is refused, and shown as what it was meant for
        monitors, _ = self._judged(names)
        more: Content = {}
        try:
            more["receiver"] = self._calls.send(peer, to, piece, size, count).id
        finally:  # also where it is refused, before the answer
            if monitors:
                _, _, _, meta, span = head_of(piece)
                self._run(monitors, Kind.SEND, names, piece, count, (peer.id, to, meta, span), more)

    def _run(
        self,
        monitors: tuple[Monitor, ...],
        kind: Kind,
        names: tuple[str, ...],
        piece: Piece,
        count: int,
        head: tuple[int, str, Meta, int],
        more: Content,
    ) -> None:
        sender, to, meta, span = head
        _, hidden = self._judged(names)

        def copies(payloads: bool, most: int) -> list[bytes]:
            made: list[bytes] = []
            at = 0
            while len(made) < most:
                end = frame_end(piece, at)
                payload = None if hidden or not payloads else piece[at + span : min(end, at + span + MONITOR_PAYLOAD_BYTES)]
                made.append(self._copy(kind, sender, to, meta, end - at - span, payload, hidden, more))
                at = end
            return made

        self._show(monitors, kind, sender, count, len(piece), copies)

    # --- directed frames --------------------------------------------------------------------------

    def _on_request(self, peer: Peer, frame: Frame) -> None:
        _, _, to, request, _, meta = frame.elements
        names = self._names_at(to.partition("/")[0])
        more: Content = {"id": request}
        if names == (BUS_NAME,):  # before what it does
            self._frame(frame, peer.id, to, meta, names, more)
            self._taps[Kind.REQUEST][0](peer, frame)
            return
        try:
            self._taps[Kind.REQUEST][0](peer, frame)
            pending = (peer.calls or {}).get(request)
            if pending is not None:
                pending.names = names
                more["receiver"] = pending.callee.id
        finally:  # also where it is refused, before the answer
            self._frame(frame, peer.id, to, meta, names, more)

    def _on_answer(self, peer: Peer, frame: Frame) -> None:
        to, request = frame.elements[2], frame.elements[3]
        number = parse_peer(to)
        requester = self._peers.get(number) if number is not None else None
        pending = (requester.calls or {}).get(request) if requester is not None else None
        names = self._asked(pending) if pending is not None else ()
        self._taps[frame.kind][0](peer, frame)  # what is refused is nobody's answer
        if pending is not None:
            more = {"id": request, "request": pending.to}
            if frame.kind is Kind.ERROR:
                more["code"] = frame.elements[4]
                if not self._judged(names)[1]:
                    more["text"] = frame.elements[5]
            self._frame(frame, peer.id, to, frame.elements[-1], names, more)

    def _on_cancel(self, peer: Peer, frame: Frame) -> None:
        to, request = frame.elements[2], frame.elements[3]
        pending = (peer.calls or {}).get(request)
        names = self._asked(pending) if pending is not None and pending.to == to else ()
        self._taps[Kind.CANCEL][0](peer, frame)
        self._frame(frame, peer.id, to, None, names, {"id": request})

    def _frame(self, frame: Frame, sender: int, to: str, meta: Meta, names: tuple[str, ...], more: Content) -> None:
        monitors, hidden = self._judged(names)
        size = frame.payload_size

        def copies(payloads: bool, most: int) -> list[bytes]:
            begin = len(frame.raw) - size
            payload = None if hidden or not payloads else frame.raw[begin : begin + min(size, MONITOR_PAYLOAD_BYTES)]
            return [self._copy(frame.kind, sender, to, meta, size, payload, hidden, more)]

        self._show(monitors, frame.kind, sender, 1, len(frame.raw), copies)

    # --- what the bus says ------------------------------------------------------------------------

    def _failed(self, pending: Pending, code: Code, text: str) -> None:
        """The bus settled a request with an error."""
        if self._all:
            self._error(pending.requester, pending.id, pending.to, 1, code, text, self._asked(pending))

    def _refused(self, peer: Peer, kind: Kind, to: str, request: int, count: int, error: ProtocolError) -> None:
        """The bus answered frames with an error."""
        if self._all:
            names = (to,) if kind in (Kind.PUBLISH, Kind.RETAIN, Kind.POST) else self._names_at(to.partition("/")[0])
            self._error(peer, request, to, count, error.code, error.text, names)

    def _error(self, peer: Peer, request: int, about: str, count: int, code: Code, text: str, names: tuple[str, ...]) -> None:
        more: Content = {"id": request, "request": about, "code": code.value, "count": count}
        monitors, hidden = self._judged(names)
        if not hidden:
            more["text"] = clip_text(text)

        def copies(payloads: bool, most: int) -> list[bytes]:
            return [self._copy(Kind.ERROR, 0, peer_address(peer.id), None, 0, None, hidden, more)]

        self._show(monitors, Kind.ERROR, 0, 1, 0, copies)

    # --- by which names ---------------------------------------------------------------------------

    def _asked(self, pending: Pending) -> tuple[str, ...]:
        """By which names what answers a request is judged: as the request was, whatever names its callee has taken or given up since.
        Where nobody looked at that, and it went to a peer address, these are not known: nobody looks at this either."""
        target = pending.to.partition("/")[0]
        return getattr(pending, "names", () if target.startswith(":") else (target,))

    def _names_at(self, target: str) -> tuple[str, ...]:
        """By which names a frame to *target* is judged: a name by itself, a peer address by all names of the peer (M-2)."""
        number = parse_peer(target)
        peer = self._peers.get(number) if number is not None else None
        return tuple(peer.claims) if peer is not None and peer.claims else (target,)

    def _judged(self, names: tuple[str, ...]) -> tuple[tuple[Monitor, ...], bool]:
        """Who looks at a frame that is judged by *names*, and whether its payload stays out."""
        found = self._known.get(names)
        if found is None:
            if len(self._known) >= self.limits.max_route_cache:
                self._known.clear()
            found = self._known[names] = self._watching(names), self._hides(names)
        return found

    def _watching(self, names: tuple[str, ...]) -> tuple[Monitor, ...]:
        """The monitors that look at all of *names*; of many names only those that look at everything."""
        if len(names) > MONITOR_NAMES:
            return tuple(monitor for monitor in self._all if monitor.pattern == ">")
        if not names:
            return ()
        first, *others = (self._routes.watching(name) for name in names)
        return tuple(monitor for monitor in first if all(monitor in looking for looking in others))

    def _hides(self, names: tuple[str, ...]) -> bool:
        """M-5: one of the names is redacted, or it is for the bus, whose methods carry what others publish."""
        if BUS_NAME in names:
            return True
        if not self._redaction.patterns:
            return False
        return len(names) > MONITOR_NAMES or any(map(self._redaction.hides, names))

    # --- copies -----------------------------------------------------------------------------------

    def _copy(
        self, kind: Kind, sender: int, to: str, meta: Meta, size: int, payload: Piece | None, hidden: bool, more: Content
    ) -> bytes:
        """A frame for monitors (M-3). *payload* is cut to what it may have of it; None: it has none."""
        content: Content = {
            "at_s": round(self._delivery.now - self._started_at, 6),
            "kind": kind.name.lower(),
            "sender": sender,
            "to": to,
            "meta": encoding_of(meta) if hidden else meta,
            "size": size,
            "redacted": hidden,
            **more,
        }
        if payload is not None:
            content["payload"] = bytes(payload)
            content["clipped"] = len(payload) < size
        return encode_with_payload(pack(content), Kind.PUBLISH, 0, MONITOR_TOPIC, None)

    def _show(
        self,
        monitors: tuple[Monitor, ...],
        kind: Kind,
        sender: int,
        count: int,
        size: int,
        copies: Callable[[bool, int], list[bytes]],
    ) -> None:
        """Give the first of *count* frames of *sender*, as many as each may see, to those that want the kind; the rest is lost to it."""
        word, now = kind.name.lower(), self._delivery.now
        rate = self.limits.max_monitor_rate / len(self._all)
        most = max(rate * MONITOR_BURST_S, 1.0)
        enough = max(most / 2, 1.0)
        looks: list[tuple[Monitor, int]] = []
        for monitor in monitors:
            if word in monitor.kinds:
                tokens = min(monitor.tokens + (now - monitor.refilled_at) * rate, most)
                if monitor.skipping and tokens < enough:
                    self._skip(monitor, count, size)
                    continue
                looked = min(count, int(tokens))
                monitor.tokens, monitor.refilled_at, monitor.skipping = tokens - looked, now, looked < count
                looks.append((monitor, looked))
                self._delivery.losses.counters.offered += looked
        for payloads in (False, True):
            some = [(monitor, looked) for monitor, looked in looks if monitor.payloads is payloads]
            longest = max((looked for _, looked in some), default=0)
            made = copies(payloads, longest) if longest else []
            for monitor, looked in some:
                if looked:
                    self._delivery.introduce_number(sender, monitor.peer)  # I-1
                self._offer(monitor, made[:looked])
                if looked < count:
                    self._skip(monitor, count - looked, size * (count - looked) // count)

    def _offer(self, monitor: Monitor, copies: list[bytes]) -> None:
        """Put them into its output or queue, in pieces that overdraw no more than others do (L-5)."""
        if copies and monitor in self.untold:
            self.untold.stop(monitor)
            self._tell(monitor)
        begin = 0
        while begin < len(copies):
            end, size = begin + 1, len(copies[begin])
            while end < len(copies) and size + len(copies[end]) <= READ_BYTES:
                size += len(copies[end])
                end += 1
            self._delivery.offer((monitor,), b"".join(copies[begin:end]), size, end - begin, None)
            begin = end

    # --- what was not looked at -------------------------------------------------------------------

    def _skip(self, monitor: Monitor, count: int, size: int) -> None:
        """Too many: they are lost to it. That is all that is done for each; the books have them when it is told, within a moment."""
        if not monitor.missed and monitor not in self.untold:
            self.untold.start(monitor, self._delivery.now + MONITOR_TELL_S)
        monitor.missed += count
        monitor.missed_bytes += size

    def _book(self, monitor: Monitor) -> None:
        """Let the books have what it missed: behind what waits, where something does."""
        count, size = monitor.missed, monitor.missed_bytes
        if count:
            monitor.missed = monitor.missed_bytes = 0
            self._delivery.losses.counters.offered += count
            about = f"it may look at {self.limits.max_monitor_rate / len(self._all):g} frames a second (limits.max_monitor_rate)"
            self._delivery.miss(monitor.backlog or monitor.unseen, count, size, about)

    def book_all(self) -> None:
        """Let the books have what all have missed."""
        for monitor in self._all:
            self._book(monitor)

    def _tell(self, monitor: Monitor) -> None:
        """Tell it of what it missed; where something waits it is told behind that."""
        self._book(monitor)
        self._delivery.tell_missed(monitor.unseen, monitor)

    def due(self, now: float) -> None:
        """Tell those that did not look at something a moment ago."""
        for monitor in self.untold.due(now, ENDS_AT_ONCE):
            self._tell(monitor)
