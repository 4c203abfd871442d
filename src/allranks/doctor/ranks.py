"""What a node's ranks and their launcher left behind, as findings."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from allranks.doctor import causes
from allranks.doctor.collective_abort import aborted_in_collective
from allranks.doctor.first_failure import first_failure
from allranks.doctor.log_tail import last_lines, read_from
from allranks.doctor.traceback_lines import where_it_failed
from allranks.findings import Evidence, Finding, Who
from allranks.observe.events import ErrorEvent, Event

# torchrun's report of a worker that ended with an error, as torch 2.6 to 2.13 print it.
_WORKER = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) \(pid: (\d+)\)")
# That other processes' end brings about: torchrun ends workers, and a collective's watchdog aborts its own.
_BY_SIGNAL = {signal.SIGTERM: causes.STOPPED, signal.SIGABRT: causes.RANK_ABORTED}


def first_of_ranks(
    node: int | str,
    events: Sequence[Event],
    tail: str,
    log_of: Callable[[int], Path],
    memory: str | None = None,
) -> Finding | None:
    """The first failure that `node` knows of: from its launcher's log and from all `events` that it can read.

    `events` of a rank are in their order; those of this node's ranks are compared by its clock, those of other nodes'
    (on shared storage) only among themselves. `memory` is what `killed_by` takes. None if nothing tells of a rank.
    """
    killed = [_killed(node, *worker, log_of, memory) for worker in killed_workers(tail)]
    errors = [event for event in events if isinstance(event, ErrorEvent)]
    own = [event for event in errors if event.node in (None, node)]
    others = [event for event in errors if event.node not in (None, node)]
    found = [_error(event, node) for event in [*sorted(own, key=lambda event: event.t), *_node_by_node(others)]]
    return first_failure([*killed, *found])


def killed_workers(tail: str) -> list[tuple[int, int, int]]:
    """(rank, signal, pid) of workers that a signal ended before they could say anything.

    torchrun lists only the workers that ended by themselves, not those that it ended afterwards.
    """
    return [(rank, -code, pid) for rank, code, pid in ended_workers(tail) if code < 0]


def ended_workers(tail: str) -> list[tuple[int, int, int]]:
    """(rank, exit code, pid) of all workers that torchrun lists; of those that a signal ended the code is negative."""
    return [(int(rank), int(code), int(pid)) for rank, code, pid in _WORKER.findall(tail)]


def code_of_signal(number: int, memory: str | None = None) -> str:
    """The kind of failure that a rank's end by this signal is; `memory` is what `killed_by` takes."""
    if number == signal.SIGKILL and memory:
        return causes.OUT_OF_MEMORY
    return next((code for by, code in _BY_SIGNAL.items() if by == number), causes.RANK_KILLED)


def killed_by(number: int, whom: str = "", memory: str | None = None) -> str:
    """That a signal ended a process, and what that means.

    `memory`: what ran out of memory while it ran, by the kernel's count of those that it killed for that; "" for
    nothing, None where the kernel does not tell.
    """
    hint = ""
    if number == signal.SIGKILL:
        hint = "; the kernel kills so when memory runs out (dmesg tells)"
        if memory is not None:
            hint = "; the kernel has killed nothing for want of memory: somebody, or a scheduler, sent it"
        if memory:
            hint = f" by the kernel: {memory}"
    return f"killed by {signal.Signals(number).name}{whom}{hint}"


def _killed(
    node: int | str, rank: int, number: int, pid: int, log_of: Callable[[int], Path], memory: str | None
) -> Finding:
    log = log_of(rank)
    text = read_from(log)
    lines = last_lines(text)
    code, said = code_of_signal(number, memory), killed_by(number, f" (pid {pid})", memory)
    watchdog = next((line for line in reversed(lines) if causes.waited_in_vain(line)), "")
    if code == causes.RANK_ABORTED and watchdog:
        code, said = causes.PEER_GONE, watchdog.strip()
    who = Who(node, rank)
    what = f"{_that_it_failed(who, code, said)}: {said}"
    if code == causes.RANK_ABORTED and (
        told := aborted_in_collective(text, uses_nccl=any(log.parent.glob(f"nccl/{log.stem}.*")))
    ):
        what, lines = f"rank {rank} (node {node}) {told}", []  # it need not be this one that failed
    evidence = tuple(Evidence(line, str(log)) for line in lines)
    return Finding(code, what, said=said if watchdog else "", who=who, evidence=evidence, known_at=node)


def _error(event: ErrorEvent, known_at: int | str) -> Finding:
    node = known_at if event.node is None else event.node
    code = event.code or causes.code_of_error(event.message)
    who = Who(node, event.rank, event.host)
    return Finding(
        code,
        f"{_that_it_failed(who, code, event.message)}: {event.message}",
        said=event.message,
        who=who,
        evidence=tuple(map(Evidence, event.evidence or _traceback(event, code))),
        remedy="\n".join(filter(None, [event.remedy, _log_of(event, node, known_at)])),
        known_at=known_at,
    )


def _traceback(event: ErrorEvent, code: str) -> list[str]:
    """Of an error that the rank could not put into words; where another rank is the cause, it says nothing."""
    return where_it_failed(event.traceback) if event.traceback and causes.is_cause(code) else []


def without_repeating(finding: Finding, shown: str) -> Finding:
    """The same for a terminal on which rank 0 has `shown` its error: every rank may fail of the same."""
    if not shown or finding.said != shown or not finding.what.endswith(shown):
        return finding
    return replace(finding, what=f"{finding.what.removesuffix(shown)}its message is above", evidence=())


def shown_by_rank_0(node: int | str, events: Iterable[Event]) -> str:
    """What rank 0 has told of its own error on the terminal of `node`; "" on every other."""
    told = (event.message for event in events if isinstance(event, ErrorEvent) and event.rank == 0)
    return next(told, "") if node == 0 else ""


def _that_it_failed(who: Who, code: str, message: str) -> str:
    on_host = f", {who.host}" if who.host else ""
    how = "failed first" if causes.is_cause(code) else "failed"
    if code == causes.PEER_GONE and causes.waited_in_vain(message):
        how = "waited in vain for another rank"
    return f"rank {who.rank} (node {who.node}{on_host}) {how}"


def _log_of(event: ErrorEvent, node: int | str, known_at: int | str) -> str:
    """Where the rank itself says that its log is; on another node's disk, perhaps."""
    if not event.log:
        return ""
    elsewhere = f" (on {event.host or f'node {node}'})" if node != known_at and not Path(event.log).is_file() else ""
    return f"its log: {event.log}{elsewhere}"


def _node_by_node(events: Iterable[ErrorEvent]) -> list[ErrorEvent]:
    return sorted(events, key=lambda event: (str(event.node), event.t))
