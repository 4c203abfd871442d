"""What a node's ranks send over each of its links, and how fast that goes, by the kernel's own account of TCP."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from allranks.cluster.tcp_info import TcpInfo, connections_of, socket_inodes
from allranks.live.state import MAX_LINKS, LinkState

# All of /proc/PID/fd is read for it: a rank's connections stay as they are for most of a run.
_FIND_SECONDS = 5.0


class LinkCounter:
    """Follows the TCP connections of processes from its first look on. NCCL over InfiniBand has none."""

    def __init__(self) -> None:
        self._inodes: set[int] = set()
        self._found = float("-inf")
        self._seen: dict[int, TcpInfo] = {}
        self._links: dict[tuple[str, str], LinkState] = {}
        self._is_told = True

    def read(self, pids: Collection[int]) -> tuple[LinkState, ...]:
        """Those to other addresses, which carry most first; none where the kernel does not tell."""
        if not self._is_told:
            return ()
        now = time.monotonic()
        if now - self._found >= _FIND_SECONDS:
            self._found, self._inodes = now, {inode for pid in pids for inode in socket_inodes(pid)}
        try:
            seen = connections_of(self._inodes) if self._inodes else {}
        except OSError:
            self._is_told = False
            return ()
        for inode, one in seen.items():
            if one.local != one.peer:
                self._add(one, self._seen.get(inode))
        self._seen = seen
        return tuple(sorted(self._links.values(), key=lambda link: -link.acked_bytes)[:MAX_LINKS])

    def _add(self, one: TcpInfo, before: TcpInfo | None) -> None:
        if before is None or before.peer != one.peer or before.acked_bytes > one.acked_bytes:
            before = replace(one)  # what it sent before it was seen, as at the start, is not compared
        link = self._links.get((one.local, one.peer), LinkState(local=one.local, peer=one.peer))
        self._links[one.local, one.peer] = replace(
            link,
            acked_bytes=link.acked_bytes + one.acked_bytes - before.acked_bytes,
            carrying_seconds=link.carrying_seconds + max(0.0, one.carrying_seconds - before.carrying_seconds),
            num_segments=link.num_segments + max(0, one.num_segments - before.num_segments),
            num_retransmits=link.num_retransmits + max(0, one.num_retransmits - before.num_retransmits),
        )
