"""The network section in a rank: the variables that NCCL and gloo read, set before they do."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from allranks.cluster.environments import must_be_equal, network_settings
from allranks.cluster.gpus import count_gpus
from allranks.cluster.identity import Identity
from allranks.cluster.nccl_variables import settings
from allranks.cluster.network import DEBUG_FILE, DEFAULT_LOG, VERBOSE, network_environment
from allranks.config import RunConfig
from allranks.observe import RunDir
from allranks.train.nccl_log_size import remove_old_logs


def set_up_network(
    cfg: RunConfig, identity: Identity, run_dir: RunDir, env: MutableMapping[str, str] = os.environ
) -> list[str]:
    """Set what the config asks for, and give a verbose NCCL a file of this rank's own; returns what to tell the user.

    Below `allranks train` the launcher has set and told it all; under a launcher of the user's own, this does it. Call
    it before CUDA or a process group is used. Raises UsageError or RefusedError for what cannot be had on this node.
    """
    peer = None if identity.local_world_size == identity.world_size else identity.master_addr
    made = network_environment(cfg.network.settings, env, uses_gpus=count_gpus(env) > 0, peer=peer)
    env.update(made.added)
    if count_gpus(env) > 0 and "NCCL_DEBUG" not in settings(env):
        env.update({name: value for name, value in DEFAULT_LOG.items() if name not in settings(env)})
    log = nccl_log(env, identity, run_dir)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        remove_old_logs(log)
        # In NCCL's names % is special; %p, the process, keeps a restarted rank from emptying the log of its crash.
        env[DEBUG_FILE] = f"{str(log).replace('%', '%%')}.%p.log"
    if "ALLRANKS_RUN_ID" in env:
        return []
    overruled = [
        f"{name}={theirs} is set: the config's {ours} is not taken" for name, (theirs, ours) in made.kept.items()
    ]
    return made.findings + overruled


def nccl_log(env: Mapping[str, str], identity: Identity, run_dir: RunDir) -> Path | None:
    """Where this rank's NCCL logs to, without `.PID.log`; None where it logs little or was told a file already."""
    told = settings(env)
    if told.get("NCCL_DEBUG", "").upper() not in VERBOSE or DEBUG_FILE in told:
        return None
    node = socket.gethostname() if identity.node_rank is None else identity.node_rank
    logs = Path(env["ALLRANKS_LOG_DIR"]) if "ALLRANKS_LOG_DIR" in env else run_dir.logs(node).absolute()
    return logs / "nccl" / f"rank-{identity.rank:05d}"


def nccl_log_file(env: Mapping[str, str]) -> Path | None:
    """The file that NCCL of this process logs to; None where it was not told one."""
    name = settings(env).get(DEBUG_FILE)
    if not name or settings(env).get("NCCL_DEBUG", "").upper() not in VERBOSE:
        return None
    told = {"%%": "%", "%h": socket.gethostname().partition(".")[0], "%p": str(os.getpid())}
    return Path(re.sub("%[%hp]", lambda found: told[found[0]], name))


def equal_settings(cfg: RunConfig, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Config and variables that all ranks must share. Of the network section only what NCCL and gloo make of it counts:
    names of interfaces and adapters are a node's own."""
    flat = cfg.flat()
    flat.pop("network", None)
    return flat | must_be_equal(network_settings(env))
