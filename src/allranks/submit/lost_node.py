"""Put a job whose run ended because a node was lost back into the queue: the last thing that its batch script does.

Started as `python -m allranks.submit.lost_node slurm|pbs JOB NODES LOST_HOSTS SCRIPT`. A scheduler that has not yet
noticed the loss itself would take the job for failed, for the script ends first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from allranks import durable
from allranks.entry_points import refuse_by_hand
from allranks.observe import say
from allranks.submit.lost_hosts import read_lost_hosts

MOST_TIMES = 5
"""Starts again after a lost node, for one script: after so many losses a person should look at the cluster."""

# OpenPBS notices a host that is gone within some minutes, by the silence of its connection.
_NOTICE_SECONDS = 600.0
_POLL_SECONDS = 2.0


def requeue_if_node_lost(scheduler: str, job: str, num_nodes: int, lost_hosts: Path, script: Path) -> bool:
    """Whether the job went back into the queue. What is done, or why not, is said in the job's log."""
    lost = read_lost_hosts(lost_hosts)
    if not lost:
        return False
    record = script.with_suffix(".lost")
    before = record.read_text().splitlines() if record.exists() else []
    names = ", ".join(lost)
    if len(before) >= MOST_TIMES:
        say(
            f"allranks: {names} was lost; not requeued, as it was {MOST_TIMES} times before: {record} has the nodes of "
            "those. Remove that file to allow more",
            file=sys.stderr,
        )
        return False
    durable.write(record, "".join(f"{line}\n" for line in [*before, " ".join(lost)]))
    ever_lost = list(dict.fromkeys(host for line in [*before, *lost] for host in line.split()))

    def tell(how: str) -> None:
        say(f"allranks: {names} was lost: the job is requeued{how} ({len(before) + 1} of at most {MOST_TIMES} times)")

    if scheduler == "slurm":
        how = _requeue_slurm(job, num_nodes, ever_lost)
        done = how is not None
        if how is not None:
            tell(how)
    else:
        done = _requeue_pbs(job, lost, script, tell)
    if not done:
        say(
            f"allranks: {names} was lost, and the job could not be requeued: submit it again: {script}", file=sys.stderr
        )
    return done


def _requeue_slurm(job: str, num_nodes: int, lost: Sequence[str]) -> str | None:
    excluded = list(dict.fromkeys([*_excluded(job), *lost]))
    partition = os.environ.get("SLURM_JOB_PARTITION", "")
    nodes = set(_output("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split())
    enough = len(nodes - set(excluded)) >= num_nodes
    if subprocess.run(["scontrol", "requeue", job]).returncode != 0:
        return None
    if not enough:
        return f"; partition {partition} has no {num_nodes} nodes without it, so it may get it again once it is back"
    # Only now: Slurm changes this of jobs that wait, not of those that run.
    done = subprocess.run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(excluded)}"])
    return " without it" if done.returncode == 0 else ""


def _excluded(job: str) -> list[str]:
    """What the job was told to keep away from; to say more of it replaces that."""
    shown = re.search(r"\bExcNodeList=(\S+)", _output("scontrol", "show", "job", job))
    if shown is None or shown[1] == "(null)":
        return []
    return _output("scontrol", "show", "hostnames", shown[1]).split()


def _requeue_pbs(job: str, lost: Sequence[str], script: Path, tell: Callable[[str], None]) -> bool:
    """No PBS can be told to keep away from a host, so the job has to wait until PBS knows that it is down."""
    deadline = time.monotonic() + _NOTICE_SECONDS
    while not (noticed := all(_is_down(host) for host in lost)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    how = "" if noticed else f"; PBS has not noticed that in {_NOTICE_SECONDS:.0f} s, and may give it the same node"
    # On most sites qrerun is for operators; then the same script becomes a new job that waits for the end of this one.
    tell(how)  # before it is done, which kills this process
    if subprocess.run(["qrerun", job], stderr=subprocess.DEVNULL).returncode == 0:
        return True
    again = subprocess.run(["qsub", "-W", f"depend=afterany:{job}", str(script)])
    return again.returncode == 0


def _is_down(host: str) -> bool:
    state = re.search(r"^\s*state = (\S+)", _output("pbsnodes", host), re.MULTILINE)
    return state is not None and bool({"down", "offline", "unknown", "state-unknown"} & set(state[1].split(",")))


def _output(*words: str) -> str:
    try:
        return subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout
    except OSError as error:
        say(f"allranks: {words[0]}: {error.strerror}", file=sys.stderr)
        return ""


if __name__ == "__main__":
    if len(sys.argv) != 6 or sys.argv[1] not in ("slurm", "pbs") or not sys.argv[3].isdecimal():
        refuse_by_hand("allranks.submit.lost_node", "the script of `allranks submit --requeue`")
    requeue_if_node_lost(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
