"""Would this rank's node train alone although its environment speaks of several? For launchers of the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from allranks.cluster.identity import Identity
from allranks.cluster.node_variables import LOOPBACK, SCHEDULERS, place, signs
from allranks.config.foreign.accelerate_default import default_file, default_machines
from allranks.errors import UsageError

_MEANT = (
    "each node would train alone: give the launcher its number of nodes and this node's place (`torchrun --nnodes N "
    "--node-rank R --master-addr HOST …`, `srun`), or start `allranks train CONFIG`; NNODES=1 says that this node is "
    "meant to train alone"
)


def refuse_one_node_of_several(identity: Identity, env: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError naming the variable or file that means several nodes, where all ranks are on this one."""
    if "ALLRANKS_RUN_ID" in env or identity.local_world_size != identity.world_size:
        return  # `allranks` has compared them, or there are several nodes
    told = place(env)
    started = f"{identity.source} started {identity.world_size} rank(s) on this node and none elsewhere"
    if identity.source == "no launcher":
        started = "no launcher started this process"
    if nnodes := told.get("nnodes"):
        if int(nnodes.value.partition(":")[0]) > 1:
            raise UsageError(f"{nnodes.variable} is set, but {started}; {_MEANT}")
        return
    for option in ("node_rank", "rdzv_endpoint", "master_addr"):
        # Launchers set MASTER_ADDR themselves, also for one node.
        if option in told and identity.source == "no launcher" and not told[option].value.startswith(LOOPBACK):
            raise UsageError(f"{told[option].variable} is set, but {started}; {_MEANT}")
    if text := _of_a_job(identity, env) or next((sign.text for sign in signs(env)), None):
        raise UsageError(f"{text}, but {started}; {_MEANT}")
    # `accelerate launch` has read its own file, or was told otherwise.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in env
    if identity.source == "no launcher" and not by_accelerate and (machines := default_machines(env)) > 1:
        raise UsageError(f"{default_file(env)}: num_machines: {machines}, but {started}; {_MEANT}")


def warning_over_ssh(env: Mapping[str, str] = os.environ) -> str | None:
    """A loop of `ssh NODE command` in a script hands on nothing that the script exports: each node is then alone."""
    if "SSH_CONNECTION" not in env or "SSH_TTY" in env or os.isatty(0) or os.isatty(2):
        return None
    return (
        "this node trains alone: it was started over ssh, which hands on no variables of the script that did it, and "
        "nothing here names other nodes; --nnodes 1 (or NNODES=1) says that this is meant"
    )


def _of_a_job(identity: Identity, env: Mapping[str, str]) -> str | None:
    """What a job of Slurm or PBS around this process says of several nodes."""
    in_step = "SLURM_STEP_ID" in env
    names = ["SLURM_STEP_NUM_NODES"] if in_step else ["SLURM_JOB_NUM_NODES"]
    if in_step and identity.source == "Slurm":  # the only task, in a job of several nodes
        names.append("SLURM_JOB_NUM_NODES")
    for name in names if "SLURM_JOB_ID" in env else ():
        if env.get(name, "1") not in ("", "0", "1"):
            return f"{name}={env[name]} (Slurm) means {env[name]} nodes"
    nodefile = next(one for one in SCHEDULERS if one.variable == "PBS_NODEFILE")
    number = nodefile.count(env.get("PBS_NODEFILE", ""))
    return f"PBS_NODEFILE={env['PBS_NODEFILE']} (PBS) names {number} nodes" if number and number > 1 else None
