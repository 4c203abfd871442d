"""What the kernel knows of a node that says nothing any more: its machine may be off, cut off, or only not running."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import NamedTuple

from allranks.cluster.tcp_info import connections_of, unmapped
from allranks.rendezvous.wire import CLOSED

# In struct tcp_info, include/uapi/linux/tcp.h: what was sent and is not acknowledged, all segments that were sent
# again, all that came, and all with data that were sent.
_UNACKED_AT, _RETRANSMITS_AT, _SEGMENTS_IN_AT, _SEGMENTS_OUT_AT, _INFO_BYTES = 24, 100, 140, 156, 192
# What was under way when it fell silent is here by then.
_SETTLED_SECONDS = 2.5
# A node speaks each second. Of what is sent again after it has spoken last nobody knows whether it was lost or the
# node was: that does not count.
_SPEAKING_SECONDS, _SPOKEN_LOOKS = 1.5, 60
# Healthy networks lose less than one of a thousand; one of some tens may be chance.
_LOST, _FEWEST = 0.03, 5


class _Sent(NamedTuple):
    num_segments: int
    num_retransmits: int


class Silence:
    """Of the node at the other end of `writer`, to which something is sent each second."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._segments_in: int | None = None
        self._spoken: deque[_Sent] = deque(maxlen=_SPOKEN_LOOKS)  # each second in which it spoke
        self._others: dict[int, tuple[int, _Sent]] = {}  # of other connections to it since then: bytes that came there

    def look(self, seconds: float) -> None:
        """To be called each second; nothing has been heard for `seconds`."""
        if seconds < _SPEAKING_SECONDS and (sent := self._sent()) is not None:
            self._spoken.append(sent)
        if seconds < _SETTLED_SECONDS:
            self._segments_in = None
        elif self._segments_in is None:
            self._segments_in = self._read(_SEGMENTS_IN_AT)
            self._others = self._of_others()

    def gone(self, how: str) -> str:
        """What to say of a node whose connection ended by `how`."""
        if how != CLOSED:
            return how
        # Whoever hears nothing over such a network goes by itself.
        return (
            f"{how}; {lossy}"
            if (lossy := self._loss())
            else f"{how}: its launcher was killed, or its machine went down"
        )

    def why(self, limit: float) -> str:
        """What to say of a node that has been silent for `limit` seconds."""
        told = f"no sign of life for {limit:.0f} s"
        unacked, segments_in = self._read(_UNACKED_AT), self._read(_SEGMENTS_IN_AT)
        if unacked is None or segments_in is None or self._segments_in is None:
            return told
        if lossy := self._loss():
            return f"{told}; {lossy}"
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

    def _loss(self) -> str:
        """That the network loses a part of what is sent to it, and carries the rest; "" where that is not known."""
        before = _Sent(0, 0)
        if len(self._spoken) > 1:
            first, last = self._spoken[0], self._spoken[-1]
            before = _Sent(last.num_segments - first.num_segments, last.num_retransmits - first.num_retransmits)
        of_others = self._of_others()
        for inode, (came, sent) in self._others.items():
            now_came, now_sent = of_others.get(inode, (came, sent))
            # Where nothing came in the meantime, all of it may have been sent to a machine that is off.
            if now_came > came:
                segments, retransmits = (new - old for new, old in zip(now_sent, sent, strict=True))
                before = _Sent(before.num_segments + segments, before.num_retransmits + retransmits)
        if before.num_retransmits < _FEWEST or before.num_retransmits < _LOST * before.num_segments:
            return ""
        share = min(1.0, before.num_retransmits / max(1, before.num_segments))
        return (
            f"the network to it loses packets: {100 * share:.0f} % of what this node sent to it had to be sent again "
            f"({before.num_retransmits} of {before.num_segments} segments) while it still answered. Its machine need "
            "not be down: look at the cables, the interfaces (ethtool -S) and the switch between"
        )

    def _sent(self) -> _Sent | None:
        segments, retransmits = self._read(_SEGMENTS_OUT_AT), self._read(_RETRANSMITS_AT)
        return None if segments is None or retransmits is None else _Sent(segments, retransmits)

    def _of_others(self) -> dict[int, tuple[int, _Sent]]:
        """By inode: what came to the same address over all connections of this machine, as those of the ranks."""
        with contextlib.suppress(OSError, ValueError, TypeError, IndexError):
            peer = unmapped(str(self._writer.get_extra_info("peername")[0]))
            return {
                inode: (one.acked_bytes, _Sent(one.num_segments, one.num_retransmits))
                for inode, one in connections_of(None).items()
                if one.peer == peer
            }
        return {}

    def _read(self, at: int) -> int | None:
        with contextlib.suppress(OSError, struct.error, AttributeError):
            own = self._writer.get_extra_info("socket")
            info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            return int(struct.unpack_from("=I", info, at)[0])
        return None
