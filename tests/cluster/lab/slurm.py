"""Slurm on a lab: slurmctld on node0, slurmd and munged on every node, and four pretended GPUs on each."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass

from tests.cluster.lab.node import Node

READY_SECONDS = 60
# Nodes claim more than this machine has (config_overrides). Terminals stand in for the GPUs' device files: Slurm only
# asks that they exist, and jobs then see CUDA_VISIBLE_DEVICES. The intervals are as short as Slurm allows.
SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
SlurmdTimeout=10
KillWait=5
JobRequeue=1
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName={nodes} CPUs=4 RealMemory=4000 Gres=gpu:h200:4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=120
PartitionName=long Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"
GRES_CONF = "NodeName={nodes} Name=gpu Type=h200 File=/dev/tty[10-13]\n"


@dataclass(frozen=True)
class Job:
    """How a job stands or ended: Slurm's JobState, and the exit code and signal of its script."""

    state: str
    exit_code: int
    signal: int


class Slurm:
    """`sbatch`, `srun`, `salloc` and the rest work on every node. Partitions: batch (the default) and long, and
    urgent, which takes nodes away from jobs of batch: two minutes after it has told them so."""

    def __init__(self, nodes: list[Node]):
        self._nodes = nodes
        self._names = ",".join(node.name for node in nodes)

    def start(self, nodes: list[Node]) -> None:
        """Start the daemons on `nodes`, which have none, and wait until Slurm sees them."""
        for node in nodes:
            node.run(["sh", "-c", "rm -rf /etc/slurm && mkdir -p /etc/slurm /var/spool/slurmctld"], check=True)
            _write(node, "/etc/slurm/slurm.conf", SLURM_CONF.format(controller=self._nodes[0].name, nodes=self._names))
            _write(node, "/etc/slurm/cgroup.conf", CGROUP_CONF)
            _write(node, "/etc/slurm/gres.conf", GRES_CONF.format(nodes=self._names))
            # All nodes have the key that Debian's package made on this machine. munged refuses to run as root.
            node.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge"], check=True)
            node.daemon(["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"])
            if node is self._nodes[0]:
                node.daemon(["slurmctld"])
        for node in nodes:
            node.daemon(["slurmd", "-N", node.name])
        self._await(nodes, ("idle", "mixed", "allocated", "completing"))

    def wait(self, job_id: str | int, timeout: float = 120) -> Job:
        """Wait for the end of a job. Errors: TimeoutError, with what Slurm says of the job."""
        deadline = time.monotonic() + timeout
        while True:
            shown = self._run("scontrol", "show", "job", str(job_id)).stdout
            found = re.search(r"JobState=(\w+)[\s\S]*ExitCode=(\d+):(\d+)", shown)
            if found and found[1] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"):
                return Job(found[1], int(found[2]), int(found[3]))
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} has not ended after {timeout} s:\n{shown}")
            time.sleep(0.25)

    def restore(self) -> None:
        """End all jobs and wait until all nodes are idle."""
        self._run("scancel", "--user=root")
        self._await(self._nodes, ("idle",))

    def _await(self, nodes: list[Node], states: tuple[str, ...]) -> None:
        names = ",".join(node.name for node in nodes)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            shown = self._run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%T", f"--nodes={names}")
            found = shown.stdout.split()
            if shown.returncode == 0 and len(found) == len(nodes) and set(found) <= set(states):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Slurm is not ready: {self._run('sinfo', '--long', '--Node')}")
            time.sleep(0.1)

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self._nodes[0].run(argv, timeout=30)


def _write(node: Node, path: str, text: str) -> None:
    node.run(["tee", path], input=text, check=True)
