"""Slurm's srun, inside an allocation: one job step a node, of one task, which is the agent."""

from collections.abc import Sequence

from allranks.cluster.nodes import Host


def srun_command(host: Host, agent: Sequence[str]) -> list[str]:
    """A step of its own for each node, so that each has its own streams and its own end (checked with Slurm 22.05)."""
    return [
        "srun",
        f"--nodelist={host.name}",
        "--nodes=1",
        "--ntasks=1",
        "--ntasks-per-node=1",
        # Beside other steps of the job: we may be inside one, and its memory and GPUs are ours to share.
        "--overlap",
        # All cores of the job on this node: one task of one core would starve the ranks that it starts.
        "--cpu-bind=none",
        "--mem=0",
        "--quiet",
        "--unbuffered",
        "--mpi=none",
        "--export=ALL",
        "--",
        *agent,
    ]
