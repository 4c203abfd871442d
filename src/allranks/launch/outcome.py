"""How did the run end? The ranks' own events know; torchrun's exit status says only whether all is well."""

import signal
from dataclasses import dataclass, replace

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.cluster.memory import memory_limit
from allranks.config import RunConfig
from allranks.doctor import causes
from allranks.doctor.first_failure import goes_before, said_elsewhere
from allranks.doctor.log_tail import last_lines, read_from
from allranks.doctor.memory_remedies import with_account
from allranks.doctor.ranks import code_of_signal, first_of_ranks, killed_by, killed_workers, told_above
from allranks.exit_codes import INTERRUPTED, PREEMPTED
from allranks.findings import Evidence, Finding, Who, printed
from allranks.launch.node.supervise import Ended
from allranks.launch.node.this_node import Node
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir, read_events
from allranks.observe.events import CheckpointEvent, ErrorEvent, Event, ExitEvent, PhaseEvent, StepEvent

_LAST_EVENTS_BYTES = 2**20  # errors and exits are the last events of a rank; a traceback has some kilobytes

# What to tell of a run that a signal ended.
_NOTHING = "stopped before the first step; nothing was lost: start the same command again"
_ALL = "training is complete and saved; the rest, its result for Hugging Face tools, is made by: allranks export {run}"
_SAVED = "step {step} is saved in {run}; start the same command again with --auto-resume-from-checkpoints true"


@dataclass(frozen=True)
class Outcome:
    """`message` is for stderr; empty where there is nothing to say."""

    exit_code: int
    message: str = ""
    finding: Finding | None = None
    """What failed first, as far as this node knows; None where nothing failed or another node has told it."""


def failed(code: int, finding: Finding) -> Outcome:
    return Outcome(code, printed(finding), finding)


def outcome(
    at: Node,
    launch: Launch,
    ended: Ended,
    *,
    ranks: range | None = None,
    log_start: int = 0,
    elsewhere: Finding | None = None,
    cfg: RunConfig | None = None,
) -> Outcome:
    """The exit code of this node's launcher and, for a failure, what failed first and where to look.

    `ranks` are those of this node, where it is known which; `log_start` is the size that the agent's log had before.
    `elsewhere` is what `ended.lost` tells, as a value. `cfg` is what was trained, for what to change in it.
    """
    run, node = at.run, at.name
    events = _events(run, at.run_id)
    tail = read_from(run.agent_log(node), log_start)
    if ended.lost:
        # What began here may have been felt, and told, first elsewhere.
        of_node = [event for event in events if not (isinstance(event, ErrorEvent) and event.node not in (None, node))]
        own = first_of_ranks(node, of_node, tail, lambda rank: run.log(node, rank), ended.memory)
        if own is not None and goes_before(own, elsewhere or said_elsewhere(ended.lost)):
            return _failed(1, node, events, _failure(at, launch, ended, events, tail, cfg))
        return Outcome(1, f"error: {ended.lost}\n  {_left(run, elsewhere or said_elsewhere(ended.lost))}")
    # A restarted rank writes another `exit`: the last one counts.
    codes = {
        event.rank: event.code
        for event in events
        if isinstance(event, ExitEvent) and (ranks is None or event.rank in ranks)
    }
    if ended.killed:
        late = "the ranks did not stop in time and were killed"
        if ended.signal is not None and _kept(events) == _ALL:
            return _stopped(run, events, ended.signal, late)
        return Outcome(INTERRUPTED if ended.signal == signal.SIGINT else 1, f"error: {late}")
    if codes and len(codes) >= launch.nproc_per_node and set(codes.values()) <= {0, PREEMPTED}:
        return Outcome(PREEMPTED if PREEMPTED in codes.values() else 0)
    # DeepSpeed's launcher returns 0 also when the process that watches over the ranks was killed.
    if ended.returncode == 0 and not (launch.launcher == "deepspeed" and len(codes) < launch.nproc_per_node):
        return Outcome(0)
    if ended.signal is not None and _kept(events) and not any(isinstance(event, ErrorEvent) for event in events):
        return _stopped(run, events, ended.signal)
    failing = {code for code in codes.values() if code not in (0, PREEMPTED)}
    code = failing.pop() if len(failing) == 1 else 1
    if not events:
        return failed(1, _never_started(run, launch, node, tail, ended.memory))
    return _failed(code, node, events, _failure(at, launch, ended, events, tail, cfg))


def _failed(code: int, node: int | str, events: list[Event], finding: Finding) -> Outcome:
    """Rank 0 has told node 0's terminal of its own error itself; the other nodes are told all of it."""
    who = finding.who
    if who.node == node == who.rank == 0 and any(isinstance(event, ErrorEvent) and event.rank == 0 for event in events):
        logs = "\n".join(line for line in finding.remedy.splitlines() if line.startswith(("its log: ", "all logs: ")))
        return Outcome(code, printed(replace(told_above(finding), remedy=logs)), finding)
    return failed(code, finding)


def stopped(run: RunDir, run_id: str, received: signal.Signals) -> Outcome:
    """Of a run without torchrun that `received` ended while nobody listened for it."""
    return _stopped(run, _events(run, run_id), received)


def _left(run: RunDir, cause: Finding) -> str:
    """What a run that was cut off leaves, and what to do: to start it again helps only against what may pass."""
    newest = complete_checkpoints(run.checkpoints)
    saved = f"step {step_of(newest[0])} is saved in {run.path}" if newest else "no checkpoint was complete yet"
    again = (
        "start the same command again on all nodes"
        if causes.may_pass(cause.code)
        else ("the same command would end in the same way; once that is mended, start it on all nodes")
    )
    how = " with --auto-resume-from-checkpoints true" if newest else ""
    return f"the ranks of this node were ended; {saved}: {again}{how}"


def _kept(events: list[Event]) -> str | None:
    """What to tell of a run that a signal ended, or None if it lost steps."""
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    committed = [event.step for event in events if isinstance(event, CheckpointEvent) and event.state == "committed"]
    if any(isinstance(event, PhaseEvent) and event.phase == "export" for event in events):
        return _ALL  # no rank enters it before the last checkpoint is committed
    if not steps:
        return _NOTHING
    return _SAVED if max(committed, default=0) >= max(steps) else None


def _stopped(run: RunDir, events: list[Event], received: signal.Signals, how: str = "") -> Outcome:
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    text = _kept(events) or "stopped; the steps after the newest checkpoint in {run} are lost"
    told = text.format(run=run.path, step=max(steps, default=0))
    code = INTERRUPTED if received == signal.SIGINT else PREEMPTED
    return Outcome(code, ": ".join(part for part in (received.name, how, told) if part))


def _events(run: RunDir, run_id: str) -> list[Event]:
    """The last events of every rank in this start, in the order of time."""
    events = [
        event
        for path in run.all_events()
        for event in read_events(path, last_bytes=_LAST_EVENTS_BYTES)
        if event.run == run_id
    ]
    return sorted(events, key=lambda event: event.t)


def _failure(at: Node, launch: Launch, ended: Ended, events: list[Event], tail: str, cfg: RunConfig | None) -> Finding:
    run, node = at.run, at.name
    found = first_of_ranks(node, events, tail, lambda rank: run.log(node, rank), ended.memory)
    logs = f"all logs: {run.logs(node)}, events: {run.path / 'events'}"
    if found is None:
        return Finding(
            causes.NODE_ERROR,
            f"the ranks of node {node} ended without saying why; the end of {run.agent_log(node)}:",
            who=Who(node),
            evidence=_lines(tail),
            remedy=logs,
            known_at=node,
        )
    if found.code == causes.OUT_OF_MEMORY and not found.remedy and cfg is not None:
        limit = memory_limit()
        of_host = limit.num_bytes if limit else 0
        found = with_account(found, events, cfg, launch.world_size, launch.nproc_per_node, of_host)
    assert found.who.rank is not None
    log = run.log(node, found.who.rank)
    own = f"its log: {log}" if found.who.node == node and log.is_file() else ""
    told = [found.remedy, own if own not in found.remedy else "", logs]
    return replace(found, remedy="\n".join(filter(None, told)))


def _lines(tail: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(line) for line in last_lines(tail))


def _never_started(run: RunDir, launch: Launch, node: int | str, tail: str, memory: str | None) -> Finding:
    killed = killed_workers(tail)
    code, rank = causes.NODE_ERROR, None
    if killed:
        rank, number, pid = killed[0]
        code = code_of_signal(number, memory)
        head = f"rank {rank} (node {node}) {killed_by(number, f' (pid {pid})', memory)} before it said anything"
    elif launch.is_elastic:
        head = (
            f"node {node} started no rank: {launch.min_nodes} nodes did not meet at {launch.endpoint} within "
            f"{launch.join_seconds:.0f} s (c10d rendezvous). Is `allranks` running on the machine that --rdzv-endpoint "
            "names, is the port open to this node, and do all nodes say the same --nnodes, --rdzv-endpoint and "
            "--rdzv-id?"
        )
    elif launch.max_nodes > 1:
        head = (
            f"node {node} started no rank: the {launch.max_nodes} nodes did not meet at {launch.endpoint} "
            f"({launch.backend} rendezvous). Is node 0 running there, is the port open to this node, do all nodes say "
            f"--nnodes {launch.max_nodes} --nproc-per-node {launch.nproc_per_node}, and has each its own --node-rank?"
        )
    else:
        head = "no rank reported anything before it ended"
    what = f"{head}\n  the end of {run.agent_log(node)}:"
    return Finding(code, what, who=Who(node, rank), evidence=_lines(tail), known_at=node)
