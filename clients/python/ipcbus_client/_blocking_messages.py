"""Messages of a blocking `Bus`: published, retained, subscribed to, sent. The same names in the same order as _aio_messages.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

from . import _blocking_monitor, _blocking_watch, _names
from ._blocking_monitor import Monitor
from ._blocking_requests import BusRequests
from ._blocking_streams import Inbox, Subscription
from ._blocking_watch import Watch
from ._errors import OutboxFull
from ._lanes import INBOX, Lane
from ._message import Message, converter, typed_message
from ._policies import Limits, check_policy
from ._session import INBOX_MAX_BYTES


class BusMessages(BusRequests):
    """Messages, by topic and to one peer."""

    def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        retain: bool = False,
        headers: Mapping[str, Any] | None = None,
        confirm: bool = False,
        ttl: float | None = None,
        bound: bool = False,
    ) -> int | None:
        """Publish *data* (bytes-like objects as they are, all else as msgpack) to *topic*; with *retain* the bus keeps it for who
        subscribes later. Besides what msgpack has it may be or contain dataclasses, aware datetimes, dates, times, timedeltas, Decimals,
        UUIDs, paths, Enums, sets and buffers; who wants these back subscribes with a type.

        Sent at once, or within a millisecond where it follows within 0.15 ms on others. While a slow subscription holds the topic (policy
        ``block`` of subscribe(); holds() says which) it waits until that has room, up to the connect timeout, then OutboxFull says who it
        is; connect()'s *outbox* may have it raise at once, or drop some. In user code it lends its thread meanwhile. Across a reconnect:
        what the kernel had may be lost, and is counted as ``unknown`` in stats_local(); everything else waits for the connection in the
        outbox, see connect(). Raises BadName, PayloadError, Closed; OutboxFull, for a message that was not taken; Timeout when the bus does
        not read for the connect timeout: then it was taken, and is sent when the bus reads.

        What is retained is remembered (up to 8 MiB and 10 000 topics; what is over that is counted) and restored when the bus was
        restarted, unless another peer was faster. With *bound* it is there as long as this connection: the bus removes it when the
        connection goes in any way, and after a reconnect it is published again. An empty bytes object as *data* removes what is kept.
        *ttl* is how many seconds it is good for: what waits longer, in the outbox or at the bus for a slow subscriber, is dropped and
        counted there (Lost with why ``expired`` in the stream), and what is kept is removed. With *confirm* this waits until the bus has
        routed it and returns how many subscriptions took it (a group is one; 0 is no error); without a connection it waits for one. Then
        it also raises ConnectionLost (whether it was routed is unknown: it is not sent again), Timeout, Expired, and Refused where it was
        delivered but the bus cannot keep it.
        """
        if retain or confirm or bound or ttl is not None:
            return self._publish_with(topic, data, retain, headers, confirm, ttl, bound)
        with self._lock:
            try:
                due = self._outbox.publish(topic, data, False, headers)
            except OutboxFull as full:
                due = self._when_ready(full, lambda: self._outbox.publish(topic, data, False, headers))
            if due:
                self._wire.published()
        return None

    def get(self, topic: str, *, type: Any = None) -> Message | None:
        """The retained message of *topic*, as the bus has it now, or None. *type* as in subscribe().

        Raises BadName, RequestError, ConnectionLost, Expired, Closed; without a connection it waits for one, for the connect timeout.
        """
        _names.check_topic(topic, "get")
        make = None if type is None else typed_message(converter(type))
        told = self._session.told
        senders = told.senders
        found = self.request("bus/get", {"topic": topic}, timeout=self._patience(), idempotent=True)
        return told.kept(found, make, senders)

    def will(self, topic: str, data: Any = None, *, retain: bool = False, headers: Mapping[str, Any] | None = None) -> None:
        """Have the bus publish *data* to *topic* when this program's connection goes without close(): when it crashes, is killed, or is
        cut off. With *retain* the bus keeps it.

        One for each topic, a later one takes the place of an earlier one; at most 100, of 1 MiB together. Declared again after a
        reconnect; what this program had retained on the topic is then published again over the will. Raises BadName, PayloadError,
        RequestError, ConnectionLost, Timeout, Closed.
        """
        with self._lock:
            self._session.check_open()
            self._declared(self._session.posts.will(topic, data, retain, headers), "will", topic)

    def drop_will(self, topic: str) -> None:
        """Take the will of *topic* back. Where there is none it is fine."""
        _names.check_topic(topic, "drop_will")
        with self._lock:
            self._session.check_open()
            self._settled(self._session.declarations.withdraw("will", topic))

    def subscribe(
        self,
        pattern: str,
        callback: Callable[[Message], Any] | None = None,
        *,
        group: str | None = None,
        retained: bool = True,
        window_bytes: int = 1024 * 1024,
        prefetch: int = 32,
        notices: bool = False,
        type: Any = None,
        concurrency: int = 1,
        key: Callable[[Message], Hashable] | None = None,
        errors: Literal["log", "raise"] = "log",
        policy: str | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
    ) -> Subscription:
        """Receive what is published to topics that match *pattern*, from now on, and first what is kept of them (unless *retained* is
        false).

        Iterate over the subscription, or give a *callback*, which runs on the bus's worker thread, one message at a time. With a
        *concurrency* (at most 1000) so many run at once, on threads of their own; then messages with the same *key* (a function of the
        message) keep their order, and without a *key* none is promised. What it raises is logged and counted, with *errors* ``raise``
        also raised by wait(). A callback may call every method; while it waits for the bus, those of others go on. All three are a
        ValueError without a callback.

        Members of a *group* share the messages; each gets at most *prefetch* that it has not handled: whose callback has not ended.
        *window_bytes* is how much the bus sends ahead. Declared again after a reconnect. Where messages are missing, or may be, ``lost``
        and ``gaps`` count; with *notices* the stream also has Lost and Reconnected objects, at the place of the gap (a *key* is not asked
        about notices). With a *type* (a dataclass, datetime, list[float], … any hint for what msgpack carries) ``data`` of the messages is
        that, or raises PayloadError where a payload is something else. Where the bus's policy is changed and denies it, it ends with Denied
        after what had come; the log says so.

        What this program does not take in time waits at the bus. Over the soft limit (*limits*: a Limits, or a mapping with ``soft`` and
        ``hard`` in bytes and ``seconds``; what is left out is as the bus has it) the subscription lags, which Lagging and CaughtUp objects
        tell in the stream with *notices*. Then the *policy* acts (None: the bus's own, usually ``block``): ``block`` holds its publishers,
        whose publish() waits, and loses the oldest only after *seconds*, or when this program has held others for too long; ``drop_oldest``
        and ``drop_newest`` lose these messages over the hard limit, and after *seconds*; ``latest`` keeps one message for each topic, the
        newest; ``disconnect`` ends the connection. A group's are those of its first member, and ``disconnect`` is not for groups.

        Raises BadName, RequestError (Denied), ConnectionLost, Timeout, Closed; TypeError for a *type* that no payload can become.
        """
        _names.check_subscription(pattern, group, window_bytes, prefetch)
        _names.check_subscriber(callback, concurrency, key, errors)
        said = check_policy(policy, limits, group)
        with self._lock:
            self._session.check_open()
            lane = Lane(
                self._session.new_id(),
                pattern,
                group=group,
                retained=retained,
                window_bytes=window_bytes,
                prefetch=prefetch,
                notices=notices,
                policy=policy,
                limits=said,
            )
            if type is not None:
                lane.has_type(type)
            subscription = Subscription(self, lane, callback, concurrency=concurrency, key=key, errors=errors)
            self._declared(self._session.declarations.subscribe(lane), "subscribe", lane.number)
        return subscription

    def watch(self, pattern: str, *, type: Any = None) -> Watch:
        """What is retained under topics that match *pattern*, and how it changes: iterate over the Watch for Change objects, or read its
        ``state``, which is complete when this returns. *type* as in subscribe().

        No change falls between the two. After a reconnect come the changes that happened meanwhile, removals too; so it is where messages
        were lost. A bus that was started anew has nothing retained until its publishers come back: removals, then their values again.
        Raises BadName, RequestError, ConnectionLost, Timeout, Closed; TypeError for a *type* that no payload can become.
        """
        return _blocking_watch.watch(self, pattern, type)

    def monitor(
        self,
        pattern: str = ">",
        *,
        kinds: Iterable[str] | None = None,
        payloads: bool = True,
        notices: bool = False,
        window_bytes: int = 1024 * 1024,
        limits: Limits | Mapping[str, Any] | None = None,
    ) -> Monitor:
        """Show what others send: publications to topics that *pattern* matches, and messages, requests, answers and errors of names that it
        matches, as if these were topics. For a person who wants to know what goes on, or a recorder: it slows nobody, so it may miss
        some. Frames that are too many (for all monitors together limits.max_monitor_rate a second) or that this program does not
        take in time are lost and counted in ``lost``; with *notices* the stream says so at the place of the gap, as subscribe()'s.

        *kinds* (``publish``, ``retain``, ``send``, ``request``, ``reply``, ``part``, ``error``, ``cancel``; None: all) are those wanted,
        and without *payloads* only sizes come. What the bus's policy redacts has neither payload nor headers. *window_bytes* and *limits*
        as in subscribe(). Declared again after a reconnect.

        Raises BadName, ValueError, RequestError (Denied without the right ``monitor``; Refused where the bus has too many monitors),
        ConnectionLost, Timeout, Closed.
        """
        return _blocking_monitor.monitor(self, pattern, kinds, payloads, notices, window_bytes, limits)

    def send(self, to: str, data: Any = None, *, headers: Mapping[str, Any] | None = None) -> None:
        """Send *data* to the owner of a name, or to a peer (``:42``); it comes into their inbox. At most once; waits for a connection as
        publish() does.
        """
        with self._lock:
            try:
                due = self._outbox.send(to, data, headers)
            except OutboxFull as full:
                due = self._when_ready(full, lambda: self._outbox.send(to, data, headers))
            if due:
                self._wire.published()

    def inbox(self, callback: Callable[[Message], Any] | None = None, *, notices: bool = False) -> Inbox:
        """The direct messages to this program, as a subscription is used: iterate, or give a *callback*; *notices* as there. A new one
        takes the place of an earlier one.
        """
        _names.check_callback(callback)
        with self._lock:
            self._session.check_open()
            if self._session.inbox is not None:
                self._session.inbox.close()
            self._session.inbox = Lane(INBOX, "inbox", window_bytes=INBOX_MAX_BYTES, notices=notices)
            return Inbox(self, self._session.inbox, callback)
