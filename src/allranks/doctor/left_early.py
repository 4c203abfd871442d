"""A rank that ended well while the others still needed it: theirs is the failure, and the cause is its end.

Mostly it had fewer batches than the others, or it returned early. Its launcher takes that for a good end and says
nothing of it; the others lose a connection, or wait.
"""

from __future__ import annotations

import re

from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.log_tail import last_lines, read_from
from allranks.doctor.progress import step_in
from allranks.doctor.ranks import ended_workers
from allranks.findings import Evidence, Finding, Who
from allranks.listing import few

# torch.distributed.elastic tells of each worker that it ends after one has failed, and of each that failed.
_CLOSED = re.compile(r"Sending process (\d+) closing signal")
_FAILED = re.compile(r"failed \(exitcode: ?-?\d+\)")
_ELASTIC = ("torchrun", "accelerate")
_SHOWN = 3
_REMEDY = (
    "all ranks have to do the same number of steps: count the batches of each (DistributedSampler, drop_last=True, or "
    "torch.distributed.algorithms.join.Join for uneven ones), and look for an early return or sys.exit"
)


def left_early(started: Started, ended: Ended) -> Finding | None:
    """That ranks of this node had ended well before the run failed; None where its launcher's log tells otherwise or
    does not tell."""
    agent_log = started.run.agent_log(started.node)
    tail = read_from(agent_log, started.log_start(agent_log))
    if started.launcher not in _ELASTIC or (ended.lost is not None and _FAILED.search(tail)):
        return None
    told = {pid for _, _, pid in ended_workers(tail)} | {int(pid) for pid in _CLOSED.findall(tail)} | ended.alive
    ranks = sorted(rank for pid, rank in ended.ranks.items() if pid not in told)
    if not ranks:
        return None
    logs = [started.run.log(started.node, rank) for rank in ranks]
    texts = [read_from(log, started.log_start(log)) for log in logs]
    where = f"node {started.node}"
    who = f"rank {ranks[0]} ({where})" if len(ranks) == 1 else f"ranks {few(ranks, 12)} ({where})"
    # The rules that know more wordings take seconds to load, and the other nodes wait for this word.
    lines = [line for text in texts for line in last_lines(text)]
    step = max((step for line in lines if (step := step_in(line)) is not None), default=None)
    after = f" after step {step}" if step is not None else ""
    return Finding(
        causes.RANK_LEFT,
        f"{who} ended with exit code 0{after} while other ranks still needed {'it' if len(ranks) == 1 else 'them'}",
        who=Who(started.node, ranks[0] if len(ranks) == 1 else None),
        evidence=tuple(
            Evidence(line, str(log))
            for log, text in zip(logs[:1], texts[:1], strict=True)
            for line in last_lines(text)[-_SHOWN:]
        ),
        remedy=f"{_REMEDY}\nall logs: {started.run.logs(started.node)}",
        known_at=started.node,
        is_certain=False,  # it may have had no more to do, and the others may have lost each other
    )
