"""Did as many nodes and ranks come as this node was told? torchrun joins nodes that say different numbers."""

import os
from collections.abc import Mapping

from allranks.cluster.identity import Identity
from allranks.errors import UsageError

EXPECTED_WORLD_SIZE = "ALLRANKS_WORLD_SIZE"
EXPECTED_NODES = "ALLRANKS_NNODES"
DATA_FINGERPRINT = "ALLRANKS_DATA_FINGERPRINT"
"""Of what the launcher of this node prepared for its ranks, so that each of them need not read all data again."""
"""Set by `allranks train` where it knows them. Ranks also compare the number of nodes with each other."""


def check_world_size(identity: Identity, env: Mapping[str, str] = os.environ) -> None:
    """Compare the world size with what `allranks train` on this node knows of it. Raises UsageError."""
    node = "this node" if identity.node_rank is None else f"node {identity.node_rank}"
    expected, nodes = env.get(EXPECTED_WORLD_SIZE), env.get(EXPECTED_NODES)
    if expected and int(expected) != identity.world_size:
        raise UsageError(
            f"{node} was started for {expected} ranks, but {identity.world_size} met: all nodes "
            "must say the same --nnodes, and --nproc-per-node must be what the others expect of this node"
        )
    if nodes and identity.world_size < int(nodes):
        raise UsageError(
            f"{node} was started as one of {nodes} nodes, but only {identity.world_size} rank(s) met: all nodes must "
            "say the same --nnodes"
        )
