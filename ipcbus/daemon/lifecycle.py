"""From configuration to exit: start, signals, reload, orderly stop.

Owns the order of these. Must not know what moves in between (the loop does).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from .. import __version__
from ..broker import Broker
from ..protocol.addresses import UnixAddress
from ..protocol.auth import Secret, Secrets
from ..protocol.limits import INCARNATION_BYTES, SECRET_BYTES
from . import logs, resources
from .admission import Admission
from .config import Config, ConfigError, conflicts, difference
from .directories import prepare_directory
from .idle import IdleExit
from .limits import DRAIN_INTERRUPT_S, RETRY_S
from .links import close
from .listeners import Listener, open_listeners
from .loop import Loop
from .options import Option
from .places import PlaceError
from .policy_in_force import PolicyInForce
from .secret_file import load_secrets
from .tcp_owners import owner_of

log = logging.getLogger("ipcbus.daemon")

_STOP = (signal.SIGTERM, signal.SIGINT)


class SignalPipe:
    """Turns signals into readiness: the interpreter writes a signal's number into a socket pair that the loop watches."""

    __slots__ = ("_handle", "_receiver", "_sender")

    def __init__(self, handle: Callable[[int, float], None]) -> None:
        self._handle = handle
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def open(self, loop: Loop) -> None:
        """Take the signals over. Call on the main thread."""
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGHUP):
            signal.signal(number, _arrived)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP, signal.SIGHUP))  # who started us may block them, as threads of programs do
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.watch(self._receiver, self)

    def on_ready(self, now: float) -> None:
        """Handle what arrived, in order."""
        for number in self._receiver.recv(256):
            try:
                self._handle(number, now)
            except Exception:  # the next one may be what ends the bus
                log.exception("fault of the bus while it obeyed %s", signal.Signals(number).name)

    def close(self) -> None:
        """Signals are lost from here on, which the end of the process makes true soon."""
        signal.set_wakeup_fd(-1)
        close(self._receiver)
        close(self._sender)


def _arrived(number: int, frame: object) -> None:
    """Without a handler of its own a signal would not reach the wakeup socket."""


class Daemon:
    """One bus process: `start` listens, `run` serves until it is told to stop, `close` gives everything back."""

    def __init__(self, config: Config, reload: Callable[[], Config]) -> None:
        self._config = config
        self._reload = reload
        self._listeners: list[Listener] = []
        self._stopping = False
        if config.needs_secret:
            resources.keep_memory_out_of_core_dumps()
        self._secrets = Secrets(_secrets_of(config, config.secret_dir), os.urandom(SECRET_BYTES)) if config.needs_secret else None
        now = time.monotonic()
        self._gauges = resources.Gauges()
        self._policy = PolicyInForce(config)
        self._broker = Broker(
            incarnation=os.urandom(INCARNATION_BYTES),
            random_bytes=os.urandom,
            now=now,
            limits=config.limits,
            secrets=self._secrets,
            software=f"ipcbusd {__version__}",
            pid=os.getpid(),
            owners=frozenset({os.geteuid(), 0}),
            log=log.log,
            gauges=self._gauges,
            owner_of=owner_of,
            policy=self._policy.policy,
            subject_of=self._policy.subject_of,
        )
        self._broker.monitors.redaction = self._policy.redaction
        self._loop = Loop(self._broker, config.poller, time.monotonic)
        self._admission = Admission(self._broker, self._loop, may_connect=self._policy.may_connect)
        self._signals = SignalPipe(self._on_signal)
        self._idle = IdleExit(self._loop, self._on_idle)

    def start(self) -> list[str]:
        """Listen, and return the addresses as they really are (a port 0 was chosen). Raises AlreadyRunningError, ListenError or
        PlaceError."""
        config = self._config
        self._signals.open(self._loop)
        resources.raise_descriptor_limit()
        if config.kind == "user" and config.sources["listen"] == "default":
            for place in config.listen:
                if isinstance(place, UnixAddress):
                    prepare_directory(os.path.dirname(place.path), private=True)
        self._listeners = open_listeners(
            config.listen, mode=config.socket_mode, group=config.socket_group, directory_mode=config.directory_mode
        )
        self._broker.accounts.have_descriptors(resources.room_for_connections())
        self._admission.open(self._listeners)
        addresses = [str(listener.address) for listener in self._listeners]
        for address in addresses:
            log.info("listening on %s (bus %s, %s, pid %d)", address, config.bus, config.poller, os.getpid())
        self._tell_who_may_connect()
        self._idle.set(config.exit_idle_s, time.monotonic())
        return addresses

    def _tell_who_may_connect(self) -> None:
        """What the log says of the policy, and where it is not just the bus's user and root, or where socket_group is of no use."""
        policy = self._config.policy
        for line in (*self._config.oddities(), *filter(None, (listener.out_of_reach() for listener in self._listeners))):
            log.warning("%s", line)
        if policy.named or self._config.kind == "system":
            log.info("a %s bus with %s", self._config.kind, policy.described())
            for path in policy.files:
                log.info("policy file %s", path)
            return
        if not any(listener.transport == "unix" for listener in self._listeners):
            return
        group = self._config.values["socket_group"]
        mode = f"socket mode {self._config.socket_mode:04o}" + (f", group {group}" if group else "")
        if self._config.open_to_others:
            log.info("%s: whoever can reach the socket and write to it may connect, not only uid %d and root", mode, os.geteuid())
        elif group:
            log.warning("%s: the group may not connect; socket_mode 0660 would let it", mode)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT has been obeyed."""
        self._loop.run()
        log.info("stopped")

    def close(self) -> None:
        """Close every socket, remove the socket files that are ours, give the addresses up. Idempotent."""
        self._admission.close()
        for listener in self._listeners:
            listener.stop()
        self._loop.close()
        self._signals.close()
        self._gauges.close()
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    # --- signals ----------------------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, now: float) -> None:
        if number == signal.SIGHUP:
            self._on_hangup()
        elif number in _STOP:
            self._on_stop(signal.Signals(number), now)

    def _on_stop(self, number: signal.Signals, now: float) -> None:
        """Say BYE to everybody and wait, bounded, until it is read. The second time: go at once."""
        if self._stopping:
            log.warning("%s again: stopping at once", number.name)
            self._loop.stop()
            return
        self._stopping = True
        drain_s = self._config.drain_s if number == signal.SIGTERM else min(self._config.drain_s, DRAIN_INTERRUPT_S)
        self._loop.finish(now + drain_s)  # first: whatever else fails, the end comes
        log.info("%s: stopping; peers have %g s to read what they are due", number.name, drain_s)
        self._admission.close()
        for listener in self._listeners:
            listener.stop()
        self._broker.shut_down(now)

    def _on_idle(self, now: float) -> None:
        """Nobody was connected for exit_idle_s. Who connects at this very moment is let go before it was greeted, and tries again: the
        socket file is gone before the socket is, and the lock after it, so that the next bus cannot come too early.
        """
        if self._stopping:
            return
        self._stopping = True
        self._loop.finish(now)
        log.info("nobody was connected for %g s: stopping", self._config.exit_idle_s)
        self._admission.close()
        for listener in self._listeners:
            listener.stop()

    def _on_hangup(self) -> None:
        """Read the configuration again, take over what can change, and say what needs a restart. A broken one changes nothing."""
        try:
            new = self._reload()
            if new.kind != self._config.kind:  # so much hangs on it that half of a change would open what was closed
                raise ConfigError([f"kind: a {self._config.kind} bus becomes a {new.kind} bus only by a restart"])
            live, fixed = difference(self._config, new)
            of_limits = [option.name for option in live if option.name.startswith("limits.")]
            in_force = {name.removeprefix("limits."): new.values[name] for name in of_limits}
            limits = dataclasses.replace(self._broker.limits, **in_force)
            if errors := conflicts(limits):  # what needs a restart stays as it was, and the rest must go with that
                raise ConfigError(errors)
            secrets = _secrets_of(self._config, new.secret_dir) if self._secrets is not None else {}
        except (ConfigError, PlaceError) as error:
            for line in error.args:
                log.error("SIGHUP: %s", line)
            log.error("SIGHUP: the configuration stays as it was")
            return
        kept = {option.name: self._config.values[option.name] for option in fixed}
        self._apply(new)
        for option in live:
            before, after = (_as_text(option, config.values[option.name]) for config in (self._config, new))
            log.info("SIGHUP: %s is now %s (was %s)", option.name, after, before)
        for option in fixed:
            log.warning("SIGHUP: %s changed in the configuration; that needs a restart", option.name)
        if new.policy != self._config.policy:
            log.info("SIGHUP: there is a new policy: %s", new.policy.described())
        elif not live and not fixed:
            log.info("SIGHUP: nothing changed in the configuration")
        self._broker.reconfigure(limits, time.monotonic())
        told = self._config.socket_mode, self._config.policy
        self._config = dataclasses.replace(
            self._config,
            log_level=new.log_level,
            log_format=new.log_format,
            socket_mode=new.socket_mode,
            secret_dir=new.secret_dir,
            policy_file=new.policy_file,
            policy_dir=new.policy_dir,
            policy=new.policy,
            exit_idle_s=new.exit_idle_s,
            drain_s=new.drain_s,
            limits=self._broker.limits,
            values={**new.values, **kept},
        )
        if any(option.name == "exit_idle_s" for option in live):
            self._idle.set(new.exit_idle_s, time.monotonic())
        now = time.monotonic()
        judge = functools.partial(self._judge_anew, secrets)
        try:
            judge(now)
        except BaseException:
            self._loop.at(now + RETRY_S, judge)  # else whom it did not come to would keep rights that it takes
            raise
        if told != (self._config.socket_mode, self._config.policy):
            self._tell_who_may_connect()

    def _judge_anew(self, secrets: dict[str, Secret], now: float) -> None:
        """Put the policy and the secrets that were read in force for everybody."""
        self._policy.use(self._config)
        self._broker.monitors.redaction = self._policy.redaction
        lines = self._broker.set_policy(self._policy.policy, now)  # first: what those leave behind who are closed is judged by it
        for line in lines + self._broker.replace_secrets(secrets, now):
            log.warning("SIGHUP: %s", line)

    def _apply(self, new: Config) -> None:
        logs.set_up(new.log_level, new.log_format)
        if new.socket_mode != self._config.socket_mode:
            for listener in self._listeners:
                try:
                    listener.set_mode(new.socket_mode)
                except OSError as error:
                    log.error("SIGHUP: cannot change the mode of %s: %s", listener.address, error.strerror)


def _secrets_of(config: Config, directory: str | None) -> dict[str, Secret]:
    """Every secret of a bus that needs one, with those of others in *directory*. Raises PlaceError."""
    assert config.secret_file is not None
    return load_secrets(config.secret_file, directory, directory_mode=config.directory_mode)


def _as_text(option: Option, value: object) -> str:
    return "not set" if value is None else option.type.to_toml(value)
