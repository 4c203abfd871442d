"""How did anyone's program end? Nothing but the launcher's own report and the ranks' output tell it."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path

from allranks.doctor import causes
from allranks.doctor.first_failure import goes_before, said_elsewhere
from allranks.doctor.log_tail import last_lines, read_from
from allranks.doctor.ranks import code_of_signal, killed_by
from allranks.exit_codes import INTERRUPTED
from allranks.findings import Evidence, Finding, Who
from allranks.launch.node.supervise import Ended
from allranks.launch.node.this_node import Node
from allranks.launch.outcome import Outcome, failed
from allranks.launch.spec.options import Launch

# The failure that torchrun's agent, also within Accelerate, saw first; as torch 2.6 to 2.13 print it.
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) \(pid: \d+\)", re.DOTALL
)
# DeepSpeed's launcher (0.19) names no rank.
_DEEPSPEED_CODE = re.compile(r"exits with return code = (-?\d+)")
_DEEPSPEED_DONE = "exits successfully."


def program_outcome(
    at: Node, launch: Launch, ended: Ended, log_starts: Mapping[Path, int], elsewhere: Finding | None = None
) -> Outcome:
    """The exit code of this node's launcher: the program's own, or 128 + the signal that ended it, as shells say it.

    `log_starts` are the sizes that logs of this node had before this start; `elsewhere` is what `ended.lost` tells.
    """
    agent_log = at.run.agent_log(at.name)
    tail = read_from(agent_log, log_starts.get(agent_log, 0))
    rank, code = _first_failure(tail)
    if ended.lost:
        # What began here may have been felt, and told, first elsewhere.
        own = _finding(at, launch, ended, rank, code, log_starts) if code is not None else None
        if own is None or not goes_before(own, elsewhere or said_elsewhere(ended.lost)):
            return Outcome(1, f"error: {ended.lost}\n  the ranks of this node were ended")
    if ended.killed and not ended.lost:
        late = "the ranks did not stop in time and were killed"
        return Outcome(INTERRUPTED if ended.signal == signal.SIGINT else 1, f"error: {late}")
    if ended.returncode == 0 and not (launch.launcher == "deepspeed" and _deepspeed_lost_some(tail, launch)):
        return Outcome(0)
    if ended.signal is not None and (code is None or code < 0):
        return Outcome(128 + ended.signal, f"{ended.signal.name}: the program was asked to stop, and ended")
    return failed(code if code is not None and code > 0 else 1, _finding(at, launch, ended, rank, code, log_starts))


def _finding(
    at: Node, launch: Launch, ended: Ended, rank: int | None, code: int | None, log_starts: Mapping[Path, int]
) -> Finding:
    where = f"rank {rank} (node {at.name})" if rank is not None else f"a rank of node {at.name}"
    agent_log = at.run.agent_log(at.name)
    log = at.run.log(at.name, rank) if rank is not None else agent_log
    lines = last_lines(read_from(log, log_starts.get(log, 0)))
    if code is None:
        kind = causes.NODE_ERROR
        what = f"node {at.name}: {launch.launcher} ended with {ended.returncode}; the end of its log:"
    elif code < 0:
        kind, what = code_of_signal(-code, ended.memory), f"{where} failed first: {killed_by(-code, '', ended.memory)}"
    else:
        kind, what = causes.RANK_EXIT, f"{where} failed first: exit code {code}"
        if causes.code_of_error("\n".join(lines)) == causes.PEER_GONE:
            kind = causes.PEER_GONE
    return Finding(
        kind,
        what,
        who=Who(at.name, rank),
        # Rank 0's output is on the terminal already.
        evidence=tuple(Evidence(line, str(log)) for line in lines) if rank != 0 else (),
        remedy=f"its log: {log}\nall logs: {at.run.logs(at.name)}",
        known_at=at.name,
    )


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
