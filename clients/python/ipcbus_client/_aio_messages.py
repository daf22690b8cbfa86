"""Messages of an asyncio `Bus`: published, retained, subscribed to, sent. The same names in the same order as _blocking_messages.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

from . import _aio_monitor, _aio_watch, _names
from ._aio_monitor import Monitor
from ._aio_requests import BusRequests
from ._aio_streams import Inbox, Subscription
from ._aio_watch import Watch
from ._errors import OutboxFull
from ._lanes import INBOX, Lane
from ._message import Message, converter, typed_message
from ._policies import Limits, check_policy
from ._session import INBOX_MAX_BYTES


class BusMessages(BusRequests):
    """Messages, by topic and to one peer."""

    async def publish(
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
        """Publish *data* (bytes-like objects as they are, all else as msgpack) to *topic*; with *retain* the bus keeps it for who comes
        later.

        Waits only with *confirm*, where the bus does not read, or to give other tasks a turn in a long burst. As
        ipcbus_client.Bus.publish() in all else; cancelled with *confirm* it is unknown whether it was routed.
        """
        if retain or confirm or bound or ttl is not None:
            return await self._publish_with(topic, data, retain, headers, confirm, ttl, bound)
        try:
            due = self._outbox.publish(topic, data, False, headers)
        except OutboxFull as full:
            due = await self._when_ready(full, lambda: self._outbox.publish(topic, data, False, headers))
        if due:
            await self._wire.published()
        return None

    async def get(self, topic: str, *, type: Any = None) -> Message | None:
        """The retained message of *topic*, as the bus has it now, or None. As ipcbus_client.Bus.get()."""
        _names.check_topic(topic, "get")
        make = None if type is None else typed_message(converter(type))
        told = self._session.told
        senders = told.senders
        found = await self.request("bus/get", {"topic": topic}, timeout=self._patience(), idempotent=True)
        return told.kept(found, make, senders)

    async def will(self, topic: str, data: Any = None, *, retain: bool = False, headers: Mapping[str, Any] | None = None) -> None:
        """Have the bus publish *data* to *topic* when this program's connection goes without close(). As ipcbus_client.Bus.will()."""
        self._session.check_open()
        await self._declared(self._session.posts.will(topic, data, retain, headers), "will", topic)

    async def drop_will(self, topic: str) -> None:
        """Take the will of *topic* back. Where there is none it is fine."""
        _names.check_topic(topic, "drop_will")
        self._session.check_open()
        await self._settled(self._session.declarations.withdraw("will", topic))

    async def subscribe(
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
        """Receive what is published to topics that match *pattern*. A *callback* may be a coroutine function; one message is handled at a
        time, or *concurrency*, each in a task of its own.

        As ipcbus_client.Bus.subscribe() in all else.
        """
        _names.check_subscription(pattern, group, window_bytes, prefetch)
        _names.check_subscriber(callback, concurrency, key, errors)
        said = check_policy(policy, limits, group)
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
        await self._declared(self._session.declarations.subscribe(lane), "subscribe", lane.number)
        return subscription

    async def watch(self, pattern: str, *, type: Any = None) -> Watch:
        """What is retained under topics that match *pattern*, and how it changes: iterate over the Watch for Change objects, or read its
        ``state``, which is complete when this returns. *type* as in subscribe().

        No change falls between the two. After a reconnect come the changes that happened meanwhile, removals too; so it is where messages
        were lost. A bus that was started anew has nothing retained until its publishers come back: removals, then their values again.
        Raises BadName, RequestError, ConnectionLost, Timeout, Closed; TypeError for a *type* that no payload can become.
        """
        return await _aio_watch.watch(self, pattern, type)

    async def monitor(
        self,
        pattern: str = ">",
        *,
        kinds: Iterable[str] | None = None,
        payloads: bool = True,
        notices: bool = False,
        window_bytes: int = 1024 * 1024,
        limits: Limits | Mapping[str, Any] | None = None,
    ) -> Monitor:
        """Show what others send to topics and names that *pattern* matches. As ipcbus_client.Bus.monitor()."""
        return await _aio_monitor.monitor(self, pattern, kinds, payloads, notices, window_bytes, limits)

    async def send(self, to: str, data: Any = None, *, headers: Mapping[str, Any] | None = None) -> None:
        """Send *data* to the owner of a name, or to a peer (``:42``); it comes into their inbox. At most once; waits for a connection as
        publish() does.
        """
        try:
            due = self._outbox.send(to, data, headers)
        except OutboxFull as full:
            due = await self._when_ready(full, lambda: self._outbox.send(to, data, headers))
        if due:
            await self._wire.published()

    async def inbox(self, callback: Callable[[Message], Any] | None = None, *, notices: bool = False) -> Inbox:
        """The direct messages to this program, as a subscription is used. A new one takes the place of an earlier one. As
        ipcbus_client.Bus.inbox() in all else.
        """
        _names.check_callback(callback)
        self._session.check_open()
        if self._session.inbox is not None:
            self._session.inbox.close()
        self._session.inbox = Lane(INBOX, "inbox", window_bytes=INBOX_MAX_BYTES, notices=notices)
        return Inbox(self, self._session.inbox, callback)
