"""`python -m tests.cluster.lab --nodes 3 --slurm`: a shell on node0 of a new lab, which ends with the shell."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from tests.cluster.lab import Lab, missing
from tests.cluster.lab.identity import SITE_ENVIRONMENT
from tests.cluster.lab.lab import REPOSITORY
from tests.cluster.lab.node import LOGIN_ENVIRONMENT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.lab", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--slurm", action="store_true", help="with Slurm: sbatch, srun, salloc")
    parser.add_argument("--pbs", action="store_true", help="with a stand-in for PBS: qsub, qstat, qdel, pbsdsh")
    parser.add_argument("--ray", action="store_true", help="with a Ray cluster")
    parser.add_argument("command", nargs="*", help="what to run on node0 instead of a shell")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    # A terminal that closes, or an administrator's kill, ends the shell and then the lab.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    with Lab(nodes=arguments.nodes) as lab:
        for start in (lab.slurm, lab.pbs, lab.ray):
            if getattr(arguments, start.__name__):
                start()
        shown = " ".join(f"{node.name}={node.ip}" for node in lab.nodes)
        print(f"{shown}; shared by all: {lab.shared}; ssh goes from each to each; exit ends the lab", file=sys.stderr)
        return shell(lab, arguments.command or ["bash", "--norc"])


def shell(lab: Lab, command: list[str]) -> int:
    """Run the command on node0, on the terminal of this process, with this Python's programs on its PATH."""
    environment = {
        **LOGIN_ENVIRONMENT,
        **SITE_ENVIRONMENT,
        "TERM": os.environ.get("TERM", "dumb"),
        "PATH": f"{sys.prefix}/bin:{LOGIN_ENVIRONMENT['PATH']}",
        "PS1": r"[\h \w]# ",
    }
    process = subprocess.Popen(lab.node(0).carry(["env", "-C", REPOSITORY, *command]), env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C is for what runs in the shell
            continue


if __name__ == "__main__":
    sys.exit(main())
