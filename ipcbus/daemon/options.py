"""The options of the daemon: one row each, driving the file, the environment, the flags, ``--help``, ``--print-config`` and the errors.

Owns names, types, ranges and defaults. Must not know where values come from (``config`` does) or what they do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..protocol.addresses import Address, AddressError, check_bus_name, parse_address
from ..protocol.limits import ENVELOPE_MAX_BYTES, MAX_ID, Limits
from .places import SYSTEM_POLICY_DIRS


@dataclass(frozen=True, slots=True)
class Type:
    """A type of values: how text and a TOML value become one (both raise ValueError), and how one is written as TOML.

    ``allowed`` completes the sentence 'X is not …' for a person.
    """

    allowed: str
    from_text: Callable[[str], Any]
    from_toml: Callable[[Any], Any]
    to_toml: Callable[[Any], str]


def _quoted(value: object) -> str:
    """A TOML basic string."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub("[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", text) + '"'


def _string(value: Any) -> str:
    if type(value) is not str or not value or "\0" in value:
        raise ValueError
    return value


def _checked(allowed: str, check: Callable[[str], Any], to_toml: Callable[[Any], str] = _quoted) -> Type:
    """A string that *check* turns into the value, or refuses."""
    return Type(allowed, lambda text: check(_string(text)), lambda value: check(_string(value)), to_toml)


def _choice(*words: str) -> Type:
    def check(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return _checked("one of " + ", ".join(words), check)


def _count(low: int, high: int) -> Type:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Type(f"a whole number from {low} to {high}", lambda text: check(int(text)), check, str)


def _seconds(low: float, high: float) -> Type:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Type(f"a number of seconds from {low:g} to {high:g}", lambda text: check(float(text)), check, repr)


def _mode(text: str) -> int:
    """The octal mode of a socket. Its owner always has both rights, else nobody could connect."""
    if not re.fullmatch("0?[0-7]{3}", text) or int(text, 8) & 0o600 != 0o600 or int(text, 8) & 0o111:
        raise ValueError
    return int(text, 8)


def _bus(text: str) -> str:
    check_bus_name(text)
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError
    return text


def _addresses(value: Any) -> tuple[Address, ...]:
    if type(value) is not list or not value:
        raise ValueError
    return tuple(parse_address(_string(item)) for item in value)


def _directories(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise ValueError
    return tuple(_path(_string(item)) for item in value)


_ADDRESSES = Type(
    "a list of addresses (unix:/absolute/path, tcp:127.0.0.1:PORT)",
    lambda text: _addresses([part.strip() for part in text.split(",")]),
    _addresses,
    lambda value: "[" + ", ".join(_quoted(item) for item in value) + "]",
)
_PATHS = Type(
    "a list of absolute paths (in the environment with ':' between them)",
    lambda text: _directories(text.split(":")),
    _directories,
    lambda value: "[" + ", ".join(map(_quoted, value)) + "]",
)
_LEVEL = _choice("debug", "info", "warning", "error")
_PATH = _checked("an absolute path", _path)
_MODE = _checked("an octal mode like 0660, 0600 at least and without x", _mode, lambda value: f'"{value:04o}"')


@dataclass(frozen=True, slots=True)
class Option:
    """One row: an option's name in the file (``limits.`` marks the table), its type, default and meaning."""

    name: str
    type: Type
    default: Any  #: None: not set, or worked out from other options
    doc: str
    env: str | None = None
    flag: str | None = None
    live: bool = False  #: SIGHUP changes it; everything else needs a restart

    def explain(self, value: object, error: ValueError) -> str:
        """Why *value* is refused, and what is allowed."""
        if isinstance(error, AddressError):
            return str(error)
        return f"{value!r} is not {self.type.allowed}"


_LANE_POLICY = _choice("block", "drop_oldest", "drop_newest", "latest")
_DEFAULTS = Limits()


def _limit(name: str, kind: Type, doc: str, *, live: bool = False) -> Option:
    """A limit. What WELCOME announced (H-8) was promised to who is connected, so it is not live."""
    return Option(f"limits.{name}", kind, getattr(_DEFAULTS, name), doc, live=live)


_MODE_DOC = "mode of Unix sockets: who may write to one may connect (0600: the bus's user and root)"
_SECRETS_DOC = "directory of more of them, NAME.secret: who proves one is NAME to the policy; not set: none"
_EXIT_DOC = "end when nobody was connected for so long, and forget what is retained; not set: never"
_KIND_DOC = "whose bus it is: user (the bus's user and root may do everything) or system (nobody may do but what the policy allows)"
_POLICY_DOC = "rules of who may do what; not set: policy.toml beside the ipcbusd.toml that is found without --config, where it exists"
_DROP_INS_DOC = "directories with more of them; not set: none, or for a system bus those for ipcbus in /etc and /usr/lib"
_ANY = _count(1, MAX_ID)
_WAIT = _seconds(0.01, 86_400)

OPTIONS: tuple[Option, ...] = (
    Option("bus", _checked("a bus name", _bus), "default", "name of the bus; names its socket and secret", "IPCBUS_BUS", "--bus"),
    Option("kind", _choice("user", "system"), "user", _KIND_DOC, "IPCBUS_KIND", "--kind"),
    Option("listen", _ADDRESSES, None, "where to listen; not set: BUS.sock in the runtime directory", "IPCBUS_ADDRESS", "--listen"),
    Option("poller", _choice("epoll", "poll", "select"), "epoll", "how to wait for sockets", "IPCBUS_POLLER", "--poller"),
    Option("log_level", _LEVEL, "info", "least important line to log", "IPCBUS_LOG_LEVEL", "--log-level", live=True),
    Option("log_format", _choice("text", "json"), "text", "how a line of the log looks", "IPCBUS_LOG_FORMAT", "--log-format", live=True),
    Option("secret_file", _PATH, None, "what TCP peers must know; not set: BUS.secret beside it", "IPCBUS_SECRET_FILE", "--secret-file"),
    Option("secret_dir", _PATH, None, _SECRETS_DOC, "IPCBUS_SECRET_DIR", "--secret-dir", live=True),
    Option("socket_mode", _MODE, 0o600, _MODE_DOC, "IPCBUS_SOCKET_MODE", "--socket-mode", live=True),
    Option("socket_group", _checked("a group name", str), None, "group of Unix sockets; see mode", "IPCBUS_SOCKET_GROUP", "--socket-group"),
    Option("policy_file", _PATH, None, _POLICY_DOC, "IPCBUS_POLICY_FILE", "--policy-file", live=True),
    Option("policy_dir", _PATHS, None, _DROP_INS_DOC, "IPCBUS_POLICY_DIR", "--policy-dir", live=True),
    Option("exit_idle_s", _seconds(0.05, 31_536_000), None, _EXIT_DOC, "IPCBUS_EXIT_IDLE_S", "--exit-idle", live=True),
    Option("drain_s", _seconds(0, 3600), 5.0, "how long SIGTERM waits for peers to read", "IPCBUS_DRAIN_S", "--drain-s", live=True),
    _limit("max_payload_bytes", _count(0, 2**32 - 1 - ENVELOPE_MAX_BYTES), "largest payload of a message"),
    _limit("max_peers", _ANY, "connections at a time", live=True),
    _limit("max_lanes", _ANY, "subscriptions of one peer"),
    _limit("max_matches", _ANY, "subscriptions of one peer that one message may be for; who has more is closed", live=True),
    _limit("max_names", _ANY, "names that one peer owns or waits for", live=True),
    _limit("max_methods", _ANY, "methods that one peer serves under one name", live=True),
    _limit("max_requests", _ANY, "requests of one peer in flight"),
    _limit("max_callee_requests", _ANY, "requests in flight at one callee", live=True),
    _limit("max_timeout_ms", _count(1, 2**32 - 1), "longest timeout of a request"),
    _limit("max_credit_bytes", _ANY, "byte credit of one lane"),
    _limit("max_output_bytes", _ANY, "waiting for a peer; 4 MiB + 64 KiB + max_payload_bytes + max_retained_bytes at the least", live=True),
    _limit("lane_policy", _LANE_POLICY, "what a subscription that does not say does when it lags", live=True),
    _limit("lane_soft_bytes", _ANY, "waiting for a subscription; above it it lags, and its policy acts", live=True),
    _limit("lane_hard_bytes", _ANY, "above it policies other than block lose messages at once", live=True),
    _limit("lane_stall_s", _WAIT, "how long a subscription may lag, and a program hold its publishers", live=True),
    _limit("stall_window_s", _WAIT, "seconds in which it may hold them for lane_stall_s", live=True),
    _limit("max_parked_bytes", _ANY, "waiting from a held publisher; above it it is not read", live=True),
    _limit("max_retained_topics", _count(0, MAX_ID), "topics with a kept message", live=True),
    _limit("max_retained_bytes", _count(0, MAX_ID), "size of all kept messages", live=True),
    _limit("max_wills", _count(0, MAX_ID), "wills of one peer", live=True),
    _limit("max_will_bytes", _count(0, MAX_ID), "size of all wills of one peer", live=True),
    _limit("max_bound", _count(0, MAX_ID), "topics whose kept message goes with one peer", live=True),
    _limit("max_program_bytes", _ANY, "waiting for all connections of a process", live=True),
    _limit("max_user_bytes", _ANY, "waiting for all connections of a uid", live=True),
    _limit("max_queued_bytes", _ANY, "waiting for everybody", live=True),
    _limit("max_program_peers", _ANY, "connections of a process", live=True),
    _limit("max_user_peers", _ANY, "connections of a uid", live=True),
    _limit("max_program_lanes", _ANY, "subscriptions of a process", live=True),
    _limit("max_user_lanes", _ANY, "subscriptions of a uid", live=True),
    _limit("max_bus_lanes", _ANY, "subscriptions of everybody", live=True),
    _limit("max_program_names", _ANY, "names that a process owns or waits for", live=True),
    _limit("max_user_names", _ANY, "names that a uid owns or waits for", live=True),
    _limit("max_bus_names", _ANY, "names that everybody owns or waits for", live=True),
    _limit("max_program_requests", _ANY, "requests of a process in flight", live=True),
    _limit("max_user_requests", _ANY, "requests of a uid in flight", live=True),
    _limit("max_bus_requests", _ANY, "requests of everybody in flight", live=True),
    _limit("quota_grace_s", _WAIT, "how long more than its share may wait for a peer that reads nothing", live=True),
    _limit("max_monitors", _count(0, MAX_ID), "monitors of everybody", live=True),
    _limit("max_monitor_rate", _ANY, "frames a second that all monitors together look at", live=True),
    _limit("max_topic_counters", _count(0, MAX_ID), "topics that are counted by name"),
    _limit("max_route_cache", _count(1, 1_000_000), "routes that the bus remembers for one peer", live=True),
    _limit("handshake_timeout_s", _WAIT, "how long a connection may take to say who it is", live=True),
    _limit("half_close_linger_s", _WAIT, "how long replies are still delivered to a peer that is done sending", live=True),
)

BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}

#: What a system bus has where nobody said otherwise: its own name and place, everybody may connect, and nobody waits for a stranger.
SYSTEM_DEFAULTS: dict[str, Any] = {
    "bus": "system",
    "socket_mode": 0o666,
    "policy_dir": SYSTEM_POLICY_DIRS,
    "limits.lane_policy": "drop_oldest",
}
