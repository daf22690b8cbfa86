"""``ipcbus pub``, ``ipcbus sub`` and ``ipcbus get``.

Owns what a message looks like on stdout. A frame's journey ends here: the client library hands over a message, one line
leaves.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .connection import ANSWER_TIMEOUT_S, open_bus
from .failures import CommandError, Exit, usage
from .stdin import read_lines, read_value
from .text import complain, safe
from .values import dump, plain, undecodable

if TYPE_CHECKING:
    import ipcbus_client


def publish(arguments: argparse.Namespace) -> int:
    """Send VALUE, or the lines of stdin, and return when the bus has routed it."""
    if arguments.lines and arguments.value not in (None, "-"):
        raise usage("--lines reads its messages from stdin; leave VALUE out")
    values = read_lines(arguments) if arguments.lines else [read_value(arguments)]
    with open_bus(arguments, program="ipcbus pub", wait_s=arguments.timeout, reports=True) as bus:
        for value in values:  # what came before a bad line is sent when the bus is closed, and that raises nothing
            taken = _publish(bus, value, arguments)
            if arguments.confirm:
                print(taken, flush=True)
        bus.flush(arguments.timeout or ANSWER_TIMEOUT_S)
        refused = bus.stats_local()["refused"]
    if refused:  # L-9
        more = "; where it only keeps no more they were delivered (see retained in `ipcbus stats`)" if arguments.retain else ""
        raise CommandError(Exit.REFUSED, f"the bus refused {refused} of the messages to {arguments.topic}, as said above{more}")
    return Exit.OK


def _publish(bus: ipcbus_client.Bus, value: Any, arguments: argparse.Namespace) -> int | None:
    """Publish one value. Where a slow subscriber holds the topic, and there is no --timeout, a pipe shall wait as long as that lasts."""
    from ipcbus_client import OutboxFull

    while True:
        try:
            return bus.publish(arguments.topic, value, retain=arguments.retain, confirm=arguments.confirm, ttl=arguments.ttl)
        except OutboxFull as full:
            if full.hold is None or arguments.timeout is not None:
                raise


def get(arguments: argparse.Namespace) -> int:
    """Print what the bus keeps for TOPIC."""
    if arguments.raw and arguments.json:
        raise usage("--raw and --json exclude each other")
    with open_bus(arguments, program="ipcbus get", wait_s=arguments.timeout) as bus:
        message = bus.get(arguments.topic)
    if message is None:
        raise CommandError(Exit.REFUSED, f"nothing is kept for {arguments.topic}; `ipcbus topics` lists what is")
    if arguments.raw:
        sys.stdout.buffer.write(message.payload)
        return Exit.OK
    value = _value_of(message)
    print(_with_envelope(message, value) if arguments.json else dump(value))
    return Exit.OK


def subscribe(arguments: argparse.Namespace) -> int:
    """Print what matches the PATTERNs until --count, --timeout, Ctrl-C, or nobody reads our output any more."""
    if arguments.raw and arguments.json:
        raise usage("--raw and --json exclude each other")
    limits = _limits(arguments)
    deadline = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    wait_s = None if arguments.timeout is None else min(arguments.timeout, ANSWER_TIMEOUT_S)  # for the bus; --timeout is ours
    with open_bus(arguments, program="ipcbus sub", wait_s=wait_s, reconnect=True) as bus:
        printer = Printer(arguments)
        for pattern in arguments.patterns:
            subscription = bus.subscribe(
                pattern,
                group=arguments.group,
                retained=not arguments.no_retained,
                # What is prefetched when --count is reached is lost to the group, so fetch one by one.
                prefetch=1 if arguments.count and arguments.group else 32,
                notices=True,
                policy=arguments.policy,
                limits=limits,
            )
            threading.Thread(target=printer.follow, args=(subscription,), name=pattern, daemon=True).start()
        printer.wait(deadline)
    wanted = arguments.count or 1
    return Exit.TIMEOUT if deadline is not None and printer.printed < wanted else Exit.OK


def _limits(arguments: argparse.Namespace) -> dict[str, int | float] | None:
    """What --soft, --hard and --seconds say, where they go with each other and with --policy."""
    from ipcbus_client._policies import check_policy

    limits = {"soft": arguments.soft, "hard": arguments.hard, "seconds": arguments.seconds}
    try:
        return check_policy(arguments.policy, limits, arguments.group)
    except ValueError as error:
        raise usage(str(error)) from error


class Printer:
    """Prints the messages of several subscriptions, each followed by a thread of its own; one lock keeps their lines whole.

    The bus's order holds within a subscription. Callbacks on the library's one worker would not give more: it takes a batch
    of each in turn.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.printed = 0
        self._arguments = arguments
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._ended = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # never closed: threads may write to it until the end

    def follow(self, subscription: ipcbus_client.Subscription) -> None:
        """Print what comes on *subscription* until it or this printer ends."""
        try:
            for message in subscription:
                with self._lock:
                    if self._ended:
                        return
                    notice = in_words(message)
                    if notice:
                        complain(notice)
                        continue
                    self._print(message)
                    self.printed += 1
                    if self.printed == self._arguments.count:
                        self._end()
        except Exception as error:  # noqa: BLE001 - whatever it is, the main thread raises it
            self._failure = error
        finally:
            self._end()

    def wait(self, deadline: float | None) -> None:
        """Return when everything is printed, *deadline* (monotonic) has come, or a subscription ended.

        Raises what a thread raised. A pipe on stdout whose reader went away raises BrokenPipeError even while no message comes.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(sys.stdout.fileno(), 0)  # POLLERR comes unasked
        try:
            events = poll.poll(None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000))
        finally:
            self._ended = True
        if self._failure is not None:
            raise self._failure
        if any(fd != self._wake and event & select.POLLERR for fd, event in events):
            raise BrokenPipeError

    def _end(self) -> None:
        self._ended = True
        os.eventfd_write(self._wake, 1)

    def _print(self, message: ipcbus_client.Message) -> None:
        if self._arguments.raw:
            sys.stdout.buffer.write(message.payload)
            sys.stdout.buffer.flush()
            return
        print(self._line(message), flush=True)

    def _line(self, message: ipcbus_client.Message) -> str:
        value = _value_of(message)
        return _with_envelope(message, value) if self._arguments.json else f"{safe(message.topic)} {dump(value)}"


def in_words(item: Any) -> str:
    """What a notice in a subscription's stream says; empty for a message."""
    import ipcbus_client as client

    match item:
        case client.Lost():
            return f"{item.count} messages of {item.pattern} were lost ({item.why})"
        case client.Reconnected():
            return f"reconnected: messages of {item.pattern} may be missing here"
        case client.Lagging():
            does = "; the bus drops some now" if item.dropping else ""
            return f"{item.pattern} lags behind: {item.count} messages of {item.bytes} bytes wait at the bus{does}"
        case client.CaughtUp():
            return f"{item.pattern} has caught up; {item.lost} messages were lost meanwhile"
    return ""


def _value_of(message: ipcbus_client.Message) -> Any:
    """What a message has, for `dump`. What cannot be decoded is told on stderr: it concerns this message only (S-2)."""
    try:
        return plain(message.data)
    except (ValueError, RecursionError) as error:
        complain(f"a message to {message.topic} from peer {message.sender}: {error}")
        return undecodable(message.payload)


def _with_envelope(message: ipcbus_client.Message, value: Any) -> str:
    """One JSON object of all that is known of a message."""
    return dump(
        {
            "topic": message.topic,
            "data": value,
            "sender": message.sender,
            "retained": message.retained,
            "headers": plain(message.headers),
        }
    )
