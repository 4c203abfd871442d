"""What the kernel knows of a node that says nothing any more: its machine may be off, cut off, or only not running."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from allranks.rendezvous.wire import CLOSED

# In struct tcp_info, include/uapi/linux/tcp.h: what was sent and is not acknowledged, and all segments that came.
_UNACKED_AT, _SEGMENTS_IN_AT, _INFO_BYTES = 24, 140, 144
# What was under way when it fell silent is here by then.
_SETTLED_SECONDS = 2.5


def gone(how: str) -> str:
    """What to say of a node whose connection ended by `how`."""
    return f"{how}: its launcher was killed, or its machine went down" if how == CLOSED else how


class Silence:
    """Of the node at the other end of `writer`, to which something is sent each second."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._segments_in: int | None = None

    def look(self, seconds: float) -> None:
        """To be called each second; nothing has been heard for `seconds`."""
        if seconds < _SETTLED_SECONDS:
            self._segments_in = None
        elif self._segments_in is None:
            self._segments_in = self._read(_SEGMENTS_IN_AT)

    def why(self, limit: float) -> str:
        """What to say of a node that has been silent for `limit` seconds."""
        told = f"no sign of life for {limit:.0f} s"
        unacked, segments_in = self._read(_UNACKED_AT), self._read(_SEGMENTS_IN_AT)
        if unacked is None or segments_in is None or self._segments_in is None:
            return told
        if unacked == 0:
            return (
                f"{told}; its machine takes what is sent to it, so that the link is whole, but the processes there do "
                "not run: they are stopped or frozen, or have no memory or CPU left"
            )
        if segments_in > self._segments_in:
            # Its kernel sends again and again what ours acknowledges.
            return (
                f"{told}; what is sent to it does not arrive, while packets of it still come: the link is cut in the "
                "direction to it, by a firewall, a route or a cable"
            )
        return f"{told}; nothing that is sent to it is acknowledged: the link to it is cut, or the machine is off"

    def _read(self, at: int) -> int | None:
        with contextlib.suppress(OSError, struct.error, AttributeError):
            own = self._writer.get_extra_info("socket")
            info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            return int(struct.unpack_from("=I", info, at)[0])
        return None
