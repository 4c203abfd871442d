"""The network's settings on this node: rendered, told to the user, handed to the ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from allranks.cluster.nccl_variables import settings
from allranks.cluster.network import DEBUG_FILE, DEFAULT_LOG, VERBOSE, network_environment
from allranks.config import RunConfig
from allranks.config.sections.network import NetworkSettings
from allranks.launch.spec.options import Launch
from allranks.observe import say


def network_variables(
    cfg: RunConfig | None, launch: Launch, logs: Path, env: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Variables to add for the ranks of this node, after telling the user what holds and what is doubtful.

    Without a config (somebody else's program) the user's variables are only checked, and a verbose NCCL logs into
    `logs`/nccl; our own ranks name their files themselves. Raises UsageError and RefusedError as network_environment.
    """
    network = cfg.network.settings if cfg else NetworkSettings.model_validate({})
    peer = launch.address if launch.max_nodes > 1 else None
    made = network_environment(network, env, uses_gpus=launch.num_gpus > 0, peer=peer)
    for finding in made.findings:
        say(f"warning: {finding}", file=sys.stderr)
    for line in made.shown:
        say(f"{'network:':<12}{line}")
    added, told = made.added, settings({**env, **made.added})
    if cfg is None and launch.num_gpus > 0 and "NCCL_DEBUG" not in told:
        added = {**{name: value for name, value in DEFAULT_LOG.items() if name not in told}, **added}
        told = settings({**env, **added})
    if told.get("NCCL_DEBUG", "").upper() not in VERBOSE or DEBUG_FILE in told:
        return added
    folder = (logs / "nccl").absolute()
    say(f"{'nccl log:':<12}a file for each rank in {folder}")
    if cfg is not None:
        return added
    folder.mkdir(parents=True, exist_ok=True)
    return added | {DEBUG_FILE: f"{str(folder).replace('%', '%%')}/%h.%p.log"}
