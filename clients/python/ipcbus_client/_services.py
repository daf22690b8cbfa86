"""The methods that this program serves: which handler a request is for, and its answer (R-1 to R-4). Part of the session: same lock, no
I/O.

Handlers are opaque here: the shell makes them, takes (handler, request) pairs from ``requests``, runs them where no lock is held, and
gives back the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ipcbus.protocol.limits import ERROR_CODE_MAX_BYTES
from ipcbus.protocol.messages import Kind, clip_text, encode_with_payload
from ipcbus.protocol.topics import is_name, peer_address

from ._calls import WARNING, Call
from ._errors import ServiceError
from ._heads import HEADS_MAX, Head, call_head
from ._message import Request, of_senders
from ._parts import Production, is_generator
from ._refusal import Refusal
from ._senders import Senders
from ._state import State

if TYPE_CHECKING:
    from ._session import Session

#: Payloads of requests that came and were not answered, and answers that are not sent: neither a handler that is stuck nor a bus that does
#: not read may fill the memory. Where the bus carries larger payloads than half of it, it is two of those.
REQUESTS_MAX_BYTES = 64 * 1024 * 1024
ANY = "*"  #: the method that serves every method without a handler of its own


class Services:
    """The served methods of one session, and the requests at work."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.request_class: type[Any] = Request  #: a shell has one of its own, which can wait
        self._make: type[Any] = Request  #: that, of those who are known to this bus
        #: for the shell; bounded by the bus's limit of requests in flight at one callee
        self.requests: deque[tuple[Any, Any]] = deque()
        self._handlers: dict[str, dict[str, Any]] = {}
        self._found: dict[str, Any] = {}  #: what find() said, until a handler comes or goes
        self._active: dict[tuple[int, int], Request] = {}
        self._heads: dict[int, Head] = {}  #: of REPLYs, by requester
        self._came_bytes = 0  #: of requests at work and of answers that are not sent, at most; made exact when it reaches the limit
        self.max_bytes = REQUESTS_MAX_BYTES
        #: for the shell: a handler returned a generator as its answer
        self.on_generator: Callable[[Request, Any], None] = _nobody

    def meet(self, senders: Senders) -> None:
        """Requests that come from now on are of *senders*."""
        self._make = of_senders(self.request_class, senders)

    def add(self, name: str, method: str, handler: Any) -> None:
        """Requests to ``name/method`` are for *handler* from now on."""
        self._found.clear()
        self._handlers.setdefault(name, {})[method] = handler

    def begin(self, name: str, said: Mapping[str, Mapping[str, Any] | None], handler: Any, claim: str | None) -> list[Call]:
        """Requests to the methods of *name* of which *said* has what introspection shows are for *handler* from now on; the calls that tell
        the bus, with *claim* first that the name is owned in that mode. They are made without waiting for each other's answers: a caller
        who sees the name finds its methods. Raises PayloadError; then, and where a call fails, it is for end() to take back the rest.
        """
        for method in said:
            self.add(name, method, handler)
        declarations = self._session.declarations
        calls = [] if claim is None else [declarations.own(name, claim, False, False)]
        calls += [declarations.serve(name, method, about) for method, about in said.items()]
        return calls

    def end(self, name: str, methods: Iterable[str], handler: Any, claimed: bool) -> list[Call]:
        """*handler* takes no more requests to *methods* of *name*; the calls that tell the bus. A name that begin() *claimed* is given up
        where nothing else is served under it. Idempotent; what another handler took over is not touched.
        """
        self._found.clear()
        handlers = self._handlers.get(name, {})
        ours = [method for method in methods if handlers.get(method) is handler]
        for method in ours:
            del handlers[method]
        if not handlers:
            self._handlers.pop(name, None)
        if not ours or self._session.state is State.CLOSED:
            return []
        withdraw = self._session.declarations.withdraw
        calls = [withdraw("own", name)] if claimed and not handlers else []
        calls += [withdraw("serve", name, method) for method in ours]  # (the bus, and withdraw(), have forgotten those of a name given up)
        return [call for call in calls if call is not None]

    def find(self, to: str) -> Any:
        """The handler for a REQUEST's *to*, or None. A peer address means any name (R-1)."""
        target, _, method = to.partition("/")
        tables = self._handlers.values() if target.startswith(":") else (self._handlers.get(target, {}),)
        for wanted in (method, ANY):
            for table in tables:
                if wanted in table:
                    return table[wanted]
        return None

    @property
    def at_work(self) -> int:
        """Requests that came and were not answered yet."""
        return len(self._active)

    def take(self, envelope: tuple[Any, ...]) -> None:
        """A REQUEST came."""
        request = self._make(envelope, self._session.epoch)
        self._active[request.peer, request.id] = request
        self._came_bytes += len(request.payload)
        if self._came_bytes > self.max_bytes and self._overloaded(request):
            return
        try:
            handler = self._found[request.to]
        except KeyError:
            handler = self.find(request.to)
            if handler is None:
                self.fail(request, "NoSuchMethod", f"{request.to} is not served any more")
                return
            if len(self._found) >= HEADS_MAX:
                self._found.clear()
            self._found[request.to] = handler
        self.requests.append((handler, request))

    def _overloaded(self, request: Request) -> bool:
        """Whether *request* has to be refused, because it is too much beside what is here."""
        text = self._too_much(request.to)
        if text is None:
            return False
        self._came_bytes -= len(request.payload)
        self.fail(request, "overloaded", text)
        return True

    def keep(self, size: int, to: str) -> None:
        """So many bytes more of a list of values are kept for the answer to a request; raises ServiceError where it is too much."""
        self._came_bytes += size
        if self._came_bytes > self.max_bytes:
            text = self._too_much(to)
            if text is not None:
                raise ServiceError("overloaded", text)

    def _too_much(self, to: str) -> str | None:
        """What is here, where it is more than may be: requests whose handlers are stuck, or slow, with what is kept of their answers, and
        answers that the bus does not take. Counts, and makes the sum exact.
        """
        session = self._session
        at_work = sum(len(other.payload) + (other.production.held_bytes if other.production else 0) for other in self._active.values())
        unsent = session.outbox.unsent_bytes
        self._came_bytes = at_work + unsent
        allowed = max(self.max_bytes, 2 * session.outbox.max_payload_bytes)  # the largest request is served, also beside another
        if self._came_bytes <= allowed:
            return None
        text = f"{allowed} bytes of requests and answers may be here; with this there would be {at_work} at work and {unsent} to be sent"
        if not session.counters["overloaded"]:
            session.remark(WARNING, f"a request to {to} is refused, as further ones will be, which are only counted: {text}")
        session.counters["overloaded"] += 1
        return text

    def allow(self, envelope: tuple[Any, ...]) -> None:
        """ALLOW came (R-6): credit for the parts of an answer, perhaps before its handler began."""
        _, sender, _, identity, size = envelope
        request = self._active.get((sender, identity))
        if request is not None:
            self.production(request).allow(size)

    def production(self, request: Request) -> Production:
        """The way for the values of a generator to become the answer to *request*."""
        if request.production is None:
            request.production = Production(self._session, request)
        return request.production

    def stop_producing(self) -> None:
        """The bus is being closed: generators end now, for their requesters may take them as slowly as they like."""
        for key, request in list(self._active.items()):
            if request.production is not None and request.production.wake is not None:
                del self._active[key]
                request.cancel()

    def cancel(self, sender: int, identity: int) -> None:
        """CANCEL came (R-3): nobody waits for the answer."""
        request = self._active.pop((sender, identity), None)
        if request is not None:
            request.cancel()

    def lost(self) -> None:
        """The connection is gone, and with it whoever waits for an answer on it."""
        active, self._active = self._active, {}
        self.requests.clear()
        self._heads.clear()
        for request in active.values():
            request.cancel()

    def reply(self, request: Request, value: Any) -> None:
        """The answer of a handler. Does nothing where nobody waits for it. Raises PayloadError where *value* cannot be sent."""
        session = self._session
        outbox = session.outbox
        key = request.peer, request.id
        if request.cancelled or request.epoch != session.epoch or self._active.get(key) is not request:
            return
        meta, payload = (1, value) if type(value) is bytes else outbox.encode(value, None, request.to, "reply")
        size = len(payload)
        if size > outbox.max_payload_bytes:
            outbox.check_size(size, request.to, "reply")
        peer, identity = key
        head = self._heads.get(peer)
        if head is None or not head[2] <= identity <= head[3]:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            head = self._heads[peer] = call_head(identity, Kind.REPLY, session.peer, peer_address(peer))
        pack, before, _, _, base, after, after_raw, _ = head
        del self._active[key]
        self._came_bytes += size
        frame = pack(0xCE, base + size, before, identity, after_raw if meta else after, size), payload
        out = outbox.out
        out += frame
        outbox.control += 2

    def refuse(self, request: Request, said: Refusal) -> str | None:
        """A handler raised what refusal() has *said*: send it as ERROR. Returns the text for the log where it is a fault."""
        if said.fault is not None:
            self._session.counters["handler_errors"] += 1
        self.fail(request, said.code, said.text, said.about)
        return said.fault

    def fail(self, request: Request, code: str, text: str, about: bytes = b"") -> None:
        """Answer with an ERROR of our own, with *about* as its payload; a code that E-1 does not allow becomes ``Error``."""
        if len(code) > ERROR_CODE_MAX_BYTES or not is_name(code):
            code = "Error"
        if self.wants(request):
            self._put(request, about, Kind.ERROR, code, clip_text(text), None)

    def answer(self, request: Request, value: Any) -> BaseException | None:
        """reply(); returns why *value* cannot be sent, which is for refuse(), or None. A generator cannot be sent either: its values are
        the answer (looked for here, for most answers are none).
        """
        try:
            self.reply(request, value)
        except Exception as error:  # noqa: BLE001  # the border to user code: a PayloadError whose cause has no words, for example
            if not is_generator(value):
                return error
            self.on_generator(request, value)
        return None

    def reply_packed(self, request: Request, payload: bytes) -> None:
        """The answer, as msgpack already. Does nothing where nobody waits for it."""
        if self.wants(request):
            self._put(request, payload, Kind.REPLY, None)

    def wants(self, request: Request) -> bool:
        """Whether somebody still waits for the answer."""
        return not request.cancelled and request.epoch == self._session.epoch and self._active.get((request.peer, request.id)) is request

    def _put(self, request: Request, payload: bytes, kind: Kind, *rest: Any) -> None:
        del self._active[request.peer, request.id]
        self._came_bytes += len(payload)
        session = self._session
        session.outbox.put(encode_with_payload(payload, kind, session.peer, peer_address(request.peer), request.id, *rest))


def _nobody(request: Request, generator: Any) -> None:
    """No shell."""
