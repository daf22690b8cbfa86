"""request_all(): one request to many, and what came back by the deadline. Part of the session: same lock, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from ipcbus.protocol.errors import Code
from ipcbus.protocol.limits import Limits
from ipcbus.protocol.topics import matches, peer_address

from ._calls import Call
from ._errors import BusError, Expired, NoSuchMethod, NoSuchName, NoSuchPeer, Refused
from ._senders import Sender
from ._session import Session

_MAX_REQUESTS = Limits().max_requests


class Answer(NamedTuple):
    """What one of those who were asked said: ``data``, or the ``error``; ``to`` is the name and method, ``peer`` who it was (0: unknown,
    nobody answered), with ``credentials`` where it answered.
    """

    to: str
    peer: Sender
    data: Any
    error: BusError | None

    def result(self) -> Any:
        """The decoded answer; raises the error."""
        if self.error is not None:
            raise self.error
        return self.data


class Asked(NamedTuple):
    """One that is asked."""

    to: str  #: name and method, as the answer says
    address: str  #: where the request goes
    peer: int  #: who owned the name a moment ago; 0: not looked up


def listed(to: Iterable[str], session: Session) -> list[Asked]:
    """Those whom the caller named one by one; one more than are allowed at most."""
    return [Asked(each, each, 0) for each in islice(to, _most(session) + 1)]


def matching(pattern: str, method: str, names: Iterable[Mapping[str, Any]]) -> list[Asked]:
    """Those of the bus's list of *names* that match and serve *method*: the owner of each, all owners of a shared one."""
    found = []
    for item in names:
        name, owners = item["name"], item["owners"]
        if owners and matches(pattern, name) and ("*" in item["methods"] or method in item["methods"]):
            to = f"{name}/{method}"
            if len(owners) == 1 or item["mode"] != "shared":
                found.append(Asked(to, to, owners[0]))
            else:
                found += [Asked(to, f"{peer_address(peer)}/{method}", peer) for peer in owners]
    return found


class Gathering:
    """The requests of one request_all()."""

    def __init__(self, session: Session, asked: list[Asked], *, by_name: bool) -> None:
        most = _most(session)
        if len(asked) > most or len(asked) + len(session.calls) > most:
            text = f"{len(asked)} requests at once, while {len(session.calls)} wait: the bus allows {most} (limits.max_requests); ask fewer"
            raise Refused(Code.OVER_LIMIT, text, what="request_all")
        self.open = 0  #: how many have not answered
        self.notify: Callable[[], None] | None = None  #: told when all have
        self._session = session
        self._asked = asked
        self._by_name = by_name
        self._calls: list[Call] = []

    def ask(self, data: Any, headers: Mapping[str, Any] | None, timeout_s: float) -> None:
        """Put all requests into the outbox. Raises PayloadError before the first."""
        session = self._session
        meta, payload = session.outbox.encode(data, headers, self._asked[0].to if self._asked else "", "request_all")
        self.open = len(self._asked)
        for asked in self._asked:
            call = Call(session.new_id(), asked.address)
            call.mark = 0  # the long way, which notes who answered
            call.notify = self._settled
            self._calls.append(call)
            session.put_request(call, meta, payload, timeout_s)

    def _settled(self) -> None:
        self.open -= 1
        if not self.open and self.notify is not None:
            self.notify()

    def cancel(self) -> None:
        """Nobody waits any more for those who have not answered: CANCEL."""
        self.notify = None
        for call in self._calls:
            if not call.done:
                self._session.cancel(call)

    def answers(self, timeout_s: float) -> list[Answer]:
        """What came, in the order asked. Who has not answered has an Expired; who matched a pattern and turned out not to serve the
        method, or to have gone before it was asked, is left out.
        """
        answers = []
        for asked, call in zip(self._asked, self._calls, strict=True):
            data = None
            error: BusError | None
            try:
                if not call.done:
                    raise Expired(Code.EXPIRED, f"no answer within {timeout_s:g} s", asked.to)
                data, error = call.result(), None
            except BusError as failure:
                error = failure.about(who=asked.to, what="request_all")
            if self._by_name or not isinstance(error, (NoSuchName, NoSuchMethod, NoSuchPeer)):
                answers.append(Answer(asked.to, call.sender or Sender(asked.peer), data, error))
        return answers


def _most(session: Session) -> int:
    return session.limits.get("max_requests", _MAX_REQUESTS)
