"""How TCP connections fare, as the kernel tells anybody of those in its network namespace: sock_diag(7)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP = 4, 20, 0x301
_DONE, _ERROR = 3, 2
_INET_DIAG_INFO, _ESTABLISHED = 2, 1
_HEADER = struct.Struct("=IHHII")
"""include/uapi/linux/netlink.h: length, type, flags, sequence, port."""
_REQUEST = struct.Struct("=BBBBI48s")
"""include/uapi/linux/inet_diag.h: family, protocol, extensions, padding, states, whose."""
_ADDRESSES = struct.Struct("=4x4x16s16s12x16xI")
"""The same: two addresses, and after timers, queues and user the inode."""
_ANSWER_SECONDS = 0.5
_MOST_BYTES = 16 * 2**20  # some ten thousand connections


@dataclass(frozen=True)
class TcpInfo:
    """A connection, from its beginning on."""

    local: str
    peer: str
    acked_bytes: int
    num_segments: int
    num_retransmits: int
    """Of the segments: they were lost, or their acknowledgement was."""
    carrying_seconds: float
    """In which something was under way, and the peer had room for it: a process that does not read is no slow link."""


def connections_of(inodes: Collection[int] | None) -> dict[int, TcpInfo]:
    """The established connections of these sockets, or of all, by inode. Raises OSError where the kernel does not
    tell."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(family):
            if (told := _read(body, inodes)) is not None:
                found[told[0]] = told[1]
    return found


def socket_inodes(pid: int) -> set[int]:
    """The sockets that a process holds; none where it may not be looked at."""
    found = set()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if named := re.fullmatch(r"socket:\[(\d+)\]", str(fd.readlink())):
                    found.add(int(named[1]))
    return found


def _dump(family: int) -> Iterator[bytes]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, 1 << _ESTABLISHED, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(_ANSWER_SECONDS)
        asking.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        num_bytes = 0
        while num_bytes < _MOST_BYTES:
            answer = asking.recv(2**16)
            num_bytes += len(answer)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, kind, *_ = _HEADER.unpack_from(answer, at)
                body = answer[at + _HEADER.size : at + length]
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _HEADER.size:
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    raise OSError(number, os.strerror(number))
                yield body
                at += (length + 3) & ~3


def _read(body: bytes, inodes: Collection[int] | None) -> tuple[int, TcpInfo] | None:
    if len(body) < _ADDRESSES.size:
        return None
    source, destination, inode = _ADDRESSES.unpack_from(body)
    if inodes is not None and inode not in inodes:
        return None
    at = _ADDRESSES.size
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind == _INET_DIAG_INFO:
            told = _tcp_info(body[at + 4 : at + length], _address(body[0], source), _address(body[0], destination))
            return None if told is None else (inode, told)
        at += max(4, (length + 3) & ~3)
    return None


def _tcp_info(info: bytes, local: str, peer: str) -> TcpInfo | None:
    """include/uapi/linux/tcp.h; kernels before 4.10 end before what is needed here."""
    if len(info) < 184:
        return None
    (retransmits,) = struct.unpack_from("=I", info, 100)
    (acked,) = struct.unpack_from("=Q", info, 120)
    (segments,) = struct.unpack_from("=I", info, 156)  # with data
    busy, no_room = struct.unpack_from("=QQ", info, 168)
    return TcpInfo(local, peer, acked, segments, retransmits, max(0, busy - no_room) / 1e6)


def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(packed[:4]))
    return unmapped(str(ipaddress.IPv6Address(packed)))


def unmapped(address: str) -> str:
    """The IPv4 address where that is meant by one of IPv6, as in ::ffff:10.0.0.1. Raises ValueError for a name."""
    known = ipaddress.ip_address(address.partition("%")[0])
    return str((known.ipv4_mapped if isinstance(known, ipaddress.IPv6Address) else None) or known)
