"""The arguments of a call, as a payload: no payload is no arguments, a map is keyword arguments, an array positional ones, a map with the
key ``*`` both, and anything else is the one positional argument (PROTOCOL.md, end of section 8). For proxies and services.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._errors import BadArguments

POSITIONAL = "*"  #: the key of positional arguments beside those by name; no parameter can have it


def payload_of(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """What a caller sends for these arguments."""
    if not arguments:
        return dict(keywords) if keywords else None
    if keywords:
        return {POSITIONAL: list(arguments), **keywords}
    if len(arguments) == 1 and isinstance(arguments[0], (bytes, bytearray, memoryview)):
        return arguments[0]  # raw, without a copy into an array
    return list(arguments)


def arguments_of(data: Any) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments that a payload means. Raises BadArguments."""
    if data is None:
        return [], {}
    if isinstance(data, list):
        return data, {}
    if not isinstance(data, dict):
        return [data], {}
    keywords = dict(data)
    positional = keywords.pop(POSITIONAL, [])
    wrong = next((key for key in keywords if not isinstance(key, str)), None)
    if wrong is not None or not isinstance(positional, list):
        raise BadArguments("arguments are a map with names as keys, and an array under '*' where some have none")
    return positional, keywords
