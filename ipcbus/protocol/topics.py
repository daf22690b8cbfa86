"""Topics, patterns, names, methods and addresses (section 4): what is legal, and what matches what."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from .errors import Code, ProtocolError
from .limits import GROUP_MAX_BYTES, MAX_ID, METHOD_MAX_BYTES, TOPIC_MAX_BYTES, TOPIC_MAX_TOKENS

BUS_NAME = "bus"  #: T-5: the bus's own name
MONITOR_TOPIC = "$bus.monitor"  #: M-3: of what monitors see

_CONTROL = re.compile("[\x00-\x20\x7f-\x9f]")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_PEER = re.compile(r":(0|[1-9][0-9]{0,15})")


def _bytes_of(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ProtocolError(Code.BAD_TOPIC, f"{what} {text!r} is not valid Unicode: {error.reason}") from error


def _tokens(text: str, what: str) -> list[str]:
    """The tokens of a topic or pattern, with the checks that both share (T-1)."""
    size = _bytes_of(text, what)
    if not 0 < size <= TOPIC_MAX_BYTES:
        raise ProtocolError(Code.BAD_TOPIC, f"{what} of {size} bytes: allowed are 1 to {TOPIC_MAX_BYTES}")
    if _CONTROL.search(text):
        raise ProtocolError(Code.BAD_TOPIC, f"{what} {text!r} has a space or control character")
    tokens = text.split(".")
    if len(tokens) > TOPIC_MAX_TOKENS:
        raise ProtocolError(Code.BAD_TOPIC, f"{what} of {len(tokens)} tokens: at most {TOPIC_MAX_TOKENS} are allowed")
    if "" in tokens:
        raise ProtocolError(Code.BAD_TOPIC, f"{what} {text!r} has an empty token")
    return tokens


def check_topic(topic: str) -> None:
    """Raise ``bad_topic`` unless *topic* may be published to (T-1)."""
    tokens = _tokens(topic, "topic")
    if "*" in tokens or ">" in tokens:
        raise ProtocolError(Code.BAD_TOPIC, f"topic {topic!r} has a wildcard; only patterns may")


def check_publication(topic: str) -> None:
    """Raise ``bad_topic``, or ``reserved`` for the bus's own (T-3), unless a client may publish to *topic*."""
    check_topic(topic)
    if topic.startswith("$"):
        raise ProtocolError(Code.RESERVED, f"topic {topic!r} is the bus's own: choose one that does not begin with '$' (T-3)")


def split_pattern(pattern: str) -> list[str]:
    """The tokens of *pattern*; raises ``bad_topic`` where it is illegal (T-2)."""
    tokens = _tokens(pattern, "pattern")
    if ">" in tokens[:-1]:
        raise ProtocolError(Code.BAD_TOPIC, f"pattern {pattern!r} has '>' before its last token")
    return tokens


def is_literal(tokens: list[str]) -> bool:
    """Whether a pattern's tokens have no wildcard, so that it matches only itself."""
    return "*" not in tokens and tokens[-1] != ">"


def matches(pattern: str, topic: str) -> bool:
    """Whether a legal *pattern* matches a legal *topic* (T-2, T-3). The reference: the broker's index must agree with it."""
    wanted, have = pattern.split("."), topic.split(".")
    if have[0].startswith("$") and wanted[0] in ("*", ">"):
        return False
    for index, token in enumerate(wanted):
        if token == ">":
            return len(have) > index
        if index >= len(have) or token not in ("*", have[index]):
            return False
    return len(have) == len(wanted)


def matcher(pattern: str) -> Callable[[str], object]:
    """`matches` for a legal *pattern* and many topics: true for each legal one that it matches."""
    tokens = [{"*": "[^.]+", ">": ".+"}.get(token) or re.escape(token) for token in pattern.split(".")]
    guard = r"(?!\$)" if pattern[0] in "*>" else ""
    return re.compile(guard + r"\.".join(tokens), re.DOTALL).fullmatch


def is_name(text: str) -> bool:
    """Whether *text* has the grammar of a name (T-5), which groups and the codes of services (E-1) share; lengths are the caller's."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise ``bad_name`` unless *name* follows T-5, ``reserved`` where it is the bus's own."""
    if len(name) > TOPIC_MAX_BYTES:
        raise ProtocolError(Code.BAD_NAME, f"name of {len(name)} bytes: allowed are 1 to {TOPIC_MAX_BYTES}")
    if not _NAME.fullmatch(name):
        raise ProtocolError(Code.BAD_NAME, f"name {name!r} is not tokens of A-Z a-z 0-9 _ - with '.' between them")
    if name.count(".") >= TOPIC_MAX_TOKENS:
        raise ProtocolError(Code.BAD_NAME, f"name of {name.count('.') + 1} tokens: at most {TOPIC_MAX_TOKENS} are allowed")
    if name == BUS_NAME or name.startswith(BUS_NAME + "."):
        raise ProtocolError(Code.RESERVED, f"name {name!r} is the bus's own; choose one that does not begin with 'bus.'")


def check_method(method: str) -> None:
    """Raise ``bad_name`` unless *method* follows T-5."""
    if len(method) > METHOD_MAX_BYTES or not _METHOD.fullmatch(method):
        raise ProtocolError(
            Code.BAD_NAME,
            f"method {method[:200]!r} is not 1 to {METHOD_MAX_BYTES} of A-Z a-z 0-9 _ - . beginning with a letter or _",
        )


def check_group(group: str) -> None:
    """Raise ``bad_name`` unless *group* follows T-5."""
    if len(group) > GROUP_MAX_BYTES or not _NAME.fullmatch(group):
        raise ProtocolError(
            Code.BAD_NAME, f"group {group[:200]!r} is not 1 to {GROUP_MAX_BYTES} of A-Z a-z 0-9 _ - with '.' between tokens"
        )


def peer_address(peer: int) -> str:
    """The address of a peer (T-6): ``:42``."""
    return f":{peer}"


@lru_cache(maxsize=4096)
def parse_peer(address: str) -> int | None:
    """The peer id of ``:42``, or None where *address* is no peer address (T-6)."""
    found = _PEER.fullmatch(address)
    if found is None:
        return None
    peer = int(found[1])
    return peer if peer <= MAX_ID else None


@lru_cache(maxsize=4096)
def split_method(to: str) -> tuple[str, str]:
    """Name (or peer address) and method of a REQUEST's *to*; raises ``bad_name`` (T-6)."""
    target, slash, method = to.partition("/")
    if not slash:
        raise ProtocolError(Code.BAD_NAME, f"{to!r} has no method: a request goes to NAME/METHOD")
    check_method(method)
    return target, method
