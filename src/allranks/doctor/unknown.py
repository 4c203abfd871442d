"""Where no cause is known: what is true nevertheless, and the best next step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from allranks.doctor.candidates import Candidate
from allranks.doctor.diagnosis import UNKNOWN, Diagnosis, Explained, Restart, fingerprint
from allranks.doctor.ended_well import ended_well_by_logs
from allranks.doctor.reading.scanner import Hit, Read
from allranks.doctor.reading.tails import tail_of
from allranks.doctor.reading.tracebacks import HEADER
from allranks.doctor.ruleset import MAY_PASS
from allranks.findings import Evidence
from allranks.listing import counted

_ALL_LOGS = "Give the logs of all nodes and ranks together: allranks doctor LOG…"
_MORE = "export NCCL_DEBUG=INFO TORCH_DISTRIBUTED_DEBUG=DETAIL TORCH_NCCL_TRACE_BUFFER_SIZE=2000 and run it again"
_NO_TEXT = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]")  # control characters that no terminal is sent
_IN_TEXT = 50  # bytes at least for one of them


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
    if not any(read.num_bytes for read in reads):
        return _nothing_written(len(reads), notes)
    if (cut_off := _cut_off(reads, explained, notes)) is not None:
        return cut_off
    lines = sum(read.num_lines for read in reads)
    failed = any(read.first_failed_at for read in reads)
    return Diagnosis(
        cause=None,
        title="unknown: nothing in these logs words a failure"
        if not failed
        else "unknown: a worker failed, and said nothing",
        certainty=UNKNOWN,
        meaning=f"{counted(lines, 'line')} in {counted(len(reads), 'log')} {'was' if lines == 1 else 'were'} read.",
        remedy=f"{_ALL_LOGS}; if it hangs, allranks stacks RUN (or py-spy dump --pid PID) shows where; else {_MORE}.",
        not_proven="That all was well: what ends a process by a signal leaves no line in its own log.",
        explained=explained,
        notes=(*notes, *_no_text(reads)),
    )


def _nothing_written(num_logs: int, notes: tuple[str, ...]) -> Diagnosis:
    what = {0: "there are no logs", 1: "the log is empty"}.get(num_logs, f"all {num_logs} logs are empty")
    return Diagnosis(
        cause=None,
        title=f"unknown: {what}",
        certainty=UNKNOWN,
        meaning="Nothing was written, or not yet, or it went elsewhere.",
        remedy="Give what the launcher and the ranks printed: the job's output file, the container's log, or what the "
        "terminal showed: COMMAND 2>&1 | tee run.log",
        not_proven="That the program was started at all.",
        notes=notes,
    )


def _cut_off(reads: Sequence[Read], explained: tuple[Explained, ...], notes: tuple[str, ...]) -> Diagnosis | None:
    """Where a log ends within a traceback: something was raised, and what is not there."""
    for read in reads:
        lines = list(tail_of(read))
        if lines and not read.tail.endswith((b"\n", b"\r")) and not lines[-1].text.startswith(" "):
            del lines[-1]  # it is cut off, too
        at = next((at for at in reversed(range(len(lines))) if HEADER in lines[at].text), len(lines))
        frames = [line for line in lines[at + 1 :] if line.text.startswith(" ")]
        if not frames or len(frames) < len(lines[at + 1 :]):
            continue
        shown = [lines[at], *[line for line in frames if line.text.lstrip().startswith("File ")][-2:]]
        return Diagnosis(
            cause=None,
            title="unknown: the log ends within a traceback, before it says what was raised",
            certainty=UNKNOWN,
            meaning="Something was raised where the last of these lines stands, or in what it called.",
            remedy="Give the rest of that log, or that of the launcher, which often repeats the exception. With "
            "PYTHONUNBUFFERED=1 in the environment the next one ends later.",
            not_proven="What was raised: that line is not in the log.",
            rank=shown[0].rank,
            node=shown[0].node,
            evidence=tuple(Evidence(line.text, line.file, line.number) for line in shown),
            explained=explained,
            restart=Restart(MAY_PASS, fingerprint(UNKNOWN, shown[-1].text)),
            notes=notes,
        )
    return None


def _no_text(reads: Sequence[Read]) -> Iterator[str]:
    for read in reads:
        if len(_NO_TEXT.findall(read.tail)) * _IN_TEXT > len(read.tail):
            yield f"{read.source.name}: is no text, so no log (events of TensorBoard, weights, a core dump?)"
