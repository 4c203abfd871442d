"""What Qwen's scripts do otherwise than `allranks train` with the variables of a node's place: their port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from allranks.launch.spec.from_environment import with_environment

if TYPE_CHECKING:
    from allranks.launch.spec.options import LaunchOptions
    from allranks.launch.spec.where import NodeOptions

PORT = 6001


def port_words(options: LaunchOptions, nodes: NodeOptions, env: Mapping[str, str]) -> list[str]:
    """`--master-port 6001` where several nodes meet and nobody says a port. Raises UsageError as `train` will."""
    found, _ = with_environment(options, nodes, env)
    is_several = found.nnodes not in (None, "1") and found.rdzv_endpoint is None and nodes.hosts is nodes.hostfile
    return ["--master-port", f"{PORT}"] if is_several and found.master_port is None else []
