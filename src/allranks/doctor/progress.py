"""How far a run came, by its lines of progress."""

from __future__ import annotations

import re
from collections.abc import Sequence

from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.scanner import Mark, Read

_STEP = re.compile(r"(?i)\b(?:global_)?steps?['\"]?[=:/ ]+(\d{1,12})|\| ?(\d{1,12})/\d+ \[|iteration +(\d{1,12})/")
_BAR = re.compile(r"\| ?(\d{1,12}/\d{1,12}) \[")


def newest_mark(reads: Sequence[Read]) -> Mark | None:
    """The last line of progress, of the log that has most to tell of it."""
    marks = [mark for read in reads for mark in read.marks if mark.kind == looked_for.PROGRESS]
    return marks[-1] if marks else None


def newest_step(reads: Sequence[Read]) -> int | None:
    mark = newest_mark(reads)
    return step_in(mark.line.text) if mark else None


def step_in(line: str) -> int | None:
    """The step that a line names."""
    steps = [step for found in _STEP.finditer(line) for step in found.groups() if step]
    return int(steps[-1]) if steps else None


def steps_further(marks: Sequence[Mark], order: int) -> int:
    """How many lines of progress come after the line `order`.

    A bar that shows where it had been shown before counts once at most: it is drawn anew when it is closed, which a
    dying process does, and by each rank.
    """
    seen: set[str] = set()
    count = 0
    for mark in marks:
        if mark.kind != looked_for.PROGRESS or mark.order == order:
            continue
        bars = _BAR.findall(mark.line.text)
        if mark.order < order:
            seen = {bars[-1]} if bars else seen
        elif not bars or bars[-1] not in seen:
            count += 1
            seen |= set(bars)
    return count
