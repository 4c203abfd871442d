"""How did anyone's program end? Nothing but the launcher's own report and the ranks' output tell it."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import partial

from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.collective_abort import aborted_in_collective, with_other_places
from allranks.doctor.first_failure import goes_before
from allranks.doctor.last_entered import last_entered
from allranks.doctor.launcher import launcher_killed
from allranks.doctor.left_early import left_early
from allranks.doctor.log_tail import TRACEBACK, last_lines, read_from
from allranks.doctor.progress import step_in
from allranks.doctor.ranks import code_of_signal, killed_by
from allranks.doctor.spoilt import spoilt_loss
from allranks.doctor.told_in_logs import last_traceback, told_in_logs
from allranks.doctor.verdict import Verdict, cut_off, failed, interrupted, left_by, not_stopped_in_time
from allranks.doctor.with_rules import known_by_rules
from allranks.exit_codes import DONE, FAILED, INTERRUPTED
from allranks.findings import Evidence, Finding, Who

# The failure that torchrun's agent, also within Accelerate, saw first; as torch 2.6 to 2.13 print it.
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) \(pid: \d+\)", re.DOTALL
)
# DeepSpeed's launcher (0.19) names no rank.
_DEEPSPEED_CODE = re.compile(r"exits with return code = (-?\d+)")
_DEEPSPEED_DONE = "exits successfully."
_BY = ", by what they have printed"
_SILENT = "it printed no error: look for sys.exit({0}) or os._exit({0}), also in what the program imports"


def program_end(started: Started, ended: Ended) -> Verdict:
    """The exit code of this node's command: the program's own, or 128 + the signal that ended it, as shells say it."""
    agent_log = started.run.agent_log(started.node)
    tail = read_from(agent_log, started.log_start(agent_log))
    rank, code = _first_failure(tail)
    left = left_by(started)
    own = None
    if ended.lost is not None:
        # What began here may have been felt, and told, first elsewhere.
        killed = launcher_killed(started, ended) is not None
        own = _finding(started, ended, rank, code) if code is not None or killed else None
        if own is None and ended.lost.code == causes.PEER_GONE:
            own = left_early(started, ended)
        if own is None or not goes_before(own, ended.lost):
            lost = _with_other_places(ended.lost, started)
            return cut_off(FAILED, lost, left, shown=_shown(lost, started))
    if ended.killed and ended.lost is None:
        late = not_stopped_in_time(started.node)
        return failed(INTERRUPTED if ended.signal == signal.SIGINT else FAILED, late, left)
    if (
        own is None
        and ended.returncode == 0
        and not (started.launcher == "deepspeed" and _deepspeed_lost_some(tail, started))
    ):
        return Verdict(DONE, message=spoilt_loss(started))
    if ended.signal is not None and (code is None or code < 0):
        told = "the program was asked to stop, and ended"
        return interrupted(ended.signal, started.node, told, exit_code=128 + ended.signal)
    reason = own or _finding(started, ended, rank, code)
    if reason.code == causes.PEER_GONE:
        reason = left_early(started, ended) or reason
    return failed(code if code is not None and code > 0 else FAILED, reason, left, shown=_shown(reason, started))


def stopped_program(node: int | str, received: signal.Signals) -> Verdict:
    """Of a program that `received` kept from being started."""
    return interrupted(received, node, "stopped before the program was started", exit_code=128 + received)


def _shown(reason: Finding, started: Started) -> Finding:
    """What is to be read of it here: rank 0's output is on node 0's terminal already."""
    if started.node != 0:
        return reason
    its_log = str(started.run.log(0, 0))
    return replace(reason, evidence=tuple(one for one in reason.evidence if one.file != its_log))


def _finding(started: Started, ended: Ended, rank: int | None, code: int | None) -> Finding:
    run, node = started.run, started.node
    where = f"rank {rank} (node {node})" if rank is not None else f"a rank of node {node}"
    log = run.log(node, rank) if rank is not None else run.agent_log(node)
    text, said, silent = read_from(log, started.log_start(log)), "", ""
    lines = last_lines(text)
    if code is None and (killed := launcher_killed(started, ended)) is not None:
        kind, what = killed.code, killed.what
    elif code is None:
        kind = causes.NODE_ERROR
        what = f"node {node}: {started.launcher} ended with {ended.returncode}; the end of its log:"
    elif code < 0:
        kind, what = code_of_signal(-code, ended.memory), f"{where} failed first: {killed_by(-code, '', ended.memory)}"
        if kind == causes.STOPPED and rank is not None:  # torchrun reports none that it ended itself
            kind, what = causes.RANK_KILLED, f"{what}, which its launcher did not send: somebody, or a scheduler, did"
        if kind == causes.RANK_ABORTED and (told := aborted_in_collective(text)):
            what = f"{where} {told}"  # it need not be this one that failed
    else:
        kind, what = causes.RANK_EXIT, f"{where} failed first: exit code {code}"
        if rank is not None and (not lines or step_in(lines[-1]) is not None):
            silent = _SILENT.format(code)
        said = last_traceback(text).rpartition("\n")[2]
        lines = lines[max((at for at, line in enumerate(lines) if TRACEBACK in line), default=0) :]
        if causes.code_of_error("\n".join(lines)) == causes.PEER_GONE:
            kind = causes.PEER_GONE
            what = f"{where} lost another rank, and ended with exit code {code}"
            if waited := next((line for line in reversed(lines) if causes.waited_in_vain(line)), ""):
                what = f"{where} waited in vain for another rank, and ended with exit code {code}: {waited.strip()}"
    finding = Finding(
        kind,
        what,
        said=said if kind == causes.RANK_EXIT else "",
        who=Who(node, rank),
        evidence=tuple(Evidence(line, str(log)) for line in lines),
        remedy=f"its log: {log}\nall logs: {run.logs(node)}",
        known_at=node,
    )
    # The other nodes' terminals are to say it, too.
    known = known_by_rules(finding, started, said=what)
    finding = replace(finding, remedy="\n".join(filter(None, [silent, *known, finding.remedy])))
    return _with_other_places(finding, started)


def _with_other_places(finding: Finding, started: Started) -> Finding:
    entered = partial(last_entered, started)
    return with_other_places(finding, told_in_logs(started), _BY, entered, started.world_size)


def _first_failure(tail: str) -> tuple[int | None, int | None]:
    """(rank, exit code) of the rank that failed first, None for what the launcher did not tell."""
    if found := _ROOT_CAUSE.findall(tail):
        return int(found[-1][0]), int(found[-1][1])
    if codes := _DEEPSPEED_CODE.findall(tail):
        return None, int(codes[-1])
    return None, None


def _deepspeed_lost_some(tail: str, started: Started) -> bool:
    """Its launcher returns 0 also when the process that watches over the ranks was killed."""
    return tail.count(_DEEPSPEED_DONE) < started.num_local_ranks
