"""A run that ended well: no failure, and no unknown one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from allranks.doctor.candidates import LINES_OF_OTHERS, marks_of
from allranks.doctor.diagnosis import LIKELY, SURE, Diagnosis
from allranks.doctor.progress import newest_step, steps_further
from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.scanner import Hit, Mark, Read
from allranks.doctor.ruleset import CONSEQUENCE
from allranks.exit_codes import DONE
from allranks.findings import Evidence

SPOILT = "nan-loss"
"""What a program may end well with all the same."""
_GOES_ON = (looked_for.PROGRESS, looked_for.ENDED)


def ended_well(told: Diagnosis, ended: object, reads: Sequence[Read]) -> Diagnosis:
    """`told` of a run of ours, whose launcher, by `ended` in its live.json, may know that every rank ended with 0:
    then what its logs word was survived."""
    if not isinstance(ended, Mapping) or ended.get("exit_code") != DONE or told.cause == SPOILT:
        return told
    survived = (f"a log also says, and the run went on after it: {told.title}",) if told.is_known else ()
    return _well("every rank ended with exit code 0", SURE, reads, (*told.notes, *survived))


def ended_well_by_logs(reads: Sequence[Read], notes: tuple[str, ...]) -> Diagnosis | None:
    """Where a log says that the training has ended, and nothing goes on after that. For logs that word no failure.

    What else follows from a process's end follows from this one where it comes after it, and from that of an earlier
    start where the training went on since: a log may hold several.
    """
    ends: list[Mark] = []
    for read in reads:
        end = _end(read)
        if any(hit.rule.kind == CONSEQUENCE and not _is_passed(hit, end, read) for hit in read.hits):
            return None
        ends += [end] if end is not None else []
    if not ends or any(read.broken for read in reads):
        return None
    told = _well("the log says that the training ended", LIKELY, reads, notes)
    shown = tuple(Evidence(mark.line.text, mark.line.file, mark.line.number) for mark in ends[:4])
    return replace(told, evidence=shown, not_proven="What came after that, such as saving or uploading the model.")


def _is_passed(consequence: Hit, end: Mark | None, read: Read) -> bool:
    if end is None or consequence.order > end.order:
        return end is not None
    return steps_further(marks_of(read).progress, consequence.order) >= LINES_OF_OTHERS


def _end(read: Read) -> Mark | None:
    last = max((mark.order for mark in read.marks if mark.kind in _GOES_ON), default=-1)
    ends = [mark for mark in read.marks if mark.kind == looked_for.DONE and looked_for.TRAINED.search(mark.line.text)]
    return ends[-1] if ends and ends[-1].order >= last else None


def _well(why: str, certainty: str, reads: Sequence[Read], notes: tuple[str, ...]) -> Diagnosis:
    step = newest_step(reads)
    after = f", after step {step}" if step is not None else ""
    return Diagnosis(
        cause=None, title=f"nothing failed: {why}{after}", certainty=certainty, notes=notes, ended_well=True
    )
