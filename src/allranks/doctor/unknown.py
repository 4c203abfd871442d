"""Where no cause is known: what is true nevertheless, and the best next step."""

from __future__ import annotations

from collections.abc import Sequence

from allranks.doctor.candidates import Candidate
from allranks.doctor.diagnosis import UNKNOWN, Diagnosis, Explained, Restart, fingerprint
from allranks.doctor.ended_well import ended_well_by_logs
from allranks.doctor.reading.scanner import Hit, Read
from allranks.doctor.ruleset import MAY_PASS
from allranks.findings import Evidence

_ALL_LOGS = "Give the logs of all nodes and ranks together: allranks doctor LOG…"
_MORE = "export NCCL_DEBUG=INFO TORCH_DISTRIBUTED_DEBUG=DETAIL TORCH_NCCL_TRACE_BUFFER_SIZE=2000 and run it again"


def answer(
    reads: Sequence[Read],
    symptoms: Sequence[Candidate],
    consequences: Sequence[Hit],
    explained: tuple[Explained, ...],
    notes: tuple[str, ...],
) -> Diagnosis:
    """Unknown, but: a symptom, or what follows from a failure that these logs do not show, or nothing at all."""
    if symptoms:
        first = symptoms[0]
        rule = first.rule
        assert rule is not None
        return Diagnosis(
            cause=None,
            title=f"unknown, but: {rule.title}",
            certainty=UNKNOWN,
            meaning=rule.meaning,
            remedy=rule.remedy or f"{_ALL_LOGS}; if they have no more, {_MORE}.",
            not_proven=rule.not_proven,
            look_at=rule.look_at,
            rank=first.line.rank,
            node=first.line.node,
            evidence=tuple(Evidence(one.line.text, one.line.file, one.line.number) for one in symptoms[:4]),
            explained=explained,
            symptom=rule.id,
            restart=Restart(rule.restart, fingerprint(rule.id, first.line.text)),
            notes=notes,
        )
    if (well := ended_well_by_logs(reads, notes)) is not None:
        return well
    if consequences:
        told = consequences[0]
        return Diagnosis(
            cause=None,
            title="unknown: these logs show only what follows from another process's end",
            certainty=UNKNOWN,
            meaning="What failed first wrote elsewhere, or nothing.",
            remedy=f"{_ALL_LOGS}; look at the end of the logs of all other ranks, and at dmesg -T of their nodes.",
            not_proven="Which process ended first.",
            evidence=(Evidence(told.line.text, told.line.file, told.line.number),),
            explained=explained,
            restart=Restart(MAY_PASS, fingerprint(UNKNOWN, told.line.text)),
            notes=notes,
        )
    lines = sum(read.num_lines for read in reads)
    failed = any(read.first_failed_at for read in reads)
    return Diagnosis(
        cause=None,
        title="unknown: nothing in these logs words a failure"
        if not failed
        else "unknown: a worker failed, and said nothing",
        certainty=UNKNOWN,
        meaning=f"{lines:,} lines in {len(reads)} logs were read.",
        remedy=f"{_ALL_LOGS}; if it hangs, allranks stacks RUN (or py-spy dump --pid PID) shows where; else {_MORE}.",
        not_proven="That all was well: what ends a process by a signal leaves no line in its own log.",
        explained=explained,
        notes=notes,
    )
