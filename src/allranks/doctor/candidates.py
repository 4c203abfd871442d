"""What might have been the cause: all that is worded as one in the logs, less what the run lived through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from allranks.doctor import causes
from allranks.doctor.progress import steps_further
from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.lines import Line
from allranks.doctor.reading.scanner import Hit, Mark, Read
from allranks.doctor.reading.tracebacks import IN_REPORT, Raised
from allranks.doctor.ruleset import CAUSE, CONSEQUENCE, LIKELY, SURE, Rule
from allranks.doctor.wrapped import across, pairs

# What a failure to connect is over by, and only that.
_OF_CONNECTING = {"rendezvous", "network-card", "infiniband", "nccl", "ssh", "launchers", "model"}
# Of sacct and the like: it may be of any job that ever ran.
_TABLE_ROW = re.compile(r"\s*\d[\w.+\[\]-]*\s{2,}\S")
# Told some time before the end, up to which the ranks train on.
_OF_AN_END_TO_COME = {"spot-reclaimed", "slurm-preempted", "slurm-time-limit", "pbs-walltime"}
_LATER_SECONDS = 30.0  # that another rank trains on for so long says that this one does, too
LINES_OF_OTHERS = 3  # of progress: what was printed before may come after, and one or two steps are under way
_ANY = -1  # rank
_INTERLEAVED = 64  # writers to one log, between whose lines those of one are looked for
_NOT_FINITE = "nan-loss"
_OF_SRUN = {"slurm-cancelled", "rank-sigkill"}
# What srun does itself after a task of the step has failed.
_DONE_BY_SRUN = re.compile(r"\*\*\* STEP \S{1,80} ON .{1,80} CANCELLED AT \S{1,40} \*\*\*|srun: ")
_TASK_FAILED = re.compile(r"srun: error: \S{1,80}: tasks? [\d,-]{1,200}: Exited with exit code [1-9]")
# Raised by what waits for the program that failed.
_OF_LAUNCHERS = ("ChildFailedError", "CalledProcessError", "SignalException", "ProcessExitedException", "RayTaskError")
_NO_CAUSE = (*_OF_LAUNCHERS, "SystemExit", "KeyboardInterrupt", "BrokenPipeError", "GeneratorExit", "StopIteration")

# A library's warning: where nothing fails after it, it may be no more than that. NCCL's WARN is said of what fails.
_WARNING = re.compile(r"\b(?:[A-Z][a-z]+)?Warning: |\bWARNING\b|\[W\b")
# What says itself that the program goes on without what failed.
_GOES_ON = re.compile(
    r"(?i)\b(?:will ignore|ignor(?:es|ed|ing)) (?:this |the |these |that )?(?:error|exception|failure)s?\b"
    r"|\b(?:error|exception|failure)s? (?:is|are|was|were|will be) ignored\b|\b(?:error|failure)\W{1,3}non-?fatal\b"
    r"|\bnon-?fatal (?:error|failure|exception)|\b(?:continu|proceed)(?:e|es|ing) (?:anyway|without (?:it|them|this))\b"
    r"|\bcontinuing (?:with(?:out)?|on|regardless|despite)\b"
)
# The text of a --help tells what may go wrong, and not what went wrong.
_HELP = re.compile(r"\s*(?:--[a-z][\w-]*[ ,=]|usage: )")

# How well it is supported; the first is best.
BY_SURE_RULE, BY_LIKELY_RULE, BY_TRACEBACK, BY_LINE = range(4)


@dataclass(frozen=True)
class Candidate:
    """`rule` is None for an exception that none knows. `read` counts the logs, `order` the lines of one."""

    rule: Rule | None
    line: Line
    read: int
    order: int
    support: int
    fields: dict[str, str] = field(default_factory=dict)
    raised: Raised | None = None
    certainty: str = LIKELY
    is_broad: bool = False
    """Whether only the rule's broad wordings speak of it."""

    @property
    def id(self) -> str:
        return self.rule.id if self.rule else "exception"


def candidates(reads: Sequence[Read]) -> tuple[list[Candidate], list[Candidate], list[Hit]]:
    """(causes, symptoms, consequences) in the order of logs and lines."""
    found: list[Candidate] = []
    symptoms: list[Candidate] = []
    consequences: list[Hit] = []
    marks = [marks_of(read) for read in reads]
    for number, read in enumerate(reads):
        in_tracebacks = _said_in_tracebacks(read)
        told: set[int] = set()
        for hit in read.hits:
            if not _in_context(hit, read):
                continue
            told.add(hit.order)
            if hit.rule.kind == CONSEQUENCE:
                consequences.append(hit)
                continue
            is_weak = _is_contradicted(hit, read) or (is_warning(hit.line) and not _fails_after(hit, read))
            certainty = LIKELY if is_weak else hit.rule.certainty
            support = BY_SURE_RULE if certainty == SURE else BY_LIKELY_RULE
            raised = in_tracebacks.get(hit.order)
            candidate = Candidate(hit.rule, hit.line, number, hit.order, support, hit.fields, raised, certainty)
            if was_survived(candidate, reads, marks) or _is_by_srun(candidate, read):
                continue
            (found if hit.rule.kind == CAUSE else symptoms).append(candidate)
        for one in _exceptions(number, read, told):
            if one.rule is not None and one.rule.kind == CONSEQUENCE:
                consequences.append(Hit(one.rule, one.line, one.order, one.fields))
            elif not was_survived(one, reads, marks):
                (found if one.rule is None or one.rule.kind == CAUSE else symptoms).append(one)
    return _warnings_last(found), symptoms, consequences


def _warnings_last(found: Sequence[Candidate]) -> list[Candidate]:
    """A warning that was only logged, after which the program failed of something that is worded too, is doubtful."""

    logged = [one.raised is None and is_warning(one.line) for one in found]
    last: dict[tuple[int, int | None], int] = {}  # by log and rank, and by log alone: the last that is none
    for one, is_logged in zip(found, logged, strict=True):
        if not is_logged and one.support <= BY_TRACEBACK:
            for key in ((one.read, one.line.rank), (one.read, _ANY)):
                last[key] = max(one.order, last.get(key, -1))

    def failed_later(one: Candidate) -> bool:
        ranks = (_ANY,) if one.line.rank is None else (one.line.rank, None)  # as _may_be_one has it
        return any(last.get((one.read, rank), -1) > one.order for rank in ranks)

    return [
        replace(one, support=BY_LINE, certainty=LIKELY) if is_logged and failed_later(one) else one
        for one, is_logged in zip(found, logged, strict=True)
    ]


def is_warning(line: Line) -> bool:
    return line.level in ("WARNING", "WARN") or _WARNING.search(line.text) is not None


@dataclass(frozen=True)
class Went:
    """How far a log came: its lines of progress, those of each rank, and by kind the last line of each other mark."""

    progress: Sequence[Mark]
    of_rank: Mapping[int | None, Sequence[Mark]]
    last: Mapping[str, int]

    def has(self, kind: str, after: int) -> bool:
        """Whether a mark of that kind comes after that line."""
        return self.last.get(kind, -1) > after


def marks_of(read: Read) -> Went:
    """How far it came, but for what a traceback shows of the program's text (`if state.global_step == 2:`)."""
    code = {number for _, traceback in read.tracebacks for number in traceback.code}
    progress: list[Mark] = []
    of_rank: dict[int | None, list[Mark]] = {}
    last: dict[str, int] = {}
    for mark in read.marks:
        if mark.order in code:
            continue
        last[mark.kind] = max(mark.order, last.get(mark.kind, -1))
        if mark.kind == looked_for.PROGRESS:
            progress.append(mark)
            if mark.line.rank is not None:
                of_rank.setdefault(mark.line.rank, []).append(mark)
    return Went(progress, of_rank, last)


def _said_in_tracebacks(read: Read) -> dict[int, Raised]:
    return {raised.said.number: raised for _, traceback in read.tracebacks for raised in traceback.chain}


def _exceptions(number: int, read: Read, told: set[int]) -> Iterable[Candidate]:
    """Those that no rule knows by one line: of what was raised first in a chain; then lines that are one's by
    themselves."""
    of_tracebacks: set[int] = set()
    found: list[tuple[Candidate, str]] = []
    for order, traceback in read.tracebacks:
        of_tracebacks |= {raised.said.number for raised in traceback.chain}
        if traceback.was_ignored or any(raised.said.number in told for raised in traceback.chain):
            continue
        at = read.first_failed_at
        if at is not None and order < at.number and IN_REPORT.match(traceback.first.text):
            continue  # of another than the one that failed first
        first = next((one for one in traceback.chain if may_be_cause(one.type, one.said.text)), None)
        if first is not None and may_be_cause(traceback.chain[-1].type, ""):
            found.append((Candidate(None, first.said, number, order, BY_TRACEBACK, {}, first), first.more))
    nexts = {line.number: then.text for line, then in pairs(read)} if read.exceptions else {}
    for order, line, kind in read.exceptions:
        if order not in of_tracebacks and order not in told and may_be_cause(kind, line.text):
            message = line.text.partition(":")[2].strip()
            raised = Raised(kind, message, line, None)
            found.append((Candidate(None, line, number, order, BY_LINE, {}, raised), nexts.get(order, "")))
    known = across([(one.line.text, then) for one, then in found], read.index) if read.index else {}
    for place, (one, _) in enumerate(found):
        yield replace(one, rule=known[place].rule, fields=known[place].fields) if place in known else one


def may_be_cause(kind: str, said: str) -> bool:
    return kind.rpartition(".")[2].split("(")[0] not in _NO_CAUSE and causes.code_of_error(said) != causes.PEER_GONE


def _in_context(hit: Hit, read: Read) -> bool:
    if not hit.rule.context:
        return True
    within = hit.rule.within * max(1, min(len(read.writers), _INTERLEAVED))
    lines = read.contexts.get((hit.rule.id, looked_for.CONTEXT), ())
    return any(abs(line.number - hit.order) <= within and _may_be_one(line, hit.line) for line in lines)


def _is_contradicted(hit: Hit, read: Read) -> bool:
    lines = read.contexts.get((hit.rule.id, looked_for.CONTRADICTION), ())
    return any(_may_be_one(line, hit.line) for line in lines)


def _may_be_one(one: Line, other: Line) -> bool:
    return one.rank is None or other.rank is None or one.rank == other.rank


def was_survived(one: Candidate, reads: Sequence[Read], marks: Sequence[Went]) -> bool:
    """Whether the run went on after it: then it ended of something else, or well."""
    read = reads[one.read]
    if _HELP.match(one.line.text) or (one.raised is None and _GOES_ON.search(one.line.text)):
        return True
    went = marks[one.read]
    failed = went.has(looked_for.ENDED, one.order) or (
        read.first_failed_at is not None and read.first_failed_at.number > one.order
    )
    if went.has(looked_for.DONE, one.order) and not failed:
        return True
    family = one.rule.family if one.rule else ""
    if family in _OF_CONNECTING and not failed and went.has(looked_for.CONNECTED, one.order):
        return True
    if one.id in _OF_AN_END_TO_COME and not _TABLE_ROW.match(one.line.text):
        return False
    progress, own = went.progress, went.of_rank.get(one.line.rank, ())
    if one.rule and one.rule.answer == _NOT_FINITE:  # with spoilt weights bars go on: only a loss tells otherwise
        progress = [mark for mark in progress if "loss" in mark.line.text.lower()]
        own = [mark for mark in own if "loss" in mark.line.text.lower()]
    if steps_further(own, one.order):
        return True
    ends = one.raised is not None and one.support != BY_LINE
    further = steps_further(progress, one.order)
    if further >= (LINES_OF_OTHERS if failed else LINES_OF_OTHERS - 1 if ends else 1):
        return True
    return _others_go_on(one, reads)


def _is_by_srun(one: Candidate, read: Read) -> bool:
    """Whether srun ended the step, or its other tasks, as one of them had failed before."""
    return (
        one.id in _OF_SRUN
        and bool(_DONE_BY_SRUN.search(one.line.text))
        and any(hit.order < one.order and _TASK_FAILED.search(hit.line.text) for hit in read.hits)
    )


def _fails_after(one: Hit, read: Read) -> bool:
    """Whether anything says after this line that something failed."""
    return (
        any(order > one.order for order, _ in read.tracebacks)
        or any(order > one.order for order, _, _ in read.exceptions)
        or any(hit.order > one.order and hit.rule is not one.rule for hit in read.hits)
        or any(mark.order > one.order for mark in read.marks if mark.kind == looked_for.ENDED)
        or (read.first_failed_at is not None and read.first_failed_at.number > one.order)
    )


def _others_go_on(one: Candidate, reads: Sequence[Read]) -> bool:
    """Whether other logs tell that the run went on, or ended well."""
    others = [read for number, read in enumerate(reads) if number != one.read]
    if one.line.seconds is not None and any(
        mark.kind == looked_for.PROGRESS
        and mark.line.seconds is not None
        and mark.line.is_utc == one.line.is_utc  # else the zone of one of them is not known
        and mark.line.seconds > one.line.seconds + _LATER_SECONDS
        for read in others
        for mark in read.marks
    ):
        return True
    return any(_ended_well(read) for read in others) and not any(has_failed(read) for read in reads)


def _ended_well(read: Read) -> bool:
    return any(mark.kind == looked_for.DONE for mark in read.marks)


def has_failed(read: Read) -> bool:
    return (
        read.first_failed_at is not None
        or bool(read.tracebacks)
        or any(mark.kind == looked_for.ENDED for mark in read.marks)
    )
