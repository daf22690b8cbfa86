"""Which user of this machine is behind a loopback TCP connection, for the log: the kernel shows it to everybody in /proc/net."""

from __future__ import annotations

import socket
import struct

from .limits import TCP_TABLE_MAX_BYTES

_LOCAL, _REMOTE, _UID, _INODE = 1, 2, 7, 9


def owner_of(ends: tuple[str, str], directory: str = "/proc/net") -> int | None:
    """The uid of whoever holds the client's end of the connection between *ends*, the bus's and the client's as H-5 writes them.

    None where the kernel does not show it, or not among the first sockets: it is asked while everybody waits.
    """
    bus, client = ends
    for table in ("tcp", "tcp6"):
        try:
            keys = [_as_kernel(end, mapped=table == "tcp6").encode() for end in (client, bus)]
            with open(f"{directory}/{table}", "rb") as file:
                rows = file.read(TCP_TABLE_MAX_BYTES).split(b"\n")
        except (OSError, ValueError):
            continue
        for row in rows:
            if keys[0] in row and keys[1] in row:
                fields = row.split()
                if len(fields) > _INODE and fields[_LOCAL : _REMOTE + 1] == keys:
                    # Without an inode nobody holds it any more, and what stands for its uid is 0.
                    return int(fields[_UID]) if fields[_INODE] != b"0" else None
    return None


def _as_kernel(end: str, *, mapped: bool) -> str:
    """An address of H-5 as /proc/net/tcp shows it; *mapped*: as the same in IPv6."""
    host, _, port = end.rpartition(":")
    if host.startswith("["):
        packed = socket.inet_pton(socket.AF_INET6, host[1:-1])
    else:
        packed = bytes(10) + b"\xff\xff" + socket.inet_aton(host) if mapped else socket.inet_aton(host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{int(port):04X}"
