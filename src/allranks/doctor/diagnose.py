"""Which of all that went wrong was the cause: by time, rank and kind, and never by the order of the rules."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from allranks.doctor import broadly, unknown
from allranks.doctor.candidates import BY_TRACEBACK, Candidate, candidates
from allranks.doctor.diagnosis import EXCEPTION, Diagnosis, Explained, Restart, fingerprint
from allranks.doctor.differing_waits import differing_waits
from allranks.doctor.progress import newest_step, step_in
from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.scanner import Hit, Read
from allranks.doctor.ruleset import HOPELESS, LIKELY, OTHER_NODE, RETRIED
from allranks.findings import Evidence
from allranks.listing import printable

_SHOWN = 6  # lines of evidence
_AT_ONCE_SECONDS = 2.0  # clocks of one cluster agree no better than that, and logs are written late
# What srun, torchrun and DeepSpeed do to the others once one has failed; a cause where nothing had.
ENDS_FROM_OUTSIDE = frozenset({"slurm-cancelled", "sigterm-from-outside"})
_COMM = re.compile(r"commId (0x[0-9a-f]+)|restart_count=(\d+)")


def diagnose(reads: Sequence[Read]) -> Diagnosis:
    """The one answer to all logs of a run."""
    found, symptoms, consequences = candidates(reads)
    offsets = _clock_offsets(reads)
    notes = tuple(f"{read.source.name}: {read.broken}" for read in reads if read.broken)
    found = _without_ends_that_follow(_unexplained(found), offsets)
    if not found:
        found = _still_retried(symptoms) or differing_waits(symptoms, reads[0].rules if reads else ())
        found = found or broadly.wrapped_lines(reads) or broadly.last_lines(reads)
    if not found and not symptoms:
        found = broadly.half_told(reads, consequences)
    if not found:
        return unknown.answer(reads, symptoms, consequences, _explained(consequences, []), notes)
    chosen = _first(found, reads, offsets)
    first = chosen.first
    same = [one for one in found if one.id == first.id]
    other = [one for one in found if one.id != first.id]
    rank, node = _who(first, same, reads)
    evidence = tuple(Evidence(one.line.text, one.line.file, one.line.number) for one in _shown(first, same, reads))
    explained = _explained(consequences, [one for one in other if _is_after(one, first)])
    first = broadly.named(first, reads[first.read].rules)
    rule, raised = first.rule, first.raised
    step = newest_step(reads)
    where = f"{raised.frame.file.rpartition('/')[2]}:{raised.frame.function}" if raised and raised.frame else ""
    if rule is None:
        assert raised is not None
        return Diagnosis(
            cause=EXCEPTION,
            title=f"an exception that nothing caught: {printable(first.line.text.strip(), 300)}",
            certainty=LIKELY,
            meaning="The program raised it, and ended." + _frame_told(first),
            remedy=_frame_remedy(first),
            not_proven="Why it was raised: that is of the program, its config or its data.",
            look_at="The lines before it in the log of that rank.",
            rank=rank,
            node=node,
            evidence=evidence,
            explained=explained,
            others=chosen.rivals,
            restart=Restart(HOPELESS, fingerprint(EXCEPTION, first.line.text, where), step),
            notes=notes,
        )
    certainty = LIKELY if chosen.is_doubtful else first.certainty
    return Diagnosis(
        cause=rule.answer,
        title=_filled(rule.title, first),
        certainty=certainty,
        meaning=_filled(rule.meaning, first) + (_frame_told(first) if first.is_broad else ""),
        remedy=_filled(rule.remedy, first),
        not_proven=(broadly.NOT_PROVEN if first.is_broad else "") + _filled(rule.not_proven, first),
        look_at=_filled(rule.look_at, first),
        rank=rank,
        node=node,
        evidence=evidence,
        explained=explained,
        others=chosen.rivals,
        restart=Restart(
            rule.restart,
            fingerprint(rule.answer, first.line.text, where),
            step,
            node if rule.restart == OTHER_NODE else None,
        ),
        notes=notes,
        is_broad=first.is_broad,
    )


def _still_retried(symptoms: list[Candidate]) -> list[Candidate]:
    """What was tried again and again, to the end of the logs; where several things were, what was tried last."""
    retried = [one for one in symptoms if one.rule and one.rule.kind == RETRIED]
    return [one for one in retried if one.id == retried[-1].id]


@dataclass(frozen=True)
class _Chosen:
    first: Candidate
    rivals: tuple[str, ...]
    is_doubtful: bool


def _unexplained(found: list[Candidate]) -> list[Candidate]:
    """Those that are not among what another one brings about."""
    brought = {id for one in found if one.rule for id in one.rule.explains if id != one.id}
    circular = {one.id for one in found if one.rule and one.id in brought and brought & set(one.rule.explains)}
    return [one for one in found if one.id not in brought or one.id in circular]


def _without_ends_that_follow(found: list[Candidate], offsets: Sequence[float]) -> list[Candidate]:
    """Those that are no end from outside (a signal, a cancelled step) after the program itself had failed."""
    own = [one for one in found if one.id not in ENDS_FROM_OUTSIDE and one.support <= BY_TRACEBACK]

    def follows(end: Candidate, failure: Candidate) -> bool:
        if end.read == failure.read:
            return failure.order < end.order
        at, failed_at = _when(end, offsets), _when(failure, offsets)
        in_one_zone = end.line.is_utc == failure.line.is_utc
        return in_one_zone and at is not None and failed_at is not None and failed_at < at

    return [one for one in found if one.id not in ENDS_FROM_OUTSIDE or not any(follows(one, other) for other in own)]


def _first(found: list[Candidate], reads: Sequence[Read], offsets: Sequence[float]) -> _Chosen:
    times = [_when(one, offsets) for one in found]
    in_one_log = len({one.read for one in found}) == 1
    in_one_zone = len({one.line.is_utc for one in found}) == 1
    timed = all(time is not None for time in times) and in_one_zone
    first_rank = _first_failed_rank(reads)

    def key(one: Candidate) -> tuple[float, ...]:
        when = _when(one, offsets)
        place = (float(one.read), float(one.order))
        if timed and when is not None:
            return (when, *place)
        if in_one_log:
            return place
        # Neither times nor one log's order: the launcher's word, then what is best supported, then the earliest step,
        # for ranks do their steps together.
        step = step_in(one.line.text)
        return (float(one.line.rank != first_rank), float(one.support), math.inf if step is None else step, *place)

    by_writer: dict[tuple[int, int | None, str], list[Candidate]] = {}
    for one in found:
        by_writer.setdefault((one.read, one.line.rank, one.line.stream), []).append(one)
    # A process says several things on its way down: of one writer what is best supported counts, then the earliest.
    best = [min(of, key=lambda one: (one.support, *key(one))) for of in by_writer.values()]
    unlabelled = any(one.line.rank is None for one in best)
    first = min(best, key=lambda one: (one.support if unlabelled or one.support > BY_TRACEBACK else 0, *key(one)))
    rivals = sorted({one.id for one in best if one.id != first.id and one.support <= BY_TRACEBACK})
    doubtful = False
    if rivals:
        if timed:
            at = _when(first, offsets) or 0.0
            doubtful = any(
                one.id != first.id
                and one.read != first.read
                and abs((_when(one, offsets) or 0.0) - at) < _AT_ONCE_SECONDS
                for one in best
                if one.support < BY_TRACEBACK
            )
        else:
            doubtful = not in_one_log
    return _Chosen(first, tuple(rivals), doubtful)


def _when(one: Candidate, offsets: Sequence[float]) -> float | None:
    return None if one.line.seconds is None else one.line.seconds + offsets[one.read]


def _clock_offsets(reads: Sequence[Read]) -> list[float]:
    """What to add to each log's times so that they are the first one's, by events that several logs tell of: that all
    ranks of a communicator were there."""
    seen: list[dict[str, float]] = []
    for read in reads:
        of_read: dict[str, float] = {}
        for mark in read.marks:
            if (
                mark.kind == looked_for.CONNECTED
                and mark.line.seconds is not None
                and (m := _COMM.search(mark.line.text))
            ):
                of_read.setdefault(m[0], mark.line.seconds)
        seen.append(of_read)
    offsets = []
    for of_read in seen:
        differences = [seen[0][key] - at for key, at in of_read.items() if key in seen[0]] if seen else []
        offsets.append(statistics.median(differences) if differences else 0.0)
    return offsets


def _who(first: Candidate, same: list[Candidate], reads: Sequence[Read]) -> tuple[int | None, str | None]:
    read = reads[first.read]
    told = first.fields.get("rank", "")
    rank = int(told) if told.isdigit() else first.line.rank
    node = first.fields.get("node") or first.fields.get("host") or first.line.node
    named = _first_failed_rank(reads)
    if not told and rank != named and _came_at_once(first, same):
        return None, None
    if rank is None and (len(same) == 1 or all(one.line.rank is None for one in same)):
        rank = named
    if node is None and rank is not None and rank == named:
        node = read.first_failed.get("host") or next(
            (one.first_failed["host"] for one in reads if "host" in one.first_failed), None
        )
    return rank, node


def _came_at_once(first: Candidate, same: Sequence[Candidate]) -> bool:
    """Whether other ranks tell the same of the same step in logs of their own, without times: as of a loss that is the
    mean of all."""
    step = step_in(first.line.text)
    if step is None or first.line.seconds is not None:
        return False
    return any(
        one.read != first.read and one.line.rank != first.line.rank and step_in(one.line.text) == step for one in same
    )


def _first_failed_rank(reads: Sequence[Read]) -> int | None:
    for read in reads:
        if (found := re.match(r"\d+", read.first_failed.get("rank", ""))) is not None:
            return int(found[0])
    return None


def _shown(first: Candidate, same: list[Candidate], reads: Sequence[Read]) -> list[Candidate]:
    rest = {one.line.place: one for one in same if one.line.text != first.line.text}  # several wordings are of one line
    return [first, *list(rest.values())[: _SHOWN - 1]]


def _is_after(one: Candidate, first: Candidate) -> bool:
    return one.read != first.read or one.order > first.order


def _explained(consequences: Sequence[Hit], later: Sequence[Candidate]) -> tuple[Explained, ...]:
    groups: dict[str, list[tuple[str, Hit | Candidate]]] = {}
    for hit in consequences:
        groups.setdefault(hit.rule.id, []).append((hit.rule.title, hit))
    for one in later:
        title = one.rule.title if one.rule else "an exception of its own"
        groups.setdefault(one.id, []).append((title, one))
    told = []
    for id, of in groups.items():
        title, first = of[0]
        ranks = sorted({one.line.rank for _, one in of if one.line.rank is not None})
        evidence = Evidence(first.line.text, first.line.file, first.line.number)
        told.append(Explained(id, _plain(title), len(of), tuple(ranks), evidence))
    return tuple(told)


def _frame_told(one: Candidate) -> str:
    frame = one.raised.frame if one.raised else None
    return (
        f" It was raised below line {frame.line} of {frame.file}, in {frame.function or 'its module'}." if frame else ""
    )


def _frame_remedy(one: Candidate) -> str:
    frame = one.raised.frame if one.raised else None
    if frame is None:
        return "Read what it says, and mend that; a restart would end in the same way."
    return f"Look at line {frame.line} of {frame.file}; a restart would end in the same way."


FIELD = re.compile(r"\{(\w+)\}")


def _filled(text: str, one: Candidate) -> str:
    """A rule's text with what the line says in place of its {fields}."""
    return FIELD.sub(lambda match: one.fields.get(match[1], _plain_field(match[1])), text)


def _plain(text: str) -> str:
    return FIELD.sub(lambda match: _plain_field(match[1]), text)


def _plain_field(name: str) -> str:
    return f"the {name}"
