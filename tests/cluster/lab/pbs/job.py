"""A job on one host of the stand-in: the sessions of its tasks, their environment, and where their output goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from tests.cluster.lab.node import DAEMON
from tests.cluster.lab.pbs import wire

SPOOL = Path("/var/spool/pbs")
HOME = "/root"


class Job:
    """A job on this host: its tasks, by number."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.sessions: dict[int, int] = {}
        self.next_task = 1
        self.collecting: set[asyncio.Task[None]] = set()
        # The lines of PBS_NODEFILE: a host, and its threads.
        self.vnodes = [
            (host, threads)
            for host, (processes, threads) in zip(spec["hosts"], spec["chunks"], strict=True)
            for _ in range(processes)
        ]

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(self.spec["hosts"]))

    def file(self, kind: str) -> Path:
        return SPOOL / f"{self.spec['id']}.{kind}"

    def output(self, stream: str) -> Path:
        """Where a stream of the job is collected until its end."""
        if self.spec["join"] in ("oe", "eo"):
            stream = "output" if self.spec["join"] == "oe" else "error"
        keep = self.spec["keep"] or ""
        if "d" in keep and stream[0] in keep:
            return Path(self.spec[stream].partition(":")[2])
        return self.file(stream)

    def environment(self, vnode: int, task: int) -> dict[str, str]:
        """What a task gets: this host's own, the job's variables, and PBS's; nothing that the script exports."""
        spec = self.spec
        scratch = Path(f"/var/tmp/pbs.{spec['id']}")
        scratch.mkdir(mode=0o700, exist_ok=True)
        threads = str(self.vnodes[vnode][1]) if self.vnodes else "1"
        account = {"PBS_ACCOUNT": spec["account"]} if spec["account"] else {}
        return {
            **{name: value for name, value in os.environ.items() if name != DAEMON},
            **spec["variables"],
            "HOME": HOME,
            "PBS_JOBNAME": spec["name"],
            "PBS_JOBID": spec["id"],
            "PBS_QUEUE": spec["queue"],
            "PBS_JOBCOOKIE": spec["cookie"],
            "PBS_NODENUM": str(self.hosts.index(socket.gethostname())),
            "PBS_TASKNUM": f"{task:08X}",
            "PBS_MOMPORT": str(wire.MOM_PORT + 1),
            "OMP_NUM_THREADS": threads,
            "NCPUS": threads,
            **account,
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "ENVIRONMENT": "BATCH",
            "TMPDIR": str(scratch),
            "PBS_JOBDIR": HOME,
        }

    def signal(self, number: int) -> None:
        for session in self.sessions.values():
            signal_session(session, number)

    def clean(self) -> None:
        self.signal(signal.SIGKILL)
        shutil.rmtree(f"/var/tmp/pbs.{self.spec['id']}", ignore_errors=True)


def signal_session(session: int, number: int) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(process.name), number)
