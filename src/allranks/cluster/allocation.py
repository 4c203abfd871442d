"""The nodes that a scheduler gave this job: Slurm's and PBS's own variables, read once and checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from allranks.cluster.nodes import Host, parse_hosts, read_hostfile
from allranks.errors import UsageError


@dataclass(frozen=True)
class Allocation:
    """`hosts` in the scheduler's order, the first is node 0. `scheduler` is "slurm" or "pbs". `gpus_per_node` is None
    where the scheduler does not tell (PBS never does)."""

    scheduler: str
    job_id: str
    hosts: tuple[Host, ...]
    gpus_per_node: int | None = None

    @property
    def port(self) -> int:
        """Where its nodes meet, if nobody says: jobs that share a node have numbers near each other, so their ports
        differ. Below Linux's ephemeral range (32768), so rarely taken by others."""
        number = re.search(r"\d+", self.job_id)
        return 20000 + int(number[0]) % 10000 if number else 20000

    def __str__(self) -> str:
        return f"{'Slurm' if self.scheduler == 'slurm' else 'PBS'} job {self.job_id}"


def find_allocation(env: Mapping[str, str]) -> Allocation | None:
    """The allocation that this process runs in: a batch script, `salloc`, an interactive job or a step of one task.

    None outside of one, and in one of several tasks that the user's own `srun` or `mpirun` started: those are ranks.
    Raises UsageError where the scheduler's variables are missing or contradict each other.
    """
    if "SLURM_JOB_ID" in env:
        return None if _one_of_several_tasks(env) else _slurm(env)
    if "PBS_JOBID" in env:
        return None if "OMPI_COMM_WORLD_RANK" in env or "PMI_RANK" in env else _pbs(env)
    return None


def _one_of_several_tasks(env: Mapping[str, str]) -> bool:
    # The batch script has SLURM_NTASKS of the whole job, but no step.
    return "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _slurm(env: Mapping[str, str]) -> Allocation:
    job = env["SLURM_JOB_ID"]
    if env.get("SLURM_HET_SIZE", "1") != "1":
        raise UsageError(
            f"Slurm job {job} is heterogeneous ({env['SLURM_HET_SIZE']} components): name the nodes with --hosts"
        )
    nodes = env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST")
    if not nodes:
        raise UsageError(
            f"SLURM_JOB_ID={job}, but SLURM_JOB_NODELIST is not set: pass Slurm's variables on to this process (sudo "
            "and containers drop them), or name the nodes with --hosts"
        )
    hosts = parse_hosts(nodes, source="SLURM_JOB_NODELIST")
    number = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES")
    if number and number != str(len(hosts)):
        raise UsageError(
            f"SLURM_JOB_NUM_NODES={number}, but SLURM_JOB_NODELIST={nodes} names {len(hosts)} node(s): one of them is "
            "left from another job; name the nodes with --hosts"
        )
    return Allocation("slurm", job, tuple(hosts), _slurm_gpus(env))


def _slurm_gpus(env: Mapping[str, str]) -> int | None:
    """SLURM_GPUS_PER_NODE is what was asked for ("4", "h200:4", "a100:2,v100:2"), SLURM_GPUS_ON_NODE what this node
    got (sbatch(1), output environment variables)."""
    for name in ("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"):
        if value := env.get(name):
            counts = [re.fullmatch(r"(?:[\w.-]+:)?(\d+)", part) for part in value.split(",")]
            if not all(counts):
                raise UsageError(f"{name}={value!r}: expected a number of GPUs")
            return sum(int(match[1]) for match in counts if match)
    return None


def _pbs(env: Mapping[str, str]) -> Allocation:
    job, path = env["PBS_JOBID"], env.get("PBS_NODEFILE")
    if not path:
        raise UsageError(
            f"PBS_JOBID={job}, but PBS_NODEFILE is not set: start this in the job script itself, or name the nodes "
            "with --hosts"
        )
    if not Path(path).is_file():
        raise UsageError(
            f"PBS_NODEFILE={path} does not exist here: PBS writes it on the first node of job {job}; start this there"
        )
    # One line for each process (mpiprocs) of each chunk: a node with several comes several times.
    return Allocation("pbs", job, tuple(read_hostfile(path, repeated=True)))
