"""``ipcbus demo``: the story from the first start to the verdict, in the foreground process.

Owns the order of events and the time each may take. The main thread starts and ends processes and draws; one thread receives,
one thread calls the service.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import ipcbus_client

from ..failures import CommandError, Exit, usage
from ..text import complain
from ..values import dump
from .company import START_TIMEOUT_S, Company
from .ledger import Ledger
from .service import METHODS, NAME
from .verdict import Check, Ends, checks, figures, lines
from .view import REDRAW_S, View

MIN_SECONDS = 4.0
DOWN_S = 0.5  #: how long the daemon stays away, so that a person sees it
COME_BACK_S = 15.0  #: beyond --seconds, for a machine so busy that not everybody is back yet
CALL_PERIOD_S = 0.02
CALL_TIMEOUT_S = 5.0
LAST_MESSAGES_S = 5.0  #: for what is still on its way at the end


def demo(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if every check held, 1 otherwise. Nothing is left behind, unless it is SIGKILL that ends it."""
    if arguments.seconds < MIN_SECONDS:
        raise usage(f"--seconds {arguments.seconds:g} is too short to lose a daemon and get it back; use {MIN_SECONDS:g}")
    logging.getLogger("ipcbus_client").addHandler(logging.NullHandler())  # the story is told by the view
    company = Company()
    try:
        return _Story(company, arguments).play()
    except BaseException as error:
        if isinstance(error, (CommandError, ipcbus_client.BusError)) and (tail := company.log_tail()):
            print(tail, file=sys.stderr)
        raise
    finally:
        company.close()


def _form(arguments: argparse.Namespace) -> str:
    if arguments.json:
        return "silent"
    redraw = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not arguments.plain
    return "screen" if redraw else "plain"


class _Story:
    def __init__(self, company: Company, arguments: argparse.Namespace) -> None:
        self._company = company
        self._seconds: float = arguments.seconds
        self._json: bool = arguments.json
        self._ledger = Ledger()
        self._view = View(_form(arguments), self._ledger, time.monotonic())
        self._end: float | None = None  #: known when everything flows
        self._returns: dict[str, Callable[[], bool]] = {}  #: what is still to be told when it happens
        self._over = threading.Event()

    def play(self) -> int:
        """Everything, from the start of the daemon to the summary."""
        try:
            self._view.event(f"daemon started, pid {self._company.start_daemon()}")
            bus = ipcbus_client.connect(self._company.address, program="ipcbus demo", timeout=START_TIMEOUT_S)
            try:
                reconnects, told_lost, elapsed_s = self._play_on(bus)
            finally:
                self._over.set()
                bus.close(timeout=1.0)
            daemon_exit = self._company.stop_daemon()
            log = self._company.log_tail()
            ends = Ends(reconnects, daemon_exit, self._company.close(), told_lost)
        finally:
            self._view.close()
        return self._conclude(checks(self._ledger, ends), ends, elapsed_s, log)

    def _play_on(self, bus: ipcbus_client.Bus) -> tuple[dict[str, int], int, float]:
        """The story while the bus is there: who reconnected how often, what the bus told as lost, and how long it took."""
        ledger, view, company = self._ledger, self._view, self._company
        subscription = bus.subscribe(f"{NAME}.>")
        first_epoch = bus.epoch
        receiver = threading.Thread(target=self._receive, args=(subscription,), name="receive", daemon=True)
        caller = threading.Thread(target=self._call, args=(bus,), name="call", daemon=True)
        receiver.start()
        view.event(f"service {NAME!r} started, pid {company.start('service')}")
        view.event(f"publisher started, pid {company.start('publisher')}")
        caller.start()
        self._show(time.monotonic() + START_TIMEOUT_S, until_flowing=True)
        if not ledger.flowing:
            raise CommandError(Exit.INTERNAL, f"demo: no messages and answers within {START_TIMEOUT_S:g} s")
        view.event(f"{len(ledger.sources)} topics are flowing, the service answers")
        begun = time.monotonic()
        self._end = begun + self._seconds
        self._show(begun + self._seconds / 2)

        with ledger.lock:
            ledger.killed(time.monotonic())
        company.kill_daemon()
        view.event("daemon killed with SIGKILL")
        self._show(time.monotonic() + DOWN_S, daemon_gone=True)
        pid = company.start_daemon()
        with ledger.lock:
            ledger.restarted(time.monotonic())
        view.event(f"daemon started again, pid {pid}")
        self._returns = {
            "the subscriber has reconnected": lambda: bus.epoch > first_epoch,
            "the publisher's messages come again": lambda: ledger.first_after is not None,
            "the service answers again": lambda: ledger.answered_after > 0,
        }
        self._show(self._end + COME_BACK_S, until_back=True)
        if ledger.back:
            assert ledger.restarted_at is not None
            took = time.monotonic() - ledger.restarted_at
            lost = f"{ledger.lost_in_outage} messages lost, {ledger.came_late} came late"
            view.event(f"everybody is back after {took:.1f} s; {lost}")
            self._show(self._end)
        elapsed_s = time.monotonic() - begun

        self._over.set()
        caller.join(CALL_TIMEOUT_S + 1.0)
        published = company.stop("publisher")
        until = time.monotonic() + LAST_MESSAGES_S
        while ledger.missing(published["published"]) and time.monotonic() < until:
            time.sleep(0.01)
        with ledger.lock:
            ledger.published(published["published"])
        service = company.stop("service")
        reconnects = {
            "publisher": int(published["reconnects"]),
            "service": int(service["reconnects"]),
            "subscriber": bus.epoch - first_epoch,
        }
        return reconnects, subscription.lost, elapsed_s

    def _show(
        self, until: float, *, until_flowing: bool = False, until_back: bool = False, daemon_gone: bool = False
    ) -> None:
        """Draw until the moment *until*, or until the books say what is waited for."""
        while (now := time.monotonic()) < until:
            for text in [text for text, happened in self._returns.items() if happened()]:
                del self._returns[text]
                self._view.event(text)
            if (until_flowing and self._ledger.flowing) or (until_back and self._ledger.back and not self._returns):
                return
            dead = self._company.dead()
            if dead and not (daemon_gone and dead == "daemon"):
                raise CommandError(Exit.INTERNAL, f"demo: the {dead} ended by itself")
            self._view.refresh("" if self._end is None else f"{max(0.0, self._end - now):.0f} s to go")
            time.sleep(min(REDRAW_S, until - now))

    def _receive(self, subscription: ipcbus_client.Subscription) -> None:
        for message in subscription:
            with self._ledger.lock:
                self._ledger.message(message.topic, message.data, time.monotonic())

    def _call(self, bus: ipcbus_client.Bus) -> None:
        turn = 0
        while not self._over.wait(CALL_PERIOD_S):
            method = METHODS[turn % len(METHODS)]
            turn += 1
            started = time.monotonic()
            try:
                bus.request(f"{NAME}/{method}", timeout=CALL_TIMEOUT_S)
            except ipcbus_client.BusError as error:
                with self._ledger.lock:
                    self._ledger.failed(type(error).__name__)
            else:
                now = time.monotonic()
                with self._ledger.lock:
                    self._ledger.answered(now - started, now)

    def _conclude(self, held: list[Check], ends: Ends, elapsed_s: float, log: str) -> int:
        found = figures(self._ledger, ends, elapsed_s, held)
        if self._json:
            print(dump(found))
        else:
            print()
            for line in lines(found, held):
                print(line)
        if not found["ok"] and log:
            print(log, file=sys.stderr)
        for check in held:
            if not check.held:
                complain(f"demo: this did not hold: {check.name} ({check.found})")
        return Exit.OK if found["ok"] else Exit.INTERNAL
