"""Names of many nodes in few characters: `node[0-6,8]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from allranks.listing import few, printable

# What ClusterShell takes for one host; its set operators, groups and wildcards are none of a name.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# How the rendezvous names a node that was started with its rank.
_NUMBERED = re.compile(r"node (\d{1,9}) \(.*\)", re.DOTALL)
_LONGEST_NAME = 80
_SHOWN = 8


def fold(nodes: Iterable[str]) -> str:
    """`node[0-6,8],gpu7`, in natural order; names that are no host names stand by themselves."""
    return _folded(tuple(sorted(set(nodes), key=natural)))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts node2 before node10."""
    parts = re.split(r"([0-9]{1,9})", name)
    return tuple((0, int(part), part) if place % 2 else (1, 0, part) for place, part in enumerate(parts))


@lru_cache(maxsize=1024)
def _folded(nodes: tuple[str, ...]) -> str:
    if len(nodes) == 1:
        return printable(nodes[0], _LONGEST_NAME)
    if all(_NUMBERED.fullmatch(name) for name in nodes):
        return _set(f"node{match[1]}" for name in nodes if (match := _NUMBERED.fullmatch(name)))
    hosts = [name for name in nodes if _HOST.fullmatch(name)]
    others = [printable(name, _LONGEST_NAME) for name in nodes if not _HOST.fullmatch(name)]
    return ",".join([_set(hosts)] * bool(hosts) + [few(others, _SHOWN)] * bool(others))


def _set(hosts: Iterable[str]) -> str:
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    # Without the resolver it reads no group configuration, which may run commands.
    return str(NodeSet.fromlist(list(hosts), resolver=RESOLVER_NOGROUP))
