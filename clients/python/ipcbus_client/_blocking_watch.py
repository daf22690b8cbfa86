"""``watch()`` and ``wait_for_name()`` of a blocking `Bus`. The same names in the same order as _aio_watch.py; what decides is in
_watching.py and _owners.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _names
from ._blocking_streams import Subscription
from ._errors import Closed, ConnectionLost, Timeout
from ._lanes import Lane
from ._message import Message
from ._owners import names_query, owner_in, owner_told, owner_topic, unowned
from ._watching import Change, Watching

if TYPE_CHECKING:
    from ._blocking_messages import BusMessages

#: What the bus sends ahead. It only sends more when this was read, whatever it keeps.
WINDOW_BYTES = 1024 * 1024


class Watch:
    """The state of what is retained under a pattern: ``for change in watch`` gives what there is, then each change. It ends when it
    or the bus is closed. Thread-safe; several threads
    share the changes.

    The memory that it needs is that of what the bus keeps for the pattern, and at most twice that while publishers fill a bus that keeps no
    more.
    """

    def __init__(self, bus: BusMessages, lane: Lane) -> None:
        self._bus = bus
        self._lane = lane
        self._stream = Subscription(bus, lane, None)
        self._watching = Watching(bus._session.epoch)

    def __iter__(self) -> Iterator[Change]:
        while True:
            try:
                change = self.get()
            except Closed:
                if self._lane.error is not None:
                    raise
                return
            yield change

    def get(self, timeout: float | None = None) -> Change:
        """The next change. Raises Timeout after *timeout* seconds (None: never), Closed or what ended the watch when nothing more will
        come.
        """
        _names.check_timeout(timeout)
        deadline = None if timeout is None else self._bus._now() + timeout
        while (change := self._change()) is None:
            self._more(deadline)
        return change

    def close(self) -> None:
        """End it. Idempotent."""
        self._stream.close()

    @property
    def state(self) -> dict[str, Any]:
        """What is retained, by topic: complete from the beginning, then with every change that was taken (and perhaps those that follow at
        once, as after a reconnect). A copy. Raises PayloadError where one of the values is not what it should be; ``messages`` has them
        undecoded.
        """
        return {topic: message.data for topic, message in self.messages.items()}

    @property
    def messages(self) -> dict[str, Message]:
        """As ``state``, with the messages that the values came with."""
        with self._bus._lock:
            return dict(self._watching.state)

    @property
    def pattern(self) -> str:
        """The pattern watched."""
        return self._lane.pattern

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""
        return self._lane.closed

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:  # what goes on here must not wait for a bus that is stopped
            self._stream._leave()

    def __repr__(self) -> str:
        return f"<Watch {self._lane.pattern!r}>"

    # --- inside ---

    def _begin(self, deadline: float) -> None:
        """Subscribe, and take in what there is."""
        bus = self._bus
        with bus._lock:
            bus._declared(bus._session.declarations.subscribe(self._lane), "subscribe", self._lane.number)
        while not self._watching.complete:
            if not self._take():
                self._more(deadline)

    def _change(self) -> Change | None:
        """The next change where there is one."""
        changes = self._watching.changes
        change = None
        try:
            with self._bus._lock:  # so that changes keep their order where several threads take them
                while not changes and self._take():
                    pass
                if changes:
                    change = changes[0]  # no call until it is out: a signal handler would run after that
                    del changes[0]
            return change
        except BaseException:  # of a signal handler
            if change is not None:
                changes.appendleft(change)
            raise

    def _take(self) -> bool:
        """Take in one item of the stream, if there is one."""
        bus, lane = self._bus, self._lane
        with bus._lock:
            if not lane.messages:
                return False
            try:
                self._watching.take(lane.messages.popleft())
            except BaseException:  # of a signal handler: what was taken is missing
                self._watching.uncertain = True
                raise
            finally:
                if self._watching.uncertain and not lane.closed:
                    self._watching.begin(bus._session.epoch)
                    bus._session.declarations.subscribe_anew(lane)
                    bus._wire.push()
            return True

    def _more(self, deadline: float | None) -> None:
        """Wait for more of the stream; raises at the deadline or the end."""
        if not self._stream._more(deadline):
            if self._lane.closed:
                raise self._lane.ended()
            raise Timeout(f"no change under {self._lane.pattern!r} in time", who=self._lane.pattern, what="get")


def watch(bus: BusMessages, pattern: str, type: Any) -> Watch:
    """Bus.watch()."""
    _names.check_subscription(pattern, None, WINDOW_BYTES, 1)
    bus._session.check_open()
    lane = Lane(bus._session.new_id(), pattern, window_bytes=WINDOW_BYTES, notices=True)
    lane.snapshots = True
    if type is not None:
        lane.has_type(type)
    made = Watch(bus, lane)
    try:
        made._begin(bus._now() + bus._patience())
    except BaseException:
        made._stream._leave()
        raise
    return made


def wait_for_name(bus: BusMessages, name: str, timeout: float | None) -> int:
    """Bus.wait_for_name(). It listens before it looks, and looks again where it may have missed something."""
    _names.check_name(name, "wait_for_name")
    _names.check_timeout(timeout)
    session = bus._session
    session.check_open()
    deadline = None if timeout is None else bus._now() + timeout
    answer_by = None if deadline is None else deadline + _names.GRACE_S
    lane = Lane(session.new_id(), owner_topic(name), window_bytes=WINDOW_BYTES, notices=True)
    told = Subscription(bus, lane, None)
    try:
        with bus._lock:
            bus._declared_by(answer_by, session.declarations.subscribe(lane), "subscribe", lane.number)
        while True:
            owner = _look(bus, name, answer_by)
            while owner is None:
                item: Any = told.get(None if deadline is None else max(deadline - bus._now(), 0.0))
                if not isinstance(item, Message):
                    break
                owner = owner_told(item)
            if owner is not None:
                return owner
    except Timeout as error:
        raise unowned(name, timeout, error) from None
    finally:
        told._leave()


def _look(bus: BusMessages, name: str, deadline: float | None) -> int | None:
    """Who owns *name* now; also None where the connection is lost, of which the stream says when it is back."""
    with bus._lock:
        try:
            if not bus._wire.wait_connected(deadline):
                raise Timeout("not connected")
            call = bus._session.request("bus/names", names_query(name), None, _names.FOREVER_S)
            return owner_in(bus._wait(call, deadline).result(), name)
        except ConnectionLost:
            return None
