"""The kinds of failures, and which of them follow from another one."""

from __future__ import annotations

import re

RANK_KILLED = "rank-killed"
"""A signal ended a rank that could say nothing: out of memory, a crash in native code, an operator."""
RANK_ABORTED = "rank-aborted"
"""A rank aborted itself: a fault of native code, or the watchdog of a collective that others left."""
RANK_ERROR = "rank-error"
"""A rank's own error: of the user's code, the data, the disk, the config."""
OUT_OF_MEMORY = "out-of-memory"
"""A rank could not have the memory that it asked for, or the kernel killed it for want of memory."""
DISK = "disk"
"""A disk of a rank or node is full, read-only, gone or failing."""
RANK_STOPPED = "rank-stopped"
"""A rank does not run although nothing ended it: stopped by a signal, held by a debugger, or waiting in the kernel."""
HANG = "hang"
"""Ranks have been at the same place for longer than they may be: one of them does not come."""
RANK_EXIT = "rank-exit"
"""A rank of anyone's program ended with a code of its own."""
RANK_LEFT = "rank-left"
"""A rank of anyone's program ended well while the others still needed it: it had fewer batches, or returned early."""
LAUNCHER_KILLED = "launcher-killed"
"""A signal ended what starts the ranks of a node, which ended with it."""
NODE_LOST = "node-lost"
"""A node gave no sign of life any more."""
NODE_ERROR = "node-error"
"""A node's launcher failed, and nothing tells of a rank."""
CHANNEL_FAULT = "channel-fault"
"""What talks to the other nodes failed by a fault of its own: to them this node then seems lost."""
UNREACHABLE = "unreachable"
"""Nodes that have met, and whose ranks could not talk to each other."""
PEER_GONE = "peer-gone"
"""A rank or a node felt that another one had gone: its error is of the connection, not its own."""
STOPPED = "stopped"
"""A rank ended because it was told to, as ranks are whose launcher ends."""
INTERRUPTED = "interrupted"
"""Somebody, or a scheduler, asked a node to end the run."""
STOP_TIMEOUT = "stop-timeout"
"""Ranks that were asked to save and stop did not within the grace time, and were killed."""
REFUSED = "refused"
"""A node refused the config, its options, or what it was to start with."""
FAULT = "fault"
"""A fault of allranks itself."""

# How the ends of a broken connection are worded: gloo (torch 2.6 to 2.13), NCCL 2.2x, TCPStore, c10d's watchdog.
_PEER_GONE = re.compile(
    r"connection (?:closed|reset|refused|was closed|was reset) by (?:remote )?peer|connection reset|broken pipe"
    r"|socket closed|remote process exited|ncclRemoteError"
    r"|connectFullMesh|failed to recv|recvValue failed|sendBytes failed"
    r"|DistStoreError|another (?:rank|node) (?:has )?failed",
    re.IGNORECASE | re.DOTALL,
)
# How they word that a rank has waited for the others for as long as a collective may take.
_WAITED = re.compile(
    r"(?:timed out waiting|wait timeout).*\b(?:recv|send|all_?reduce|barrier)"
    r"|Watchdog caught collective operation timeout"
    r"|failed to pass monitoredBarrier|Application timeout caused pair closure",
    re.IGNORECASE | re.DOTALL,
)

# Among causes, what cannot follow from another's failure comes before what might be one in disguise: a launcher that
# fails for no reason it tells.
_ORDER = {
    RANK_KILLED: 0,
    OUT_OF_MEMORY: 0,
    RANK_ERROR: 1,
    DISK: 1,
    LAUNCHER_KILLED: 1,
    NODE_LOST: 1,
    UNREACHABLE: 1,
    CHANNEL_FAULT: 1,
    REFUSED: 1,
    FAULT: 1,
    # That others then end with a code of their own, or abort, is what follows of it.
    RANK_STOPPED: 2,
    HANG: 3,  # of a rank that is stopped, too
    RANK_EXIT: 4,
    RANK_LEFT: 4,
    RANK_ABORTED: 4,
    NODE_ERROR: 5,
    INTERRUPTED: 5,
    STOP_TIMEOUT: 5,
    PEER_GONE: 6,
    STOPPED: 7,
}


def code_of_error(message: str) -> str:
    """RANK_ERROR or, where the message is of a connection that another one left, PEER_GONE."""
    return PEER_GONE if _PEER_GONE.search(message) or waited_in_vain(message) else RANK_ERROR


def waited_in_vain(message: str) -> bool:
    """Whether a rank ended because others did not come to a collective in time: it is one of those that did."""
    return _WAITED.search(message) is not None


def may_pass(code: str) -> bool:
    """Whether the same start may do better: not after an error of a rank's own, such as a loss that is not a number,
    a mistake in the config, or a full disk."""
    return code not in (RANK_ERROR, RANK_EXIT, RANK_LEFT, OUT_OF_MEMORY, DISK, REFUSED, FAULT)


def is_cause(code: str) -> bool:
    """Whether it cannot be told to follow from another failure."""
    return precedence(code) < _ORDER[PEER_GONE]


def precedence(code: str) -> int:
    """Causes come before consequences; a kind that a later version knows counts as a cause that may be one."""
    return _ORDER.get(code, _ORDER[NODE_ERROR])
