"""Addresses of a bus, and where a named bus lives."""

from __future__ import annotations

import pytest

from ipcbus.protocol.addresses import (
    AddressError,
    TcpAddress,
    UnixAddress,
    check_bus_name,
    default_address,
    default_secret_path,
    is_loopback,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/ipcbus/default.sock", UnixAddress("/run/ipcbus/default.sock")),
        ("unix:/a:b", UnixAddress("/a:b")),
        ("unix:/" + "p" * 106, UnixAddress("/" + "p" * 106)),
        ("tcp:127.0.0.1:4222", TcpAddress("127.0.0.1", 4222)),
        ("tcp:127.1.2.3:0", TcpAddress("127.1.2.3", 0)),
        ("tcp:127.0.0.1:65535", TcpAddress("127.0.0.1", 65535)),
        ("tcp:[::1]:4222", TcpAddress("::1", 4222)),
    ],
)
def test_addresses_that_can_be_used(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


def test_localhost_is_a_word_for_a_number() -> None:
    assert parse_address("tcp:localhost:4222") == TcpAddress("127.0.0.1", 4222)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no address"),
        ("/run/x", "is no address"),
        ("unix:", "is no address"),
        ("udp:127.0.0.1:1", "is no address"),
        ("unix:relative", "absolute path"),
        ("unix:@abstract", "absolute path"),
        ("unix:/a\0b", "absolute path"),
        ("unix:/" + "p" * 107, "107 bytes"),
        ("unix:/" + "ä" * 54, "107 bytes"),
        ("tcp:", "loopback address and a port"),
        ("tcp:4222", "loopback address and a port"),
        ("tcp:127.0.0.1", "loopback address and a port"),
        ("tcp:127.0.0.1:", "loopback address and a port"),
        ("tcp:127.0.0.1:x", "loopback address and a port"),
        ("tcp:127.0.0.1:4222\n", "loopback address and a port"),
        ("tcp:::1:4222", "loopback address and a port"),
        ("tcp:example.org:4222", "loopback address and a port"),
        ("tcp:127.0.0.1:65536", "over 65535"),
        ("tcp:0.0.0.0:4222", "not loopback"),
        ("tcp:192.168.1.1:4222", "not loopback"),
        ("tcp:127.0.0.256:4222", "not loopback"),
        ("tcp:127.0.0.١:4222", "loopback address and a port"),
        ("tcp:127.0.0.1:٤", "loopback address and a port"),
        ("tcp:[::]:4222", "not loopback"),
        ("tcp:[fe80::1]:4222", "not loopback"),
    ],
)
def test_addresses_that_cannot_be_used_say_why(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("127.0.0", False),
        ("127.0.0.300", False),
        ("127.0.0.010", False),  # to the C library 127.0.0.8
        ("127.0.0.09", False),  # to the C library a name that it looks up
        ("127.00.0.1", False),
        ("0127.0.0.1", False),
        ("127.0.0.١", False),
        ("127.0.0.x", False),
        ("::1", True),
        ("::2", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_where_a_named_bus_lives() -> None:
    assert default_address("/run/user/1000/ipcbus") == UnixAddress("/run/user/1000/ipcbus/default.sock")
    assert default_address("/run/ipcbus", "lab.two") == UnixAddress("/run/ipcbus/lab.two.sock")
    assert default_secret_path("/run/ipcbus") == "/run/ipcbus/default.secret"
    assert default_secret_path("/run/ipcbus", "lab") == "/run/ipcbus/lab.secret"


@pytest.mark.parametrize("bus", ["", "..", "a/b", "../x", "a b", "ä", ".hidden", "b" * 129])
def test_names_of_buses_that_would_leave_their_directory(bus: str) -> None:
    with pytest.raises(AddressError, match="bus name"):
        check_bus_name(bus)
    with pytest.raises(AddressError):
        default_address("/run/ipcbus", bus)
    with pytest.raises(AddressError):
        default_secret_path("/run/ipcbus", bus)


def test_a_runtime_directory_that_is_too_long() -> None:
    with pytest.raises(AddressError, match="107 bytes"):
        default_address("/" + "d" * 100)
