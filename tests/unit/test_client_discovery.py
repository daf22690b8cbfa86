"""Where the client looks for the bus, and what it says when the environment is odd."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ipcbus_client
from ipcbus.protocol.addresses import AddressError
from ipcbus_client import aio
from ipcbus_client._discovery import find_address, runtime_dir, trusted_uids


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "unix:/run/x.sock,tcp:127.0.0.1:4222", "unix:/run/x.sock, tcp:127.0.0.1:4222"])
def test_the_first_address_of_the_environment_counts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPCBUS_ADDRESS", text)
    assert str(find_address(None, None)) == "unix:/run/x.sock"
    assert str(find_address("tcp:127.0.0.1:1", None)) == "tcp:127.0.0.1:1"
    with pytest.raises(AddressError):
        find_address("unix:/a", "named")


def test_no_warning_without_a_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "IPCBUS_ADDRESS", "IPCBUS_BUS"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime_dir()
        assert str(find_address(None, "lab")).endswith("/lab.sock")


@pytest.mark.parametrize(("named", "more"), [("65534", {65534}), ("\u00b2", set()), ("\u0664", set()), ("root", set()), ("-1", set())])
def test_the_bus_user_is_a_number(monkeypatch: pytest.MonkeyPatch, named: str, more: set[int]) -> None:
    monkeypatch.setenv("IPCBUS_BUS_UID", named)
    assert trusted_uids() == {0, os.geteuid()} | more


@pytest.mark.parametrize("connect", [ipcbus_client.connect, aio.connect])
@pytest.mark.parametrize("options", [{"address": 3}, {"address": Path("/run/x.sock")}, {"bus": 3}, {"program": 3}])
def test_what_is_no_text_is_told_by_its_option(connect: Callable[..., Any], options: dict[str, Any]) -> None:
    async def connecting() -> None:
        made = connect(**options)
        if connect is aio.connect:
            await made

    (option,) = options
    with pytest.raises(TypeError, match=f"^{option}=.*: it is a str, or None"):
        asyncio.run(connecting())
