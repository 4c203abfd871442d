"""A diagnosis for a terminal: the answer, what shows it, what to do; then what it explains, and its limits."""

from __future__ import annotations

from collections.abc import Sequence

from allranks.doctor.diagnosis import HOPELESS, LIKELY, OTHER_NODE, Diagnosis
from allranks.findings import Evidence
from allranks.listing import few, printable

_LONGEST = 400  # characters of a line of evidence
_MOST_EXPLAINED = 6
_RESTARTS = {
    HOPELESS: "would end in the same way: mend it first",
    OTHER_NODE: "may do better without that node",
}


def lines_of(told: Diagnosis) -> list[str]:
    """The lines to print, none of which moves a cursor."""
    return [part for line in _lines(told) for part in _parts(printable(line, 4 * _LONGEST))]


def _lines(told: Diagnosis) -> list[str]:
    sure = " (likely)" if told.certainty == LIKELY else ""
    lines = [f"cause{sure}: {told.title}" if told.is_known else told.title]
    if who := _who(told):
        lines.append(f"first: {who}")
    lines += _evidence(told.evidence)
    lines += [f"{head}: {text}" for head, text in _texts(told) if text]
    if told.is_known:
        again = _RESTARTS.get(told.restart.verdict, "may pass")
        lines.append(f"a restart {again} (fingerprint {told.restart.fingerprint})")
    if told.others:
        lines.append(f"also possible: {few(told.others)}")
    if told.explained:
        lines.append("what follows from it:" if told.is_known else "what follows from another failure:")
    for one in told.explained[:_MOST_EXPLAINED]:
        ranks = f", ranks {_ranges(one.ranks)}" if one.ranks else ""
        count = f"{one.num_lines} lines" if one.num_lines > 1 else "1 line"
        lines.append(f"  {one.title}: {count}{ranks} ({_place(one.first)})")
    lines += [f"note: {note}" for note in told.notes]
    return lines


def _parts(text: str) -> list[str]:
    """The lines of a text that was put together from several, those after the first one set in."""
    first, *more = [line for line in text.split("\n") if line.strip()] or [""]
    return [first, *(f"  {line}" for line in more)]


def _texts(told: Diagnosis) -> list[tuple[str, str]]:
    return [
        ("meaning", told.meaning),
        ("do", told.remedy),
        ("not proven", told.not_proven),
        ("if that is wrong", told.look_at),
    ]


def _who(told: Diagnosis) -> str:
    rank = f"rank {told.rank}" if told.rank is not None else ""
    node = f"node {told.node}" if told.node else ""
    return f"{rank} ({node})" if rank and node else rank or node


def _evidence(evidence: Sequence[Evidence]) -> list[str]:
    places = [f"{_place(one)} | " if one.file else "" for one in evidence]
    return [f"  {place}{printable(one.text.strip(), _LONGEST)}" for place, one in zip(places, evidence, strict=True)]


def _place(one: Evidence) -> str:
    return f"{one.file}:{one.line}" if one.line is not None else one.file or ""


def _ranges(ranks: Sequence[int]) -> str:
    """0-3, 5, 7-9."""
    told: list[list[int]] = []
    for rank in ranks:
        if told and rank == told[-1][1] + 1:
            told[-1][1] = rank
        else:
            told.append([rank, rank])
    return few([str(low) if low == high else f"{low}-{high}" for low, high in told])
