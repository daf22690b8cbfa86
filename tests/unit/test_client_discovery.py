"""Where the client looks for the bus, and what it says when the environment is odd."""

from __future__ import annotations

import os
import warnings

import pytest

from ipcbus.protocol.addresses import AddressError
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
