"""Who am I? Rank, world size and rendezvous address of this process, from the variables its launcher set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from allranks.errors import UsageError


@dataclass(frozen=True)
class Identity:
    """One process among `world_size`; ranks count from 0. `source` names the launcher whose variables told it.

    `local_world_size` and `node_rank` are None where the launcher does not tell: not every one counts nodes, and ranks
    need not lie on them in order.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    node_rank: int | None
    master_addr: str
    master_port: int
    source: str

    @property
    def alone(self) -> bool:
        return self.world_size == 1


# Open MPI (prterun/orterun), then PMI with the local ranks that MPICH's Hydra and Intel MPI add to it.
_MPI_FLAVOURS = (
    (
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_SLURM_SIZE = "SLURM_STEP_NUM_TASKS"
# Left by launchers that srun or mpirun may have started: torchrun, DeepSpeed's, and ours (Ray's workers too).
_OWN_NUMBERING = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "ALLRANKS_RUN_ID")


def identify(env: Mapping[str, str]) -> Identity:
    """The identity that `env` describes: torchrun's variables first, then MPI's, then those of a Slurm step.

    Without any of them the process is alone (world size 1). Raises UsageError where variables are missing,
    not numbers, or contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        _refuse_another_numbering(env)
        return _from_torchrun(env)
    for name, rank, size, local_rank, local_size in _MPI_FLAVOURS:
        if rank in env and size in env:
            if not env.get(local_rank) and _is_slurm_step(env) and env.get("SLURM_PROCID") == env[rank]:
                # srun --mpi=pmi2 sets PMI's ranks, and tells the local ones in its own variables only.
                return _from_slurm(env)
            return _from_mpi(env, name, rank, size, local_rank, local_size)
    if _is_slurm_step(env):
        return _from_slurm(env)
    return Identity(0, 1, 0, 1, 0, "127.0.0.1", 0, "no launcher")


def is_numbered(env: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of its ranks, or as its only one.

    The only task of a step of Slurm is none: there srun stands for the shell of a node.
    """
    # `accelerate launch` of a single process numbers nothing.
    if "RANK" in env or "WORLD_SIZE" in env or "ACCELERATE_MIXED_PRECISION" in env:
        return True
    try:
        identity = identify(env)
    except UsageError:  # some numbers are there: the rank says which are missing
        return True
    return not identity.alone or identity.source not in ("no launcher", "Slurm")


def refuse_part_of_a_job(env: Mapping[str, str]) -> None:
    """Raises UsageError in a batch script of Slurm for several tasks: outside of srun a process trains alone."""
    if "SLURM_JOB_ID" not in env or identify(env).source != "no launcher":
        return
    tasks = _number(env, "SLURM_NTASKS", default=_number(env, "SLURM_JOB_NUM_NODES", default=1))
    if tasks > 1:
        raise UsageError(
            f"this Slurm job has {tasks} tasks, but this process was not started by srun and would train alone: write "
            "`srun python -m allranks.train CONFIG`, or `allranks train CONFIG`, which starts on all nodes of the job"
        )


def _refuse_another_numbering(env: Mapping[str, str]) -> None:
    # `export RANK=0 WORLD_SIZE=4` in a job script reaches all four tasks, which would wait for ranks 1 to 3 for ever.
    if any(name in env for name in _OWN_NUMBERING):
        return
    numberings = [("SLURM_PROCID", _SLURM_SIZE)] if _is_slurm_step(env) else []
    numberings += [(rank, size) for _, rank, size, _, _ in _MPI_FLAVOURS]
    for rank, size in numberings:
        same_size = size in env and env.get("WORLD_SIZE", env[size]) == env[size] != "1"
        if same_size and rank in env and env.get("RANK") != env[rank]:
            raise UsageError(
                f"RANK={env.get('RANK', '(not set)')}, but {rank}={env[rank]}: they number the same {env[size]} "
                "processes differently; unset RANK and WORLD_SIZE in the job script, as srun and mpirun number the "
                "ranks themselves"
            )


def _refuse_own_address(address: str, local_size: int | None, world_size: int, source: str) -> None:
    if local_size not in (None, world_size) and (address == "localhost" or address.startswith(("127.", "::1"))):
        raise UsageError(
            f"MASTER_ADDR={address}, but {source} started {world_size} ranks on several nodes: it leads every node to "
            "itself; give an address of rank 0's node that the others can reach"
        )


def _is_slurm_step(env: Mapping[str, str]) -> bool:
    # A batch script has SLURM_PROCID=0 and SLURM_NTASKS too; only a step started by srun has a step id.
    return "SLURM_STEP_ID" in env and "SLURM_PROCID" in env


def _from_torchrun(env: Mapping[str, str]) -> Identity:
    source = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "the environment (RANK, WORLD_SIZE)"
    # DeepSpeed's launcher has names of its own for the rank and size of a node.
    local_size, node_rank = ("LOCAL_WORLD_SIZE", "GROUP_RANK")
    if "CROSS_RANK" in env and local_size not in env:
        source, local_size, node_rank = "DeepSpeed's launcher", "LOCAL_SIZE", "CROSS_RANK"
    needed = ["RANK", "WORLD_SIZE"]
    if env.get("WORLD_SIZE") != "1":
        needed += ["MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in needed if not env.get(name)]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not set, but {'RANK' if 'RANK' in env else 'WORLD_SIZE'} is: either start with "
            "torchrun (or `allranks train --nproc-per-node N`), which sets all of RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT, or unset them all to run one process"
        )
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local_rank = _number(env, "LOCAL_RANK", default=0 if world_size == 1 else None)
    local_world_size = _optional_number(env, local_size, default=1 if world_size == 1 else None)
    return _checked(
        Identity(
            rank,
            world_size,
            local_rank,
            local_world_size,
            _optional_number(env, node_rank, default=0 if local_world_size == world_size else None),
            env.get("MASTER_ADDR", "127.0.0.1"),
            _number(env, "MASTER_PORT", default=0),
            source,
        )
    )


def _from_mpi(env: Mapping[str, str], name: str, rank: str, size: str, local_rank: str, local_size: str) -> Identity:
    my_rank, world_size = _number(env, rank), _number(env, size)
    my_local_rank = _number(env, local_rank, default=0 if world_size == 1 else None)
    my_local_size = _number(env, local_size, default=1 if world_size == 1 else None)
    address = env.get("MASTER_ADDR")
    if not address:
        if my_local_size != world_size:
            raise UsageError(
                f"started by {name} with {world_size} ranks on several nodes, but MASTER_ADDR is not set: pass the "
                "address of rank 0's node to all ranks, e.g. `mpirun -x MASTER_ADDR=node0 -x MASTER_PORT=29500 …`"
            )
        address = "127.0.0.1"
    _refuse_own_address(address, my_local_size, world_size, name)
    job = env.get("PMIX_NAMESPACE") or env.get("PMI_KVSNAME") or env.get("OMPI_MCA_ess_base_jobid") or name
    return _checked(
        Identity(
            my_rank,
            world_size,
            my_local_rank,
            my_local_size,
            # OMPI_COMM_WORLD_NODE_RANK is a rank *on* the node; which node it is, MPI does not say.
            0 if my_local_size == world_size else None,
            address,
            _number(env, "MASTER_PORT", default=_port_of_job(job)),
            name,
        )
    )


def _from_slurm(env: Mapping[str, str]) -> Identity:
    rank = _number(env, "SLURM_PROCID")
    world_size = _number(env, _SLURM_SIZE, default=_number(env, "SLURM_NTASKS", default=1))
    address = env.get("MASTER_ADDR")
    if not address:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST")
        if not nodes:
            raise UsageError("inside a Slurm step, but neither SLURM_STEP_NODELIST nor MASTER_ADDR is set")
        from ClusterShell.NodeSet import NodeSet  # only under Slurm: keeps start-up short elsewhere

        address = NodeSet(nodes)[0]
    tasks, node = env.get("SLURM_STEP_TASKS_PER_NODE"), _optional_number(env, "SLURM_NODEID", default=None)
    # "2(x3),1" means 2,2,2,1; what counts here is the entry of this node.
    local_size = _tasks_of_node(tasks, node) if tasks and node is not None else None
    _refuse_own_address(address, local_size, world_size, "Slurm")
    job = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
    return _checked(
        Identity(
            rank,
            world_size,
            _number(env, "SLURM_LOCALID", default=0),
            local_size,
            node,
            address,
            _number(env, "MASTER_PORT", default=_port_of_job(job)),
            "Slurm",
        )
    )


def _tasks_of_node(tasks_per_node: str, node: int) -> int:
    counts: list[int] = []
    for entry in tasks_per_node.split(","):
        count, _, repeat = entry.partition("(x")
        counts += [int(count)] * int(repeat.rstrip(")") or 1)
    return counts[node] if node < len(counts) else counts[-1]


def _port_of_job(job: str) -> int:
    """A port that every rank of a job computes alike: below Linux's ephemeral range (32768), so rarely taken."""
    return 20000 + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big") % 10000


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None or value == "":
        if default is None:
            raise UsageError(f"{name} is not set; the launcher of this process must set it")
        return default
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{name}={value!r} is not a whole number") from None


def _optional_number(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    return _number(env, name) if env.get(name) else default


def _checked(identity: Identity) -> Identity:
    if not 0 <= identity.rank < identity.world_size:
        raise UsageError(
            f"rank {identity.rank} is not below the world size {identity.world_size} (from {identity.source}): "
            "RANK counts all processes of all nodes from 0; a node's own number belongs into --node-rank"
        )
    if identity.local_world_size is not None and identity.local_rank >= identity.local_world_size:
        raise UsageError(
            f"local rank {identity.local_rank} is not below the {identity.local_world_size} processes of this node "
            f"(from {identity.source})"
        )
    return identity
