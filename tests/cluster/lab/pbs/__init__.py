"""A stand-in for PBS on a lab: Debian does not carry OpenPBS, so this imitates the part of it that starting jobs needs.

`qsub` (with #PBS directives), `qstat`, `qdel`, `qrerun`, `pbsnodes` and `pbsdsh` are on every node's PATH; to
`--version` they answer that they are a stand-in, and they refuse the options that they do not do. What they do follows
the manual pages and sources of OpenPBS 23:

- `-l select=N:ncpus=:ngpus=:mpiprocs= -l place=scatter|free`; every host has 4 cpus and 4 pretended GPUs. There is no
  PBS_NGPUS, and nothing sets CUDA_VISIBLE_DEVICES.
- The script runs in $HOME on the first host, under umask 077, with PBS_NODEFILE (a line for each of mpiprocs),
  PBS_O_WORKDIR and OMP_NUM_THREADS = ncpus; its output is delivered to JOBNAME.oN and .eN when the job is over.
- pbsdsh's tasks get their words intact, no shell, /dev/null as stdin, $HOME as directory, and the environment of the
  job as it was submitted: no PBS_NODEFILE, and nothing that the script exports. Their output goes into the job's files,
  not to pbsdsh, which exits with 0 whatever they return.
- qdel sends SIGTERM to the tasks of the first host, where pbsdsh hands it on and leaves; SIGKILL after 10 s. The end of
  the script kills all other tasks at once. Both reach sessions: a process that left its task's session lives on.
- qrerun kills a running job and puts it back into the queue, as it does for a manager, which root is.
- Losing the first host puts a job back into the queue; losing another leaves it running.

Not as in PBS: hosts are lost after 6 s of silence, jobs never wait for the scheduler's next round, and there are no
hooks, reservations, arrays, dependencies, interactive jobs or priorities.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass

from tests.cluster.lab.node import Node
from tests.cluster.lab.pbs.wire import SERVER_NAME_FILE

REPOSITORY = __file__.rsplit("/tests/", 1)[0]
PROGRAMS = {
    "qsub": "qsub.main",
    "qstat": "qstat.main",
    "qdel": "qstat.delete",
    "qrerun": "qstat.rerun",
    "pbsnodes": "qstat.hosts",
    "pbsdsh": "pbsdsh.main",
    "pbs_stand_in_server": "server.main",
    "pbs_stand_in_mom": "mom.main",
}
READY_SECONDS = 30


@dataclass(frozen=True)
class Job:
    """How a job ended: its script's exit code, 256 + the signal that ended it, or None when it never ran."""

    exit_code: int | None


class Pbs:
    """`qsub` and the rest work on every node. Queues: workq (the default) and long."""

    def __init__(self, nodes: list[Node]):
        self._nodes = nodes

    def start(self, nodes: list[Node]) -> None:
        """Start the daemons on `nodes`, which have none, and wait until the server sees them."""
        for node in nodes:
            for program, function in PROGRAMS.items():
                module, name = function.split(".")
                code = f"import sys; sys.path.insert(0, {REPOSITORY!r}); sys.argv[0] = {program!r}; "
                code += f"from tests.cluster.lab.pbs.{module} import {name}; {name}()"
                path = f"/usr/local/bin/{program}"
                text = f"""#!/bin/sh\nexec {sys.executable} -PEs -c "{code}" "$@"\n"""
                node.run(["sh", "-c", 'cat >"$0" && chmod 755 "$0"', path], input=text, check=True)
            node.run(["tee", SERVER_NAME_FILE], input=self._nodes[0].name, check=True)
            if node is self._nodes[0]:
                self._background(node, "pbs_stand_in_server")
            self._background(node, "pbs_stand_in_mom")
        self._await(nodes)

    def wait(self, job_id: str, timeout: float = 120) -> Job:
        """Wait for the end of a job. Errors: TimeoutError, with what qstat says of the job."""
        deadline = time.monotonic() + timeout
        while True:
            shown = self._nodes[0].run(["qstat", "-xf", job_id.strip()], check=True).stdout
            if "job_state = F" in shown:
                found = re.search(r"Exit_status = (\d+)", shown)
                return Job(int(found[1]) if found else None)
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} has not ended after {timeout} s:\n{shown}")
            time.sleep(0.25)

    def restore(self) -> None:
        """End all jobs and wait until all hosts are there."""
        jobs = [line.split()[0] for line in self._nodes[0].run(["qstat"]).stdout.splitlines()[2:]]
        if jobs:
            self._nodes[0].run(["qdel", *jobs])
        for job in jobs:
            self.wait(job)
        self._await(self._nodes)

    def _await(self, nodes: list[Node]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            shown = self._nodes[0].run(["pbsnodes", "-a"]).stdout
            if all(f"Mom = {node.name}\n     state = free" in shown for node in nodes):
                return
            if time.monotonic() > deadline:
                raise RuntimeError("the PBS stand-in is not ready: see /var/log/pbs_stand_in.log on the nodes")
            time.sleep(0.05)

    def _background(self, node: Node, program: str) -> None:
        script = 'cd / && "$0" >>/var/log/pbs_stand_in.log 2>&1 </dev/null &'
        node.daemon(["sh", "-c", script, program])
