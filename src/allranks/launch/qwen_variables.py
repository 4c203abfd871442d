"""The variables by which Qwen's scripts say which node this is, as options of `allranks train`."""

from collections.abc import Collection, Mapping

from allranks.cluster.gpus import count_gpus
from allranks.errors import UsageError

VARIABLES = {
    "nnodes": "NNODES",
    "node_rank": "NODE_RANK",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "nproc_per_node": "GPUS_PER_NODE",
}
"""Option -> the scripts' variable."""
PORT = 6001
_SMALLEST = {"nnodes": 1, "node_rank": 0, "master_port": 1, "nproc_per_node": 1}
# They name the nodes in another way.
_INSTEAD = ("hosts", "hostfile", "rdzv_endpoint")


def launch_words(env: Mapping[str, str], given: Collection[str]) -> list[str]:
    """The options that the environment stands for, without those that were `given` on the command line, which wins.

    Raises UsageError for variables that are missing, no numbers, or contradict each other: the scripts' own defaults
    make every node train alone, or wait for ever.
    """
    _refuse_rank(env, given)
    told = {option: env[name] for option, name in VARIABLES.items() if env.get(name) and option not in given}
    for option in told.keys() & _SMALLEST.keys():
        _check_number(VARIABLES[option], told[option], _SMALLEST[option])
    if set(_INSTEAD).isdisjoint(given):  # else the processes are not this node's
        _check_processes(told)
    if not set(_INSTEAD).isdisjoint(given):
        told = {option: value for option, value in told.items() if option == "nproc_per_node"}
    elif "nnodes" in given or int(told.get("nnodes", 1)) > 1:
        _check_several(env, told, given)
        if "master_port" not in given:
            told.setdefault("master_port", str(PORT))
    else:
        told = _alone(told)
    return [word for option, value in told.items() for word in (f"--{option.replace('_', '-')}", value)]


def _alone(told: dict[str, str]) -> dict[str, str]:
    others = [option for option in ("node_rank", "master_addr", "master_port") if option in told]
    if "nnodes" not in told and others:
        shown = ", ".join(f"{VARIABLES[option]}={told[option]}" for option in others)
        raise UsageError(
            f"{shown} is set and NNODES is not: each node would train alone; set NNODES to the number of nodes, the "
            "same on all (1 to train on this node alone)"
        )
    if told.get("node_rank", "0") != "0":
        raise UsageError(f"NODE_RANK={told['node_rank']} with NNODES=1: a single node has rank 0")
    return {option: value for option, value in told.items() if option == "nproc_per_node"}


def _check_several(env: Mapping[str, str], told: Mapping[str, str], given: Collection[str]) -> None:
    missing = [option for option in ("node_rank", "master_addr") if option not in told and option not in given]
    if missing:
        nodes = f"NNODES={told['nnodes']}" if "nnodes" in told else "--nnodes"
        what = {
            "node_rank": "NODE_RANK (0 on the first node, then 1, 2, …)",
            "master_addr": "MASTER_ADDR (an address of node 0 that the others reach)",
        }
        raise UsageError(f"{nodes} also needs {' and '.join(what[option] for option in missing)}")
    nnodes, node_rank, port = (told.get(option) for option in ("nnodes", "node_rank", "master_port"))
    if nnodes and node_rank and int(node_rank) >= int(nnodes):
        raise UsageError(f"NODE_RANK={node_rank} with NNODES={nnodes}: node ranks go from 0 to {int(nnodes) - 1}")
    if port and int(port) > 65535:
        raise UsageError(f"MASTER_PORT={port}: expected 1 to 65535, the same on all nodes")
    slurm = env.get("SLURM_NODEID") if "SLURM_STEP_ID" in env else None
    rank = told.get("node_rank")
    if rank is not None and slurm is not None and env.get("SLURM_NNODES") == told.get("nnodes") and rank != slurm:
        raise UsageError(
            f"NODE_RANK={rank}, but Slurm says that this is node {slurm} of its step: in a batch script SLURM_NODEID "
            "is always 0, so set NODE_RANK in each task: `srun bash -c 'NODE_RANK=$SLURM_NODEID allranks qwen …'`"
        )


def _check_processes(told: Mapping[str, str]) -> None:
    asked, there = int(told.get("nproc_per_node", 1)), count_gpus()
    if 0 < there < asked:
        raise UsageError(
            f"GPUS_PER_NODE={asked}, but this node has {there} visible GPU(s) and each process needs its own; leave it "
            "out to use all of them"
        )


def _refuse_rank(env: Mapping[str, str], given: Collection[str]) -> None:
    if env.get("RANK") and not env.get("NODE_RANK") and not {"node_rank", *_INSTEAD} & set(given):
        raise UsageError(
            f"RANK={env['RANK']} is set and NODE_RANK is not: a node's own number is NODE_RANK; RANK counts processes, "
            "and the launcher sets it for each. Set NODE_RANK, and unset RANK"
        )


def _check_number(name: str, value: str, smallest: int) -> None:
    if not (value.isascii() and value.isdigit() and int(value) >= smallest):
        raise UsageError(f"{name}={value!r}: expected a whole number of at least {smallest}")
