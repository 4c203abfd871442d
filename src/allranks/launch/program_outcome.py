"""How did anyone's program end? Nothing but the launcher's own report and the ranks' output tell it."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path

from allranks.launch.log_tail import last_lines, read_from
from allranks.launch.node.supervise import Ended
from allranks.launch.node.this_node import Node
from allranks.launch.outcome import Outcome, killed_by
from allranks.launch.spec.options import Launch

# The failure that torchrun's agent, also within Accelerate, saw first; as torch 2.6 to 2.13 print it.
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) \(pid: \d+\)", re.DOTALL
)
# DeepSpeed's launcher (0.19) names no rank.
_DEEPSPEED_CODE = re.compile(r"exits with return code = (-?\d+)")
_DEEPSPEED_DONE = "exits successfully."


def program_outcome(at: Node, launch: Launch, ended: Ended, log_starts: Mapping[Path, int]) -> Outcome:
    """The exit code of this node's launcher: the program's own, or 128 + the signal that ended it, as shells say it.

    `log_starts` are the sizes that logs of this node had before this start.
    """
    agent_log = at.run.agent_log(at.name)
    tail = read_from(agent_log, log_starts.get(agent_log, 0))
    rank, code = _first_failure(tail)
    # Where a rank of this node was killed, it began here: elsewhere only the broken connection was felt.
    if ended.lost and (code is None or code >= 0):
        return Outcome(1, f"error: {ended.lost}\n  the ranks of this node were ended")
    if ended.killed and not ended.lost:
        late = "the ranks did not stop in time and were killed"
        return Outcome(130 if ended.signal == signal.SIGINT else 1, f"error: {late}")
    if ended.returncode == 0 and not (launch.launcher == "deepspeed" and _deepspeed_lost_some(tail, launch)):
        return Outcome(0)
    if ended.signal is not None and (code is None or code < 0):
        return Outcome(128 + ended.signal, f"{ended.signal.name}: the program was asked to stop, and ended")
    where = f"rank {rank} (node {at.name})" if rank is not None else f"a rank of node {at.name}"
    if code is None:
        head = f"error: node {at.name}: {launch.launcher} ended with {ended.returncode}; the end of its log:"
    elif code < 0:
        head = f"error: {where} failed first: {killed_by(-code)}"
    else:
        head = f"error: {where} failed first: exit code {code}"
    log = at.run.log(at.name, rank) if rank is not None else agent_log
    lines = [head]
    if rank != 0:  # rank 0's output is on the terminal already
        lines += [f"  | {line}" for line in last_lines(read_from(log, log_starts.get(log, 0)))]
    lines += [f"  its log: {log}", f"  all logs: {at.run.logs(at.name)}"]
    return Outcome(code if code is not None and code > 0 else 1, "\n".join(lines))


def _first_failure(tail: str) -> tuple[int | None, int | None]:
    """(rank, exit code) of the rank that failed first, None for what the launcher did not tell."""
    if found := _ROOT_CAUSE.findall(tail):
        return int(found[-1][0]), int(found[-1][1])
    if codes := _DEEPSPEED_CODE.findall(tail):
        return None, int(codes[-1])
    return None, None


def _deepspeed_lost_some(tail: str, launch: Launch) -> bool:
    """Its launcher returns 0 also when the process that watches over the ranks was killed."""
    return tail.count(_DEEPSPEED_DONE) < launch.nproc_per_node
