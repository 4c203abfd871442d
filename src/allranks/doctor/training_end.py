"""How did a training end? The ranks' own events know; torchrun's exit status says only whether all is well."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace

from allranks.cluster.memory import memory_limit
from allranks.config import RunConfig
from allranks.doctor import causes
from allranks.doctor.absent import with_absent
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.collective_abort import with_other_places
from allranks.doctor.first_failure import first_failure, goes_before
from allranks.doctor.full_disk import is_full
from allranks.doctor.launcher import launcher_killed
from allranks.doctor.log_tail import last_lines, read_from
from allranks.doctor.memory_remedies import with_account
from allranks.doctor.ranks import (
    code_of_signal,
    ended_workers,
    first_of_ranks,
    killed_by,
    killed_workers,
    shown_by_rank_0,
    without_repeating,
)
from allranks.doctor.verdict import Verdict, advice, cut_off, failed, interrupted, left_by, not_stopped_in_time
from allranks.exit_codes import DONE, FAILED, INTERRUPTED, PREEMPTED
from allranks.findings import Evidence, Finding, Who
from allranks.observe import RunDir, read_events
from allranks.observe.events import CheckpointEvent, ErrorEvent, Event, ExitEvent, PhaseEvent, StepEvent

_LAST_EVENTS_BYTES = 2**20  # errors and exits are the last events of a rank; a traceback has some kilobytes


# Of a rank that ended before it could tell of itself: no second start mends what is installed.
_IMPORT_FAILED = re.compile(r"(?:^|\()(?:ModuleNotFoundError|ImportError|SyntaxError): ", re.MULTILINE)

# What to tell of a run that a signal ended.
_NOTHING = "stopped before the first step; nothing was lost: start the same command again"
_ALL = "training is complete and saved; the rest, its result for Hugging Face tools, is made by: allranks export {run}"
_SAVED = "step {step} is saved in {run}; start the same command again with --auto-resume-from-checkpoints true"


def training_end(started: Started, ended: Ended, cfg: RunConfig | None = None) -> Verdict:
    """The exit code of this node's command and, for a failure, what failed first, where to look and what to do.

    `cfg` is what was trained, for what to change in it.
    """
    run, node = started.run, started.node
    events = last_events(run, started.run_id)
    tail = read_from(run.agent_log(node), started.log_start(run.agent_log(node)))
    left = left_by(started)
    if ended.lost is not None:
        # What began here may have been felt, and told, first elsewhere.
        of_node = [event for event in events if not (isinstance(event, ErrorEvent) and event.node not in (None, node))]
        own = _first(started, ended, of_node, tail)
        if own is not None and goes_before(own, ended.lost):
            return _failed(started, FAILED, _failure(started, ended, events, tail, cfg), events)
        lost = _with_other_places(with_absent(ended.lost, run, events), started, events)
        shown = without_repeating(lost, shown_by_rank_0(node, events))
        return cut_off(FAILED, lost, left, shown=shown)
    # A restarted rank writes another `exit`: the last one counts.
    codes = {
        event.rank: event.code
        for event in events
        if isinstance(event, ExitEvent) and (started.ranks is None or event.rank in started.ranks)
    }
    if ended.killed:
        late = not_stopped_in_time(node)
        if ended.signal is not None and _kept(events) == _ALL:
            return _stopped(run, node, events, ended.signal, late.what)
        return failed(INTERRUPTED if ended.signal == signal.SIGINT else FAILED, late, left)
    if codes and len(codes) >= started.num_local_ranks and set(codes.values()) <= {DONE, PREEMPTED}:
        return Verdict(PREEMPTED if PREEMPTED in codes.values() else DONE)
    # DeepSpeed's launcher returns 0 also when the process that watches over the ranks was killed.
    if ended.returncode == 0 and not (started.launcher == "deepspeed" and len(codes) < started.num_local_ranks):
        return Verdict(DONE)
    if ended.signal is not None and _kept(events) and not any(isinstance(event, ErrorEvent) for event in events):
        return _stopped(run, node, events, ended.signal)
    failing = {code for code in codes.values() if code not in (DONE, PREEMPTED)}
    code = failing.pop() if len(failing) == 1 else FAILED
    if not events and not run.all_events() and not run.logs(node).is_dir():
        return failed(FAILED, _record_gone(started), left)
    if not events:
        return failed(FAILED, launcher_killed(started, ended) or _never_started(started, tail, ended.memory), left)
    return _failed(started, code, _failure(started, ended, events, tail, cfg), events)


def own_end(started: Started, code: int) -> Verdict:
    """Of the only rank of a run, which ran in this process, ended with `code`, and has told of its error itself."""
    if code in (DONE, PREEMPTED):
        return Verdict(code)
    node, left = started.node, left_by(started)
    reason = first_of_ranks(
        node, last_events(started.run, started.run_id), "", lambda rank: started.run.log(node, rank)
    )
    if reason is None:
        kind = causes.INTERRUPTED if code == INTERRUPTED else causes.RANK_ERROR
        reason = Finding(kind, f"rank 0 ended with exit code {code}", who=Who(node, 0), known_at=node)
    return Verdict(code, reason, advice(reason, left) if left.newest is not None else "")


def stopped_training(run: RunDir, run_id: str, node: int | str, received: signal.Signals) -> Verdict:
    """Of a run without a launcher that `received` ended while nobody listened for it."""
    return _stopped(run, node, last_events(run, run_id), received)


def _failed(started: Started, code: int, reason: Finding, events: list[Event]) -> Verdict:
    """Rank 0 has told node 0's terminal of its own error itself; the other nodes are told all of it."""
    shown = without_repeating(reason, shown_by_rank_0(started.node, events))
    if shown is not reason:
        logs = [line for line in reason.remedy.splitlines() if line.startswith(("its log: ", "all logs: "))]
        shown = replace(shown, remedy="\n".join(logs))
    reason, shown = (
        _with_other_places(with_absent(finding, started.run, events), started, events) for finding in (reason, shown)
    )
    return failed(code, reason, left_by(started), shown=shown)


def _with_other_places(finding: Finding, started: Started, events: Sequence[Event]) -> Finding:
    seen = {event.rank for event in events}
    others = [event for one in started.others if one.rank not in seen for event in one.events()]
    return with_other_places(finding, [*events, *others], num_ranks=started.world_size)


def _kept(events: list[Event]) -> str | None:
    """What to tell of a run that a signal ended, or None if it lost steps."""
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    committed = [event.step for event in events if isinstance(event, CheckpointEvent) and event.state == "committed"]
    if any(isinstance(event, PhaseEvent) and event.phase == "export" for event in events):
        return _ALL  # no rank enters it before the last checkpoint is committed
    if not steps:
        return _NOTHING
    return _SAVED if max(committed, default=0) >= max(steps) else None


def _stopped(run: RunDir, node: int | str, events: list[Event], received: signal.Signals, how: str = "") -> Verdict:
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    text = _kept(events) or "stopped; the steps after the newest checkpoint in {run} are lost"
    told = text.format(run=run.path, step=max(steps, default=0))
    return interrupted(received, node, f"{how}: {told}" if how else told)


def last_events(run: RunDir, run_id: str) -> list[Event]:
    """The last events of every rank in this start, in the order of time."""
    events = [
        event
        for path in run.all_events()
        for event in read_events(path, last_bytes=_LAST_EVENTS_BYTES)
        if event.run == run_id
    ]
    return sorted(events, key=lambda event: event.t)


def _failure(started: Started, ended: Ended, events: list[Event], tail: str, cfg: RunConfig | None) -> Finding:
    run, node = started.run, started.node
    found = _first(started, ended, events, tail)
    logs = f"all logs: {run.logs(node)}, events: {run.path / 'events'}"
    if found is None and (full := _full_disk(started)) is not None:
        return full
    if found is None:
        return Finding(
            causes.NODE_ERROR,
            f"the ranks of node {node} ended without saying why; the end of {run.agent_log(node)}:",
            who=Who(node),
            evidence=_lines(tail),
            remedy=logs,
            known_at=node,
        )
    if found.code == causes.OUT_OF_MEMORY and found.who.rank is not None and not found.remedy and cfg is not None:
        limit = memory_limit()
        of_host = limit.num_bytes if limit else 0
        found = with_account(found, events, cfg, started.world_size, started.num_local_ranks, of_host)
    told = [found.remedy, logs]
    if found.who.rank is not None and found.who.node == node:
        log = run.log(node, found.who.rank)
        own = f"its log: {log}" if log.is_file() else ""
        told.insert(1, own if own not in found.remedy else "")
    return replace(found, remedy="\n".join(filter(None, told)))


def _first(started: Started, ended: Ended, events: list[Event], tail: str) -> Finding | None:
    run, node = started.run, started.node
    of_ranks = first_of_ranks(node, events, tail, lambda rank: run.log(node, rank), ended.memory)
    return first_failure(filter(None, [launcher_killed(started, ended), of_ranks]))


def _lines(tail: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(line) for line in last_lines(tail))


def _record_gone(started: Started) -> Finding:
    """The launcher's log was made before it started."""
    what = (
        f"{started.run.path} on node {started.node} has lost the record of this run: somebody removed or moved it, or "
        "its mount went away, so that nothing tells how the ranks ended"
    )
    return Finding(causes.DISK, what, who=Who(started.node), known_at=started.node)


def _full_disk(started: Started) -> Finding | None:
    """That the ranks could not write what they failed of; None where there is room."""
    if not (full := is_full(started.run.path)):
        return None
    what = (
        f"the ranks of node {started.node} ended without a word, and {full}: they could not write what they failed of"
    )
    remedy = "free some room there, or set output_dir to another disk, on that node"
    return Finding(causes.DISK, what, who=Who(started.node), remedy=remedy, known_at=started.node)


def _never_started(started: Started, tail: str, memory: str | None) -> Finding:
    node, code, rank, head = started.node, causes.NODE_ERROR, None, started.told_of_none
    if killed := killed_workers(tail):
        rank, number, pid = killed[0]
        code = code_of_signal(number, memory)
        head = f"rank {rank} (node {node}) {killed_by(number, f' (pid {pid})', memory)} before it said anything"
    elif ended := ended_workers(tail):
        rank, number, pid = ended[0]
        head = f"rank {rank} (node {node}) ended with exit code {number} (pid {pid}) before it said anything"
    if not killed and _IMPORT_FAILED.search(tail):
        code = causes.RANK_ERROR
    what = f"{head}\n  the end of {started.run.agent_log(node)}:"
    return Finding(code, what, who=Who(node, rank), evidence=_lines(tail), known_at=node)
